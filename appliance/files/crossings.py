"""Copies of files and trees from one server to another, through this machine."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Final

from ..aio.loop import Loop
from ..aio.tasks import Budget, Future
from ..wire import sftp
from ..wire.sftp import Attributes
from .copying import IN_FLIGHT, CopySettings, Jobs, Meter, Pace, Progress, check_name
from .fetch import Fetch
from .sftp_client import SftpClient, StatusError

_DOTS: Final = (b".", b"..")


class Crossing:
    """Copies from the server of ``source`` to that of ``target``; see Download."""

    def __init__(
        self,
        loop: Loop,
        source: SftpClient,
        target: SftpClient,
        settings: CopySettings,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._progress = progress
        self._pace = Pace(loop, settings.rate)
        self._jobs = Jobs(loop, self._failed)
        self._held = Budget(IN_FLIGHT)  # bytes that were read and are not written yet
        self._directories: list[tuple[bytes, Attributes]] = []
        chunk = min(source.read_limit, target.write_limit)
        self._chunk = min(settings.buffer or chunk, chunk)

    def add(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        """Adds a file or directory with its attributes to what ``run`` copies."""
        mode, size = attributes.permissions, attributes.size or 0
        if mode is None and self._settings.recursive:
            self._jobs.add_file(size, partial(self._unknown, source, target, attributes))
        elif mode is None or not stat.S_ISDIR(mode):
            self._jobs.add_file(size, partial(self._file, source, target, attributes))
        else:
            self._add_directory(source, target, attributes)

    async def run(self) -> None:
        """Copies everything that was added; failures of files go to the progress."""
        await self._jobs.run()
        for target, attributes in reversed(self._directories):  # children first
            try:
                await self._target.setstat(target, self._kept(attributes))
            except OSError as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        path = getattr(error, "filename", None)
        self._progress.failed(os.fsencode(path) if path is not None else b"", error)

    def _kept(self, attributes: Attributes) -> Attributes:
        mode = attributes.permissions
        kept = Attributes(permissions=None if mode is None else mode & 0o777)
        if self._settings.preserve:
            kept.times = attributes.times
        return kept

    def _add_directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        if not self._settings.recursive:
            self._failed(IsADirectoryError(errno.EISDIR, "not a regular file", source))
            return
        self._jobs.add_directory(partial(self._directory, source, target, attributes))

    async def _directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        mode = 0o777 if attributes.permissions is None else attributes.permissions & 0o777
        try:
            await self._target.mkdir(target, Attributes(permissions=mode | 0o700))
        except StatusError:
            found = (await self._target.stat(target)).permissions
            if found is not None and not stat.S_ISDIR(found):
                raise
        if self._settings.preserve or mode | 0o700 != mode:
            self._directories.append((target, attributes))
        async for entries in self._source.listing(source):
            for entry in entries:
                name = entry.filename
                if name in _DOTS:
                    continue
                check_name(name)
                below, to = os.path.join(source, name), os.path.join(target, name)
                permissions = entry.attributes.permissions
                if permissions is not None and stat.S_ISLNK(permissions):
                    self._jobs.add_file(0, partial(self._link, below, to))
                else:
                    self.add(below, to, entry.attributes)
            await self._jobs.room()

    async def _link(self, source: bytes, target: bytes) -> None:
        self.add(source, target, await self._source.stat(source))

    async def _unknown(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        if await self._source.is_directory(source, attributes):
            self._add_directory(source, target, attributes)
        else:
            await self._file(source, target, attributes)

    async def _file(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        mode = attributes.permissions
        if mode is not None and not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        if self._source is self._target and await self._source.is_same_file(source, target):
            raise OSError(errno.EINVAL, "source and target are the same file", source)
        meter = self._progress.begin(source, attributes.size or 0)
        try:
            reading = await self._source.open(source, sftp.READ)
            try:
                permissions = Attributes(permissions=None if mode is None else mode & 0o777)
                flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE
                writing = await self._target.open(target, flags, permissions)
                try:
                    sink = _RemoteFile(self._target, writing, self._held, self._pace, meter)
                    fetch = Fetch(self._source, reading, source, sink, self._chunk, self._settings)
                    await fetch.run(0, attributes.size, None)
                    await sink.finish()
                    if self._settings.preserve:
                        await self._target.fsetstat(writing, self._kept(attributes), target)
                except BaseException:
                    self._target.abandon(writing)
                    raise
                await self._target.close_file(writing, target)
            finally:
                self._source.abandon(reading)
        except StatusError as error:
            raise error if error.filename else error.about(target) from error
        finally:
            meter.done()


class _RemoteFile:
    """An open file of the target's server, to which what was read goes at once."""

    def __init__(
        self, client: SftpClient, handle: bytes, held: Budget, pace: Pace, meter: Meter
    ) -> None:
        self._client = client
        self._handle = handle
        self._held = held
        self._pace = pace
        self._meter = meter
        self._unanswered = 0
        self._failure: Exception | None = None
        self._settled: Future[None] | None = None
        self._size: int | None = None

    async def ready(self, count: int) -> None:
        """Waits for the pace, and until both lines carry little enough."""
        await self._pace.wait(count)
        await self._client.writable()
        await self._held.room()

    def write(self, offset: int, data: memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        count = len(data)
        self._meter.advance(count)
        self._unanswered += 1
        self._held.hold(count)
        self._client.write(self._handle, offset, data, partial(self._on_written, count))

    def truncate(self, size: int) -> None:
        self._size = size

    def _on_written(self, count: int, error: Exception | None) -> None:
        self._unanswered -= 1
        self._held.give(count)
        self._failure = self._failure or error
        if not self._unanswered and self._settled is not None:
            self._settled.resolve(None)

    async def finish(self) -> None:
        """Waits until everything is written; raises what failed."""
        if self._unanswered:
            self._settled = Future()
            await self._settled
        if self._failure is not None:
            raise self._failure
        if self._size is not None:
            await self._client.fsetstat(self._handle, Attributes(size=self._size))
