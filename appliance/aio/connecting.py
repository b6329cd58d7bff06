"""Outgoing connections that nobody waits for: to a TCP port, or to a Unix-domain socket.

An address is connected to at once, without blocking. A name needs the system's resolver, which
may block for long: a NameConnector's child connects, and passes the socket back.
"""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from .addresses import is_address, socket_address
from .loop import Loop

# Our own choices
LOCALHOST: Final = ("::1", "127.0.0.1")  # in the order of RFC 6724
ANSWER_LIMIT: Final = 256  # bytes of a NameConnector's answer: longer than any error's text


class Attempt(NamedTuple):
    """A connection that comes about, or a socket over which a NameConnector will pass it."""

    sock: socket.socket
    by_name: bool = False


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


def _connect(address: str, port: int, at_once: bool) -> socket.socket:
    known = socket_address(address, port)
    if known is None:  # its interface has just gone away
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    family, place = known
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            sock.connect(place)
        if at_once and _is_settled(sock):
            check(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _is_settled(sock: socket.socket) -> bool:
    """Whether it is known what became of a connection."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def connect_local(path: bytes) -> Attempt:
    """Connect to a Unix-domain socket; raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)  # which never takes long: it is done, or the queue is full
    except (OSError, ValueError) as error:
        sock.close()
        raise error if isinstance(error, OSError) else OSError("no path of a socket") from error
    return Attempt(sock)


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
        if attempt.by_name:
            loop.watch_reader(self._sock.fileno(), self._on_message)
        elif _is_settled(self._sock):  # as it mostly is on the same machine
            loop.call_soon(self._on_writable)
        else:
            loop.watch_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        if self._sock.fileno() < 0:  # cancelled
            return
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
            text, fds, _, _ = socket.recv_fds(self._sock, ANSWER_LIMIT, 1)
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
