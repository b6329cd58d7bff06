"""The sink of the old scp protocol: receives files and directories (``scp -t``, or a download).

The source is not trusted. It gives names of one component only, of entries that were asked for
(``is_wanted``), and directories only with -r; it cannot make a symlink, so nothing is written
outside of the target but through symlinks that were there before. Without -p a file gets
permissions alone, masked by the umask: no setuid, setgid or sticky bit (CVE-2026-35385).
"""

from __future__ import annotations

import errno
import os
import stat

from ...errors import MalformedMessage, PeerDisconnected
from .peer import READ, ScpPeer, ScpSettings
from .protocol import MODE_BITS, End, Entry, Failure, Times, parse

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import Record

# Our own choices
_HOLE = bytes(4096)  # aligned zeros that are not written: the block of most file systems
_ZEROS = bytes(READ)


class _Directory:
    """A directory that is being received, and what is set when it ends."""

    __slots__ = ("mode", "path", "times")

    def __init__(self, path: bytes, mode: int | None, times: Times | None) -> None:
        self.path = path
        self.mode = mode
        self.times = times


class ScpSink:
    """Receives files from a source; what fails is reported to both users, and the others follow."""

    def __init__(
        self,
        peer: ScpPeer,
        settings: ScpSettings,
        is_wanted: Callable[[bytes], bool] = lambda name: True,
    ) -> None:
        """``is_wanted`` decides about the names of what comes first, not of what lies in it."""
        self._peer = peer
        self._settings = settings
        self._is_wanted = is_wanted
        self._times: Times | None = None  # of the next entry
        mask = os.umask(0o077)
        os.umask(mask)
        self._mode_mask = MODE_BITS if settings.preserve else 0o777 & ~mask

    def receive(self, target: bytes, must_be_directory: bool) -> None:
        """Receives into ``target``, or into the directory that it is, until the source ends."""
        is_directory = os.path.isdir(target)
        if must_be_directory and not is_directory:
            code = errno.ENOTDIR if os.path.exists(target) else errno.ENOENT
            self._report(target, os.strerror(code))
            return
        self._peer.accept()
        within: list[_Directory] = []
        while (line := self._peer.line()) is not None:
            record = self._parse(line)
            if isinstance(record, Failure):
                self._peer.told(record)
            elif isinstance(record, Times):
                self._times = record
                self._peer.accept()
            elif isinstance(record, End):
                if not within:
                    raise MalformedMessage("the end of a directory that was not begun")
                self._leave(within.pop())
            else:
                if not within and not self._is_wanted(record.name):
                    shown = record.name.decode(errors="backslashreplace")
                    raise MalformedMessage(f"filename '{shown}' does not match request")
                into = within[-1].path if within else target if is_directory else None
                path = target if into is None else os.path.join(into, record.name)
                times, self._times = self._times, None
                if record.is_directory:
                    self._enter(path, record, times, within)
                else:
                    self._receive_file(path, record, times)
        if within:
            raise PeerDisconnected("lost connection")

    def _parse(self, line: bytes) -> Record:
        if self._settings.trace is not None:
            self._settings.trace(b"Sink: " + line)
        return parse(line)

    # -- directories -------------------------------------------------------------------

    def _enter(
        self, path: bytes, record: Entry, times: Times | None, within: list[_Directory]
    ) -> None:
        if not self._settings.recursive:
            raise MalformedMessage("received directory without -r")
        mode: int | None = record.mode & self._mode_mask
        try:
            try:
                # we have to write to it, whatever its permissions become
                os.mkdir(path, record.mode & self._mode_mask | 0o700)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
                if not self._settings.preserve:
                    mode = None
        except OSError as error:
            self._report(path, _reason(error))
            return
        within.append(_Directory(path, mode, times))
        self._peer.accept()

    def _leave(self, directory: _Directory) -> None:
        try:
            if directory.times is not None:
                _set_times(directory.path, directory.times)
            if directory.mode is not None:
                os.chmod(directory.path, directory.mode)
        except OSError as error:
            self._report(directory.path, f"set times or mode: {_reason(error)}")
        else:
            self._peer.accept()

    # -- files -------------------------------------------------------------------------

    def _receive_file(self, path: bytes, record: Entry, times: Times | None) -> None:
        mode = record.mode & self._mode_mask
        was_there = os.path.exists(path)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, mode | stat.S_IWUSR)
        except OSError as error:
            self._report(path, _reason(error))
            return
        failure = ""
        try:
            self._peer.accept()
            failure = self._receive_content(fd, record)
            if not failure and (self._settings.preserve or not was_there):
                failure = _try("set mode", os.fchmod, fd, mode)
        finally:
            failure = _try("close", os.close, fd) or failure
        self._peer.accepted()  # the source says whether it could read all of it
        if times is not None and not failure:
            failure = _try("set times", _set_times, path, times)
        if failure:
            self._report(path, failure)
        else:
            self._peer.accept()

    def _receive_content(self, fd: int, record: Entry) -> str:
        """Writes as many bytes as were announced; returns why that failed, or ''.

        After a failure the rest is read and dropped, for the next record to be found.
        """
        settings, peer = self._settings, self._peer
        meter = settings.begin(record.name, record.size) if settings.begin is not None else None
        file = _File(fd)
        failure = ""
        left = record.size
        while left:
            data = peer.take(left)
            left -= len(data)
            if not failure:
                failure = _try("", file.write, data)
            if meter is not None:
                meter.advance(len(data))
            if settings.pace is not None:
                settings.pace(len(data))
        if meter is not None:
            meter.done()
        return failure or _try("truncate", file.end)

    def _report(self, path: bytes, reason: str) -> None:
        self._peer.report(path + b": " + reason.encode())


class _File:
    """A file that is written from its beginning, with holes in place of zeros."""

    __slots__ = ("_fd", "_is_regular", "_offset", "_old_size")

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self._fd = fd
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._old_size = status.st_size
        self._offset = 0

    def write(self, data: bytes) -> None:
        """Writes what comes next, ``READ`` bytes at most."""
        # where there was content before, zeros have to be written
        if not self._is_regular or self._offset < self._old_size:
            self._write_all(memoryview(data))
        elif _ZEROS.startswith(data):
            self._skip(len(data))
        elif _HOLE in data:
            self._write_around_holes(data)
        else:
            self._write_all(memoryview(data))

    def _write_around_holes(self, data: bytes) -> None:
        view = memoryview(data)
        begin = 0
        at = -self._offset % len(_HOLE)
        while at < len(data):
            if not data.startswith(_HOLE, at):
                at += len(_HOLE)
                continue
            self._write_all(view[begin:at])
            begin = at
            while data.startswith(_HOLE, at):
                at += len(_HOLE)
            self._skip(at - begin)
            begin = at
        self._write_all(view[begin:])

    def _skip(self, count: int) -> None:
        self._offset += count
        os.lseek(self._fd, self._offset, os.SEEK_SET)

    def _write_all(self, data: memoryview) -> None:
        while data:
            count = os.write(self._fd, data)
            self._offset += count
            data = data[count:]

    def end(self) -> None:
        """Cuts off what was there before, and gives a hole at the end its length."""
        if self._is_regular:
            os.ftruncate(self._fd, self._offset)


def _try(what: str, function: Callable[..., None], *arguments: object) -> str:
    """Calls a function; returns what failed and why, or ''."""
    try:
        function(*arguments)
    except OSError as error:
        return f"{what}: {_reason(error)}" if what else _reason(error)
    return ""


def _set_times(path: bytes, times: Times) -> None:
    os.utime(path, ns=(times.accessed, times.modified))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
