"""What all copies of trees do alike, and those from a server among them."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from functools import partial

from ..aio.loop import Loop
from ..errors import ProtocolError
from ..wire.sftp import Attributes, NamedFile
from .copying import CopySettings, Job, Jobs, Pace, Progress
from .sftp_client import SftpClient


class TreeCopy:
    """Owns the jobs of a copy; files and directories are added first, and then ``run``."""

    def __init__(self, loop: Loop, settings: CopySettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._pace = Pace(loop, settings.rate)
        self._jobs = Jobs(loop, self._failed)
        self._to_finish: list[Job] = []  # for directories, once all that is in them is copied

    async def run(self) -> None:
        """Copies everything that was added; failures of files go to the progress."""
        await self._jobs.run()
        for finish in reversed(self._to_finish):  # children first
            try:
                await finish()
            except OSError as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        path = getattr(error, "filename", None)
        self._progress.failed(os.fsencode(path) if path is not None else b"", error)

    def _is_recursive(self, source: bytes) -> bool:
        """Whether the directory ``source`` may be copied; tells if not."""
        if not self._settings.recursive:
            self._failed(IsADirectoryError(errno.EISDIR, "not a regular file", source))
        return self._settings.recursive


class CopyFromServer(TreeCopy, ABC):
    """A copy whose source is a server, whose attributes say what is to be copied."""

    def __init__(
        self, loop: Loop, source: SftpClient, settings: CopySettings, progress: Progress
    ) -> None:
        super().__init__(loop, settings, progress)
        self._source = source

    def add(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        """Adds a file or directory with its attributes to what ``run`` copies."""
        mode, size = attributes.permissions, attributes.size or 0
        if mode is None and self._settings.recursive:
            self._jobs.add_file(size, partial(self._unknown, source, target, attributes))
        elif mode is not None and stat.S_ISDIR(mode):
            self._add_directory(source, target, attributes)
        else:
            self._jobs.add_file(size, partial(self._file, source, target, attributes))

    @abstractmethod
    async def _file(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        """Copies a file."""

    @abstractmethod
    async def _directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        """Makes a directory, and adds what is in it."""

    def _add_directory(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        if self._is_recursive(source):
            self._jobs.add_directory(partial(self._directory, source, target, attributes))

    async def _add_listing(self, source: bytes, target: bytes) -> None:
        """Adds what is in a directory."""
        async for entries in self._source.listing(source):
            for entry in entries:
                if entry.filename not in (b".", b".."):
                    self._add_entry(source, target, entry)
            await self._jobs.room()

    def _add_entry(self, source: bytes, target: bytes, entry: NamedFile) -> None:
        name, mode = entry.filename, entry.attributes.permissions
        check_name(name)
        below, to = os.path.join(source, name), os.path.join(target, name)
        if mode is not None and stat.S_ISLNK(mode):
            self._jobs.add_file(0, partial(self._link, below, to))
        else:
            self.add(below, to, entry.attributes)

    async def _link(self, source: bytes, target: bytes) -> None:
        """Copies what a symbolic link leads to, if they are followed."""
        if not self._settings.follow_links:
            self._progress.skipped(source)
            return
        self.add(source, target, await self._source.stat(source))

    async def _unknown(self, source: bytes, target: bytes, attributes: Attributes) -> None:
        """Copies what the server's attributes do not tell from a file or a directory."""
        if await self._source.is_directory(source, attributes):
            self._add_directory(source, target, attributes)
        else:
            await self._file(source, target, attributes)


def check_name(name: bytes) -> None:
    """Raises ProtocolError for a name by which a hostile server would leave the directory."""
    if not name or b"/" in name or b"\0" in name:
        raise ProtocolError(f"the server lists a file with the name {os.fsdecode(name)!r}")
