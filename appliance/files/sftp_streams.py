"""The streams of an SFTP client: a channel of a connection, or a program's socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from ..aio.driver import Driver
from ..aio.loop import Loop
from ..errors import PeerDisconnected, PeerError
from ..log import harmless
from ..ssh.channels import Channel, ChannelHandler
from ..wire.codec import Buffer
from ..wire.messages import EXTENDED_DATA_STDERR
from ..wire.session import Command
from .sftp_client import SftpClient

# Our own choices
WINDOW: Final = 16 << 20  # bytes of the channel: 1 Gbit/s over 130 ms
READ: Final = 256 << 10  # bytes in one wake-up
PIECES: Final = 16  # sent in one call
PATIENCE: Final = 1.0  # seconds until a program that does not end is left alone


class ChannelStream(ChannelHandler):
    """The channel of the subsystem ``sftp``, or of a command that speaks SFTP."""

    def __init__(
        self,
        driver: Driver,
        tell_stderr: Callable[[str], None],
        command: str = "",
        subsystem: str = "sftp",
    ) -> None:
        """Opens the channel; ``command`` is run in place of the subsystem.

        ``tell_stderr`` gets what the server's program writes to its standard error.
        """
        self.client = SftpClient(self)
        self._driver = driver
        self._tell_stderr = tell_stderr
        self._command = command
        self._subsystem = subsystem
        self._outbox: deque[memoryview] = deque()
        self._is_open = False
        self._flushes = False
        self.unsent = 0
        self._channel: Channel = driver.connection.open_channel("session", b"", self, WINDOW)

    # -- for the client ----------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        self._outbox.append(memoryview(data))
        self.unsent += len(data)
        if self._is_open:
            self._flush_soon()  # what this turn of the loop asks for shares a message

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            self._driver.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        self._pump()
        self._driver.flush()
        if self._outbox:  # what has left made room, of which nobody else tells the channel
            self._driver.connection.wake()
        self.client.drained()

    def _pump(self) -> None:
        """Sends what the window allows; small requests share a message."""
        outbox, channel = self._outbox, self._channel
        while outbox and (room := channel.sendable()):
            data = outbox.popleft()
            if len(data) > room:
                outbox.appendleft(data[room:])
                data = data[:room]
            elif outbox and len(data) + len(outbox[0]) <= min(room, channel.send_packet):
                pieces = [data]
                size = len(data)
                while outbox and size + len(outbox[0]) <= min(room, channel.send_packet):
                    pieces.append(outbox.popleft())
                    size += len(pieces[-1])
                data = memoryview(b"".join(pieces))
            self.unsent -= len(data)
            channel.send(data)

    def close(self) -> None:
        self._channel.eof()
        self._channel.close()
        self._driver.flush()

    # -- for the channel ---------------------------------------------------------------

    def opened(self, type_data: bytes) -> None:
        kind, word = "subsystem", self._subsystem
        if self._command:
            kind, word = "exec", self._command
        self._channel.request(kind, Command(os.fsencode(word)).encode(), self._started)
        self._is_open = True  # INIT goes right behind the request
        self._pump()

    def open_failed(self, reason_code: int, description: str) -> None:
        self.client.ended(
            PeerDisconnected(f"the server refuses a session: {harmless(description)}")
        )

    def _started(self, success: bool) -> None:
        if not success:
            why = "the server has no SFTP" if not self._command else "the server runs no commands"
            self._fail(PeerDisconnected(f"{why}: its sshd refuses the request"))

    def data(self, view: memoryview) -> None:
        self._channel.consume(len(view))
        try:
            self.client.received(view)
        except PeerError as error:
            self._fail(error)

    def _fail(self, error: PeerError) -> None:
        self._channel.close()
        self.client.ended(error)

    def extended_data(self, code: int, view: memoryview) -> None:
        self._channel.consume(len(view))
        if code == EXTENDED_DATA_STDERR:
            self._tell_stderr(harmless(bytes(view).decode(errors="replace").rstrip("\n")))

    def resume(self) -> None:
        self._pump()
        self._flush_soon()
        self.client.drained()

    def eof(self) -> None:
        self.client.ended(None)

    def closed(self) -> None:
        self.client.ended(self._driver.connection.transport.error)


class SocketStream:
    """A socket to a program that speaks SFTP."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        """Takes over the socket."""
        self.client = SftpClient(self)
        self._loop = loop
        self._sock = sock
        self._outbox: deque[memoryview] = deque()
        self._is_closed = False
        self.unsent = 0
        sock.setblocking(False)
        loop.watch_reader(sock.fileno(), self._on_readable)

    def write(self, data: Buffer) -> None:
        if self._is_closed:
            return
        self._outbox.append(memoryview(data))
        self.unsent += len(data)
        if len(self._outbox) == 1:
            self._pump()

    def _pump(self) -> None:
        outbox = self._outbox
        while outbox:
            try:
                count = self._sock.sendmsg(list(islice(outbox, PIECES)))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # not at once: whoever writes is about to wait for the answer
                self._loop.call_soon(self._end, None)
                return
            self.unsent -= count
            while outbox and count >= len(outbox[0]):
                count -= len(outbox.popleft())
            if count:
                outbox[0] = outbox[0][count:]
        self._loop.watch_writer(self._sock.fileno(), self._on_writable if outbox else None)

    def _on_writable(self) -> None:
        self._pump()
        self.client.drained()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end(None)
            return
        try:
            self.client.received(memoryview(data))
        except PeerError as error:
            self._end(error)

    def _end(self, error: PeerError | None) -> None:
        self.close()
        self.client.ended(error)

    def close(self) -> None:
        """Lets the program see the end of its input, and waits a little until it has ended."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.watch_writer(self._sock.fileno(), None)
        self._loop.watch_reader(self._sock.fileno(), None)
        end = self._loop.time() + PATIENCE
        self._sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(READ) and self._loop.time() < end:
                pass
        self._sock.close()
