"""Penalties for sources that misbehave before they are authenticated (PerSourcePenalties of
sshd_config(5), with OpenSSH's figures).

A monitor's exit status says how its connection ended; each bad end costs the source some
seconds. Once they add up to MINIMUM the source is refused until they have passed.

They grow, or somebody who comes once a second would cost the server a key exchange a second for
ever: each bad end makes the next one dearer, until the source has been free of penalties for
a second for each of them.
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
MINIMUM: Final = 15.0  # seconds; what is less is forgiven
MAXIMUM: Final = 600.0

# Our own choices
SOURCES: Final = 65536  # remembered at once; beyond it the one nearest to its end is forgotten
DOUBLE: Final = 8  # bad ends after which the next one costs twice as much; after twice so many, 3


def source_of(address: str, block: tuple[int, int]) -> int:
    """A number for all addresses that count as one: those with these leading bits in common.

    ``block`` is how many bits of IPv4 and of IPv6 (PerSourceNetBlockSize). What is no address
    counts as one source.
    """
    try:
        return _block_of(ip_address(address.partition("%")[0]), block)
    except ValueError:
        return -1


def _block_of(address: IPv4Address | IPv6Address, block: tuple[int, int]) -> int:
    if address.version == 4:
        return int(address) >> (32 - block[0])
    return int(address) >> (128 - block[1]) | 1 << 128  # apart from IPv4's


@dataclass(slots=True)
class _Record:
    """What a source has done."""

    end: float  # of its penalties
    bad_ends: float = 0  # those that still make the next one dearer
    refused: bool = False

    def lapse(self, now: float) -> None:
        """Take off what has passed."""
        if self.end <= now:
            self.bad_ends = max(0.0, self.bad_ends - (now - self.end))
            self.end = now
            self.refused = False


class Penalties:
    """What each source has still to wait for."""

    def __init__(self, exempt: Iterable[str], block: tuple[int, int]) -> None:
        """``exempt`` are addresses and networks; raises UsageError for what is neither.

        ``block`` is for ``source_of``.
        """
        self._block = block
        self._records: dict[int, _Record] = {}
        try:
            self._exempt = [ip_network(text, strict=False) for text in exempt]
        except ValueError as error:
            raise UsageError(f"per_source_penalty_exempt_list: {error}") from error

    def go_on_from(self, before: "Penalties") -> None:
        """Take over what sources have still to wait for, if they are counted alike."""
        if self._block == before._block:
            self._records = before._records

    def add(self, source: str, ending: Ending, now: float) -> bool:
        """Count how a connection of ``source`` ended; whether it is refused from now on."""
        seconds = SECONDS[ending]
        key = self._key(source)
        if not seconds or key is None:
            return False
        if key not in self._records and len(self._records) >= SOURCES:
            del self._records[min(self._records, key=lambda key: self._records[key].end)]
        record = self._records.setdefault(key, _Record(now))
        record.lapse(now)
        seconds *= 1 + record.bad_ends / DOUBLE
        record.end = min(record.end + seconds, now + MAXIMUM)
        record.bad_ends += 1
        if record.end - now < MINIMUM or record.refused:
            return False
        record.refused = True
        return True

    def refuses(self, source: str, now: float) -> bool:
        """Whether a connection of ``source`` is to be dropped."""
        key = self._key(source)
        record = None if key is None else self._records.get(key)
        if key is None or record is None:
            return False
        record.lapse(now)
        if not record.bad_ends:
            del self._records[key]
        return record.refused

    def _key(self, source: str) -> int | None:
        """The source's number, None for one that is exempt."""
        try:
            address: IPv4Address | IPv6Address = ip_address(source.partition("%")[0])
        except ValueError:
            return None
        if any(address in network for network in self._exempt):
            return None
        return _block_of(address, self._block)
