"""A server that begins as root, and gives that up before it reads the first byte.

Where the interpreter's own files will be out of reach, whatever it needs is imported before:
because the user may not read them, or because they are not in the directory that the user may not
leave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time


def become(chroot: str, uid: int, gid: int, groups: list[int]) -> None:
    """Makes this process the user's, and ``chroot`` its root unless that is '', both for good.

    Raises OSError; the caller ends then.
    """
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    if chroot or not _may_import(uid):
        _import_all()
    if chroot:
        os.chroot(chroot)
        os.chdir("/")
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise OSError(errno.EPERM, "the user's identity was not taken on")
    if uid:
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            return
        raise OSError(errno.EPERM, "root's rights came back")


def _may_import(uid: int) -> bool:
    """Whether the user may read Python's library and this package."""
    os.seteuid(uid)
    try:
        return all(os.access(file, os.R_OK, effective_ids=True) for file in (os.__file__, __file__))
    finally:
        os.seteuid(0)


def _import_all() -> None:
    """Imports what a session imports later, and has the C library read the time zone."""
    import fcntl  # noqa: F401
    import grp  # noqa: F401
    import pwd  # noqa: F401
    import select  # noqa: F401
    import syslog  # noqa: F401

    with contextlib.suppress(ImportError, OSError, AttributeError):  # as own_extensions.py
        from . import watches  # noqa: F401
    time.localtime()
