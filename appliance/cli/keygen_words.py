"""What keygen's commands have in common: types of keys, numbers, comments, hashes."""

from __future__ import annotations

import os
from typing import Final

from ..crypto.keys import ED25519, RSA, PrivateKey, PublicKey, generate, is_certificate_name
from ..errors import UsageError
from .options import Options

_ECDSA_TYPES: Final = {bits: f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)}


class Silent(Exception):
    """Exit status 1 without a message, as ssh-keygen -F has for an unknown host."""


def default_comment() -> str:
    """Returns user@host, with the account that runs this process."""
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


def kind(key: PublicKey) -> str:
    """Returns ED25519, ECDSA, RSA, or one of these with -SK or -CERT."""
    name = key.key_type.removeprefix("sk-").removeprefix("ssh-").partition("-")[0]
    name = name.partition("@")[0].upper()
    if key.key_type.startswith("sk-"):
        name += "-SK"
    return name + "-CERT" if is_certificate_name(key.key_type) else name


def wanted_type(name: str, bits: int | None) -> tuple[str, int | None]:
    """Returns the arguments of ``new_key`` for -t and -b; raises UsageError."""
    name = name.lower()
    if name in ("ed25519", ED25519):
        return ED25519, None  # ssh-keygen ignores the bits, too
    if name in ("rsa", RSA, "rsa-sha2-256", "rsa-sha2-512"):
        return RSA, bits
    if name == "ecdsa":
        if bits not in (None, *_ECDSA_TYPES):
            raise UsageError("an ECDSA key has 256, 384 or 521 bits")
        return _ECDSA_TYPES[bits or 256], None
    if name in _ECDSA_TYPES.values():
        return name, None
    raise UsageError(f"keys of type {name!r} cannot be made; there are ed25519, ecdsa and rsa")


def number(text: str | None, option: str) -> int | None:
    """Returns the argument of ``option``, None if it was not given; raises UsageError."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) == int(text[:12]):
        raise UsageError(f"option {option}: expected a number, not {text!r}")
    return int(text)


def new_key(key_type: str, bits: int | None) -> PrivateKey:
    """Makes a key; raises UsageError for a size that it cannot have."""
    try:
        return generate(key_type, bits)
    except ValueError as error:
        raise UsageError(str(error)) from error


def checked_comment(comment: str) -> str:
    """Returns the comment; raises UsageError if it cannot follow a key on its line."""
    if not comment.isprintable():
        raise UsageError("a comment is one line of printable characters")
    return comment


def hash_name(options: Options) -> str:
    """Returns the hash of -E; raises UsageError."""
    name = (options.value("E") or "sha256").lower()
    if name not in ("sha256", "md5"):
        raise UsageError(f"option -E: expected sha256 or md5, not {name!r}")
    return name
