"""The records of the old scp protocol, to bytes and back.

The protocol is rcp's, as OpenSSH's scp.c speaks it. The *source* sends records, each a line; the
*sink* answers each with a byte 0, or with a message::

    T1700000000 0 1700000000 0    the times of what comes next: modified, accessed
    C0644 5 name                  a file; its 5 bytes follow, and then a byte 0 or a message
    D0755 0 name                  a directory; its content follows
    E                             the end of the innermost directory
    \\1text                        a message: something failed, and the transfer goes on
    \\2text                        a message: the transfer ends here

Readers are strict: nothing but MalformedMessage comes out of ``parse``.

This module and all that the far end needs import next to nothing: a session waits for its start.
"""

from __future__ import annotations

from ...errors import MalformedMessage

OK = b"\0"
MODE_BITS = 0o7777  # rwx for each of three, setuid, setgid, sticky
_SIZE_LIMIT = (1 << 63) - 1  # off_t and time_t
_MICROSECONDS = 1_000_000

# Our own choices
LINE_LIMIT = 16 << 10  # bytes, as scp.c has it; a message holds a path of up to 4 KiB
_SHOWN = 200  # bytes of a line that is no record; a shell may have greeted
_DIGITS_LIMIT = 19  # of a number; those of _SIZE_LIMIT


class Entry:
    """A file whose content follows, or a directory (C and D)."""

    __slots__ = ("is_directory", "mode", "name", "size")

    def __init__(self, is_directory: bool, mode: int, size: int, name: bytes) -> None:
        """``name`` is one component of a path; ``size`` counts bytes, 0 for a directory."""
        self.is_directory = is_directory
        self.mode = mode
        self.size = size
        self.name = name

    def encode(self) -> bytes:
        """The record's line."""
        letter = b"D" if self.is_directory else b"C"
        return b"%s%04o %d %s\n" % (letter, self.mode, self.size, self.name)


class Times:
    """When the next entry was modified and accessed, in nanoseconds since 1970 (T)."""

    __slots__ = ("accessed", "modified")

    def __init__(self, modified: int, accessed: int) -> None:
        self.modified = modified
        self.accessed = accessed

    def encode(self) -> bytes:
        """The record's line; it knows microseconds, and nothing before 1970."""
        pairs = (divmod(max(0, each) // 1000, _MICROSECONDS) for each in self._both())
        return b"T%s\n" % b" ".join(b"%d %d" % pair for pair in pairs)

    def _both(self) -> tuple[int, int]:
        return self.modified, self.accessed


class End:
    """The end of the innermost directory (E)."""

    __slots__ = ()

    def encode(self) -> bytes:
        """The record's line."""
        return b"E\n"


class Failure:
    """A message to the other end's user; with ``ends`` the transfer is over."""

    __slots__ = ("ends", "text")

    def __init__(self, text: bytes, ends: bool = False) -> None:
        self.text = text
        self.ends = ends

    def encode(self) -> bytes:
        """The record's line; a message has no room for a second one."""
        return (b"\2" if self.ends else b"\1") + self.text.replace(b"\n", b"?") + b"\n"


Record = Entry | Times | End | Failure


class UnexpectedName(MalformedMessage):
    """A name that could lead out of the target's directory."""

    def __init__(self, name: bytes) -> None:
        super().__init__("unexpected filename")
        self.name = name


def parse(line: bytes) -> Record:
    """Reads a record from a line, without its newline; raises MalformedMessage."""
    letter, rest = line[:1], line[1:]
    if letter in (b"C", b"D"):
        return _entry(letter == b"D", rest)
    if letter == b"T":
        return _times(rest)
    if letter == b"E":
        return _end(rest)
    if letter in (b"\1", b"\2"):
        return Failure(rest, letter == b"\2")
    if not line:
        raise MalformedMessage("unexpected <newline>")
    text = line[:_SHOWN].decode(errors="backslashreplace")
    raise MalformedMessage(f"expected control record, not '{text}'")


def _entry(is_directory: bool, rest: bytes) -> Entry:
    mode, size, name = (*rest.split(b" ", 2), b"", b"")[:3]
    if len(mode) != 4 or mode.strip(b"01234567"):
        raise MalformedMessage("bad mode")
    length = _number(size, "size")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise UnexpectedName(name)
    return Entry(is_directory, int(mode, 8), length, name)


def _times(rest: bytes) -> Times:
    words = rest.split(b" ")
    if len(words) != 4:
        raise MalformedMessage("times not delimited")
    modified, modified_part, accessed, accessed_part = (_number(each, "time") for each in words)
    if max(modified_part, accessed_part) >= _MICROSECONDS:
        raise MalformedMessage("time out of range")
    return Times(
        (modified * _MICROSECONDS + modified_part) * 1000,
        (accessed * _MICROSECONDS + accessed_part) * 1000,
    )


def _end(rest: bytes) -> End:
    if rest:
        raise MalformedMessage("bytes behind the end of a directory")
    return End()


def _number(text: bytes, what: str) -> int:
    if not text or text.strip(b"0123456789"):
        raise MalformedMessage(f"{what} not present")
    if len(text) > _DIGITS_LIMIT or int(text) > _SIZE_LIMIT:
        raise MalformedMessage(f"{what} out of range")
    return int(text)
