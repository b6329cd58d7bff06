"""A known_hosts file that several clients write, without losing each other's lines."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def locked(path: str) -> Iterator[BinaryIO]:
    """Opens the file at its end, for appending, and makes it if it is missing. Raises OSError.

    No other client changes or replaces the file meanwhile.
    """
    while True:
        with open(path, "a+b") as file:
            with contextlib.suppress(OSError):  # on a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):  # the last holder of the lock has replaced it
                continue
            file.seek(0, os.SEEK_END)
            yield file
            return


def _is_at(path: str, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
