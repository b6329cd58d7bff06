"""Directories of which a server of ours tells changes, so that what is known of them holds.

A directory is watched once it is listed for the second time. From then on its names hold, and the
attributes of its files, until the server tells of a change. Those of a file with several names do
not: it may change by another one, in a directory that nobody watches. Those of directories do not,
either, since what is made in them changes their times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..aio.tasks import Task
from ..errors import PeerError
from ..files.sftp_client import SftpClient
from ..wire import sftp
from .state import MountState
from .tree import Node

_log = logging.getLogger(__name__)

# Our own choice
LIMIT: Final = 1024  # directories; the one watched first makes room


class Watches:
    """The watched directories, by the numbers of the session."""

    def __init__(self, state: MountState, is_ours: Callable[[Node], bool]) -> None:
        """``is_ours``: whether we know more of a file than the server does."""
        self._state = state
        self._is_ours = is_ours
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[Node, int] = {}
        self._session = 0
        self._is_on = state.settings.caches

    def is_watched(self, node: Node) -> bool:
        """Whether the server tells of changes in a directory."""
        return node in self._numbers and self._session == self._state.server.number

    async def watch(self, client: SftpClient, node: Node, path: bytes) -> None:
        """Has changes in a directory told; a listing that is asked for behind it holds."""
        if not self._is_on or not client.has(sftp.WATCH) or self.is_watched(node):
            return
        if self._session != self._state.server.number:
            self._session = self._state.server.number
            self._forget_all()
            Task(self._state.loop, self._listen(client))
        try:
            number = await client.watch(path)
        except (OSError, PeerError) as error:
            _log.debug("%r is not watched: %s", path, error)
            return
        self._nodes[number] = node
        self._numbers[node] = number
        if len(self._nodes) > LIMIT:
            oldest = next(iter(self._nodes))
            self._forget(oldest)
            Task(self._state.loop, self._unwatch(client, oldest))

    async def _unwatch(self, client: SftpClient, number: int) -> None:
        try:
            await client.unwatch(number)
        except (OSError, PeerError) as error:
            _log.debug("%s", error)

    def _forget(self, number: int) -> None:
        node = self._nodes.pop(number)
        self._numbers.pop(node, None)
        self._changed(node, b"")

    def _forget_all(self) -> None:
        for number in list(self._nodes):
            self._forget(number)

    async def _listen(self, client: SftpClient) -> None:
        """Takes changes from the server until the session ends."""
        try:
            while True:
                told = await client.changes()
                if told.lost:
                    for node in self._nodes.values():
                        self._changed(node, b"")
                for change in told.changes:
                    if change.watch in self._nodes:
                        self._changed(self._nodes[change.watch], change.name)
        except (OSError, PeerError) as error:
            _log.debug("no more changes are told: %s", error)
            self._forget_all()

    def _changed(self, directory: Node, name: bytes) -> None:
        """Believes nothing more of a name, or of all those in a directory (b'')."""
        listing = directory.listing
        if not name:
            if listing is not None:
                listing.expires = 0.0
            for each in directory.children.values():
                if not self._is_ours(each):
                    self._state.doubt(each)
            return
        child = directory.children.get(name)
        if child is not None and self._is_ours(child):
            return
        if listing is not None:
            listing.doubt(name)
        if child is not None:
            self._state.doubt(child)
