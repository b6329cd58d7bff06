"""The one-time codes of this system's users: their secrets, and which were used already.

A code that was accepted is of no more use to whoever looked over a shoulder, and wrong ones are
counted over all connections, so that a stolen key is not worth a million guesses. Both stand in a
file of the state directory for each user, which one process at a time may change: the last step,
when wrong codes were counted from, and how many there were. If that cannot be written, no code is
accepted.
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
_NOBODYS: Final = bytes(SECRET_BYTES)  # to spend as much time on as on a real one
WRONG_LIMIT: Final = 10  # wrong codes of a user, after which not even the right one counts
WRONG_SECONDS: Final = 600  # that they are counted for, and that this lasts for at most
_WIDTH: Final = 20  # digits of a number, so that writing them is one write of a sector


def accepts(user: pwd.struct_passwd | None, given: bytes, path: str, now: float) -> bool:
    """Whether the code is the user's at ``now`` (seconds since 1970), was not used before, and
    did not come after too many wrong ones; it is used now.

    ``path`` is the file of secrets: lines of user:base32, its owner's alone.
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
    """Raises OSError, or ValueError for a file that was damaged."""
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
                _log.warning("user %s: no code counts for %d s: wrong ones", user.pw_name, seconds)
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
