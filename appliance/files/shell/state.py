"""Where a person is in sftp, and how its commands tell what happens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

from ...aio.loop import Loop
from ...aio.tasks import Future
from .. import wildcards
from ..copying import CopySettings
from ..progress import shown
from ..sftp_client import SftpClient

Work = Coroutine[Future[Any], None, None]  # of the event loop


class CommandFailed(Exception):
    """A command of sftp has failed; the text says why, '' if that was told already."""


class Arguments:
    """The words of a command: its flags, and its operands as patterns."""

    def __init__(self, name: str, flags: str, operands: list[bytes], rest: bytes) -> None:
        """``rest`` is the line behind the command's name, as it was typed."""
        self.name = name
        self.flags = flags
        self.operands = operands
        self.rest = rest

    def operand(self, index: int) -> bytes | None:
        """The operand at a place; None if there are not so many."""
        return self.operands[index] if index < len(self.operands) else None


class SftpState:
    """What the commands share: the session, the directories, and the settings."""

    def __init__(
        self,
        loop: Loop,
        client: SftpClient,
        start_directory: bytes,
        settings: CopySettings,
        is_quiet: bool,
        draws_progress: bool,
    ) -> None:
        self.loop = loop
        self.client = client
        self.start_directory = start_directory  # at the server
        self.directory = start_directory
        self.settings = settings
        self.is_quiet = is_quiet  # names no file that is copied or changed
        self.draws_progress = draws_progress
        self.users: dict[int, str] = {}  # names at the server
        self.groups: dict[int, str] = {}

    def absolute(self, name: bytes) -> bytes:
        """Returns the path at the server."""
        return os.path.join(self.directory, name)

    def absolute_pattern(self, pattern: bytes) -> bytes:
        """Returns the pattern with the current directory in front, unless it is absolute."""
        return os.path.join(wildcards.quoted(self.directory), pattern)

    def say(self, text: str) -> None:
        """Writes a line of a command's result."""
        sys.stdout.write(text + "\n")

    def name(self, text: str) -> None:
        """Tells what a command is about to do to a file."""
        if not self.is_quiet:
            self.say(text)

    def complain(self, text: str) -> None:
        """Tells a failure, behind everything that was said before."""
        sys.stdout.flush()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def during(what: str) -> Iterator[None]:
    """Makes an OSError the failure of ``what``."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{what}: {error.strerror or error}") from error


def in_quotes(path: bytes) -> str:
    """A path for a person, in quotes."""
    return f'"{shown(path)}"'
