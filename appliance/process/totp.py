"""The one-time codes of this system's users: their secrets, and which were used already.

A code that was accepted is of no more use to whoever looked over a shoulder: the last step
of each user stands in a file of the state directory, which one process at a time may change. If
that cannot be written, no code is accepted.
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
_WIDTH: Final = 20  # digits of a step, so that writing it is one write of a sector


def accepts(user: pwd.struct_passwd | None, given: bytes, path: str, now: float) -> bool:
    """Whether the code is the user's at ``now``, and was not used before; it is used now.

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
        last = int(os.pread(fd, _WIDTH, 0) or b"-1")
        step = matching_step(secret, given, now, last)
        if step is None:
            return False
        os.pwrite(fd, str(step).zfill(_WIDTH).encode(), 0)
        os.fsync(fd)
        return True
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
