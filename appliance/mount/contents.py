"""Small files that are kept whole.

What is kept is used only as long as the server's attributes prove that it is current: see
``Node.proves``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..files.sftp_client import SftpClient, StatusError
from ..wire import sftp
from .state import MountState, Told
from .tree import Node

# Our own choices
SMALL: Final = 128 << 10  # bytes of a file that is kept whole
OVERHEAD: Final = 300  # bytes that keeping a file takes besides its content


class _Content(NamedTuple):
    data: bytes
    version: bytes  # Node.seen_version of what was fetched
    changes: int  # Node.version of that moment
    fetched: float  # when it was asked for


class Contents:
    """Keeps contents, the most recently used ones."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._limit = state.settings.memory // 4
        self._kept: dict[Node, _Content] = {}  # the one used longest ago first
        self._size = 0

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
        self._size += len(data) + OVERHEAD
        while self._size > self._limit:
            self.drop(next(iter(self._kept)))

    def drop(self, node: Node) -> None:
        """Throws the content of a file away."""
        content = self._kept.pop(node, None)
        if content is not None:
            self._size -= len(content.data) + OVERHEAD

    def __contains__(self, node: Node) -> bool:
        """Whether a content is kept, current or not."""
        return node in self._kept

    async def fetch(self, client: SftpClient, node: Node) -> tuple[bytes, bytes]:
        """Reads a small file, and keeps it; returns (handle, data).

        The handle is b'' if the data is the whole file. Raises OSError.
        """
        path = self._state.tree.path(node)
        asked = self._state.loop.time()
        if client.has(sftp.READ_FILE):
            content = await client.read_file(path, SMALL)
            try:
                self._state.learn_same(node, Told(content.attrs, asked))
            except OSError:
                if content.handle:
                    client.abandon(content.handle)
                raise
            if not content.handle:
                self.put(node, content.data, asked)
            return content.handle, content.data
        handle = await client.open(path, sftp.READ)
        try:
            looked = client.ask(sftp.FStat(0, handle), sftp.AttrsReply, path)
            length = min(node.size, SMALL) + 1  # if one request gives as much
            data = await client.read_bytes(handle, 0, min(length, client.read_limit))
            self._state.learn(node, Told((await looked).attrs, asked))
        except StatusError:
            client.abandon(handle)
            raise
        if len(data) > SMALL or len(data) != node.size:  # it has grown, or reads are cut
            return handle, data
        client.abandon(handle)
        self.put(node, data, asked)
        return b"", data
