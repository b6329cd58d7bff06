"""The right to be the machine's supervisor of links: a lock that goes with its process.

The locked file says which declarations the last one had.
"""

import contextlib
import fcntl
import os
import time
from typing import Final

from ..config.directories import runtime_directory
from ..errors import UsageError

# Our own choices
_FILE: Final = "links.lock"
_POLL: Final = 0.05  # seconds


def take(declarations: str = "") -> int:
    """Return the lock's descriptor; raises UsageError if another process has it.

    ``declarations`` is the path of those that it is taken for.
    """
    directory = runtime_directory()
    try:
        lock = _open()
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UsageError(f"{directory}: another supervisor of links runs") from error
    if declarations:
        # Where there is no room, the next one takes any declarations for those of the last.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, os.fsencode(declarations), 0)
    return lock


def last_declarations() -> str:
    """Return the path of what the last one declared, since the machine's start; '' for none."""
    try:
        return os.fsdecode((runtime_directory() / _FILE).read_bytes())
    except OSError:
        return ""


def wait_until_free(seconds: float) -> None:
    """Wait for the supervisor to end, but not longer than this. Raises UsageError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.close(take())
        except UsageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)
        else:
            return


def _open() -> int:
    directory = runtime_directory()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
