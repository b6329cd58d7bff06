"""Watched directories: inotify(7), by the C library.

Imported by the first WATCH, since ctypes takes as long to import as the whole server.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from ..errors import system_error
from ..wire.sftp import DATA_LIMIT, Change, ChangesReply

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from .replies import Replies

# inotify(7)
_CLOEXEC = os.O_CLOEXEC
_NONBLOCK = os.O_NONBLOCK
_MODIFY = 0x2
_ATTRIBUTES = 0x4
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLY_DIRECTORIES = 0x01000000
_EVENTS = (
    _MODIFY
    | _ATTRIBUTES
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLY_DIRECTORIES
)
_EVENT = struct.Struct("@iIII")  # watch, what happened, cookie, length of the name

# Our own choices
LIMIT = 4096  # watched directories; the user may have 8192 on older systems
PENDING_LIMIT = 8  # requests for changes without an answer
BATCH = 64 << 10  # bytes of events that one reply tells; more wait in the kernel

_libc = ctypes.CDLL(None, use_errno=True)


class Watches:
    """The watched directories of one client, and its requests for changes."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._known: set[int] = set()
        self._pending: list[int] = []
        self.descriptor = _checked(_libc.inotify_init1(_CLOEXEC | _NONBLOCK))

    @property
    def are_asked_for(self) -> bool:
        """Whether ``tell`` should be called once ``descriptor`` has something to read."""
        return bool(self._pending)

    def add(self, path: bytes) -> int:
        """Watches a directory; returns its number, the same as before for one that is watched."""
        if len(self._known) >= LIMIT:
            raise system_error(errno.ENOSPC)
        watch = _checked(_libc.inotify_add_watch(self.descriptor, path, _EVENTS))
        self._known.add(watch)
        return watch

    def remove(self, watch: int) -> None:
        """Watches a directory no longer."""
        if watch not in self._known:
            raise system_error(errno.EINVAL)
        self._known.remove(watch)
        _libc.inotify_rm_watch(self.descriptor, watch)

    def ask(self, request: int) -> None:
        """Answers a CHANGES, now or once there is something to tell."""
        if len(self._pending) >= PENDING_LIMIT:
            raise system_error(errno.EBUSY)
        self._pending.append(request)
        self.tell()

    def tell(self) -> None:
        """Answers the first CHANGES, if there is one and something has changed."""
        while self._pending:
            try:
                data = os.read(self.descriptor, BATCH)
            except BlockingIOError:
                return
            lost, changes = self._changes(data)
            if lost or changes:
                reply = ChangesReply(lost, changes).encode()
                self._replies.extended(self._pending.pop(0), reply)

    def _changes(self, data: bytes) -> tuple[bool, tuple[Change, ...]]:
        lost = False
        changes: dict[tuple[int, bytes], Change] = {}
        offset = 0
        while offset < len(data):
            watch, what, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            if what & _OVERFLOW:
                lost = True
            elif what & _IGNORED:  # the directory is gone, or is watched no longer
                self._known.discard(watch)
            elif watch in self._known:
                changes[watch, name] = Change(watch, name)
        return lost, tuple(changes.values())

    def close(self) -> None:
        """Ends all watches."""
        os.close(self.descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise system_error(ctypes.get_errno())
    return result


assert BATCH < DATA_LIMIT  # so that the changes of one read fit in one reply
