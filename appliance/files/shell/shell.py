"""Runs lines of sftp, from a person or from a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final

from ...errors import CulvertError, PeerError
from ...log import harmless
from ..progress import shown
from .commands import COMMANDS, Quit, SftpCommand, find
from .state import Arguments, CommandFailed, SftpState, Work
from .words import BLANKS, split

PROMPT: Final = "sftp> "

# Runs a coroutine in the event loop; a KeyboardInterrupt meanwhile cancels it.
Call = Callable[[Work], None]


class SftpShell:
    """The commands, and where their user is."""

    def __init__(self, state: SftpState, call: Call) -> None:
        self.state = state
        self._call = call

    def converse(self, lines: Iterable[bytes]) -> None:
        """Runs the lines that a person types; ^C ends the command that runs."""
        for line in lines:
            try:
                self.run(line)
            except Quit:
                return
            except KeyboardInterrupt:
                self.state.complain("\rInterrupt  ")

    def batch(self, lines: Iterable[bytes], stops: bool) -> bool:
        """Runs lines, and shows each one; with ``stops`` the first that fails is the last.

        Returns whether it went on to the end. A line that begins with '-' may fail,
        one that begins with '@' is not shown.
        """
        for line in lines:
            mark, quiet, command = _prefixes(line)
            if not quiet:
                self.state.say(PROMPT + shown(line))
            try:
                done = self.run(command)
            except Quit:
                break
            if stops and not done and not mark:
                return False
        return True

    def run(self, line: bytes) -> bool:
        """Runs one line and tells its failure; returns whether there was none.

        Raises Quit, KeyboardInterrupt, PeerError if the connection is lost, and BrokenPipeError if
        nobody reads the output.
        """
        line = _prefixes(line)[2]
        return self._succeeds(lambda: _parse(line))

    def perform(self, name: str, words: list[bytes]) -> bool:
        """Runs a command with these words behind it, as ``run`` does."""
        return self._succeeds(lambda: find(name, words, b""))

    def _succeeds(self, parse: Callable[[], tuple[SftpCommand, Arguments] | None]) -> bool:
        try:
            found = parse()
            if found is not None:
                self._run(*found)
        except PeerError:
            raise
        except (CommandFailed, CulvertError) as error:
            if str(error):
                self.state.complain(str(error))
            return False
        except BrokenPipeError:  # nobody reads what we say
            raise
        except OSError as error:
            name = f"{harmless(str(error.filename))}: " if error.filename else ""
            self.state.complain(f"{name}{error.strerror or error}")
            return False
        sys.stdout.flush()
        return True

    def _run(self, command: SftpCommand, arguments: Arguments) -> None:
        if command.run_here is not None:
            sys.stdout.flush()
            command.run_here(self.state, arguments)
        elif command.run is not None:
            self._call(command.run(self.state, arguments))


def _prefixes(line: bytes) -> tuple[bool, bool, bytes]:
    """Whether the line may fail, and is not shown; and the line without the marks for it."""
    rest = line.strip(BLANKS)
    marks = rest[: len(rest) - len(rest.lstrip(b"-@" + BLANKS))]
    return b"-" in marks, b"@" in marks, rest[len(marks) :]


def _parse(line: bytes) -> tuple[SftpCommand, Arguments] | None:
    """Returns the command and its arguments; None for an empty line or a comment."""
    if line.startswith(b"!"):
        rest = line[1:].strip(BLANKS)
        return COMMANDS["!"], Arguments("!", "", [], rest)
    words = split(line)
    if not words:
        return None
    name = words[0].decode(errors="replace").lower()
    rest = line[len(words[0]) :].strip(BLANKS)
    return find(name, words[1:], rest)
