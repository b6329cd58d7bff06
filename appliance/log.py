"""Where log lines go: standard error, or the system's log; set up once a process.

The core logs DEBUG only. INFO is what an operator wants in a year's log.
"""

import logging
import os
import sys


def harmless(text: str) -> str:
    """A peer's text without what could steer a terminal; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class _Line(logging.Formatter):
    """One record is one line, whatever a peer's text contains; only a traceback has more.

    Those begin with blanks, so that none can be taken for a line that says something else.
    """

    number = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        record.connection = self.number
        return harmless(super().format(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")


def set_up(name: str, level: int, to_stderr: bool) -> None:
    """Log as ``name``; ``serve_connection`` gives each line the connection's number."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    handler: logging.Handler
    if to_stderr:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Line("[%(connection)d] %(asctime)s %(message)s", "%b %d %H:%M:%S"))
    else:
        from logging import handlers  # which the client never needs

        try:
            handler = handlers.SysLogHandler("/dev/log", handlers.SysLogHandler.LOG_AUTHPRIV)
        except OSError:  # no syslog here
            handler = logging.NullHandler()
        handler.setFormatter(_Line(f"{name}[%(connection)d]: %(message)s"))
    root.addHandler(handler)
    root.setLevel(level)


def serve_connection(number: int) -> None:
    """Number every line from now on; before it, they carry the process id."""
    _Line.number = number


def descriptors() -> set[int]:
    """What the log is written to, for who closes all other descriptors."""
    found = set()
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "socket", None) or getattr(handler, "stream", None)
        if stream is not None:
            found.add(stream.fileno())
    return found
