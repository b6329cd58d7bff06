"""Where log lines go: standard error, the system's log, or another process that writes them.

The core logs DEBUG only, and TRACE if a trace was asked for: a line for each message of a
connection. INFO is what an operator wants in a year's log.

A log that cannot be written never makes a program fail: lines are lost, one line on standard error
says so, and each further line tries to open the system's log again.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

SOCKET: Final = "/dev/log"  # syslog(3)
_AUTHPRIV: Final = 10  # RFC 5424 section 6.2.1
TRACE: Final = 5  # a level below DEBUG
_SEVERITIES: Final = {
    TRACE: 7,
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}

# Our own choices
LINE_LIMIT: Final = 8000  # bytes; rsyslog cuts at 8 KiB
TRACED_AT_ONCE: Final = 500  # lines of a trace; a login and its session have fewer than 100
TRACED_A_SECOND: Final = 50.0


def harmless(text: str) -> str:
    """Returns a peer's text with escapes for characters that could control a terminal.

    Newlines and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class _Line(logging.Formatter):
    """Formats a record as one line, whatever a peer's text contains; only a traceback adds lines.

    Lines of a traceback begin with blanks, so that none can pass for another record.
    """

    number = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        record.connection = self.number
        return harmless(super().format(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")


class Allowance:
    """Limits the number of lines: ``at_once``, and ``a_second`` more each second."""

    def __init__(self, at_once: int, a_second: float) -> None:
        self._at_once, self._a_second = at_once, a_second
        self._left = float(at_once)
        self._counted_at = time.monotonic()
        self.lost = 0  # lines refused, until the caller reports them and sets 0

    def take(self) -> bool:
        """Takes one line from the allowance; returns whether it may be written."""
        now = time.monotonic()
        earned = (now - self._counted_at) * self._a_second
        self._left, self._counted_at = min(self._left + earned, self._at_once), now
        if self._left < 1:
            self.lost += 1
            return False
        self._left -= 1
        return True


class _TraceLimit(logging.Filter):
    """Limits the lines of traces, so that a peer cannot fill the log with its messages."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(TRACED_AT_ONCE, TRACED_A_SECOND)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != TRACE:
            return True
        if not self._allowance.take():
            return False
        if lost := self._allowance.lost:
            self._allowance.lost = 0
            record.msg, record.args = f"({lost} messages are not shown) {record.getMessage()}", ()
        return True


def set_up(name: str, level: int, to_stderr: bool) -> None:
    """Begins to log, to standard error or to the system's log under ``name``.

    Lines carry the process id until ``serve_connection`` gives them a connection's number.
    """
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    handler: logging.Handler
    if to_stderr:
        handler = _StandardError(sys.stderr)
        handler.setFormatter(_Line("[%(connection)d] %(asctime)s %(message)s", "%b %d %H:%M:%S"))
    else:
        handler = _SystemLog(SOCKET)
        handler.setFormatter(_Line(f"{name}[%(connection)d]: %(message)s"))
    handler.addFilter(_TraceLimit())
    root.addHandler(handler)
    root.setLevel(level)


class _StandardError(logging.StreamHandler[TextIO]):
    """Standard error, which may be a pipe that nobody reads any more."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _SystemLog(logging.Handler):
    """The system's log (syslog(3)), whose daemon may be missing or be restarted at any time."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self.socket: socket.socket | None = None
        self._is_missed = False
        self._connect()

    def emit(self, record: logging.LogRecord) -> None:
        priority = _AUTHPRIV << 3 | _SEVERITIES.get(record.levelno, 6)
        text = f"<{priority}>{self.format(record)}".encode(errors="backslashreplace")
        line = text[:LINE_LIMIT] + b"\0"  # ends the line on a stream socket
        if self._send(line) or (self._connect() and self._send(line)):
            self._is_missed = False
        else:
            self.miss()

    def _connect(self) -> bool:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            try:
                sock = socket.socket(socket.AF_UNIX, kind)
            except OSError:  # no descriptor is left
                return False
            try:
                sock.connect(self._path)
            except OSError:
                sock.close()
                continue
            self.socket = sock
            return True
        return False

    def _send(self, line: bytes) -> bool:
        if self.socket is None:
            return False
        try:
            self.socket.sendall(line)
        except OSError:  # the daemon has ended
            self.close()
            return False
        return True

    def miss(self) -> None:
        """Reports once on standard error that lines are lost."""
        if not self._is_missed:
            self._is_missed = True
            text = f"culvert: no log at {self._path}: lines are lost (-E logs to standard error)\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())

    def close(self) -> None:
        """Closes the socket."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        super().close()


class _Passing(logging.Handler):
    """Passes each line to another process, which writes it."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # that process is gone
            self._send(record.levelno, text[:LINE_LIMIT])


def pass_on(send: Callable[[int, bytes], None]) -> None:
    """Calls ``send`` with the level and text of each line from now on; it may raise OSError."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    handler = _Passing(send)
    handler.addFilter(_TraceLimit())
    root.addHandler(handler)


def write_for(who: str, level: int, text: bytes) -> None:
    """Writes a line that another process passed on; its text is not trusted.

    ``who`` stands in front, so that the line cannot pass for one of this process. A line of
    a trace is written at every level: the other process was asked for the trace.
    """
    root = logging.getLogger()
    if level not in _SEVERITIES:
        level = logging.INFO
    if level == TRACE or root.isEnabledFor(level):
        first, _, traceback = text.decode(errors="replace").partition("\n")
        record = logging.LogRecord(__name__, level, "", 0, "%s: %s", (who, first), None)
        record.exc_text = traceback or None
        root.handle(record)


def tell_if_missing() -> None:
    """Reports a missing system's log now; call it before standard error is closed."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _SystemLog) and handler.socket is None:
            handler.miss()


def serve_connection(number: int) -> None:
    """Puts the connection's number on every line from now on, in place of the process id."""
    _Line.number = number


def descriptors() -> set[int]:
    """The descriptors that the log is written to, for a caller that closes all others."""
    found = set()
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "socket", None) or getattr(handler, "stream", None)
        if stream is not None:
            found.add(stream.fileno())
    return found
