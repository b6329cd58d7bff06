"""authorized_keys: which keys may log in, and what each of them may do (sshd(8)).

A line is ``[options] type base64 [comment]``. The options are separated by commas, and the first
blank outside double quotes ends them. A line may have any length. A line with anything that is not
understood lets nobody in: an unknown option may be a restriction, and to ignore it would grant
more than its author meant. The same holds for a restriction that cannot take effect on its line.
Every such line is named in the log once.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from ..config.hosts import endpoint
from ..errors import MalformedMessage
from .keys import SIGNATURE_ALGORITHMS, SK_ECDSA, SK_ED25519, PublicKey, load_public_key
from .permissions import TUNNEL_ANY, Permissions
from .sources import sources

Parsed = TypeVar("Parsed")  # what a line is parsed into
LocalTime = Callable[[tuple[int, int, int, int, int, int, int, int, int]], float]

# Of OpenSSH
_TUNNEL_MAXIMUM: Final = TUNNEL_ANY - 2
_KEY_TYPES: Final = frozenset(SIGNATURE_ALGORITHMS.values())
_SECURITY_KEYS: Final = (SK_ED25519, SK_ECDSA)
# The characters of a pattern for IPv4 addresses, and of one for IPv6, which has a colon.
_OF_ADDRESSES: Final = (frozenset("0123456789.*?"), frozenset("0123456789abcdefABCDEF:.*?"))

# Our own choices
FORWARDS_LIMIT: Final = 1000  # permitopen options of a line, and as many permitlisten
LOG_LIMIT: Final = 20  # lines about one file: its owner must not be able to flood the log


class Entry(NamedTuple):
    """A line whose key may log in, if its ``from_patterns`` and ``expires`` allow it.

    With ``is_authority`` the key itself cannot log in but signs certificates. Such a certificate
    must name one of ``principals``, unless these are None.
    """

    key: PublicKey
    options: Permissions
    comment: str
    line_number: int
    is_authority: bool = False
    principals: tuple[str, ...] | None = None


class _BadLine(Exception):
    """A line that is refused; the text says why."""


def parse(
    data: bytes, log: Callable[[str], None], local_time: LocalTime | None = None
) -> Iterator[Entry]:
    """The usable entries of a file, in order; ``log`` is called with a text for each refused line.

    ``local_time`` is time.mktime, for an expiry-time that does not end in Z. Without it such a
    time counts as UTC. The caller limits the size of the file.
    """
    return _parse_lines(data, log, local_time, _parse_line)


def parse_principals(
    data: bytes, log: Callable[[str], None], local_time: LocalTime | None = None
) -> Iterator[tuple[str, Permissions]]:
    """The names of an AuthorizedPrincipalsFile, each with the options in front of it.

    As ``parse``: a line with a mistake admits nobody (sshd_config(5)).
    """
    return _parse_lines(data, log, local_time, _parse_principal)


def _parse_lines(
    data: bytes,
    log: Callable[[str], None],
    local_time: LocalTime | None,
    parse_line: Callable[[str, int, LocalTime | None], Parsed],
) -> Iterator[Parsed]:
    complaints = 0
    for line_number, raw in enumerate(data.split(b"\n"), 1):
        # Bytes that are not UTF-8 stay as they are in a command or comment.
        line = raw.decode(errors="surrogateescape").strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        try:
            yield parse_line(line, line_number, local_time)
        except _BadLine as error:
            complaints += 1
            if complaints <= LOG_LIMIT:
                log(f"line {line_number}: {error}, so this key is refused")
    if complaints > LOG_LIMIT:
        log(f"{complaints - LOG_LIMIT} more lines with mistakes")


def _parse_line(line: str, line_number: int, local_time: LocalTime | None) -> Entry:
    if "\0" in line:
        raise _BadLine("it holds a NUL byte")
    options = _Options(Permissions())
    first, _, rest = line.replace("\t", " ").partition(" ")
    if first not in _KEY_TYPES:
        if rest.lstrip().startswith("AAAA") and first.startswith(("ssh-", "ecdsa-", "sk-")):
            raise _BadLine(f"keys of type {_shown(first)} are not supported")
        end = _end_of_options(line)
        options = _parse_options(line[:end], local_time)
        line = line[end:].lstrip(" \t")
    words = line.split(None, 2)
    if len(words) < 2:
        raise _BadLine("it holds no key")
    try:
        key = load_public_key(a2b_base64(words[1].encode(), strict_mode=True))
    except (Base64Error, UnicodeEncodeError) as error:
        raise _BadLine("its key is not base64") from error
    except MalformedMessage as error:
        raise _BadLine(str(error)) from error
    if key.key_type != words[0]:
        raise _BadLine(f"it says {_shown(words[0])} before a key of type {key.key_type}")
    if not options.is_authority:
        if options.principals is not None:
            raise _BadLine("option 'principals' is for a cert-authority")
        if options.permissions.verify_required and key.key_type not in _SECURITY_KEYS:
            raise _BadLine("option 'verify-required' is for a security key")
    comment = words[2] if len(words) > 2 else ""
    authority = options.is_authority, options.principals
    return Entry(key, options.permissions, comment, line_number, *authority)


def _parse_principal(
    line: str, line_number: int, local_time: LocalTime | None
) -> tuple[str, Permissions]:
    end = _end_of_options(line)
    if end == len(line):
        return line, Permissions()
    principal = line[end:].strip(" \t")
    if "\0" in line or " " in principal or "\t" in principal:
        raise _BadLine("it is not one principal with options in front")
    options = _parse_options(line[:end], local_time)
    if options.is_authority or options.principals is not None:
        raise _BadLine("options 'cert-authority' and 'principals' are for authorized_keys")
    return principal, options.permissions


def _shown(text: str) -> str:
    """Text of the file, shortened and without characters that could harm a log."""
    safe = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return f"'{safe[:40]}{'...' if len(safe) > 40 else ''}'"


def _end_of_options(line: str) -> int:
    """The index of the first blank outside quotes, or the end of the line."""
    quoted = False
    at = 0
    while at < len(line) and (quoted or line[at] not in " \t"):
        if line[at : at + 2] == '\\"':
            at += 1
        elif line[at] == '"':
            quoted = not quoted
        at += 1
    if quoted:
        raise _BadLine("a quote is not closed")
    return at


def _split_options(text: str) -> Iterator[tuple[str, str | None]]:
    """Pairs of lower-case name and unquoted value, None where there is no '='."""
    at = 0
    while True:
        start = at
        while at < len(text) and text[at] not in ',="':
            at += 1
        name = text[start:at].lower()
        value = None
        if text[at : at + 1] == "=":
            if text[at + 1 : at + 2] != '"':
                raise _BadLine(f"the value of option {_shown(name)} is not in double quotes")
            at += 2
            characters = []
            while text[at] != '"':  # _end_of_options has made sure that there is one
                if text[at : at + 2] == '\\"':
                    at += 1
                characters.append(text[at])
                at += 1
                if at == len(text):
                    raise _BadLine(f"the value of option {_shown(name)} is not closed")
            at += 1
            value = "".join(characters)
        if not name:
            raise _BadLine("an option has no name")
        yield name, value
        if at == len(text):
            return
        if text[at] != ",":
            raise _BadLine(f"option {_shown(name)} is followed by {_shown(text[at:])}")
        at += 1


_FLAGS: Final = {
    "pty": "pty",
    "port-forwarding": "port_forwarding",
    "agent-forwarding": "agent_forwarding",
    "x11-forwarding": "x11_forwarding",
    "user-rc": "user_rc",
}


class _Options(NamedTuple):
    """The options in front of a key."""

    permissions: Permissions
    is_authority: bool = False
    principals: tuple[str, ...] | None = None


def _parse_options(text: str, local_time: LocalTime | None) -> _Options:
    """Reads options from left to right: one behind ``restrict`` may grant something again."""
    fields: dict[str, Any] = {}
    restricted = is_authority = False
    principals: tuple[str, ...] | None = None
    for name, value in _split_options(text):
        if value is None:
            flag = _FLAGS.get(name.removeprefix("no-"))
            if flag:
                fields[flag] = not name.startswith("no-")
            elif name == "restrict":
                restricted = True
                fields.update(dict.fromkeys(_FLAGS.values(), False))
            elif name == "no-touch-required":
                fields["touch_required"] = False
            elif name == "verify-required":
                fields["verify_required"] = True
            elif name == "cert-authority":
                is_authority = True
            else:
                raise _BadLine(f"option {_shown(name)} is not supported")
        elif name == "command":
            if name in fields:
                raise _BadLine("it has more than one option 'command'")
            fields["command"] = value
        elif name == "environment":
            fields[name] = _add_variable(fields.get(name, ()), value)
        elif name == "from":
            if "from_patterns" in fields:
                raise _BadLine("it has more than one option 'from'")
            try:
                origins = list(sources(value))
            except ValueError as error:
                raise _BadLine(f"option 'from' holds {_shown(str(error))}") from error
            for negated, pattern, network in origins:
                if (
                    negated
                    and network is None
                    and not set(pattern) <= _OF_ADDRESSES[":" in pattern]
                ):
                    raise _BadLine(
                        f"option 'from' excludes {_shown(pattern)}: no names are looked up"
                    )
            fields["from_patterns"] = (value,)
        elif name == "expiry-time":
            try:
                expires = parse_time(value, local_time)
            except ValueError as error:
                raise _BadLine(f"option 'expiry-time' is {error}") from error
            fields["expires"] = min(expires, fields.get("expires", expires))
        elif name == "tunnel":
            fields["tunnel"] = _parse_unit(value)
        elif name in _FORWARDS:
            pairs = fields.setdefault(_FORWARDS[name], [])
            if len(pairs) == FORWARDS_LIMIT:
                raise _BadLine(f"it has more than {FORWARDS_LIMIT} options {_shown(name)}")
            pairs.append(_parse_forward(name, value))
        elif name == "principals":
            if principals is not None:
                raise _BadLine("it has more than one option 'principals'")
            principals = tuple(filter(None, value.split(",")))
        else:
            raise _BadLine(f"option {_shown(name)} is not supported")
    # 'port-forwarding' behind 'restrict' allows no tunnel, because that reaches a whole network.
    open_to_all = fields.get("port_forwarding", True) and not restricted
    for name in _FORWARDS.values():
        if name in fields:
            fields[name] = tuple(fields[name])
    permissions = Permissions(**fields, tunnel_allowed=open_to_all or "tunnel" in fields)
    return _Options(permissions, is_authority, principals)


def _add_variable(
    environment: tuple[tuple[str, str], ...], text: str
) -> tuple[tuple[str, str], ...]:
    """Adds a variable; its first value stays, as with OpenSSH."""
    name, equals, value = text.partition("=")
    if not equals or not name.isascii() or not name.replace("_", "a").isalnum():
        raise _BadLine(f"option 'environment' is not NAME=value but {_shown(text)}")
    if any(name == known for known, _ in environment):
        return environment
    return (*environment, (name, value))


def _parse_unit(text: str) -> int:
    if text.lower() == "any":
        return TUNNEL_ANY
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > _TUNNEL_MAXIMUM:
        raise _BadLine(f"option 'tunnel' is not the number of a device but {_shown(text)}")
    return int(text)


_FORWARDS: Final = {"permitopen": "permit_open", "permitlisten": "permit_listen"}


def _parse_forward(name: str, text: str) -> tuple[str, int]:
    """Host and port of 'host:port' or '[address]:port'; permitlisten may leave the host out."""
    is_port_alone = name == "permitlisten" and ":" not in text
    try:
        return endpoint(f"*:{text}" if is_port_alone else text)
    except ValueError as error:
        form = "[host:]port" if name == "permitlisten" else "host:port"
        raise _BadLine(f"option '{name}' is not {form} but {_shown(text)}") from error


def parse_time(text: str, local_time: LocalTime | None) -> int:
    """Seconds since 1970 of YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with Z behind it for UTC.

    Raises ValueError. Without ``local_time`` every time counts as UTC.
    """
    from datetime import UTC, datetime

    digits = text[:-1] if text[-1:] in ("Z", "z") else text
    mistake = ValueError(f"not YYYYMMDD[HHMM[SS]][Z] but {_shown(text)}")
    if len(digits) not in (8, 12, 14) or not digits.isascii() or not digits.isdigit():
        raise mistake
    full = digits.ljust(14, "0")
    month, day, hour, minute, second = (int(full[at : at + 2]) for at in range(4, 14, 2))
    try:
        moment = datetime(int(full[:4]), month, day, hour, minute, second, tzinfo=UTC)
        if digits != text or local_time is None:
            seconds = int(moment.timestamp())
        else:
            seconds = int(local_time((*moment.timetuple()[:8], -1)))
    except (ValueError, OverflowError) as error:
        raise mistake from error
    if seconds <= 0:
        raise mistake
    return seconds
