"""A connection over two pipes (sshd -i), as from ProxyCommand, socat and programs like inetd.

The rest of the server knows only sockets. So two child processes copy, one for each direction: the
first from the input pipe to a socket, the second from that socket to the output pipe.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from ..process import sandbox

# Our own choices
PIECE: Final = 64 << 10  # bytes
LINGER: Final = 2.0  # seconds that the peer has to read the last bytes


class Pipes:
    """Two children that copy between two pipes and ``socket``, which serves as the connection."""

    def __init__(self, reading: int, writing: int, identity: sandbox.SandboxUser | None) -> None:
        """Takes over both descriptors; the children run as ``identity``."""
        self.socket, inner = socket.socketpair()
        with inner:
            self._children = [
                self._fork(lambda: _copy_in(reading, inner), identity),
                self._fork(lambda: _copy_out(inner, writing), identity),
            ]
        os.close(reading)
        os.close(writing)

    def _fork(self, copy: Callable[[], None], identity: sandbox.SandboxUser | None) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                sandbox.forget_signals()
                self.socket.close()
                sandbox.enter(identity)
                with contextlib.suppress(OSError):  # the reader or the writer is gone
                    copy()
            finally:
                os._exit(0)
        return pid

    def close(self) -> None:
        """Waits until the last bytes are written, and ends the children; ``socket`` is closed."""
        reader, writer = self._children
        end = time.monotonic() + LINGER
        while _runs(writer) and time.monotonic() < end:
            time.sleep(0.01)
        for pid in (reader, writer):
            if _runs(pid):
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _runs(pid: int) -> bool:
    """Whether a child has not ended; the monitor may have waited for it already."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _copy_in(reading: int, inner: socket.socket) -> None:
    while data := os.read(reading, PIECE):
        inner.sendall(data)
    inner.shutdown(socket.SHUT_WR)


def _copy_out(inner: socket.socket, writing: int) -> None:
    try:
        while data := inner.recv(PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(writing, view) :]
    finally:
        inner.shutdown(socket.SHUT_RDWR)  # the peer reads no more: end the connection
