"""One connection over one socket in an event loop.

In one wake-up it receives once, and sends at most once.
"""

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from ..ssh.connection import Connection
from ..ssh.order import Phase
from .loop import Loop, Timer

# Our own choice
LINGER: Final = 2.0  # seconds in which a peer can still read our last messages

_CLOSED: Final = Phase.CLOSED  # an enum's attribute is slow to look up


class Driver:
    """Owns the socket; calls ``finished`` once the connection and the socket are closed."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        connection: Connection,
        finished: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.connection = connection
        self._transport = connection.transport
        self._sock = sock
        self._fd = sock.fileno()
        self._finished = finished
        self._writing = False
        self._closed = False
        self.received = 0  # bytes on the wire so far
        self.sent = 0
        self._timer: Timer | None = None
        self._lingering: Timer | None = None
        sock.setblocking(False)

    def start(self) -> None:
        """Begins to send and to receive."""
        self.loop.watch_reader(self._fd, self._on_readable)
        self.flush()

    def _on_readable(self) -> None:
        transport = self._transport
        try:
            count = self._sock.recv_into(transport.receive_buffer())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count:
            self.received += count
            transport.received(count, self.loop.time())
        else:
            transport.receive_eof()
        self.flush()
        if self._timer is None or self._timer.when > transport.deadline:
            self._set_timer()

    def flush(self) -> None:
        """Sends unsent bytes; call it after sending outside of a handler."""
        transport = self._transport
        if not self._writing and transport.unsent:
            self._send()
        if transport.phase is _CLOSED and not self._closed:
            if not self._writing:
                self._close()
            elif self._lingering is None:
                self.loop.watch_reader(self._fd, None)
                self._lingering = self.loop.call_later(LINGER, self._close)

    def _send(self) -> None:
        transport = self._transport
        try:
            count = self._sock.send(transport.data_to_send())
            self.sent += count
            left = transport.sent(count)
        except (BlockingIOError, InterruptedError):
            left = transport.unsent
        except OSError:
            self._writing = False
            transport.sent(transport.unsent)
            transport.receive_eof()
            self._close()
            return
        if left and not self._writing:
            self._writing = True
            self.loop.watch_writer(self._fd, self._on_writable)
        elif self._writing and not left:
            self._writing = False
            self.loop.watch_writer(self._fd, None)

    def _on_writable(self) -> None:
        self._send()
        self.connection.wake()
        self.flush()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closed:
            return
        deadline = min(self._transport.deadline, self.loop.time() + 86400.0)
        self._timer = self.loop.call_at(deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        self._transport.tick(self.loop.time())
        self.flush()
        self._set_timer()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._lingering):
            if timer is not None:
                timer.cancel()
        self.loop.watch_writer(self._fd, None)
        self.loop.watch_reader(self._fd, None)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._finished()
