"""A forwarded connection: descriptors here, a channel, and a socket at the peer's side.

Each direction ends on its own, as in a TCP connection: the end of the input here becomes the
channel's EOF, and the channel's EOF ends the output here. Neither side buffers more than a window
of data that the other side has not taken.
"""

import contextlib
import socket
from abc import abstractmethod
from collections.abc import Callable

from ..aio.connecting import Attempt, Connecting
from ..aio.driver import Driver
from ..aio.relay import Sink, Source
from ..ssh.channels import Channel, ChannelHandler
from ..wire.messages import CONNECT_FAILED


class Splice(ChannelHandler):
    """Copies data both ways between a channel and two descriptors, which may be the same one.

    The caller calls ``attach`` first.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._input_over = self._output_over = self._closed = False
        self._transform: Callable[[bytes], bytes] | None = None  # of what is read, as Source has it

    def attach(self, channel: Channel, read_fd: int, write_fd: int) -> None:
        """Sets the channel and the descriptors; nothing is read before ``opened``."""
        self._channel = channel
        self._source = Source(
            read_fd, channel, self._driver, self._input_ended, transform=self._transform
        )
        self._sink = Sink(write_fd, channel, self._driver, self._broken)

    def opened(self, type_data: bytes) -> None:
        self._source.start()

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
        self._end_output()
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

    @abstractmethod
    def _end_output(self) -> None:
        """Tells the reader of the output that there is no more."""

    @abstractmethod
    def _release(self) -> None:
        """Frees the descriptors: the channel is closed, and everything is written."""


class SocketSplice(Splice):
    """A channel with a socket of its own; ``ended`` is called when both are closed."""

    def __init__(
        self, sock: socket.socket, driver: Driver, ended: Callable[[ChannelHandler], None]
    ) -> None:
        super().__init__(driver)
        sock.setblocking(False)
        self._sock = sock
        self._ended = ended

    def join(self, channel: Channel) -> None:
        """Attaches the socket to its channel."""
        self.attach(channel, self._sock.fileno(), self._sock.fileno())

    def _end_output(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _release(self) -> None:
        self._sock.close()
        self._ended(self)


class Offered(SocketSplice):
    """A connection that the server accepted and offers to the client."""

    def __init__(self, sock: socket.socket, driver: Driver, offered: set[ChannelHandler]) -> None:
        super().__init__(sock, driver, offered.discard)
        self._offered = offered
        offered.add(self)

    def opened(self, type_data: bytes) -> None:
        self._offered.discard(self)
        super().opened(type_data)


class Arriving(ChannelHandler):
    """A channel that the peer opens, while we connect to its destination.

    ``ended`` is called with this handler when connecting fails, or when the connection is over.
    """

    def __init__(
        self,
        channel: Channel,
        driver: Driver,
        attempt: Attempt,
        ended: Callable[[ChannelHandler], None],
        say: Callable[[str], None],
    ) -> None:
        """``say`` gets the result of connecting: '', or why it failed."""
        self._channel = channel
        self._driver = driver
        self._ended = ended
        self._say = say
        channel.handler = self
        self._connecting = Connecting(driver.loop, attempt, self._connected, self._failed)

    def _connected(self, sock: socket.socket) -> None:
        splice = SocketSplice(sock, self._driver, lambda _: self._ended(self))
        splice.join(self._channel)
        self._channel.accept(splice)
        splice.opened(b"")
        self._driver.flush()
        self._say("")

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
    """Returns the originator's address and port for a channel's opening (RFC 4254 section 7.2)."""
    with contextlib.suppress(OSError):  # the peer may be gone already
        address = sock.getpeername()
        if isinstance(address, tuple):
            return address[0], address[1]
    return "127.0.0.1", 65535  # OpenSSH's originator for a Unix-domain socket
