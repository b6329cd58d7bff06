"""Users of this system: which of them may log in, and how a process takes on their identity."""

import contextlib
import functools
import grp
import logging
import os
import pwd
import signal
import stat
import time
from collections.abc import Iterator

from ..config.server import ServerConfig
from . import matching, shadow

_log = logging.getLogger(__name__)


def find(name: str, config: ServerConfig, address: str) -> pwd.struct_passwd | None:
    """The user ``name``; None for a user that does not exist or may not log in from ``address``."""
    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError, UnicodeError):  # ValueError: a NUL in the name
        return None
    if os.geteuid() and user.pw_uid != os.geteuid():
        _log.info("user %s refused: this server runs as uid %d", name, os.geteuid())
        return None
    if user.pw_uid == 0 and config.permit_root_login == "no":
        _log.info("user %s refused: root may not log in", name)
        return None
    if why := matching.refusal(config, name, lambda: groups_of(name), address):
        _log.info("user %s refused: %s", name, why)
        return None
    today = int(time.time()) // shadow.DAY
    if why := shadow.expiry(name, today) or _fault_of_shell(user.pw_shell or "/bin/sh"):
        _log.info("user %s refused: %s", name, why)
        return None
    return user


def _fault_of_shell(path: str) -> str:
    """The reason why this shell cannot run, '' if it can; it need not be in /etc/shells."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return f"shell {path} does not exist"
    if not stat.S_ISREG(mode) or not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        return f"shell {path} is not executable"
    return ""


def groups_of(name: str) -> list[str]:
    """The names of a user's groups; none for a user that does not exist."""
    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError, UnicodeError):
        return []
    names = []
    for number in os.getgrouplist(name, user.pw_gid):
        with contextlib.suppress(KeyError):  # a number without a name
            names.append(grp.getgrgid(number).gr_name)
    return names


@functools.lru_cache
def _groups(name: str, group: int) -> list[int]:
    """The user's group ids; cached, since reading them takes longer than the rest of a forward."""
    return os.getgrouplist(name, group)


@contextlib.contextmanager
def as_user(user: pwd.struct_passwd) -> Iterator[None]:
    """Takes on the identity of ``user`` within the context, if this process is root."""
    if os.geteuid():
        yield
        return
    # the monitor's handler of SIGTERM needs root's rights
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    groups = os.getgroups()
    os.setgroups(_groups(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become(user: pwd.struct_passwd) -> None:
    """Takes on the identity of ``user`` for good, if this process is root."""
    if os.geteuid() == 0:
        take_groups(user)
        take_user(user)


def take_groups(user: pwd.struct_passwd) -> None:
    """Takes on the groups of ``user`` for good."""
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)


def take_user(user: pwd.struct_passwd) -> None:
    """Takes on the number of ``user`` for good, after ``take_groups``."""
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
