"""Which names a request for files of a far end may bring, by the old scp protocol.

The far end's shell expands the request; the source then names the files. A hostile source could
name others, so the sink compares each name with the request (CVE-2019-6111). Patterns, braces and
quotes mean what they mean to a POSIX shell; an expansion that only the far end knows ($HOME, ~user,
`command`) matches nothing as the last component, which ``scp -T`` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from .. import wildcards


class _Char(NamedTuple):
    """A byte of the request, and whether quotes have made it an ordinary one."""

    byte: bytes
    is_quoted: bool

    @property
    def in_pattern(self) -> bytes:
        return b"\\" + self.byte if self.is_quoted else self.byte

    def means(self, special: bytes) -> bool:
        return not self.is_quoted and self.byte in special


_Word = tuple[_Char, ...]

_BLANKS: Final = (b" ", b"\t", b"\n")
_QUOTABLE: Final = (b"\\", b'"', b"$", b"`")  # what a backslash quotes within double quotes


def wanted(request: bytes) -> Callable[[bytes], bool]:
    """Returns a function that says whether a name is one of those that the request asks for."""
    patterns = [
        wildcards.compiled(b"".join(char.in_pattern for char in name))
        for word in _words(request)
        for path in _without_braces(word)
        if (name := _last_component(path))
    ]
    return lambda name: any(pattern.fullmatch(name) for pattern in patterns)


def _words(request: bytes) -> Iterator[_Word]:
    """The words of a command line, without their quotes."""
    word: list[_Char] = []
    quote = b""
    rest = iter([request[at : at + 1] for at in range(len(request))])
    for byte in rest:
        if quote == b"'":
            if byte == quote:
                quote = b""
            else:
                word.append(_Char(byte, True))
        elif byte == b"\\":
            quoted = next(rest, b"")
            if quote and quoted not in _QUOTABLE:
                word.append(_Char(byte, True))
            word.append(_Char(quoted, True))
        elif quote:
            if byte == quote:
                quote = b""
            else:
                word.append(_Char(byte, True))
        elif byte in (b"'", b'"'):
            quote = byte
        elif byte in _BLANKS:
            if word:
                yield tuple(word)
            word = []
        else:
            word.append(_Char(byte, False))
    if word:
        yield tuple(word)


def _without_braces(word: _Word) -> Iterator[_Word]:
    """The words that {a,b} stands for; braces without a comma stay."""
    for begin, char in enumerate(word):
        if not char.means(b"{"):
            continue
        depth, ends = 0, [begin]
        for at in range(begin, len(word)):
            if word[at].means(b"{"):
                depth += 1
            elif word[at].means(b"}"):
                depth -= 1
            if (depth == 1 and word[at].means(b",")) or not depth:
                ends.append(at)
            if not depth:
                break
        if depth or len(ends) < 3:
            continue
        for before, after in pairwise(ends):
            yield from _without_braces(
                word[:begin] + word[before + 1 : after] + word[ends[-1] + 1 :]
            )
        return
    yield word


def _last_component(path: _Word) -> _Word:
    end = len(path)
    while end and path[end - 1].byte == b"/":
        end -= 1
    begin = end
    while begin and path[begin - 1].byte != b"/":
        begin -= 1
    return path[begin:end]
