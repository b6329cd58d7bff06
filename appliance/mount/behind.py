"""Changes that programs are told to be done before the server has done them (write_behind).

Making files, directories and symbolic links, changing attributes, and closing files: each is done
here at once, and at the server in its order, as many at a time as the way there holds. An operation
waits for the one before it on the same file, and for those on the directories above. Whatever needs
the server's own answer (rename, unlink, link, fsync) waits for them.

What is expected of a new file (its owner, and the server's clock) is what the server has shown of
one that was made before; until then, files are made as in safe mode. A name is made only in a
directory whose listing proves that it is missing. An operation is repeated until the server has
answered. One that fails is told in the log, and at the next call on its file.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..aio.tasks import Budget, Future, Task
from ..errors import PeerError
from ..wire import fuse, sftp
from .attributes import UNIT
from .listing import FOR_EVER, Listing
from .state import MountState, Told
from .tree import Node

_log = logging.getLogger(__name__)

# Returns the attributes that it has led to, if the server told them.
Work = Callable[[], Coroutine[Future[Any], None, Told | None]]
Operation = Task[Told | None]

# Our own choices
AT_ONCE: Final = 512  # operations that wait for the server
LARGE: Final = 4 << 20  # bytes: whoever closes a file waits while so many are unwritten

_SECOND: Final = 1_000_000_000  # nanoseconds


class Behind:
    """The operations that the server has not answered."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._last: dict[Node, Operation] = {}  # the last operation on each node
        self._owner: tuple[int, int] | None = None  # of new files
        self._clock = 0  # the server's, less ours (monotonic): nanoseconds
        self.is_on = state.settings.write_behind
        self.room = Budget(AT_ONCE)

    # -- what is expected --------------------------------------------------------------

    def observed(self, parent: Node, attributes: sftp.Attributes) -> None:
        """Takes what the server shows of a file that it has made just now in ``parent``."""
        parent.writable = fuse.rights_in(parent.packed)
        if attributes.owner is None or attributes.times is None:
            return
        self._owner = attributes.owner
        identity = attributes.identity
        nanoseconds = identity.modification_nanoseconds if identity is not None else 0
        there = attributes.times[1] * _SECOND + nanoseconds
        self._clock = there - int(self._state.loop.time() * _SECOND)

    def now(self) -> tuple[int, int]:
        """Returns the server's time: seconds and nanoseconds, as fine as it keeps them."""
        seconds, nanoseconds = divmod(int(self._state.loop.time() * _SECOND) + self._clock, _SECOND)
        return seconds, nanoseconds if self._state.server.has(sftp.NANOSECONDS) else 0

    def expected(self, mode: int, size: int = 0) -> sftp.Attributes:
        """Returns the attributes of a file that is made now."""
        seconds, _ = self.now()
        return sftp.Attributes(size, self._owner, mode, (seconds, seconds))

    def may_make(self, parent: Node, listing: Listing | None, name: bytes) -> bool:
        """Whether a name may be made here first, in a directory with this current listing.

        Something must have been made in it since its rights were set.
        """
        if not self.is_on or self._owner is None or not self.room.has_room:
            return False
        if parent.writable != fuse.rights_in(parent.packed):
            return False
        return listing is not None and name not in listing.entries

    def make(self, parent: Node, name: bytes, mode: int, size: int = 0) -> Node:
        """Makes a name here; the caller then adds what makes it at the server."""
        node = self._state.made(parent, name, self.expected(mode, size))
        node.keeps_number = node.is_expected = True
        node.changed_at = self._state.loop.time()  # what was asked for before is of another file
        node.expires = FOR_EVER
        if stat.S_ISDIR(mode) and mode & 0o300 == 0o300:
            node.writable = fuse.rights_in(node.packed)
        return node

    # -- operations --------------------------------------------------------------------

    def add(self, node: Node, work: Work) -> Operation:
        """Does ``work`` at the server, after what was added for this node before."""
        node.expires = FOR_EVER
        node.pending += 1
        self.room.hold(1)
        parent = node.parent
        if parent is not None:
            parent.making += 1
        before = self._last.get(node)
        task = Task(self._state.loop, self._run(node, before, work))
        if not task.done:
            self._last[node] = task
        task.when_done(lambda: self._done(node, parent, task))
        return task

    async def _run(self, node: Node, before: Operation | None, work: Work) -> Told | None:
        if before is not None:
            await before
        if node.parent is not None:
            await self.settled(node.parent)
        try:
            return await work()
        except OSError as error:
            _log.error("%r: %s", os.fsdecode(node.name), error.strerror or error)
            self._undo(node)
        except PeerError as error:
            _log.error("%r: %s", os.fsdecode(node.name), error)
            self._undo(node)
        return None

    def _undo(self, node: Node) -> None:
        """Believes nothing more of a node of which the server did not accept something."""
        for parent, name in [*self._state.tree.names(node)]:
            if parent.listing is not None:
                parent.listing.expires = 0.0
            if self._state.session is not None:
                self._state.session.notify(fuse.invalid_entry(parent.number, name))

    def _done(self, node: Node, parent: Node | None, task: Operation) -> None:
        self.room.give(1)
        node.pending -= 1
        if parent is not None:
            parent.making -= 1
            if not parent.making:
                self._state.doubt(parent)  # its times are those of the last change
        if self._last.get(node) is task:
            del self._last[node]
        if node in self._last:
            return
        state = self._state
        is_changing = node.files is not None and node.files.is_changing
        if not is_changing:
            told = task.result()
            if told is not None:
                state.learn_done(node, told)
            if node.expires == FOR_EVER:
                state.doubt(node)
        for parent, name in state.tree.names(node):
            if parent.listing is not None and not parent.listing.is_over:
                parent.listing.change(name, node.for_listing)
        state.tree.closed(node)

    async def settled(self, node: Node) -> None:
        """Waits until everything of a node, and of those above it, is done."""
        above: Node | None = node
        while above is not None:
            while (task := self._last.get(above)) is not None:
                await task
            above = above.parent

    async def settled_below(self, node: Node) -> None:
        """Waits until everything of a directory is done, and of what is in it."""
        await self.settled(node)
        for below in [*self._state.tree.below(node)]:
            while (task := self._last.get(below)) is not None:
                await task

    async def all_done(self) -> None:
        """Waits until everything is done."""
        while self._last:
            await next(iter(self._last.values()))

    # -- attributes --------------------------------------------------------------------

    def changed(self, node: Node, given: sftp.Attributes) -> None:
        """Shows attributes that are being set."""
        known = fuse.Attributes.decode(node.packed)
        if given.permissions is not None:
            known = known._replace(mode=stat.S_IFMT(known.mode) | given.permissions)
        if given.times is not None:
            parts = given.nanoseconds or (0, 0)
            accessed, modified = zip(given.times, parts, strict=True)
            known = known._replace(accessed=accessed, modified=modified)
        if self.is_on:
            known = known._replace(changed=self.now())
        node.packed = known.encode()
        node.is_expected = True
        for parent, name in self._state.tree.names(node):
            if parent.listing is not None and name in parent.listing.entries:
                parent.listing.entries[name] = node.for_listing

    def written(self, node: Node, size: int) -> None:
        """Shows that ``size`` bytes of a file are written now."""
        node.expires = FOR_EVER
        node.is_expected = True
        now = self.now()
        known = fuse.Attributes.decode(node.packed)
        blocks = min(known.blocks + (size + UNIT - 1) // UNIT, (known.size + UNIT - 1) // UNIT)
        node.packed = known._replace(modified=now, changed=now, blocks=blocks).encode()
