"""Open files: open, create, read, write, flush, fsync, release, and copies at the server."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from ..aio.tasks import Future
from ..errors import PeerError
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from ..wire.fuse import Request
from . import failures
from .behind import LARGE
from .contents import SMALL, Contents
from .failures import explained
from .files_ahead import FilesAhead
from .fuse_session import Answer, Granted, Reply
from .listings import Listings
from .metadata import Metadata
from .open_files import NodeFiles, OpenFile, pflags_of
from .read_ahead import Reader
from .state import MountState
from .tree import Node

# Our own choice
COPY_AT_ONCE: Final = 16 << 20  # bytes that the server copies with no other request between


class Files:
    """The handlers of requests about open files."""

    def __init__(
        self,
        state: MountState,
        listings: Listings,
        metadata: Metadata,
        contents: Contents,
        ahead: FilesAhead,
        files: dict[int, OpenFile],
    ) -> None:
        self._state = state
        self._tree = state.tree
        self._listings = listings
        self._metadata = metadata
        self._contents = contents
        self._ahead = ahead
        self._behind = state.behind
        self._open = files
        self._next = 1

    # -- open --------------------------------------------------------------------------

    def open(self, request: Request) -> Answer:
        node = self._tree[request.node]
        flags, _ = request.fields()
        self._state.find_again(node)
        if flags & (os.O_ACCMODE | os.O_TRUNC) or self._state.settings.direct_io:
            return self._open_there(node, flags)
        if 0 < node.size <= SMALL:
            self._ahead.opened(node)
        if (data := self._contents.current(node)) is not None:
            file = self._new(node, flags)
            file.kept = node.version, data
            return self._granted(node, flags, file)
        return self._open_for_reading(node, flags)

    async def _open_for_reading(self, node: Node, flags: int) -> Reply:
        await self._behind.settled(node)
        is_small = 0 < node.size <= SMALL and node.expires > 0
        number, handle, data = 0, b"", b""
        changes = node.version

        async def begin(client: SftpClient) -> None:
            nonlocal number, handle, data
            number = self._state.server.number
            if node.files is not None:
                await node.files.sent()
            if is_small or client.has(sftp.READ_FILE):
                handle, data = await self._contents.fetch(client, node)
            else:
                handle = await self._open_same(client, node, sftp.READ)

        try:
            await self._state.server.ask(begin)
        except StatusError as error:
            raise await self._explained(node, error) from error
        file = self._new(node, flags)
        if not handle:
            file.kept = node.version, data
        else:
            file.opened(handle, number)
            assert file.reader is not None
            if changes == node.version:
                file.reader.begun(data)
            if not data:
                file.reader.start(node.size)
        return self._granted(node, flags, file)

    async def _open_there(self, node: Node, flags: int) -> Reply:
        """Opens a file at the server, which decides whether that is allowed."""
        await self._behind.settled(node)
        pflags = pflags_of(flags) | (sftp.TRUNCATE if flags & os.O_TRUNC else 0)
        number, handle = 0, b""

        async def begin(client: SftpClient) -> None:
            nonlocal number, handle
            number = self._state.server.number
            if node.files is not None:
                await node.files.sent()
            handle = await self._open_same(client, node, pflags)

        try:
            await self._state.server.ask(begin)
        except StatusError as error:
            raise await self._explained(node, error) from error
        if flags & os.O_TRUNC:
            self._changed(node)
        file = self._new(node, flags)
        file.opened(handle, number)
        return self._granted(node, flags, file)

    async def _open_same(self, client: SftpClient, node: Node, pflags: int) -> bytes:
        """Opens a node's file and learns its attributes; raises OSError if it is another one."""
        path = self._tree.path(node)
        looked = client.ask(sftp.LStat(0, path), sftp.AttrsReply, path)
        looked.when_done(lambda: None)
        handle = await client.open(path, pflags)
        try:
            self._state.learn_same(node, (await looked).attrs)
        except OSError:
            client.abandon(handle)
            raise
        return handle

    async def _explained(self, node: Node, error: StatusError) -> OSError:
        if error.code == sftp.NO_SUCH_FILE:
            return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        path = self._tree.path(node)
        look = failures.opening(path, creates=False, is_exclusive=False)
        return await explained(await self._state.server.client(), error, path, look)

    def create(self, request: Request) -> Answer:
        (name,) = request.names()
        flags, mode, _, _ = request.fields()
        parent = self._tree[request.node]
        if self._behind.may_make(parent, name):
            return self._create_behind(parent, name, flags, mode & 0o7777)
        return self._create(parent, name, flags, mode & 0o7777)

    def _create_behind(self, parent: Node, name: bytes, flags: int, mode: int) -> Reply:
        """Answers with a new file, which the server gets behind that."""
        node = self._behind.make(parent, name, stat.S_IFREG | mode)
        file = self._new(node, flags)
        file.is_new = True
        file.comes()
        attrs = sftp.Attributes(permissions=mode if self._state.settings.create_mode else 0)
        pflags = pflags_of(flags) | sftp.CREATE

        async def make(client: SftpClient, is_repeated: bool) -> None:
            number, path = self._state.server.number, self._tree.path(node)
            exclusive = 0 if is_repeated else sftp.EXCLUSIVE
            try:
                file.opened(await client.open(path, pflags | exclusive, attrs), number)
            except StatusError as error:
                look = failures.opening(path, creates=True, is_exclusive=not is_repeated)
                raise await explained(client, error, path, look) from error

        async def work() -> None:
            await file.make(lambda: self._state.server.insist(make))

        assert node.files is not None
        node.files.queue.follow(file, self._behind.add(node, work))
        return self._created(node, flags, file)

    def _created(self, node: Node, flags: int, file: OpenFile) -> Granted:
        granted = self._granted(node, flags, file)
        entry = self._state.entry(node)

        def take_back() -> None:
            granted.take_back()
            self._tree.forget(node.number, 1)

        return Granted(entry + granted.structure, take_back)

    async def _create(self, parent: Node, name: bytes, flags: int, mode: int) -> Reply:
        if len(name) > failures.NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        await self._behind.settled(parent)
        path = self._tree.path_of(parent, name)
        is_exclusive = bool(flags & os.O_EXCL)
        pflags = pflags_of(flags) | sftp.CREATE
        pflags |= sftp.TRUNCATE if flags & os.O_TRUNC else 0
        pflags |= sftp.EXCLUSIVE if is_exclusive else 0
        attrs = sftp.Attributes(permissions=mode if self._state.settings.create_mode else 0)
        number, handle = 0, b""

        async def begin(client: SftpClient) -> sftp.Attributes:
            nonlocal number, handle
            number = self._state.server.number
            opened = client.ask(sftp.Open(0, path, pflags, attrs), sftp.Handle, path)
            looked = client.ask(sftp.LStat(0, path), sftp.AttrsReply, path)
            looked.when_done(lambda: None)
            try:
                handle = (await opened).handle
            except StatusError as error:
                look = failures.opening(path, creates=True, is_exclusive=is_exclusive)
                raise await explained(client, error, path, look) from error
            try:
                found = (await looked).attrs
                if stat.S_ISREG(found.permissions or 0):
                    return found
            except StatusError:  # a server that does requests in another order
                pass
            return await client.fstat(handle)

        try:
            attributes = await self._state.server.ask(begin)
        except FileExistsError:
            self._listings.forget(parent)
            raise
        self._behind.observed(attributes)
        node = self._state.made(parent, name, attributes)
        node.version += 1
        file = self._new(node, flags)
        file.is_new = True
        file.opened(handle, number)
        return self._created(node, flags, file)

    def _new(self, node: Node, flags: int) -> OpenFile:
        if node.files is None:
            node.files = NodeFiles(self._state, node)
        file = OpenFile(self._state, self._next, node, flags)
        file.reader = Reader(self._state, file)
        self._next += 1
        self._open[file.number] = file
        node.files.open.append(file)
        return file

    def _granted(self, node: Node, flags: int, file: OpenFile) -> Granted:
        """Returns the reply for an open file; the kernel keeps its pages if they are current."""
        settings, now = self._state.settings, self._state.loop.time()
        is_direct = settings.direct_io or node.exchanged > now
        opened = fuse.FOPEN_DIRECT_IO if is_direct else 0
        is_known = node.cached_version == node.seen_version and node.expires > now
        if settings.kernel_cache or (is_known and node.proves(node.cached_at)):
            opened |= fuse.FOPEN_KEEP_CACHE
        else:
            node.cached_version, node.cached_at = node.seen_version, now
        return Granted(fuse.opened(file.number, opened), lambda: self._release(file))

    def release(self, request: Request) -> Answer:
        number, *_ = request.fields()
        self._release(self._open[number])
        return b""

    def _release(self, file: OpenFile) -> None:
        self._open.pop(file.number, None)
        files = file.node.files
        assert files is not None
        files.closed(file)

    # -- read and write ----------------------------------------------------------------

    def read(self, request: Request) -> Answer:
        number, offset, size, *_ = request.fields()
        file = self._open[number]
        node = file.node
        if file.handle_now() is None or not node.files or not node.files.is_changing:
            data = self._contents.current(node)
            if data is not None:
                return data[offset : offset + size]
        if node.files is not None and node.files.is_changing:
            node.files.queue.push()
            if not self._state.server.is_connected:
                return self._read_written(file, offset, size)
        assert file.reader is not None
        return file.reader.read(request.unique, offset, size)

    async def _read_written(self, file: OpenFile, offset: int, size: int) -> Reply:
        assert file.node.files is not None and file.reader is not None
        await file.node.files.written()
        return await file.reader.read_in_pieces(offset, size)

    def write(self, request: Request) -> Answer:
        number, offset, size, *_ = request.fields()
        file = self._open[number]
        file.tell_error()
        data = bytes(request.data())
        self._changed(file.node)
        file.node.grow(offset + size)
        if self._behind.is_on and file.is_new:
            self._behind.written(file.node)
        assert file.node.files is not None
        file.node.files.queue.add(file, offset, data)
        if self._state.settings.sync_writes:
            return self._written(file, size)
        if self._state.unwritten.has_room:
            return fuse.written(size)
        return self._with_room(size)

    async def _with_room(self, size: int) -> Reply:
        await self._state.unwritten.room()
        return fuse.written(size)

    async def _written(self, file: OpenFile, size: int) -> Reply:
        assert file.node.files is not None
        await file.node.files.written()
        file.tell_error()
        return fuse.written(size)

    def _changed(self, node: Node) -> None:
        """Takes note that a file's content is another one now."""
        node.version += 1
        node.is_dated = False
        self._state.doubt(node)

    def flush(self, request: Request) -> Answer:
        file = self._open[request.fields()[0]]
        assert file.node.files is not None
        if not file.node.files.is_changing:
            file.tell_error()
            return b""
        if self._behind.is_on and file.is_new and self._state.unwritten.held < LARGE:
            file.tell_error()
            self._behind.add(file.node, lambda: self._finish(file))
            return b""
        return self._flush(file)

    async def _finish(self, file: OpenFile) -> sftp.Attributes | None:
        """Waits for the writes of a file that its program has closed; returns its attributes.

        Its time of modification becomes the one that was shown.
        """
        node = file.node
        if node.files is not None:
            await node.files.written()
        client, handle = await file.handle()
        if not node.is_dated and client.has(sftp.LSETSTAT):
            known = fuse.Attributes.decode(node.packed)
            (accessed, first), (modified, second) = known.accessed, known.modified
            dated = sftp.Attributes(times=(accessed, modified))
            if client.has(sftp.NANOSECONDS):
                dated.nanoseconds = first, second
            client.send(sftp.FSetStat(0, handle, dated)).when_done(lambda: None)
        return await client.fstat(handle)

    async def _flush(self, file: OpenFile) -> Reply:
        """Waits for the writes, and learns the attributes that they have led to."""
        node, files = file.node, file.node.files
        assert files is not None
        files.queue.push()
        handle, changes = file.handle_now(), node.version
        looked: Future[sftp.AttrsReply] | None = None
        if handle is not None and self._state.server.is_connected:
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
            if changes == node.version:
                self._state.learn(node, attributes)
        return b""

    def fsync(self, request: Request) -> Answer:
        file = self._open[request.fields()[0]]
        return self._fsync(file)

    async def _fsync(self, file: OpenFile) -> Reply:
        await self._behind.settled(file.node)
        await self._flush(file)

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
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # all is data, to the kernel
        return self._lseek(self._open[number], offset, whence)

    async def _lseek(self, file: OpenFile, offset: int, whence: int) -> Reply:
        node = file.node
        if node.files is not None:
            await node.files.sent()
        if node.expires <= self._state.loop.time():
            await self._metadata.refresh(node, file)
        if offset >= node.size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        client, handle = await file.handle()
        found = await client.extents(handle, offset)
        if whence == os.SEEK_DATA:
            if not found.runs:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
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
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._copy(self._open[number], offset, self._open[target], at, length)

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
        self._changed(target.node)
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
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from error
            target.node.grow(at + length)
            return fuse.written(length)
        raise OSError(errno.EIO, os.strerror(errno.EIO))
