"""Two descriptors, and a port far away that the server connects to (ssh -W)."""

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
        stdin: int | None,
        stdout: int,
        driver: Driver,
        ended: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """``stdin``: None to send nothing."""
        super().__init__(driver)
        self._place = place
        self._stdin = stdin
        self._stdout = stdout
        self._ended = ended
        self._say = say
        self.failed = False
        self._made_nonblocking = False

    def start(self) -> None:
        """Ask for the channel."""
        host, port = self._place
        # The originator of a channel without a socket of its own, as OpenSSH names it.
        opening = DirectTcpip(host, port, "127.0.0.1", 65535)
        if wants_nonblocking(self._stdout) and os.get_blocking(self._stdout):
            os.set_blocking(self._stdout, False)
            self._made_nonblocking = True
        connection = self._driver.connection
        channel = connection.open_channel(DIRECT_TCPIP, opening.encode(), self)
        self.attach(channel, self._stdin if self._stdin is not None else -1, self._stdout)

    def opened(self, type_data: bytes) -> None:
        if self._stdin is not None:
            super().opened(type_data)
        else:
            self._source.stop()
            self._input_ended()

    def open_failed(self, reason_code: int, description: str) -> None:
        host, port = self._place
        self._say(f"culvert: the server does not connect to {host}:{port}: {harmless(description)}")
        self.failed = True

    def _end_output(self) -> None:
        """Let the reader of our output know that there is no more."""
        fd = self._stdout
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as output:
                output.shutdown(socket.SHUT_WR)
        null = os.open(os.devnull, os.O_WRONLY)  # so that nothing else gets the number
        os.dup2(null, fd)
        os.close(null)

    def abandon(self) -> None:
        """Whose descriptors they are went away: hang up."""
        self._source.stop()
        self._sink.stop()
        self.restore()
        self._channel.close()

    def _release(self) -> None:
        self._ended()

    def restore(self) -> None:
        """Leave the descriptors as they were."""
        if self._made_nonblocking:
            with contextlib.suppress(OSError):
                os.set_blocking(self._stdout, True)
