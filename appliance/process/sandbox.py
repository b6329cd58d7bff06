"""The privileges that a worker gives up before it reads its first byte from the network.

A worker that runs as root gives up its identity, its groups and every file (its root directory was
deleted, so no file can even be created in it). Every worker gives up new privileges, new
processes, core dumps and unbounded memory, and with a filter most system calls.
"""

import contextlib
import ctypes
import grp
import os
import pwd
import resource
import signal
import tempfile
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from ..config.directories import runtime_directory
from . import seccomp

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

# Our own choices
USERS: Final = ("culvert", "sshd", "nobody")  # the first one that exists is used
DATA_LIMIT: Final = 512 << 20  # bytes of a worker's heap: its other limits let it need far less

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxUser(NamedTuple):
    """The user and group that a worker runs as, and a descriptor of its root directory."""

    uid: int
    gid: int
    directory: int


class Confinement(NamedTuple):
    """The restrictions of a process, for ``enter``."""

    identity: SandboxUser | None
    calls: bytes | None
    resolver: SandboxUser | None  # for the child that resolves names, which needs files

    @property
    def resolver_uid(self) -> int:
        """The user of the child that resolves names."""
        return os.geteuid() if self.resolver is None else self.resolver.uid


def prepare(users: Sequence[str] = USERS, spare: int = 0) -> SandboxUser | None:
    """Returns a user and an empty root directory for ``enter``; None if this process is not root.

    Called once. ``users`` are the names to choose from. If none of them exists, the user is the
    first number from ``spare`` on that no user or group has; RuntimeError without ``spare``.
    """
    if os.geteuid():
        return None
    uid, gid = _choose(users, spare)
    directory = runtime_directory()
    try:
        # In memory: a full disk must not prevent a start.
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = tempfile.mkdtemp(prefix="culvert-", dir=directory)
    except OSError:
        path = tempfile.mkdtemp(prefix="culvert-")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchmod(descriptor, 0o555)
    os.rmdir(path)
    return SandboxUser(uid, gid, descriptor)


def _choose(users: Sequence[str], spare: int) -> tuple[int, int]:
    for name in users:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    if not spare:
        raise RuntimeError(f"none of the users {', '.join(users)} exists")
    taken = {user.pw_uid for user in pwd.getpwall()} | {group.gr_gid for group in grp.getgrall()}
    while spare in taken:
        spare += 1
    return spare, spare


def become(identity: SandboxUser | None) -> None:
    """Gives up root and its groups, but not the files, for a child that needs some of them."""
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    confine()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def enter(identity: SandboxUser | None, calls: bytes | None = None) -> None:
    """Gives up all privileges for good; raises OSError if one of them cannot be given up.

    ``calls`` is a filter from ``seccomp.program``, which blocks all other system calls.
    """
    if identity is not None:
        os.fchdir(identity.directory)
        os.chroot(".")
        os.close(identity.directory)
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    hide()
    end_with_parent()  # once more: the kernel clears it when the identity changes
    for limit, value in (
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, DATA_LIMIT),
    ):
        resource.setrlimit(limit, (value, value))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if calls is not None:
        seccomp.load(calls)


def confine() -> None:
    """Hides the memory of a child that became the user, and ends the child with its parent."""
    hide()
    end_with_parent()


def hide() -> None:
    """Lets only root's processes read this process's memory, and forbids new privileges."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def descriptors(identity: SandboxUser | None) -> set[int]:
    """Returns the descriptors that ``enter`` needs open."""
    return set() if identity is None else {identity.directory}


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends; ``enter`` does so, too."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants' orphans."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children_but(kept: Collection[int]) -> None:
    """Kills the children that are not ``kept``.

    They are commands that a sandboxed process started before it gave up the right to kill them.
    """
    with open("/proc/thread-self/children", encoding="ascii") as children:
        for pid in map(int, children.read().split()):
            if pid not in kept:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def forget_signals() -> None:
    """Restores the default effect of signals: a fork inherits its parent's handlers."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def close_all_but(kept: Collection[int]) -> None:
    """Closes every descriptor but the standard ones and ``kept``: a fork inherits them all."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
                os.close(int(name))


def keep_descriptors(kept: Collection[int]) -> None:
    """Closes every descriptor but ``kept``; standard ones that are closed lead to /dev/null."""
    close_all_but(kept)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        if fd not in kept:
            os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
