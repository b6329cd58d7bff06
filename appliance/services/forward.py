"""A forwarded connection: a socket here, a channel, and a socket at the peer's side.

Each direction ends on its own, as a TCP connection's do: the end of what the socket says
becomes the channel's EOF, and the channel's EOF shuts the socket down for writing. Neither
end holds more than a window of what the other has not taken.
"""

import contextlib
import socket
from collections.abc import Callable

from ..aio.connecting import Attempt, Connecting
from ..aio.driver import Driver
from ..aio.relay import Sink, Source
from ..ssh.channels import Channel, ChannelHandler
from ..wire.messages import CONNECT_FAILED


class Splice(ChannelHandler):
    """One socket and one channel; owns the socket.

    For a channel that we open, this is its handler from the start, and ``attach`` tells
    it the channel. ``refused`` gets the peer's words if it does not open.
    """

    def __init__(
        self,
        sock: socket.socket,
        driver: Driver,
        ended: Callable[["Splice"], None],
        refused: Callable[[str], None] | None = None,
        first: bytes = b"",
    ) -> None:
        """``first``: what the socket has said already."""
        sock.setblocking(False)
        self._sock = sock
        self._driver = driver
        self._ended = ended
        self._refused = refused
        self._first = first
        self._input_over = self._output_over = self._closed = False

    def attach(self, channel: Channel) -> None:
        """This is the channel."""
        fd = self._sock.fileno()
        self._channel = channel
        self._source = Source(fd, channel, self._driver, self._input_ended)
        self._sink = Sink(fd, channel, self._driver, self._broken)

    @property
    def channel(self) -> Channel:
        """That was attached."""
        return self._channel

    def opened(self, type_data: bytes) -> None:
        if self._first:
            self._channel.send(self._first)  # never more than a first window
        self._source.start()

    def open_failed(self, reason_code: int, description: str) -> None:
        if self._refused is not None:
            self._refused(description)

    def data(self, view: memoryview) -> None:
        self._sink.write(view)

    def extended_data(self, code: int, view: memoryview) -> None:
        self._channel.consume(len(view))

    def resume(self) -> None:
        self._source.start()

    def _input_ended(self) -> None:
        self._input_over = True
        self._channel.eof()
        self._close_if_over()

    def eof(self) -> None:
        self._sink.when_drained(self._output_ended)

    def _output_ended(self) -> None:
        self._output_over = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._input_over and self._output_over:
            self._channel.close()
            self._driver.flush()

    def _broken(self) -> None:
        self._channel.close()
        if self._closed:
            self._release()

    def closed(self) -> None:
        self._closed = True
        self._source.stop()
        self._sink.when_drained(self._release)

    def _release(self) -> None:
        self._sock.close()
        self._ended(self)


class Arriving(ChannelHandler):
    """A channel that the peer opens, while the connection that it is for comes about."""

    def __init__(
        self,
        channel: Channel,
        driver: Driver,
        attempt: Attempt,
        ended: Callable[[ChannelHandler], None],
        say: Callable[[str], None],
    ) -> None:
        """``say`` is told whether it worked: '' or why not."""
        self._channel = channel
        self._driver = driver
        self._ended = ended
        self._say = say
        channel.handler = self
        self._connecting = Connecting(driver.loop, attempt, self._connected, self._failed)

    def _connected(self, sock: socket.socket) -> None:
        self._say("")
        splice = Splice(sock, self._driver, self._ended)
        splice.attach(self._channel)
        self._channel.accept(splice)
        splice.opened(b"")
        self._driver.flush()

    def _failed(self, why: str) -> None:
        self._say(why)
        self._channel.handler = ChannelHandler()
        self._channel.reject(CONNECT_FAILED, why)
        self._driver.flush()
        self._ended(self)

    def closed(self) -> None:
        self._connecting.cancel()
        self._ended(self)


def originator(sock: socket.socket) -> tuple[str, int]:
    """Who is connected, as a channel's opening names it (RFC 4254 section 7.2)."""
    try:
        address = sock.getpeername()
    except OSError:  # gone again
        return "127.0.0.1", 65535
    if isinstance(address, tuple):
        return address[0], address[1]
    return "127.0.0.1", 65535  # of a Unix-domain socket, as OpenSSH names it
