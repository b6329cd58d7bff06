"""From stat(2) to the attributes of a reply, and from those of a request to a file."""

from __future__ import annotations

import errno
import os
import stat
import struct

from ..errors import system_error
from ..wire.sftp import ATTRIBUTES, Attributes

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS = 0xF  # size, owner, permissions and times
_EXTENDED = 0x80000000
_NAME = ATTRIBUTES.encode()
_UINT32 = 0xFFFFFFFF
_UINT64 = 0xFFFFFFFFFFFFFFFF

# flags, size, uid, gid, permissions, access and modification time
_PLAIN = struct.Struct(">IQIIIII")
# ... count of pairs, name of the pair, length of its data, and the data: FileIdentity
_PAIR = b"\0\0\0\1" + len(_NAME).to_bytes(4, "big") + _NAME
_DATA = struct.Struct(">IQQIQIIQI")


def pack(status: os.stat_result) -> bytes:
    """Returns the attributes of a file; times before 1970 and after 2106 do not fit and stop there.

    Packed by hand, since a listing has many: equal to ``write_attributes``.
    """
    accessed, modified = status[7], status[8]
    if not 0 <= accessed <= _UINT32 or not 0 <= modified <= _UINT32:
        accessed = min(max(accessed, 0), _UINT32)
        modified = min(max(modified, 0), _UINT32)
    return _PLAIN.pack(_FLAGS, status[6], status[4], status[5], status[0], accessed, modified)


def pack_with_identity(status: os.stat_result) -> bytes:
    """Returns the attributes of a file with its FileIdentity."""
    plain = pack(status)
    data = _DATA.pack(
        _DATA.size - 4,
        status.st_dev & _UINT64,
        status.st_ino & _UINT64,
        status.st_nlink & _UINT32,
        status.st_blocks,
        status.st_atime_ns % 1_000_000_000,
        status.st_mtime_ns % 1_000_000_000,
        max(status[9], 0),
        status.st_ctime_ns % 1_000_000_000,
    )
    return (_FLAGS | _EXTENDED).to_bytes(4, "big") + plain[4:] + _PAIR + data


def mode_of(attributes: Attributes, default: int) -> int:
    """Returns the permissions for a new file."""
    return default if attributes.permissions is None else attributes.permissions & 0o7777


def _nanoseconds(attributes: Attributes) -> tuple[int, int] | None:
    if attributes.times is None:
        return None
    access, modification = attributes.times
    more = attributes.nanoseconds or (0, 0)
    return access * 1_000_000_000 + more[0], modification * 1_000_000_000 + more[1]


def _owner(attributes: Attributes) -> tuple[int, int] | None:
    """Returns uid and gid; the largest number stands for -1, 'as it is', as in chown(2)."""
    if attributes.owner is None:
        return None
    uid, gid = (-1 if number == _UINT32 else number for number in attributes.owner)
    return uid, gid


def change(file: int | bytes, attributes: Attributes) -> None:
    """Changes what is given, in OpenSSH's order: size, permissions, times, owner.

    One that fails does not keep the others from being changed; raises the last OSError.
    """
    times, owner = _nanoseconds(attributes), _owner(attributes)
    steps: list[Callable[[], None]] = []
    if (size := attributes.size) is not None:
        steps.append(lambda: os.truncate(file, size))
    if (permissions := attributes.permissions) is not None:
        steps.append(lambda: os.chmod(file, permissions & 0o7777))
    if times is not None:
        steps.append(lambda: os.utime(file, ns=times))
    if owner is not None:
        steps.append(lambda: os.chown(file, *owner))
    _try_all(steps)


def change_itself(path: bytes, attributes: Attributes) -> None:
    """Changes a file that may be a symbolic link, which is not followed (LSETSTAT)."""
    if attributes.size is not None:
        raise system_error(errno.EINVAL)  # a link has no size to be set
    times, owner = _nanoseconds(attributes), _owner(attributes)
    steps: list[Callable[[], None]] = []
    if (permissions := attributes.permissions) is not None:
        steps.append(lambda: _chmod_itself(path, permissions & 0o7777))
    if times is not None:
        steps.append(lambda: os.utime(path, ns=times, follow_symlinks=False))
    if owner is not None:
        steps.append(lambda: os.chown(path, *owner, follow_symlinks=False))
    _try_all(steps)


def _chmod_itself(path: bytes, mode: int) -> None:
    """Does what fchmodat(2) with AT_SYMLINK_NOFOLLOW does in the C library; Linux has none."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise system_error(errno.EOPNOTSUPP)
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def _try_all(steps: list[Callable[[], None]]) -> None:
    failed: OSError | None = None
    for step in steps:
        try:
            step()
        except OSError as reason:
            failed = reason
    if failed is not None:
        raise failed
