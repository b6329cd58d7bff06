"""culvert keygen -s and -L: sign certificates, and show what they say."""

from __future__ import annotations

import os
import sys
import time
from binascii import hexlify
from collections.abc import Iterator
from typing import Final

from ..crypto.authorized_keys import parse_time
from ..crypto.certificates import (
    FORCE_COMMAND,
    FOREVER,
    NO_TOUCH_REQUIRED,
    NONCE_BYTES,
    PERMITS,
    SOURCE_ADDRESS,
    VERIFY_REQUIRED,
    Certificate,
    CertType,
    Terms,
    issue,
    text_option,
)
from ..crypto.key_files import KeyFileError, load_offered_line, load_public_line
from ..crypto.keys import PublicKey
from ..errors import CertificateRefused, MalformedMessage, UsageError
from .keygen_files import load_private, read_file, write_whole
from .keygen_words import kind
from .options import Options

_SERIAL_MAXIMUM: Final = (1 << 64) - 1
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

# Our own choice
BACKDATED: Final = 59  # seconds that -V +TIME begins earlier, for clocks that are behind


def sign(options: Options) -> None:
    """Writes a certificate beside each public key of the operands (-s); raises CulvertError."""
    key_id = options.value("I")
    if key_id is None:
        raise UsageError("a certificate needs a name for the logs: -I ID")
    if not options.operands:
        raise UsageError("which public keys are to be signed? Give their files")
    names = options.value("n")
    principals = tuple(names.split(",")) if names else ()
    if "" in principals:
        raise UsageError(f"option -n: an empty name in {names!r}")
    if not principals:
        print("Without -n NAMES the certificate is good for nobody here.", file=sys.stderr)
    certificate_kind = CertType.HOST if "h" in options else CertType.USER
    critical, extensions = _options(options.values("O"), certificate_kind)
    after, before = _validity(options.value("V"), int(time.time()))
    serial, step = _serial(options.value("z") or "0")
    passphrase = options.value("P")
    authority = load_private(
        options.value("s") or "", None if passphrase is None else os.fsencode(passphrase)
    )
    algorithm = options.value("t") or authority.public.signature_algorithms[0]
    if algorithm not in authority.public.signature_algorithms:
        raise UsageError(
            f"option -t: this authority signs {', '.join(authority.public.signature_algorithms)}"
        )
    for path in options.operands:
        key, comment, target = _public_key(path)
        terms = Terms(
            certificate_kind, key_id, principals, serial, after, before, critical, extensions
        )
        try:
            made = issue(authority, algorithm, key, terms, os.urandom(NONCE_BYTES))
            made.permissions()
        except (MalformedMessage, CertificateRefused) as error:
            raise UsageError(f"{path}: such a certificate would be of no use: {error}") from error
        write_whole(target, f"{made.line(comment)}\n".encode(), 0o644, replace=True)
        if "q" not in options:
            print(
                f'Signed {made.terms.kind.name.lower()} key {target}: id "{key_id}" serial {serial}'
                f"{' for ' + ','.join(principals) if principals else ''} valid {_valid(terms)}",
                file=sys.stderr,
            )
        serial += step


def _public_key(path: str) -> tuple[PublicKey, str, str]:
    """Returns key and comment of a .pub file, or of that beside a private key; and the target."""
    beside = f"{path}.pub"
    if not path.endswith(".pub") and os.path.exists(beside):
        path = beside
    try:
        key, comment = load_public_line(read_file(path).decode(errors="replace"))
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error
    return key, comment, f"{path.removesuffix('.pub')}-cert.pub"


def _serial(text: str) -> tuple[int, int]:
    """Returns the first serial, and the step to the next certificate's."""
    digits = text.removeprefix("+")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 20:
        raise UsageError(f"option -z: expected a number, perhaps behind +, not {text!r}")
    if int(digits) > _SERIAL_MAXIMUM:
        raise UsageError(f"option -z: {text} does not fit 64 bits")
    return int(digits), 1 if text.startswith("+") else 0


def _options(
    given: list[str], certificate_kind: CertType
) -> tuple[tuple[tuple[str, bytes], ...], tuple[tuple[str, bytes], ...]]:
    """Returns critical options and extensions; a user's has all permits that -O does not remove."""
    critical: dict[str, bytes] = {}
    extensions: dict[str, bytes] = {}
    if certificate_kind is CertType.USER:
        extensions = dict.fromkeys(PERMITS, b"")
    permits = {name.lower(): name for name in PERMITS}
    for option in given:
        name, equals, value = option.partition("=")
        lower = name.lower()
        place, colon, own = name.partition(":")
        if colon and own and place.lower() in ("critical", "extension"):
            target = critical if place.lower() == "critical" else extensions
            target[own] = text_option(own, value)[1] if equals else b""
        elif certificate_kind is CertType.HOST:
            raise UsageError(f"option -O: {option!r} means nothing to a host's certificate")
        elif lower in (FORCE_COMMAND, SOURCE_ADDRESS) and equals:
            critical[lower] = text_option(lower, value)[1]
        elif equals:
            raise UsageError(f"option -O: {option!r} is not known, or takes no value")
        elif lower == "clear":
            extensions.clear()
        elif lower == VERIFY_REQUIRED:
            critical[lower] = b""
        elif lower == NO_TOUCH_REQUIRED or lower in permits:
            extensions[permits.get(lower, lower)] = b""
        elif f"permit-{lower.removeprefix('no-')}" in permits and lower.startswith("no-"):
            extensions.pop(permits[f"permit-{lower.removeprefix('no-')}"], None)
        else:
            raise UsageError(f"option -O: {option!r} is not known")
    return tuple(critical.items()), tuple(extensions.items())


# -- times -------------------------------------------------------------------------------


def _validity(text: str | None, now: int) -> tuple[int, int]:
    """Returns the first second of -V and the one after the last (ssh-keygen(1))."""
    if text is None:
        return 0, FOREVER
    start, colon, end = text.partition(":")
    if not colon:
        if not text.startswith("+"):
            raise UsageError(f"option -V: expected +TIME or FROM:TO, not {text!r}")
        return now - BACKDATED, _moment(text, now)
    after = 0 if start == "always" else _moment(start, now)
    before = FOREVER if end == "forever" else _moment(end, now)
    if after >= before:
        raise UsageError(f"option -V: {text!r} ends before it begins")
    return after, before


def _moment(text: str, now: int) -> int:
    if text[:1] in ("+", "-"):
        seconds = _duration(text[1:])
        return max(0, now + seconds if text[0] == "+" else now - seconds)
    try:
        return parse_time(text, lambda moment: time.mktime(moment))
    except ValueError as error:
        raise UsageError(f"option -V: a time is {error}, and no +TIME or -TIME") from error


def _duration(text: str) -> int:
    """Seconds of '90', '1h30m' or '52w' (sshd_config(5), TIME FORMATS)."""
    total, digits = 0, ""
    for letter in text.lower():
        if letter.isascii() and letter.isdigit() and len(digits) < 10:
            digits += letter
        elif letter in _UNITS and digits:
            total += int(digits) * _UNITS[letter]
            digits = ""
        else:
            break
    else:
        if text:
            return total + int(digits or 0)
    raise UsageError(f"option -V: expected a time such as 90, 1h30m or 52w, not {text!r}")


def _valid(terms: Terms) -> str:
    """'forever', 'after ...', 'before ...' or 'from ... to ...', in local time."""
    after, before = _date(terms.valid_after), _date(terms.valid_before)
    if terms.valid_before == FOREVER:
        return f"after {after}" if terms.valid_after else "forever"
    return f"from {after} to {before}" if terms.valid_after else f"before {before}"


def _date(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"second {seconds}"  # later than localtime can convert


# -- showing -----------------------------------------------------------------------------


def show(path: str, hash: str) -> None:
    """Prints every certificate of a file (-L)."""
    found = 0
    for line in read_file(path).decode(errors="replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            made, _ = load_offered_line(line)
        except KeyFileError as error:
            raise KeyFileError(f"{path}: {error}") from error
        if isinstance(made, Certificate):
            found += 1
            print("\n".join((f"{path}:", *_description(made, hash))))
    if not found:
        raise UsageError(f"{path}: no certificate is in it")


def _description(made: Certificate, hash: str) -> Iterator[str]:
    terms, authority = made.terms, made.authority
    indent = " " * 8
    yield f"{indent}Type: {made.key_type} {terms.kind.name.lower()} certificate"
    yield f"{indent}Public key: {kind(made)} {made.fingerprint(hash)}"
    yield (
        f"{indent}Signing CA: {kind(authority)} {authority.fingerprint(hash)}"
        f" (using {made.authority_algorithm})"
    )
    yield f'{indent}Key ID: "{_shown(terms.key_id)}"'
    yield f"{indent}Serial: {terms.serial}"
    yield f"{indent}Valid: {_valid(terms)}"
    yield from _list("Principals", map(_shown, terms.principals))
    yield from _list("Critical Options", (_option(*each) for each in terms.critical_options))
    yield from _list("Extensions", (_option(*each) for each in terms.extensions))


def _list(title: str, items: Iterator[str]) -> Iterator[str]:
    lines = [" " * 16 + item for item in items]
    yield " " * 8 + f"{title}: " + ("" if lines else "(none)")
    yield from lines


def _option(name: str, data: bytes) -> str:
    shown = _shown(name)
    if name in (FORCE_COMMAND, SOURCE_ADDRESS) and len(data) > 4:
        return f"{shown} {_shown(data[4:].decode(errors='replace'))}"
    if name in (*PERMITS, VERIFY_REQUIRED, NO_TOUCH_REQUIRED):
        return shown
    return f"{shown} UNKNOWN OPTION: {hexlify(data).decode()} (len {len(data)})"


def _shown(text: str) -> str:
    """Returns an authority's text, made harmless for the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
