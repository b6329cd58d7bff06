"""Copies of files and trees from a server."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Final

from ..aio.loop import Loop
from ..errors import ProtocolError
from ..wire import sftp
from ..wire.sftp import Attributes
from .copying import PART, SMALL_FILE, CopySettings, Meter, Pace, Progress, named
from .fetch import Fetch
from .sftp_client import SftpClient, StatusError
from .tree_copy import CopyFromServer, check_name

# Our own choices
_ZEROS: Final = 64 << 10  # bytes: a file with holes is at least this long
_TREE_ENTRIES: Final = 1500  # names in one reply of a tree
_RUNS: Final = 1 << 18  # of data between holes; a file with more is read as if it had none

_OFFSETS: Final = 1 << 63  # of off_t


class Download(CopyFromServer):
    """Copies from one server into local files."""

    def __init__(
        self, loop: Loop, client: SftpClient, settings: CopySettings, progress: Progress
    ) -> None:
        super().__init__(loop, client, settings, progress)
        self._chunk = min(settings.buffer or client.read_limit, sftp.DATA_LIMIT)

    # -- directories -------------------------------------------------------------------

    def _make_directory(self, target: bytes, attributes: Attributes) -> None:
        try:
            os.mkdir(target, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(target).st_mode):
                raise
            if not self._settings.preserve:
                return
        self._to_finish.append(partial(self._finish_directory, target, attributes))

    async def _finish_directory(self, target: bytes, attributes: Attributes) -> None:
        """Sets the permissions, which might have kept us from writing to it, and the times."""
        mode = attributes.permissions
        if mode is None:
            mode = 0o777
        mode &= 0o777
        os.chmod(target, mode if self._settings.preserve else mode & ~_umask() | 0o700)
        if self._settings.preserve and attributes.times is not None:
            os.utime(target, ns=_times(attributes))

    async def _directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        self._make_directory(target, attributes)
        if self._source.has(sftp.LOOKUP_TREE):
            listings = await self._source.lookup_tree(source, 64, _TREE_ENTRIES)
            if listings and listings[0].is_complete and not listings[0].path:
                self._tree(source, target, listings)
                return
        await self._add_listing(source, target)

    def _tree(self, source: bytes, target: bytes, listings: tuple[sftp.Listing, ...]) -> None:
        """Adds what a reply has of a tree; directories that it left out are listed later."""
        listed = {listing.path: listing for listing in listings if listing.is_complete}
        pending = [(b"", target)]
        while pending:
            path, local = pending.pop()
            for entry in listed[path].entries:
                if entry.filename in (b".", b".."):
                    continue
                below = os.path.join(path, entry.filename)
                if not stat.S_ISDIR(entry.attributes.permissions or 0) or below not in listed:
                    self._add_entry(os.path.join(source, path), local, entry)
                    continue
                check_name(entry.filename)
                to = os.path.join(local, entry.filename)
                try:
                    self._make_directory(to, entry.attributes)
                except OSError as error:
                    self._failed(error)
                else:
                    pending.append((below, to))

    # -- files -------------------------------------------------------------------------

    async def _file(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        mode = attributes.permissions
        if mode is not None and not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        settings = self._settings
        size = attributes.size
        if size is not None and size >= _OFFSETS:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), source)
        meter = self._progress.begin(source, size or 0)
        handle, data, begin = b"", None, 0
        try:
            is_small = size is not None and size <= SMALL_FILE and not settings.resume
            if is_small and self._source.has(sftp.READ_FILE):
                await self._pace.wait(size or 0)
                content = await self._source.read_file(source, SMALL_FILE + 1)
                handle, data = content.handle, content.data
            else:
                handle = await self._source.open(source, sftp.READ)
            temporary = target + PART.encode() if settings.temporary_name else target
            is_new = not os.path.exists(temporary)
            fd = self._open(temporary, mode)
            try:
                if settings.resume:
                    begin = os.fstat(fd).st_size
                    if size is not None and begin > size:
                        raise OSError(errno.EFBIG, "the local file is larger", target)
                    meter.advance(begin)
                sink = _LocalFile(fd, self._pace, meter)
                if data:
                    sink.write(0, data)
                    begin = len(data)
                if handle:
                    fetch = Fetch(self._source, handle, source, sink, self._chunk, settings)
                    await fetch.run(begin, size, await self._holes(handle, attributes))
                self._finish(fd, mode if is_new or settings.preserve else None, attributes)
            finally:
                os.close(fd)
            if settings.temporary_name:
                os.rename(temporary, target)
        except StatusError as error:
            raise error.about(source) from error
        except OSError as error:
            raise named(error, target) from error
        finally:
            meter.done()
            if handle:
                self._source.abandon(handle)

    def _open(self, target: bytes, mode: int | None) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        if not self._settings.resume:
            flags |= os.O_TRUNC
        permissions = 0o666 if mode is None else mode & 0o777  # never setuid: the server says it
        return os.open(target, flags, permissions | 0o200)

    def _finish(self, fd: int, mode: int | None, attributes: Attributes) -> None:
        settings = self._settings
        if settings.preserve:
            if mode is not None:
                os.fchmod(fd, mode & 0o777)
            if attributes.times is not None:
                os.utime(fd, ns=_times(attributes))
        elif mode is not None and not mode & 0o200:
            os.fchmod(fd, mode & 0o777 & ~_umask())
        if settings.fsync:
            os.fsync(fd)

    async def _holes(self, handle: bytes, attributes: Attributes) -> list[tuple[int, int]] | None:
        """Returns the runs that hold data, if the server says that the file has holes."""
        identity = attributes.identity
        size = attributes.size or 0
        if identity is None or size < _ZEROS or identity.blocks * 512 >= size:
            return None
        if not self._source.has(sftp.EXTENTS):
            return None
        runs: list[tuple[int, int]] = []
        end = 0
        while len(runs) < _RUNS:
            found = await self._source.extents(handle, end)
            for offset, length in found.runs:
                if not (end <= offset < offset + length < _OFFSETS):
                    raise ProtocolError("extents that are in no order, or in no file")
                end = offset + length
            runs += found.runs
            if found.is_complete:
                return runs
            if not found.runs:
                raise ProtocolError("an incomplete list of extents without any")
        return None


class _LocalFile:
    """An open file that is written."""

    def __init__(self, fd: int, pace: Pace, meter: Meter) -> None:
        self._fd = fd
        self._meter = meter
        self._pace = pace

    async def ready(self, count: int) -> None:
        await self._pace.wait(count)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        view = memoryview(data)
        self._meter.advance(len(view))
        while view:
            count = os.pwrite(self._fd, view, offset)
            view = view[count:]
            offset += count

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)


def _times(attributes: Attributes) -> tuple[int, int]:
    """Access and modification time in nanoseconds."""
    assert attributes.times is not None
    access, modification = (each * 1_000_000_000 for each in attributes.times)
    if (identity := attributes.identity) is not None:
        access += identity.access_nanoseconds
        modification += identity.modification_nanoseconds
    return access, modification


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
