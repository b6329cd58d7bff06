"""A child process that connects to hosts by their names, so that the parent never waits.

The child asks the system's resolver, which may block for long, connects, and passes the socket
to the parent.
"""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final

from .addresses import look_up
from .connecting import ANSWER_LIMIT, Attempt

# Our own choices
NAME_SECONDS: Final = 120  # about as long as the kernel itself tries to connect
NAMES_AT_ONCE: Final = 50  # of one NameConnector
NAME_LIMIT: Final = 1024  # bytes of a request; DNS has 255 for a name
_TOO_MANY: Final = "too many names at once"


class NameConnector:
    """Owns the child that connects to hosts by their names; forks it for the first name."""

    def __init__(self, become: Callable[[], None]) -> None:
        """``become`` is called in the child, to make it the user that it connects as."""
        self._become = become
        self._requests: socket.socket | None = None
        self._child = -1  # a descriptor of the process

    def connect(self, host: str, port: int) -> Attempt:
        """Has the child connect; raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._ask(port.to_bytes(2, "big") + host.encode(), theirs.fileno())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Attempt(ours, by_name=True)

    def close(self) -> None:
        """Kills the child, even while it waits."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # it was waited for elsewhere
                os.waitid(os.P_PIDFD, self._child, os.WEXITED)
            os.close(self._child)

    def _ask(self, request: bytes, messenger: int) -> None:
        try:
            if self._requests is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the child died
                    socket.send_fds(self._requests, [request], [messenger])
                    return
                self.close()
            self._requests = self._begin()
            socket.send_fds(self._requests, [request], [messenger])
        except BlockingIOError as error:
            raise OSError(errno.EAGAIN, _TOO_MANY) from error

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    try:
                        _serve_names(theirs.fileno(), self._become)
                    finally:
                        os._exit(0)
                self._child = os.pidfd_open(pid)
            except OSError:
                ours.close()  # if there is a child, this ends it
                raise
        return ours


def _serve_names(requests: int, become: Callable[[], None]) -> None:
    """Serves requests, in the child, until the parent is gone."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(requests, 3)
    os.closerange(4, 65536)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    become()
    with socket.socket(fileno=3) as sock:
        _Lookups(sock).serve()


class _Lookups:
    """Threads that each wait for a request, and serve it.

    One more thread than there are requests is kept if the user may have so many, so that no
    request waits for a thread's start.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._threads = 1
        self._busy = 0

    def serve(self) -> None:
        """Serves requests in this thread until the parent is gone."""
        while True:
            request, fds, _, _ = socket.recv_fds(self._sock, NAME_LIMIT, 1)
            if not request:
                os._exit(0)
            if not fds:  # this process had no descriptor left for it
                continue
            with socket.socket(fileno=fds[0]) as answer, contextlib.suppress(OSError):
                if self._begin():
                    _connect_name(request[2:].decode(), int.from_bytes(request[:2], "big"), answer)
                else:
                    answer.send(_TOO_MANY.encode())
            with self._lock:
                self._busy -= 1

    def _begin(self) -> bool:
        with self._lock:
            self._busy += 1
            last = self._busy == self._threads
            if last and self._threads <= NAMES_AT_ONCE:
                with contextlib.suppress(RuntimeError):  # the user may have no more: requests wait
                    threading.Thread(target=self.serve, daemon=True).start()
                    self._threads += 1
            return self._busy <= NAMES_AT_ONCE


def _connect_name(host: str, port: int, answer: socket.socket) -> None:
    try:
        _send_connection(host, port, answer)
    except OSError as error:
        answer.send((error.strerror or str(error) or "no address").encode()[:ANSWER_LIMIT])


def _send_connection(host: str, port: int, answer: socket.socket) -> None:
    failure: OSError = OSError(0, "no address")
    for family, address in look_up(host, port):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(NAME_SECONDS)
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socket.send_fds(answer, [b"\0"], [sock.fileno()])
            return
    raise failure
