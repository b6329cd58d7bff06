"""A server that may reach one directory only: it begins as root, and gives that up in there.

Nothing has to exist in the directory: whatever the server needs is imported before. The first
byte of the client is read afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time


def enter(directory: str, uid: int, gid: int, groups: list[int]) -> None:
    """Makes ``directory`` the root of this process, and the process the user's, for good.

    Raises OSError; the caller ends then.
    """
    _import_all()
    os.chroot(directory)
    os.chdir("/")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise OSError(errno.EPERM, "the user's identity was not taken on")
    if uid:
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            return
        raise OSError(errno.EPERM, "root's rights came back")


def _import_all() -> None:
    """Imports what a session imports later, and has the C library read the time zone."""
    import fcntl  # noqa: F401
    import grp  # noqa: F401
    import pwd  # noqa: F401
    import select  # noqa: F401

    with contextlib.suppress(ImportError, OSError, AttributeError):  # as own_extensions.py
        from . import watches  # noqa: F401
    time.localtime()
