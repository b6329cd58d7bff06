"""Users of this system: who they are, what their password is, which keys let them in.

Used by the monitor. Files of a user are read with that user's identity, so that nothing
can be read through them that the user could not read.
"""

import contextlib
import ctypes
import fnmatch
import functools
import grp
import hmac
import logging
import os
import pwd
import signal
import stat
import time
from collections.abc import Iterator
from typing import Final

from ..config.server import ServerConfig
from ..crypto.authorized_keys import Entry, parse, parse_principals
from ..crypto.permissions import Permissions
from . import matching

_log = logging.getLogger(__name__)

# shadow(5)
DAY: Final = 86400  # seconds
SHADOW_FIELDS: Final = 9

# Our own choices
KEYS_LIMIT: Final = 1 << 20  # bytes of an authorized_keys file
SHADOW_LIMIT: Final = 16 << 20  # bytes of /etc/shadow
_NOBODYS_HASH: Final = "$y$j9T$aZ0vYcVbUkAeUgFdMZ6lb1$3Kb1pJyvXkJ5eGm9Oc0nGm1eTg3YcS0aXv9iJp7nQ6C"


class UntrustedFile(Exception):
    """A file that somebody else could have changed; the text says which and why."""


@functools.lru_cache
def _groups(name: str, group: int) -> list[int]:
    """Read once a connection: the system's files cost more than all else that a forward needs."""
    return os.getgrouplist(name, group)


@contextlib.contextmanager
def as_user(user: pwd.struct_passwd) -> Iterator[None]:
    """The file system as ``user`` sees it, when we are root."""
    if os.geteuid():
        yield
        return
    # what the monitor does at a SIGTERM, it may do only as root
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
    """Be ``user`` from now on, when we are root."""
    if os.geteuid() == 0:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def find(name: str, config: ServerConfig, address: str) -> pwd.struct_passwd | None:
    """The user ``name``, when such a one may log in from there at all."""
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
    if why := _expiry(name, int(time.time()) // DAY) or _fault_of_shell(user.pw_shell or "/bin/sh"):
        _log.info("user %s refused: %s", name, why)
        return None
    return user


def accepts_variable(name: bytes, config: ServerConfig) -> bool:
    """Whether a client may set this variable of the environment (AcceptEnv)."""
    text = name.decode("latin-1")
    plain = text.isascii() and text.replace("_", "a").isalnum()
    return plain and any(fnmatch.fnmatchcase(text, pattern) for pattern in config.accept_env)


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


def _shadow(name: str) -> list[str] | None:
    """The user's fields in /etc/shadow, shadow(5).

    Those that are missing at the end are empty: glibc takes such lines, too, and images have them.
    """
    for line in _shadow_lines():
        if line.startswith(name + ":"):
            fields = line.split(":")
            return fields + [""] * (SHADOW_FIELDS - len(fields))
    return None


def _shadow_lines() -> list[str]:
    try:
        fd = os.open("/etc/shadow", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    data = os.read(fd, SHADOW_LIMIT).decode("latin-1")
    os.close(fd)
    return data.split("\n")


def _expiry(name: str, today: int) -> str:
    """What of shadow(5) keeps a user out, '' if nothing; ``today`` is in days since 1970."""
    fields = _shadow(name)
    if fields is None:
        return ""
    days = [int(field) if field.isdecimal() else None for field in fields[2:8]]
    changed, _, longest, _, inactive, end = days
    if end is not None and today >= end:
        return "the account has expired"
    if not changed or longest is None or inactive is None:
        return ""
    if today > changed + longest + inactive:
        return "the password expired so long ago that the account is inactive (chage -I)"
    return ""


def _fault_of_password(name: str, today: int) -> str:
    """Why a password of shadow(5) is not taken any more, '' if it is.

    There is no dialogue here to change it in. A key still counts, as with sshd without PAM: a board
    whose clock was wrong when the password was set must not lock everybody out. For the same
    reason a last change on day 0 says nothing: images have it, and boards without a clock.
    """
    fields = _shadow(name)
    if fields is None or not fields[2].isdecimal() or not int(fields[2]):
        return ""
    if fields[4].isdecimal() and today > int(fields[2]) + int(fields[4]):
        return "the password has expired (passwd, or chage -M)"
    return ""


def _fault_of_shell(path: str) -> str:
    """Why nothing can run by this shell, '' if it can; it need not stand in /etc/shells."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return f"shell {path} does not exist"
    if not stat.S_ISREG(mode) or not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        return f"shell {path} is not executable"
    return ""


# -- passwords -----------------------------------------------------------------------


def password_is_right(
    user: pwd.struct_passwd | None, password: bytes, config: ServerConfig
) -> bool:
    """Compare with the stored hash; an unknown user costs as much time as a known one."""
    if config.password_file:
        kept, known = _argon2_hash(user.pw_name if user else "", config.password_file)
        right = _argon2(kept, password)
        usable = known and user is not None
        return right and usable and (bool(password) or config.permit_empty_passwords)
    stored = _system_hash(user)
    if stored == "" and user is not None:
        return config.permit_empty_passwords and not password
    usable = user is not None and not stored.startswith(("!", "*"))
    right = _crypt(password, stored if usable else _somebodys_hash())
    if not (right and usable and user is not None):
        return False
    if why := _fault_of_password(user.pw_name, int(time.time()) // DAY):
        _log.info("user %s refused: %s", user.pw_name, why)
        return False
    return bool(password) or config.permit_empty_passwords


def has_no_password(user: pwd.struct_passwd | None) -> bool:
    """Whether the system lets this user in without a password."""
    return user is not None and _system_hash(user) == ""


def _somebodys_hash() -> str:
    """A hash of the kind that this system makes, to spend as much time on as on a real one."""
    for line in _shadow_lines():
        stored = line.split(":")[1:2]
        if stored and stored[0].startswith("$"):
            return stored[0]
    return _NOBODYS_HASH


def _system_hash(user: pwd.struct_passwd | None) -> str:
    if user is None:
        return "!"
    fields = _shadow(user.pw_name)
    return fields[1] if fields else user.pw_passwd if user.pw_passwd != "x" else "!"


def _crypt(password: bytes, stored: str) -> bool:
    """crypt(3), whatever method the hash names."""
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            break
    else:
        _log.error("no libcrypt: passwords cannot be checked")
        return False
    library.crypt.restype = ctypes.c_char_p
    result: bytes | None = library.crypt(password.split(b"\0")[0], stored.encode("latin-1"))
    ours = b"*" if result is None else result
    return hmac.compare_digest(ours, stored.encode("latin-1")) and b"\0" not in password


def _argon2_hash(name: str, path: str) -> tuple[bytes, bool]:
    """The user's hash, or somebody else's, to spend as much time on; and whether it is theirs."""
    somebodys = b""
    try:
        with open(path, "rb") as file:
            for line in file:
                user, _, stored = line.strip().partition(b":")
                if user == name.encode(errors="replace") and stored:
                    return stored, True
                somebodys = somebodys or stored
    except OSError as error:
        _log.error("password file %s: %s", path, error.strerror)
    return somebodys, False


def _argon2(stored: bytes, password: bytes) -> bool:
    from nacl import exceptions, pwhash

    try:
        return pwhash.verify(stored, password)
    except (exceptions.CryptoError, ValueError):  # wrong, or no hash at all
        return False


# -- keys ----------------------------------------------------------------------------


def authorized_keys(user: pwd.struct_passwd, config: ServerConfig) -> list[Entry]:
    """The entries that let ``user`` in; a file that others may change holds none.

    Those with ``is_authority`` let in by their certificates only.
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
    """For whom a certificate must be to let ``user`` in, and the options of each name.

    The file may be named with %u, %h, %U and %%, and stands in the home unless its path is
    absolute (sshd_config(5), AuthorizedPrincipalsFile).
    """
    if "/" in user.pw_name or user.pw_name.startswith("."):
        return []  # from a directory service, perhaps: no name of a file
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
    """The file's bytes, when it and every directory up to the home are the user's alone."""
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
        others_may_write = 0  # like /tmp: nobody can replace what is not theirs
    if others_may_write:
        raise UntrustedFile(f"{path} may be written by others (mode {status.st_mode & 0o7777:o})")
