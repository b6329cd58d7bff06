"""The progress line of scp and sftp, and what failed."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Final

from ..log import harmless

# Our own choices
_EVERY: Final = 0.2  # seconds between two lines of the same file
_UNITS: Final = " KMGTPE"


class Silent:
    """The progress of a copy that nobody looks at; counts what failed."""

    def __init__(self, program: str) -> None:
        """``program`` stands in front of failures, unless it is ''."""
        self._program = program
        self.failures = 0

    def begin(self, name: bytes, size: int) -> _Nothing:
        """Begins a file."""
        return _NOTHING

    def failed(self, path: bytes, error: Exception) -> None:
        """Tells on standard error why a file was not copied."""
        self.failures += 1
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.tell(f"{shown(path)}: {harmless(reason)}" if path else harmless(reason))

    def skipped(self, path: bytes) -> None:
        """Tells on standard error that a symbolic link is not copied, which is no failure."""
        self.tell(f"{shown(path)}: not a regular file")

    def tell(self, text: str) -> None:
        """Writes a line for the user on standard error."""
        prefix = f"{self._program}: " if self._program else ""
        print(f"{prefix}{text}", file=sys.stderr, flush=True)


class _Nothing:
    def advance(self, count: int) -> None:
        """Counts nothing."""

    def done(self) -> None:
        """Does nothing."""


_NOTHING: Final = _Nothing()


class Lines(Silent):
    """Draws a line for each file, as scp does; the last one is redrawn until its file is done."""

    def __init__(self, program: str, write: Callable[[str], object]) -> None:
        """``write`` writes to the terminal."""
        super().__init__(program)
        self._write = write
        self._running: list[_Line] = []

    def begin(self, name: bytes, size: int) -> _Line:  # type: ignore[override]
        """Begins a file, whose line is drawn once the files before it are done."""
        line = _Line(self, name, size)
        self._running.append(line)
        return line

    def tell(self, text: str) -> None:
        """Writes a line for the user, on a line of its own."""
        if self._running:
            self._write("\r\x1b[K")
        super().tell(text)

    def draw(self, line: _Line, is_last: bool) -> None:
        """Draws the line of a file that is done, or else that of the oldest one."""
        if is_last:
            self._running.remove(line)
        elif line is not self._running[0]:
            return
        self._write("\r" + line.text(_columns(), is_last) + ("\n" if is_last else ""))


class _Line:
    """The line of one file."""

    def __init__(self, lines: Lines, name: bytes, size: int) -> None:
        self._lines = lines
        self._name = os.path.basename(name) or name
        self._size = size
        self._copied = 0
        self._begun = time.monotonic()
        self._drawn = 0.0

    def advance(self, count: int) -> None:
        self._copied += count
        now = time.monotonic()
        if now - self._drawn >= _EVERY:
            self._drawn = now
            self._lines.draw(self, is_last=False)

    def done(self) -> None:
        self._lines.draw(self, is_last=True)

    def text(self, columns: int, is_last: bool) -> str:
        """The name, percentage, bytes, rate, and the time that is left or was taken."""
        seconds = max(time.monotonic() - self._begun, 1e-6)
        rate = self._copied / seconds
        percent = 100 if not self._size else min(100, self._copied * 100 // self._size)
        left = seconds if is_last else max(self._size - self._copied, 0) / max(rate, 1.0)
        hours, rest = divmod(int(left), 3600)
        clock = f"{hours}:" * bool(hours) + f"{rest // 60:02d}:{rest % 60:02d}"
        tail = f" {percent:3d}% {_amount(self._copied):>6} {_amount(rate):>6}/s {clock:>7}"
        tail += "    " if is_last else " ETA"
        return padded(shown(self._name), max(columns - len(tail) - 1, 10)) + tail


def _amount(count: float) -> str:
    """Bytes in at most four digits and a unit: 1023KB, 1.2MB."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    if not unit:
        return f"{count:.0f}"
    return f"{count:.1f}{_UNITS[unit]}B" if count < 100 else f"{count:.0f}{_UNITS[unit]}B"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return 80


def shown(path: bytes) -> str:
    """Returns a path for a person: what a terminal would act on is escaped."""
    text = path.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Returns how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def padded(text: str, columns: int) -> str:
    """Returns a text cut or filled up to so many columns."""
    while width(text) > columns:
        text = text[:-1]
    return text + " " * (columns - width(text))
