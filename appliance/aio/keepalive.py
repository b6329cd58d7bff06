"""Asks regularly whether the peer still answers.

It does what ClientAliveInterval and ServerAliveInterval do in OpenSSH: it sends a global request
that no peer knows, and the peer's refusal is the answer. The time until then is the connection's
round trip time.
"""

from collections.abc import Callable

from ..ssh.order import Phase
from .driver import Driver
from .loop import Timer

REQUEST = "keepalive@openssh.com"


class KeepAlive:
    """Asks every ``interval`` seconds; calls ``silent`` after ``count`` unanswered requests.

    Any other packet from the peer counts as an answer, too. ``answered`` is called with the
    seconds that an answer took.
    """

    def __init__(
        self,
        driver: Driver,
        interval: float,
        count: int,
        silent: Callable[[], None],
        answered: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._driver = driver
        self._interval = interval
        self._count = count
        self._silent = silent
        self._answered = answered
        self._unanswered = 0
        self._packets = -1
        self._probing = False
        self._timer: Timer
        self._wait(interval)

    def probe(self, patience: float) -> None:
        """Asks now; calls ``silent`` if nothing arrives within ``patience`` seconds.

        A second probe does nothing while the first is unanswered: a network that keeps
        changing must not hide a dead peer.
        """
        if self._probing:
            return
        self._probing = True
        self._unanswered = max(self._unanswered, self._count - 1)
        self._packets = self._driver.connection.transport.received_packets
        self._timer.cancel()
        self.ask()
        self._wait(patience)

    def _wait(self, seconds: float) -> None:
        self._timer = self._driver.loop.call_later(seconds, self._due)

    def _due(self) -> None:
        transport = self._driver.connection.transport
        if transport.phase is Phase.CLOSED:
            return
        self._probing = False
        if transport.received_packets != self._packets:
            self._packets = transport.received_packets
            self._unanswered = 0
        if self._unanswered >= self._count:
            self._silent()
            return
        self.ask()
        self._wait(self._interval)

    def ask(self) -> None:
        """Asks once now; the time of the next regular request stays."""
        self._unanswered += 1
        loop = self._driver.loop
        asked = loop.time()

        def answered(_: bytes | None) -> None:
            self._unanswered = 0
            self._probing = False
            self._answered(loop.time() - asked)

        self._driver.connection.global_request(REQUEST, b"", answered)
        self._driver.flush()
