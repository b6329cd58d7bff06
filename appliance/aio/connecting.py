"""Outgoing connections that nobody waits for: to a TCP port, or to a Unix-domain socket.

An address is connected to at once, without blocking. A name needs the system's resolver, which
may block for long: a child looks it up, connects, and passes the socket back.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .loop import Loop

# Our own choices
LOCALHOST: Final = ("::1", "127.0.0.1")  # in the order of RFC 6724
NAME_SECONDS: Final = 120  # about what the kernel gives a connection
NAMES_AT_ONCE: Final = 50  # of one NameConnector
NAME_LIMIT: Final = 1024  # bytes of a request; DNS has 255 for a name
_TOO_MANY: Final = "too many names at once"
_ANSWER: Final = 256  # bytes: longer than any error's text


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


def is_address(host: str) -> bool:
    """Whether it is an IP address, an IPv6 address perhaps with a zone, and no name."""
    return socket_address(host, 0) is not None


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]] | None:
    """What an IP address is to the kernel; None for anything else. Nothing is looked up."""
    base, percent, zone = host.partition("%")
    if not host.isascii() or "\0" in host:
        return None
    if not percent:
        with contextlib.suppress(OSError):
            socket.inet_pton(socket.AF_INET, host)
            return socket.AF_INET, (host, port)
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, base)
        return socket.AF_INET6, (base, port, 0, _zone_index(zone) if percent else 0)
    return None


def _zone_index(zone: str) -> int:
    """The interface of an IPv6 address, by its number or its name; raises OSError."""
    if zone.isdigit() and len(zone) <= 10 and int(zone) <= 0xFFFFFFFF:
        return int(zone)
    return socket.if_nametoindex(zone)


def look_up(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The addresses of a name; raises OSError, whatever is wrong with the name. It may block."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, LookupError) as error:  # of its encoding, or for a NUL
        raise OSError(errno.EINVAL, "not a host name") from error
    return [(family, address) for family, _, _, _, address in found]


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


class NameConnector:
    """A child that connects to hosts by their names; it is there once the first one comes."""

    def __init__(self, become: Callable[[], None]) -> None:
        """``become`` makes the child the user as whom it connects."""
        self._become = become
        self._requests: socket.socket | None = None
        self._child = -1  # a descriptor of the process

    def connect(self, host: str, port: int) -> Attempt:
        """Have it connect; raises OSError."""
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
        """End the child, whatever it waits for."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # or somebody else has waited for it
                os.waitid(os.P_PIDFD, self._child, os.WEXITED)
            os.close(self._child)

    def _ask(self, request: bytes, messenger: int) -> None:
        try:
            if self._requests is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed
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
                ours.close()  # by which a child ends
                raise
        return ours


def _serve_names(requests: int, become: Callable[[], None]) -> None:
    """In the child: serve until the parent is gone."""
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
    """Threads that wait for requests, and then serve one each.

    There is always one that waits, if the user may have so many, so that no request waits for a
    thread's start.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._threads = 1
        self._busy = 0

    def serve(self) -> None:
        """Until the parent is gone."""
        while True:
            request, fds, _, _ = socket.recv_fds(self._sock, NAME_LIMIT, 1)
            if not request:
                os._exit(0)
            if not fds:  # there was no descriptor left for it
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
                with contextlib.suppress(RuntimeError):  # the user may have no more: others wait
                    threading.Thread(target=self.serve, daemon=True).start()
                    self._threads += 1
            return self._busy <= NAMES_AT_ONCE


def _connect_name(host: str, port: int, answer: socket.socket) -> None:
    try:
        _send_connection(host, port, answer)
    except OSError as error:
        answer.send((error.strerror or str(error) or "no address").encode()[:_ANSWER])


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
