"""All open files of one node, and what was written to them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from ..aio.tasks import Future
from ..errors import PeerError
from ..wire.sftp import Attributes
from .open_file import OpenFile
from .read_ahead import Reader
from .state import MountState
from .tree import Node
from .writes import WriteQueue


class NodeFiles:
    """All open files of one node, and what was written to them."""

    def __init__(self, state: MountState, node: Node) -> None:
        self._state = state
        self._node = node
        self.open: list[OpenFile] = []
        self._closing: list[OpenFile] = []  # not everything of them is acknowledged yet
        self.queue = WriteQueue(state, self._drop_if_closed)

    @property
    def is_changing(self) -> bool:
        """Whether the server does not have everything yet."""
        return not self.queue.is_empty

    async def sent(self) -> None:
        """Sends everything; what is asked behind it sees it."""
        if self.is_changing:
            self.queue.push()
            if not self.queue.is_sent:
                await self.queue.written()

    async def opened(self) -> None:
        """Opens all files at the server, before something changes that would be in the way."""
        for file in [*self.open]:
            if not file.has_handle:
                with contextlib.suppress(OSError, PeerError):  # whoever reads it gets the error
                    await file.handle()

    async def written(self) -> None:
        """Waits until the server has everything."""
        await self.queue.written()

    def handle(self, for_writing: bool) -> bytes | None:
        """Returns a handle of any of the files, if there is one now."""
        for file in self.open:
            if (file.is_writable or not for_writing) and (handle := file.handle_now()) is not None:
                return handle
        return None

    def change_behind(self, given: Attributes) -> bool:
        """Changes mode and times behind the writes of a file that we have made, if there is one."""
        for file in self.open:
            if file.is_new and file.has_handle:
                self.queue.change(file, given)
                return True
        return False

    def closed(self, file: OpenFile) -> None:
        """Takes note that a program has closed a file; its handle lives until all is written."""
        self.open.remove(file)
        self._closing.append(file)
        self._drop_if_closed()

    def use(self, file: OpenFile, until: Future[Any]) -> None:
        """Lets the handle of a file live until an operation is done."""
        file.uses += 1

        def done() -> None:
            file.uses -= 1
            self._drop_if_closed()

        until.when_done(done)

    def _drop_if_closed(self) -> None:
        """Closes what may be closed, and forgets this once nothing is open or written."""
        node = self._node
        if not self.queue.is_empty:
            return
        for file in [file for file in self._closing if not file.uses]:
            self._closing.remove(file)
            file.close()
        if not self.open and not self._closing and node.files is self:
            node.files = None
            self._state.tree.closed(node)


class Opened(NamedTuple):
    """What belongs to one open file description of the kernel's."""

    file: OpenFile
    reader: Reader
    files: NodeFiles  # of its node
