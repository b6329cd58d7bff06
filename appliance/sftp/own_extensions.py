"""The handlers of Culvert's own extensions; wire/sftp.py says what each of them is."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import system_error
from ..wire import sftp
from ..wire.codec import write_string
from . import listing
from .failures import unsupported
from .file_attributes import change, mode_of
from .journal import INFO
from .open_files import OpenFile
from .openssh_extensions import NoFields
from .requests import flags_of, write_all
from .session import Row, Session

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from .watches import Watches

# Our own choices
_FILE_ROOM = sftp.DATA_LIMIT - 1024  # bytes of a file in a reply, beside its attributes
_RUNS_LIMIT = 8192  # of a file's data in one reply
_SET_FLAGS = (0, os.XATTR_CREATE, os.XATTR_REPLACE)


def _attributes(session: Session, request: int, asked: NoFields) -> None:
    session.tell_identities()
    session.replies.ok(request)


def _errno(session: Session, request: int, asked: NoFields) -> None:
    session.replies.tells_errno = True
    session.replies.ok(request)


def _read_file(session: Session, request: int, asked: sftp.ReadFile) -> None:
    session.journal.log(INFO, "read-file %s", asked.path)
    session.files.check_limit()
    file = OpenFile(asked.path, session.open(asked.path, os.O_RDONLY, 0), os.O_RDONLY)
    try:
        status = os.fstat(file.descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise system_error(errno.EISDIR)
        data, is_whole = _beginning(file.descriptor, min(asked.length, _FILE_ROOM))
    except OSError:
        file.close()
        raise
    file.read += len(data)
    handle = b""
    if is_whole:
        file.close()
    else:
        handle = session.files.add(file).to_bytes(4, "big")
    words = (handle, data)
    reply = b"".join([session.pack(status), *map(write_string, words)])
    session.replies.extended(request, reply)


def _beginning(descriptor: int, length: int) -> tuple[bytes, bool]:
    """The first bytes of a file, and whether they are all: a short read is not the end."""
    data = b""
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), len(data))
        if not more:
            return data, True
        data += more
    return data, not os.pread(descriptor, 1, len(data))


def _write_file(session: Session, request: int, asked: sftp.WriteFile) -> None:
    """Writes a file; one that this request has made is removed again if it fails."""
    session.journal.log(INFO, "write-file %s", asked.path)
    flags = flags_of(asked.pflags)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise system_error(errno.EINVAL)
    descriptor, is_new = _made(session, asked.path, flags, mode_of(asked.attrs, 0o666))
    try:
        try:
            write_all(descriptor, memoryview(asked.data), 0)
            session.change(asked.path, asked.set_attrs, lambda each: change(descriptor, each))
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if is_new:
            os.unlink(asked.path)
        raise
    session.replies.attributes(request, session.pack(status))


def _made(session: Session, path: bytes, flags: int, mode: int) -> tuple[int, bool]:
    """A descriptor, and whether the file was made for it."""
    if flags & os.O_CREAT:
        try:
            return session.open(path, flags | os.O_EXCL, mode), True
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
    return session.open(path, flags, mode), False


def _lookup_tree(session: Session, request: int, asked: sftp.LookupTree) -> None:
    session.journal.log(INFO, "lookup-tree %s depth %d", asked.path, asked.depth)
    count, listings = listing.tree(asked.path, asked.depth, asked.entries, session.pack)
    session.replies.extended(request, count.to_bytes(4, "big") + listings)


def _extents(session: Session, request: int, asked: sftp.FindExtents) -> None:
    descriptor = session.files.file(asked.handle).descriptor
    runs: list[tuple[int, int]] = []
    end, is_complete = asked.offset, False
    while len(runs) < _RUNS_LIMIT:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as reason:
            if reason.errno != errno.ENXIO:
                raise
            is_complete = True
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        runs.append((start, end - start))
    session.replies.extended(request, sftp.Extents(is_complete, tuple(runs)).encode())


def _watches(session: Session) -> Watches:
    if session.watches is None:
        try:
            from .watches import Watches
        except (ImportError, OSError, AttributeError):  # a Python without ctypes, an old C library
            raise unsupported() from None
        session.watches = Watches(session.replies)
    return session.watches


def _watch(session: Session, request: int, asked: sftp.OnePath) -> None:
    number = _watches(session).add(asked.path)
    session.replies.extended(request, sftp.WatchReply(number).encode())


def _unwatch(session: Session, request: int, asked: sftp.WatchReply) -> None:
    _watches(session).remove(asked.watch)
    session.replies.ok(request)


def _changes(session: Session, request: int, asked: NoFields) -> None:
    _watches(session).ask(request)


def _lock(session: Session, request: int, asked: sftp.Lock) -> None:
    session.locks.ask(request, asked)


def _get_xattr(session: Session, request: int, asked: sftp.NamedXattr) -> None:
    value = os.getxattr(asked.path, asked.name, follow_symlinks=False)
    session.replies.extended(request, sftp.XattrValue(value).encode())


def _set_xattr(session: Session, request: int, asked: sftp.SetXattr) -> None:
    session.journal.log(INFO, "set-xattr %s name %s", asked.path, asked.name)
    if asked.flags not in _SET_FLAGS:
        raise system_error(errno.EINVAL)
    os.setxattr(asked.path, asked.name, asked.value, asked.flags, follow_symlinks=False)
    session.replies.ok(request)


def _list_xattrs(session: Session, request: int, asked: sftp.OnePath) -> None:
    names = os.listxattr(asked.path, follow_symlinks=False)
    reply = sftp.XattrNames(tuple(map(os.fsencode, names)))
    session.replies.extended(request, reply.encode())


def _remove_xattr(session: Session, request: int, asked: sftp.NamedXattr) -> None:
    session.journal.log(INFO, "remove-xattr %s name %s", asked.path, asked.name)
    os.removexattr(asked.path, asked.name, follow_symlinks=False)
    session.replies.ok(request)


_XATTR_PATHS = ("path", "name")

# ``spares``: where -P or -p forbids one of these requests, the extension is forbidden as well.
EXTENSIONS = {
    sftp.ATTRIBUTES: Row("attributes", NoFields, _attributes, spares=("stat",)),
    sftp.ERRNO: Row("errno", NoFields, _errno, spares=("stat",)),
    sftp.READ_FILE: Row(
        "read-file", sftp.ReadFile, _read_file, paths=("path",), spares=("open", "read", "close")
    ),
    sftp.WRITE_FILE: Row(
        "write-file",
        sftp.WriteFile,
        _write_file,
        paths=("path",),
        writes=True,
        spares=("open", "write", "fsetstat", "close"),
    ),
    sftp.LOOKUP_TREE: Row(
        "lookup-tree",
        sftp.LookupTree,
        _lookup_tree,
        paths=("path",),
        spares=("opendir", "readdir", "close"),
    ),
    sftp.EXTENTS: Row("extents", sftp.FindExtents, _extents, spares=("read",)),
    sftp.WATCH: Row("watch", sftp.OnePath, _watch, paths=("path",), spares=("opendir", "readdir")),
    sftp.UNWATCH: Row("unwatch", sftp.WatchReply, _unwatch, spares=("opendir", "readdir")),
    sftp.CHANGES: Row("changes", NoFields, _changes, spares=("opendir", "readdir")),
    sftp.LOCK: Row("lock", sftp.Lock, _lock, spares=("open",)),
    sftp.GET_XATTR: Row(
        "get-xattr", sftp.NamedXattr, _get_xattr, paths=_XATTR_PATHS, spares=("stat",)
    ),
    sftp.SET_XATTR: Row(
        "set-xattr", sftp.SetXattr, _set_xattr, paths=_XATTR_PATHS, writes=True, spares=("setstat",)
    ),
    sftp.LIST_XATTRS: Row(
        "list-xattrs", sftp.OnePath, _list_xattrs, paths=("path",), spares=("stat",)
    ),
    sftp.REMOVE_XATTR: Row(
        "remove-xattr",
        sftp.NamedXattr,
        _remove_xattr,
        paths=_XATTR_PATHS,
        writes=True,
        spares=("setstat",),
    ),
}
