"""The one-time codes of this system's users: their secrets, used codes and wrong codes.

A code is accepted only once, so that somebody who saw it typed cannot use it again. Wrong codes are
counted over all connections, so that a stolen key does not allow a million guesses. For each user a
file in the state directory, which one process at a time may change, has three numbers: the time
step of the last accepted code, the time since which wrong codes are counted, and how many there
were. If this file cannot be written, no code is accepted.
"""

import contextlib
import fcntl
import logging
import os
import pwd
import stat
from typing import Final

from ..config.directories import state_directory
from ..crypto.totp import SECRET_BYTES, matching_step, read_secret

_log = logging.getLogger(__name__)

# Our own choices
FILE_LIMIT: Final = 1 << 20  # bytes of a file of secrets
_NOBODYS: Final = bytes(SECRET_BYTES)  # so that an unknown user takes as much time as a real one
WRONG_LIMIT: Final = 10  # wrong codes of a user, after which even the right one is refused
WRONG_SECONDS: Final = 600  # for which wrong codes are counted; a refusal lasts no longer
_WIDTH: Final = 20  # digits of a number, so that writing them is one write of a sector


def accepts(user: pwd.struct_passwd | None, given: bytes, path: str, now: float) -> bool:
    """Whether the code is right, was not used before, and follows not too many wrong ones.

    After that it counts as used. ``now`` is in seconds since 1970. ``path`` is the file of secrets:
    lines of user:base32, which only the file's owner may read.
    """
    secret = _secret(user.pw_name, path) if user is not None else None
    if user is None or secret is None:
        matching_step(_NOBODYS, given, now, 0)
        return False
    try:
        return _accepts_once(user, secret, given, now)
    except (OSError, ValueError) as error:
        _log.error("no code of user %s can be accepted: %s", user.pw_name, error)
        return False


def _accepts_once(user: pwd.struct_passwd, secret: bytes, given: bytes, now: float) -> bool:
    """As ``accepts``; raises OSError, or ValueError if the user's file is damaged."""
    directory = state_directory() / "totp"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory / str(user.pw_uid), flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        last, since, wrong = map(int, os.pread(fd, 4 * _WIDTH, 0).split() or (-1, 0, 0))
        if not since <= now < since + WRONG_SECONDS:  # also for a clock that went back
            since, wrong = int(now), 0
        step = matching_step(secret, given, now, last)
        if wrong >= WRONG_LIMIT:
            return False
        if step is None:
            wrong += 1
            if wrong == WRONG_LIMIT:
                seconds = since + WRONG_SECONDS - now
                _log.warning(
                    "user %s: every code is refused for %d s: too many wrong ones",
                    user.pw_name,
                    seconds,
                )
        numbers = (last if step is None else step, since, wrong)
        os.pwrite(fd, b" ".join(str(number).zfill(_WIDTH).encode() for number in numbers), 0)
        os.fsync(fd)
        return step is not None
    finally:
        os.close(fd)


def _secret(name: str, path: str) -> bytes | None:
    try:
        lines = _read(path)
    except OSError as error:
        _log.error("totp_file %s: %s", path, error.strerror)
        return None
    for line in lines:
        user, _, secret = line.strip().partition(":")
        if user == name and not line.startswith("#"):
            try:
                return read_secret(secret)
            except ValueError as error:
                _log.error("totp_file %s: user %s: %s", path, name, error)
                return None
    return None


def _read(path: str) -> list[str]:
    """The lines of the secrets' file, none if others may read or change it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.closing(os.fdopen(fd, "rb")) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            _log.error("totp_file %s refused: it must be a file of root's", path)
            return []
        if status.st_mode & 0o077:
            _log.error("totp_file %s refused: others may read it: chmod 600 %s", path, path)
            return []
        return file.read(FILE_LIMIT).decode(errors="replace").splitlines()
