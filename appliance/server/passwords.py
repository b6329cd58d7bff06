"""Checks users' passwords, by the system's hashes or by a password file of Culvert's own."""

import contextlib
import ctypes
import hmac
import logging
import pwd
import time
from typing import Final

from ..config.server import ServerConfig
from . import shadow

_log = logging.getLogger(__name__)

# Our own choice
_NOBODYS_HASH: Final = "$y$j9T$aZ0vYcVbUkAeUgFdMZ6lb1$3Kb1pJyvXkJ5eGm9Oc0nGm1eTg3YcS0aXv9iJp7nQ6C"


def is_right(user: pwd.struct_passwd | None, password: bytes, config: ServerConfig) -> bool:
    """Whether the password is the user's; takes as long for an unknown user as for a known one."""
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
    if why := shadow.fault_of_password(user.pw_name, int(time.time()) // shadow.DAY):
        _log.info("user %s refused: %s", user.pw_name, why)
        return False
    return bool(password) or config.permit_empty_passwords


def has_no_password(user: pwd.struct_passwd | None) -> bool:
    """Whether the system lets this user in without a password."""
    return user is not None and _system_hash(user) == ""


def _somebodys_hash() -> str:
    """A hash of this system's method, so that checking an unknown user takes as much time."""
    for line in shadow.lines():
        stored = line.split(":")[1:2]
        if stored and stored[0].startswith("$"):
            return stored[0]
    return _NOBODYS_HASH


def _system_hash(user: pwd.struct_passwd | None) -> str:
    if user is None:
        return "!"
    fields = shadow.entry(user.pw_name)
    return fields[1] if fields else user.pw_passwd if user.pw_passwd != "x" else "!"


def _crypt(password: bytes, stored: str) -> bool:
    """Whether crypt(3) makes ``stored`` of the password, by the method that the hash names."""
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
    """The user's hash and True, or another user's and False, so that the check takes as long."""
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
    except (exceptions.CryptoError, ValueError):  # a wrong password, or not a hash
        return False
