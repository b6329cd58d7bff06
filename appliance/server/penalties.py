"""Penalties for sources that misbehave before they are authenticated (PerSourcePenalties of
sshd_config(5), with OpenSSH's figures).

A monitor's exit status says how its connection ended; each bad end costs the source some
seconds. Once they add up to MINIMUM the source is refused until they have passed.

Penalties grow: each bad end makes the next one cost more. Otherwise a source that connects once a
second would cost the server a key exchange a second for ever. For each second that the source
spends without a penalty, one bad end is forgotten.

A site with IPv6 has hundreds or thousands of sources. So the blocks of addresses that a site may
have been assigned are counted and refused in the same way, each as if it were several sources
(SOURCES_OF_SITE). Their number is a compromise: at a hoster, a block has several customers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from ..errors import UsageError


class Ending(IntEnum):
    """How a connection ended: the exit status of its monitor."""

    NORMAL = 0  # it was authenticated
    CRASH = 1
    NO_AUTHENTICATION = 3  # none was tried
    FAILED = 4
    UNKNOWN_USER = 5
    GRACE_TIME = 6  # it was not authenticated in time


SECONDS: Final[dict[Ending, float]] = {
    Ending.NORMAL: 0,
    Ending.CRASH: 90,
    Ending.NO_AUTHENTICATION: 1,
    Ending.FAILED: 5,
    Ending.UNKNOWN_USER: 5,
    Ending.GRACE_TIME: 10,
}
MINIMUM: Final = 15.0  # seconds; no source is refused for less
MAXIMUM: Final = 600.0
# Records of each IP version (max-sources4, max-sources6), so that IPv6 sources displace no IPv4
# ones. Beyond this number, those nearest to their end are forgotten (overflow:permissive).
RECORDS: Final = 65536

# Our own choices
SITES: Final = (64, 56, 48)  # bits of the networks that IPv6 sites are assigned, RFC 6177
# The first block around a source counts as so many sources, each wider one as twice as many. So a
# source whose 20 connections all stay silent does not get its neighbours refused.
SOURCES_OF_SITE: Final = 16
DOUBLE: Final = 8  # bad ends, after which the next one costs 2 times as much; after 16, 3 times


def blocks_of(address: str, block: tuple[int, int]) -> tuple[int, ...]:
    """Numbers for the blocks that contain an address: its source's, then wider ones.

    ``block`` is how many leading bits all addresses of a source have in common, of IPv4 and of IPv6
    (PerSourceNetBlockSize). All texts that are not an address count as one source.
    """
    try:
        return _blocks_of(ip_address(address.partition("%")[0]), block)
    except ValueError:
        return (-1,)


def _blocks_of(address: IPv4Address | IPv6Address, block: tuple[int, int]) -> tuple[int, ...]:
    return tuple(
        # Version and length are parts of the number, so that no two blocks have the same one.
        (address.version << 8 | bits) << 128 | int(address) >> (address.max_prefixlen - bits)
        for bits in _lengths(address.version, block)
    )


def _lengths(version: int, block: tuple[int, int]) -> tuple[int, ...]:
    """How many leading bits each of ``blocks_of`` has, for this IP version."""
    if version == 4:
        return (block[0],)
    return (block[1], *(bits for bits in SITES if bits < block[1]))


@dataclass(slots=True)
class _Record:
    """The penalties of a source, or of a wider block."""

    end: float  # when its penalties have passed, in monotonic seconds
    bad_ends: float = 0  # those that still make the next one cost more
    refused: bool = False

    def lapse(self, now: float) -> None:
        """Ends a refusal if the penalties have passed; forgets a bad end for each second since."""
        if self.end <= now:
            self.bad_ends = max(0.0, self.bad_ends - (now - self.end))
            self.end = now
            self.refused = False

    def add(self, seconds: float, share: float, now: float) -> bool:
        """Counts ``share`` of a bad end that costs so many seconds; returns whether to refuse now.

        It returns False if the source is refused already.
        """
        self.lapse(now)
        seconds *= share * (1 + self.bad_ends / DOUBLE)
        self.end = min(self.end + seconds, now + MAXIMUM)
        self.bad_ends += share
        if self.end - now < MINIMUM or self.refused:
            return False
        self.refused = True
        return True


class Penalties:
    """The penalties of all sources."""

    def __init__(self, exempt: Iterable[str], block: tuple[int, int]) -> None:
        """``exempt`` are addresses and networks; raises UsageError for what is neither.

        ``block`` is for ``blocks_of``.
        """
        self._block = block
        self._records: dict[int, dict[int, _Record]] = {4: {}, 6: {}}  # by IP version
        try:
            self._exempt = [ip_network(text, strict=False) for text in exempt]
        except ValueError as error:
            raise UsageError(f"per_source_penalty_exempt_list: {error}") from error

    def go_on_from(self, before: "Penalties") -> None:
        """Takes over the penalties of ``before``, if the blocks have the same size."""
        if self._block == before._block:
            self._records = before._records

    def add(self, source: str, ending: Ending, now: float) -> str:
        """Counts how a connection of ``source`` ended.

        Returns the widest network that is refused from now on, '' if none is.
        """
        address = self._counted(source)
        if not SECONDS[ending] or address is None:
            return ""
        refused = ""
        records = self._records[address.version]
        lengths = _lengths(address.version, self._block)
        for level, block in enumerate(_blocks_of(address, self._block)):
            if block not in records and len(records) >= RECORDS:
                _forget_some(records)
            share = 1 / (SOURCES_OF_SITE << level - 1) if level else 1.0
            if records.setdefault(block, _Record(now)).add(SECONDS[ending], share, now):
                refused = str(ip_network((address, lengths[level]), strict=False))
        return refused

    def refuses(self, source: str, now: float) -> bool:
        """Whether a connection of ``source`` is to be dropped."""
        address = self._counted(source)
        if address is None:
            return False
        records = self._records[address.version]
        refused = False
        for block in _blocks_of(address, self._block):
            if (record := records.get(block)) is not None:
                record.lapse(now)
                if not record.bad_ends:
                    del records[block]
                refused |= record.refused
        return refused

    def _counted(self, source: str) -> IPv4Address | IPv6Address | None:
        """The address of a source, None if it is exempt or not an address."""
        try:
            address: IPv4Address | IPv6Address = ip_address(source.partition("%")[0])
        except ValueError:
            return None
        return None if any(address in network for network in self._exempt) else address


def _forget_some(records: dict[int, _Record]) -> None:
    """Forgets the eighth that is nearest to its end; to look for one each time would take long."""
    for block in sorted(records, key=lambda block: records[block].end)[: RECORDS // 8]:
        del records[block]
