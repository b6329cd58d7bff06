"""Fetches small files ahead of a program that reads one after the other.

grep, tar, git and cp go through directories in the order of their listings, or of their sorted
names. Once a second small file is opened soon after the first one, those behind it are fetched, the
more the longer it goes on: in the same directory, in those below it, and in what follows.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from functools import partial
from typing import Final

from ..aio.tasks import Task
from ..errors import PeerError
from ..wire import fuse
from .contents import OVERHEAD, SMALL, Contents
from .listing import Listing
from .state import MountState
from .tree import Node

# Our own choices
AT_ONCE: Final = 64  # files that are fetched at the same time
FIRST: Final = 8  # files ahead of the first one; twice as many for each one that follows, up to ...
MOST: Final = 1024
PAUSE: Final = 2.0  # seconds between two files after which a program is no longer followed


class FilesAhead:
    """Follows the small files that are opened, and fetches the next ones."""

    def __init__(self, state: MountState, contents: Contents) -> None:
        self._state = state
        self._contents = contents
        self._is_on = state.settings.read_ahead and state.settings.caches
        self._room = state.settings.memory // 4
        self._last: Node | None = None  # opened last
        self._last_at = -PAUSE
        self._streak = 0  # files that were opened one soon after the other
        self._is_sorted = False  # the order in which they are opened
        self._walk: Iterator[Node] = iter(())
        self._unread: dict[Node, tuple[float, int]] = {}  # when it was asked for, and its size
        self._unread_size = 0
        self._at_once = 0
        self._size_at_once = 0

    def opened(self, node: Node) -> None:
        """Takes note that a small file is opened for reading."""
        if not self._is_on:
            return
        now = self._state.loop.time()
        if now - self._last_at > PAUSE:
            self._streak = 0
        if node is not self._last:
            self._streak += 1
        if self._streak >= 2 and not self._read(node):
            self._find_order(node)
            self._walk = self._behind(node)
        self._last, self._last_at = node, now
        if self._streak >= 2:
            self._next()

    def _read(self, node: Node) -> bool:
        """Whether a file was fetched ahead; it is not ahead any more."""
        asked = self._unread.pop(node, None)
        if asked is None:
            return False
        self._unread_size -= asked[1]
        return True

    # -- the order ---------------------------------------------------------------------

    def _find_order(self, node: Node) -> None:
        """Finds the order in which the last two files follow each other."""
        last, parent = self._last, node.parent
        if last is None or parent is None or last.parent is not parent or parent.listing is None:
            return
        names = list(parent.listing.entries)
        for is_sorted in (self._is_sorted, not self._is_sorted):
            if is_sorted:
                names = sorted(names)
            with contextlib.suppress(ValueError, IndexError):
                if names[names.index(last.name) + 1] == node.name:
                    self._is_sorted = is_sorted
                    return
            names = list(parent.listing.entries)

    def _behind(self, node: Node) -> Iterator[Node]:
        """The small files behind a file: in its directory, then in those that follow."""
        while (parent := node.parent) is not None:
            yield from self._within(parent, node.name)
            node = parent

    def _within(self, directory: Node, after: bytes | None) -> Iterator[Node]:
        listing = directory.listing
        if listing is None or not listing.is_complete:
            return
        names = sorted(listing.entries) if self._is_sorted else list(listing.entries)
        begin = 0
        if after is not None and after in listing.entries:
            begin = names.index(after) + 1
        for name in names[begin:]:
            packed = listing.entries.get(name)
            if not packed:
                continue
            mode = fuse.mode_in(packed)
            if stat.S_ISREG(mode) and 0 < fuse.size_in(packed) <= SMALL:
                yield self._node(directory, listing, name, packed)
            elif stat.S_ISDIR(mode) and (below := directory.children.get(name)) is not None:
                yield from self._within(below, None)

    def _node(self, parent: Node, listing: Listing, name: bytes, packed: bytes) -> Node:
        node = parent.children.get(name)
        if node is None:
            now = self._state.loop.time()
            expires = listing.expires_of(packed)
            node = self._state.tree.child(parent, name, packed, expires, listing.begun, now)
        return node

    # -- the files ---------------------------------------------------------------------

    def _next(self) -> None:
        """Fetches as many files as are of use."""
        self._drop_old()
        limit = min(FIRST << min(self._streak, 16), MOST)
        window = self._state.pace.window
        while (
            len(self._unread) < limit
            and self._at_once < AT_ONCE
            and self._unread_size < self._room
            and self._size_at_once < window
        ):
            node = next(self._walk, None)
            if node is None:
                return
            if node in self._unread or node.files is not None or node in self._contents:
                continue
            size = node.size + OVERHEAD
            self._unread[node] = self._state.loop.time(), size
            self._unread_size += size
            self._at_once += 1
            self._size_at_once += size
            task = Task(self._state.loop, self._fetch(node))
            task.when_done(partial(self._came, size))

    def _drop_old(self) -> None:
        """Forgets files that nobody has opened for so long that they may have changed."""
        until = self._state.loop.time() - self._state.attributes_hold
        while self._unread:
            node, (asked, _) = next(iter(self._unread.items()))
            if asked > until:
                return
            self._read(node)

    def _came(self, size: int) -> None:
        self._at_once -= 1
        self._size_at_once -= size
        if self._state.loop.time() - self._last_at < PAUSE:
            self._next()

    async def _fetch(self, node: Node) -> None:
        with contextlib.suppress(OSError, PeerError):  # whoever opens it gets the error
            client = await self._state.server.client()
            handle, _ = await self._contents.fetch(client, node)
            if handle:
                client.abandon(handle)
