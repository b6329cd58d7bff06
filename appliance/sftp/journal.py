"""What the server tells about its work: log lines in OpenSSH's words, and reports of changes.

A report is a record in a datagram to the SSH server's monitor, which writes it to the audit
(appliance/wire/sftp_report.py). This program is the user's own: the user may stop it, or make it
report what did not happen, and can change files in other ways.
"""

from __future__ import annotations

import os
import time

from ..wire.sftp_report import PATH_LIMIT, FileChange

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

# sftp-server(8), -l
QUIET, FATAL, ERROR, INFO, VERBOSE, DEBUG = range(6)
LEVELS = {
    "QUIET": QUIET,
    "FATAL": FATAL,
    "ERROR": ERROR,
    "INFO": INFO,
    "VERBOSE": VERBOSE,
    "DEBUG": DEBUG,
    "DEBUG1": DEBUG,
    "DEBUG2": DEBUG,
    "DEBUG3": DEBUG,
}
# syslog(3), -f
FACILITIES = {
    "DAEMON": 3 << 3,
    "USER": 1 << 3,
    "AUTH": 4 << 3,
    "AUTHPRIV": 10 << 3,
    **{f"LOCAL{number}": (16 + number) << 3 for number in range(8)},
}
_PRIORITIES = {FATAL: 2, ERROR: 3, INFO: 6, VERBOSE: 6, DEBUG: 7}


def shown(text: bytes) -> str:
    """Returns a path for the log: nothing in it can end the line, or pass for a quote."""
    return "".join(
        c if c.isprintable() and c not in '\\"' else _escaped(c)
        for c in text.decode(errors="surrogateescape")
    )


def _escaped(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\U{number:08x}"


def to_stderr(level: int, text: str) -> None:
    """Writes a log line to standard error."""
    os.write(2, f"{text}\r\n".encode())


def to_syslog(facility: int) -> Callable[[int, str], None]:
    """Returns a function that writes log lines to the system's log, which is open at once."""
    import syslog

    syslog.openlog("sftp-server", syslog.LOG_PID | syslog.LOG_NDELAY, facility)
    return lambda level, text: syslog.syslog(_PRIORITIES[level], text)


class Journal:
    """Writes log lines up to a level, and reports of changes if somebody reads them."""

    def __init__(
        self, level: int, write: Callable[[int, str], None], report: Callable[[bytes], None] | None
    ) -> None:
        self._level = level
        self._write = write
        self._report = report
        self._change: tuple[str, bytes, bytes] | None = None

    def log(self, level: int, text: str, *words: object) -> None:
        """Writes a line; paths among its words are quoted."""
        if level <= self._level:
            self._write(
                level,
                text % tuple(f'"{shown(w)}"' if isinstance(w, bytes) else w for w in words),
            )

    def begin(self, operation: str, path: bytes, target: bytes = b"") -> None:
        """Says that the request changes ``path`` if it succeeds."""
        self._change = operation, path, target

    def end(self, number: int) -> None:
        """Reports the change that the request said, if it did; ``number``: its errno, or 0."""
        change, self._change = self._change, None
        if change is None or self._report is None:
            return
        operation, path, target = change
        self._report(FileChange(operation, path[:PATH_LIMIT], target[:PATH_LIMIT], number).encode())

    def attributes(
        self,
        path: bytes,
        size: int | None,
        permissions: int | None,
        times: tuple[int, int] | None,
        owner: tuple[int, int] | None,
    ) -> None:
        """Logs what a SETSTAT sets, one line each."""
        if size is not None:
            self.log(INFO, "set %s size %d", path, size)
        if permissions is not None:
            self.log(INFO, "set %s mode %04o", path, permissions)
        if times is not None and self._level >= INFO:
            when = time.strftime("%Y%m%d-%H:%M:%S", time.localtime(times[1]))
            self.log(INFO, "set %s modtime %s", path, when)
        if owner is not None:
            self.log(INFO, "set %s owner %d group %d", path, *owner)
