"""Gives up a connection that is idle for too long.

A connection is idle while no channel sends or receives. Keepalive requests and new keys do not
count.
"""

from collections.abc import Callable
from typing import Final

from ..ssh.order import Phase
from .driver import Driver

# Our own choice
LOOK: Final = 1.0  # seconds between two looks: cheaper than a timer that each packet restarts


class IdleTimeout:
    """Calls ``expired`` once no channel has sent or received anything for ``seconds``."""

    def __init__(self, driver: Driver, seconds: float, expired: Callable[[], None]) -> None:
        self._driver = driver
        self._seconds = seconds
        self._expired = expired
        self._activity = driver.connection.transport.activity
        self._since = driver.loop.time()
        driver.loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        transport, now = self._driver.connection.transport, self._driver.loop.time()
        if transport.phase is Phase.CLOSED:
            return
        if transport.activity != self._activity:
            self._activity, self._since = transport.activity, now
        if now - self._since >= self._seconds:
            self._expired()
        else:
            self._driver.loop.call_later(LOOK, self._look)
