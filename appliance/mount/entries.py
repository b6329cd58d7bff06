"""Reads listings straight into packed attributes.

A directory may have 100,000 names. Servers tell each file with the same fields, so these are read
at once; whatever else a server sends is read by wire/sftp.py.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple

from ..errors import MalformedMessage
from ..wire import fuse, sftp
from ..wire.codec import Reader
from .attributes import AttributeMap

_LENGTH: Final = struct.Struct(">I")
_COUNT_AT: Final = 5  # behind type and id
# flags, size, uid, gid, permissions, atime, mtime
_PLAIN: Final = struct.Struct(">IQIIIII")
_PLAIN_FLAGS: Final = 0xF  # size, owner, permissions and times; no extended pairs
_NAME_LIMIT: Final = 1024  # bytes; the kernel refuses a listing with a longer one


def is_safe_name(name: bytes) -> bool:
    """Whether a server's name can be that of a file; the kernel refuses a listing with others."""
    return 0 < len(name) <= _NAME_LIMIT and b"/" not in name and b"\0" not in name


class Entries(NamedTuple):
    """One reply."""

    entries: tuple[tuple[bytes, bytes], ...]  # names with attributes, b'' where they are not known
    is_empty: bool  # the reply had no entry at all, not even one that was left out


class EntriesReader:
    """Reads NAME; stands in for wire.sftp.Names."""

    number = sftp.Names.number

    def __init__(self, attributes: AttributeMap, follows_symlinks: bool) -> None:
        """With ``follows_symlinks``, what a link leads to must be asked for by itself."""
        self._map = attributes
        self._follows = follows_symlinks

    def decode(self, payload: memoryview) -> Entries:
        """Returns the entries that can be files of a directory; raises MalformedMessage."""
        try:
            return self._decode(bytes(payload))
        except struct.error as error:
            raise MalformedMessage("a listing that ends too early") from error

    def _decode(self, data: bytes) -> Entries:
        entries: list[tuple[bytes, bytes]] = []
        add, plain, pack_plain = entries.append, _PLAIN.unpack_from, self._map.pack_plain
        unpack, own, pack_own = _LENGTH.unpack_from, sftp.OWN_DATA.unpack_from, self._map.pack_own
        count: int = unpack(data, _COUNT_AT)[0]
        at, end = _COUNT_AT + 4, len(data)
        for _ in range(count):
            start = at + 4
            at = start + unpack(data, at)[0]
            name = data[start:at]
            start = at + 4
            at = start + unpack(data, at)[0]
            if at > end:
                raise MalformedMessage("a listing that ends too early")
            flags = unpack(data, at)[0]
            if flags == _PLAIN_FLAGS:
                packed = pack_plain(plain(data, at), data[start : start + 1])
                at += _PLAIN.size
            elif (
                flags == sftp.OWN_FLAGS
                and end - at > sftp.OWN_DATA.size + 4
                and (fields := own(data, at + 4))[6] == sftp.IDENTITY_HEAD
            ):
                packed = pack_own(fields, data[start : start + 1])
                at += sftp.OWN_DATA.size + 4
            else:
                reader = Reader(data[at : at + sftp.ATTRIBUTES_LIMIT])
                attributes = sftp.read_attributes(reader)
                at += min(sftp.ATTRIBUTES_LIMIT, end - at) - reader.left
                packed = b""
                if attributes.times is not None:
                    packed = self._map.pack_or_nothing(attributes, data[start : start + 1])
            if self._follows and packed and stat.S_ISLNK(fuse.mode_in(packed)):
                packed = b""
            if is_safe_name(name):
                add((name, packed))
        if at != end:
            raise MalformedMessage("a listing with bytes behind it")
        return Entries(tuple([each for each in entries if each[0] not in (b".", b"..")]), not count)
