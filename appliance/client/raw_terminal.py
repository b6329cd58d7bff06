"""Our own terminal, when a program far away is at its other end."""

import contextlib
import os
import signal
import sys
import termios
import tty
from typing import Any

from ..services.terminal import encode_modes, get_size
from ..wire.session import PtyRequest


class RawTerminal:
    """The terminal that standard input is."""

    def __init__(self) -> None:
        self._before: list[Any] = termios.tcgetattr(0)

    def enter(self) -> None:
        """Every key goes to the program at once."""
        tty.setraw(0, termios.TCSADRAIN)

    def restore(self) -> None:
        """As it was."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        sys.stdout.flush()

    def suspend(self) -> None:
        """Until the shell has us go on; the window may have another size then."""
        self.restore()
        os.kill(os.getpid(), signal.SIGTSTP)
        self.enter()
        os.kill(os.getpid(), signal.SIGWINCH)


def pty_request() -> PtyRequest:
    """What asks for a terminal like ours, or for a plain one if ours is none."""
    local = os.isatty(0)
    size = get_size(0) if local else (80, 24, 0, 0)
    term = os.environ.get("TERM", "dumb")
    return PtyRequest(term, *size, encode_modes(0) if local else b"\0")
