"""Opens, makes and closes files."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from ..wire.fuse import Request
from . import failures
from .behind import Behind
from .contents import SMALL, Contents
from .failures import explained
from .files_ahead import FilesAhead
from .fuse_session import Answer, Granted, Reply
from .listings import Listings
from .node_files import NodeFiles, Opened
from .open_file import OpenFile, pflags_of
from .read_ahead import Reader
from .state import MountState, Told
from .tree import Node


class Opening:
    """The handlers of OPEN, CREATE and RELEASE."""

    def __init__(
        self,
        state: MountState,
        listings: Listings,
        contents: Contents,
        ahead: FilesAhead,
        behind: Behind,
        files: dict[int, Opened],
    ) -> None:
        self._state = state
        self._tree = state.tree
        self._listings = listings
        self._contents = contents
        self._ahead = ahead
        self._behind = behind
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
            file = self._new(node, flags).file
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
        file, reader, _ = self._new(node, flags)
        if not handle:
            file.kept = node.version, data
        else:
            file.opened(handle, number)
            if changes == node.version:
                reader.begun(data)
            if not data:
                reader.start(node.size)
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
            self._state.changed(node)
            node.resize(0)
        file = self._new(node, flags).file
        file.opened(handle, number)
        return self._granted(node, flags, file)

    async def _open_same(self, client: SftpClient, node: Node, pflags: int) -> bytes:
        """Opens a node's file and learns its attributes; raises OSError if it is another one."""
        path, asked = self._tree.path(node), self._state.loop.time()
        looked = self._state.look(client, path)
        looked.when_done(lambda: None)
        handle = await client.open(path, pflags)
        try:
            self._state.learn_same(node, Told((await looked).attrs, asked))
        except OSError:
            client.abandon(handle)
            raise
        return handle

    async def _explained(self, node: Node, error: StatusError) -> OSError:
        if error.code == sftp.NO_SUCH_FILE:
            return system_error(errno.ESTALE)
        path = self._tree.path(node)
        look = failures.opening(path, creates=False, is_exclusive=False)
        return await explained(await self._state.server.client(), error, path, look)

    def create(self, request: Request) -> Answer:
        (name,) = request.names()
        flags, mode, _, _ = request.fields()
        parent = self._tree[request.node]
        if self._behind.may_make(parent, self._listings.current(parent), name):
            return self._create_behind(parent, name, flags, mode & 0o7777)
        return self._create(parent, name, flags, mode & 0o7777)

    def _create_behind(self, parent: Node, name: bytes, flags: int, mode: int) -> Reply:
        """Answers with a new file, which the server gets behind that."""
        node = self._behind.make(parent, name, stat.S_IFREG | mode)
        file, _, files = self._new(node, flags)
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

        files.queue.follow(file, self._behind.add(node, work))
        return self._created(node, flags, file)

    def _created(self, node: Node, flags: int, file: OpenFile) -> Granted:
        granted = self._granted(node, flags, file)
        entry = self._state.entry(node)

        def take_back() -> None:
            granted.take_back()
            self._tree.forget(node.number, 1)

        return Granted(entry + granted.structure, take_back)

    async def _create(self, parent: Node, name: bytes, flags: int, mode: int) -> Reply:
        failures.check_length(name)
        await self._behind.settled(parent)
        path = self._tree.path_of(parent, name)
        is_exclusive = bool(flags & os.O_EXCL)
        pflags = pflags_of(flags) | sftp.CREATE
        pflags |= sftp.TRUNCATE if flags & os.O_TRUNC else 0
        pflags |= sftp.EXCLUSIVE if is_exclusive else 0
        attrs = sftp.Attributes(permissions=mode if self._state.settings.create_mode else 0)
        number, handle = 0, b""

        async def begin(client: SftpClient, is_repeated: bool) -> sftp.Attributes:
            nonlocal number, handle, pflags
            number = self._state.server.number
            if is_repeated and is_exclusive and await failures.is_empty(client, path):
                pflags &= ~sftp.EXCLUSIVE  # we have made it
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
            attributes = await self._state.server.change(begin)
        except FileExistsError:
            self._listings.forget(parent)
            raise
        self._behind.observed(parent, attributes)
        node = self._state.made(parent, name, attributes)
        node.version += 1
        file = self._new(node, flags).file
        file.is_new = True
        file.opened(handle, number)
        return self._created(node, flags, file)

    def _new(self, node: Node, flags: int) -> Opened:
        files = node.files
        if not isinstance(files, NodeFiles):
            files = node.files = NodeFiles(self._state, node)
        file = OpenFile(self._state, self._next, node, flags)
        self._next += 1
        opened = self._open[file.number] = Opened(file, Reader(self._state, file), files)
        files.open.append(file)
        return opened

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
        return Granted(fuse.opened(file.number, opened), lambda: self._release(file.number))

    def release(self, request: Request) -> Answer:
        number, *_ = request.fields()
        self._release(number)
        return b""

    def _release(self, number: int) -> None:
        opened = self._open.pop(number)
        opened.files.closed(opened.file)
