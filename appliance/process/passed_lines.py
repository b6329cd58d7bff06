"""The lines that a confined process has for the log: one that is not confined writes them.

That one can reach the system's log also after it was started again, and a process that was taken
over can neither fill the log nor write a line that passes for another's.
"""

import logging
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
        self._allowance = log.Allowance(LINES_AT_ONCE, LINES_A_SECOND)

    def write(self, level: int, text: bytes) -> None:
        """Write a line, unless there were too many."""
        if level == log.TRACE:  # the log limits it by itself, so it takes no other line's place
            log.write_for(self._who, level, text[: log.LINE_LIMIT])
            return
        if not self._allowance.take():
            return
        if lost := self._allowance.lost:
            _log.warning("%d lines of the %s's are lost: it has too many", lost, self._who)
            self._allowance.lost = 0
        log.write_for(self._who, level, text[: log.LINE_LIMIT])
