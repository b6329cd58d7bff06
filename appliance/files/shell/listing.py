"""The command ls of sftp: columns, long lines, and their order."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from ...aio.tasks import Future
from ...errors import MalformedMessage
from ...wire import sftp
from ...wire.codec import Reader, write_string, write_uint32
from ...wire.sftp import Attributes, NamedFile
from .. import wildcards
from ..patterns import expand
from ..progress import shown, width
from ..sftp_client import StatusError
from .sizes import scaled
from .state import Arguments, CommandFailed, SftpState, during, in_quotes

# Our own choices
_WIDTH: Final = 80  # columns where there is no terminal
_HALF_A_YEAR: Final = 365 * 86400 // 2  # seconds: older files are shown with their year
_NAMES_AT_ONCE: Final = 1000  # users and groups in one request


class _Line(NamedTuple):
    """A file to be shown."""

    name: bytes
    shown: str  # from where the user is
    attributes: Attributes
    longname: bytes = b""  # the server's own line


async def ls(state: SftpState, arguments: Arguments) -> None:
    """Lists a directory, or the files that a pattern matches."""
    listing = _Listing(state, arguments.flags)
    pattern = arguments.operand(0)
    if pattern is None:
        await listing.show_directory(state.directory, state.directory)
        return
    hidden = b"" if pattern.startswith(b"/") else state.directory
    absolute = state.absolute_pattern(pattern)
    opened = None
    if not wildcards.is_pattern(absolute):  # most often a directory: this saves a round trip
        opened = state.client.open_directory(wildcards.plain(absolute))
    found = await expand(state.client, absolute, follow=True)
    if not found:
        raise CommandFailed(f"Can't ls: {in_quotes(wildcards.plain(absolute))} not found")
    if len(found) == 1 and await state.client.is_directory(*found[0]):
        await listing.show_directory(found[0][0], hidden, opened)
        return
    lines = []
    for path, attributes in found:
        mark = b"/" if _is_directory(attributes) else b""
        lines.append(_Line(path, shown(_stripped(path, hidden) + mark), attributes))
    await listing.show(lines, max(width(shown(path)) for path, _ in found))


def _is_directory(attributes: Attributes) -> bool:
    return stat.S_ISDIR(attributes.permissions or 0)


def _stripped(path: bytes, hidden: bytes) -> bytes:
    """The path without the directory in which the user is."""
    if hidden and path.startswith(hidden):
        return path[len(hidden) :].lstrip(b"/")
    return path


class _Listing:
    """How the files are shown, by the flags of the command."""

    def __init__(self, state: SftpState, flags: str) -> None:
        self._state = state
        self._shows_hidden = "a" in flags
        self._is_numeric = "n" in flags
        self._is_long = "l" in flags or self._is_numeric
        self._one_a_line = "1" in flags
        self._human = "h" in flags
        self._is_reversed = "r" in flags
        self._order: Callable[[_Line], Any] | None = _by_name
        for flag in flags:
            self._order = _ORDERS.get(flag, self._order)
        self._columns = _terminal_width()

    async def show_directory(
        self, path: bytes, hidden: bytes, opened: Future[sftp.Handle] | None = None
    ) -> None:
        """Shows what is in a directory; unsorted entries as they come."""
        lines: list[_Line] = []
        longest = 0
        below = _stripped(path, hidden)
        prefix = shown(os.path.join(below, b"")) if below else ""
        with during(f"remote readdir({in_quotes(path)})"):
            async for entries in self._state.client.listing(path, opened):
                some = list(self._lines(entries, path, prefix))
                longest = max(longest, max((width(line.shown) for line in some), default=0))
                if self._order is None:
                    await self.show(some, longest)
                else:
                    lines += some
        if self._order is not None:
            await self.show(lines, longest)

    def _lines(self, entries: Iterable[NamedFile], path: bytes, prefix: str) -> Iterable[_Line]:
        for entry in entries:
            name = entry.filename
            if b"/" in name or not name:
                where = f"during readdir of {in_quotes(path)}"
                self._state.complain(f"Server sent suspect path {in_quotes(name)} {where}")
            elif self._shows_hidden or name[0] != ord("."):
                yield _Line(name, prefix + shown(name), entry.attributes, entry.longname)

    async def show(self, lines: list[_Line], longest: int) -> None:
        """Shows files; the widest column takes ``longest``."""
        if self._order is not None:
            lines.sort(key=self._order, reverse=False)
            if self._is_reversed:
                lines.reverse()
        if self._is_long:
            await self._show_long(lines)
        elif self._one_a_line:
            for line in lines:
                self._state.say(line.shown)
        else:
            self._show_columns([line.shown for line in lines], longest)
        sys.stdout.flush()

    def _show_columns(self, names: list[str], longest: int) -> None:
        columns = max(self._columns // (longest + 2), 1)
        space = self._columns // columns
        for begin in range(0, len(names), columns):
            row = names[begin : begin + columns]
            self._state.say("".join(name + " " * (space - width(name)) for name in row))

    async def _show_long(self, lines: list[_Line]) -> None:
        state = self._state
        has_names = state.client.has(sftp.USERS_GROUPS_BY_ID)
        if not self._is_numeric and has_names:
            await _learn_names(state, lines)
        now = time.time()
        for line in lines:
            if line.longname and not self._is_numeric and not has_names and not self._human:
                state.say(shown(line.longname))
                continue
            users, groups = ({}, {}) if self._is_numeric else (state.users, state.groups)
            text = long_line(line.attributes, users, groups, self._human, now)
            state.say(f"{text} {line.shown}")


def _by_name(line: _Line) -> Any:
    return line.name


def _by_time(line: _Line) -> Any:
    return -(line.attributes.times or (0, 0))[1], line.name


def _by_size(line: _Line) -> Any:
    return -(line.attributes.size or 0), line.name


_ORDERS: Final[dict[str, Callable[[_Line], Any] | None]] = {
    "t": _by_time,
    "S": _by_size,
    "f": None,
}


def long_line(
    attributes: Attributes,
    users: dict[int, str],
    groups: dict[int, str],
    human: bool,
    now: float,
) -> str:
    """Returns the line of ls -l for a file, without its name; what is not known is a ?."""
    mode, owner, identity = attributes.permissions, attributes.owner, attributes.identity
    user, group = "?", "?"
    if owner is not None:
        user = users.get(owner[0]) or str(owner[0])
        group = groups.get(owner[1]) or str(owner[1])
    links = "?" if identity is None else str(identity.links)
    size = attributes.size or 0
    modes = "?" * 10 if mode is None else stat.filemode(mode)
    if attributes.size is None:
        amount = "?"
    else:
        amount = scaled(size) if human else str(size)
    date = "?" if attributes.times is None else _date(attributes.times[1], now)
    return f"{modes}  {links:>3} {user:<8} {group:<8} {amount:>8} {date}"


def _date(seconds: int, now: float) -> str:
    is_recent = now - _HALF_A_YEAR < seconds <= now
    try:
        moment = time.localtime(seconds)
    except OverflowError:  # after 2038, where a time has 32 bits
        return "?"
    return time.strftime("%b %e %H:%M" if is_recent else "%b %e  %Y", moment)


async def _learn_names(state: SftpState, lines: list[_Line]) -> None:
    """Asks for the names of users and groups that are not known yet."""
    owners = [line.attributes.owner for line in lines if line.attributes.owner is not None]
    users = sorted({owner[0] for owner in owners} - state.users.keys())
    groups = sorted({owner[1] for owner in owners} - state.groups.keys())
    for begin in range(0, max(len(users), len(groups)), _NAMES_AT_ONCE):
        end = begin + _NAMES_AT_ONCE
        await _learn(state, users[begin:end], groups[begin:end])


async def _learn(state: SftpState, users: list[int], groups: list[int]) -> None:
    packed = (b"".join(map(write_uint32, numbers)) for numbers in (users, groups))
    request = sftp.Extended(0, sftp.USERS_GROUPS_BY_ID, b"".join(map(write_string, packed)))
    try:
        reply = await state.client.ask(request, sftp.ExtendedReply)
    except StatusError:
        return
    found = sftp.Identifiers.decode(reply.data)
    state.users |= dict(zip(users, _strings(found.users, len(users)), strict=True))
    state.groups |= dict(zip(groups, _strings(found.groups, len(groups)), strict=True))


def _strings(data: bytes, count: int) -> list[str]:
    """As many strings as were asked for; one that is empty is not known."""
    reader = Reader(data)
    names = [shown(reader.string()) for _ in range(count)]
    if not reader.at_end:
        raise MalformedMessage("more names than were asked for")
    return names


def _terminal_width() -> int:
    for fd in (1, 0):
        try:
            return os.get_terminal_size(fd).columns or _WIDTH
        except OSError:
            continue
    return _WIDTH
