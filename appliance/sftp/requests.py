"""The handlers of the draft's requests: draft-ietf-secsh-filexfer-02, section 6."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import MalformedMessage, system_error
from ..wire import sftp
from ..wire.sftp import DATA_LIMIT, READ_REQUEST, WRITE_REQUEST
from . import listing
from .file_attributes import change, mode_of
from .journal import DEBUG, INFO
from .open_files import Open, OpenFile, OpenFolder
from .session import Row, Session, resolved

# What link(2) says where a file system, or a rule against links to others' files, has none
_NO_LINKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EPERM)


def flags_of(pflags: int) -> int:
    """Returns the flags of open(2)."""
    both = pflags & (sftp.READ | sftp.WRITE)
    if both == sftp.READ | sftp.WRITE:
        flags = os.O_RDWR
    else:
        flags = os.O_WRONLY if both == sftp.WRITE else os.O_RDONLY
    if both & sftp.WRITE and pflags & sftp.APPEND:
        flags |= os.O_APPEND
    for given, flag in (
        (sftp.CREATE, os.O_CREAT),
        (sftp.TRUNCATE, os.O_TRUNC),
        (sftp.EXCLUSIVE, os.O_EXCL),
    ):
        if pflags & given:
            flags |= flag
    return flags


def _flag_words(pflags: int) -> str:
    words = (
        (sftp.READ, "READ"),
        (sftp.WRITE, "WRITE"),
        (sftp.APPEND, "APPEND"),
        (sftp.CREATE, "CREATE"),
        (sftp.TRUNCATE, "TRUNCATE"),
        (sftp.EXCLUSIVE, "EXCL"),
    )
    return ",".join(word for flag, word in words if pflags & flag)


def _open(session: Session, request: int, asked: sftp.Open) -> None:
    mode = mode_of(asked.attrs, 0o666)
    session.journal.log(
        INFO, "open %s flags %s mode 0%o", asked.filename, _flag_words(asked.pflags), mode
    )
    session.files.check_limit()
    flags = flags_of(asked.pflags)
    descriptor = session.open(asked.filename, flags, mode)
    opened = OpenFile(asked.filename, descriptor, flags)
    session.replies.handle(request, session.files.add(opened))


def _close(session: Session, request: int, asked: sftp.Close) -> None:
    opened = session.files.remove(asked.handle)
    log_close(session, "", opened)
    opened.close()
    session.replies.ok(request)
    session.locks.retry()  # one that waits for this handle is answered


def log_close(session: Session, how: str, opened: Open) -> None:
    """Logs that a handle is closed, and what went through it."""
    if isinstance(opened, OpenFile):
        text = how + "close %s bytes read %d written %d"
        session.journal.log(INFO, text, opened.name, opened.read, opened.written)
    else:
        session.journal.log(INFO, how + "closedir %s", opened.name)


def _read(session: Session, request: int, packet: memoryview) -> None:
    width = 0
    if len(packet) == READ_REQUEST.size:
        _, _, width, handle, offset, length = READ_REQUEST.unpack(packet)
    if width == 4:
        file = session.files.file(handle)
    else:
        asked = sftp.Read.decode(packet)
        file, offset, length = session.files.file(asked.handle), asked.offset, asked.length
    descriptor = file.descriptor
    file.read += session.replies.data(
        request, lambda room: os.preadv(descriptor, (room,), offset), min(length, DATA_LIMIT)
    )


def _write(session: Session, request: int, packet: memoryview) -> None:
    width = 0
    if len(packet) >= WRITE_REQUEST.size:
        _, _, width, handle, offset, length = WRITE_REQUEST.unpack_from(packet)
    if width == 4:
        # rclone 1.60 sends its whole buffer behind a shorter length
        data = packet[WRITE_REQUEST.size :][:length]
        if length != len(data):
            raise MalformedMessage("the data is shorter than it says")
        file = session.files.file(handle)
    else:
        asked = sftp.Write.decode(packet)
        file, offset, data = session.files.file(asked.handle), asked.offset, memoryview(asked.data)
    write_all(file.descriptor, data, offset)  # with O_APPEND, Linux writes at the end
    file.written += len(data)
    session.replies.ok(request)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all bytes; raises OSError."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data = data[count:]
        offset += count


def _stat(session: Session, request: int, asked: sftp.Stat) -> None:
    session.journal.log(DEBUG, "stat name %s", asked.path)
    session.replies.attributes(request, session.pack(os.stat(asked.path)))


def _lstat(session: Session, request: int, asked: sftp.LStat) -> None:
    session.journal.log(DEBUG, "lstat name %s", asked.path)
    session.replies.attributes(request, session.pack(os.lstat(asked.path)))


def _fstat(session: Session, request: int, asked: sftp.FStat) -> None:
    opened = session.files.find(asked.handle)
    if isinstance(opened, OpenFile):
        status = os.fstat(opened.descriptor)
    else:
        status = os.stat(opened.name)
    session.replies.attributes(request, session.pack(status))


def _setstat(session: Session, request: int, asked: sftp.SetStat) -> None:
    path = asked.path
    session.change(path, asked.attrs, lambda attributes: change(path, attributes))
    session.replies.ok(request)


def _fsetstat(session: Session, request: int, asked: sftp.FSetStat) -> None:
    opened = session.files.find(asked.handle)
    session.journal.begin("setstat", opened.name)
    file = opened.descriptor if isinstance(opened, OpenFile) else opened.name
    session.change(opened.name, asked.attrs, lambda attributes: change(file, attributes))
    session.replies.ok(request)


def _opendir(session: Session, request: int, asked: sftp.OpenDir) -> None:
    session.journal.log(INFO, "opendir %s", asked.path)
    session.files.check_limit()
    session.replies.handle(request, session.files.add(OpenFolder(asked.path)))


def _readdir(session: Session, request: int, asked: sftp.ReadDir) -> None:
    folder = session.files.folder(asked.handle)
    count, entries = listing.fill(folder, session.longnames, session.pack, folder.room)
    most = listing.ROOM if session.tells_identities else listing.PLAIN_ROOM
    folder.room = min(4 * folder.room, most)
    if count:
        session.replies.names(request, count, entries)
    else:
        session.replies.eof(request)


def _remove(session: Session, request: int, asked: sftp.Remove) -> None:
    session.journal.log(INFO, "remove name %s", asked.filename)
    os.unlink(asked.filename)
    session.replies.ok(request)


def _mkdir(session: Session, request: int, asked: sftp.MkDir) -> None:
    mode = mode_of(asked.attrs, 0o777)
    session.journal.log(INFO, "mkdir name %s mode 0%o", asked.path, mode)
    os.mkdir(asked.path, mode)
    session.replies.ok(request)


def _rmdir(session: Session, request: int, asked: sftp.RmDir) -> None:
    session.journal.log(INFO, "rmdir name %s", asked.path)
    os.rmdir(asked.path)
    session.replies.ok(request)


def _realpath(session: Session, request: int, asked: sftp.RealPath) -> None:
    session.journal.log(DEBUG, "realpath %s", asked.path)
    session.replies.name(request, resolved(asked.path))


def _rename(session: Session, request: int, asked: sftp.Rename) -> None:
    """Renames a file, but not over another one, as the draft has it."""
    session.journal.log(INFO, "rename old %s new %s", asked.oldpath, asked.newpath)
    if stat.S_ISREG(os.lstat(asked.oldpath).st_mode):
        _rename_file(asked.oldpath, asked.newpath)
    else:
        _rename_if_free(asked.oldpath, asked.newpath)
    session.replies.ok(request)


def _rename_file(old: bytes, new: bytes) -> None:
    """Renames by a second link, which never replaces a file."""
    try:
        os.link(old, new)
    except OSError as reason:
        if reason.errno not in _NO_LINKS:
            raise
        _rename_if_free(old, new)
        return
    try:
        os.unlink(old)
    except OSError:
        os.unlink(new)
        raise


def _rename_if_free(old: bytes, new: bytes) -> None:
    """Renames if nothing has the new name; somebody else may take it at the last moment."""
    if os.path.lexists(new):
        raise system_error(errno.EEXIST)
    os.rename(old, new)


def _readlink(session: Session, request: int, asked: sftp.ReadLink) -> None:
    session.journal.log(DEBUG, "readlink %s", asked.path)
    session.replies.name(request, os.readlink(asked.path))


def _symlink(session: Session, request: int, asked: sftp.SymLink) -> None:
    session.journal.log(INFO, "symlink old %s new %s", asked.targetpath, asked.linkpath)
    os.symlink(asked.targetpath, asked.linkpath)
    session.replies.ok(request)


REQUESTS = {
    sftp.Open.number: Row("open", sftp.Open, _open, paths=("filename",)),
    sftp.Close.number: Row("close", sftp.Close, _close),
    sftp.Read.number: Row("read", None, _read),
    sftp.Write.number: Row("write", None, _write, writes=True),
    sftp.LStat.number: Row("lstat", sftp.LStat, _lstat, paths=("path",)),
    sftp.FStat.number: Row("fstat", sftp.FStat, _fstat),
    sftp.SetStat.number: Row("setstat", sftp.SetStat, _setstat, paths=("path",), writes=True),
    sftp.FSetStat.number: Row("fsetstat", sftp.FSetStat, _fsetstat, writes=True),
    sftp.OpenDir.number: Row("opendir", sftp.OpenDir, _opendir, paths=("path",)),
    sftp.ReadDir.number: Row("readdir", sftp.ReadDir, _readdir),
    sftp.Remove.number: Row("remove", sftp.Remove, _remove, paths=("filename",), writes=True),
    sftp.MkDir.number: Row("mkdir", sftp.MkDir, _mkdir, paths=("path",), writes=True),
    sftp.RmDir.number: Row("rmdir", sftp.RmDir, _rmdir, paths=("path",), writes=True),
    sftp.RealPath.number: Row("realpath", sftp.RealPath, _realpath, paths=("path",)),
    sftp.Stat.number: Row("stat", sftp.Stat, _stat, paths=("path",)),
    sftp.Rename.number: Row(
        "rename", sftp.Rename, _rename, paths=("oldpath", "newpath"), writes=True
    ),
    sftp.ReadLink.number: Row("readlink", sftp.ReadLink, _readlink, paths=("path",)),
    sftp.SymLink.number: Row(
        "symlink", sftp.SymLink, _symlink, paths=("targetpath", "linkpath"), writes=True
    ),
}
