"""Directories that programs read: OPENDIR, READDIR and READDIRPLUS."""

from __future__ import annotations

import stat
from typing import Final

from ..wire import fuse
from ..wire.fuse import Request
from .behind import Behind
from .fuse_session import Answer, Granted, Reply
from .listing import Listing
from .listings import Listings
from .state import MountState, kind_of
from .tree import Node

# Our own choice
WITH_ATTRIBUTES: Final = (
    8192  # entries of a directory that become nodes; the kernel asks for others
)

_DOTS: Final = 2  # '.' and '..' come first
_DIRECTORY: Final = stat.S_IFDIR >> 12  # DT_DIR
_UNKNOWN: Final = 0  # DT_UNKNOWN
_UNKNOWN_INODE: Final = 0xFFFFFFFF  # as libfuse has it; 0 would hide the name


class _OpenDirectory:
    """A directory that a program reads."""

    __slots__ = ("listing", "names")

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        # as they were when the program began, or as they come
        self.names = list(listing.entries) if listing.is_over else listing.coming


class Directories:
    """The handlers, and the directories that are open."""

    def __init__(self, state: MountState, listings: Listings, behind: Behind) -> None:
        self._state = state
        self._behind = behind
        self._listings = listings
        self._open: dict[int, _OpenDirectory | None] = {}
        self._next = 1

    def opendir(self, request: Request) -> Answer:
        number = self._next
        self._next += 1
        self._open[number] = None  # read when the first entries are asked for
        return Granted(fuse.opened(number, 0), lambda: self._close(number))

    def _close(self, number: int) -> None:
        self._open.pop(number, None)

    def releasedir(self, request: Request) -> Answer:
        self._close(request.fields()[0])
        return b""

    def fsyncdir(self, request: Request) -> Answer:
        """Waits for what is written behind; SFTP has no fsync for directories."""
        return self._fsyncdir()

    async def _fsyncdir(self) -> Reply:
        await self._behind.all_done()
        return b""

    def readdir(self, request: Request) -> Answer:
        return self._read(request, with_attributes=False)

    def readdirplus(self, request: Request) -> Answer:
        return self._read(request, with_attributes=True)

    def _read(self, request: Request, with_attributes: bool) -> Answer:
        number, offset, size, *_ = request.fields()
        node = self._state.tree[request.node]
        directory = self._open[number]
        if directory is None or offset == 0:  # rewinddir(3) reads it again
            directory = self._open[number] = _OpenDirectory(self._listings.read(node))
        if self._waits(directory, offset) or directory.listing.failure is not None:
            return self._read_later(node, directory, offset, size, with_attributes)
        return self._entries(node, directory, offset, size, with_attributes)

    def _waits(self, directory: _OpenDirectory, offset: int) -> bool:
        return max(0, offset - _DOTS) >= len(directory.names) and not directory.listing.is_over

    async def _read_later(
        self, node: Node, directory: _OpenDirectory, offset: int, size: int, with_attributes: bool
    ) -> Reply:
        while self._waits(directory, offset):
            await directory.listing.more()
        if directory.listing.failure is not None:
            raise directory.listing.failure
        return self._entries(node, directory, offset, size, with_attributes)

    def _entries(
        self, node: Node, directory: _OpenDirectory, offset: int, size: int, with_attributes: bool
    ) -> Reply:
        """Returns the entries from ``offset`` on, as many as fit."""
        state, listing, names = self._state, directory.listing, directory.names
        now = state.loop.time()
        parts: list[bytes] = []
        granted: list[Node] = []
        while True:
            packed = b""
            if offset < _DOTS:
                above = node.parent or node
                inode = fuse.inode_in((above if offset else node).packed)
                name, kind = (b"..", _DIRECTORY) if offset else (b".", _DIRECTORY)
            elif offset - _DOTS < len(names):
                name = names[offset - _DOTS]
                found = listing.entries.get(name)
                if found is None:  # removed meanwhile
                    offset += 1
                    continue
                packed = found
                kind = kind_of(packed) if packed else _UNKNOWN
                known = node.children.get(name)
                shown = known.packed if known is not None else packed
                inode = (fuse.inode_in(shown) if shown else 0) or _UNKNOWN_INODE
            else:
                break
            offset += 1
            entry = fuse.directory_entry(inode, offset, kind, name)
            if with_attributes:
                size -= len(fuse.NO_ENTRY)
            size -= len(entry)
            if size < 0:
                break
            if with_attributes:
                child = None
                if offset < WITH_ATTRIBUTES:
                    child = self._child(node, listing, name, packed, now)
                if child is not None:
                    granted.append(child)
                    parts.append(state.entry(child))
                else:
                    parts.append(fuse.NO_ENTRY)
            parts.append(entry)
        return Granted(b"".join(parts), lambda: self._take_back(granted))

    def _child(
        self, node: Node, listing: Listing, name: bytes, packed: bytes, now: float
    ) -> Node | None:
        """Returns the node of an entry, if its attributes are known."""
        child = node.children.get(name)
        if child is not None:
            if child.expires > now:
                return child
            if listing.is_complete or child.known_at >= listing.begun:
                return None  # they have changed
            if child.files is not None and child.files.is_changing:
                return None
        if not packed:
            return None
        expires = now + self._state.attributes_hold
        if listing.is_complete:
            expires = listing.expires_of(packed)
        if expires <= now:
            return None
        return self._state.tree.child(node, name, packed, expires, listing.begun, now)

    def _take_back(self, granted: list[Node]) -> None:
        for node in granted:
            self._state.tree.forget(node.number, 1)
