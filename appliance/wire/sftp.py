"""SFTP, version 3: draft-ietf-secsh-filexfer-02, OpenSSH's extensions, and Culvert's own.

A packet is a length, a type, the number of the request that it makes or answers, and the
fields of the type. What differs from the draft is as OpenSSH has it (its PROTOCOL, section 4):
the arguments of SYMLINK have the order of symlink(2).

Extensions are announced in VERSION and called by name in EXTENDED. Those of Culvert end in
@culvert.example. A client that finds them missing does the same by the plain requests.

Paths and names are bytes, as they are to the kernel. Like the codec, this module imports
nothing that makes a program start later.
"""

import struct

from ..errors import MalformedMessage
from .codec import (
    TYPE_CHECKING,
    Boolean,
    Field,
    Message,
    Name,
    Reader,
    Record,
    Rest,
    Shown,
    String,
    UInt32,
    UInt64,
    write_string,
    write_uint32,
)

# draft-ietf-secsh-filexfer-02 section 7, Status
OK = 0
EOF = 1
NO_SUCH_FILE = 2
PERMISSION_DENIED = 3
FAILURE = 4
BAD_MESSAGE = 5
NO_CONNECTION = 6
CONNECTION_LOST = 7
OP_UNSUPPORTED = 8

# Section 6.3, the flags of OPEN
READ = 0x01
WRITE = 0x02
APPEND = 0x04
CREATE = 0x08
TRUNCATE = 0x10
EXCLUSIVE = 0x20

# Section 5, the flags of attributes
_SIZE = 0x1
_OWNER = 0x2
_PERMISSIONS = 0x4
_TIMES = 0x8
_EXTENDED = 0x80000000
_EVERY = _SIZE | _OWNER | _PERMISSIONS | _TIMES

VERSION = 3

# OpenSSH's limits (sftp-common.h), which are ours as well
PACKET_LIMIT = 256 << 10  # bytes: a packet without its length
DATA_LIMIT = PACKET_LIMIT - 1024  # bytes of one READ or WRITE
PLAIN_DATA_LIMIT = 32 << 10  # bytes: servers without limits@openssh.com may cut or corrupt more
HANDLE_LIMIT = 256  # bytes; section 6.3

# OpenSSH's PROTOCOL, section 4
POSIX_RENAME = "posix-rename@openssh.com"
STATVFS = "statvfs@openssh.com"
FSTATVFS = "fstatvfs@openssh.com"
HARDLINK = "hardlink@openssh.com"
FSYNC = "fsync@openssh.com"
LSETSTAT = "lsetstat@openssh.com"
LIMITS = "limits@openssh.com"
EXPAND_PATH = "expand-path@openssh.com"
COPY_DATA = "copy-data"
HOME_DIRECTORY = "home-directory"
USERS_GROUPS_BY_ID = "users-groups-by-id@openssh.com"

# Our own
# From its reply on, attributes have a FileIdentity, and the longnames of a listing are empty.
ATTRIBUTES = "attributes@culvert.example"
ERRNO = "errno@culvert.example"  # from its reply on, a STATUS ends with Linux's errno
NANOSECONDS = "nanoseconds@culvert.example"  # a pair of attributes that are set
READ_FILE = "read-file@culvert.example"
WRITE_FILE = "write-file@culvert.example"
LOOKUP_TREE = "lookup-tree@culvert.example"
EXTENTS = "extents@culvert.example"
WATCH = "watch@culvert.example"
UNWATCH = "unwatch@culvert.example"
CHANGES = "changes@culvert.example"
LOCK = "lock@culvert.example"
GET_XATTR = "get-xattr@culvert.example"
SET_XATTR = "set-xattr@culvert.example"
LIST_XATTRS = "list-xattrs@culvert.example"
REMOVE_XATTR = "remove-xattr@culvert.example"

EXTENSIONS = {
    POSIX_RENAME: b"1",
    STATVFS: b"2",
    FSTATVFS: b"2",
    HARDLINK: b"1",
    FSYNC: b"1",
    LSETSTAT: b"1",
    LIMITS: b"1",
    EXPAND_PATH: b"1",
    COPY_DATA: b"1",
    HOME_DIRECTORY: b"1",
    USERS_GROUPS_BY_ID: b"1",
    ATTRIBUTES: b"1",
    ERRNO: b"1",
    NANOSECONDS: b"1",
    READ_FILE: b"1",
    WRITE_FILE: b"1",
    LOOKUP_TREE: b"1",
    EXTENTS: b"1",
    WATCH: b"1",
    UNWATCH: b"1",
    CHANGES: b"1",
    LOCK: b"1",
    GET_XATTR: b"1",
    SET_XATTR: b"1",
    LIST_XATTRS: b"1",
    REMOVE_XATTR: b"1",
}

_PAIRS_LIMIT = 64  # extended pairs of one file's attributes, names of extensions
ATTRIBUTES_LIMIT = 32 << 10  # bytes of one file's attributes, of which all servers send far fewer
_EVERY_DATA = struct.Struct(">QIIIII")
_IDENTITY_DATA = struct.Struct(">QQIQIIQI")
# One extended pair, the identity: the count, the name behind its length, the length of the data.
IDENTITY_HEAD = (
    write_uint32(1) + write_string(ATTRIBUTES.encode()) + write_uint32(_IDENTITY_DATA.size)
)
# Everything that our own server tells of a file, behind the flags
OWN_FLAGS = _EVERY | _EXTENDED
OWN_DATA = struct.Struct(f">QIIIII{len(IDENTITY_HEAD)}sQQIQIIQI")


class FileIdentity:
    """The rest of a file's stat(2), which version 3 leaves out.

    ``device`` and ``inode`` name the file on its server; ``blocks`` are of 512 bytes. The
    nanoseconds belong to the seconds of the attributes; ``changed`` is (seconds, nanoseconds).
    """

    __slots__ = (
        "access_nanoseconds",
        "blocks",
        "changed",
        "device",
        "inode",
        "links",
        "modification_nanoseconds",
    )

    def __init__(
        self,
        device: int,
        inode: int,
        links: int,
        blocks: int,
        access_nanoseconds: int,
        modification_nanoseconds: int,
        changed: tuple[int, int],
    ) -> None:
        self.device = device
        self.inode = inode
        self.links = links
        self.blocks = blocks
        self.access_nanoseconds = access_nanoseconds
        self.modification_nanoseconds = modification_nanoseconds
        self.changed = changed

    def encode(self) -> bytes:
        """The data of an ATTRIBUTES pair."""
        return _IDENTITY_DATA.pack(
            self.device,
            self.inode,
            self.links,
            self.blocks,
            self.access_nanoseconds,
            self.modification_nanoseconds,
            *self.changed,
        )

    @classmethod
    def decode(cls, data: bytes) -> "FileIdentity":
        """The inverse of ``encode``; raises MalformedMessage."""
        if len(data) != _IDENTITY_DATA.size:
            raise MalformedMessage("a file's identity has a wrong length")
        device, inode, links, blocks, access, modification, *changed = _IDENTITY_DATA.unpack(data)
        seconds, nanoseconds = changed
        _check_nanoseconds(max(access, modification, nanoseconds))
        return cls(device, inode, links, blocks, access, modification, (seconds, nanoseconds))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileIdentity) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash((self.device, self.inode))


class Attributes:
    """A file's attributes (section 5); None is an attribute that was not given.

    ``owner`` is (uid, gid); ``times`` is (access, modification) in seconds since 1970;
    ``permissions`` is st_mode with the file's type.
    """

    __slots__ = ("identity", "nanoseconds", "owner", "permissions", "size", "times")

    def __init__(
        self,
        size: int | None = None,
        owner: tuple[int, int] | None = None,
        permissions: int | None = None,
        times: tuple[int, int] | None = None,
        nanoseconds: tuple[int, int] | None = None,
        identity: FileIdentity | None = None,
    ) -> None:
        self.size = size
        self.owner = owner
        self.permissions = permissions
        self.times = times
        self.nanoseconds = nanoseconds  # of ``times`` that are to be set
        self.identity = identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash((self.size, self.owner, self.permissions, self.times))

    def __repr__(self) -> str:
        given = ((name, getattr(self, name)) for name in self.__slots__)
        return f"Attributes({', '.join(f'{n}={v!r}' for n, v in given if v is not None)})"


def read_attributes(reader: Reader) -> Attributes:
    """The attributes that stand next; pairs with other names than ours are skipped."""
    flags = reader.uint32()
    if flags & ~(_EVERY | _EXTENDED):
        raise MalformedMessage("attributes with flags that version 3 does not have")
    # A listing may have 100,000 entries, each with the same fields.
    if flags == OWN_FLAGS and (fields := reader.peek(OWN_DATA)) is not None:
        size, user, group, permissions, accessed, modified, head, *rest = fields
        if head == IDENTITY_HEAD:
            reader.skip(OWN_DATA.size)
            device, inode, links, blocks, access, modification, seconds, nanoseconds = rest
            _check_nanoseconds(max(access, modification, nanoseconds))
            changed = seconds, nanoseconds
            return Attributes(
                size,
                (user, group),
                permissions,
                (accessed, modified),
                None,
                FileIdentity(device, inode, links, blocks, access, modification, changed),
            )
    attributes = Attributes()
    if flags & _EVERY == _EVERY and (fields := reader.peek(_EVERY_DATA)) is not None:
        reader.skip(_EVERY_DATA.size)
        attributes.size, user, group, attributes.permissions, accessed, modified = fields
        attributes.owner, attributes.times = (user, group), (accessed, modified)
    else:
        if flags & _SIZE:
            attributes.size = reader.uint64()
        if flags & _OWNER:
            attributes.owner = reader.uint32(), reader.uint32()
        if flags & _PERMISSIONS:
            attributes.permissions = reader.uint32()
        if flags & _TIMES:
            attributes.times = reader.uint32(), reader.uint32()
    if flags & _EXTENDED:
        count = reader.uint32()
        if count > _PAIRS_LIMIT:
            raise MalformedMessage("too many extended attributes")
        for _ in range(count):
            name, data = reader.string(), reader.string()
            if name == ATTRIBUTES.encode():
                attributes.identity = FileIdentity.decode(data)
            elif name == NANOSECONDS.encode():
                attributes.nanoseconds = _read_nanoseconds(data)
    return attributes


def _read_nanoseconds(data: bytes) -> tuple[int, int]:
    reader = Reader(data)
    nanoseconds = reader.uint32(), reader.uint32()
    reader.end()
    for part in nanoseconds:
        _check_nanoseconds(part)
    return nanoseconds


def _check_nanoseconds(part: int) -> None:
    if part >= 1_000_000_000:
        raise MalformedMessage("nanoseconds that are a second or more")


def write_attributes(attributes: Attributes) -> bytes:
    """The bytes of attributes."""
    size, owner, permissions, times = (
        attributes.size,
        attributes.owner,
        attributes.permissions,
        attributes.times,
    )
    pairs = []
    if attributes.identity is not None:
        pairs.append(write_string(ATTRIBUTES.encode()) + write_string(attributes.identity.encode()))
    if attributes.nanoseconds is not None:
        data = b"".join(map(write_uint32, attributes.nanoseconds))
        pairs.append(write_string(NANOSECONDS.encode()) + write_string(data))
    parts = [b""]
    flags = 0
    if size is not None:
        flags |= _SIZE
        parts.append(struct.pack(">Q", size))
    if owner is not None:
        flags |= _OWNER
        parts.append(struct.pack(">II", *owner))
    if permissions is not None:
        flags |= _PERMISSIONS
        parts.append(write_uint32(permissions))
    if times is not None:
        flags |= _TIMES
        parts.append(struct.pack(">II", *times))
    if pairs:
        flags |= _EXTENDED
        parts += [write_uint32(len(pairs)), *pairs]
    parts[0] = write_uint32(flags)
    return b"".join(parts)


class NamedFile:
    """An entry of NAME: the name, the line that ``ls -l`` would show, and the attributes."""

    __slots__ = ("attributes", "filename", "longname")

    def __init__(self, filename: bytes, longname: bytes, attributes: Attributes) -> None:
        self.filename = filename
        self.longname = longname
        self.attributes = attributes

    def encode(self) -> bytes:
        """The entry's bytes."""
        name = write_string(self.filename) + write_string(self.longname)
        return name + write_attributes(self.attributes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedFile) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.filename)


def _read_entry(reader: Reader) -> NamedFile:
    return NamedFile(reader.string(), reader.string(), read_attributes(reader))


def _read_entries(reader: Reader) -> tuple[NamedFile, ...]:
    """Entries behind their count; the packet's length limits them."""
    return tuple([_read_entry(reader) for _ in range(_read_count(reader, 12))])


def _read_count(reader: Reader, least: int) -> int:
    """The count of things that follow, each of ``least`` bytes or more."""
    count = reader.uint32()
    if count * least > reader.left:
        raise MalformedMessage("a count is larger than its message")
    return count


def _write_entries(entries: tuple[NamedFile, ...]) -> bytes:
    return write_uint32(len(entries)) + b"".join([entry.encode() for entry in entries])


def _read_pairs(reader: Reader) -> tuple[tuple[str, bytes], ...]:
    """Names and data of extensions up to the end of the packet."""
    pairs: list[tuple[str, bytes]] = []
    while not reader.at_end:
        if len(pairs) == _PAIRS_LIMIT:
            raise MalformedMessage("too many extensions")
        pairs.append((reader.shown(), reader.string()))
    return tuple(pairs)


def _write_pairs(pairs: tuple[tuple[str, bytes], ...]) -> bytes:
    return b"".join([write_string(name.encode()) + write_string(data) for name, data in pairs])


def _read_runs(reader: Reader) -> tuple[tuple[int, int], ...]:
    return tuple([(reader.uint64(), reader.uint64()) for _ in range(_read_count(reader, 16))])


def _write_runs(runs: tuple[tuple[int, int], ...]) -> bytes:
    return write_uint32(len(runs)) + b"".join([struct.pack(">QQ", *run) for run in runs])


def _read_words(reader: Reader) -> tuple[bytes, ...]:
    return tuple([reader.string() for _ in range(_read_count(reader, 4))])


def _write_words(words: tuple[bytes, ...]) -> bytes:
    return write_uint32(len(words)) + b"".join(map(write_string, words))


if TYPE_CHECKING:
    Attrs = Attributes
    Entries = tuple[NamedFile, ...]
    Pairs = tuple[tuple[str, bytes], ...]
    Runs = tuple[tuple[int, int], ...]
    Words = tuple[bytes, ...]
else:
    Attrs = Field(read_attributes, write_attributes)
    Entries = Field(_read_entries, _write_entries)
    Pairs = Field(_read_pairs, _write_pairs)
    Runs = Field(_read_runs, _write_runs)
    Words = Field(_read_words, _write_words)


# -- the draft's packets -------------------------------------------------------------------


class Init(Message, number=1):
    version: UInt32
    extensions: Rest = b""  # not looked at; a version of 4 and more may have its own here


class Version(Message, number=2):
    version: UInt32
    extensions: Pairs = ()


class Open(Message, number=3):
    id: UInt32
    filename: String
    pflags: UInt32
    attrs: Attrs


class Close(Message, number=4):
    id: UInt32
    handle: String


class Read(Message, number=5):
    id: UInt32
    handle: String
    offset: UInt64
    length: UInt32


class Write(Message, number=6):
    id: UInt32
    handle: String
    offset: UInt64
    data: String


class LStat(Message, number=7):
    id: UInt32
    path: String


class FStat(Message, number=8):
    id: UInt32
    handle: String


class SetStat(Message, number=9):
    id: UInt32
    path: String
    attrs: Attrs


class FSetStat(Message, number=10):
    id: UInt32
    handle: String
    attrs: Attrs


class OpenDir(Message, number=11):
    id: UInt32
    path: String


class ReadDir(Message, number=12):
    id: UInt32
    handle: String


class Remove(Message, number=13):
    id: UInt32
    filename: String


class MkDir(Message, number=14):
    id: UInt32
    path: String
    attrs: Attrs


class RmDir(Message, number=15):
    id: UInt32
    path: String


class RealPath(Message, number=16):
    id: UInt32
    path: String


class Stat(Message, number=17):
    id: UInt32
    path: String


class Rename(Message, number=18):
    id: UInt32
    oldpath: String
    newpath: String


class ReadLink(Message, number=19):
    id: UInt32
    path: String


class SymLink(Message, number=20):
    """The order of OpenSSH and most other programs, not the draft's."""

    id: UInt32
    targetpath: String
    linkpath: String


class Status(Message, number=101):
    """``language_tag`` may be missing; ERRNO adds the error's number behind it."""

    id: UInt32
    code: UInt32
    message: Shown = ""
    rest: Rest = b"\0\0\0\0"


class Handle(Message, number=102):
    id: UInt32
    handle: String


class Data(Message, number=103):
    id: UInt32
    data: String


class Names(Message, number=104):
    """SSH_FXP_NAME."""

    id: UInt32
    entries: Entries


class AttrsReply(Message, number=105):
    """SSH_FXP_ATTRS."""

    id: UInt32
    attrs: Attrs


class Extended(Message, number=200):
    id: UInt32
    request: Name
    data: Rest = b""


class ExtendedReply(Message, number=201):
    id: UInt32
    data: Rest = b""


# -- the data of EXTENDED and EXTENDED_REPLY -----------------------------------------------


class OnePath(Record):
    """STATVFS, EXPAND_PATH, HOME_DIRECTORY (a user's name), LIST_XATTRS and WATCH."""

    path: String


class TwoPaths(Record):
    """POSIX_RENAME and HARDLINK."""

    oldpath: String
    newpath: String


class OneHandle(Record):
    """FSTATVFS and FSYNC."""

    handle: String


class PathAttributes(Record):
    """LSETSTAT."""

    path: String
    attrs: Attrs


class CopyData(Record):
    """Copies ``length`` bytes between two open files, or up to the end if it is 0."""

    read_handle: String
    read_offset: UInt64
    length: UInt64
    write_handle: String
    write_offset: UInt64


class Identifiers(Record):
    """USERS_GROUPS_BY_ID: two strings of numbers, or of names in the reply."""

    users: String
    groups: String


class FileSystem(Record):
    """The reply to STATVFS and FSTATVFS; the fields are those of statvfs(3)."""

    f_bsize: UInt64
    f_frsize: UInt64
    f_blocks: UInt64
    f_bfree: UInt64
    f_bavail: UInt64
    f_files: UInt64
    f_ffree: UInt64
    f_favail: UInt64
    f_fsid: UInt64
    f_flag: UInt64  # bit 0: read-only, bit 1: no setuid
    f_namemax: UInt64


class Limits(Record):
    """The reply to LIMITS; bytes, and open handles; 0 is unknown."""

    max_packet_length: UInt64
    max_read_length: UInt64
    max_write_length: UInt64
    max_open_handles: UInt64


class ReadFile(Record):
    """Opens a file, reads up to ``length`` bytes from its beginning, and closes it if that is all.

    Replied by FileContent.
    """

    path: String
    length: UInt32


class FileContent(Record):
    """The reply to ReadFile: ``handle`` is empty if ``data`` is the whole file."""

    attrs: Attrs
    handle: String
    data: String


class WriteFile(Record):
    """Does as OPEN, WRITE at 0, FSETSTAT (of those attributes that are given) and CLOSE do.

    Replied by the file's attributes, as ATTRS.
    """

    path: String
    pflags: UInt32
    attrs: Attrs  # of OPEN
    data: String
    set_attrs: Attrs  # of FSETSTAT


class LookupTree(Record):
    """Lists a directory, and those below it as long as the reply has room.

    ``depth`` is how many levels are listed, 1 for the directory alone. Replied by Tree.
    """

    path: String
    depth: UInt32
    entries: UInt32  # at most so many entries


class Listing(Record):
    """One directory of a Tree: a path from the root of the request, and its entries.

    With ``is_complete`` false, the directory has more entries than are here.
    """

    path: String
    is_complete: Boolean
    entries: Entries


def _read_listings(reader: Reader) -> tuple[Listing, ...]:
    return tuple([Listing.read(reader) for _ in range(_read_count(reader, 9))])


def _write_listings(listings: tuple[Listing, ...]) -> bytes:
    return write_uint32(len(listings)) + b"".join([each.encode() for each in listings])


if TYPE_CHECKING:
    Listings = tuple[Listing, ...]
else:
    Listings = Field(_read_listings, _write_listings)


class Tree(Record):
    """The reply to LookupTree: the directory itself, then others, parents before children.

    A directory that has an entry here and no listing was left out; the client asks for it.
    """

    listings: Listings


class FindExtents(Record):
    """Asks where a file has data, from ``offset`` on; replied by Extents."""

    handle: String
    offset: UInt64


class Extents(Record):
    """Runs of (offset, length) that hold data; what lies between them reads as zeros.

    ``is_complete``: nothing but zeros follows the last run.
    """

    is_complete: Boolean
    runs: Runs


class WatchReply(Record):
    """The reply to WATCH, and the data of UNWATCH.

    It is the number by which CHANGES names a watched directory, the same for one that is watched
    already.
    """

    watch: UInt32


class Change(Record):
    """A name in a watched directory that was made, changed or removed; '' is the directory."""

    watch: UInt32
    name: String


def _read_changes(reader: Reader) -> tuple[Change, ...]:
    return tuple([Change.read(reader) for _ in range(_read_count(reader, 8))])


def _write_changes(changes: tuple[Change, ...]) -> bytes:
    return write_uint32(len(changes)) + b"".join([each.encode() for each in changes])


if TYPE_CHECKING:
    ChangeList = tuple[Change, ...]
else:
    ChangeList = Field(_read_changes, _write_changes)


class ChangesReply(Record):
    """The reply to CHANGES, which is sent once there is a change.

    ``lost``: changes were lost, so that nothing known of any watched directory holds.
    """

    lost: Boolean
    changes: ChangeList


# The types of a lock. The last two take none: they are refused as one of that type would be now.
LOCK_SHARED = 0
LOCK_EXCLUSIVE = 1
LOCK_NONE = 2
LOCK_TEST_SHARED = 3
LOCK_TEST_EXCLUSIVE = 4


class Lock(Record):
    """A lock of fcntl(2) that belongs to the handle; ``length`` 0 is up to the end.

    With ``waits``, the reply comes once the lock is held. CLOSE gives it up.
    """

    handle: String
    type: UInt32
    offset: UInt64
    length: UInt64
    waits: Boolean


class NamedXattr(Record):
    """GET_XATTR and REMOVE_XATTR; of a symbolic link itself, not of its target."""

    path: String
    name: String


class SetXattr(Record):
    """``flags`` as for setxattr(2): 1 must not exist, 2 must exist."""

    path: String
    name: String
    value: String
    flags: UInt32


class XattrValue(Record):
    """The reply to GET_XATTR."""

    value: String


class XattrNames(Record):
    """The reply to LIST_XATTRS."""

    names: Words


# The hot packets, packed by hand: length, type, id, length of the handle ...
# tests/unit/sftp/test_replies.py shows that they equal the records above.
HEADER = struct.Struct(">IBI")
DATA_HEADER = struct.Struct(">IBII")  # ... and length of the data
# Behind the length, with a handle of four bytes as our server's: type, id, length of the handle,
# handle, offset, and the length to read or that of the data, which follows.
READ_REQUEST = struct.Struct(">BIIIQI")
WRITE_REQUEST = READ_REQUEST
