"""The bytes of X11: entries of Xauthority files.

An Xauthority file is a sequence of entries, as Xau(3) and its header Xauth.h describe them. Numbers
have two bytes, most significant first, and so has the length in front of each string.
"""

from typing import TYPE_CHECKING, Final

from .codec import Field, Reader, Record

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
