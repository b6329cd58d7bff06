"""Reads the files of idmap=file: what numbers users and groups have at the server.

A line is ``name:number``, or one of the server's /etc/passwd or /etc/group. The name is one of this
machine, or a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import UsageError
from .settings import IdMap

# Our own choice
_LIMIT: Final = 1 << 20  # bytes of a file


def read_users(path: str, is_strict: bool) -> IdMap:
    """Returns what a uidfile says; raises UsageError, which names the line."""
    import pwd

    return _read(path, "user", lambda name: pwd.getpwnam(name).pw_uid, is_strict)


def read_groups(path: str, is_strict: bool) -> IdMap:
    """Returns what a gidfile says; raises UsageError, which names the line."""
    import grp

    return _read(path, "group", lambda name: grp.getgrnam(name).gr_gid, is_strict)


def _read(path: str, what: str, number_of: Callable[[str], int], is_strict: bool) -> IdMap:
    try:
        with open(path, errors="surrogateescape") as file:
            text = file.read(_LIMIT)
    except OSError as error:
        raise UsageError(f"failed to open '{path}': {error.strerror}") from error
    to_local: dict[int, int] = {}
    for line_number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}:{line_number}"
        name, *fields = line.split(":")
        digits = fields[0] if len(fields) == 1 else fields[1] if len(fields) > 1 else ""
        if not name or not _is_number(digits):
            raise UsageError(f"{where}: expected {what} name:number")
        try:
            local = int(name) if _is_number(name) else number_of(name)
        except KeyError as error:
            raise UsageError(f"{where}: there is no local {what} {name}") from error
        if to_local.setdefault(int(digits), local) != local:
            raise UsageError(f"{where}: {what} {digits} of the server has stood in another line")
    return IdMap(to_local=to_local, is_strict=is_strict)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:11]) < 1 << 32 and len(text) < 11
