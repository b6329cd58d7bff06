"""Completes what a person types in sftp: commands, names at the server, and names here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from ..sftp_client import SftpClient, StatusError
from .commands import COMMANDS
from .state import SftpState

# Lists a directory at the server: names, and whether each is a directory.
ListRemote = Callable[[bytes], list[tuple[bytes, bool]]]

_QUOTED_BY_BACKSLASH: Final = b" \t\"'\\#*?["


class _Typed(NamedTuple):
    """A line up to the cursor: its words, and where the last one begins."""

    words: list[bytes]  # the last one without its quotes
    begin: int
    quote: bytes  # the quote that is open


def completions(state: SftpState, line: bytes, list_remote: ListRemote) -> list[bytes]:
    """Returns every line that ``line`` may become."""
    typed = _read(line)
    word = typed.words[-1]
    before = line[: typed.begin]
    if len(typed.words) == 1:
        return [
            before + name.encode() + b" " for name in COMMANDS if name.encode().startswith(word)
        ]
    kind = _kind(typed.words)
    folder, _, beginning = word.rpartition(b"/")
    folder = folder + b"/" if b"/" in word else b""
    try:
        if kind == "R":
            entries = list_remote(state.absolute(folder) or b".")
        elif kind == "L":
            entries = _list_here(folder)
        else:
            return []
    except OSError:
        return []
    lines = []
    for name, is_directory in sorted(entries):
        if name in (b".", b"..") or not name.startswith(beginning) or not _can_be_typed(name):
            continue
        if name.startswith(b".") and not beginning:
            continue
        lines.append(before + _quoted(folder + name, typed.quote, is_directory))
    return lines


async def list_directory(client: SftpClient, path: bytes) -> list[tuple[bytes, bool]]:
    """Lists a directory at the server; nothing if that fails."""
    found = []
    try:
        async for entries in client.listing(path):
            for entry in entries:
                mode = entry.attributes.permissions or 0
                found.append((entry.filename, stat.S_ISDIR(mode)))
    except StatusError:
        return []
    return found


def _list_here(folder: bytes) -> list[tuple[bytes, bool]]:
    with os.scandir(os.path.expanduser(folder) or b".") as entries:
        return [(entry.name, entry.is_dir()) for entry in entries]


def _kind(words: list[bytes]) -> str:
    """What the last word is: R a path at the server, L one here, '' neither."""
    command = COMMANDS.get(words[0].decode(errors="replace").lower())
    if command is None or not command.operands:
        return ""
    operands = [word for word in words[1:-1] if not word.startswith(b"-")]
    place = len(operands)
    if words[0].lower() in (b"chmod", b"chown", b"chgrp"):  # a number comes first
        place -= 1
    if not 0 <= place < len(command.operands):
        return ""
    return command.operands[place]


def _can_be_typed(name: bytes) -> bool:
    """Whether readline may show the name: nothing in it acts on a terminal."""
    try:
        return name.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _quoted(path: bytes, quote: bytes, is_directory: bool) -> bytes:
    """The path as it is typed, and what follows it."""
    if quote:
        escaped = path.replace(b"\\", b"\\\\").replace(quote, b"\\" + quote)
        return quote + escaped + (b"/" if is_directory else quote + b" ")
    escaped = b"".join(
        b"\\" + bytes((byte,)) if byte in _QUOTED_BY_BACKSLASH else bytes((byte,)) for byte in path
    )
    return escaped + (b"/" if is_directory else b" ")


def _read(line: bytes) -> _Typed:
    """Reads words as ``words`` does, but for comments; the last one may be open."""
    words: list[bytes] = []
    word, begin, quote, is_open = b"", len(line), b"", False
    at = 0
    while at < len(line):
        char = line[at : at + 1]
        if not is_open and char not in b" \t":
            is_open, word, begin = True, b"", at
        if char == b"\\":
            at += 1
            word += line[at : at + 1]
        elif quote:
            if char == quote:
                quote = b""
            else:
                word += char
        elif char in b"'\"":
            quote = char
        elif char in b" \t":
            if is_open:
                words.append(word)
            is_open, begin, word = False, len(line), b""
        else:
            word += char
        at += 1
    return _Typed([*words, word if is_open else b""], begin if is_open else len(line), quote)


def shown_matches(lines: list[bytes]) -> list[bytes]:
    """Returns the last components of completed lines, for the list that a person sees."""
    names = []
    for line in lines:
        path = _read(line.rstrip(b" ")).words[-1]
        name = path.rstrip(b"/").rpartition(b"/")[2]
        names.append(name + (b"/" if path.endswith(b"/") else b""))
    return names
