"""Listings of directories: what is known of all names in one, and what is fetched ahead.

A listing answers every lookup in its directory while it holds, those of missing names included. It
can be read while it still comes.

Whoever goes through a tree (find, git, rsync) lists one directory after the other. Once a directory
is listed soon after the one that it lies in, its neighbours and the directories in it are fetched
ahead, with a few requests at a time, so that what the user waits for is never far behind.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Iterable
from typing import Final

from ..aio.tasks import Task
from ..errors import PeerError, ProtocolError, system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import fuse, sftp
from .behind import Behind
from .entries import EntriesReader, is_safe_name
from .listing import FOR_EVER, Listing
from .state import MountState
from .tree import Node
from .watches import Watches

# Our own choices
ENTRY_SIZE: Final = 300  # bytes of memory that an entry takes
NAMES_LIMIT: Final = 1_000_000  # in one directory; a listing that goes on is an error
AHEAD_AT_ONCE: Final = 16  # directories that are fetched ahead at the same time
AHEAD_QUEUE: Final = 512  # directories that wait for it
AHEAD_UNUSED: Final = 20_000  # entries that were fetched ahead and not asked for
TRAVERSAL: Final = 5.0  # seconds between a directory and one in it, for whoever goes through a tree
TREE_DEPTH: Final = 16  # levels of one request to a server of ours
TREE_ENTRIES: Final = 2000  # entries of it


class Listings:
    """Fetches listings, and keeps as many as the memory allows."""

    def __init__(self, state: MountState, behind: Behind) -> None:
        self._state = state
        self._behind = behind
        self._watches = Watches(state, self._is_ours)
        self._reader = EntriesReader(state.map, state.settings.follow_symlinks)
        self._limit = max(state.settings.memory // 2 // ENTRY_SIZE, 1000)
        self._kept: dict[Node, Listing] = {}  # the oldest first
        self._count = 0  # entries in them
        self._queue: deque[Node] = deque()
        self._at_once = 0
        self._unused = 0
        self._holds = state.settings.names_timeout if state.settings.caches else 0.0

    def current(self, node: Node) -> Listing | None:
        """Returns the listing of a directory, if it is complete and holds."""
        listing = node.listing
        if listing is None or not listing.is_complete or not self._state.holds(listing.expires):
            return None
        if listing.is_ahead:
            self._used(listing)
        return listing

    def read(self, node: Node) -> Listing:
        """Returns the listing for a program that reads the directory; it may still come."""
        now = self._state.loop.time()
        listing = self.current(node)
        if listing is None or not listing.is_exact:
            listing = self.fetch(node)
        self._used(listing)
        listing.read_at = now
        if self._is_traversed(node, now):
            assert node.parent is not None and node.parent.listing is not None
            node.parent.listing.read_at = now
            self._want(self._folders(node.parent), first=False)
            if listing.is_complete:
                self._want(self._folders(node), first=True)
        return listing

    def missed(self, parent: Node) -> None:
        """Takes note of a name that was asked for by itself; the second one fetches all."""
        parent.misses += 1
        if parent.misses >= 2:
            self.read(parent)

    def fetch(self, node: Node) -> Listing:
        """Begins a listing, unless one is coming."""
        listing = node.listing
        if listing is not None and not listing.is_over:
            return listing
        return self._begin(node, is_ahead=False)

    def made(self, node: Node) -> None:
        """Takes note of a directory that we have made, and in which nothing is."""
        now = self._state.loop.time()
        listing = node.listing = Listing(now)
        listing.ended(None, now + self._holds, now + self._state.attributes_hold)
        self._keep(node, listing)

    def forget(self, node: Node) -> None:
        """Throws a listing away that no longer holds."""
        listing = self._kept.pop(node, None)
        if listing is not None:
            self._count -= len(listing.entries)
            self._used(listing)
        if node.listing is not None and node.listing.is_over:
            node.listing = None

    # -- from the server ---------------------------------------------------------------

    def _begin(self, node: Node, is_ahead: bool) -> Listing:
        before = node.listing
        self.forget(node)
        listing = node.listing = Listing(self._state.loop.time())
        listing.is_ahead = is_ahead
        if before is not None:
            listing.read_at = before.read_at
        node.misses = 0
        is_watched = before is not None and not is_ahead
        Task(self._state.loop, self._run(node, listing, is_watched))
        return listing

    async def _run(self, node: Node, listing: Listing, is_watched: bool) -> None:
        failure: OSError | None = None
        try:
            await self._behind.settled(node)
            path = self._state.tree.path(node)
            if is_watched:
                await self._watches.watch(await self._state.server.client(), node, path)
            await self._fetch(node, listing, path)
        except OSError as error:
            failure = error
        except PeerError:
            failure = system_error(errno.EIO)
        now = self._state.loop.time()
        for name, child in node.children.items():
            if self._is_ours(child):
                listing.change(name, child.for_listing)  # the server may not have it yet
        holds = FOR_EVER if self._watches.is_watched(node) else now + self._holds
        listing.ended(failure, holds, now + self._state.attributes_hold)
        if failure is not None:
            if node.listing is listing:
                node.listing = None
            return
        if node.listing is listing:
            self._keep(node, listing)
            self._compare(node, listing, now)
        if listing.is_ahead:
            self._want(self._folders(node), first=False)
        elif now - listing.read_at < TRAVERSAL and self._is_traversed(node, now):
            self._want(self._folders(node), first=True)

    def _is_traversed(self, node: Node, now: float) -> bool:
        parent = node.parent
        return (
            parent is not None
            and parent.listing is not None
            and now - parent.listing.read_at < TRAVERSAL
        )

    async def _fetch(self, node: Node, listing: Listing, path: bytes) -> None:
        async def entries(client: SftpClient) -> None:
            is_tree = listing.is_ahead and client.has(sftp.LOOKUP_TREE)
            if is_tree and await self._fetch_tree(client, node, listing, path):
                return
            opened = client.open_directory(path)
            count = 0  # of all entries: a name may come again and again
            async for each in client.read_directory(path, self._reader, opened):
                if each.is_empty:
                    raise ProtocolError("a listing without an entry, and not at its end")
                listing.add(each.entries)
                count += len(each.entries)
                if count > NAMES_LIMIT:
                    raise OSError(errno.EFBIG, "the directory has too many names")

        await self._state.server.ask(entries)

    def _packed(self, entries: Iterable[sftp.NamedFile]) -> list[tuple[bytes, bytes]]:
        """The entries of a tree, which our server sends."""
        packed = []
        pack, follows = self._state.map.pack_or_nothing, self._state.settings.follow_symlinks
        for entry in entries:
            if is_safe_name(entry.filename):
                attributes = pack(entry.attributes, b"") if entry.attributes.times else b""
                if attributes and follows and stat.S_ISLNK(fuse.mode_in(attributes)):
                    attributes = b""  # asked for by itself
                packed.append((entry.filename, attributes))
        return packed

    async def _fetch_tree(
        self, client: SftpClient, node: Node, listing: Listing, path: bytes
    ) -> bool:
        """Lists a directory and those below it by one request; returns whether it is complete."""
        try:
            first, *others = await client.lookup_tree(path, TREE_DEPTH, TREE_ENTRIES)
        except (StatusError, ValueError):
            return False
        if not first.is_complete or first.path:
            return False
        listing.add(self._packed(first.entries))
        for each in others:
            if each.is_complete:
                self._add_below(node, each, listing.begun)
        return True

    def _add_below(self, node: Node, found: sftp.Listing, begun: float) -> None:
        """Takes the listing of a directory below ``node``, unless there is one."""
        tree, now = self._state.tree, self._state.loop.time()
        for name in found.path.split(b"/"):
            listing = node.listing
            packed = b"" if listing is None else listing.entries.get(name, b"")
            if not packed or not stat.S_ISDIR(fuse.mode_in(packed)):
                return
            child = node.children.get(name)
            if child is None:
                expires = now + self._state.attributes_hold
                child = tree.child(node, name, packed, expires, begun, now)
            node = child
        if node.changed_at >= begun or any(map(self._is_ours, node.children.values())):
            return  # we know more than the server did
        if node.listing is not None and (
            not node.listing.is_over or node.listing.expires > now + self._holds / 2
        ):
            return
        self.forget(node)
        listing = node.listing = Listing(begun)
        listing.is_ahead = True
        listing.add(self._packed(found.entries))
        listing.ended(None, now + self._holds, now + self._state.attributes_hold)
        self._keep(node, listing)
        self._compare(node, listing, now)

    def _compare(self, node: Node, listing: Listing, now: float) -> None:
        """Brings the nodes in a directory up to date."""
        tree = self._state.tree
        for name, child in list(node.children.items()):
            packed = listing.entries.get(name)
            if child.known_at >= listing.begun or self._is_ours(child):
                continue  # what the listing says is older
            if packed is None:
                tree.remove(node, name)
            elif packed:
                tree.child(node, name, packed, listing.expires_of(packed), listing.begun, now)

    def _is_ours(self, node: Node) -> bool:
        """Whether we know more of a file than the server does."""
        if node.files is not None and node.files.is_changing:
            return True
        return node.pending > 0

    # -- memory ------------------------------------------------------------------------

    def _keep(self, node: Node, listing: Listing) -> None:
        self._kept[node] = listing
        self._count += len(listing.entries)
        if listing.is_ahead:
            self._unused += len(listing.entries)
        while self._count > self._limit and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self.forget(oldest)
            self._state.tree.closed(oldest)

    def _used(self, listing: Listing) -> None:
        if listing.is_ahead:
            listing.is_ahead = False
            if listing.is_complete:
                self._unused -= len(listing.entries)
            self._next()

    # -- ahead -------------------------------------------------------------------------

    def _folders(self, node: Node) -> list[Node]:
        """The directories in a directory of which nothing is known yet."""
        listing = node.listing
        if listing is None:
            return []
        now = self._state.loop.time()
        found = []
        for name, packed in listing.entries.items():
            if packed and stat.S_ISDIR(fuse.mode_in(packed)):
                child = node.children.get(name)
                if child is None:
                    child = self._state.tree.child(
                        node, name, packed, listing.expires_of(packed), listing.begun, now
                    )
                below = child.listing
                if below is None or (below.is_over and below.expires <= now):
                    found.append(child)
                if len(found) >= AHEAD_QUEUE // 4:
                    break
        return found

    def _want(self, nodes: list[Node], first: bool) -> None:
        """Queues directories to be fetched ahead."""
        if not self._state.settings.read_ahead or not self._state.settings.caches:
            return
        queued = set(self._queue)
        fresh = [node for node in nodes if node not in queued]
        if first:
            self._queue.extendleft(reversed(fresh))
        else:
            self._queue.extend(fresh)
        while len(self._queue) > AHEAD_QUEUE:
            self._queue.pop()
        self._next()

    def _next(self) -> None:
        while self._queue and self._at_once < AHEAD_AT_ONCE and self._unused < AHEAD_UNUSED:
            node = self._queue.popleft()
            listing = node.listing
            if listing is not None and (
                not listing.is_over or listing.expires > self._state.loop.time()
            ):
                continue
            self._at_once += 1
            Task(self._state.loop, self._ahead(node))

    async def _ahead(self, node: Node) -> None:
        listing = self._begin(node, is_ahead=True)
        while not listing.is_over:
            await listing.more()
        self._at_once -= 1
        self._next()
