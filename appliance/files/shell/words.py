"""The words of a line of sftp, with its quoting.

Words are parted by blanks. Single and double quotes keep blanks, wildcards and a # together; a
backslash does so for the next character, and within quotes for the quote. A # elsewhere begins a
comment. A word is a pattern (``wildcards``): what was quoted stands behind a backslash in it.
"""

from __future__ import annotations

from typing import Final

from ...errors import UsageError
from .. import wildcards

BLANKS: Final = b" \t\r\n\f\v"


def split(line: bytes) -> list[bytes]:
    """Returns the words; raises UsageError for a quote that does not end."""
    words: list[bytes] = []
    word: list[bytes] | None = None
    quote = b""
    rest = iter([line[at : at + 1] for at in range(len(line))])
    for char in rest:
        if quote:
            assert word is not None
            if char == quote:
                quote = b""
                continue
            if char == b"\\":
                char = next(rest, b"")
                if char not in (quote, b"\\"):  # an ordinary backslash
                    word.append(wildcards.quoted(b"\\"))
            word.append(wildcards.quoted(char))
        elif char in BLANKS:
            if word is not None:
                words.append(b"".join(word))
            word = None
        elif char == b"#":
            break
        else:
            word = word if word is not None else []
            if char in b"'\"":
                quote = char
            elif char == b"\\":
                word.append(wildcards.quoted(next(rest, b"")))
            else:
                word.append(char)
    if quote:
        raise UsageError("Unterminated quoted argument")
    if word is not None:
        words.append(b"".join(word))
    return words
