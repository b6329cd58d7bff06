"""culvert keygen -k and -Q: make revocation lists, and look keys up in them (ssh-keygen(1))."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Final

from ..crypto.certificates import Certificate
from ..crypto.key_files import KeyFileError, load_offered_line, load_public_line
from ..crypto.keys import PublicKey
from ..crypto.revoked import RevocationList, RevokedCertificates, load
from ..errors import MalformedMessage, UsageError
from .keygen_files import read_file, write_whole
from .keygen_words import Silent
from .options import Options

_DIRECTIVES: Final = ("serial", "id", "key", "sha1", "sha256", "hash")


class _BadLine(Exception):
    """A mistake in a line; the caller adds file and line number."""


def run(options: Options) -> None:
    """Carries out -k or -Q; raises CulvertError, or Silent when a key is revoked."""
    path = options.value("f")
    if path is None:
        raise UsageError("the revocation list is missing: -f LIST")
    if "Q" in options:
        _ask(path, options.operands)
    else:
        _make(path, options)


def _load(path: str) -> RevocationList:
    try:
        return load(read_file(path))
    except MalformedMessage as error:
        raise UsageError(f"{path}: {error}") from error


# -- making ------------------------------------------------------------------------------


def _make(path: str, options: Options) -> None:
    revoked = _load(path) if "u" in options else RevocationList()
    version = options.value("z")
    if version is not None:
        revoked.version = _number(version, "option -z")
    elif "u" in options:
        revoked.version += 1
    certificates = _certificates(revoked, options.value("s"))
    for source in options.operands:
        if "q" not in options:
            print(f"Revoking from {source}")
        text = read_file(source).decode(errors="surrogateescape")
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue
            try:
                _revoke(revoked, certificates, stripped)
            except (_BadLine, KeyFileError, MalformedMessage) as error:
                raise UsageError(f"{source} line {number}: {error}") from error
    write_whole(path, revoked.dump(int(time.time())), 0o644, replace=True)


def _certificates(revoked: RevocationList, path: str | None) -> RevokedCertificates | None:
    """Returns the revoked certificates of the authority of -s: a key file, or 'none' for all."""
    if path is None:
        return None
    if path.lower() == "none":
        return revoked.certificates_of(None)
    if not path.endswith(".pub") and os.path.exists(f"{path}.pub"):
        path = f"{path}.pub"
    try:
        authority, _ = load_public_line(read_file(path).decode(errors="replace"))
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error
    return revoked.certificates_of(authority)


def _revoke(revoked: RevocationList, certificates: RevokedCertificates | None, line: str) -> None:
    """Revokes what one line of a KRL specification names, or one public key."""
    directive, colon, value = line.partition(":")
    directive, value = directive.strip().lower(), value.strip()
    if not colon or directive not in _DIRECTIVES:
        _revoke_key(revoked, load_offered_line(line)[0])
    elif directive in ("serial", "id"):
        if certificates is None:
            raise _BadLine(f"'{directive}:' needs the authority's key: -s AUTHORITY.pub")
        if directive == "id":
            certificates.key_ids.add(value)
            return
        low, dash, high = value.partition("-")
        certificates.add_range(
            *(_number(each, "the serial") for each in (low, high if dash else low))
        )
    elif directive == "hash":
        revoked.sha256.add(_digest(value))
    else:
        key = load_offered_line(value)[0]
        blob = key.key.blob if isinstance(key, Certificate) else key.blob
        if directive == "key":
            revoked.keys.add(blob)
        elif directive == "sha1":
            revoked.sha1.add(hashlib.sha1(blob).digest())
        else:
            revoked.sha256.add(hashlib.sha256(blob).digest())


def _revoke_key(revoked: RevocationList, key: PublicKey) -> None:
    """Revokes a certificate by its serial, or by its key id if it has none; a key by its blob."""
    if not isinstance(key, Certificate):
        revoked.keys.add(key.blob)
        return
    certificates = revoked.certificates_of(key.authority)
    if key.terms.serial:
        certificates.add_range(key.terms.serial, key.terms.serial)
    else:
        certificates.key_ids.add(key.terms.key_id)


def _digest(fingerprint: str) -> bytes:
    name, _, encoded = fingerprint.partition(":")
    try:
        digest = a2b_base64(encoded.encode() + b"=", strict_mode=True)
    except Base64Error:
        digest = b""
    if name.upper() != "SHA256" or len(digest) != 32:
        raise _BadLine(f"expected a fingerprint SHA256:..., not {fingerprint!r}")
    return digest


def _number(text: str, what: str) -> int:
    """Reads a decimal, hexadecimal (0x) or octal (0) number of 64 bits; raises UsageError."""
    text = text.strip()
    base = 16 if text[:2].lower() == "0x" else 8 if text[:1] == "0" and len(text) > 1 else 10
    try:
        if not text.isascii() or not text.isalnum() or len(text) > 24:
            raise ValueError(text)
        number = int(text, base)
    except ValueError as error:
        raise UsageError(f"{what} is not a number: {text!r}") from error
    if number >= 1 << 64:
        raise UsageError(f"{what} does not fit 64 bits: {text}")
    return number


# -- asking ------------------------------------------------------------------------------


def _ask(path: str, keys: list[str]) -> None:
    if not keys:
        raise UsageError("which keys are to be looked up? Give their files")
    revoked = _load(path)
    found = False
    for each in keys:
        try:
            key, comment = load_offered_line(read_file(each).decode(errors="replace"))
        except KeyFileError as error:
            raise KeyFileError(f"{each}: {error}") from error
        result = revoked.revokes(key)
        found = found or result
        shown = "".join(c if c.isprintable() else "?" for c in comment)
        print(f"{each}{f' ({shown})' if shown else ''}: {'REVOKED' if result else 'ok'}")
    if found:
        sys.stdout.flush()
        raise Silent
