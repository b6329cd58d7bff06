"""A file that a program has open, and its handle at the server.

A file that is only read may be open here alone, until something of it is needed that is not kept.
A handle belongs to one session with the server. After a lost session the file is opened again, and
goes on if it is still the same one; else everything that is done to it fails with ESTALE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any

from ..aio.tasks import Future
from ..errors import PeerError, system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from .failures import explained, opening
from .server import ATTEMPTS
from .state import MountState
from .tree import Node


class OpenFile:
    """One open file description of the kernel's."""

    def __init__(self, state: MountState, number: int, node: Node, flags: int) -> None:
        """``flags``: those of open(2)."""
        self._state = state
        self.number = number
        self.node = node
        self.flags = flags
        self.kept: tuple[int, bytes] | None = None  # Node.version and content, if open here alone
        self.is_new = False  # we have made it, and it belongs to us
        self.uses = 0  # of its handle, by what is done behind its last close(2)
        self._handle = b""
        self._session = 0  # to which the handle belongs; 0 before there is one
        self._opening: list[Future[None]] | None = None
        self._identity: object = None  # what a file that is opened again must have
        self._error: OSError | None = None  # of a write; told once
        self._lost: OSError | None = None  # why it can be opened no more

    @property
    def is_writable(self) -> bool:
        """Whether it is open for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        """Whether the server puts what is written at the file's end, wherever that is."""
        return bool(pflags_of(self.flags) & sftp.APPEND)

    # -- handles -----------------------------------------------------------------------

    def opened(self, handle: bytes, session: int) -> None:
        """Takes the handle of a session."""
        self._handle, self._session = handle, session

    @property
    def has_handle(self) -> bool:
        """Whether it was opened at the server."""
        return self._session > 0

    def handle_now(self) -> bytes | None:
        """Returns the handle, if there is one in the session of now."""
        return self._handle if self._session == self._state.server.number else None

    async def handle(self) -> tuple[SftpClient, bytes]:
        """Returns the client and the handle; opens the file if need be. Raises OSError."""
        attempts = 0
        while True:
            client = await self._state.server.client()
            if self._session == self._state.server.number:
                return client, self._handle
            if self._lost is not None:
                raise self._lost
            if self._opening is None:
                try:
                    await self._open(client)
                except PeerError:  # the new session is lost, too
                    attempts += 1
                    if attempts == ATTEMPTS:
                        raise
            else:
                future: Future[None] = Future()
                self._opening.append(future)
                await future

    async def _open(self, client: SftpClient) -> None:
        self._opening = []
        try:
            await self._open_at(client)
        finally:
            self._opening_ended()

    def _opening_ended(self) -> None:
        waiting, self._opening = self._opening or [], None
        for future in waiting:
            future.resolve(None)

    def comes(self) -> None:
        """Takes note that the file will be made at the server, though programs write it already."""
        self._opening = []

    async def make(self, open_there: Callable[[], Coroutine[Future[Any], None, None]]) -> None:
        """Makes the file at the server, of which ``comes`` has told; raises OSError."""
        try:
            await open_there()
        except OSError as error:
            self._lost = error
            self.fails(error)
            raise
        finally:
            self._opening_ended()

    async def _open_at(self, client: SftpClient) -> None:
        number, was_open = self._state.server.number, self._session > 0
        try:
            path = self._state.tree.path(self.node)
            handle = await client.open(path, pflags_of(self.flags))
        except StatusError as error:
            if error.code == sftp.NO_SUCH_FILE:
                self._lost = system_error(errno.ESTALE)
                raise self._lost from error
            look = opening(path, creates=False, is_exclusive=False)
            raise await explained(client, error, path, look) from error
        if was_open:
            attributes = await client.fstat(handle)
            if not self._is_same(self._state.map.pack(attributes)):
                client.abandon(handle)
                self._lost = system_error(errno.ESTALE)
                raise self._lost
        self.opened(handle, number)

    def _is_same(self, packed: bytes) -> bool:
        """Whether the file of this name is still the one that was open."""
        node = self.node
        inode = fuse.inode_in(packed)
        if inode and node.inode:  # not known of a file that was just made behind
            return inode == node.inode
        if node.version:  # we have changed it, so that its size and times tell nothing
            return bool(packed)
        return fuse.version_in(packed)[8:] == node.seen_version[8:]

    async def tail(self, client: SftpClient, offset: int, size: int) -> bytes | None:
        """Returns up to ``size`` bytes of the file from ``offset`` on; None if it is not read."""
        path, parts = self._state.tree.path(self.node), bytearray()
        try:
            handle = await client.open(path, sftp.READ)
        except StatusError:
            return None
        try:
            while len(parts) < size:
                length = min(size - len(parts), self._state.read_size)
                data = await client.read_bytes(handle, offset + len(parts), length)
                if not data:
                    break
                parts += data
        except StatusError:
            return None
        finally:
            client.abandon(handle)
        return bytes(parts)

    def close(self) -> None:
        """Closes the handle."""
        if self.handle_now() is not None and self._state.server.is_connected:
            self._state.server.client_now().abandon(self._handle)
        self._session = 0

    def content(self) -> bytes | None:
        """Returns the content that the file had when it was opened here alone, if it still has it.

        For a file that was removed meanwhile, or that may not be read any more.
        """
        if self.kept is None or self.kept[0] != self.node.version:
            return None
        return self.kept[1]

    # -- errors ------------------------------------------------------------------------

    def fails(self, error: OSError) -> None:
        """Keeps the error of a write, for the next call that can tell it."""
        if self._error is None:
            self._error = error

    def tell_error(self) -> None:
        """Raises the error of an earlier write, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def pflags_of(flags: int) -> int:
    """Returns the flags of OPEN for a file that exists.

    The server appends where a program only writes, as to a log that others write, too. A file that
    is open for reading as well may be mapped, and pages of it are written where they belong.
    """
    pflags = {os.O_RDONLY: sftp.READ, os.O_WRONLY: sftp.WRITE}.get(
        flags & os.O_ACCMODE, sftp.READ | sftp.WRITE
    )
    return pflags | (sftp.APPEND if flags & os.O_APPEND and pflags == sftp.WRITE else 0)
