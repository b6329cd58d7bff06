"""The source of the old scp protocol: sends files and directories (``scp -f``, or an upload)."""

from __future__ import annotations

import os
import stat

from .peer import READ, ScpPeer, ScpSettings
from .protocol import MODE_BITS, End, Entry, Times

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class _Directory:
    """A directory that is being sent: its path, its names that are still to come, and its place."""

    __slots__ = ("names", "path", "place")

    def __init__(self, path: bytes, names: Iterator[bytes], place: tuple[int, int]) -> None:
        self.path = path
        self.names = names
        self.place = place


class ScpSource:
    """Sends files to a sink; what fails is reported to both users, and the others follow."""

    def __init__(self, peer: ScpPeer, settings: ScpSettings) -> None:
        self._peer = peer
        self._settings = settings

    def send(self, paths: Iterable[bytes]) -> None:
        """Sends each path, once the sink has said that it is ready."""
        if not self._peer.accepted():
            return
        for path in paths:
            self._send_tree(path.rstrip(b"/") or path[:1])

    def _send_tree(self, path: bytes) -> None:
        """Sends a file, or a directory with all that is in it; symlinks are followed."""
        within: list[_Directory] = []
        self._send_one(path, within)
        while within:
            directory = within[-1]
            name = next(directory.names, None)
            if name is not None:
                self._send_one(os.path.join(directory.path, name), within)
                continue
            within.pop()
            self._tell_record(End().encode())
            self._peer.accepted()

    def _send_one(self, path: bytes, within: list[_Directory]) -> None:
        try:
            # without O_NONBLOCK, a FIFO would wait for its writer
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            self._report(path, _reason(error))
            return
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                self._send_file(fd, path, status)
            elif stat.S_ISDIR(status.st_mode) and self._settings.recursive:
                self._enter(path, status, within)
            else:
                self._report(path, "not a regular file")
        finally:
            os.close(fd)

    def _enter(self, path: bytes, status: os.stat_result, within: list[_Directory]) -> None:
        place = status.st_dev, status.st_ino
        if any(place == each.place for each in within):  # a symlink to where we are
            self._report(path, "Too many levels of symbolic links")
            return
        try:
            names = os.listdir(path)
        except OSError as error:
            self._report(path, _reason(error))
            return
        if self._announce(True, path, status):
            within.append(_Directory(path, iter(names), place))

    def _announce(self, is_directory: bool, path: bytes, status: os.stat_result) -> bool:
        """Sends the record of a file or directory; returns whether the sink takes it."""
        if self._settings.preserve:
            self._tell_record(Times(status.st_mtime_ns, status.st_atime_ns).encode())
            if not self._peer.accepted():
                return False
        size = 0 if is_directory else status.st_size
        name = encoded_name(os.path.basename(path) or path)
        self._tell_record(Entry(is_directory, status.st_mode & MODE_BITS, size, name).encode())
        return self._peer.accepted()

    def _send_file(self, fd: int, path: bytes, status: os.stat_result) -> None:
        if not self._announce(False, path, status):
            return
        settings, peer = self._settings, self._peer
        begin = settings.begin
        meter = begin(os.path.basename(path), status.st_size) if begin is not None else None
        failure = ""
        left = status.st_size
        while left:
            data = b""
            if not failure:
                try:
                    data = os.read(fd, min(left, READ))
                    failure = "" if data else "the file has become shorter"
                except OSError as error:
                    failure = _reason(error)
            if failure:
                data = bytes(min(left, READ))  # as much as was announced has to follow
            peer.write(data)
            left -= len(data)
            if meter is not None:
                meter.advance(len(data))
            if settings.pace is not None:
                settings.pace(len(data))
        if failure:
            self._report(path, failure)
        else:
            peer.accept()
        peer.accepted()
        if meter is not None:
            meter.done()

    def _tell_record(self, line: bytes) -> None:
        if self._settings.trace is not None:
            self._settings.trace(b"Sending: " + line.rstrip(b"\n"))
        self._peer.write(line)

    def _report(self, path: bytes, reason: str) -> None:
        self._peer.report(encoded_name(path) + b": " + reason.encode())


def encoded_name(name: bytes) -> bytes:
    """Returns a name for a record, which has no room for newlines: each is written as \\^J.

    So does OpenSSH's scp; the sink takes the name as it is.
    """
    return name.replace(b"\n", rb"\^J")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
