"""What the kernel is told of a file: the server's attributes, with owners as they are here.

Packed attributes are struct fuse_attr. Their inode is 0 where the server tells none; the node's
number stands in for it.
"""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

from ..errors import MalformedMessage, system_error
from ..wire import fuse
from ..wire.sftp import Attributes, FileIdentity
from .settings import IdMap, MountSettings

_SECOND: Final = 1_000_000_000  # nanoseconds
_MASK: Final = (1 << 64) - 1
_TYPES: Final = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFBLK,
        stat.S_IFCHR,
    )
)
# The first letter of a longname, as ls writes it
_LETTERS: Final = {
    b"-": stat.S_IFREG,
    b"d": stat.S_IFDIR,
    b"l": stat.S_IFLNK,
    b"p": stat.S_IFIFO,
    b"s": stat.S_IFSOCK,
    b"b": stat.S_IFBLK,
    b"c": stat.S_IFCHR,
}
_LARGEST: Final = (1 << 63) - 1  # bytes of a file; the kernel believes nothing of larger ones
UNIT: Final = 512  # bytes of st_blocks


class AttributeMap:
    """Turns a server's attributes into the kernel's, and owners back."""

    def __init__(self, settings: MountSettings) -> None:
        self._uid, self._gid = settings.uid, settings.gid
        self._kept = 0o7777 if settings.umask is None else 0o7777 & ~settings.umask
        self._sets_mode = settings.umask is not None
        self._users, self._groups = settings.users, settings.groups
        self._maps = bool(self._users.to_local or self._groups.to_local) or (
            self._users.is_strict or self._groups.is_strict
        )
        self._device: int | None = None  # the root's, at the server

    def found_root(self, attributes: Attributes) -> None:
        """Takes the attributes of the root, whose device needs no mark in inodes."""
        if attributes.identity is not None:
            self._device = attributes.identity.device

    def found_own_user(self, owner: tuple[int, int], uid: int, gid: int) -> None:
        """Shows the server's user and group as ``uid`` and ``gid`` (idmap=user)."""
        self._users = IdMap(to_local={owner[0]: uid})
        self._groups = IdMap(to_local={owner[1]: gid})
        self._maps = True

    def pack(self, attributes: Attributes, longname: bytes = b"") -> bytes:
        """Returns packed attributes; b'' if the server did not tell the file's type.

        Raises OSError for an owner that has no number here.
        """
        mode = attributes.permissions
        kind = 0 if mode is None else stat.S_IFMT(mode)
        if kind not in _TYPES:
            kind = _LETTERS.get(longname[:1], 0)
            if not kind:
                return b""
            mode = kind | (mode & 0o7777 if mode is not None else 0o777)
        assert mode is not None
        if self._sets_mode:
            mode = kind | (0o777 & self._kept)
        size = min(attributes.size or 0, _LARGEST)
        user, group = attributes.owner or (0, 0)
        if self._maps:
            user, group = _mapped(self._users, user), _mapped(self._groups, group)
        if self._uid is not None:
            user = self._uid
        if self._gid is not None:
            group = self._gid
        accessed, modified = attributes.times or (0, 0)
        identity = attributes.identity
        if identity is None:
            blocks = (size + UNIT - 1) // UNIT
            times = (accessed, 0), (modified, 0), (modified, 0)
            return fuse.Attributes(0, size, blocks, *times, mode, 1, user, group).encode()
        inode = identity.inode
        if self._device is not None and identity.device != self._device:
            inode = (inode + identity.device * 0x9E3779B97F4A7C15) & _MASK
        return fuse.Attributes(
            inode,
            size,
            identity.blocks,
            (accessed, identity.access_nanoseconds),
            (modified, identity.modification_nanoseconds),
            (min(identity.changed[0], _LARGEST), identity.changed[1]),
            mode,
            identity.links,
            user,
            group,
        ).encode()

    def pack_or_nothing(self, attributes: Attributes, longname: bytes) -> bytes:
        """As ``pack``; b'' also for an owner that has no number here."""
        try:
            return self.pack(attributes, longname)
        except OSError:
            return b""

    def pack_plain(self, fields: tuple[int, ...], longname: bytes) -> bytes:
        """As ``pack_or_nothing`` for (flags, size, uid, gid, permissions, atime, mtime)."""
        _, size, user, group, mode, accessed, modified = fields
        if self._is_plain and mode & 0o170000 in _TYPES:
            size = min(size, _LARGEST)
            blocks = (size + UNIT - 1) // UNIT
            return fuse.pack_attributes(
                0, size, blocks, accessed, modified, modified, 0, 0, 0, mode, 1, user, group, 0,
                fuse.PAGE, 0,
            )  # fmt: skip
        attributes = Attributes(size, (user, group), mode, (accessed, modified))
        return self.pack_or_nothing(attributes, longname)

    def pack_own(self, fields: tuple[Any, ...], longname: bytes) -> bytes:
        """As ``pack_or_nothing`` for the fields of wire.sftp.OWN_DATA; raises MalformedMessage."""
        size, user, group, mode, accessed, modified, _, device, inode, links, blocks = fields[:11]
        access, modification, seconds, nanoseconds = fields[11:]
        if max(access, modification, nanoseconds) >= _SECOND:
            raise MalformedMessage("nanoseconds that are a second or more")
        is_plain = self._is_plain and size <= _LARGEST and self._device in (device, None)
        if is_plain and mode & 0o170000 in _TYPES:
            return fuse.pack_attributes(
                inode, size, blocks, accessed, modified, min(seconds, _LARGEST),
                access, modification, nanoseconds, mode, links, user, group, 0, fuse.PAGE, 0,
            )  # fmt: skip
        identity = FileIdentity(
            device, inode, links, blocks, access, modification, (seconds, nanoseconds)
        )
        times = accessed, modified
        attributes = Attributes(size, (user, group), mode, times, None, identity)
        return self.pack_or_nothing(attributes, longname)

    @property
    def _is_plain(self) -> bool:
        """Whether owners and modes are told as they are at the server."""
        return not self._maps and self._uid is None and self._gid is None and not self._sets_mode

    def owner_there(self, uid: int, gid: int) -> tuple[int, int]:
        """Returns the numbers that a local user and group have at the server; raises OSError."""
        if not self._maps:
            return uid, gid
        return _mapped_back(self._users, uid), _mapped_back(self._groups, gid)


def _mapped(table: IdMap, number: int) -> int:
    found = table.to_local.get(number)
    if found is None:
        if table.is_strict:
            raise system_error(errno.EPERM)
        return number
    return found


def _mapped_back(table: IdMap, number: int) -> int:
    for there, here in table.to_local.items():
        if here == number:
            return there
    if table.is_strict:
        raise system_error(errno.EPERM)
    return number
