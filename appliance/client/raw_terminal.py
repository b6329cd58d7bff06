"""The local terminal, while a program on the server uses it."""

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
    """Owns the mode of the terminal that is standard input."""

    def __init__(self) -> None:
        self._before: list[Any] = termios.tcgetattr(0)

    def enter(self) -> None:
        """Sets raw mode: every key goes to the program at once."""
        tty.setraw(0, termios.TCSADRAIN)

    def restore(self) -> None:
        """Restores the mode that the terminal had before."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        sys.stdout.flush()

    def suspend(self) -> None:
        """Stops this process until the shell continues it; the window's size may have changed."""
        self.restore()
        os.kill(os.getpid(), signal.SIGTSTP)
        self.enter()
        os.kill(os.getpid(), signal.SIGWINCH)


def pty_request() -> PtyRequest:
    """Returns a request for a terminal like standard input; for a plain one if that is none."""
    local = os.isatty(0)
    size = get_size(0) if local else (80, 24, 0, 0)
    term = os.environ.get("TERM", "dumb")
    return PtyRequest(term, *size, encode_modes(0) if local else b"\0")
