"""The writes of one file that the server has not acknowledged yet, in their order.

A write is sent at once, or joins the one before it while that waits for an answer. The server
does requests about one file in the order in which they come (draft-ietf-secsh-filexfer-02 section
6.1), so that what is sent behind a write sees it. After a lost session the writes are sent again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..aio.tasks import Future, Task
from ..errors import PeerError, system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire.sftp import Attributes, FSetStat
from . import failures
from .failures import explained
from .open_file import OpenFile
from .state import MountState

_log = logging.getLogger(__name__)

# Our own choices
OTHERS: Final = 1 << 20  # bytes that others may have appended meanwhile
AT_ONCE: Final = 4  # small writes in flight; more of them wait to be joined


class _Write:
    """Bytes for one place of a file; or no bytes, but attributes that are set behind the others."""

    __slots__ = ("data", "file", "given", "is_doubtful", "is_sent", "offset", "size")

    def __init__(
        self, file: OpenFile, offset: int, data: bytes, given: Attributes | None = None
    ) -> None:
        self.file = file
        self.offset = offset
        self.data = [data]
        self.size = len(data)
        self.given = given
        self.is_sent = False
        self.is_doubtful = False  # a lost session may have appended it


class WriteQueue:
    """Sends the writes of one node."""

    def __init__(self, state: MountState, on_empty: Callable[[], None]) -> None:
        """``on_empty`` is called when the server has acknowledged everything."""
        self._state = state
        self._on_empty = on_empty
        self._writes: dict[int, _Write] = {}
        self._next = 0
        self._last: _Write | None = None  # may still grow
        self._in_flight = 0
        self._others = 0  # operations elsewhere that it waits for
        self._waiting: list[Future[None]] = []
        self._is_opening = False

    @property
    def is_empty(self) -> bool:
        """Whether the server has acknowledged everything."""
        return not self._writes and not self._others

    @property
    def is_sent(self) -> bool:
        """Whether everything is on its way, so that what is asked now sees it."""
        return all(write.is_sent for write in self._writes.values())

    def follow(self, file: OpenFile, change: Future[Any]) -> None:
        """Takes an operation that is on its way; its failure is the file's."""
        self._others += 1
        self._state.unfinished.add(self)

        def done() -> None:
            self._others -= 1
            try:
                change.result()
            except OSError as error:
                file.fails(error)
            except PeerError:
                file.fails(system_error(errno.EIO))
            self._finish()

        change.when_done(done)

    def change(self, file: OpenFile, given: Attributes) -> None:
        """Takes attributes that are set once what was written before is there."""
        self._state.unfinished.add(self)
        self._last = None
        self._writes[self._next] = _Write(file, 0, b"", given)
        self._next += 1
        self.push()

    def add(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Takes a write."""
        self._state.unwritten.hold(len(data))
        self._state.unfinished.add(self)
        last, limit, at = self._last, self._state.write_size, 0
        if last is not None and last.file is file and last.offset + last.size == offset:
            at = max(0, min(limit - last.size, len(data)))
            if at:
                last.data.append(data[:at])
                last.size += at
        while at < len(data):
            self._last = _Write(file, offset + at, data[at : at + limit])
            self._writes[self._next] = self._last
            self._next += 1
            at += limit
        self._pump(everything=False)

    def push(self) -> None:
        """Sends everything that can be sent."""
        self._pump(everything=True)

    def _pump(self, everything: bool) -> None:
        server = self._state.server
        if not server.is_connected or self._is_opening:
            return
        client = server.client_now()
        for number, write in self._writes.items():
            if write.is_sent:
                continue
            is_whole = write is not self._last or write.size >= self._state.write_size
            if not (everything or is_whole) and self._in_flight >= AT_ONCE:
                return
            handle = write.file.handle_now()
            if handle is None or write.is_doubtful:
                self._is_opening = True
                Task(self._state.loop, self._open(write.file))
                return
            if write is self._last:
                self._last = None
            write.is_sent = True
            write.file.node.changed_at = self._state.loop.time()
            self._in_flight += 1
            if write.given is not None:
                change = client.send(FSetStat(0, handle, write.given))
                change.when_done(partial(self._on_changed, number, client, change))
                continue
            data = write.data[0] if len(write.data) == 1 else b"".join(write.data)
            client.write(handle, write.offset, data, partial(self._on_written, number, client))

    async def _open(self, file: OpenFile) -> None:
        """Opens a file again; its writes are lost if it is another one now."""
        failure: OSError | None = None
        try:
            client, _ = await file.handle()
            await self._leave_out_appended(client, file)
        except PeerError:
            pass  # tried again with the next session
        except OSError as error:
            if error.errno != errno.ETIMEDOUT:
                failure = error
        self._is_opening = False
        if failure is not None:
            for number in [n for n, write in self._writes.items() if write.file is file]:
                self._failed(self._writes[number], failure)
                self._remove(number)
            self._finish()
        if self._state.server.is_connected:
            self._pump(everything=True)

    async def _leave_out_appended(self, client: SftpClient, file: OpenFile) -> None:
        """Sends nothing twice that a lost session has appended: it stands at the file's end."""
        doubtful = {n: each for n, each in self._writes.items() if each.is_doubtful}
        if not doubtful:
            return
        begin = min(each.offset for each in doubtful.values())
        size = sum(each.size for each in doubtful.values()) + OTHERS
        tail, at = await file.tail(client, begin, size), 0
        if tail is None:  # it may only be written, so its size must tell
            _, handle = await file.handle()
            tail_size = ((await client.fstat(handle)).size or 0) - begin
        for number, write in doubtful.items():
            write.is_doubtful = False
            if tail is None:
                at += write.size
                is_there = at <= tail_size
            else:
                data = b"".join(write.data)
                found = tail.find(data, at)
                is_there = found >= 0
                at = found + len(data) if is_there else at
            if is_there:
                self._state.made_progress()
                self._remove(number)
        self._finish()

    def _on_changed(self, number: int, client: SftpClient, change: Future[None]) -> None:
        try:
            change.result()
        except (OSError, PeerError) as error:
            self._on_written(number, client, error)
        else:
            self._on_written(number, client, None)

    def _on_written(self, number: int, client: SftpClient, error: Exception | None) -> None:
        self._in_flight -= 1
        write = self._writes[number]
        if error is None:
            self._done(number)
        elif isinstance(error, StatusError):
            Task(self._state.loop, self._refused(number, client, error))
        else:  # the session was lost
            write.is_sent = False
            write.is_doubtful = bool(write.size) and write.file.appends
            if write is self._last:
                self._last = None

    async def _refused(self, number: int, client: SftpClient, error: StatusError) -> None:
        failure: OSError = error
        write = self._writes[number]
        try:
            path = self._state.tree.path(write.file.node)
            failure = await explained(client, error, path, failures.nothing_known(path))
        except PeerError:
            failure = system_error(errno.EIO)
        except OSError:
            pass
        self._failed(write, failure)
        self._done(number)

    def _done(self, number: int) -> None:
        self._state.made_progress()
        self._remove(number)
        self._finish()
        self._pump(everything=bool(self._waiting))

    def _failed(self, write: _Write, error: OSError) -> None:
        name = os.fsdecode(write.file.node.name)
        if write.given is not None:
            _log.error("%r: attributes were not set: %s", name, error)
        else:
            where = write.size, write.offset
            _log.error("%r: %d bytes at %d were not written: %s", name, *where, error)
        write.file.fails(error)

    def _remove(self, number: int) -> None:
        write = self._writes.pop(number)
        if write is self._last:
            self._last = None
        self._state.unwritten.give(write.size)

    def _finish(self) -> None:
        if self.is_empty:
            self._state.unfinished.discard(self)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                future.resolve(None)
            self._on_empty()

    async def written(self) -> None:
        """Waits until the server has acknowledged everything that was written until now."""
        while not self.is_empty:
            self.push()
            future: Future[None] = Future()
            self._waiting.append(future)
            await future
