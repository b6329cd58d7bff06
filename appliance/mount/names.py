"""Names: lookup, make, remove, rename and link."""

from __future__ import annotations

import errno
import stat
from typing import Final

from ..errors import system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import sftp
from ..wire.fuse import Request
from . import failures
from .behind import Behind
from .failures import explained
from .fuse_session import Answer, Granted, Reply
from .listings import Listings
from .server import Operation
from .state import MountState, Told
from .tree import Node

# renameat2(2)
_NOREPLACE: Final = 1


class Names:
    """The handlers of requests about names."""

    def __init__(self, state: MountState, listings: Listings, behind: Behind) -> None:
        self._state = state
        self._tree = state.tree
        self._listings = listings
        self._behind = behind

    # -- lookup ------------------------------------------------------------------------

    def lookup(self, request: Request) -> Answer:
        parent = self._tree[request.node]
        (name,) = request.names()
        failures.check_length(name)
        now = self._state.loop.time()
        node = parent.children.get(name)
        if node is not None and self._state.holds(node.expires):
            return self._granted(node)
        listing = self._listings.current(parent)
        if listing is not None:
            packed = listing.entries.get(name)
            if packed is None:
                return self._state.missing(listing.expires - now)
            expires = listing.expires_of(packed) if packed else 0.0
            if packed and self._state.holds(expires) and (node is None or node.expires >= expires):
                node = self._tree.child(parent, name, packed, expires, listing.begun, now)
                return self._granted(node)
        return self._look_up(parent, name)

    def _granted(self, node: Node) -> Granted:
        return Granted(self._state.entry(node), self._state.take_back(node))

    async def _look_up(self, parent: Node, name: bytes) -> Reply:
        state = self._state
        if state.settings.caches:
            self._listings.missed(parent)
        await self._behind.settled(parent)
        path = self._tree.path_of(parent, name)
        asked = 0.0

        async def ask(client: SftpClient) -> sftp.Attributes | None:
            nonlocal asked
            node = parent.children.get(name)
            if node is not None and node.files is not None and node.files.is_changing:
                await node.files.sent()
            asked = state.loop.time()
            try:
                return (await state.look(client, path)).attrs
            except StatusError as error:
                if state.settings.follow_symlinks and error.code == sftp.NO_SUCH_FILE:
                    return await _link_itself(client, path)
                if error.code == sftp.NO_SUCH_FILE:
                    return None
                raise

        attributes = await state.server.ask(ask)
        if attributes is None:
            self._tree.remove(parent, name)
            if parent.listing is not None:
                parent.listing.change(name, None)
            hold = state.attributes_hold if state.settings.negative_timeout else 0.0
            return state.missing(hold)
        now = state.loop.time()
        packed = state.map.pack(attributes)
        if not packed:
            raise system_error(errno.EIO)
        if parent.listing is not None:
            parent.listing.change(name, packed)
        return self._granted(
            self._tree.child(parent, name, packed, now + state.attributes_hold, asked, now)
        )

    def forget(self, request: Request) -> Answer:
        (count,) = request.fields()
        self._tree.forget(request.node, count)
        return b""

    def batch_forget(self, request: Request) -> Answer:
        for node, count in request.forgotten():
            self._tree.forget(node, count)
        return b""

    # -- make --------------------------------------------------------------------------

    def mkdir(self, request: Request) -> Answer:
        (name,) = request.names()
        mode, _ = request.fields()
        parent = self._tree[request.node]
        if self._behind.may_make(parent, self._listings.current(parent), name):
            return self._mkdir_behind(parent, name, mode & 0o7777)
        return self._mkdir(parent, name, mode & 0o7777)

    def _mkdir_behind(self, parent: Node, name: bytes, mode: int) -> Reply:
        node = self._behind.make(parent, name, stat.S_IFDIR | mode)
        self._listings.made(node)
        message = sftp.MkDir(0, b"", sftp.Attributes(permissions=mode))
        self._behind.add(node, lambda: self._make_there(node, message))
        return self._granted(node)

    async def _make_there(self, node: Node, message: sftp.MkDir | sftp.SymLink) -> Told:
        path, asked = self._tree.path(node), self._state.loop.time()
        if isinstance(message, sftp.MkDir):
            message.path = path
        else:
            message.linkpath = path
        return Told(await self._state.server.insist(_made_by(message, path)), asked)

    async def _mkdir(self, parent: Node, name: bytes, mode: int) -> Reply:
        path = self._tree.path_of(parent, name)
        message = sftp.MkDir(0, path, sftp.Attributes(permissions=mode))
        reply = await self._make(parent, name, _made_by(message, path))
        self._listings.made(parent.children[name])
        return reply

    def mknod(self, request: Request) -> Answer:
        (name,) = request.names()
        mode, _, _ = request.fields()
        if not stat.S_ISREG(mode):
            raise system_error(errno.EPERM)
        return self._mknod(self._tree[request.node], name, mode & 0o7777)

    async def _mknod(self, parent: Node, name: bytes, mode: int) -> Reply:
        path = self._tree.path_of(parent, name)

        async def make(client: SftpClient, is_repeated: bool) -> sftp.Attributes:
            flags = sftp.WRITE | sftp.CREATE | sftp.EXCLUSIVE
            if is_repeated and await failures.is_empty(client, path):
                return await client.lstat(path)
            try:
                handle = await client.open(path, flags, sftp.Attributes(permissions=mode))
            except StatusError as error:
                look = failures.opening(path, creates=True, is_exclusive=True)
                raise await explained(client, error, path, look) from error
            client.abandon(handle)
            return await client.lstat(path)

        return await self._make(parent, name, make)

    def symlink(self, request: Request) -> Answer:
        name, target = request.names()
        parent = self._tree[request.node]
        if self._behind.may_make(parent, self._listings.current(parent), name):
            node = self._behind.make(parent, name, stat.S_IFLNK | 0o777, len(target))
            message = sftp.SymLink(0, target, b"")
            self._behind.add(node, lambda: self._make_there(node, message))
            return self._granted(node)
        return self._symlink(parent, name, target)

    async def _symlink(self, parent: Node, name: bytes, target: bytes) -> Reply:
        path = self._tree.path_of(parent, name)
        return await self._make(parent, name, _made_by(sftp.SymLink(0, target, path), path))

    async def _make(self, parent: Node, name: bytes, make: Operation[sftp.Attributes]) -> Reply:
        await self._behind.settled(parent)
        try:
            attributes = await self._state.server.change(make)
        except FileExistsError:  # our listing did not have it
            self._listings.forget(parent)
            raise
        self._behind.observed(parent, attributes)
        return self._granted(self._state.made(parent, name, attributes))

    def link(self, request: Request) -> Answer:
        (name,) = request.names()
        (number,) = request.fields()
        if not self._state.settings.hard_links:
            raise system_error(errno.ENOSYS)
        return self._link(self._tree[number], self._tree[request.node], name)

    async def _link(self, node: Node, parent: Node, name: bytes) -> Reply:
        await self._behind.settled(node)
        await self._behind.settled(parent)
        old, new = self._tree.path(node), self._tree.path_of(parent, name)

        async def make(client: SftpClient, is_repeated: bool) -> Told:
            if not client.has(sftp.HARDLINK):
                raise system_error(errno.EOPNOTSUPP)
            try:
                await client.hardlink(old, new)
            except StatusError as error:
                failure = await explained(client, error, new, failures.linking(old, new))
                if not (is_repeated and failure.errno == errno.EEXIST):
                    raise failure from error
            asked = self._state.loop.time()
            return Told(await client.lstat(new), asked)

        told = await self._state.server.change(make)
        attributes = told.attributes
        if attributes.identity is not None:
            self._tree.add_name(node, parent, name)
            self._state.learn(node, told)
        else:  # as sshfs has it: another file, for all that is known
            self._state.doubt(node)
        return self._granted(self._state.made(parent, name, attributes))

    # -- remove ------------------------------------------------------------------------

    def unlink(self, request: Request) -> Answer:
        (name,) = request.names()
        return self._unlink(self._tree[request.node], name)

    async def _unlink(self, parent: Node, name: bytes) -> Reply:
        node = parent.children.get(name)
        if node is not None:
            await self._behind.settled(node)
            if node.files is not None:
                await node.files.written()
                await node.files.opened()
        path = self._tree.path_of(parent, name)

        async def remove(client: SftpClient, is_repeated: bool) -> None:
            try:
                await client.remove(path)
            except StatusError as error:
                if not (is_repeated and error.code == sftp.NO_SUCH_FILE):
                    look = failures.nothing_known(path)
                    raise await explained(client, error, path, look) from error

        await self._state.server.change(remove)
        self._state.unlinked(parent, name)
        return b""

    def rmdir(self, request: Request) -> Answer:
        (name,) = request.names()
        return self._rmdir(self._tree[request.node], name)

    async def _rmdir(self, parent: Node, name: bytes) -> Reply:
        if (node := parent.children.get(name)) is not None:
            await self._behind.settled_below(node)
        path = self._tree.path_of(parent, name)

        async def remove(client: SftpClient, is_repeated: bool) -> None:
            try:
                await client.rmdir(path)
            except StatusError as error:
                if not (is_repeated and error.code == sftp.NO_SUCH_FILE):
                    look = failures.removing_directory(path)
                    raise await explained(client, error, path, look) from error

        await self._state.server.change(remove)
        self._state.unlinked(parent, name)
        return b""

    # -- rename ------------------------------------------------------------------------

    def rename(self, request: Request) -> Answer:
        old, new = request.names()
        (target,) = request.fields()
        return self._rename(self._tree[request.node], old, self._tree[target], new, 0)

    def rename2(self, request: Request) -> Answer:
        old, new = request.names()
        target, flags = request.fields()
        if flags & ~_NOREPLACE:
            raise system_error(errno.EINVAL)
        return self._rename(self._tree[request.node], old, self._tree[target], new, flags)

    async def _rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> Reply:
        tree, state = self._tree, self._state
        node, replaced = parent.children.get(name), new_parent.children.get(new_name)
        await self._behind.settled(new_parent)
        for each in [*(tree.below(node) if node else ()), replaced]:
            if each is not None:
                await self._behind.settled(each)
                if each.files is not None:
                    await each.files.written()
                    await each.files.opened()
        old, new = tree.path_of(parent, name), tree.path_of(new_parent, new_name)

        async def rename(client: SftpClient, is_repeated: bool) -> None:
            if is_repeated and await failures.was_renamed(client, old, new):
                return
            try:
                await self._rename_there(client, old, new, flags)
            except StatusError as error:
                look = failures.renaming(old, new, replaces=not flags)
                failure = await explained(client, error, new, look)
                if state.settings.rename_exdev and failure.errno in (errno.EPERM, errno.EIO):
                    failure = system_error(errno.EXDEV)
                raise failure from error

        try:
            await state.server.change(rename)
        except OSError:
            self._listings.forget(new_parent)
            raise
        packed = b""
        if parent.listing is not None:
            packed = parent.listing.entries.get(name, b"")
        if replaced is not None and replaced is not node:
            replaced.expires = 0.0  # it has one name less
            replaced.replaced_at = new_parent, new_name
        tree.move(parent, name, new_parent, new_name)
        state.renamed_in(parent, name, None)
        state.renamed_in(new_parent, new_name, packed)
        if node is not None:
            node.expires = 0.0  # its ctime has changed
        return b""

    async def _rename_there(self, client: SftpClient, old: bytes, new: bytes, flags: int) -> None:
        if flags & _NOREPLACE:
            if await failures.exists(client, new):
                raise system_error(errno.EEXIST)
            await client.plain_rename(old, new)
            return
        try:
            await client.rename(old, new)
        except StatusError:
            if client.has(sftp.POSIX_RENAME) or not self._state.settings.rename_over:
                raise
            await client.remove(new)  # workaround=rename
            await client.plain_rename(old, new)


def _made_by(message: sftp.MkDir | sftp.SymLink, path: bytes) -> Operation[sftp.Attributes]:
    """Returns what makes ``path`` by a request, and asks for its attributes right behind it."""

    async def make(client: SftpClient, is_repeated: bool) -> sftp.Attributes:
        made = client.send(message, path)
        looked = client.ask(sftp.LStat(0, path), sftp.AttrsReply, path)
        looked.when_done(lambda: None)  # its failure as well
        try:
            await made
        except StatusError as error:
            failure = await explained(client, error, path, failures.new_name(path))
            if not (is_repeated and failure.errno == errno.EEXIST):
                raise failure from error
        return (await looked).attrs

    return make


async def _link_itself(client: SftpClient, path: bytes) -> sftp.Attributes | None:
    """Returns the attributes of a symbolic link that leads nowhere; None for no name at all."""
    try:
        return await client.lstat(path)
    except StatusError as error:
        if error.code == sftp.NO_SUCH_FILE:
            return None
        raise
