"""Ports and Unix-domain sockets that wait for connections."""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from .addresses import socket_address
from .loop import Loop

_log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.0.0.1", "::1")
EVERYWHERE: Final = ("0.0.0.0", "::")

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid

# Our own choices
BACKLOG: Final = 128
PORT_TRIES: Final = 10  # for a port that is free in IPv4 and in IPv6
ACCEPTS: Final = 16  # connections accepted in one wake-up
PAUSE: Final = 0.2  # seconds without accepting, after no descriptor was left for a connection


class ListeningSocket:
    """Owns listening sockets; ``accepted`` is called with each connection, and then owns it."""

    def __init__(
        self,
        loop: Loop,
        sockets: Sequence[socket.socket],
        accepted: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._accepted = accepted
        for sock in sockets:
            sock.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        for fd, sock in self._sockets.items():
            self._loop.watch_reader(fd, partial(self._on_readable, sock))

    def _on_readable(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if listening.fileno() not in self._sockets:
                return  # closed by ``accepted``
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                _log.warning("accept: %s", error.strerror)
                for fd in self._sockets:
                    self._loop.watch_reader(fd, None)
                self._loop.call_later(PAUSE, self._watch)
                return
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted(sock)

    def close(self) -> None:
        """Closes the sockets."""
        for fd, sock in self._sockets.items():
            self._loop.watch_reader(fd, None)
            sock.close()
        self._sockets.clear()


def bind_addresses(address: str, gateway_ports: str) -> tuple[str, ...]:
    """The addresses to bind for a requested one (sshd_config(5), GatewayPorts).

    ``gateway_ports`` is 'no', 'yes' or 'clientspecified'; '' and '*' ask for every address.
    """
    if gateway_ports == "no":
        return (address,) if address in LOOPBACK else LOOPBACK
    if gateway_ports == "yes" or address in ("", "*"):
        return EVERYWHERE
    return LOOPBACK if address == "localhost" else (address,)


def listen(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets, one for each address, all with the same port; 0 is any that is free.

    An address of a family that this machine does not have is left out. Raises OSError.
    """
    tries = 1 if port else PORT_TRIES
    while True:
        tries -= 1
        try:
            return _listen(addresses, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _listen(addresses: Sequence[str], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for address in addresses:
            try:
                sockets.append(_bind(address, port))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing = error
                continue
            port = sockets[0].getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        assert missing is not None
        raise missing
    return sockets


def _bind(address: str, port: int) -> socket.socket:
    known = socket_address(address, port)
    if known is None:
        raise OSError(errno.EADDRNOTAVAIL, f"'{address}' is not an address of this machine")
    family, place = known
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class LocalListener:
    """Owns a listening Unix-domain socket and its file."""

    def __init__(
        self,
        path: bytes,
        mask: int = 0o177,
        unlink: bool = False,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        """Makes both; ``mask`` and ``unlink`` are StreamLocalBindMask and StreamLocalBindUnlink
        of ssh_config(5). Raises OSError.
        """
        self.path = path
        self.socket = bind_local(path, mask, unlink, kind)
        try:
            self._identity = identity(path)
            self.socket.listen(BACKLOG)
        except OSError:
            self.socket.close()
            raise

    def remove(self) -> None:
        """Removes the file, if it is still the one that was made."""
        with contextlib.suppress(OSError):
            if identity(self.path) == self._identity:
                os.unlink(self.path)


def bind_local(
    path: bytes,
    mask: int = 0o177,
    unlink: bool = False,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """Returns a Unix-domain socket at ``path``, made with this umask. Raises OSError.

    With ``unlink`` an older file there is removed.
    """
    if not path or b"\0" in path:
        raise OSError(errno.EINVAL, "not a socket's path")
    sock = socket.socket(socket.AF_UNIX, kind)
    before = os.umask(mask)
    try:
        if unlink:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        if error.errno is None:  # raised by Python itself, about the path's length
            raise OSError(errno.ENAMETOOLONG, "the path of the socket is too long") from error
        raise
    finally:
        os.umask(before)
    return sock


class Credentials(NamedTuple):
    """The other end of a Unix-domain socket: struct ucred of unix(7)."""

    process: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Credentials:
    """Returns the process that connected to, or listens on, a Unix-domain socket."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(data))


def identity(path: bytes) -> tuple[int, int, int]:
    """Device, inode and time of a file: an inode's number is used again. Raises OSError."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns
