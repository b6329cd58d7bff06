"""Outgoing connections that nobody waits for: to a TCP port, or to a Unix-domain socket.

An address is connected to at once, without blocking. A name needs the resolver, which may
block for long: a child resolves it, connects, and passes the socket back.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from .loop import Loop

# Our own choices
LOCALHOST: Final = ("::1", "127.0.0.1")  # in the order of RFC 6724
NAME_SECONDS: Final = 120  # that a child may take; about what the kernel gives one connection
_ANSWER: Final = 256  # bytes: longer than any error's text


class Attempt(NamedTuple):
    """A connection that comes about, or a socket over which a child will pass it."""

    sock: socket.socket
    child: int = 0  # its process id, for who is its parent


def connect_address(host: str, port: int) -> Attempt | None:
    """Begin to connect to an address, or to localhost; None for another name.

    Raises OSError when it is certain already that this fails.
    """
    if host.lower() == "localhost":
        *earlier, last = LOCALHOST
    elif is_address(host):
        earlier, last = [], host
    else:
        return None
    for address in earlier:  # of this machine, so the answer is there at once
        with contextlib.suppress(OSError):
            return Attempt(_connect(address, port, at_once=True))
    return Attempt(_connect(last, port, at_once=False))


def is_address(host: str) -> bool:
    """Whether it is an IP address, perhaps with a zone, and no name."""
    base = host.partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in it
            socket.inet_pton(family, base)
            return "\0" not in host
    return False


def _connect(address: str, port: int, at_once: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            sock.connect((address, port))
        if at_once:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            poll.poll(0)
            check(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def connect_local(path: bytes) -> Attempt:
    """Connect to a Unix-domain socket; raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)  # which never takes long: it is done, or the queue is full
    except (OSError, ValueError) as error:
        sock.close()
        raise error if isinstance(error, OSError) else OSError("no path of a socket") from error
    return Attempt(sock)


def connect_name(host: str, port: int, become: Callable[[], None]) -> Attempt:
    """Have a child connect to ``host``, as whom ``become`` makes it; raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _child(host, port, become, theirs.fileno())
    theirs.close()
    return Attempt(ours, pid)


def _child(host: str, port: int, become: Callable[[], None], messenger: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(NAME_SECONDS)
        os.dup2(messenger, 3)
        os.closerange(4, 65536)
        become()
        with socket.socket(fileno=3) as answer:
            try:
                _send_connection(host, port, answer)
            except (OSError, UnicodeError) as error:
                why = error.strerror if isinstance(error, OSError) else None
                answer.send((why or "not a host name").encode()[:_ANSWER])
    finally:
        os._exit(0)


def _send_connection(host: str, port: int, answer: socket.socket) -> None:
    failure: OSError = OSError(0, "no address")
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socket.send_fds(answer, [b"\0"], [sock.fileno()])
            return
    raise failure


def check(sock: socket.socket) -> None:
    """Raise OSError if a connection failed."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


class Connecting:
    """Waits for an attempt; then calls ``connected`` with the socket, or ``failed`` with why."""

    def __init__(
        self,
        loop: Loop,
        attempt: Attempt,
        connected: Callable[[socket.socket], None],
        failed: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sock = attempt.sock
        self._connected = connected
        self._failed = failed
        if attempt.child:
            loop.watch_reader(self._sock.fileno(), self._on_message)
        else:
            loop.watch_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        self._unwatch()
        try:
            check(self._sock)
        except OSError as error:
            self._sock.close()
            self._failed(error.strerror or str(error))
            return
        self._connected(self._sock)

    def _on_message(self) -> None:
        self._unwatch()
        with self._sock:
            text, fds, _, _ = socket.recv_fds(self._sock, _ANSWER, 1)
        if not fds:
            self._failed(text.decode(errors="replace") or "Connection timed out")
            return
        os.set_blocking(fds[0], False)
        self._connected(socket.socket(fileno=fds[0]))

    def _unwatch(self) -> None:
        self._loop.watch_writer(self._sock.fileno(), None)
        self._loop.watch_reader(self._sock.fileno(), None)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._unwatch()
        self._sock.close()
