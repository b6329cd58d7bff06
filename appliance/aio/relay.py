"""Copies bytes between a channel and file descriptors, with back pressure in both directions.

A Source reads a descriptor only while the channel may send; a Sink gives the peer new
window only for bytes that the descriptor took, so neither ever holds more than one window.
"""

import os
import stat
from collections.abc import Callable

from ..ssh.channels import Channel
from .driver import Driver

# Our own choice
READ = 128 << 10  # bytes in one wake-up: four packets, one send


def wants_nonblocking(fd: int) -> bool:
    """Whether ``fd`` is to be made non-blocking: a pipe or a socket, to which a write can stall.

    A write to a terminal can stall, too, but its other users would be surprised by that mode.
    """
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class Source:
    """Copies bytes from a descriptor to a channel; the caller owns the descriptor.

    ``transform`` may return one byte more than was read, or any number fewer.
    """

    def __init__(
        self,
        fd: int,
        channel: Channel,
        driver: Driver,
        ended: Callable[[], None],
        extended: int | None = None,
        transform: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._loop = driver.loop
        self._fd = fd
        self._channel = channel
        self._flush = driver.flush
        self._ended = ended
        self._extended = extended
        self._transform = transform
        if transform is not None:
            channel.overhead = 1
        self._reading = False
        self._stopped = False
        self._pollable = True  # regular files are not, and are always ready

    def start(self) -> None:
        """Begins, or goes on after the channel could not take more."""
        if self._reading or self._stopped or not self._channel.sendable():
            return
        self._reading = True
        if self._pollable:
            try:
                self._loop.watch_reader(self._fd, self._on_readable)
                return
            except PermissionError:
                self._pollable = False
        self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        if self._reading:
            self._on_readable()
        if self._reading:
            self._loop.call_soon(self._poll)

    def _on_readable(self) -> None:
        room = min(self._channel.sendable(), READ)
        if self._extended is not None:
            room = min(room, self._channel.send_packet)
        if not room:
            self._pause()
            return
        try:
            data = os.read(self._fd, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # EIO: the last process left the terminal
            data = b""
        if not data:
            self.stop()
            self._ended()
            self._flush()
            return
        if self._transform is not None:
            data = self._transform(data)
            if not data or self._stopped:
                return
        if self._extended is None:
            self._channel.send(data)
        else:
            self._channel.send_extended(self._extended, data)
        self._flush()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            if self._pollable:
                self._loop.watch_reader(self._fd, None)

    def stop(self) -> None:
        """Ends reading for good."""
        self._pause()
        self._stopped = True


class Sink:
    """Copies bytes from a channel to a descriptor; owns only the bytes not written yet."""

    def __init__(
        self,
        fd: int,
        channel: Channel,
        driver: Driver,
        broken: Callable[[], None],
    ) -> None:
        self._loop = driver.loop
        self._fd = fd
        self._channel = channel
        self._flush = driver.flush
        self._broken = broken
        self._waiting = bytearray()
        self._drained: Callable[[], None] | None = None
        self._stopped = False

    def write(self, view: memoryview) -> None:
        """Writes bytes, now or later; ``view`` is valid during the call only."""
        if self._stopped:
            self._channel.consume(len(view))
            return
        written = 0 if self._waiting else self._write(view)
        if written < len(view) and not self._stopped:
            if not self._waiting:
                self._loop.watch_writer(self._fd, self._on_writable)
            self._waiting += view[written:]

    def _write(self, view: memoryview) -> int:
        try:
            written = os.write(self._fd, view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.stop()
            self._channel.consume(len(view))
            self._broken()
            return len(view)
        self._channel.consume(written)
        return written

    def _on_writable(self) -> None:
        with memoryview(self._waiting) as view:
            written = self._write(view)
        if self._stopped:
            self._flush()
            return
        del self._waiting[:written]  # a bytearray does this without moving the rest
        if not self._waiting:
            self._loop.watch_writer(self._fd, None)
            if self._drained is not None:
                self._drained()
        self._flush()

    @property
    def waiting(self) -> int:
        """How many bytes are not written yet."""
        return len(self._waiting)

    def when_drained(self, drained: Callable[[], None]) -> None:
        """Calls ``drained`` once everything is written: now, or later."""
        if self._waiting:
            self._drained = drained
        else:
            drained()

    def stop(self) -> None:
        """Drops the bytes that are not written yet, and all that follow."""
        self._stopped = True
        if self._waiting:
            self._waiting = bytearray()
            self._loop.watch_writer(self._fd, None)
