"""The errno of a request that failed.

Our server tells it. Others tell a code of SFTP, and "Failure" for most errors: there, a look at the
files says what stood in the way, as a local system would have. OpenSSH's server is the one that
the table of codes follows (its errno_to_portable).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..aio.tasks import Future
from ..errors import system_error
from ..files.sftp_client import SftpClient, StatusError
from ..wire import sftp

NAME_MAX: Final = 255  # bytes of a name, on every usual file system
_READ_ONLY: Final = 1  # f_flag

Look = Callable[[SftpClient], Coroutine[Future[Any], None, int]]


async def explained(client: SftpClient, error: StatusError, path: bytes, look: Look) -> OSError:
    """Returns the error with the errno that the caller expects.

    ``look`` finds the errno of a "Failure", or returns 0.
    """
    if client.has(sftp.ERRNO):
        return error
    number = error.errno or errno.EIO
    if error.code == sftp.BAD_MESSAGE:
        is_long = any(len(name) > NAME_MAX for name in path.split(b"/"))
        number = errno.ENAMETOOLONG if is_long else errno.EINVAL
    elif error.code == sftp.FAILURE:
        with contextlib.suppress(StatusError):
            number = await look(client) or number
    return system_error(number)


def check_length(name: bytes) -> None:
    """Raises OSError for a name that is too long for any file system."""
    if len(name) > NAME_MAX:
        raise system_error(errno.ENAMETOOLONG)


async def exists(client: SftpClient, path: bytes) -> bool:
    """Whether a name exists."""
    try:
        await client.lstat(path)
    except StatusError:
        return False
    return True


async def was_renamed(client: SftpClient, old: bytes, new: bytes) -> bool:
    """Whether a rename is done that a lost session has asked for."""
    return not await exists(client, old) and await exists(client, new)


async def is_empty(client: SftpClient, path: bytes) -> bool:
    """Whether an empty file exists, as one that was just made."""
    try:
        found = await client.lstat(path)
    except StatusError:
        return False
    return stat.S_ISREG(found.permissions or 0) and not found.size


async def no_room(client: SftpClient, path: bytes) -> int:
    """Returns ENOSPC or EROFS if the file system says so, else 0."""
    if not client.has(sftp.STATVFS):
        return 0
    found = await client.statvfs(path)
    if found.f_flag & _READ_ONLY:
        return errno.EROFS
    if not found.f_bavail or (found.f_files and not found.f_favail):
        return errno.ENOSPC
    return 0


def new_name(path: bytes) -> Look:
    """Looks into a failure to make ``path``."""

    async def look(client: SftpClient) -> int:
        if await exists(client, path):
            return errno.EEXIST
        return await no_room(client, os.path.dirname(path))

    return look


def opening(path: bytes, creates: bool, is_exclusive: bool) -> Look:
    """Looks into a failure to open ``path``."""

    async def look(client: SftpClient) -> int:
        try:
            found = await client.stat(path)
        except StatusError:
            if is_exclusive and await exists(client, path):
                return errno.EEXIST  # a symbolic link that leads nowhere
            return await no_room(client, os.path.dirname(path)) if creates else 0
        if is_exclusive:
            return errno.EEXIST
        if found.permissions is not None and stat.S_ISDIR(found.permissions):
            return errno.EISDIR
        return await no_room(client, path)

    return look


def removing_directory(path: bytes) -> Look:
    """Looks into a failure of rmdir."""

    async def look(client: SftpClient) -> int:
        async for entries in client.listing(path):
            if any(each.filename not in (b".", b"..") for each in entries):
                return errno.ENOTEMPTY
        return errno.EBUSY

    return look


def renaming(old: bytes, new: bytes, replaces: bool) -> Look:
    """Looks into a failure to rename; ``replaces``: whether it may take the place of a file."""

    async def look(client: SftpClient) -> int:
        source = await client.lstat(old)
        try:
            target = await client.lstat(new)
        except StatusError:
            if new.startswith(old + b"/"):
                return errno.EINVAL
            return await _other_device(client, old, new)
        if not replaces:
            return errno.EEXIST
        kinds = [stat.S_ISDIR(each.permissions or 0) for each in (source, target)]
        if kinds == [True, False]:
            return errno.ENOTDIR
        if kinds == [False, True]:
            return errno.EISDIR
        if kinds == [True, True]:
            return await removing_directory(new)(client)
        return await _other_device(client, old, new)

    return look


async def _other_device(client: SftpClient, one: bytes, other: bytes) -> int:
    """Returns EXDEV if the directories of two paths lie on different file systems."""
    if not client.has(sftp.STATVFS):
        return 0
    first, second = [await client.statvfs(os.path.dirname(path)) for path in (one, other)]
    if first.f_fsid != second.f_fsid:
        return errno.EXDEV
    return await no_room(client, os.path.dirname(other))


def linking(old: bytes, new: bytes) -> Look:
    """Looks into a failure to make a hard link."""

    async def look(client: SftpClient) -> int:
        if await exists(client, new):
            return errno.EEXIST
        found = await client.lstat(old)
        if stat.S_ISDIR(found.permissions or 0):
            return errno.EPERM
        return await _other_device(client, old, new)

    return look


def nothing_known(path: bytes) -> Look:
    """Looks at the file system alone."""

    async def look(client: SftpClient) -> int:
        return await no_room(client, path)

    return look
