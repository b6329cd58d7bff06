"""Where log lines go: standard error, or the system's log; set up once a process.

The core logs DEBUG only. INFO is what an operator wants in a year's log.
"""

import logging
import logging.handlers
import os
import sys

TRACE_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # none, -v, -vv


class _Line(logging.Formatter):
    """One record is one line, whatever a peer's text contains."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def harmless(text: str) -> str:
    """A peer's text without what could steer a terminal; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def set_up(name: str, level: int, to_stderr: bool, connection: int | None = None) -> None:
    """Log as ``name``, with the connection's number on every line once there is one."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    handler: logging.Handler
    pid = os.getpid() if connection is None else connection
    if to_stderr:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Line(f"[{pid}] %(asctime)s %(message)s", "%b %d %H:%M:%S"))
    else:
        try:
            handler = logging.handlers.SysLogHandler(
                "/dev/log", logging.handlers.SysLogHandler.LOG_AUTHPRIV
            )
        except OSError:  # no syslog here
            handler = logging.NullHandler()
        handler.setFormatter(_Line(f"{name}[{pid}]: %(message)s"))
    root.addHandler(handler)
    root.setLevel(level)
