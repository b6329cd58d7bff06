"""Connecting through a proxy: HTTP CONNECT, or SOCKS version 5.

    HTTP    CONNECT host:port with a header -> the proxy's header, status 2xx
    SOCKS   methods -> one of them; name and password -> success; host and port -> success

The proxy gets the host's name and resolves it. The bytes after its last answer belong to SSH,
so nothing is read beyond that answer. A proxy is trusted as little as a server: each answer has
a limit of size, and all answers together have a limit of time.
"""

import re
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..config.hosts import Proxy
from ..errors import CulvertError
from ..log import harmless

# HTTP: RFC 9110 section 9.3.6, RFC 7617
_UNAUTHORIZED: Final = (407, 401)  # tinyproxy 1.11 answers 401 to a wrong password

# SOCKS: RFC 1928 and, for name and password, RFC 1929
_VERSION: Final = 5
_NOBODY: Final = 0
_PASSWORD: Final = 2
_NO_METHOD: Final = 0xFF
_PASSWORD_VERSION: Final = 1
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_REPLIES: Final = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "kind of address not supported",
}

# Our own choice
HEADER_LIMIT: Final = 8 << 10  # bytes


class ProxyFailed(CulvertError):
    """The proxy did not connect to the host; the text says why."""


class ProxyHandshake:
    """The dialogue with a proxy before SSH begins."""

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        """Raises ProxyFailed if the host's name cannot be sent to a proxy."""
        self._proxy = proxy
        self._port = port
        self._host = host
        try:
            self._name = host.encode("ascii" if host.isascii() else "idna")
        except UnicodeError as error:
            raise ProxyFailed(f"{host}: not a host name") from error
        if proxy.scheme == "socks5" and len(self._name) > 255:
            raise ProxyFailed(f"{host}: too long a name for SOCKS")

    def run(self, sock: socket.socket, seconds: float) -> None:
        """Has the proxy connect to the host, within ``seconds``; raises ProxyFailed."""
        speak = self._http if self._proxy.scheme == "http" else self._socks
        try:
            speak(_Wire(sock, seconds))
        except ProxyFailed as error:
            where = f"proxy {self._proxy.host} port {self._proxy.port}"
            raise ProxyFailed(f"{where}: {error}") from error

    # -- HTTP ------------------------------------------------------------------------

    def _http(self, wire: "_Wire") -> None:
        host = b"[%b]" % self._name if b":" in self._name else self._name
        place = b"%b:%d" % (host, self._port)
        request = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (place, place)
        if self._proxy.user is not None:
            secret = b64encode(self._proxy.user + b":" + self._proxy.password)
            request += b"Proxy-Authorization: Basic %b\r\n" % secret
        wire.send(request + b"\r\n")
        status, reason = parse_status(wire.header())
        if status in _UNAUTHORIZED:
            raise self._unauthorized()
        if not 200 <= status < 300:
            raise ProxyFailed(f"it refuses: {status} {harmless(reason)}".rstrip())

    def _unauthorized(self) -> ProxyFailed:
        other = "credentials" if self._proxy.user is None else "other credentials"
        return ProxyFailed(f"the proxy wants {other}")

    # -- SOCKS -----------------------------------------------------------------------

    def _socks(self, wire: "_Wire") -> None:
        methods = [_NOBODY] if self._proxy.user is None else [_NOBODY, _PASSWORD]
        wire.send(bytes((_VERSION, len(methods), *methods)))
        version, method = wire.take(2)
        if version != _VERSION:
            raise ProxyFailed("this is no SOCKS 5 proxy")
        if method == _NO_METHOD:
            raise self._unauthorized()
        if method not in methods:
            raise ProxyFailed("it wants a method that was not offered")
        if method == _PASSWORD:
            self._socks_password(wire)
        wire.send(bytes((_VERSION, _CONNECT, 0)) + self._address() + self._port.to_bytes(2, "big"))
        version, reply, reserved, kind = wire.take(4)
        if version != _VERSION or reserved:
            raise ProxyFailed("its answer is malformed")
        if reply:
            raise ProxyFailed(f"it refuses: {_REPLIES.get(reply, f'code {reply}')}")
        sizes = {_IPV4: 4, _IPV6: 16}
        if kind != _NAME and kind not in sizes:
            raise ProxyFailed("its answer is malformed")
        length = wire.take(1)[0] if kind == _NAME else sizes[kind]
        wire.take(length + 2)  # the address that the proxy connects from; not needed

    def _socks_password(self, wire: "_Wire") -> None:
        user, password = self._proxy.user or b"", self._proxy.password
        wire.send(bytes((_PASSWORD_VERSION, len(user))) + user + bytes((len(password),)) + password)
        version, status = wire.take(2)
        if version != _PASSWORD_VERSION:
            raise ProxyFailed("its answer is malformed")
        if status:
            raise self._unauthorized()

    def _address(self) -> bytes:
        for kind, family in ((_IPV4, socket.AF_INET), (_IPV6, socket.AF_INET6)):
            try:
                return bytes((kind,)) + socket.inet_pton(family, self._host)
            except OSError:
                continue
        return bytes((_NAME, len(self._name))) + self._name


def parse_status(header: bytes) -> tuple[int, str]:
    """Code and reason of an answer's first line (RFC 9112 section 4); raises ProxyFailed."""
    line = header.partition(b"\r\n")[0].decode("latin-1")
    match = re.fullmatch(r"HTTP/1\.[01] ([1-9][0-9]{2})(?: (.*))?", line)
    if match is None:
        raise ProxyFailed("this is no HTTP proxy")
    return int(match[1]), match[2] or ""


class _Wire:
    """A socket with a time limit, from which no more is read than asked for."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        left = self._end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            yield
        except TimeoutError as error:
            raise ProxyFailed(f"no answer within {self._seconds:.0f} s") from error
        except OSError as error:
            raise ProxyFailed(f"{error.strerror}") from error

    def send(self, data: bytes) -> None:
        with self._in_time():
            self._sock.sendall(data)

    def _receive(self, count: int, flags: int = 0) -> bytes:
        with self._in_time():
            data = self._sock.recv(count, flags)
        if not data:
            raise ProxyFailed("it closed the connection")
        return data

    def take(self, count: int) -> bytes:
        """Reads exactly ``count`` bytes."""
        data = b""
        while len(data) < count:
            data += self._receive(count - len(data))
        return data

    def header(self) -> bytes:
        """Reads up to the first empty line, and no byte more."""
        header = b""
        while len(header) < HEADER_LIMIT:
            ahead = self._receive(HEADER_LIMIT - len(header), socket.MSG_PEEK)
            end = (header + ahead).find(b"\r\n\r\n")
            header += self.take(len(ahead) if end < 0 else end + 4 - len(header))
            if end >= 0:
                return header
        raise ProxyFailed(f"its answer has more than {HEADER_LIMIT} bytes")
