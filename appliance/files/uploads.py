"""Copies of files and trees to a server."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial

from ..aio.loop import Loop
from ..aio.tasks import Future
from ..wire import sftp
from ..wire.sftp import Attributes
from .copying import (
    PART,
    SHORTER,
    SMALL_FILE,
    CopySettings,
    InFlight,
    Meter,
    Pace,
    Progress,
    named,
)
from .sftp_client import SftpClient, StatusError
from .tree_copy import TreeCopy

_Places = tuple[tuple[int, int], ...]  # device and inode of directories


class Upload(TreeCopy):
    """Copies local files to one server."""

    def __init__(
        self, loop: Loop, client: SftpClient, settings: CopySettings, progress: Progress
    ) -> None:
        super().__init__(loop, settings, progress)
        self._client = client
        self._chunk = min(settings.buffer or client.write_limit, client.write_limit)

    def add(self, source: bytes, target: bytes, within: _Places = ()) -> None:
        """Adds a file or directory to what ``run`` copies; ``within`` are those it lies in."""
        try:
            status = os.stat(source)
        except OSError as error:
            self._failed(error)
            return
        if not stat.S_ISDIR(status.st_mode):
            self._jobs.add_file(status.st_size, partial(self._file, source, target))
        elif not self._is_recursive(source):
            return
        elif (place := (status.st_dev, status.st_ino)) in within:  # a symlink to where we are
            self._failed(OSError(errno.ELOOP, os.strerror(errno.ELOOP), source))
        else:
            self._jobs.add_directory(partial(self._directory, source, target, (*within, place)))

    # -- directories -------------------------------------------------------------------

    async def _directory(self, source: bytes, target: bytes, within: _Places) -> None:
        status = os.stat(source)
        names = sorted(os.listdir(source))
        mode = stat.S_IMODE(status.st_mode) & 0o777
        await self._client.make_directory(target, Attributes(permissions=mode | 0o700))
        if self._settings.preserve or mode | 0o700 != mode:
            self._to_finish.append(partial(self._client.setstat, target, _attributes(status)))
        for name in names:
            path = os.path.join(source, name)
            if not self._settings.follow_links and os.path.islink(path):
                self._progress.skipped(path)
            else:
                self.add(path, os.path.join(target, name), within)

    # -- files -------------------------------------------------------------------------

    async def _file(self, source: bytes, target: bytes) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", source)
            meter = self._progress.begin(source, status.st_size)
            try:
                await self._copy(fd, status, target, meter)
            except StatusError as error:
                raise error.about(target) from error
            except OSError as error:
                raise named(error, source) from error
            finally:
                meter.done()
        finally:
            os.close(fd)

    async def _copy(self, fd: int, status: os.stat_result, target: bytes, meter: Meter) -> None:
        settings = self._settings
        at = target + PART.encode() if settings.temporary_name else target
        is_small = status.st_size <= min(SMALL_FILE, self._chunk) and not settings.resume
        if is_small and self._client.has(sftp.WRITE_FILE) and not settings.fsync:
            data = _beginning(fd, SMALL_FILE + 1)
            if len(data) <= SMALL_FILE:  # else it has grown
                await self._pace.wait(len(data))
                flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE
                kept = _attributes(status) if settings.preserve else Attributes()
                await self._client.write_file(at, flags, _permissions(status), data, kept)
                meter.advance(len(data))
                await self._put_in_place(at, target)
                return
        flags = sftp.WRITE | sftp.CREATE | (0 if settings.resume else sftp.TRUNCATE)
        handle = await self._client.open(at, flags, _permissions(status))
        try:
            begin = 0
            if settings.resume:
                begin = (await self._client.fstat(handle)).size or 0
                if begin > status.st_size:
                    raise OSError(errno.EFBIG, "the file at the server is larger", target)
                meter.advance(begin)
            await _Send(self._client, handle, fd, self._chunk, settings, self._pace, meter).run(
                begin, status
            )
            if os.fstat(fd).st_size < status.st_size:
                raise OSError(errno.EIO, SHORTER)
            if settings.fsync and self._client.has(sftp.FSYNC):
                await self._client.fsync(handle)
            if settings.preserve:
                await self._client.fsetstat(handle, _attributes(status))
        except BaseException:
            self._client.abandon(handle)
            raise
        await self._client.close_file(handle)  # a full disk may be told only now
        await self._put_in_place(at, target)

    async def _put_in_place(self, at: bytes, target: bytes) -> None:
        if at != target:
            await self._client.rename(at, target)


class _Send:
    """Writes one open file with many requests in flight; holes are left out."""

    def __init__(
        self,
        client: SftpClient,
        handle: bytes,
        fd: int,
        chunk: int,
        settings: CopySettings,
        pace: Pace,
        meter: Meter,
    ) -> None:
        self._client = client
        self._handle = handle
        self._fd = fd
        self._chunk = chunk
        self._pace = pace
        self._meter = meter
        self._in_flight = InFlight(chunk, settings.requests)
        self._failure: Exception | None = None
        self._waiting: Future[None] | None = None
        self._is_over = False  # the meter is done

    async def run(self, begin: int, status: os.stat_result) -> None:
        """Sends everything from ``begin`` on; raises OSError."""
        try:
            await self._run(begin, status)
        finally:
            self._is_over = True

    async def _run(self, begin: int, status: os.stat_result) -> None:
        at, size, is_cut = begin, status.st_size, False
        has_holes = status.st_blocks * 512 < size
        while self._failure is None:
            end = size
            if has_holes:
                at, end = self._run_of_data(at, size)
            sent = await self._send_run(at, end if has_holes else None)
            is_cut = at + sent < end  # meanwhile, or a file of /sys, which is never so long
            at += sent
            if not has_holes or end >= size or not sent or is_cut:
                break
        await self._settle()
        if has_holes and at < size and not is_cut:
            try:
                await self._client.fsetstat(self._handle, Attributes(size=size))
            except StatusError:  # some servers refuse that
                self._write(size - 1, b"\0")
                await self._settle()

    async def _settle(self) -> None:
        """Waits until nothing is in flight; raises what failed."""
        while self._in_flight.count:
            await self._answer()
        if self._failure is not None:
            raise self._failure

    def _run_of_data(self, at: int, size: int) -> tuple[int, int]:
        """Returns where the next data begins and ends; ``size`` twice if there is no more."""
        try:
            begin = os.lseek(self._fd, at, os.SEEK_DATA)
            return begin, os.lseek(self._fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that does not tell
                return at, size
            return at, at  # nothing but a hole

    async def _send_run(self, at: int, end: int | None) -> int:
        """Sends the bytes from ``at`` to ``end``, or to the end of the file; returns how many."""
        begin = at
        while self._failure is None and (end is None or at < end):
            if not self._in_flight.has_room:
                await self._answer()
                continue
            await self._client.writable()
            data = os.pread(
                self._fd, self._chunk if end is None else min(self._chunk, end - at), at
            )
            if not data:
                break
            await self._pace.wait(len(data))
            self._write(at, data)
            at += len(data)
        return at - begin

    def _write(self, at: int, data: bytes) -> None:
        self._in_flight.count += 1
        self._client.write(self._handle, at, data, partial(self._on_written, len(data)))

    def _on_written(self, count: int, error: Exception | None) -> None:
        if self._is_over:  # by ^C: these replies come late
            return
        self._in_flight.answered()
        if error is None:
            self._meter.advance(count)
        else:
            self._failure = self._failure or error
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.resolve(None)

    async def _answer(self) -> None:
        self._waiting = Future()
        await self._waiting


def _beginning(fd: int, length: int) -> bytes:
    """The first bytes of a file: fewer than ``length`` are all, which a short read may not be."""
    data = b""
    while len(data) < length and (more := os.pread(fd, length - len(data), len(data))):
        data += more
    return data


def _permissions(status: os.stat_result) -> Attributes:
    return Attributes(permissions=status.st_mode & 0o777)


def _attributes(status: os.stat_result) -> Attributes:
    """Permissions and times; the server's umask does not apply to them."""
    access, modification = status.st_atime_ns, status.st_mtime_ns
    return Attributes(
        permissions=status.st_mode & 0o777,
        times=(_seconds(access), _seconds(modification)),
        nanoseconds=(access % 1_000_000_000, modification % 1_000_000_000),
    )


def _seconds(nanoseconds: int) -> int:
    """Seconds as version 3 has them: none before 1970, none after 2106."""
    return min(max(nanoseconds // 1_000_000_000, 0), 0xFFFFFFFF)
