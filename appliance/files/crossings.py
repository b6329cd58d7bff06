"""Copies of files and trees from one server to another, through this machine."""

from __future__ import annotations

import errno
import stat
from functools import partial

from ..aio.loop import Loop
from ..aio.tasks import Budget, Future
from ..wire import sftp
from ..wire.sftp import Attributes
from .copying import IN_FLIGHT, CopySettings, Meter, Pace, Progress
from .fetch import Fetch
from .sftp_client import SftpClient, StatusError
from .tree_copy import CopyFromServer


class Crossing(CopyFromServer):
    """Copies from the server of ``source`` to that of ``target``; see Download."""

    def __init__(
        self,
        loop: Loop,
        source: SftpClient,
        target: SftpClient,
        settings: CopySettings,
        progress: Progress,
    ) -> None:
        super().__init__(loop, source, settings, progress)
        self._target = target
        self._held = Budget(IN_FLIGHT)  # bytes that were read and are not written yet
        chunk = min(source.read_limit, target.write_limit)
        self._chunk = min(settings.buffer or chunk, chunk)

    def _kept(self, attributes: Attributes) -> Attributes:
        mode = attributes.permissions
        kept = Attributes(permissions=None if mode is None else mode & 0o777)
        if self._settings.preserve:
            kept.times = attributes.times
        return kept

    async def _directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        mode = 0o777 if attributes.permissions is None else attributes.permissions & 0o777
        await self._target.make_directory(target, Attributes(permissions=mode | 0o700))
        if self._settings.preserve or mode | 0o700 != mode:
            kept = self._kept(attributes)
            self._to_finish.append(partial(self._target.setstat, target, kept))
        await self._add_listing(source, target)

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
