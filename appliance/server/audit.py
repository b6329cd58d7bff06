"""What an operator, and a program that reads logs, must be able to find a year later.

Each fact is one event: a line of the log, and where ``audit_file`` names a file, one JSON object on
a line there. Its name and its fields stay as they are in this table; more may be added.

    event            fields
    started          version
    listening        local_address, local_port
    reloaded
    not_reloaded     reason; the settings are those of before
    stopped          connections live on
    dropped          address, reason: too many start-ups, a penalty, no process; and others: how
                     many more since the last such line, which comes once a second at most
    penalty          address, reason: how its last connection ended; and network: what is refused
                     for a while, the address alone or with others
    connected
    late             grace_time: seconds in which nobody logged in
    refused          user, method, reason, key_type, key, certificate, serial, ca_type, ca
    partial          user, method, key_type, key, certificate, serial, ca_type, ca; one more method
                     is wanted
    login            user, method, key_type, key, certificate, serial, ca_type, ca
    session          kind (shell, exec, subsystem), terminal (its name), and command if
                     audit_commands is set
    forward          kind (such as direct-tcpip), place: what was connected to or listened on
    forward_refused  kind, place, reason
    forward_closed   kind, place: what was listened on, and is no longer
    tunnel           device
    tunnel_refused   device, reason
    tunnel_closed    device
    disconnected     seconds, reason, and received, sent: bytes on the wire, unless the worker was
                     killed

Every object has ``time`` (UTC), ``event`` and ``pid``, those of a connection ``connection`` (its
number, which stands in the log's lines, too), ``address``, ``port``, ``local_address`` and
``local_port``, and after the login ``user``. ``key`` is a SHA256 fingerprint, ``key_type`` the
algorithm of its signature, ``certificate`` a key id, ``ca`` the key of who signed it. What does not
apply is left out.

In the log, a word that a peer chose stands without blanks, quotes and control characters, which
are escaped as in Python: it ends where the next blank is, and nothing in it can pass for a line or
a field. The pattern of ``refused`` is what conf/fail2ban looks for.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import time
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ..errors import UsageError
from .peer import Peer

_log = logging.getLogger(__name__)

# Our own choice
SHOWN: Final = 1024  # characters of a peer's text
# Of a user's name: the address stands behind it, and busybox's syslogd cuts a line at 256 bytes.
USER_SHOWN: Final = 100  # bytes


Value = str | int | float | None
Fields = dict[str, Value]


class _Kind(NamedTuple):
    """How a fact is told: what stands in brackets is left out when a field in it is None."""

    text: str
    level: int = logging.INFO


_WITH: Final = "[ {key_type} {key}][ ID {certificate} (serial {serial}) CA {ca_type} {ca}]"

EVENTS: Final[dict[str, _Kind]] = {
    "started": _Kind("Culvert {version} started"),
    "listening": _Kind("listening on {local_address} port {local_port}"),
    "reloaded": _Kind("the settings are read again"),
    "not_reloaded": _Kind("the settings stay as they were: {reason}", logging.ERROR),
    "stopped": _Kind("stopped listening"),
    "dropped": _Kind("connection from {address} dropped: {reason}[, and {others} more]"),
    "penalty": _Kind("{address} is refused for a while: {reason} ({network})", logging.WARNING),
    "connected": _Kind("connection from {address} port {port}"),
    "late": _Kind("no login from {address} within {grace_time} s"),
    "refused": _Kind("user {user} from {address} port {port} refused: {method}: {reason}" + _WITH),
    "partial": _Kind(
        "user {user} from {address} port {port}: {method}" + _WITH + " accepted, one more required"
    ),
    "login": _Kind("user {user} logged in from {address} port {port} with {method}" + _WITH),
    "session": _Kind("user {user}: {kind}[ on {terminal}][: {command}]"),
    "forward": _Kind("user {user}: {kind} {place} opened"),
    "forward_refused": _Kind("user {user}: {kind} {place} refused: {reason}"),
    "forward_closed": _Kind("user {user}: {kind} {place} closed"),
    "tunnel": _Kind("user {user}: tunnel device {device} opened"),
    "tunnel_refused": _Kind("user {user}: tunnel device {device} refused: {reason}"),
    "tunnel_closed": _Kind("user {user}: tunnel device {device} closed"),
    "disconnected": _Kind(
        "disconnected from {address} port {port} after {seconds} s: {reason}"
        "[, {received} bytes in][, {sent} bytes out]"
    ),
}

_PLAIN: Final = ("reason",)  # texts of our own, which may have blanks
_QUOTED: Final = ("command",)  # texts of a peer's that would be hard to read without blanks

_file: int | None = None
_everywhere: dict[str, Any] = {}
_held: list[tuple[str, Fields]] | None = None


def open_file(path: str) -> None:
    """Write events to this file from now on, to none if it is ''; raises UsageError.

    Also after a log was rotated: what was forked before keeps the old file.
    """
    global _file
    opened = None
    if path:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"audit_file {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise UsageError(f"audit_file {path} is not a regular file")
    close_file()
    _file = opened


def close_file() -> None:
    """Write no more events to a file: a worker has nothing to do with it."""
    global _file
    if _file is not None:
        os.close(_file)
        _file = None


def descriptors() -> set[int]:
    """What events are written to, for who closes all other descriptors."""
    return set() if _file is None else {_file}


def serve_connection(number: int, peer: Peer) -> None:
    """Have every event from now on name this connection."""
    _everywhere.update(
        connection=number,
        address=peer.address,
        port=peer.port,
        local_address=peer.local_address,
        local_port=peer.local_port,
    )


def serve_user(name: str) -> None:
    """Have every event from now on name who is logged in."""
    _everywhere["user"] = name


def event(name: str, **fields: Value) -> None:
    """Write down a fact of ``EVENTS``; what a connection knows by itself need not be given."""
    told = _everywhere | fields
    if _held is None:
        _write(name, told)
    else:
        _held.append((name, told))


@contextlib.contextmanager
def held() -> Iterator[None]:
    """What happens in here is written down at the end, so that nobody waits for the log."""
    global _held
    events: list[tuple[str, Fields]] = []
    _held = events
    try:
        yield
    finally:
        _held = None
        for name, told in events:
            _write(name, told)


def _write(name: str, told: Fields) -> None:
    kind = EVENTS[name]
    _log.log(kind.level, "%s", _text(kind.text, told))
    if _file is not None:
        seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        line = {"time": f"{moment}.{milliseconds:03d}Z", "event": name, "pid": os.getpid()} | told
        line = {key: value for key, value in line.items() if value is not None}
        try:
            os.write(_file, json.dumps(line).encode() + b"\n")
        except OSError as error:
            _log.error("audit file: %s", error.strerror)


def _text(template: str, fields: dict[str, Any]) -> str:
    def optional(match: re.Match[str]) -> str:
        names = re.findall(r"{(\w+)}", match[1])
        return match[1] if all(fields.get(name) is not None for name in names) else ""

    template = re.sub(r"\[([^\]]*)\]", optional, template)
    return re.sub(r"{(\w+)}", lambda match: _shown(match[1], fields.get(match[1])), template)


def _shown(name: str, value: object) -> str:
    text = str(value)
    if name == "user":
        shown = word(text).encode()
        cut = shown[:USER_SHOWN].decode(errors="ignore")
        return cut if len(shown) <= USER_SHOWN else f"{cut}..."
    if name in _PLAIN:
        return _harmless(text, "\\")
    return f'"{_harmless(text, chr(92) + chr(34))}"' if name in _QUOTED else word(text)


def of_key(algorithm: str, blob: bytes) -> Fields:
    """The fields for a key that a client named, whatever it is."""
    digest = b2a_base64(hashlib.sha256(blob).digest(), newline=False).rstrip(b"=")
    return {"key_type": algorithm, "key": f"SHA256:{digest.decode()}"}


def word(text: str) -> str:
    """A peer's text as one word that holds no blank, quote, backslash or control character."""
    return _harmless(text, " \\'\"") or "''"


def _harmless(text: str, without: str) -> str:
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return "".join(c if c.isprintable() and c not in without else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\U{number:08x}"
