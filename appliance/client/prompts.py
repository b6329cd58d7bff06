"""Questions to the user: on the terminal, or by the program in SSH_ASKPASS."""

import contextlib
import os
import sys

from ..errors import UsageError
from ..log import harmless

_given: str | None = None  # the answer to all questions for a secret


def give(answer: str) -> None:
    """Answers all questions for a secret, and no others; nobody is asked any more."""
    global _given
    _given = answer


def secret(prompt: str) -> str | None:
    """Asks for a line without echo; None if the user cannot be asked, or gives up."""
    return _ask(harmless(prompt), echo=False)


def line(prompt: str) -> str | None:
    """Asks for a line with echo; None as for ``secret``."""
    return _ask(harmless(prompt), echo=True)


def _ask(prompt: str, echo: bool) -> str | None:
    if _given is not None:
        return None if echo else _given
    program = os.environ.get("SSH_ASKPASS")
    require = os.environ.get("SSH_ASKPASS_REQUIRE", "")
    if program and (require == "force" or (require == "prefer" and os.environ.get("DISPLAY"))):
        return _askpass(program, prompt)
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        if program and require != "never" and os.environ.get("DISPLAY"):
            return _askpass(program, prompt)
        return None
    try:
        return _ask_terminal(terminal, prompt, echo)
    finally:
        os.close(terminal)


def _ask_terminal(terminal: int, prompt: str, echo: bool) -> str | None:
    import termios

    before = termios.tcgetattr(terminal)
    changed = termios.tcgetattr(terminal)
    if not echo:
        changed[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, changed)
        os.write(terminal, prompt.encode(errors="replace"))
        answer = b""
        while not answer.endswith(b"\n"):
            more = os.read(terminal, 4096)
            if not more:
                return None
            answer += more
        return answer[:-1].decode(errors="surrogateescape")
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        if not echo:
            os.write(terminal, b"\n")


def _askpass(program: str, prompt: str) -> str | None:
    import subprocess

    try:
        result = subprocess.run([program, prompt], stdout=subprocess.PIPE, check=False)
    except OSError as error:
        raise UsageError(f"SSH_ASKPASS {program}: {error.strerror}") from error
    if result.returncode:
        return None
    return result.stdout.decode(errors="surrogateescape").rstrip("\r\n")


def tell(text: str) -> None:
    """Writes a line to standard error; safe while the terminal is in raw mode."""
    end = "\r\n" if os.isatty(2) else "\n"
    show(text.replace("\n", end) + end)


def show(text: str) -> None:
    """Writes to standard error, also while a session has made it non-blocking."""
    with contextlib.suppress(OSError):  # standard error may be closed
        is_blocking = os.get_blocking(2)
        os.set_blocking(2, True)
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        finally:
            os.set_blocking(2, is_blocking)
