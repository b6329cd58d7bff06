"""Connects standard input and output with a port that the server connects to (ssh -W)."""

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
    """The forwarded channel; ``ended`` is called once it is closed and its output is written."""

    def __init__(
        self,
        place: tuple[str, int],
        stdin: int | None,
        stdout: int,
        driver: Driver,
        ended: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """``place`` is the host and port to connect to; without ``stdin`` nothing is sent."""
        super().__init__(driver)
        self._place = place
        self._stdin = stdin
        self._stdout = stdout
        self._ended = ended
        self._say = say
        self.failed = False
        self._made_nonblocking = False

    def start(self) -> None:
        """Opens the channel."""
        host, port = self._place
        # OpenSSH's originator for a channel without a socket of its own.
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
        """Tells the reader of our output that there is no more."""
        fd = self._stdout
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as output:
                output.shutdown(socket.SHUT_WR)
        null = os.open(os.devnull, os.O_WRONLY)  # so that no other file gets this descriptor
        os.dup2(null, fd)
        os.close(null)

    def abandon(self) -> None:
        """Closes the channel, as the client that owns the descriptors is gone."""
        self._source.stop()
        self._sink.stop()
        self.restore()
        self._channel.close()

    def _release(self) -> None:
        self._ended()

    def restore(self) -> None:
        """Restores the former mode of the descriptors."""
        if self._made_nonblocking:
            with contextlib.suppress(OSError):
                os.set_blocking(self._stdout, True)
