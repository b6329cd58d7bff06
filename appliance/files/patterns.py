"""Patterns of file names at a server: *, ?, [...] and {...}, as a shell expands them (glob(7))."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator

from ..wire.sftp import Attributes
from .sftp_client import SftpClient, StatusError

_SPECIAL = frozenset(b"*?[")


async def matching(client: SftpClient, path: bytes) -> list[tuple[bytes, Attributes]]:
    """Returns the files that ``path`` names, with their attributes, in order.

    A file whose name is ``path`` itself comes before what it matches as a pattern. Raises
    StatusError if there is none.
    """
    try:
        return [(path, await client.stat(path))]
    except StatusError:
        found: list[tuple[bytes, Attributes]] = []
        if set(b"*?[{") & set(path):
            for pattern in _alternatives(path):
                found += await _expand(client, pattern)
        if not found:
            raise
        return found


async def _expand(client: SftpClient, pattern: bytes) -> list[tuple[bytes, Attributes]]:
    """The files that a pattern without braces matches, one directory level after the other."""
    is_absolute = pattern.startswith(b"/")
    places = [b"/" if is_absolute else b""]
    parts = [part for part in pattern.split(b"/") if part]
    for part in parts:
        following = []
        for place in places:
            if not _SPECIAL & set(part):
                following.append(os.path.join(place, part.replace(b"\\", b"")))
                continue
            try:
                names = await _names(client, place or b".")
            except StatusError:
                continue
            following += [
                os.path.join(place, name) for name in sorted(names) if _matches(name, part)
            ]
        places = following
    found = []
    for place in places:
        try:
            found.append((place, await client.stat(place)))
        except StatusError:
            continue
    return found


async def _names(client: SftpClient, path: bytes) -> list[bytes]:
    names = []
    async for entries in client.listing(path):
        names += [entry.filename for entry in entries]
    return [name for name in names if name not in (b".", b"..") and b"/" not in name]


def _matches(name: bytes, pattern: bytes) -> bool:
    """Whether a name matches; one that begins with '.' only a pattern that does, too."""
    if name.startswith(b".") and not pattern.startswith(b"."):
        return False
    return fnmatch.fnmatchcase(name, pattern)


def _alternatives(pattern: bytes) -> Iterator[bytes]:
    """The patterns that one with braces stands for: a{b,c} is ab and ac."""
    opening = pattern.find(b"{")
    depth, begin, parts = 0, opening + 1, []
    for position in range(max(opening, 0), len(pattern)):
        character = pattern[position : position + 1]
        if character == b"{":
            depth += 1
        elif character == b"," and depth == 1:
            parts.append(pattern[begin:position])
            begin = position + 1
        elif character == b"}":
            depth -= 1
            if not depth:
                parts.append(pattern[begin:position])
                for part in parts:
                    yield from _alternatives(pattern[:opening] + part + pattern[position + 1 :])
                return
    yield pattern
