"""A connection that carries nothing for so long is given up."""

from collections.abc import Callable
from typing import Final

from ..ssh.order import Phase
from .driver import Driver

# Our own choice
LOOK: Final = 1.0  # seconds between two looks: cheaper than a timer that each packet winds up


class IdleTimeout:
    """Calls ``expired`` once no packet has come or gone for ``seconds``."""

    def __init__(self, driver: Driver, seconds: float, expired: Callable[[], None]) -> None:
        self._driver = driver
        self._seconds = seconds
        self._expired = expired
        self._packets = driver.connection.activity
        self._since = driver.loop.time()
        driver.loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        connection, now = self._driver.connection, self._driver.loop.time()
        if connection.phase is Phase.CLOSED:
            return
        if connection.activity != self._packets:
            self._packets, self._since = connection.activity, now
        if now - self._since >= self._seconds:
            self._expired()
        else:
            self._driver.loop.call_later(LOOK, self._look)
