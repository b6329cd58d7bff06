"""Our standard input and output, and a port far away that the server connects to (ssh -W)."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable

from ..aio.driver import Driver
from ..aio.relay import wants_nonblocking
from ..log import harmless
from ..wire.forward import DIRECT_TCPIP, DirectTcpip
from .forward import Splice


class StdioForward(Splice):
    """The channel; ``ended`` is called once it is closed and its output is written."""

    def __init__(
        self,
        place: tuple[str, int],
        stdin: bool,
        driver: Driver,
        ended: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """``stdin``: whether to read ours."""
        super().__init__(driver)
        self._place = place
        self._stdin = stdin
        self._ended = ended
        self._say = say
        self.failed = False
        self._made_nonblocking = False

    def start(self) -> None:
        """Ask for the channel."""
        host, port = self._place
        # The originator of a channel without a socket of its own, as OpenSSH names it.
        opening = DirectTcpip(host, port, "127.0.0.1", 65535)
        if wants_nonblocking(1) and os.get_blocking(1):
            os.set_blocking(1, False)
            self._made_nonblocking = True
        connection = self._driver.connection
        self.attach(connection.open_channel(DIRECT_TCPIP, opening.encode(), self), 0, 1)

    def opened(self, type_data: bytes) -> None:
        if self._stdin:
            super().opened(type_data)
        else:
            self._source.stop()
            self._input_ended()

    def open_failed(self, reason_code: int, description: str) -> None:
        host, port = self._place
        self._say(f"culvert: the server does not connect to {host}:{port}: {harmless(description)}")
        self.failed = True

    def _end_output(self) -> None:
        """Let the reader of our standard output know that there is no more."""
        if stat.S_ISSOCK(os.fstat(1).st_mode):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(1)) as output:
                output.shutdown(socket.SHUT_WR)
        null = os.open(os.devnull, os.O_WRONLY)  # so that nothing else gets the number
        os.dup2(null, 1)
        os.close(null)

    def _release(self) -> None:
        self._ended()

    def restore(self) -> None:
        """Leave the descriptors as they were."""
        if self._made_nonblocking:
            with contextlib.suppress(OSError):
                os.set_blocking(1, True)
