"""The user's files that say which keys and certificates may log in: authorized_keys, principals.

They are read with the user's identity, so that nothing can be read through them that the user could
not read. A file that another user could have changed is not used at all.
"""

import logging
import os
import pwd
import stat
import time
from typing import Final

from ..config.server import ServerConfig
from ..crypto.authorized_keys import Entry, parse, parse_principals
from ..crypto.permissions import Permissions
from .accounts import as_user

_log = logging.getLogger(__name__)

# Our own choice
KEYS_LIMIT: Final = 1 << 20  # bytes of an authorized_keys file


class UntrustedFile(Exception):
    """A file that another user could have changed; the text says which and why."""


def authorized_keys(user: pwd.struct_passwd, config: ServerConfig) -> list[Entry]:
    """The entries whose keys may log in as ``user``; none from a file that others may change.

    The key of an entry with ``is_authority`` may not log in itself, only certificates signed by it.
    """
    folder = config.authorized_keys_directory
    if folder == "~" or folder.startswith("~/"):
        folder = user.pw_dir + folder[1:]
    path = os.path.join(user.pw_dir, folder, "authorized_keys")
    data = _read_of(user, path)
    return list(parse(data, _Complaints(path), lambda moment: time.mktime(moment)))


def authorized_principals(
    user: pwd.struct_passwd, config: ServerConfig
) -> list[tuple[str, Permissions]]:
    """The principals whose certificates may log in as ``user``, and the options of each.

    The file's path may contain %u, %h, %U and %%, and starts at the home unless it is absolute
    (sshd_config(5), AuthorizedPrincipalsFile).
    """
    if "/" in user.pw_name or user.pw_name.startswith("."):
        return []  # a name from a directory service, perhaps, that must not become part of a path
    tokens = {"u": user.pw_name, "h": user.pw_dir, "U": str(user.pw_uid)}
    parts = config.authorized_principals_file.split("%")
    path = parts.pop(0)
    while parts:
        part = parts.pop(0)
        if not part:  # '%%'; the configuration has no other token and no % at its end
            path += "%" + parts.pop(0)
        else:
            path += tokens[part[0]] + part[1:]
    path = os.path.join(user.pw_dir, path)
    data = _read_of(user, path)
    return list(parse_principals(data, _Complaints(path), lambda moment: time.mktime(moment)))


def _read_of(user: pwd.struct_passwd, path: str) -> bytes:
    """The bytes of a user's file, none if it is not there or others may change it."""
    try:
        with as_user(user):
            return _read_trusted(path, user)
    except FileNotFoundError:
        return b""
    except (OSError, UntrustedFile) as error:
        _log.warning("keys of user %s refused: %s", user.pw_name, error)
        return b""


class _Complaints:
    """Logs what is wrong in a file, with its name."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, text: str) -> None:
        _log.warning("%s: %s", self._path, text)


def _read_trusted(path: str, user: pwd.struct_passwd) -> bytes:
    """The file's bytes; only the user and root may change it and its directories up to the home.

    Raises UntrustedFile if others may, and OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise UntrustedFile(f"{path} is not a regular file")
    with open(fd, "rb") as file:
        _insist_on_owner(path, status, user)
        folder = os.path.dirname(os.path.realpath(path))
        home = os.path.realpath(user.pw_dir)
        while True:
            _insist_on_owner(folder, os.stat(folder), user)
            if folder in (home, "/"):
                break
            folder = os.path.dirname(folder)
        data = file.read(KEYS_LIMIT + 1)
    if len(data) > KEYS_LIMIT:
        raise UntrustedFile(f"{path} is longer than {KEYS_LIMIT} bytes")
    return data


def _insist_on_owner(path: str, status: os.stat_result, user: pwd.struct_passwd) -> None:
    if status.st_uid not in (0, user.pw_uid):
        raise UntrustedFile(f"{path} belongs to somebody else (uid {status.st_uid})")
    others_may_write = status.st_mode & 0o022
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and status.st_uid == 0:
        others_may_write = 0  # like /tmp: users can replace only their own files
    if others_may_write:
        raise UntrustedFile(f"{path} may be written by others (mode {status.st_mode & 0o7777:o})")
