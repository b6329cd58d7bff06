"""Directories: the entries of READDIR, as many as a reply holds, and trees of them."""

from __future__ import annotations

import errno
import os
import stat
import time

from ..errors import system_error
from ..wire.sftp import PACKET_LIMIT
from .open_files import OpenFolder

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pack = Callable[[os.stat_result], bytes]

# Our own choices
ROOM = PACKET_LIMIT - 1024  # bytes of entries in one reply
PLAIN_ROOM = 96 << 10  # of a client that does not know us: sshfs takes 128 KiB
CACHED = 4096  # names of users and groups, and texts of times
NO_ATTRIBUTES = b"\0\0\0\0"  # of an entry that vanished, or whose attributes may not be read

_HALF_YEAR = 365 * 24 * 60 * 60 // 2  # seconds; as OpenSSH's ls_file


class LongNames:
    """The lines that ``ls -l`` would show, as OpenSSH's server makes them."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self._times: dict[int, str] = {}
        self._now = 0.0

    def begin(self) -> None:
        """Reads the clock, for all lines of one reply."""
        self._now = time.time()
        self._times.clear()

    def line(self, name: bytes, status: os.stat_result) -> bytes:
        """Returns the line of one file."""
        mode, links, uid, gid, size = status[0], status[3], status[4], status[5], status[6]
        modified = int(status[8])
        user = self._users.get(uid) or self._user(uid)
        group = self._groups.get(gid) or self._group(gid)
        when = self._times.get(modified // 60) or self._time(modified)
        text = f"{stat.filemode(mode)}  {links:3} {user:8} {group:8} {size:8} {when} "
        return text.encode(errors="surrogateescape") + name

    def _user(self, uid: int) -> str:
        import pwd

        try:
            found = pwd.getpwuid(uid).pw_name
        except KeyError:
            found = str(uid)
        return _remember(self._users, uid, found)

    def _group(self, gid: int) -> str:
        import grp

        try:
            found = grp.getgrgid(gid).gr_name
        except KeyError:
            found = str(gid)
        return _remember(self._groups, gid, found)

    def _time(self, modified: int) -> str:
        is_recent = self._now - _HALF_YEAR < modified < self._now + _HALF_YEAR
        try:
            parts = time.localtime(modified)
        except (OverflowError, OSError, ValueError):  # a year that the system does not know
            return "?"
        text = time.strftime("%b %e %H:%M" if is_recent else "%b %e  %Y", parts)
        return _remember(self._times, modified // 60, text)


class NoLongNames(LongNames):
    """For a client that gets everything else: empty lines, which it makes itself."""

    def line(self, name: bytes, status: os.stat_result) -> bytes:
        return b""


def _remember(known: dict[int, str], number: int, text: str) -> str:
    if len(known) >= CACHED:
        known.clear()
    known[number] = text
    return text


def pack_entry(name: bytes, longname: bytes, attributes: bytes) -> bytes:
    """Returns an entry of NAME; equal to NamedFile.encode."""
    return b"".join(
        (
            len(name).to_bytes(4, "big"),
            name,
            len(longname).to_bytes(4, "big"),
            longname,
            attributes,
        )
    )


def fill(folder: OpenFolder, names: LongNames, pack: Pack, room: int) -> tuple[int, bytes]:
    """Returns the next entries of a directory, and their count; 0 at its end."""
    names.begin()
    packed = []
    left = room
    while True:
        entry, folder.kept = folder.kept or _next(folder, names, pack), b""
        if not entry:
            break
        left -= len(entry)
        if left < 0:
            folder.kept = entry
            break
        packed.append(entry)
    return len(packed), b"".join(packed)


def _next(folder: OpenFolder, names: LongNames, pack: Pack) -> bytes:
    """Returns the next entry, '.' and '..' first; empty at the end."""
    if folder.dots:
        name = folder.dots.pop()
        try:
            status = os.lstat(folder.name + b"/" + name)
        except OSError:
            return pack_entry(name, name, NO_ATTRIBUTES)
        return pack_entry(name, names.line(name, status), pack(status))
    for entry in folder.entries:
        name = entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # it vanished, or may not be looked at; the others are still listed
            return pack_entry(name, name, NO_ATTRIBUTES)
        return pack_entry(name, names.line(name, status), pack(status))
    return b""


def tree(path: bytes, depth: int, limit: int, pack: Pack) -> tuple[int, bytes]:
    """Returns the packed Listings of a directory and of those below it, and their count.

    At most ``limit`` entries, and what one reply holds. Directories are read level by level, so
    that near ones come first. Raises OSError if the first one cannot be read; others that cannot
    be are left out.
    """
    listings: list[bytes] = []
    left = ROOM
    # path in the file system and from the root, level, and device and inode that it must have
    waiting: list[tuple[bytes, bytes, int, tuple[int, int] | None]] = [(path, b"", 1, None)]
    for folder, relative, level, identity in waiting:  # which grows meanwhile
        try:
            entries = _open(folder, identity)
        except OSError:
            if identity is None:
                raise
            continue
        with entries:
            head = len(relative).to_bytes(4, "big") + relative
            left -= len(head) + 5
            packed = []
            is_complete = True
            below = []
            for entry in entries:
                name = os.fsencode(entry.name)
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    one = pack_entry(name, b"", NO_ATTRIBUTES)
                    is_folder = False
                else:
                    one = pack_entry(name, b"", pack(status))
                    is_folder = stat.S_ISDIR(status.st_mode)
                if limit == 0 or left < len(one):
                    is_complete = False
                    break
                limit -= 1
                left -= len(one)
                packed.append(one)
                if is_folder and level < depth:
                    deeper = name if not relative else relative + b"/" + name
                    below.append((deeper, (status.st_dev, status.st_ino)))
        if left < 0 or (listings and not packed and not is_complete):
            break
        flag = b"\1" if is_complete else b"\0"
        listings.append(head + flag + len(packed).to_bytes(4, "big") + b"".join(packed))
        if not is_complete:
            break
        waiting.extend(
            (os.path.join(path, deeper), deeper, level + 1, found) for deeper, found in below
        )
    return len(listings), b"".join(listings)


class _Entries:
    """The entries of a directory's descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._entries = os.scandir(descriptor)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()
        os.close(self._descriptor)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._entries


def _open(folder: bytes, identity: tuple[int, int] | None) -> _Entries:
    """Opens a directory; one below the root must be that of ``identity``, not a link by now."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(folder, flags if identity is None else flags | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if identity not in (None, (status.st_dev, status.st_ino)):
            raise system_error(errno.ENOENT)
        return _Entries(descriptor)
    except OSError:
        os.close(descriptor)
        raise
