"""Patterns of file names (glob(7)): *, ?, [...]; a backslash makes the next character ordinary."""

from __future__ import annotations

import re
from typing import Final

_SPECIAL: Final = b"*?["


def is_pattern(pattern: bytes) -> bool:
    """Whether anything in the pattern stands for other characters."""
    return any(is_special for _, is_special in _characters(pattern))


def quoted(name: bytes) -> bytes:
    """Returns the pattern that matches this name alone."""
    return b"".join(b"\\" + char if char in b"*?[\\" else char for char in _bytes(name))


def plain(pattern: bytes) -> bytes:
    """Returns the name that a pattern is if nothing in it is special: without the backslashes."""
    return b"".join(char for char, _ in _characters(pattern))


def compiled(pattern: bytes) -> re.Pattern[bytes]:
    """Returns a regular expression for ``fullmatch`` with one component of a path.

    As in a shell, no wildcard matches a dot at the beginning.
    """
    characters = _characters(pattern)
    parts = [rb"(?!\.)"] if characters and characters[0][1] else []
    at = 0
    while at < len(characters):
        char, is_special = characters[at]
        at += 1
        if not is_special:
            parts.append(re.escape(char))
        elif char == b"*":
            parts.append(b".*")
        elif char == b"?":
            parts.append(b".")
        elif end := _bracket_end(characters, at):
            parts.append(_bracket(characters[at:end]))
            at = end + 1
        else:
            parts.append(rb"\[")
    return re.compile(b"".join(parts), re.DOTALL)


_Characters = list[tuple[bytes, bool]]  # each byte, and whether it has a meaning


def _bytes(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


def _characters(pattern: bytes) -> _Characters:
    found: _Characters = []
    rest = iter(_bytes(pattern))
    for char in rest:
        if char == b"\\":
            found.append((next(rest, char), False))
        else:
            found.append((char, char in _SPECIAL))
    return found


def _bracket_end(characters: _Characters, begin: int) -> int:
    """Where the ] of a bracket expression stands, 0 if there is none."""
    at = begin
    if at < len(characters) and characters[at][0] in b"!^":
        at += 1
    at += 1  # a ] that comes first is one of the characters
    while at < len(characters):
        if characters[at][0] == b"]":
            return at
        at += 1
    return 0


def _bracket(content: _Characters) -> bytes:
    chars = [char for char, _ in content]
    negation = b""
    if chars[0] in b"!^":
        negation = b"^"
        del chars[0]
    inner = []
    at = 0
    while at < len(chars):
        if chars[at + 1 : at + 2] == [b"-"] and at + 2 < len(chars):
            inner.append(re.escape(chars[at]) + b"-" + re.escape(chars[at + 2]))
            at += 3
        else:
            inner.append(re.escape(chars[at]))
            at += 1
    expression = b"[" + negation + b"".join(inner) + b"]"
    try:
        re.compile(expression)
    except re.error:  # a range whose end comes before its beginning
        return b"(?!)"
    return expression
