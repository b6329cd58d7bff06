"""Our standard input and output, and a port far away that the server connects to (ssh -W).

Each direction ends on its own, as a TCP connection's do: our end of file becomes the
channel's, and the channel's becomes one for who reads our output.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from ..aio.driver import Driver
from ..aio.relay import Sink, Source, wants_nonblocking
from ..log import harmless
from ..ssh.channels import Channel, ChannelHandler
from ..wire.codec import Record, Text, UInt32

CHANNEL_TYPE: Final = "direct-tcpip"  # RFC 4254 section 7.2


class DirectTcpip(Record):
    """What the channel's opening says (RFC 4254 section 7.2)."""

    host: Text
    port: UInt32
    originator_address: Text
    originator_port: UInt32


class StdioForward(ChannelHandler):
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
        self._place = place
        self._stdin = stdin
        self._driver = driver
        self._ended = ended
        self._say = say
        self.failed = False
        self._input_over = self._output_over = False
        self._made_nonblocking = False

    def start(self) -> None:
        """Ask for the channel."""
        host, port = self._place
        # The originator of a channel without a socket of its own, as OpenSSH names it.
        opening = DirectTcpip(host, port, "127.0.0.1", 65535)
        driver = self._driver
        channel = driver.connection.open_channel(CHANNEL_TYPE, opening.encode(), self)
        self._channel: Channel = channel
        if wants_nonblocking(1) and os.get_blocking(1):
            os.set_blocking(1, False)
            self._made_nonblocking = True
        self._sink = Sink(1, channel, driver, channel.close)
        self._source = Source(0, channel, driver, self._input_ended)

    def opened(self, type_data: bytes) -> None:
        if self._stdin:
            self._source.start()
        else:
            self._input_ended()

    def open_failed(self, reason_code: int, description: str) -> None:
        host, port = self._place
        self._say(f"culvert: the server does not connect to {host}:{port}: {harmless(description)}")
        self.failed = True

    def data(self, view: memoryview) -> None:
        self._sink.write(view)

    def extended_data(self, code: int, view: memoryview) -> None:
        self._channel.consume(len(view))

    def resume(self) -> None:
        if self._stdin:
            self._source.start()

    def _input_ended(self) -> None:
        self._input_over = True
        self._channel.eof()
        self._close_if_over()

    def eof(self) -> None:
        self._sink.when_drained(self._output_ended)

    def _output_ended(self) -> None:
        self._output_over = True
        _end_output()
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._input_over and self._output_over:
            self._channel.close()
            self._driver.flush()

    def closed(self) -> None:
        self._source.stop()
        self._sink.when_drained(self._ended)

    def restore(self) -> None:
        """Leave the descriptors as they were."""
        if self._made_nonblocking:
            with contextlib.suppress(OSError):
                os.set_blocking(1, True)


def _end_output() -> None:
    """Let the reader of our standard output know that there is no more."""
    if stat.S_ISSOCK(os.fstat(1).st_mode):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(1)) as output:
            output.shutdown(socket.SHUT_WR)
    null = os.open(os.devnull, os.O_WRONLY)  # so that nothing else gets the number
    os.dup2(null, 1)
    os.close(null)
