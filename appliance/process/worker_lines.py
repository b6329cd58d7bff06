"""The lines that a worker has for the log: its monitor writes them.

The monitor can reach the system's log also after that was started again, and a worker that was
taken over can neither fill the log nor write a line that passes for the monitor's.
"""

import logging
import time
from typing import Final

from .. import log
from .requests import Handlers, LogLine, Reply

_log = logging.getLogger(__name__)

# Our own choices: a busy connection with -v says less
LINES_AT_ONCE: Final = 1000
LINES_A_SECOND: Final = 50.0


class WorkerLines:
    """The lines of one worker."""

    def __init__(self) -> None:
        self._left = float(LINES_AT_ONCE)
        self._counted_at = time.monotonic()
        self._lost = 0

    def handlers(self) -> Handlers:
        """What answers each request."""
        return {LogLine: self.write}

    def write(self, request: LogLine) -> Reply:
        """Written, unless there were too many."""
        now = time.monotonic()
        earned = (now - self._counted_at) * LINES_A_SECOND
        self._left, self._counted_at = min(self._left + earned, LINES_AT_ONCE), now
        if self._left < 1:
            self._lost += 1
            return b"", []
        if self._lost:
            _log.warning("%d lines of the worker's are lost: it has too many", self._lost)
            self._lost = 0
        self._left -= 1
        log.write_for("worker", request.level, request.text[: log.LINE_LIMIT])
        return b"", []
