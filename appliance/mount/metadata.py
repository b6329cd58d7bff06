"""Attributes, symbolic links, extended attributes, and the size of the file system."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from ..aio.tasks import Future, Task
from ..errors import PeerError, system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from ..wire.fuse import Request
from . import failures
from .behind import Behind
from .failures import explained
from .fuse_session import Answer, Reply
from .listings import Listings
from .node_files import Opened
from .open_file import OpenFile
from .state import MountState, Told
from .tree import Node

_GETATTR_FH: Final = 1  # fuse.h: the request has a handle
_OWN_NAMESPACE: Final = b"user."  # xattr(7); others belong to the system here
_UNKNOWN_BLOCKS: Final = 1 << 30  # free, and in all, where the server does not tell
_SECOND: Final = 1_000_000_000  # nanoseconds

# Our own choice
STATFS_PATIENCE: Final = 1.0  # seconds; what was told before answers then


class Metadata:
    """The handlers of requests about one file's metadata."""

    def __init__(
        self, state: MountState, listings: Listings, behind: Behind, files: dict[int, Opened]
    ) -> None:
        self._state = state
        self._tree = state.tree
        self._listings = listings
        self._files = files  # that are open, by number
        self._behind = behind
        self._counting: Task[None] | None = None  # asks for the statistics
        self._statistics = fuse.statistics(
            _UNKNOWN_BLOCKS, _UNKNOWN_BLOCKS, _UNKNOWN_BLOCKS, 10**9, 10**9, 4096, 255, 4096
        )

    # -- attributes --------------------------------------------------------------------

    def getattr(self, request: Request) -> Answer:
        node = self._tree[request.node]
        if self._state.holds(node.expires):
            return self._state.attributes_reply(node)
        flags, number = request.fields()
        return self._getattr(node, self._file(number) if flags & _GETATTR_FH else None)

    def _file(self, number: int) -> OpenFile | None:
        opened = self._files.get(number)
        return opened.file if opened is not None else None

    async def _getattr(self, node: Node, file: OpenFile | None) -> Reply:
        if node.parent is not None and self._state.settings.caches and file is None:
            self._listings.missed(node.parent)
        await self.refresh(node, file)
        return self._state.attributes_reply(node)

    async def refresh(self, node: Node, file: OpenFile | None = None) -> None:
        """Asks the server for a node's attributes; raises OSError."""
        state = self._state
        await self._behind.settled(node)

        async def ask(client: SftpClient) -> Told:
            if node.files is not None:
                await node.files.sent()
            handle, asked = _handle_of(node, file), state.loop.time()
            if handle is not None:
                return Told(await client.fstat(handle), asked)
            return Told((await state.look(client, self._tree.path(node))).attrs, asked)

        try:
            told = await state.server.ask(ask)
        except FileNotFoundError as error:
            for parent, name in [*self._tree.names(node)]:
                state.unlinked(parent, name)
            raise system_error(errno.ESTALE) from error
        state.learn_same(node, told)

    def setattr(self, request: Request) -> Answer:
        node = self._tree[request.node]
        return self._setattr(node, request.fields())

    async def _setattr(self, node: Node, fields: tuple[int, ...]) -> Reply:
        state = self._state
        valid, number, size = fields[:3]
        file = self._file(number) if valid & fuse.FATTR_FH else None
        # SETSTAT sets both times. The other one is asked for if it is the one that matters.
        times = valid & (fuse.FATTR_ATIME | fuse.FATTR_MTIME)
        if times == fuse.FATTR_ATIME and node.expires <= state.loop.time():
            await self.refresh(node, file)
        if self._is_so(node, fields):
            return state.attributes_reply(node)
        given = self._wanted(node, fields)
        if self._change_behind(node, valid, given):
            return state.attributes_reply(node)
        if self._may_be_behind(node, valid):
            return self._set_behind(node, given)
        await self._behind.settled(node)
        if node.files is not None:
            await node.files.opened()
        if valid & fuse.FATTR_SIZE:
            given.size = size
            node.version += 1

        async def change(client: SftpClient) -> Told:
            if node.files is not None:
                await node.files.sent()
            asked = node.changed_at = state.loop.time()
            handle = _handle_of(node, file, for_writing=bool(valid & fuse.FATTR_SIZE))
            if handle is not None:
                changed = client.send(sftp.FSetStat(0, handle, given))
                looked = client.ask(sftp.FStat(0, handle), sftp.AttrsReply)
                path = b""
            else:
                path = self._tree.path(node)
                changed = self._change(client, node, path, given)
                looked = state.look(client, path)
            looked.when_done(lambda: None)
            try:
                await changed
            except StatusError as error:
                look = failures.nothing_known(path or self._tree.path(node))
                failure = await explained(client, error, path, look)
                if failure.errno == errno.EACCES and given.size is None:
                    failure = system_error(errno.EPERM)
                raise failure from error
            if given.size is not None:
                node.resize(given.size)
            return Told((await looked).attrs, asked)

        state.learn(node, await state.server.ask(change))
        return state.attributes_reply(node)

    def _change_behind(self, node: Node, valid: int, given: sftp.Attributes) -> bool:
        """Sends a change that cannot fail behind what was written, and does not wait for it.

        Mode and times of a file that we have just made are on their way with its content, and at
        the server when the file is closed. Servers that refuse them do not have the extension.
        """
        unusual = valid & (fuse.FATTR_SIZE | fuse.FATTR_UID | fuse.FATTR_GID)
        if unusual or node.files is None or not self._state.server.has(sftp.LSETSTAT):
            return False
        if not node.files.change_behind(given):
            return False
        self._behind.changed(node, given)
        if given.times is not None:
            node.is_dated = True
            node.expires = max(node.expires, self._state.loop.time() + self._state.attributes_hold)
        return True

    def _may_be_behind(self, node: Node, valid: int) -> bool:
        """Whether a change may be answered first: not of the size, and not of what is not known."""
        return (
            self._behind.is_on
            and not valid & fuse.FATTR_SIZE
            and node.parent is not None
            and self._behind.room.has_room
            and not stat.S_ISLNK(fuse.mode_in(node.packed))
            and node.expires > self._state.loop.time()
        )

    def _set_behind(self, node: Node, given: sftp.Attributes) -> Reply:
        async def work() -> Told:
            async def change(client: SftpClient, _: bool) -> Told:
                if node.files is not None:
                    await node.files.sent()
                path = self._tree.path(node)
                asked = node.changed_at = self._state.loop.time()
                changed = client.send(sftp.SetStat(0, path, given), path)
                looked = self._state.look(client, path)
                looked.when_done(lambda: None)
                await changed
                return Told((await looked).attrs, asked)

            return await self._state.server.insist(change)

        self._behind.changed(node, given)
        self._behind.add(node, work)
        return self._state.attributes_reply(node)

    def _is_so(self, node: Node, fields: tuple[int, ...]) -> bool:
        """Whether a change of owner or mode changes nothing: tar and cp ask for many of these."""
        valid, *_, mode, uid, gid = fields
        if valid & ~(fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_FH):
            return False
        if node.expires <= self._state.loop.time():
            return False
        known = fuse.Attributes.decode(node.packed)
        return not (
            (valid & fuse.FATTR_MODE and mode & 0o7777 != known.mode & 0o7777)
            or (valid & fuse.FATTR_UID and uid != known.uid)
            or (valid & fuse.FATTR_GID and gid != known.gid)
            or known.mode & (stat.S_ISUID | stat.S_ISGID)
        )

    def _wanted(self, node: Node, fields: tuple[int, ...]) -> sftp.Attributes:
        """Returns the attributes that SETATTR sets, but for the size."""
        valid, _, _, _, atime, mtime, _, ansec, mnsec, _, mode, uid, gid = fields
        known = fuse.Attributes.decode(node.packed)
        given = sftp.Attributes()
        if valid & fuse.FATTR_MODE:
            given.permissions = mode & 0o7777
        if valid & (fuse.FATTR_UID | fuse.FATTR_GID):
            given.owner = self._state.map.owner_there(
                uid if valid & fuse.FATTR_UID else known.uid,
                gid if valid & fuse.FATTR_GID else known.gid,
            )
        if valid & (fuse.FATTR_ATIME | fuse.FATTR_MTIME):
            accessed, modified = known.accessed, known.modified
            now = divmod(time.time_ns(), _SECOND)
            if valid & fuse.FATTR_ATIME:
                accessed = now if valid & fuse.FATTR_ATIME_NOW else (atime, ansec)
            if valid & fuse.FATTR_MTIME:
                modified = now if valid & fuse.FATTR_MTIME_NOW else (mtime, mnsec)
            given.times = _in_range(accessed[0]), _in_range(modified[0])
            if self._state.server.has(sftp.NANOSECONDS):
                given.nanoseconds = accessed[1], modified[1]
        return given

    def _change(
        self, client: SftpClient, node: Node, path: bytes, given: sftp.Attributes
    ) -> Future[None]:
        if not stat.S_ISLNK(fuse.mode_in(node.packed)):
            return client.send(sftp.SetStat(0, path, given), path)
        if not client.has(sftp.LSETSTAT):  # SETSTAT would change what the link leads to
            raise system_error(errno.EOPNOTSUPP)
        data = sftp.PathAttributes(path, given).encode()
        return client.send(sftp.Extended(0, sftp.LSETSTAT, data), path)

    def access(self, request: Request) -> Answer:
        """As sshfs: the server decides, but a file that nobody may execute is not executed."""
        (mask,) = request.fields()
        mode = fuse.mode_in(self._tree[request.node].packed)
        if mask & os.X_OK and stat.S_ISREG(mode) and not mode & 0o111:
            raise system_error(errno.EACCES)
        return b""

    # -- symbolic links ----------------------------------------------------------------

    def readlink(self, request: Request) -> Answer:
        node = self._tree[request.node]
        if node.target is not None and self._state.holds(node.expires):
            return node.target
        return self._readlink(node)

    async def _readlink(self, node: Node) -> Reply:
        await self._behind.settled(node)
        path = self._tree.path(node)
        target = await self._state.server.ask(lambda client: client.readlink(path))
        if not target or b"\0" in target or len(target) >= 4096:
            raise system_error(errno.EIO)
        settings = self._state.settings
        if settings.transform_symlinks and target.startswith(b"/"):
            target = os.path.relpath(target, os.path.dirname(path))
        if settings.contain_symlinks and (target.startswith(b"/") or b".." in target.split(b"/")):
            raise system_error(errno.EPERM)
        node.target = target
        return target

    # -- extended attributes -----------------------------------------------------------

    def getxattr(self, request: Request) -> Answer:
        (size,) = request.fields()
        (name,) = request.names()
        self._check_xattr(sftp.GET_XATTR, name)
        return self._getxattr(self._tree[request.node], name, size)

    async def _getxattr(self, node: Node, name: bytes, size: int) -> Reply:
        await self._behind.settled(node)
        path = self._tree.path(node)
        value = await self._state.server.ask(lambda client: client.get_xattr(path, name))
        return _sized(value, size)

    def listxattr(self, request: Request) -> Answer:
        (size,) = request.fields()
        self._check_xattr(sftp.LIST_XATTRS)
        return self._listxattr(self._tree[request.node], size)

    async def _listxattr(self, node: Node, size: int) -> Reply:
        await self._behind.settled(node)
        path = self._tree.path(node)
        names = await self._state.server.ask(lambda client: client.list_xattrs(path))
        own = [name for name in names if name.startswith(_OWN_NAMESPACE) and b"\0" not in name]
        return _sized(b"".join(name + b"\0" for name in own), size)

    def setxattr(self, request: Request) -> Answer:
        _, flags = request.fields()
        (name,) = request.names()
        self._check_xattr(sftp.SET_XATTR, name)
        return self._setxattr(self._tree[request.node], name, bytes(request.data()), flags)

    async def _setxattr(self, node: Node, name: bytes, value: bytes, flags: int) -> Reply:
        await self._behind.settled(node)
        path = self._tree.path(node)

        async def change(client: SftpClient, is_repeated: bool) -> None:
            # that it is there, or not, was seen when the change was made for the first time
            await client.set_xattr(path, name, value, 0 if is_repeated else flags)

        await self._state.server.change(change)
        return b""

    def removexattr(self, request: Request) -> Answer:
        (name,) = request.names()
        self._check_xattr(sftp.REMOVE_XATTR, name)
        return self._removexattr(self._tree[request.node], name)

    async def _removexattr(self, node: Node, name: bytes) -> Reply:
        await self._behind.settled(node)
        path = self._tree.path(node)

        async def remove(client: SftpClient, is_repeated: bool) -> None:
            try:
                await client.remove_xattr(path, name)
            except StatusError as error:
                if not (is_repeated and error.errno == errno.ENODATA):
                    raise

        await self._state.server.change(remove)
        return b""

    def _check_xattr(self, extension: str, name: bytes = _OWN_NAMESPACE) -> None:
        """Raises OSError for what the server does not have.

        What belongs to the system, as security.capability, is asked for with every write, and
        would mean nothing here.
        """
        server = self._state.server
        if server.is_connected and not server.has(extension):
            raise system_error(errno.ENOSYS)  # the kernel asks no more
        if not name.startswith(_OWN_NAMESPACE):
            raise system_error(errno.EOPNOTSUPP)

    # -- the file system ---------------------------------------------------------------

    def statfs(self, request: Request) -> Answer:
        server = self._state.server
        if not server.has(sftp.STATVFS) or not server.is_connected:
            return self._statistics
        return self._statfs()

    async def _statfs(self) -> Reply:
        """Returns what the server tells soon, or has told before: status bars ask for ever."""
        soon: Future[None] = Future()
        timer = self._state.loop.call_later(STATFS_PATIENCE, soon.resolve, None)
        task = self._counting
        if task is None or task.done:
            task = self._counting = Task(self._state.loop, self._ask_statistics())

        def done() -> None:
            timer.cancel()
            if not soon.done:
                soon.resolve(None)

        task.when_done(done)
        await soon
        return self._statistics

    async def _ask_statistics(self) -> None:
        path = self._tree.path(self._tree.root)
        try:
            found = await self._state.server.ask(lambda client: client.statvfs(path))
        except (OSError, PeerError):
            return
        self._statistics = fuse.statistics(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize & 0xFFFFFFFF,
            min(found.f_namemax, failures.NAME_MAX),
            found.f_frsize & 0xFFFFFFFF,
        )


def _handle_of(node: Node, file: OpenFile | None, for_writing: bool = False) -> bytes | None:
    """Returns a handle of an open file, if the kernel named it or the file has no name."""
    if file is not None and (file.is_writable or not for_writing):
        handle = file.handle_now()
        if handle is not None:
            return handle
    if node.parent is None and node.files is not None:
        return node.files.handle(for_writing)
    return None


def _sized(value: bytes, size: int) -> bytes:
    """The reply of GETXATTR and LISTXATTR; raises OSError if the caller has too little room."""
    if not size:
        return fuse.xattr_size(len(value))
    if len(value) > size:
        raise system_error(errno.ERANGE)
    return value


def _in_range(seconds: int) -> int:
    """Seconds as version 3 has them: none before 1970, none after 2106."""
    return min(max(seconds, 0), 0xFFFFFFFF)
