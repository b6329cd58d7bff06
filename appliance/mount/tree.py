"""The files of a mount: nodes, which the kernel knows by number, and their places in the tree.

A node is made when the kernel first asks for it, and lives as long as the kernel remembers it, a
file of it is open, or another node lies in it. A file with several names is one node, if the
server tells inodes.

What is known of a node (``packed``) holds until ``expires`` (seconds, monotonic), by our clock
alone: the server's may be years off. What was asked for before we changed the node is not believed,
whenever it comes: a size from before a write would take the written bytes away from programs.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol

from ..errors import system_error
from ..wire import fuse
from ..wire.sftp import Attributes
from .listing import Listing

# Our own choice
PROOF: Final = 2.0  # seconds, see Node.observe


_NO_CHILDREN: Final[dict[bytes, Node]] = {}  # most nodes are files


class OpenFiles(Protocol):
    """The open files of one node (open_files.py)."""

    @property
    def is_changing(self) -> bool:
        """Whether the server does not have everything yet that was written."""
        ...

    async def sent(self) -> None:
        """Sends everything; what is asked behind it sees it."""
        ...

    async def written(self) -> None:
        """Waits until the server has everything."""
        ...

    async def opened(self) -> None:
        """Opens at the server what is open here alone, before something is in the way of that."""
        ...

    def handle(self, for_writing: bool) -> bytes | None:
        """Returns a handle of any of the files, if there is one now."""
        ...

    def change_behind(self, given: Attributes) -> bool:
        """Changes mode and times behind the writes of a file that we have made, if there is one."""
        ...


class Node:
    """One file or directory."""

    __slots__ = (
        "cached_at",
        "cached_version",
        "changed_at",
        "children",
        "exchanged",
        "expires",
        "files",
        "inode",
        "is_dated",
        "is_expected",
        "keeps_number",
        "known_at",
        "listing",
        "lookups",
        "making",
        "misses",
        "name",
        "number",
        "others",
        "packed",
        "parent",
        "pending",
        "replaced_at",
        "seen_version_at",
        "shown_change",
        "target",
        "version",
        "writable",
    )

    def __init__(self, number: int, parent: Node | None, name: bytes) -> None:
        self.number = number
        self.parent = parent  # None for the root, and for a file that has no name any more
        self.name = name
        self.others: list[tuple[Node, bytes]] | None = None  # its other names
        self.packed = b""  # attributes, with the inode that the kernel is told
        self.inode = 0  # at the server; 0 if it does not tell, or not yet
        self.keeps_number = (
            False  # the kernel is told our number: it was, before the inode was known
        )
        self.known_at = 0.0  # when the attributes were asked for
        self.expires = 0.0
        self.replaced_at: tuple[Node, bytes] | None = None  # the name that we gave to another file
        self.exchanged = 0.0  # until when the kernel may know the size of another file
        self.pending = 0  # changes that programs were told, and the server has not done
        self.making = 0  # of ``pending`` changes, those of names in this directory
        self.lookups = 0  # that the kernel has not forgotten
        self.children: dict[bytes, Node] = _NO_CHILDREN  # those that are nodes
        self.listing: Listing | None = None  # of a directory
        self.changed_at = 0.0  # when we last changed its content, or a name in it
        self.writable = b""  # its rights, fuse.rights_in, when we last made something in it
        self.misses = 0  # names of a directory that were asked for one by one
        self.files: OpenFiles | None = None  # while it is open
        self.target: bytes | None = None  # of a symbolic link, as long as its attributes hold
        self.is_expected = False  # the attributes are what we have set, not what the server told
        # the server's time of a change that we have made behind, and the one that we showed of it
        self.shown_change: tuple[bytes, bytes] | None = None
        self.is_dated = False  # its times were set behind what was written
        self.version = 0  # counts our own changes of its content
        self.seen_version_at = 0.0  # since when we know the attributes' version
        self.cached_version = b""  # the seen_version of which the kernel has pages ...
        self.cached_at = 0.0  # ... which came after this moment

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(fuse.mode_in(self.packed))

    @property
    def size(self) -> int:
        """Its size, in bytes."""
        return fuse.size_in(self.packed)

    @property
    def for_listing(self) -> bytes:
        """Its attributes with the inode at the server, as listings keep them; 0 if it has none yet.

        With the number that the kernel is told instead, the server's own inode would be another
        file's.
        """
        return fuse.with_inode(self.packed, self.inode)

    @property
    def seen_version(self) -> bytes:
        """What the attributes say of its content, and of the right to read it."""
        return fuse.version_in(self.packed)

    def know(self, packed: bytes, expires: float, asked: float, now: float) -> bool:
        """Takes attributes that were asked for at this moment, and hold until ``expires``.

        Returns False for those that are older than a change of ours.
        """
        if asked < self.changed_at and (self.known_at < self.changed_at or packed != self.packed):
            return False
        if not self.packed or fuse.version_in(packed) != self.seen_version:
            self.seen_version_at = now
            self.target = None
        self.packed = packed
        self.expires = expires
        self.known_at = asked
        self.is_expected = False
        return True

    def grow(self, size: int) -> None:
        """Takes note that the file has at least ``size`` bytes now."""
        if size > fuse.size_in(self.packed):
            self.resize(size)

    def resize(self, size: int) -> None:
        """Takes note that the file has this many bytes now."""
        self.packed = fuse.with_size(self.packed, size)

    def proves(self, fetched: float) -> bool:
        """Whether equal attributes prove that what was fetched at this moment is current.

        A change shows in the file's times only if it does not fall into the same second as the
        one before. PROOF seconds after we first saw these times, the server's clock is past them.
        """
        return fetched - self.seen_version_at >= PROOF


class Tree:
    """All nodes of a mount."""

    def __init__(self, root: bytes) -> None:
        """``root``: its absolute path at the server."""
        self.root = Node(fuse.ROOT, None, b"")
        self.root.lookups = 1
        self._root_path = b"" if root == b"/" else root
        self._nodes = {fuse.ROOT: self.root}
        self._by_inode: dict[int, Node] = {}  # files with several names
        self._next = fuse.ROOT + 1

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def __len__(self) -> int:
        return len(self._nodes)

    def path(self, node: Node) -> bytes:
        """Returns the path at the server; raises OSError for a file without a name.

        ESTALE has the kernel look the path up again, and the caller get another file of that name.
        """
        names: list[bytes] = []
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        if node is not self.root:
            raise system_error(errno.ESTALE)
        names.append(self._root_path)
        names.reverse()
        return b"/".join(names) or b"/"

    def path_of(self, parent: Node, name: bytes) -> bytes:
        """Returns the path of a name in a directory."""
        path = self.path(parent)
        return path + name if path == b"/" else path + b"/" + name

    def child(
        self, parent: Node, name: bytes, packed: bytes, expires: float, asked: float, now: float
    ) -> Node:
        """Returns the node of a name, with these attributes; another one if the file is another.

        ``packed`` has inode 0 if the server tells none.
        """
        inode = fuse.inode_in(packed)
        node = parent.children.get(name)
        if node is not None:
            if asked < node.changed_at or _is_same(node, packed, inode):
                self._know(node, packed, inode, expires, asked, now)
                return node
            self.remove(parent, name)
        if inode and not stat.S_ISDIR(fuse.mode_in(packed)) and fuse.links_in(packed) > 1:
            node = self._by_inode.get(inode)
            if node is not None and _is_same(node, packed, inode):
                self.add_name(node, parent, name)
                self._know(node, packed, inode, expires, asked, now)
                return node
        node = Node(self._next, parent, name)
        self._next += 1
        self._nodes[node.number] = node
        self._enter(parent, name, node)
        self._know(node, packed, inode, expires, asked, now)
        return node

    def _know(
        self, node: Node, packed: bytes, inode: int, expires: float, asked: float, now: float
    ) -> None:
        if not inode or node.keeps_number:
            packed = fuse.with_inode(packed, node.number)
        if node.shown_change is not None:
            changed, shown = node.shown_change
            if fuse.changed_in(packed) == changed:
                packed = fuse.with_changed(packed, shown)
        if not node.know(packed, expires, asked, now):
            return
        node.inode = inode or node.inode
        if inode and fuse.links_in(packed) > 1 and not stat.S_ISDIR(fuse.mode_in(packed)):
            self._by_inode[inode] = node

    def learn(self, node: Node, packed: bytes, expires: float, asked: float, now: float) -> None:
        """Takes new attributes of a node, and of its names in listings."""
        if asked < node.changed_at:
            return
        self._know(node, packed, fuse.inode_in(packed), expires, asked, now)
        for parent, name in self.names(node):
            if parent.listing is not None and name in parent.listing.entries:
                parent.listing.entries[name] = packed

    def is_same(self, node: Node, packed: bytes) -> bool:
        """Whether attributes can be those of the node's file."""
        return _is_same(node, packed, fuse.inode_in(packed))

    def names(self, node: Node) -> Iterator[tuple[Node, bytes]]:
        """All names of a node that are known."""
        if node.parent is not None:
            yield node.parent, node.name
        yield from node.others or ()

    def add_name(self, node: Node, parent: Node, name: bytes) -> None:
        """Gives a node one more name."""
        if parent.children.get(name) is node:
            return
        self._enter(parent, name, node)
        if node.parent is None and node is not self.root:
            node.parent, node.name = parent, name
        else:
            node.others = [*(node.others or ()), (parent, name)]

    @staticmethod
    def _enter(parent: Node, name: bytes, node: Node) -> None:
        if parent.children is _NO_CHILDREN:
            parent.children = {}
        parent.children[name] = node

    def remove(self, parent: Node, name: bytes) -> Node | None:
        """Takes a name away; returns the node that had it."""
        if name not in parent.children:
            return None
        node = parent.children.pop(name)
        if node.parent is parent and node.name == name:
            node.parent, node.name = None, b""
            if node.others:
                (node.parent, node.name), *rest = node.others
                node.others = rest or None
        elif node.others:
            node.others = [each for each in node.others if each != (parent, name)] or None
        self._drop(node)
        self._drop(parent)
        return node

    def move(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        """Renames; what had the new name loses it."""
        node = parent.children.get(name)
        if node is not None and new_parent.children.get(new_name) is node:
            return  # two names of one file: rename(2) does nothing
        self.remove(new_parent, new_name)
        if node is None:
            return
        del parent.children[name]
        if node.parent is parent and node.name == name:
            node.parent, node.name = new_parent, new_name
        else:
            node.others = [
                (new_parent, new_name) if each == (parent, name) else each
                for each in node.others or ()
            ]
        self._enter(new_parent, new_name, node)
        self._drop(parent)

    def forget(self, number: int, count: int) -> None:
        """Takes back lookups that the kernel has forgotten."""
        node = self._nodes.get(number)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self._drop(node)

    def unused(self, count: int) -> list[tuple[Node, bytes]]:
        """Returns names of files that nobody has open, of nodes that were told longest ago.

        The next call returns others first.
        """
        found: list[tuple[Node, bytes]] = []
        for number in list(islice(self._nodes, 2 * count)):
            node = self._nodes[number] = self._nodes.pop(number)
            if node.parent is not None and not node.is_directory and node.files is None:
                found += self.names(node)
            if len(found) >= count:
                break
        return found

    def _drop(self, node: Node) -> None:
        """Forgets a node that nobody needs, and those above it."""
        while node is not self.root and not (
            node.lookups or node.children or node.files or node.pending
        ):
            if self._nodes.pop(node.number, None) is None:
                return
            if self._by_inode.get(node.inode) is node:
                del self._by_inode[node.inode]
            parent = node.parent
            for each, name in [*self.names(node)]:
                if each.children.get(name) is node:
                    del each.children[name]
            if parent is None:
                return
            node = parent

    def closed(self, node: Node) -> None:
        """Takes note that no file of a node is open any more."""
        self._drop(node)

    def below(self, node: Node) -> Iterator[Node]:
        """A directory's node and all those that lie in it."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


def _is_same(node: Node, packed: bytes, inode: int) -> bool:
    """Whether attributes can be those of the node's file."""
    if (fuse.mode_in(node.packed) ^ fuse.mode_in(packed)) & 0o170000:
        return False
    return not inode or not node.inode or node.inode == inode
