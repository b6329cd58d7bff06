"""What all requests of one mount share."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..aio.loop import Loop
from ..aio.tasks import Budget, Future
from ..errors import system_error
from ..wire import fuse, sftp
from .attributes import AttributeMap
from .listing import NEVER
from .pace import Pace
from .server import Server
from .settings import MountSettings
from .tree import Node, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..files.sftp_client import SftpClient
    from .fuse_session import FuseSession

# Our own choice
NODE_SIZE: Final = 700  # bytes of memory
RECLAIMED: Final = 2000  # nodes that the kernel is asked to forget at once
EXCHANGE: Final = 1.0  # seconds between two exchanges of a file
UNWRITTEN: Final = 8 << 20  # bytes that wait for the server's acknowledgement: 1 Gbit/s at 65 ms


class Told(NamedTuple):
    """Attributes from the server, and when they were asked for (monotonic)."""

    attributes: sftp.Attributes
    asked: float


class Writes(Protocol):
    """The writes of one file (writes.py)."""

    def push(self) -> None:
        """Sends everything that can be sent."""
        ...

    async def written(self) -> None:
        """Waits until the server has acknowledged everything."""
        ...


class MountState:
    """The tree, the server, and what is known of both."""

    def __init__(self, loop: Loop, settings: MountSettings, server: Server, root: bytes) -> None:
        self.loop = loop
        self.settings = settings
        self.server = server
        self.tree = Tree(root)
        self.map = AttributeMap(settings)
        self.session: FuseSession | None = None  # once the kernel has mounted it
        # bytes that programs have written, and the server has not acknowledged
        self.unwritten = Budget(min(UNWRITTEN, settings.memory // 4))
        self.unfinished: set[Writes] = set()  # of files that may be closed already
        self.pace = Pace(loop)
        self._nodes_limit = max(settings.memory // 2 // NODE_SIZE, RECLAIMED)
        self._reclaims_at = self._nodes_limit  # nodes
        self._exchanged: object = None  # the name that led to another file last ...
        self._exchanged_at = 0.0  # ... and when
        # what is known of a file holds so long, in seconds
        self.attributes_hold = settings.attributes_timeout if settings.caches else 0.0

    @property
    def write_size(self) -> int:
        """How many bytes a WRITE has at the most."""
        limit = self.server.write_limit
        return min(self.settings.max_write or limit, limit)

    @property
    def read_size(self) -> int:
        """How many bytes a READ asks for at the most."""
        limit = self.server.read_limit
        return min(self.settings.max_read or limit, limit)

    def made_progress(self) -> None:
        """Takes note that the server did a part of what callers wait for."""
        if self.session is not None:
            self.session.progress = self.loop.time()

    def holds(self, expires: float) -> bool:
        """Whether what is known until ``expires`` is told.

        While the link is known to be down, it is told whatever its age: nobody knows better, unless
        we have changed it ourselves.
        """
        if expires > self.loop.time():
            return True
        return expires != NEVER and not self.server.is_connected

    # -- attributes --------------------------------------------------------------------

    def look(self, client: SftpClient, path: bytes) -> Future[sftp.AttrsReply]:
        """Asks for attributes, of a symbolic link itself unless links are followed."""
        request = sftp.Stat if self.settings.follow_symlinks else sftp.LStat
        return client.ask(request(0, path), sftp.AttrsReply, path)

    def learn(self, node: Node, told: Told) -> None:
        """Takes attributes that the server has told now; raises OSError."""
        packed = self.map.pack(told.attributes) or node.packed
        now = self.loop.time()
        self.tree.learn(node, packed, now + self.attributes_hold, told.asked, now)

    def learn_done(self, node: Node, told: Told) -> None:
        """As ``learn``, of a change that was shown before the server had made it.

        The time that was shown for it stays: tar and git take another one for another change.
        """
        packed = self.map.pack(told.attributes)
        if packed and node.is_expected:
            node.shown_change = fuse.changed_in(packed), fuse.changed_in(node.packed)
        self.learn(node, told)

    def learn_same(self, node: Node, told: Told) -> None:
        """As ``learn``, but they may be those of another file, which has the name now.

        Then ESTALE has the kernel look the name up again. While somebody exchanges the file over
        and over, that would not end: the second time the node becomes the other file.
        """
        packed = self.map.pack(told.attributes)
        if packed and not self.tree.is_same(node, packed):
            now = self.loop.time()
            place = node.parent, node.name
            is_repeated = place == self._exchanged and now - self._exchanged_at < EXCHANGE
            self._exchanged, self._exchanged_at = place, now
            if is_repeated and not node.is_directory:
                node.inode = 0
                node.exchanged = now + self.attributes_hold
                self.learn(node, told)
                return
            for parent, name in [*self.tree.names(node)]:
                self.tree.remove(parent, name)
                node.replaced_at = parent, name
                self.renamed_in(parent, name, b"")
            raise system_error(errno.ESTALE)
        self.learn(node, told)

    def find_again(self, node: Node) -> None:
        """Gives a file the name back that another one has taken, for a program that opens it now.

        It looked the name up before, and means whatever has the name: the node becomes that file.
        """
        if node.parent is None and node.replaced_at is not None and node.files is None:
            parent, name = node.replaced_at
            if (other := self.tree.remove(parent, name)) is not None:
                other.replaced_at = parent, name
            self.tree.add_name(node, parent, name)
            node.inode, node.expires = 0, 0.0
            node.exchanged = self.loop.time() + self.attributes_hold

    def doubt(self, node: Node) -> None:
        """Believes a node's attributes no longer, unless we know more than the server does."""
        if not node.pending:
            node.expires = 0.0

    def changed(self, node: Node) -> None:
        """Takes note that a file's content is another one now."""
        node.version += 1
        node.changed_at = self.loop.time()
        node.is_dated = False
        node.expires = NEVER

    async def forget_content(self, node: Node) -> None:
        """Throws away what was read of a file, here and in the kernel."""
        assert self.session is not None
        node.version += 1
        node.changed_at = self.loop.time()  # attributes that were asked for before are too old
        node.cached_version = b""
        self.doubt(node)
        await self.session.notified(fuse.invalid_inode(node.number, 0, 0))

    def entry(self, node: Node) -> bytes:
        """Returns the reply that gives the kernel a node, and counts the lookup."""
        node.lookups += 1
        if len(self.tree) > self._reclaims_at:
            self._reclaim()
        settings = self.settings
        left = self._left(node)
        for_name = left if settings.entry_timeout is None else settings.entry_timeout
        for_attributes = left if settings.attr_timeout is None else settings.attr_timeout
        return fuse.entry(node.number, for_name, for_attributes, node.packed)

    def _reclaim(self) -> None:
        """Has the kernel forget nodes: it would keep them as long as it has memory, and so we."""
        assert self.session is not None
        for parent, name in self.tree.unused(RECLAIMED):
            self.session.notify(fuse.invalid_entry(parent.number, name))
        self._reclaims_at = max(self._nodes_limit, len(self.tree) + RECLAIMED // 2)
        self.loop.call_later(1.0, self._may_reclaim)

    def _may_reclaim(self) -> None:
        self._reclaims_at = self._nodes_limit

    def attributes_reply(self, node: Node) -> bytes:
        """Returns the reply to GETATTR."""
        timeout = self.settings.attr_timeout
        if timeout is None:
            timeout = self._left(node)
        return fuse.attributes_reply(timeout, node.packed)

    def _left(self, node: Node) -> float:
        """How long a node's attributes hold, in seconds."""
        if node.making:
            return 0.0
        return min(max(0.0, node.expires - self.loop.time()), self.attributes_hold)

    def missing(self, left: float) -> bytes:
        """Returns the reply for a name that does not exist, which holds for so long."""
        timeout = self.settings.negative_timeout
        left = min(max(0.0, left), self.attributes_hold)
        return fuse.missing(left if timeout is None else timeout)

    def take_back(self, node: Node) -> Callable[[], None]:
        """Returns what takes back the lookup of an ``entry``."""
        return lambda: self.tree.forget(node.number, 1)

    # -- names -------------------------------------------------------------------------

    def made(self, parent: Node, name: bytes, attributes: sftp.Attributes) -> Node:
        """Takes note of a file that we have made; returns its node."""
        now = self.loop.time()
        packed = self.map.pack(attributes)
        if not packed:
            raise system_error(errno.EIO)
        node = self.tree.child(parent, name, packed, now + self.attributes_hold, now, now)
        self.renamed_in(parent, name, packed)
        return node

    def renamed_in(self, parent: Node, name: bytes, packed: bytes | None) -> None:
        """Takes note of a name that we have made, or removed (None)."""
        parent.changed_at = self.loop.time()
        if parent.listing is not None:
            parent.listing.change(name, packed)
        self.doubt(parent)  # its times have changed

    def unlinked(self, parent: Node, name: bytes) -> Node | None:
        """Takes note of a name that we have removed; returns the node that had it."""
        node = self.tree.remove(parent, name)
        self.renamed_in(parent, name, None)
        if node is not None:
            node.expires = 0.0
        return node


def kind_of(packed: bytes) -> int:
    """Returns a DT_* of readdir(3)."""
    return stat.S_IFMT(fuse.mode_in(packed)) >> 12
