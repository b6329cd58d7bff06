"""Locks of open files, and the requests that wait for one.

They are open file description locks (fcntl(2)): one belongs to a handle, and does not end with
another handle of the same file. A waiting request is tried again from time to time, since a wait
in the kernel would keep all other requests waiting.
"""

from __future__ import annotations

import errno
import struct

from ..errors import system_error
from ..wire import sftp
from ..wire.sftp import Lock
from .failures import Refused, refused

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from .open_files import OpenFiles
    from .replies import Replies

# Our own choices
WAITING_LIMIT = 64  # requests that wait for a lock
RETRY = 50  # milliseconds

_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, process
_OFFSET_LIMIT = 1 << 63


class Locks:
    """The requests of one client that wait for a lock."""

    def __init__(self, replies: Replies, files: OpenFiles) -> None:
        self._replies = replies
        self._files = files
        self._waiting: list[tuple[int, Lock]] = []

    @property
    def are_waited_for(self) -> bool:
        """Whether ``retry`` should be called every RETRY milliseconds."""
        return bool(self._waiting)

    def ask(self, request: int, lock: Lock) -> None:
        """Answers a LOCK, now or later."""
        if self._take(request, lock):
            return
        if len(self._waiting) >= WAITING_LIMIT:
            raise system_error(errno.ENOLCK)
        self._waiting.append((request, lock))

    def retry(self) -> None:
        """Tries again for all that wait, in their order."""
        still = []
        for request, lock in self._waiting:
            try:
                if not self._take(request, lock):
                    still.append((request, lock))
            except Refused as refusal:  # the handle was closed
                self._replies.refuse(request, refusal)
            except OSError as reason:
                self._replies.refuse(request, refused(reason))
        self._waiting = still

    def _take(self, request: int, lock: Lock) -> bool:
        """Answers if the lock is held, or does not wait; raises Refused and OSError."""
        import fcntl

        types = {
            sftp.LOCK_SHARED: (fcntl.F_OFD_SETLK, fcntl.F_RDLCK),
            sftp.LOCK_EXCLUSIVE: (fcntl.F_OFD_SETLK, fcntl.F_WRLCK),
            sftp.LOCK_NONE: (fcntl.F_OFD_SETLK, fcntl.F_UNLCK),
            sftp.LOCK_TEST_SHARED: (fcntl.F_OFD_GETLK, fcntl.F_RDLCK),
            sftp.LOCK_TEST_EXCLUSIVE: (fcntl.F_OFD_GETLK, fcntl.F_WRLCK),
        }
        if lock.type not in types or lock.offset + lock.length >= _OFFSET_LIMIT:
            raise system_error(errno.EINVAL)
        command, kind = types[lock.type]
        descriptor = self._files.file(lock.handle).descriptor
        argument = _FLOCK.pack(kind, 0, lock.offset, lock.length, 0)
        try:
            found, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, command, argument))
            if command == fcntl.F_OFD_GETLK and found != fcntl.F_UNLCK:
                raise system_error(errno.EAGAIN)
        except OSError as reason:
            if lock.waits and reason.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._replies.ok(request)
        return True
