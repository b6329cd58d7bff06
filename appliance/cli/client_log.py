"""The client's log, by -v, -E and LogLevel, in OpenSSH's form: 'debug1: ...'."""

import logging
import sys
from typing import Final, TextIO

from ..client import prompts
from ..errors import UsageError
from ..log import TRACE, harmless

_LEVELS: Final = {
    "QUIET": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "INFO": logging.WARNING,
    "VERBOSE": logging.INFO,
}  # of LogLevel, ssh_config(5); all others are DEBUG
_PREFIXES: Final = {
    TRACE: "debug3: ",
    logging.DEBUG: "debug1: ",
    logging.WARNING: "Warning: ",
    logging.ERROR: "error: ",
    logging.CRITICAL: "error: ",
}


class _Line(logging.Formatter):
    """Formats a line; a peer's text in it is made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(_PREFIXES.get(record.levelno, "") + super().format(record))


class _StandardError(logging.Handler):
    """Writes to standard error, also while the terminal is in raw mode."""

    def emit(self, record: logging.LogRecord) -> None:
        prompts.tell(self.format(record))


class _File(logging.StreamHandler[TextIO]):
    """Writes to the file of -E; a full disk does not end the client."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def set_up(log_level: str, path: str | None) -> None:
    """Starts the log at this level, in the file ``path`` if it is given; raises UsageError."""
    handler: logging.Handler = _StandardError()
    if path is not None:
        try:
            handler = _File(open(path, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"-E {path}: {error.strerror}") from error
    handler.setFormatter(_Line())
    logging.basicConfig(level=_LEVELS.get(log_level, logging.DEBUG), handlers=[handler])
