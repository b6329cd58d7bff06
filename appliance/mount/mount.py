"""A mounted directory: the handlers of all requests, put together.

    mount = Mount(loop, settings, connect)
    await mount.start()          logs in, and finds the root
    mount.serve(fd, on_end)      answers the kernel from then on
    await mount.finish()         writes what waits, before the end
    mount.close()

In the order in which a request meets them: fuse_session.py reads it; names.py, directories.py,
metadata.py, opening.py and data.py handle it; they answer by what listings.py, contents.py and
tree.py know, or ask the server of server.py.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from ..aio.loop import Loop
from ..errors import UsageError
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from .behind import Behind
from .contents import Contents
from .data import Data
from .directories import Directories
from .files_ahead import FilesAhead
from .fuse_session import FuseSession, Handler
from .listings import Listings
from .locks import Locks
from .metadata import Metadata
from .names import Names
from .node_files import Opened
from .opening import Opening
from .server import Connect, Server
from .settings import MountSettings
from .state import MountState, Told

_log = logging.getLogger(__name__)

_HOME: Final = b"."  # a session begins there


class Figures(NamedTuple):
    """The state of a mount, and its traffic."""

    is_connected: bool
    received: int  # bytes of SFTP from the server
    sent: int
    round_trip: float  # seconds
    last_error: str  # of the connection that is lost; '' while there is one


class Mount:
    """One mounted directory of a server."""

    def __init__(self, loop: Loop, settings: MountSettings, connect: Connect) -> None:
        self._loop = loop
        self._settings = settings
        self._server = Server(loop, connect, settings.timeout)
        self._state: MountState | None = None
        self._session: FuseSession | None = None
        self._behind: Behind | None = None
        self._files: dict[int, Opened] = {}

    async def start(self) -> int:
        """Logs in and finds the root; returns its st_mode. Raises CulvertError and OSError."""
        client = await self._server.start()
        path, asked = self._settings.directory or _HOME, self._loop.time()
        try:
            root = await client.expand_path(path)
            attributes = await client.stat(root)
            if attributes.permissions is None:
                is_directory = await client.is_directory(root, attributes)
                attributes.permissions = (stat.S_IFDIR if is_directory else stat.S_IFREG) | 0o777
        except StatusError as error:
            raise OSError(error.errno, error.strerror) from error
        state = self._state = MountState(self._loop, self._settings, self._server, root)
        state.map.found_root(attributes)
        if self._settings.maps_own_user:
            await self._find_own_user(state, client)
        await self._measure(state, client, root)
        state.learn(state.tree.root, Told(attributes, asked))
        return fuse.mode_in(state.tree.root.packed)

    async def _find_own_user(self, state: MountState, client: SftpClient) -> None:
        """Finds the server's user as sshfs does: it has the home directory."""
        owner = (await client.stat(_HOME)).owner
        if owner is None:
            raise UsageError("idmap=user: the server does not tell whose files are whose")
        state.map.found_own_user(owner, os.getuid(), os.getgid())

    async def _measure(self, state: MountState, client: SftpClient, root: bytes) -> None:
        """Takes the time of an answer."""
        asked = self._loop.time()
        await client.lstat(root)
        state.pace.answered(asked)

    def serve(self, fd: int, on_end: Callable[[], None]) -> None:
        """Answers the kernel on this descriptor; ``on_end`` is called once it is unmounted."""
        state = self._state
        assert state is not None
        behind = self._behind = Behind(state)
        listings, contents = Listings(state, behind), Contents(state)
        names, directories = Names(state, listings, behind), Directories(state, listings, behind)
        metadata = Metadata(state, listings, behind, self._files)
        ahead = FilesAhead(state, contents)
        locks = Locks(state, self._files)
        opening = Opening(state, listings, contents, ahead, behind, self._files)
        data = Data(state, metadata, contents, behind, locks, self._files)
        handlers: dict[int, Handler] = {
            fuse.LOOKUP: names.lookup,
            fuse.FORGET: names.forget,
            fuse.BATCH_FORGET: names.batch_forget,
            fuse.MKDIR: names.mkdir,
            fuse.MKNOD: names.mknod,
            fuse.SYMLINK: names.symlink,
            fuse.LINK: names.link,
            fuse.UNLINK: names.unlink,
            fuse.RMDIR: names.rmdir,
            fuse.RENAME: names.rename,
            fuse.RENAME2: names.rename2,
            fuse.OPENDIR: directories.opendir,
            fuse.READDIR: directories.readdir,
            fuse.READDIRPLUS: directories.readdirplus,
            fuse.RELEASEDIR: directories.releasedir,
            fuse.FSYNCDIR: directories.fsyncdir,
            fuse.GETATTR: metadata.getattr,
            fuse.SETATTR: metadata.setattr,
            fuse.ACCESS: metadata.access,
            fuse.READLINK: metadata.readlink,
            fuse.GETXATTR: metadata.getxattr,
            fuse.SETXATTR: metadata.setxattr,
            fuse.LISTXATTR: metadata.listxattr,
            fuse.REMOVEXATTR: metadata.removexattr,
            fuse.STATFS: metadata.statfs,
            fuse.OPEN: opening.open,
            fuse.CREATE: opening.create,
            fuse.READ: data.read,
            fuse.WRITE: data.write,
            fuse.FLUSH: data.flush,
            fuse.FSYNC: data.fsync,
            fuse.RELEASE: opening.release,
            fuse.LSEEK: data.lseek,
            fuse.COPY_FILE_RANGE: data.copy_file_range,
        }
        self._server.on_session(self._send_again)
        flags = 0
        if self._server.has(sftp.LOCK):
            self._server.on_session(locks.take_again)
            handlers |= {
                fuse.GETLK: locks.getlk,
                fuse.SETLK: locks.setlk,
                fuse.SETLKW: locks.setlkw,
            }
            flags = fuse.POSIX_LOCKS
        patience = self._settings.timeout
        self._session = FuseSession(self._loop, fd, handlers, patience, flags, on_end)
        state.session = self._session

    def _send_again(self) -> None:
        """Sends what a lost session has not acknowledged."""
        assert self._state is not None
        for writes in [*self._state.unfinished]:
            writes.push()

    def figures(self) -> Figures:
        """Returns what the status of a mount that is served shows."""
        assert self._state is not None
        server = self._server
        return Figures(
            server.is_connected, *server.traffic, self._state.pace.round_trip, server.last_error
        )

    async def finish(self) -> None:
        """Waits until the server has everything that was written."""
        while self._state is not None and self._state.unfinished:
            await next(iter(self._state.unfinished)).written()
        if self._behind is not None:
            await self._behind.all_done()

    def close(self) -> None:
        """Ends the session with the server."""
        if self._session is not None:
            self._session.close()
        self._server.close()
