"""The log lines of a confined process, which an unconfined process writes for it.

The unconfined process still reaches the system's log after the log was restarted. A compromised
process can neither fill the log nor forge a line of another process.
"""

import logging
from typing import Final

from .. import log

_log = logging.getLogger(__name__)

# Our own choices: a busy connection with -v writes less
LINES_AT_ONCE: Final = 1000
LINES_A_SECOND: Final = 50.0


class PassedLines:
    """The log lines of one process, which is named ``who`` in the log."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._allowance = log.Allowance(LINES_AT_ONCE, LINES_A_SECOND)

    def write(self, level: int, text: bytes) -> None:
        """Writes a line, unless there were too many."""
        if level == log.TRACE:  # the log limits traces itself, so they take no other line's place
            log.write_for(self._who, level, text[: log.LINE_LIMIT])
            return
        if not self._allowance.take():
            return
        if lost := self._allowance.lost:
            _log.warning("%d lines of the %s are lost: it wrote too many", lost, self._who)
            self._allowance.lost = 0
        log.write_for(self._who, level, text[: log.LINE_LIMIT])
