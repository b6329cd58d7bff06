"""How many bytes to ask for ahead: as many as the way to the server holds, and a little more.

More would only wait in queues on the way, with every other request behind them. The way holds its
rate times its round trip, as BBR has it: the highest rate at which data came of late, and the
shortest time that an answer took.
"""

from __future__ import annotations

from typing import Final

from ..aio.loop import Loop

# Our own choices
LEAST: Final = 256 << 10  # bytes
MOST: Final = 16 << 20
FADING: Final = 0.98  # of the highest rate, with each answer


class Pace:
    """What is known of the way to one server."""

    def __init__(self, loop: Loop) -> None:
        self._time = loop.time
        self._rate = 0.0  # bytes a second
        self._round_trip = 1.0  # seconds
        self._delivered = 0

    def asked(self) -> tuple[float, int]:
        """Returns what ``delivered`` needs to know of a request that is sent now."""
        return self._time(), self._delivered

    def answered(self, asked: float) -> None:
        """Takes the time of an answer to a small request."""
        self._round_trip = min(self._round_trip, self._time() - asked)

    def delivered(self, asked: tuple[float, int], size: int) -> None:
        """Takes an answer with data."""
        when, before = asked
        self._delivered += size
        passed = max(self._time() - when, 1e-6)
        self._round_trip = min(self._round_trip, passed)
        self._rate = max(self._rate * FADING, (self._delivered - before) / passed)

    @property
    def round_trip(self) -> float:
        """The shortest time that an answer took, in seconds."""
        return self._round_trip

    @property
    def window(self) -> int:
        """The bytes to ask for ahead."""
        return min(MOST, LEAST + int(2 * self._rate * self._round_trip))
