"""The handles: what a client has open.

A handle is four bytes: the number of a slot, and how often the slot was used before, so that a
handle that was closed is not taken for a newer one.
"""

from __future__ import annotations

import errno
import os

from ..errors import system_error
from ..wire.sftp import FAILURE
from .failures import Refused

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator

_SLOT_BITS = 12
_USES = 1 << 32 - _SLOT_BITS  # until a handle comes again

# Our own choices
_SLOTS = 1 << _SLOT_BITS
FIRST_ROOM = 16 << 10  # bytes of a listing's first reply, so that its reader soon has names
_SPARE = 24  # descriptors that are not handles: standard ones, the log, inotify, a copy's ...


class OpenFile:
    """A file that is open, and how many bytes went through it."""

    __slots__ = ("appends", "descriptor", "name", "read", "written")

    def __init__(self, name: bytes, descriptor: int, flags: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.appends = bool(flags & os.O_APPEND)
        self.read = 0  # bytes
        self.written = 0

    def close(self) -> None:
        """Closes the descriptor; an error of the disk may come only now."""
        os.close(self.descriptor)


class OpenFolder:
    """A directory that is being listed."""

    __slots__ = ("dots", "entries", "kept", "name", "room")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.entries = os.scandir(name)
        self.dots = [b"..", b"."]  # which scandir leaves out; those still to be listed
        self.kept = b""  # a packed entry that had no room in the last reply
        self.room = FIRST_ROOM  # bytes of entries in the next reply

    def close(self) -> None:
        """Closes the directory."""
        self.entries.close()


Open = OpenFile | OpenFolder


def limit() -> int:
    """Returns how many handles may be open: a limit of ours, or of this process."""
    return max(1, min(_SLOTS, os.sysconf("SC_OPEN_MAX") - _SPARE))


class OpenFiles:
    """Owns everything that is open, by handle."""

    def __init__(self) -> None:
        self._slots: list[Open | None] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._limit = limit()

    def check_limit(self) -> None:
        """Raises OSError if no more handles are left; to be called before a file is opened."""
        if not self._free and len(self._slots) >= self._limit:
            raise system_error(errno.EMFILE)

    def add(self, opened: Open) -> int:
        """Returns the handle of what was opened."""
        if self._free:
            slot = self._free.pop()
            self._slots[slot] = opened
        else:
            slot = len(self._slots)
            self._slots.append(opened)
            self._uses.append(0)
        return self._uses[slot] << _SLOT_BITS | slot

    def find(self, handle: bytes | int) -> Open:
        """Returns what a handle stands for; raises Refused."""
        number = _number(handle)
        slot = number & _SLOTS - 1
        if slot < len(self._slots) and self._uses[slot] == number >> _SLOT_BITS:
            opened = self._slots[slot]
            if opened is not None:
                return opened
        raise _invalid()

    def file(self, handle: bytes | int) -> OpenFile:
        """Returns the file of a handle; raises Refused, also for a directory's."""
        opened = self.find(handle)
        if not isinstance(opened, OpenFile):
            raise Refused(FAILURE, os.strerror(errno.EISDIR), errno.EISDIR)
        return opened

    def folder(self, handle: bytes) -> OpenFolder:
        """Returns the directory of a handle; raises Refused, also for a file's."""
        opened = self.find(handle)
        if not isinstance(opened, OpenFolder):
            raise Refused(FAILURE, os.strerror(errno.ENOTDIR), errno.ENOTDIR)
        return opened

    def remove(self, handle: bytes) -> Open:
        """Forgets a handle; returns what the caller has to close. Raises Refused."""
        opened = self.find(handle)
        slot = _number(handle) & _SLOTS - 1
        self._slots[slot] = None
        self._uses[slot] = (self._uses[slot] + 1) % _USES
        self._free.append(slot)
        return opened

    def __iter__(self) -> Iterator[Open]:
        return (opened for opened in self._slots if opened is not None)


def _number(handle: bytes | int) -> int:
    if isinstance(handle, int):
        return handle
    if len(handle) != 4:
        raise _invalid()
    return int.from_bytes(handle, "big")


def _invalid() -> Refused:
    return Refused(FAILURE, "Invalid handle", errno.EBADF)
