"""Reads one open file: exactly what is asked for, or in blocks ahead of a program that goes on.

A READ that follows the one before asks for blocks, as many as the way to the server holds. What
came is kept until the program has passed it, at most as long as attributes hold; a change of the
file by ourselves, or seen in its attributes, throws it away.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import Final

from ..aio.tasks import Task
from ..errors import PeerError
from ..files.sftp_client import SftpClient
from .fuse_session import PENDING, Answer, Reply
from .open_file import OpenFile
from .state import MountState

# Our own choice
BLOCK: Final = 128 << 10  # bytes: what the kernel asks for at once when it reads ahead


class _Block:
    """A part of the file, which has been asked for."""

    __slots__ = ("arrived", "asked", "data", "error", "parts", "version")

    def __init__(self, version: object, asked: tuple[float, int]) -> None:
        self.version = version
        self.asked = asked
        self.parts: list[bytes] = []
        self.data: bytes | None = None  # once it is whole, or the end of the file came
        self.error: Exception | None = None
        self.arrived = 0.0


class Reader:
    """What is read of one open file."""

    def __init__(self, state: MountState, file: OpenFile) -> None:
        self._state = state
        self._file = file
        self._blocks: dict[int, _Block] = {}
        self._waiting: list[tuple[int, int, int]] = []  # READs: number, offset, size
        self._next = 0  # where the last READ ended
        self._run = 0  # bytes that were read one behind the other

    def _version(self) -> object:
        node = self._file.node
        return node.version, node.seen_version

    def read(self, unique: int, offset: int, size: int) -> Answer:
        """Answers a READ."""
        state = self._state
        is_next = offset == self._next
        self._next = offset + size
        self._run = self._run + size if is_next else 0
        handle = self._file.handle_now()
        if handle is None or not state.server.is_connected:
            return self.read_in_pieces(offset, size)
        if (is_next or offset // BLOCK in self._blocks) and state.settings.read_ahead:
            return self._read_blocks(state.server.client_now(), handle, unique, offset, size)
        if size > state.read_size:
            return self.read_in_pieces(offset, size)
        client = state.server.client_now()
        client.read(handle, offset, size, partial(self._on_read, unique, offset, size))
        return PENDING

    def start(self, size: int) -> None:
        """Asks for the beginning of a file of ``size`` bytes, before the program does."""
        handle = self._file.handle_now()
        if handle is not None and self._state.settings.read_ahead and size:
            client = self._state.server.client_now()
            for index in range((min(size, self._state.pace.window) + BLOCK - 1) // BLOCK):
                self._ask(client, handle, index)

    def begun(self, data: bytes) -> None:
        """Takes the first bytes of the file, which came with its handle."""
        if len(data) >= BLOCK:
            block = _Block(self._version(), self._state.pace.asked())
            block.data = data[:BLOCK]
            block.arrived = self._state.loop.time()
            self._blocks[0] = block

    # -- exactly what is asked for -----------------------------------------------------

    def _on_read(
        self,
        unique: int,
        offset: int,
        size: int,
        data: memoryview | None,
        error: Exception | None,
    ) -> None:
        session = self._state.session
        assert session is not None
        if data is None and error is None:
            session.reply(unique, b"")
        elif data is not None and (len(data) == size or offset + len(data) == self._file.node.size):
            session.reply(unique, data)
        elif isinstance(error, OSError):
            session.fail(unique, error.errno or errno.EIO)
        else:  # short, or the session was lost
            begun = b"" if data is None else bytes(data)
            self._answer(unique, Task(self._state.loop, self.read_in_pieces(offset, size, begun)))

    def _answer(self, unique: int, task: Task[Reply]) -> None:
        def done() -> None:
            session = self._state.session
            assert session is not None
            try:
                reply = task.result()
            except OSError as error:
                session.fail(unique, error.errno or errno.EIO)
            except PeerError:
                session.fail(unique, errno.EIO)
            else:
                assert isinstance(reply, bytes)
                session.reply(unique, reply)

        task.when_done(done)

    async def read_in_pieces(self, offset: int, size: int, begun: bytes = b"") -> Reply:
        """Reads as often as it takes, also in a new session."""
        parts, have = [begun], len(begun)
        attempts = 0
        while have < size:
            try:
                client, handle = await self._file.handle()
            except OSError:
                if (kept := self._file.content()) is not None:
                    return kept[offset : offset + size]
                raise
            length = min(size - have, self._state.read_size)
            read = client.read_bytes(handle, offset + have, length)
            try:
                data = await read
            except PeerError:
                attempts += 1
                if attempts > 2:
                    raise
                continue
            if not data:
                break
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    # -- blocks ------------------------------------------------------------------------

    def _read_blocks(
        self, client: SftpClient, handle: bytes, unique: int, offset: int, size: int
    ) -> Answer:
        pace, version, now = self._state.pace, self._version(), self._state.loop.time()
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        end = max(self._file.node.size, offset + size)
        ahead = min(pace.window, 2 * self._run + BLOCK)  # not much for a file's first bytes
        until = min(offset + size + ahead, end)
        holds = self._state.settings.attributes_timeout
        for index in list(self._blocks):
            block = self._blocks[index]
            is_old = block.version != version or (block.arrived and now - block.arrived > holds)
            if index < first - 1 or is_old:
                del self._blocks[index]
        for index in range(first, (until + BLOCK - 1) // BLOCK):
            if index not in self._blocks:
                self._ask(client, handle, index)
        if all(self._blocks[index].data is not None for index in range(first, last + 1)):
            return self._joined(offset, size)
        self._waiting.append((unique, offset, size))
        return PENDING

    def _ask(self, client: SftpClient, handle: bytes, index: int) -> None:
        block = self._blocks[index] = _Block(self._version(), self._state.pace.asked())
        self._ask_part(client, handle, index, block, 0)

    def _ask_part(
        self, client: SftpClient, handle: bytes, index: int, block: _Block, have: int
    ) -> None:
        limit = self._state.read_size
        length = min(BLOCK - have, limit)
        got = partial(self._on_part, client, handle, index, block, have)
        client.read(handle, index * BLOCK + have, length, got)

    def _on_part(
        self,
        client: SftpClient,
        handle: bytes,
        index: int,
        block: _Block,
        have: int,
        data: memoryview | None,
        error: Exception | None,
    ) -> None:
        if error is not None:
            block.error = error
        elif data is not None:
            block.parts.append(bytes(data))
            have += len(data)
            is_end = index * BLOCK + have == self._file.node.size
            if have < BLOCK and len(data) and not is_end:
                self._ask_part(client, handle, index, block, have)
                return
        self._state.pace.delivered(block.asked, have)
        self._state.made_progress()
        parts, block.parts = block.parts, []
        block.arrived = self._state.loop.time()
        block.data = parts[0] if len(parts) == 1 else b"".join(parts)
        if block.error is not None and self._blocks.get(index) is block:
            del self._blocks[index]
        self._serve(index, block)

    def _serve(self, index: int, block: _Block) -> None:
        """Answers the READs that waited for a block, or for nothing else any more."""
        session = self._state.session
        waiting, self._waiting = self._waiting, []
        for unique, offset, size in waiting:
            first, last = offset // BLOCK, (offset + size - 1) // BLOCK
            blocks = [self._blocks.get(each) for each in range(first, last + 1)]
            if any(each is None for each in blocks):  # an error, or it was thrown away meanwhile
                self._answer(unique, Task(self._state.loop, self.read_in_pieces(offset, size)))
            elif all(each is not None and each.data is not None for each in blocks):
                assert session is not None
                session.reply(unique, self._joined(offset, size))
            else:
                self._waiting.append((unique, offset, size))
        length = len(block.data or b"")
        is_end = length < BLOCK and index * BLOCK + length != self._file.node.size
        if is_end and self._blocks.get(index) is block:
            del self._blocks[index]  # the end is not where it was

    def _joined(self, offset: int, size: int) -> bytes:
        """Returns bytes of blocks that have come, up to the file's end."""
        parts = []
        while size > 0:
            index, at = divmod(offset, BLOCK)
            block = self._blocks[index].data
            assert block is not None
            part = block[at : at + size] if at or size < len(block) else block
            parts.append(part)
            if at + len(part) < BLOCK and len(part) < size:
                break  # the end
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
