"""The handlers of OpenSSH's extensions: its PROTOCOL, section 4."""

from __future__ import annotations

import errno
import os
import stat
import struct

from ..errors import MalformedMessage, system_error
from ..wire import sftp
from ..wire.codec import Record, write_string
from .failures import Refused
from .file_attributes import change_itself
from .journal import DEBUG, INFO
from .open_files import OpenFile, limit
from .session import Row, Session, resolved

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

# Our own choices
_COPY_CHUNK = 64 << 20  # bytes that one copy_file_range(2) is asked for
_COPY_BUFFER = 1 << 20  # bytes, where the kernel cannot copy
_IDENTIFIERS_LIMIT = 8192  # users or groups of one request

# What copy_file_range(2) says of files that it does not copy
_NO_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_UINT64_LIMIT = 1 << 64


class NoFields(Record):
    """The data of an extension that has none."""


def _posix_rename(session: Session, request: int, asked: sftp.TwoPaths) -> None:
    session.journal.log(INFO, "posix-rename old %s new %s", asked.oldpath, asked.newpath)
    os.rename(asked.oldpath, asked.newpath)
    session.replies.ok(request)


def _statvfs(session: Session, request: int, asked: sftp.OnePath) -> None:
    session.journal.log(INFO, "statvfs %s", asked.path)
    session.replies.extended(request, _file_system(os.statvfs(asked.path)))


def _fstatvfs(session: Session, request: int, asked: sftp.OneHandle) -> None:
    opened = session.files.find(asked.handle)
    session.journal.log(INFO, "fstatvfs %s", opened.name)
    file = opened.descriptor if isinstance(opened, OpenFile) else opened.name
    session.replies.extended(request, _file_system(os.statvfs(file)))


def _file_system(found: os.statvfs_result) -> bytes:
    flags = (1 if found.f_flag & os.ST_RDONLY else 0) | (2 if found.f_flag & os.ST_NOSUID else 0)
    fields = (
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid % _UINT64_LIMIT,
        flags,
        found.f_namemax,
    )
    return sftp.FileSystem(*fields).encode()


def _hardlink(session: Session, request: int, asked: sftp.TwoPaths) -> None:
    session.journal.log(INFO, "hardlink old %s new %s", asked.oldpath, asked.newpath)
    os.link(asked.oldpath, asked.newpath)
    session.replies.ok(request)


def _fsync(session: Session, request: int, asked: sftp.OneHandle) -> None:
    file = session.files.file(asked.handle)
    session.journal.log(INFO, "fsync %s", file.name)
    os.fsync(file.descriptor)
    session.replies.ok(request)


def _lsetstat(session: Session, request: int, asked: sftp.PathAttributes) -> None:
    path = asked.path
    session.change(path, asked.attrs, lambda attributes: change_itself(path, attributes))
    session.replies.ok(request)


def _limits(session: Session, request: int, asked: NoFields) -> None:
    reply = sftp.Limits(sftp.PACKET_LIMIT, sftp.DATA_LIMIT, sftp.DATA_LIMIT, limit())
    session.replies.extended(request, reply.encode())


def _expand_path(session: Session, request: int, asked: sftp.OnePath) -> None:
    path = asked.path
    session.journal.log(DEBUG, "expand %s", path)
    if path.startswith(b"~"):
        user, _, rest = path[1:].partition(b"/")
        path = os.path.join(_home_of(session, user), rest)
    elif not path.startswith(b"/"):
        path = os.path.join(os.getcwdb(), path)
    session.replies.name(request, resolved(path))


def _home_directory(session: Session, request: int, asked: sftp.OnePath) -> None:
    session.journal.log(DEBUG, "home-directory %s", asked.path)
    session.replies.name(request, _home_of(session, asked.path))


def _home_of(session: Session, user: bytes) -> bytes:
    """The home of a user, '' for one's own; raises Refused if there is no such user."""
    if not user:
        return session.settings.home
    import pwd

    try:
        return os.fsencode(pwd.getpwnam(os.fsdecode(user)).pw_dir)
    except KeyError:
        raise Refused(sftp.FAILURE, "No such user", errno.ENOENT) from None


def _copy_data(session: Session, request: int, asked: sftp.CopyData) -> None:
    source = session.files.file(asked.read_handle)
    target = session.files.file(asked.write_handle)
    session.journal.log(
        INFO,
        "copy-data from %s (handle offset %d, length %d) to %s (offset %d)",
        source.name,
        asked.read_offset,
        asked.length,
        target.name,
        asked.write_offset,
    )
    status = os.fstat(source.descriptor)
    if not stat.S_ISREG(status.st_mode):  # one without an end would fill the disk
        raise system_error(errno.EINVAL)
    length = asked.length or (1 << 63)
    if os.path.samestat(status, os.fstat(target.descriptor)):
        length = min(length, max(0, status.st_size - asked.read_offset))  # which grows meanwhile
        if abs(asked.read_offset - asked.write_offset) < length:
            raise system_error(errno.EINVAL)
    _copy(source, target, asked.read_offset, asked.write_offset, length)
    session.replies.ok(request)


def _copy(source: OpenFile, target: OpenFile, read: int, write: int, length: int) -> None:
    """Copies up to ``length`` bytes, in the kernel if it can; ends at the end of ``source``."""
    in_kernel = not target.appends
    while length:
        if in_kernel:
            try:
                count = os.copy_file_range(
                    source.descriptor, target.descriptor, min(length, _COPY_CHUNK), read, write
                )
            except OSError as reason:
                if reason.errno not in _NO_COPY:
                    raise
                count = 0
            if not count:  # the end, or a file of /proc, which has no size
                in_kernel = False
                continue
        else:
            data = os.pread(source.descriptor, min(length, _COPY_BUFFER), read)
            if not data:
                return
            count = os.pwrite(target.descriptor, data, write)
        read += count
        write += count
        length -= count
        source.read += count
        target.written += count


def _users_groups_by_id(session: Session, request: int, asked: sftp.Identifiers) -> None:
    import grp
    import pwd

    users = _names(asked.users, lambda number: pwd.getpwuid(number).pw_name)
    groups = _names(asked.groups, lambda number: grp.getgrgid(number).gr_name)
    if len(users) + len(groups) > sftp.DATA_LIMIT:
        raise system_error(errno.E2BIG)
    session.replies.extended(request, sftp.Identifiers(users, groups).encode())


def _names(numbers: bytes, find: Callable[[int], str]) -> bytes:
    """The names of these numbers, each a string; an empty one stands for an unknown number."""
    if len(numbers) % 4:
        raise MalformedMessage("a list of numbers has a wrong length")
    if len(numbers) // 4 > _IDENTIFIERS_LIMIT:
        raise system_error(errno.E2BIG)
    names = []
    for (number,) in struct.iter_unpack(">I", numbers):
        try:
            names.append(os.fsencode(find(number)))
        except (KeyError, OverflowError):
            names.append(b"")
    return b"".join(map(write_string, names))


EXTENSIONS = {
    sftp.POSIX_RENAME: Row(
        "posix-rename", sftp.TwoPaths, _posix_rename, paths=("oldpath", "newpath"), writes=True
    ),
    sftp.STATVFS: Row("statvfs", sftp.OnePath, _statvfs, paths=("path",)),
    sftp.FSTATVFS: Row("fstatvfs", sftp.OneHandle, _fstatvfs),
    sftp.HARDLINK: Row(
        "hardlink", sftp.TwoPaths, _hardlink, paths=("oldpath", "newpath"), writes=True
    ),
    sftp.FSYNC: Row("fsync", sftp.OneHandle, _fsync, writes=True),
    sftp.LSETSTAT: Row("lsetstat", sftp.PathAttributes, _lsetstat, paths=("path",), writes=True),
    sftp.LIMITS: Row("limits", NoFields, _limits),
    sftp.EXPAND_PATH: Row("expand-path", sftp.OnePath, _expand_path, paths=("path",)),
    sftp.COPY_DATA: Row("copy-data", sftp.CopyData, _copy_data, writes=True),
    sftp.HOME_DIRECTORY: Row("home-directory", sftp.OnePath, _home_directory, paths=("path",)),
    sftp.USERS_GROUPS_BY_ID: Row("users-groups-by-id", sftp.Identifiers, _users_groups_by_id),
}
