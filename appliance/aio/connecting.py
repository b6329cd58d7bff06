"""Outgoing connections that never block: to a TCP port, or to a Unix-domain socket.

Connecting to an address begins at once. A name needs the system's resolver, which may block for
long, so the child of a NameConnector looks it up, connects, and passes the socket back.
"""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import system_error
from .addresses import is_address, socket_address
from .loop import Loop

# Our own choices
LOCALHOST: Final = ("::1", "127.0.0.1")  # in the order of RFC 6724
ANSWER_LIMIT: Final = 256  # bytes of a NameConnector's answer: longer than any error's text


class Attempt(NamedTuple):
    """A socket that is being connected, or one over which a NameConnector will pass it."""

    sock: socket.socket
    by_name: bool = False


def connect_address(host: str, port: int) -> Attempt | None:
    """Begins to connect to an address, or to localhost; returns None for another name.

    Raises OSError if connecting fails at once.
    """
    if host.lower() == "localhost":
        *earlier, last = LOCALHOST
    elif is_address(host):
        earlier, last = [], host
    else:
        return None
    for address in earlier:  # of this machine, which answers at once
        with contextlib.suppress(OSError):
            return Attempt(_connect(address, port, at_once=True))
    return Attempt(_connect(last, port, at_once=False))


def _connect(address: str, port: int, at_once: bool) -> socket.socket:
    known = socket_address(address, port)
    if known is None:  # its interface has just gone away
        raise system_error(errno.ENODEV)
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
    """Whether connect() has finished, with or without an error."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def connect_local(path: bytes) -> Attempt:
    """Connects to a Unix-domain socket; raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)  # never waits: fails if the listener's queue is full
    except (OSError, ValueError) as error:
        sock.close()
        raise error if isinstance(error, OSError) else OSError("not a socket's path") from error
    return Attempt(sock)


def check(sock: socket.socket) -> None:
    """Raises OSError if connecting failed."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise system_error(code)


class Connecting:
    """Waits for an attempt, then calls ``connected`` (socket) or ``failed`` (reason)."""

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
        elif _is_settled(self._sock):  # mostly so on the same machine
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
        """Gives up the attempt, and closes its socket."""
        self._unwatch()
        self._sock.close()
