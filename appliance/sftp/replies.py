"""The replies that are not sent yet.

They are put together in one buffer, so that all requests that came together are answered by one
write. A READ fills the buffer straight from the file.
"""

from __future__ import annotations

import os
import struct

from ..wire.sftp import (
    EOF,
    HEADER,
    OK,
    PACKET_LIMIT,
    AttrsReply,
    Data,
    ExtendedReply,
    Handle,
    Names,
    Status,
)
from .failures import Refused

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

# Our own choice: two of the largest packets, or hundreds of small ones
SIZE = 2 * (PACKET_LIMIT + 4)  # bytes

_STATUS = struct.Struct(">IBIII")  # length, type, id, code, length of the message
_LANGUAGE = b"\0\0\0\0"  # an empty language tag
_HANDLE = struct.Struct(">IBIII")  # length, type, id, length of the handle, a handle of 4 bytes
_COUNT = struct.Struct(">IBII")  # length, type, id, count of names or length of the data


class Replies:
    """Owns the buffer, and writes it out when it is full or ``flush`` is called."""

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self._view = memoryview(bytearray(SIZE))
        self._end = 0
        self.tells_errno = False  # a STATUS ends with the error's number (ERRNO)

    def room(self, size: int) -> memoryview:
        """Returns ``size`` bytes of the buffer to fill; ``filled`` then says how many count."""
        if self._end + size > SIZE:
            self.flush()
        return self._view[self._end : self._end + size]

    def filled(self, count: int) -> None:
        """Adds the first ``count`` bytes of the last ``room`` to what is sent."""
        self._end += count

    def add(self, packet: bytes) -> None:
        """Adds a packet with its length."""
        self.room(len(packet))[:] = packet
        self._end += len(packet)

    def flush(self) -> None:
        """Writes what is in the buffer."""
        if self._end:
            count, self._end = self._end, 0
            self._write(self._view[:count])

    def status(self, request: int, code: int, message: str, number: int) -> None:
        """Adds a STATUS; ``number`` is the errno."""
        text = message.encode()
        rest = _LANGUAGE + number.to_bytes(4, "big") if self.tells_errno else _LANGUAGE
        length = _STATUS.size - 4 + len(text) + len(rest)
        self.add(_STATUS.pack(length, Status.number, request, code, len(text)) + text + rest)

    def ok(self, request: int) -> None:
        """Adds the STATUS of success."""
        self.status(request, OK, "Success", 0)

    def eof(self, request: int) -> None:
        """Adds the STATUS for the end of a file or directory."""
        self.status(request, EOF, "End of file", 0)

    def refuse(self, request: int, refusal: Refused) -> None:
        """Adds the STATUS of a refusal."""
        self.status(request, refusal.code, refusal.message, refusal.number)

    def handle(self, request: int, handle: int) -> None:
        """Adds a HANDLE."""
        self.add(_HANDLE.pack(_HANDLE.size - 4, Handle.number, request, 4, handle))

    def attributes(self, request: int, attributes: bytes) -> None:
        """Adds an ATTRS."""
        self._headed(AttrsReply.number, request, attributes)

    def extended(self, request: int, data: bytes) -> None:
        """Adds an EXTENDED_REPLY."""
        self._headed(ExtendedReply.number, request, data)

    def _headed(self, number: int, request: int, body: bytes) -> None:
        self.add(HEADER.pack(HEADER.size - 4 + len(body), number, request) + body)

    def names(self, request: int, count: int, entries: bytes) -> None:
        """Adds a NAME of so many entries."""
        length = _COUNT.size - 4 + len(entries)
        self.add(_COUNT.pack(length, Names.number, request, count) + entries)

    def name(self, request: int, path: bytes) -> None:
        """Adds a NAME of one path without attributes, as REALPATH and READLINK have it."""
        word = len(path).to_bytes(4, "big") + path
        self.names(request, 1, word + word + b"\0\0\0\0")

    def data(self, request: int, read: Callable[[memoryview], int], length: int) -> int:
        """Adds a DATA that ``read`` fills, or the end of file; returns how many bytes it has."""
        room = self.room(_COUNT.size + length)
        count = read(room[_COUNT.size :])
        if count:
            _COUNT.pack_into(room, 0, _COUNT.size - 4 + count, Data.number, request, count)
            self._end += _COUNT.size + count
        else:
            self.eof(request)
        return count


def to_descriptor(descriptor: int) -> Callable[[memoryview], None]:
    """Returns a function that writes all bytes there; it may block."""

    def write(view: memoryview) -> None:
        start = 0
        while start < len(view):
            start += os.write(descriptor, view[start:])

    return write
