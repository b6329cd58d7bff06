"""The kernel's FUSE protocol (include/uapi/linux/fuse.h), version 7.19 to 7.45.

Each read of /dev/fuse gives one request: a header, a structure that belongs to the opcode, and
names that end with NUL. Each request but FORGET, BATCH_FORGET and INTERRUPT gets one reply: a
header with an errno and the number of the request, and a structure. Bytes have the order of the
machine, and structures the layout of C.

    parse(view)            a Request, whose fields are read by ``fields``, ``names``, ``data``
    negotiate(request, …)  what both sides can do, from INIT
    reply(unique, …)       the bytes of a reply; ``entry``, ``attributes`` … make their structures

The kernel is trusted, so a request that cannot be read is a fault of ours or of a newer protocol:
it raises MalformedMessage.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from ..errors import MalformedMessage

MAJOR: Final = 7
MINOR: Final = 45  # that this module knows; what it does not use of it stays off
OLDEST_MINOR: Final = 19  # Linux 3.5: older kernels have other layouts
ROOT: Final = 1  # the node of the mount's root

# Opcodes
LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
GETLK: Final = 31
SETLK: Final = 32
SETLKW: Final = 33
ACCESS: Final = 34
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47

# Flags of INIT
ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
WRITEBACK_CACHE: Final = 1 << 16
PARALLEL_DIROPS: Final = 1 << 18
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
EXPLICIT_INVAL_DATA: Final = 1 << 25
INIT_EXT: Final = 1 << 30

# Bits of SETATTR's ``valid``
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

# Flags of OPEN's reply
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3

# Codes of notices
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_DELETE: Final = 6

PAGE: Final = 4096  # bytes; max_pages counts pages, and a larger page only makes a limit smaller
LIMIT_WITHOUT_MAX_PAGES: Final = 32 * PAGE  # bytes of one READ or WRITE, before 7.28

# Our own choice
_BACKGROUND: Final = 64  # requests of the kernel's own read-ahead and write-back at once

_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_ATTRIBUTES: Final = struct.Struct("=QQQqqqIIIIIIIIII")  # times before 1970 are negative
_WORD: Final = struct.Struct("=Q")
_TWO_WORDS: Final = struct.Struct("=QQ")
_HALF_WORD: Final = struct.Struct("=I")
_MODE_AT: Final = 60
_ENTRY_HEAD: Final = struct.Struct("=QQQQII")
_ATTRIBUTES_HEAD: Final = struct.Struct("=QI4x")
_DIRENT: Final = struct.Struct("=QQII")
_INIT: Final = struct.Struct("=IIII")
_INIT_FLAGS2: Final = struct.Struct("=I")
_INIT_REPLY: Final = struct.Struct("=IIIIHHIIHHI28x")
_INIT_REPLY_SHORT: Final = 24  # bytes that a kernel before 7.23 takes

# opcode: (structure behind the header, names behind it)
_LAYOUTS: Final = {
    LOOKUP: (struct.Struct(""), 1),
    FORGET: (struct.Struct("=Q"), 0),  # nlookup
    GETATTR: (struct.Struct("=I4xQ"), 0),  # getattr_flags, fh
    # valid, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, uid, gid
    SETATTR: (struct.Struct("=I4xQQQqqqIIII4xII4x"), 0),
    READLINK: (struct.Struct(""), 0),
    SYMLINK: (struct.Struct(""), 2),  # name, target
    MKNOD: (struct.Struct("=III4x"), 1),  # mode, rdev, umask
    MKDIR: (struct.Struct("=II"), 1),  # mode, umask
    UNLINK: (struct.Struct(""), 1),
    RMDIR: (struct.Struct(""), 1),
    RENAME: (struct.Struct("=Q"), 2),  # newdir
    LINK: (struct.Struct("=Q"), 1),  # oldnodeid
    OPEN: (struct.Struct("=II"), 0),  # flags, open_flags
    READ: (struct.Struct("=QQIIQI4x"), 0),  # fh, offset, size, read_flags, lock_owner, flags
    WRITE: (struct.Struct("=QQIIQI4x"), 0),  # the same, with write_flags; then the data
    STATFS: (struct.Struct(""), 0),
    RELEASE: (struct.Struct("=QIIQ"), 0),  # fh, flags, release_flags, lock_owner
    FSYNC: (struct.Struct("=QI4x"), 0),  # fh, fsync_flags
    SETXATTR: (struct.Struct("=II"), 1),  # size, flags; then the value behind the name
    GETXATTR: (struct.Struct("=I4x"), 1),  # size
    LISTXATTR: (struct.Struct("=I4x"), 0),  # size
    REMOVEXATTR: (struct.Struct(""), 1),
    FLUSH: (struct.Struct("=Q8xQ"), 0),  # fh, lock_owner
    OPENDIR: (struct.Struct("=II"), 0),  # flags, open_flags
    READDIR: (struct.Struct("=QQIIQI4x"), 0),  # as READ
    RELEASEDIR: (struct.Struct("=QIIQ"), 0),  # as RELEASE
    FSYNCDIR: (struct.Struct("=QI4x"), 0),  # as FSYNC
    GETLK: (struct.Struct("=QQQQIII4x"), 0),  # fh, owner, start, end, type, pid, lk_flags
    SETLK: (struct.Struct("=QQQQIII4x"), 0),
    SETLKW: (struct.Struct("=QQQQIII4x"), 0),
    ACCESS: (struct.Struct("=I4x"), 0),  # mask
    CREATE: (struct.Struct("=IIII"), 1),  # flags, mode, umask, open_flags
    INTERRUPT: (struct.Struct("=Q"), 0),  # unique
    DESTROY: (struct.Struct(""), 0),
    FALLOCATE: (struct.Struct("=QQQI4x"), 0),  # fh, offset, length, mode
    READDIRPLUS: (struct.Struct("=QQIIQI4x"), 0),  # as READ
    RENAME2: (struct.Struct("=QI4x"), 2),  # newdir, flags
    LSEEK: (struct.Struct("=QQI4x"), 0),  # fh, offset, whence
    # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
    COPY_FILE_RANGE: (struct.Struct("=QQQQQQQ"), 0),
}


class Request(NamedTuple):
    """One request; ``body`` is valid until the buffer that it was read into is used again."""

    opcode: int
    unique: int  # its number, for the reply and for INTERRUPT
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    def fields(self) -> tuple[int, ...]:
        """The fields of the opcode's structure, in the order of fuse.h and without padding."""
        layout, _ = self._layout()
        try:
            return layout.unpack_from(self.body)
        except struct.error as error:
            raise MalformedMessage(f"FUSE request {self.opcode} is too short") from error

    def names(self) -> tuple[bytes, ...]:
        """The names behind the structure."""
        layout, count = self._layout()
        names = bytes(self.body[layout.size :]).split(b"\0", count)
        if len(names) != count + 1:
            raise MalformedMessage(f"FUSE request {self.opcode} lacks a name")
        return tuple(names[:count])

    def data(self) -> memoryview:
        """The bytes of a WRITE or SETXATTR, which stand behind everything else."""
        layout, count = self._layout()
        at = layout.size + sum(len(name) + 1 for name in (self.names() if count else ()))
        size = self.fields()[2 if self.opcode == WRITE else 0]
        data = self.body[at:]
        if len(data) != size:
            raise MalformedMessage(f"FUSE request {self.opcode} has data of a wrong length")
        return data

    def forgotten(self) -> list[tuple[int, int]]:
        """The nodes of BATCH_FORGET, each with the lookups that are taken back."""
        count = struct.unpack_from("=I", self.body)[0]
        if len(self.body) != 8 + 16 * count:
            raise MalformedMessage("a BATCH_FORGET of a wrong length")
        return list(struct.iter_unpack("=QQ", self.body[8:]))

    def _layout(self) -> tuple[struct.Struct, int]:
        try:
            return _LAYOUTS[self.opcode]
        except KeyError as error:
            raise MalformedMessage(f"FUSE opcode {self.opcode} is not known") from error


def parse(view: memoryview) -> Request:
    """Returns the request that one read of /dev/fuse gave; raises MalformedMessage."""
    if len(view) < _IN_HEADER.size:
        raise MalformedMessage("a FUSE request without its header")
    length, opcode, unique, node, uid, gid, pid, extensions, _ = _IN_HEADER.unpack_from(view)
    if length != len(view):
        raise MalformedMessage("a FUSE request of a wrong length")
    return Request(
        opcode, unique, node, uid, gid, pid, view[_IN_HEADER.size : length - 8 * extensions]
    )


# -- INIT ----------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """What both sides can do."""

    minor: int
    flags: int
    max_write: int  # bytes of one READ or WRITE


def negotiate(request: Request, wanted: int, largest: int) -> tuple[bytes, Agreement | None]:
    """Returns the reply's structure to INIT, and the agreement.

    ``wanted``: flags; those that the kernel does not have stay off. ``largest``: bytes of one
    READ or WRITE that we take. The agreement is None for a kernel with a newer major version,
    which asks again with ours. Raises MalformedMessage for a kernel that is too old.
    """
    if len(request.body) < _INIT.size:
        raise MalformedMessage("an INIT that is too short")
    major, minor, read_ahead, flags = _INIT.unpack_from(request.body)
    if major > MAJOR:
        return _INIT_REPLY.pack(MAJOR, MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0), None
    if major < MAJOR or minor < OLDEST_MINOR:
        raise MalformedMessage(f"the kernel speaks FUSE {major}.{minor}, which is too old")
    agreed = flags & wanted
    if not agreed & MAX_PAGES:
        largest = min(largest, LIMIT_WITHOUT_MAX_PAGES)
    pages = largest // PAGE if agreed & MAX_PAGES else 0
    structure = _INIT_REPLY.pack(
        MAJOR,
        min(minor, MINOR),
        read_ahead,
        agreed,
        _BACKGROUND,
        _BACKGROUND * 3 // 4,
        largest,
        1,  # nanosecond: times are kept as they are
        pages,
        0,
        0,
    )
    if minor < 23:
        structure = structure[:_INIT_REPLY_SHORT]
    return structure, Agreement(min(minor, MINOR), agreed, largest)


# -- replies -------------------------------------------------------------------------------


class Attributes(NamedTuple):
    """struct fuse_attr; times are (seconds, nanoseconds), ``blocks`` of 512 bytes."""

    inode: int
    size: int
    blocks: int
    accessed: tuple[int, int]
    modified: tuple[int, int]
    changed: tuple[int, int]
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int = 0
    block_size: int = PAGE

    def encode(self) -> bytes:
        """The structure's bytes."""
        (atime, atimensec), (mtime, mtimensec) = self.accessed, self.modified
        ctime, ctimensec = self.changed
        return _ATTRIBUTES.pack(
            self.inode,
            self.size,
            self.blocks,
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            self.mode,
            self.links,
            self.uid,
            self.gid,
            self.rdev,
            self.block_size,
            0,
        )

    @classmethod
    def decode(cls, packed: bytes) -> Attributes:
        """The inverse of ``encode``."""
        inode, size, blocks, atime, mtime, ctime, ansec, mnsec, cnsec, *rest = _ATTRIBUTES.unpack(
            packed
        )
        mode, links, uid, gid, rdev, block_size, _ = rest
        times = (atime, ansec), (mtime, mnsec), (ctime, cnsec)
        return cls(inode, size, blocks, *times, mode, links, uid, gid, rdev, block_size)


pack_attributes = _ATTRIBUTES.pack  # of 100,000 files: takes the fields in the structure's order

# Single fields of packed attributes: those of 100,000 files are kept in no other form.


def size_in(packed: bytes) -> int:
    """Returns the size."""
    size: int = _WORD.unpack_from(packed, 8)[0]
    return size


def mode_in(packed: bytes) -> int:
    """Returns the mode, with the file's type."""
    mode: int = _HALF_WORD.unpack_from(packed, _MODE_AT)[0]
    return mode


def links_in(packed: bytes) -> int:
    """Returns the number of names."""
    links: int = _HALF_WORD.unpack_from(packed, _MODE_AT + 4)[0]
    return links


def inode_in(packed: bytes) -> int:
    """Returns the inode."""
    inode: int = _WORD.unpack_from(packed)[0]
    return inode


def version_in(packed: bytes) -> bytes:
    """Returns what changes when a file's content does, or the right to read it.

    Inode, size, mtime, ctime, mode and owner: all but what reading changes, and links and blocks.
    """
    return packed[:16] + packed[32:48] + packed[52:64] + packed[68:76]


def changed_in(packed: bytes) -> bytes:
    """Returns the time of the last change, ctime."""
    return packed[40:48] + packed[56:60]


def with_changed(packed: bytes, changed: bytes) -> bytes:
    """Returns the attributes with another ctime, as ``changed_in`` returns it."""
    return packed[:40] + changed[:8] + packed[48:56] + changed[8:] + packed[60:]


def rights_in(packed: bytes) -> bytes:
    """Returns what decides who may use a file: mode and owner."""
    return packed[60:64] + packed[68:76]


def with_inode(packed: bytes, inode: int) -> bytes:
    """Returns the attributes with another inode."""
    return _WORD.pack(inode) + packed[8:]


def with_size(packed: bytes, size: int) -> bytes:
    """Returns the attributes with another size, and as many blocks as its bytes need."""
    return packed[:8] + _TWO_WORDS.pack(size, (size + 511) // 512) + packed[24:]


def reply(unique: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """Returns the pieces of a reply that succeeded, for writev."""
    length = _OUT_HEADER.size + sum(map(len, parts))
    return [_OUT_HEADER.pack(length, 0, unique), *parts]


def failure(unique: int, number: int) -> bytes:
    """Returns a reply that failed with this errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -number, unique)


def notice(code: int, *parts: bytes) -> list[bytes]:
    """Returns the pieces of a notice, which the kernel did not ask for."""
    return [_OUT_HEADER.pack(_OUT_HEADER.size + sum(map(len, parts)), code, 0), *parts]


def entry(node: int, entry_seconds: float, seconds: float, packed: bytes) -> bytes:
    """Returns struct fuse_entry_out for a name that leads to ``node``.

    The kernel may keep the name for ``entry_seconds``, and the attributes for ``seconds``.
    """
    name_valid, valid = int(entry_seconds), int(seconds)
    return (
        _ENTRY_HEAD.pack(
            node,
            0,
            name_valid,
            valid,
            int((entry_seconds - name_valid) * 1_000_000_000),
            int((seconds - valid) * 1_000_000_000),
        )
        + packed
    )


def missing(seconds: float) -> bytes:
    """Returns struct fuse_entry_out for a missing name; the kernel may keep that for so long."""
    return entry(0, seconds, 0, bytes(_ATTRIBUTES.size))


NO_ENTRY: Final = bytes(_ENTRY_HEAD.size + _ATTRIBUTES.size)  # READDIRPLUS: no attributes known


def attributes_reply(seconds: float, packed: bytes) -> bytes:
    """Returns struct fuse_attr_out, which the kernel may keep for ``seconds``."""
    valid = int(seconds)
    return _ATTRIBUTES_HEAD.pack(valid, int((seconds - valid) * 1_000_000_000)) + packed


def opened(handle: int, flags: int) -> bytes:
    """Returns struct fuse_open_out."""
    return struct.pack("=QI4x", handle, flags)


def written(size: int) -> bytes:
    """Returns struct fuse_write_out, for WRITE and COPY_FILE_RANGE."""
    return struct.pack("=I4x", size)


def offset_reply(offset: int) -> bytes:
    """Returns struct fuse_lseek_out."""
    return struct.pack("=Q", offset)


def xattr_size(size: int) -> bytes:
    """Returns struct fuse_getxattr_out, for GETXATTR and LISTXATTR with a size of 0."""
    return struct.pack("=I4x", size)


def lock_reply(start: int, end: int, kind: int, pid: int) -> bytes:
    """Returns struct fuse_lk_out."""
    return struct.pack("=QQII", start, end, kind, pid)


def statistics(
    blocks: int,
    free: int,
    available: int,
    files: int,
    free_files: int,
    block_size: int,
    name_length: int,
    fragment_size: int,
) -> bytes:
    """Returns struct fuse_statfs_out."""
    return struct.pack(
        "=QQQQQIII28x",
        blocks,
        free,
        available,
        files,
        free_files,
        block_size,
        name_length,
        fragment_size,
    )


def directory_entry(inode: int, offset: int, kind: int, name: bytes) -> bytes:
    """Returns struct fuse_dirent; ``offset`` is that of the entry behind it, ``kind`` a DT_*."""
    head = _DIRENT.pack(inode, offset, len(name), kind)
    return head + name + bytes(-len(name) % 8)


def invalid_inode(node: int, offset: int, length: int) -> list[bytes]:
    """Returns the notice that a file's attributes, and its data from ``offset`` on, have changed.

    A negative offset means the attributes alone; length 0 is up to the end.
    """
    return notice(NOTIFY_INVAL_INODE, struct.pack("=Qqq", node, offset, length))


def invalid_entry(parent: int, name: bytes) -> list[bytes]:
    """Returns the notice that a name may mean another file now."""
    return notice(NOTIFY_INVAL_ENTRY, struct.pack("=QI4x", parent, len(name)), name + b"\0")
