"""A known_hosts file that several clients write: what one has added, no other loses."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def locked(path: str) -> Iterator[BinaryIO]:
    """The file, at its end and open to be added to, which no other client changes or replaces
    meanwhile. It is made if it is not there. Raises OSError.
    """
    while True:
        with open(path, "a+b") as file:
            with contextlib.suppress(OSError):  # on a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):  # who had the lock has replaced it
                continue
            file.seek(0, os.SEEK_END)
            yield file
            return


def _is_at(path: str, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
