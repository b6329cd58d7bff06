"""The lock that makes a process the machine's only supervisor of links.

The lock ends with its process. The locked file contains the path of the declarations that the last
supervisor had.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from typing import Final

from ..config.directories import runtime_directory
from ..errors import UsageError

_log = logging.getLogger(__name__)

# Our own choices
_FILE: Final = "links.lock"
_POLL: Final = 0.05  # seconds


class Taken(UsageError):
    """Another process is the supervisor, or keeps others from becoming it."""


def take(declarations: str = "") -> int:
    """Returns the lock's descriptor; raises Taken, and UsageError where there can be no lock.

    ``declarations`` is the path of the new supervisor's declarations.
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
        raise Taken(f"{directory}: another supervisor of links runs") from error
    if declarations:
        # If the disk is full, the next supervisor accepts any declarations as the last ones.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, os.fsencode(declarations), 0)
    return lock


@contextlib.contextmanager
def without_supervisor(declarations: str = "") -> Iterator[None]:
    """Keep others from becoming the supervisor meanwhile, where there can be a lock.

    Raises Taken.
    """
    try:
        lock = take(declarations)
    except Taken:
        raise
    except UsageError as error:  # a switch is to be closed, and opened, all the same
        _log.warning("%s", error)
        lock = -1
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def last_declarations() -> str:
    """Returns the path of the last supervisor's declarations since the boot; '' for none."""
    try:
        return os.fsdecode((runtime_directory() / _FILE).read_bytes())
    except OSError:
        return ""


def wait_until_free(seconds: float) -> None:
    """Waits for the supervisor's end; raises UsageError if it still runs after ``seconds``."""
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
