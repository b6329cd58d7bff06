"""Files at a server that a pattern names, as a shell expands it (glob(7), and {a,b})."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from ..aio.tasks import Future
from ..wire import sftp
from ..wire.sftp import Attributes
from . import wildcards
from .sftp_client import SftpClient, StatusError

# Our own choice
_STATS: Final = 256  # requests at once for the attributes of what was found

Found = list[tuple[bytes, Attributes]]


async def matching(client: SftpClient, path: bytes) -> Found:
    """Returns the files that ``path`` names, with their attributes, in order.

    A file whose name is ``path`` itself comes before what it matches as a pattern with braces.
    Symbolic links are followed. Raises StatusError if there is none.
    """
    try:
        return [(path, await client.stat(path))]
    except StatusError:
        found: Found = []
        if set(b"*?[{") & set(path):
            for pattern in _alternatives(path):
                found += await expand(client, pattern, follow=True)
        if not found:
            raise
        return found


async def expand(client: SftpClient, pattern: bytes, follow: bool) -> Found:
    """Returns what a pattern without braces matches, sorted by name; nothing is no error.

    With ``follow`` the attributes are those of what symbolic links lead to, if that is there.
    """
    places: list[tuple[bytes, Attributes | None]] = [(b"/" if pattern[:1] == b"/" else b"", None)]
    for part in filter(None, pattern.split(b"/")):
        following: list[tuple[bytes, Attributes | None]] = []
        if not wildcards.is_pattern(part):
            name = wildcards.plain(part)
            places = [(os.path.join(place, name), None) for place, _ in places]
            continue
        expression = wildcards.compiled(part)
        for place, attributes in places:
            if attributes is not None and stat.S_ISREG(attributes.permissions or 0):
                continue
            try:
                listed = await _listed(client, place or b".")
            except StatusError:
                continue
            following += [
                (os.path.join(place, name), listed[name])
                for name in sorted(listed)
                if expression.fullmatch(name)
            ]
        places = following
    return await _with_attributes(client, places, follow)


async def _listed(client: SftpClient, path: bytes) -> dict[bytes, Attributes]:
    names: dict[bytes, Attributes] = {}
    async for entries in client.listing(path):
        names |= {entry.filename: entry.attributes for entry in entries}
    return {
        name: each
        for name, each in names.items()
        if name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name
    }


async def _with_attributes(
    client: SftpClient, places: list[tuple[bytes, Attributes | None]], follow: bool
) -> Found:
    """Asks for the attributes that are not known; what is not there is left out."""
    kind = sftp.Stat if follow else sftp.LStat
    found: Found = []
    for begin in range(0, len(places), _STATS):
        some = places[begin : begin + _STATS]
        asked = [
            client.ask(kind(0, path), sftp.AttrsReply, path)
            if known is None or known.permissions is None or (follow and _is_link(known))
            else None
            for path, known in some
        ]
        for (path, known), reply in zip(some, asked, strict=True):
            attributes = known
            if reply is not None:
                with contextlib.suppress(StatusError):  # gone
                    attributes = await _or_of_link(client, reply, path, known, follow)
            if attributes is not None:
                found.append((path, attributes))
    return found


async def _or_of_link(
    client: SftpClient,
    reply: Future[sftp.AttrsReply],
    path: bytes,
    known: Attributes | None,
    follow: bool,
) -> Attributes:
    """The attributes in the reply; those of a link that leads nowhere are its own."""
    try:
        return (await reply).attrs
    except StatusError:
        if not follow:
            raise
        return known if known is not None else await client.lstat(path)


def _is_link(attributes: Attributes) -> bool:
    return stat.S_ISLNK(attributes.permissions or 0)


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
