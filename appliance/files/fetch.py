"""Reads one file of a server with many requests in flight."""

from __future__ import annotations

import errno
from functools import partial
from typing import Protocol

from ..aio.tasks import Future
from .copying import SHORTER, CopySettings, InFlight
from .sftp_client import SftpClient


class Sink(Protocol):
    """What is done with the bytes of a file, which come in any order."""

    async def ready(self, count: int) -> None:
        """Waits until ``count`` more bytes may be asked for."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Takes bytes, valid during the call; raises OSError."""
        ...

    def truncate(self, size: int) -> None:
        """Sets where the file ends; raises OSError."""
        ...


class Fetch:
    """Reads one open file; what comes goes to the sink."""

    def __init__(
        self,
        client: SftpClient,
        handle: bytes,
        source: bytes,
        sink: Sink,
        chunk: int,
        settings: CopySettings,
    ) -> None:
        """``chunk``: bytes of one request; ``source`` is for errors."""
        self._client = client
        self._handle = handle
        self._source = source
        self._sink = sink
        self._chunk = chunk
        self._in_flight = InFlight(chunk, settings.requests)
        self._end: int | None = None  # the lowest offset at which the server told the end
        self._failure: Exception | None = None
        self._waiting: Future[None] | None = None
        self._highest = 0  # where the bytes that came end
        self._is_over = False  # the sink may be closed

    async def run(self, begin: int, size: int | None, runs: list[tuple[int, int]] | None) -> None:
        """Reads from ``begin`` to the end, or the ``runs`` that hold data; raises OSError.

        ``size`` is what the file had; one that has grown is read to its new end.
        """
        try:
            await self._read(begin, size, runs)
        finally:
            self._is_over = True

    async def _read(self, begin: int, size: int | None, runs: list[tuple[int, int]] | None) -> None:
        if runs is not None:
            for offset, length in runs:
                await self._read_run(max(offset, begin), offset + length, exactly=True)
            await self._settle()
            whole = max(size or 0, self._highest)
            self._sink.truncate(whole if self._end is None else min(self._end, whole))
            await self._check_size(size)
            return
        if size:
            await self._read_run(begin, size)
            await self._settle()
        while self._end is None:  # grown, or of an unknown size such as those in /proc
            at = max(begin, self._highest)
            if size and at == size:
                break
            await self._read_run(at, at + self._chunk * (1 if not size else 16))
            await self._settle()
        if self._end is not None and self._end < self._highest:
            self._sink.truncate(self._end)  # cut while we read
        await self._check_size(size)

    async def _check_size(self, size: int | None) -> None:
        """Raises OSError if the file was cut behind what was read; those of /sys always end early.

        One that was cut before is copied as it is now.
        """
        if size is None or self._end is None or self._end >= size:
            return
        now = (await self._client.fstat(self._handle)).size
        if now is not None and now < self._highest:
            raise OSError(errno.EIO, SHORTER, self._source)

    async def _read_run(self, at: int, end: int, exactly: bool = False) -> None:
        """Asks for all bytes of [at, end), and a little more unless ``exactly``."""
        while at < end and self._failure is None and self._end is None:
            if self._in_flight.has_room:
                await self._sink.ready(self._chunk)
                length = min(self._chunk, end - at) if exactly else self._chunk
                self._ask(at, length)
                at += length
            else:
                await self._answer()

    async def _settle(self) -> None:
        """Waits until nothing is in flight; raises what failed."""
        while self._in_flight.count:
            await self._answer()
        if self._failure is not None:
            raise self._failure

    async def _answer(self) -> None:
        self._waiting = Future()
        await self._waiting

    def _ask(self, offset: int, length: int) -> None:
        self._in_flight.count += 1
        self._client.read(self._handle, offset, length, partial(self._on_read, offset, length))

    def _on_read(
        self, offset: int, length: int, data: memoryview | None, error: Exception | None
    ) -> None:
        if self._is_over:  # by ^C: these replies come late
            return
        self._in_flight.answered()
        if error is not None:
            self._failure = self._failure or error
        elif data is None:
            self._end = offset if self._end is None else min(self._end, offset)
        elif self._failure is None:
            try:
                self._take(offset, length, data)
            except OSError as failure:
                self._failure = failure
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.resolve(None)

    def _take(self, offset: int, length: int, data: memoryview) -> None:
        count = len(data)
        if not count:
            raise OSError(errno.EIO, "the server sent no bytes, and not the end", self._source)
        self._sink.write(offset, data)
        self._highest = max(self._highest, offset + count)
        if count < length and (self._end is None or offset + count < self._end):
            self._ask(offset + count, length - count)  # short, which is not the end of the file
