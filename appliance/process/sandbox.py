"""What a worker gives up before it reads its first byte from the network.

As root: its identity, its groups and every file (its root directory is one that was
deleted, so nothing can even be created in it). Always: new privileges, new processes,
core dumps, and unbounded memory.
"""

import ctypes
import os
import pwd
import resource
import signal
import tempfile
from typing import Final, NamedTuple

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

# Our own choices
USERS: Final = ("culvert", "sshd", "nobody")  # the first that exists
DATA_LIMIT: Final = 512 << 20  # bytes of a worker's heap: far above what its limits let it need

_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """Whom a worker runs as, and the directory that it is locked into."""

    uid: int
    gid: int
    directory: int


def prepare() -> Identity | None:
    """Called once, as root; None for an ordinary user, who cannot give up more."""
    if os.geteuid():
        return None
    for name in USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        break
    else:
        raise RuntimeError(f"none of the users {', '.join(USERS)} exists")
    path = tempfile.mkdtemp(prefix="culvert-")
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchmod(directory, 0o555)
    os.rmdir(path)
    return Identity(user.pw_uid, user.pw_gid, directory)


def enter(identity: Identity | None) -> None:
    """Give everything up, for good; raises OSError when anything cannot be given up."""
    if identity is not None:
        os.fchdir(identity.directory)
        os.chroot(".")
        os.close(identity.directory)
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, value in (
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, DATA_LIMIT),
    ):
        resource.setrlimit(limit, (value, value))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
