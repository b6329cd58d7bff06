"""The bytes of X11: entries of Xauthority files, and how a client and the server greet each other.

An Xauthority file is a sequence of entries, as Xau(3) and its header Xauth.h describe them. Numbers
have two bytes, most significant first, and so has the length in front of each string.
"""

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import MalformedMessage
from .codec import Buffer, Field, Reader, Record

# Xauth.h and X.h: what an entry's address is
FAMILY_INTERNET: Final = 0  # 4 bytes
FAMILY_INTERNET6: Final = 6  # 16 bytes
FAMILY_LOCAL: Final = 256  # the name of a host, for its Unix-domain sockets
FAMILY_WILD: Final = 65535  # ignored: the entry is for every host

COOKIE_PROTOCOL: Final = b"MIT-MAGIC-COOKIE-1"


def _read_card16(reader: Reader) -> int:
    return int.from_bytes(reader.take(2), "big")


def _write_card16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _read_counted(reader: Reader) -> bytes:
    return reader.take(_read_card16(reader))


def _write_counted(value: bytes) -> bytes:
    return _write_card16(len(value)) + value


# As in codec.py: to a type checker the type of the value, and to a record how it is read.
if TYPE_CHECKING:
    Card16 = int
    Counted = bytes
else:
    Card16 = Field(_read_card16, _write_card16)
    Counted = Field(_read_counted, _write_counted)


class XauthorityEntry(Record):
    """A display, and what its X server wants to be told by its clients."""

    family: Card16
    address: Counted
    number: Counted  # of the display, in digits; empty: of any
    name: Counted  # of the authorization protocol
    data: Counted


def xauthority_entries(data: bytes) -> list[XauthorityEntry]:
    """Returns the entries of an Xauthority file; raises MalformedMessage unless all are whole."""
    reader = Reader(data)
    entries = []
    while not reader.at_end:
        entries.append(XauthorityEntry.read(reader))
    return entries


# X Window System Protocol, chapter 8: Connection Setup. A client chooses the byte order of its
# connection; here it is the first character of the struct layouts of all that follows.
BYTE_ORDERS: Final = {0x42: ">", 0x6C: "<"}
PROTOCOL_MAJOR: Final = 11
_FAILED: Final = 0

# Appendix B: the first byte of what a server says later, and what it is made of
ERROR: Final = 0
REPLY: Final = 1
GENERIC_EVENT: Final = 35
MESSAGE: Final = 32  # bytes, without more of a reply or of a generic event
FIRST_EXTENSION: Final = 128  # the major opcodes of extensions, from here on
_SUCCESS: Final = 1
_ANSWER: Final = struct.Struct("<BBxxxxH")  # success, length of a reason, units of four bytes

# Our own choices, against a client that never ends its request
NAME_LIMIT: Final = 256  # bytes
DATA_LIMIT: Final = 1024  # bytes


class SetUpRequest(NamedTuple):
    """What a client sends first."""

    byte_order: str  # a value of BYTE_ORDERS
    major: int
    minor: int
    name: bytes  # of the authorization protocol; empty: none
    data: bytes

    def encode(self) -> bytes:
        """Returns the request's bytes."""
        name, data = self.name, self.data
        first = 0x42 if self.byte_order == ">" else 0x6C
        head = struct.pack(
            self.byte_order + "BxHHHHxx", first, self.major, self.minor, len(name), len(data)
        )
        return head + _padded(name) + _padded(data)


def read_set_up(buffer: Buffer) -> tuple[SetUpRequest, int] | None:
    """Returns the request at the start of ``buffer`` and its size; None if it is not whole yet.

    Raises MalformedMessage as soon as it can be no request that Culvert accepts.
    """
    if not buffer:
        return None
    order = BYTE_ORDERS.get(buffer[0])
    if order is None:
        raise MalformedMessage("a program that does not speak X11")
    layout = struct.Struct(order + "xxHHHHxx")
    if len(buffer) < layout.size:
        return None
    major, minor, name, data = layout.unpack_from(buffer)
    if name > NAME_LIMIT or data > DATA_LIMIT:
        raise MalformedMessage("an authorization that is too long")
    data_at = layout.size + (name + 3 & ~3)
    size = data_at + (data + 3 & ~3)
    if len(buffer) < size:
        return None
    name_at = layout.size
    return SetUpRequest(
        order,
        major,
        minor,
        bytes(buffer[name_at : name_at + name]),
        bytes(buffer[data_at : data_at + data]),
    ), size


def set_up_failed(byte_order: str, reason: str) -> bytes:
    """Returns the answer that turns a client away; toolkits print ``reason``."""
    text = reason.encode("ascii", "replace")[:255]
    padded = _padded(text)
    layout = byte_order + "BBHHH"
    return struct.pack(layout, _FAILED, len(text), PROTOCOL_MAJOR, 0, len(padded) // 4) + padded


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def set_up_refusal(answer: Buffer) -> tuple[str, int] | None:
    """Returns why a server turns a client away, '' if it does not, and the size of its answer.

    The client has asked in the byte order '<'. None if the answer is not whole yet.
    """
    if len(answer) < _ANSWER.size:
        return None
    status, length, units = _ANSWER.unpack_from(answer)
    size = _ANSWER.size + 4 * units
    if len(answer) < size:
        return None
    if status == _SUCCESS:
        return "", size
    reason = bytes(answer[_ANSWER.size : size])
    if status == _FAILED:
        reason = reason[:length]
    return reason.rstrip(b"\0\n").decode("latin-1") or "it gives no reason", size
