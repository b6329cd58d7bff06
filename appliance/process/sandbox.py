"""What a worker gives up before it reads its first byte from the network.

As root: its identity, its groups and every file (its root directory is one that was
deleted, so nothing can even be created in it). Always: new privileges, new processes,
core dumps, and unbounded memory; and with a filter, most system calls.
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
USERS: Final = ("culvert", "sshd", "nobody")  # the first that exists
DATA_LIMIT: Final = 512 << 20  # bytes of a worker's heap: far above what its limits let it need

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxUser(NamedTuple):
    """Whom a worker runs as, and the directory that it is locked into."""

    uid: int
    gid: int
    directory: int


class Confinement(NamedTuple):
    """What a process is to be held to, for ``enter``."""

    identity: SandboxUser | None
    calls: bytes | None
    resolver: SandboxUser | None  # for who asks for names, which takes files

    @property
    def resolver_uid(self) -> int:
        """The user who asks for names."""
        return os.geteuid() if self.resolver is None else self.resolver.uid


def prepare(users: Sequence[str] = USERS, spare: int = 0) -> SandboxUser | None:
    """Called once, as root; None for an ordinary user, who cannot give up more.

    ``users`` are the names to choose from; without any of them it is the number ``spare``, which
    needs no name, or one of the next, which has none either.
    """
    if os.geteuid():
        return None
    uid, gid = _choose(users, spare)
    directory = runtime_directory()
    try:
        # In memory: a full disk must not keep us from starting.
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
    """Give up root and its groups, but no files: for a child that needs some of them."""
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    confine()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def enter(identity: SandboxUser | None, calls: bytes | None = None) -> None:
    """Give everything up, for good; raises OSError when anything cannot be given up.

    ``calls`` is a program of ``seccomp``, after which no other may be called.
    """
    if identity is not None:
        os.fchdir(identity.directory)
        os.chroot(".")
        os.close(identity.directory)
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    hide()
    end_with_parent()  # once more: a change of identity forgets it
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
    """Of a child that became the user: what it has in its memory stays its own."""
    hide()
    end_with_parent()


def hide() -> None:
    """Let no other process look into the memory, but root's."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def descriptors(identity: SandboxUser | None) -> set[int]:
    """What ``enter`` needs to be open."""
    return set() if identity is None else {identity.directory}


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; ``enter`` does so, too."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children_but(kept: Collection[int]) -> None:
    """Kill the children that are not ``kept``: commands that a sandboxed process started before
    it gave up the right to end them.
    """
    with open("/proc/thread-self/children", encoding="ascii") as children:
        for pid in map(int, children.read().split()):
            if pid not in kept:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def forget_signals() -> None:
    """Have the usual effect of signals again: a fork inherits its parent's handlers."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor but the standard ones and ``kept``: a fork inherits them all."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that reads this folder is gone again
                os.close(int(name))


def keep_descriptors(kept: Collection[int]) -> None:
    """Close every descriptor but ``kept``; standard ones that are closed lead to /dev/null."""
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
