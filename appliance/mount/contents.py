"""Small files that are kept whole, and those that are fetched ahead.

Whoever opens one small file of a directory after the other gets the next ones before asking for
them. What is kept is used only as long as the server's attributes prove that it is current: see
``Node.proves``.
"""

from __future__ import annotations

import contextlib
import stat
from functools import partial
from typing import Final, NamedTuple

from ..aio.tasks import Future, Task
from ..errors import PeerError
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from .state import MountState
from .tree import Node

# Our own choices
SMALL: Final = 128 << 10  # bytes of a file that is kept whole
AHEAD_AT_ONCE: Final = 16  # files that are fetched ahead at the same time
FIRST_AHEAD: Final = 32  # files ahead of the one that is read; more for each that was of use
MOST_AHEAD: Final = 512
RUN: Final = 5.0  # seconds between two files of a directory, for whoever goes through it


class _Content(NamedTuple):
    data: bytes
    version: object  # Node.seen_version of what was fetched
    changes: int  # Node.version of that moment
    fetched: float  # when it was asked for


class _Run:
    """A directory whose files are opened one after the other."""

    __slots__ = ("ahead", "at", "last", "names", "opened", "pending", "useful")

    def __init__(self) -> None:
        self.opened = 0
        self.last = -RUN
        self.names: list[bytes] = []  # to be fetched, in the order of the listing
        self.at = 0
        self.pending = 0  # fetched or being fetched, and not opened
        self.useful = 0


class Contents:
    """Keeps contents, the most recently used ones."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._limit = state.settings.memory // 2
        self._kept: dict[Node, _Content] = {}  # the one used longest ago first
        self._size = 0
        self._runs: dict[Node, _Run] = {}
        self._at_once = 0

    def current(self, node: Node) -> bytes | None:
        """Returns the content of a file, if it is kept and current."""
        content = self._kept.get(node)
        if content is None:
            return None
        now = self._state.loop.time()
        is_same = content.version == node.seen_version and content.changes == node.version
        if not is_same or node.expires <= now or (node.files and node.files.is_changing):
            if not is_same:
                self.drop(node)
            return None
        holds = content.fetched + self._state.attributes_hold
        if holds <= now and not node.proves(content.fetched):
            self.drop(node)
            return None
        del self._kept[node]
        self._kept[node] = content
        return content.data

    def put(self, node: Node, data: bytes, fetched: float) -> None:
        """Keeps the content that belongs to the attributes which the node has now."""
        self.drop(node)
        self._kept[node] = _Content(data, node.seen_version, node.version, fetched)
        self._size += len(data) + 200
        while self._size > self._limit:
            self.drop(next(iter(self._kept)))

    def drop(self, node: Node) -> None:
        """Throws the content of a file away."""
        content = self._kept.pop(node, None)
        if content is not None:
            self._size -= len(content.data) + 200

    # -- ahead -------------------------------------------------------------------------

    def opened(self, node: Node) -> None:
        """Takes note that a small file is opened for reading; may fetch the next ones."""
        settings = self._state.settings
        parent = node.parent
        if parent is None or not settings.read_ahead or not settings.caches:
            return
        now = self._state.loop.time()
        run = self._runs.get(parent)
        if run is None or now - run.last > RUN:
            if len(self._runs) > 64:
                self._runs = {d: r for d, r in self._runs.items() if now - r.last <= RUN}
            run = self._runs[parent] = _Run()
        run.last = now
        run.opened += 1
        if node in self._kept:
            run.useful += 1
            run.pending = max(0, run.pending - 1)
        if run.opened >= 2:
            if not run.names:
                self._begin(parent, run, node.name)
            self._next(parent, run)

    def _begin(self, parent: Node, run: _Run, name: bytes) -> None:
        """Puts the names behind ``name`` in the order in which they are likely to be opened."""
        listing = parent.listing
        if listing is None or not listing.is_complete:
            return
        names = [
            each
            for each, packed in listing.entries.items()
            if packed and stat.S_ISREG(fuse.mode_in(packed)) and 0 < fuse.size_in(packed) <= SMALL
        ]
        try:
            at = names.index(name)
        except ValueError:
            at = 0
        run.names = names[at + 1 :] + names[:at]
        run.at = 0

    def _next(self, parent: Node, run: _Run) -> None:
        listing = parent.listing
        limit = min(FIRST_AHEAD + 4 * run.useful, MOST_AHEAD)
        while (
            listing is not None
            and run.at < len(run.names)
            and run.pending < limit
            and self._at_once < AHEAD_AT_ONCE
        ):
            name = run.names[run.at]
            run.at += 1
            packed = listing.entries.get(name)
            if not packed:
                continue
            now = self._state.loop.time()
            node = parent.children.get(name)
            if node is None:
                node = self._state.tree.child(parent, name, packed, listing.expires, now)
            if node.files is not None or node in self._kept:
                continue
            run.pending += 1
            self._at_once += 1
            task = Task(self._state.loop, self._ahead(node))
            task.when_done(partial(self._came, parent, run))

    def _came(self, parent: Node, run: _Run) -> None:
        self._at_once -= 1
        if self._state.loop.time() - run.last <= RUN:
            self._next(parent, run)

    async def _ahead(self, node: Node) -> None:
        with contextlib.suppress(OSError, PeerError):  # whoever opens it gets the error
            await self.fetch(await self._state.server.client(), node)

    # -- from the server ---------------------------------------------------------------

    async def fetch(self, client: SftpClient, node: Node) -> tuple[bytes, bytes]:
        """Reads a small file, and keeps it; returns (handle, data).

        The handle is b'' if the data is the whole file. Raises OSError.
        """
        path = self._state.tree.path(node)
        asked = self._state.loop.time()
        if client.has(sftp.READ_FILE):
            content = await client.read_file(path, SMALL)
            self._state.learn(node, content.attrs)
            if not content.handle:
                self.put(node, content.data, asked)
            return content.handle, content.data
        handle = await client.open(path, sftp.READ)
        try:
            attributes = client.ask(sftp.FStat(0, handle), sftp.AttrsReply, path)
            data = await read_whole(client, handle, SMALL + 1)
            self._state.learn(node, (await attributes).attrs)
        except StatusError:
            client.abandon(handle)
            raise
        if len(data) > SMALL or len(data) != node.size:
            return handle, data
        client.abandon(handle)
        self.put(node, data, asked)
        return b"", data


async def read_whole(client: SftpClient, handle: bytes, limit: int) -> bytes:
    """Returns the first ``limit`` bytes of an open file, or all; raises OSError."""
    parts: list[bytes] = []
    size = 0
    while size < limit:
        future: Future[bytes] = Future()
        client.read(handle, size, min(limit - size, client.read_limit), partial(_take, future))
        data = await future
        if not data:
            break
        parts.append(data)
        size += len(data)
    return b"".join(parts)


def _take(future: Future[bytes], data: memoryview | None, error: Exception | None) -> None:
    if error is not None:
        future.fail(error)
    else:
        future.resolve(b"" if data is None else bytes(data))
