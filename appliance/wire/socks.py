"""SOCKS as a server reads it: versions 4 and 4a, and version 5 (RFC 1928) without passwords.

    version 4   request                       -> answer
    version 5   methods -> method, request    -> answer

The caller passes the client's bytes to a Dialogue until ``place`` is set, connects there, and
sends the client the Dialogue's ``answer``.
"""

import struct
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ..errors import MalformedMessage
from .codec import Buffer

# RFC 1928
_CONNECT: Final = 1
_NO_AUTHENTICATION: Final = 0
_NO_METHOD: Final = 0xFF
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_GRANTED: Final = 0
_GENERAL_FAILURE: Final = 1
_COMMAND_NOT_SUPPORTED: Final = 7
_ADDRESS_NOT_SUPPORTED: Final = 8

# SOCKS: A protocol for TCP proxy across firewalls, Ying-Da Lee
_GRANTED_4: Final = 90
_REJECTED_4: Final = 91
_HEADER_4: Final = struct.Struct(">BBH4s")

# Our own choice
TEXT_LIMIT: Final = 255  # bytes of a user's or host's name in version 4


class _SocksState(Enum):
    GREETING = auto()
    REQUEST = auto()
    DONE = auto()


class Dialogue:
    """The dialogue with one client.

    ``reply`` holds the bytes to be sent to the client now, ``place`` the host and port that the
    client asks for, and ``rest`` the bytes that it has already sent for that host.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = _SocksState.GREETING
        self._version = 0
        self.reply = b""
        self.rest = b""
        self.place: tuple[str, int] | None = None

    def receive(self, data: Buffer) -> None:
        """Reads more of the client's bytes; sets ``reply`` and, once it is known, ``place``.

        Raises MalformedMessage if the client cannot be served; ``reply`` may then hold a last
        answer to it.
        """
        self.reply = b""
        self._buffer += data
        if self._state is _SocksState.GREETING and self._buffer:
            self._version = self._buffer[0]
            if self._version == 4:
                self._state = _SocksState.REQUEST
            elif self._version == 5:
                self._greet()
            else:
                raise MalformedMessage(f"SOCKS version {self._version}")
        if self._state is _SocksState.REQUEST:
            if self._version == 4:
                self._request4()
            else:
                self._request5()

    def answer(self, granted: bool) -> bytes:
        """The answer that tells the client whether it is connected."""
        if self._version == 4:
            return _HEADER_4.pack(0, _GRANTED_4 if granted else _REJECTED_4, 0, bytes(4))
        return _answer5(_GRANTED if granted else _GENERAL_FAILURE)

    def _greet(self) -> None:
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return
        methods = buffer[2 : 2 + buffer[1]]
        del buffer[: 2 + buffer[1]]
        if _NO_AUTHENTICATION not in methods:
            self.reply = bytes((5, _NO_METHOD))
            raise MalformedMessage("a SOCKS client that offers no method without authentication")
        self.reply = bytes((5, _NO_AUTHENTICATION))
        self._state = _SocksState.REQUEST

    def _request5(self) -> None:
        buffer = self._buffer
        if len(buffer) < 5:
            return
        version, command, _, kind, length = buffer[:5]
        if version != 5:
            raise MalformedMessage(f"SOCKS version {version} after version 5")
        size = {_IPV4: 4, _IPV6: 16, _NAME: 1 + length}.get(kind)
        if command != _CONNECT or size is None:
            wrong = _COMMAND_NOT_SUPPORTED if command != _CONNECT else _ADDRESS_NOT_SUPPORTED
            self.reply += _answer5(wrong)
            raise MalformedMessage("a SOCKS command or address that is not supported")
        if len(buffer) < 4 + size + 2:
            return
        address = bytes(buffer[4 : 4 + size])
        port = int.from_bytes(buffer[4 + size : 6 + size], "big")
        if kind == _NAME:
            self._wants(_name(address[1:]), port, 6 + size)
        else:
            kinds = IPv4Address if kind == _IPV4 else IPv6Address
            self._wants(str(kinds(address)), port, 6 + size)

    def _request4(self) -> None:
        buffer = self._buffer
        user_end = self._end_of_text(_HEADER_4.size)
        if user_end is None:
            return
        _, command, port, address = _HEADER_4.unpack_from(buffer)
        if command != _CONNECT:
            self.reply = self.answer(False)
            raise MalformedMessage("a SOCKS command that is not supported")
        if address[:3] != bytes(3) or not address[3]:
            self._wants(str(IPv4Address(address)), port, user_end + 1)
            return
        name_end = self._end_of_text(user_end + 1)  # version 4a
        if name_end is None:
            return
        self._wants(_name(bytes(buffer[user_end + 1 : name_end])), port, name_end + 1)

    def _end_of_text(self, start: int) -> int | None:
        """The index of the NUL behind the text at ``start``; None if it has not arrived yet."""
        end = self._buffer.find(0, start, start + TEXT_LIMIT + 1)
        if end < 0 and len(self._buffer) > start + TEXT_LIMIT:
            raise MalformedMessage("a SOCKS name that does not end")
        return None if end < 0 else end

    def _wants(self, host: str, port: int, size: int) -> None:
        if not port:
            self.reply += self.answer(False)
            raise MalformedMessage("a SOCKS request for port 0")
        self.rest = bytes(self._buffer[size:])
        self.place = (host, port)
        self._state = _SocksState.DONE


def _answer5(code: int) -> bytes:
    return bytes((5, code, 0, _IPV4)) + bytes(6)


def _name(data: bytes) -> str:
    if not data or not data.isascii() or not data.decode().isprintable() or b" " in data:
        raise MalformedMessage("a SOCKS host name that is empty or has forbidden characters")
    return data.decode()
