"""The data of open files: read, write, flush, fsync, holes, and copies at the server."""

from __future__ import annotations

import errno
import os
from typing import Final

from ..aio.tasks import Future
from ..errors import PeerError, system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from ..wire.fuse import Request
from .behind import LARGE, Behind
from .contents import Contents
from .fuse_session import Answer, Reply
from .locks import Locks
from .metadata import Metadata
from .node_files import Opened
from .open_file import OpenFile
from .state import MountState, Told

# Our own choice
COPY_AT_ONCE: Final = 16 << 20  # bytes that the server copies with no other request between


class Data:
    """The handlers of requests about the data of open files."""

    def __init__(
        self,
        state: MountState,
        metadata: Metadata,
        contents: Contents,
        behind: Behind,
        locks: Locks,
        files: dict[int, Opened],
    ) -> None:
        self._state = state
        self._metadata = metadata
        self._contents = contents
        self._behind = behind
        self._locks = locks
        self._open = files

    # -- read and write ----------------------------------------------------------------

    def read(self, request: Request) -> Answer:
        number, offset, size, *_ = request.fields()
        opened = self._open[number]
        if (data := self._contents.current(opened.file.node)) is not None:
            return data[offset : offset + size]
        if opened.files.is_changing:
            opened.files.queue.push()
            if not opened.files.queue.is_sent:
                return self._read_written(opened, offset, size)
        return opened.reader.read(request.unique, offset, size)

    async def _read_written(self, opened: Opened, offset: int, size: int) -> Reply:
        await opened.files.written()
        return await opened.reader.read_in_pieces(offset, size)

    def write(self, request: Request) -> Answer:
        number, offset, size, *_ = request.fields()
        opened = self._open[number]
        file = opened.file
        file.tell_error()
        data = bytes(request.data())
        self._state.changed(file.node)
        file.node.grow(offset + size)
        is_ours = file.is_new or file.node.pending
        if self._behind.is_on and is_ours and file.node.parent is not None:
            self._behind.written(file.node, size)
        opened.files.queue.add(file, offset, data)
        if self._state.settings.sync_writes:
            return self._written(opened, size)
        if self._state.unwritten.has_room:
            return fuse.written(size)
        return self._with_room(size)

    async def _with_room(self, size: int) -> Reply:
        await self._state.unwritten.room()
        return fuse.written(size)

    async def _written(self, opened: Opened, size: int) -> Reply:
        await opened.files.written()
        opened.file.tell_error()
        return fuse.written(size)

    def flush(self, request: Request) -> Answer:
        number, owner = request.fields()
        opened = self._open[number]
        file = opened.file
        self._locks.release(file, owner)
        if not opened.files.is_changing and not file.node.is_expected:
            file.tell_error()
            return b""
        if self._behind.is_on and file.is_new and self._state.unwritten.held < LARGE:
            file.tell_error()
            finishing = self._behind.add(file.node, lambda: self._finish(opened))
            opened.files.use(file, finishing)
            return b""
        return self._flush(opened)

    async def _finish(self, opened: Opened) -> Told | None:
        """Waits for the writes of a file that its program has closed; returns its attributes.

        Its time of modification becomes the one that was shown.
        """
        file, node = opened.file, opened.file.node
        await opened.files.written()
        known = fuse.Attributes.decode(node.packed)
        (accessed, first), (modified, second) = known.accessed, known.modified

        async def finish(*_: object) -> Told:
            client, handle = await file.handle()
            if not node.is_dated and client.has(sftp.LSETSTAT):
                dated = sftp.Attributes(times=(accessed, modified))
                if client.has(sftp.NANOSECONDS):
                    dated.nanoseconds = first, second
                client.send(sftp.FSetStat(0, handle, dated)).when_done(lambda: None)
            asked = self._state.loop.time()
            return Told(await client.fstat(handle), asked)

        return await self._state.server.insist(finish)

    async def _flush(self, opened: Opened) -> Reply:
        """Waits for the writes, and learns the attributes that they have led to."""
        file, node, files = opened.file, opened.file.node, opened.files
        files.queue.push()
        handle, asked = file.handle_now(), self._state.loop.time()
        looked: Future[sftp.AttrsReply] | None = None
        if handle is not None and self._state.server.is_connected and files.queue.is_sent:
            client = self._state.server.client_now()
            looked = client.ask(sftp.FStat(0, handle), sftp.AttrsReply)
            looked.when_done(lambda: None)
        await files.written()
        file.tell_error()
        if looked is not None:
            try:
                attributes = (await looked).attrs
            except (OSError, PeerError):
                return b""
            self._state.learn(node, Told(attributes, asked))
        return b""

    def fsync(self, request: Request) -> Answer:
        return self._fsync(self._open[request.fields()[0]])

    async def _fsync(self, opened: Opened) -> Reply:
        file = opened.file
        await self._behind.settled(file.node)
        await self._flush(opened)

        async def sync(client: SftpClient) -> None:
            if client.has(sftp.FSYNC):
                client, handle = await file.handle()
                await client.fsync(handle)

        await self._state.server.ask(sync)
        return b""

    # -- holes and copies --------------------------------------------------------------

    def lseek(self, request: Request) -> Answer:
        number, offset, whence = request.fields()
        if not self._state.server.has(sftp.EXTENTS):
            raise system_error(errno.ENOSYS)  # all is data, to the kernel
        return self._lseek(self._open[number].file, offset, whence)

    async def _lseek(self, file: OpenFile, offset: int, whence: int) -> Reply:
        node = file.node
        if node.files is not None:
            await node.files.sent()
        if node.expires <= self._state.loop.time():
            await self._metadata.refresh(node, file)
        if offset >= node.size:
            raise system_error(errno.ENXIO)

        async def look(client: SftpClient) -> sftp.Extents:
            client, handle = await file.handle()
            return await client.extents(handle, offset)

        found = await self._state.server.ask(look)
        if whence == os.SEEK_DATA:
            if not found.runs:
                raise system_error(errno.ENXIO)
            return fuse.offset_reply(max(offset, found.runs[0][0]))
        at = offset
        for begin, length in found.runs:
            if begin > at:
                break
            at = max(at, begin + length)
        return fuse.offset_reply(min(at, node.size))

    def copy_file_range(self, request: Request) -> Answer:
        number, offset, _, target, at, length, flags = request.fields()
        if not self._state.server.has(sftp.COPY_DATA):
            raise system_error(errno.EOPNOTSUPP)
        if flags:
            raise system_error(errno.EINVAL)
        source_file, target_file = self._open[number].file, self._open[target].file
        return self._copy(source_file, offset, target_file, at, length)

    async def _copy(
        self, source: OpenFile, offset: int, target: OpenFile, at: int, length: int
    ) -> Reply:
        """Has the server copy, as much as it may do without an answer to others."""
        for file in (source, target):
            await self._behind.settled(file.node)
            if file.node.files is not None:
                await file.node.files.written()
        if source.node.expires <= self._state.loop.time():
            await self._metadata.refresh(source.node, source)
        length = min(length, COPY_AT_ONCE, max(0, source.node.size - offset))
        if not length:
            return fuse.written(0)
        self._state.changed(target.node)
        for _ in range(3):  # both handles must belong to one session
            client, read_handle = await source.handle()
            other, write_handle = await target.handle()
            if client is not other:
                continue
            try:
                await client.copy_data(read_handle, offset, length, write_handle, at)
            except PeerError:
                continue
            except StatusError as error:  # the kernel copies, and finds the reason if there is one
                raise system_error(errno.EOPNOTSUPP) from error
            self._state.changed(target.node)
            target.node.grow(at + length)
            return fuse.written(length)
        raise system_error(errno.EIO)
