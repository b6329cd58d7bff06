"""The lines that a confined process has for the log: one that is not confined writes them.

That one can reach the system's log also after it was started again, and a process that was taken
over can neither fill the log nor write a line that passes for another's.
"""

import logging
import time
from typing import Final

from .. import log

_log = logging.getLogger(__name__)

# Our own choices: a busy connection with -v says less
LINES_AT_ONCE: Final = 1000
LINES_A_SECOND: Final = 50.0


class PassedLines:
    """The lines of one process, ``who`` it is in the log."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._left = float(LINES_AT_ONCE)
        self._counted_at = time.monotonic()
        self._lost = 0

    def write(self, level: int, text: bytes) -> None:
        """Write a line, unless there were too many."""
        now = time.monotonic()
        earned = (now - self._counted_at) * LINES_A_SECOND
        self._left, self._counted_at = min(self._left + earned, LINES_AT_ONCE), now
        if self._left < 1:
            self._lost += 1
            return
        if self._lost:
            _log.warning("%d lines of the %s's are lost: it has too many", self._lost, self._who)
            self._lost = 0
        self._left -= 1
        log.write_for(self._who, level, text[: log.LINE_LIMIT])
