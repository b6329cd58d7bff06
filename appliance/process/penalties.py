"""Penalties for sources that misbehave before they are authenticated (PerSourcePenalties of
sshd_config(5), with OpenSSH's figures).

A monitor's exit status says how its connection ended; each bad end costs the source some
seconds. Once they add up to MINIMUM the source is refused until they have passed.
"""

from collections.abc import Iterable
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
IPV6_PREFIX: Final = 64  # bits: one customer has all addresses below it

# Our own choice
SOURCES: Final = 65536  # remembered at once; beyond it the one nearest to its end is forgotten


class Penalties:
    """What each source has still to wait for."""

    def __init__(self, exempt: Iterable[str]) -> None:
        """``exempt`` are addresses and networks; raises UsageError for what is neither."""
        self._ends: dict[int, float] = {}
        self._refused: set[int] = set()
        try:
            self._exempt = [ip_network(text, strict=False) for text in exempt]
        except ValueError as error:
            raise UsageError(f"per_source_penalty_exempt_list: {error}") from error

    def add(self, source: str, ending: Ending, now: float) -> bool:
        """Count how a connection of ``source`` ended; whether it is refused from now on."""
        seconds = SECONDS[ending]
        key = self._key(source)
        if not seconds or key is None:
            return False
        end = min(max(now, self._ends.get(key, now)) + seconds, now + MAXIMUM)
        if key not in self._ends and len(self._ends) >= SOURCES:
            self._forget(min(self._ends, key=self._ends.__getitem__))
        self._ends[key] = end
        if end - now < MINIMUM or key in self._refused:
            return False
        self._refused.add(key)
        return True

    def refuses(self, source: str, now: float) -> bool:
        """Whether a connection of ``source`` is to be dropped."""
        key = self._key(source)
        if key is None or key not in self._ends:
            return False
        if self._ends[key] <= now:
            self._forget(key)
            return False
        return key in self._refused

    def _forget(self, key: int) -> None:
        del self._ends[key]
        self._refused.discard(key)

    def _key(self, source: str) -> int | None:
        """The source's number, None for one that is exempt."""
        try:
            address: IPv4Address | IPv6Address = ip_address(source.partition("%")[0])
        except ValueError:
            return None
        if any(address in network for network in self._exempt):
            return None
        if address.version == 4:
            return int(address)
        return (int(address) >> (128 - IPV6_PREFIX)) | 1 << IPV6_PREFIX  # apart from IPv4's
