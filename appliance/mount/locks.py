"""Locks of fcntl(2) that hold for other clients of a server of ours, too.

The server's locks belong to handles. Among the programs of this machine, which may share a handle,
we decide; whoever gets a lock here then asks the server for it. What was read of the file before is
forgotten then, as another client may have changed it, even within a tick of the server's clock; and
what was written is at the server before a lock is given up. With other servers the kernel
decides for this machine alone, as it does of flock(2), and none of this is asked.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..aio.tasks import Future, Task, sleep
from ..errors import PeerError, system_error
from ..files.sftp_client import SftpClient
from ..wire import fuse, sftp
from ..wire.fuse import Request
from .fuse_session import Answer, Granted, Reply
from .node_files import Opened
from .open_file import OpenFile
from .state import MountState
from .tree import Node

_log = logging.getLogger(__name__)

_KINDS: Final = {
    fcntl.F_RDLCK: sftp.LOCK_SHARED,
    fcntl.F_WRLCK: sftp.LOCK_EXCLUSIVE,
    fcntl.F_UNLCK: sftp.LOCK_NONE,
}
_TESTS: Final = {fcntl.F_RDLCK: sftp.LOCK_TEST_SHARED, fcntl.F_WRLCK: sftp.LOCK_TEST_EXCLUSIVE}
# Our own choice
PAUSE: Final = 0.5  # seconds between two attempts to take a lock again

_END: Final = (1 << 63) - 1  # OFFSET_MAX: up to the end of the file


class _Lock(NamedTuple):
    """A lock that a program of this machine holds; ``end`` is its last byte."""

    owner: int
    file: OpenFile  # at whose handle the server knows it
    kind: int
    start: int
    end: int


class Locks:
    """The handlers of GETLK, SETLK and SETLKW, and the locks that are held."""

    def __init__(self, state: MountState, files: dict[int, Opened]) -> None:
        self._state = state
        self._files = files
        self._held: dict[Node, list[_Lock]] = {}
        self._asked: list[_Lock] = []  # those of them that the server has not given yet
        self._waiting: dict[Node, list[Future[None]]] = {}

    def getlk(self, request: Request) -> Answer:
        number, owner, start, end, kind, *_ = request.fields()
        return self._getlk(_Lock(owner, self._files[number].file, kind, start, end))

    async def _getlk(self, wanted: _Lock) -> Reply:
        for lock in self._in_the_way(wanted):
            return fuse.lock_reply(lock.start, lock.end, lock.kind, 0)
        try:
            await self._ask(wanted, _TESTS[wanted.kind], waits=False)
        except BlockingIOError:  # another client's: the server does not tell which
            return fuse.lock_reply(wanted.start, wanted.end, fcntl.F_WRLCK, 0)
        return fuse.lock_reply(0, 0, fcntl.F_UNLCK, 0)

    def setlk(self, request: Request) -> Answer:
        return self._set(request, waits=False)

    def setlkw(self, request: Request) -> Answer:
        return self._set(request, waits=True)

    def _set(self, request: Request, waits: bool) -> Answer:
        number, owner, start, end, kind, *_ = request.fields()
        lock = _Lock(owner, self._files[number].file, kind, start, end)
        if kind == fcntl.F_UNLCK:
            return self._unlock(lock)
        return self._lock(lock, waits)

    async def _lock(self, lock: _Lock, waits: bool) -> Reply:
        node = lock.file.node
        while any(self._in_the_way(lock)):
            if not waits:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            future: Future[None] = Future()
            self._waiting.setdefault(node, []).append(future)
            await future
        held = [each for each in self._held.get(node, []) if each.owner == lock.owner]
        self._held.setdefault(node, []).append(lock)  # others wait meanwhile
        self._asked.append(lock)
        try:
            await self._ask(lock, _KINDS[lock.kind], waits)
        except (OSError, PeerError):
            self._drop(lock)
            self._wake(node)
            raise
        finally:
            self._asked.remove(lock)
        if lock not in self._held.get(node, []):  # its program has closed the file meanwhile
            await self._give_up_there(lock)
            raise system_error(errno.EINTR)
        for each in held:
            self._cut(each, lock)
        await self._state.forget_content(node)
        return Granted(b"", lambda: self._unlock_later(lock))

    async def _unlock(self, lock: _Lock) -> Reply:
        cut = [each for each in self._held.get(lock.file.node, []) if each.owner == lock.owner]
        for each in cut:
            self._cut(each, lock)
        if cut and lock.file.node.files is not None:
            await lock.file.node.files.written()  # the next one to get the lock reads it
        for file in {each.file for each in cut}:
            await self._give_up_there(lock._replace(file=file))
        self._wake(lock.file.node)
        return b""

    def release(self, file: OpenFile, owner: int) -> None:
        """Gives up all locks of an owner, who has closed the file."""
        if any(each.owner == owner for each in self._held.get(file.node, [])):
            self._unlock_later(_Lock(owner, file, fcntl.F_UNLCK, 0, _END))

    def _unlock_later(self, lock: _Lock) -> None:
        Task(self._state.loop, self._try_to_unlock(lock))

    async def _try_to_unlock(self, lock: _Lock) -> None:
        try:
            await self._unlock(lock)
        except (OSError, PeerError) as error:  # the session has ended, and with it the lock
            _log.debug("%r: %s", os.fsdecode(lock.file.node.name), error)

    def take_again(self) -> None:
        """Takes the locks that a lost session had."""
        for node in list(self._held):
            Task(self._state.loop, self._take_again(node))

    async def _take_again(self, node: Node) -> None:
        for lock in [*self._held.get(node, [])]:
            if lock in self._asked:
                continue
            try:
                await self._insist(lock)
            except (OSError, PeerError) as error:
                _log.error("%r: a lock was lost: %s", os.fsdecode(node.name), error)
                lock.file.fails(system_error(errno.EIO))

    async def _insist(self, lock: _Lock) -> None:
        """Takes a lock that the server may still keep for the lost session."""
        end = self._state.loop.time() + self._state.settings.timeout
        while True:
            try:
                await self._ask(lock, _KINDS[lock.kind], waits=False)
            except BlockingIOError:
                if self._state.loop.time() > end or lock not in self._held.get(lock.file.node, []):
                    raise
                await sleep(self._state.loop, PAUSE)
            else:
                return

    # -- what is held ------------------------------------------------------------------

    def _in_the_way(self, wanted: _Lock) -> Iterator[_Lock]:
        for lock in self._held.get(wanted.file.node, []):
            overlaps = lock.start <= wanted.end and wanted.start <= lock.end
            is_shared = lock.kind == wanted.kind == fcntl.F_RDLCK
            if lock.owner != wanted.owner and overlaps and not is_shared:
                yield lock

    def _cut(self, lock: _Lock, by: _Lock) -> None:
        """Takes from a lock the bytes of another one of the same owner."""
        if by.end < lock.start or lock.end < by.start:
            return
        if not self._drop(lock):
            return
        held = self._held.setdefault(lock.file.node, [])
        if lock.start < by.start:
            held.append(lock._replace(end=by.start - 1))
        if by.end < lock.end:
            held.append(lock._replace(start=by.end + 1))
        if not held:
            del self._held[lock.file.node]

    def _drop(self, lock: _Lock) -> bool:
        """Whether the lock was still held; it is not any more."""
        held = self._held.get(lock.file.node, [])
        if lock not in held:
            return False
        held.remove(lock)
        if not held:
            del self._held[lock.file.node]
        return True

    def _wake(self, node: Node) -> None:
        for future in self._waiting.pop(node, []):
            future.resolve(None)

    # -- at the server -----------------------------------------------------------------

    async def _ask(self, lock: _Lock, kind: int, waits: bool) -> None:
        length = 0 if lock.end >= _END else lock.end - lock.start + 1

        async def ask(_: SftpClient) -> None:
            client, handle = await lock.file.handle()
            await client.lock(handle, kind, lock.start, length, waits)

        await self._state.server.ask(ask)

    async def _give_up_there(self, lock: _Lock) -> None:
        """Gives up a range at the server, unless another program holds it by the same handle."""
        for each in self._held.get(lock.file.node, []):
            if each.file is lock.file and each.start <= lock.end and lock.start <= each.end:
                return
        if lock.file.handle_now() is not None:
            await self._ask(lock, sftp.LOCK_NONE, waits=False)
