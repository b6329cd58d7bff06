"""The events that operators, and programs that read logs, must be able to find a year later.

Each event is declared below. It is written as a line of the log and, if ``audit_file`` is set, as
one JSON object on a line of that file. The names of events and fields never change; new ones may
be added.

Every object has ``time`` (UTC), ``event`` (the name) and ``pid``. The object of a connection also
has ``connection`` (its number, which the log's lines have, too), ``address``, ``port``,
``local_address`` and ``local_port``, and after the login ``user``. Then come the event's fields, in
the order of their declaration. A field that does not apply is None in the event, and left out of
the object.

In a log line, blanks, quotes and control characters in a word that a peer chose are escaped as in
Python. So the word ends at the next blank, and nothing in it can pass for a line or a field.
conf/fail2ban matches the text of ``refused``.
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
from typing import Any, ClassVar, Final, NamedTuple, dataclass_transform

from ..errors import UsageError
from .peer import Peer

_log = logging.getLogger(__name__)

# Our own choice
SHOWN: Final = 1024  # characters of a peer's text
# Of a user's name: the address stands behind it, and busybox's syslogd cuts a line at 256 bytes.
USER_SHOWN: Final = 100  # bytes


Value = str | int | float | None
Fields = dict[str, Value]


class Key(NamedTuple):
    """The fields for a key; the file shows them among the other fields of the event."""

    key_type: str  # the algorithm of its signature
    key: str  # its SHA256 fingerprint
    certificate: str | None = None  # the certificate's key id
    serial: int | None = None
    ca_type: str | None = None
    ca: str | None = None  # the key that signed the certificate


_WITH: Final = "[ {key_type} {key}][ ID {certificate} (serial {serial}) CA {ca_type} {ca}]"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """The base of all events; a subclass annotates its fields, which are given by keyword.

    ``text`` is the template of the log line, which may name the connection's fields, too. A part in
    brackets is left out if a field in it is None.
    """

    name: ClassVar[str]
    text: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    def __init__(self, **fields: Any) -> None:  # far cheaper to import than twenty dataclasses
        names = type(self).__annotations__
        if fields.keys() != names.keys():
            raise TypeError(f"{self.name} has the fields {', '.join(names)}")
        self.__dict__.update((name, fields[name]) for name in names)

    def fields(self) -> Fields:
        """The event's own fields by their names in the file; those of a Key are among them."""
        told: Fields = {}
        for name, value in vars(self).items():
            told |= value._asdict() if isinstance(value, Key) else {name: value}
        return told


class Started(Event):
    name = "started"
    text = "Culvert {version} started"
    version: str


class Listening(Event):
    name = "listening"
    text = "listening on {local_address} port {local_port}"
    local_address: str
    local_port: int


class Reloaded(Event):
    name = "reloaded"
    text = "the settings are read again"


class NotReloaded(Event):
    name = "not_reloaded"
    text = "the settings stay as they were: {reason}"
    level = logging.ERROR
    reason: str


class Stopped(Event):  # connections go on
    name = "stopped"
    text = "stopped listening"


class Dropped(Event):
    name = "dropped"
    text = "connection from {address} dropped: {reason}[, and {others} more]"
    address: str
    reason: str  # too many start-ups, a penalty, no process
    others: int | None  # also dropped since the last such line; there is at most one a second


class Penalty(Event):
    name = "penalty"
    text = "{address} is refused for a while: {reason} ({network})"
    level = logging.WARNING
    address: str
    network: str  # that is refused: the address alone, or a block around it
    reason: str  # how its last connection ended


class Connected(Event):
    name = "connected"
    text = "connection from {address} port {port}"


class Late(Event):
    name = "late"
    text = "no login from {address} within {grace_time} s"
    grace_time: int  # seconds


class Refused(Event):
    name = "refused"
    text = "user {user} from {address} port {port} refused: {method}: {reason}" + _WITH
    user: str
    method: str
    reason: str
    with_key: Key | None


class Partial(Event):  # the login takes one more method
    name = "partial"
    text = (
        "user {user} from {address} port {port}: {method}" + _WITH + " accepted, one more required"
    )
    user: str
    method: str
    with_key: Key | None


class Login(Event):
    name = "login"
    text = "user {user} logged in from {address} port {port} with {method}" + _WITH
    user: str
    method: str
    with_key: Key | None


class Session(Event):
    name = "session"
    text = "user {user}: {kind}[ on {terminal}][: {command}]"
    kind: str  # shell, exec, subsystem
    terminal: str | None  # the device's name
    command: str | None  # if audit_commands is set


class Forward(Event):
    name = "forward"
    text = "user {user}: {kind} {place} opened"
    kind: str  # such as direct-tcpip
    place: str  # the address or path that was connected to or listened on


class ForwardRefused(Event):
    name = "forward_refused"
    text = "user {user}: {kind} {place} refused: {reason}"
    kind: str
    place: str
    reason: str


class ForwardClosed(Event):
    name = "forward_closed"
    text = "user {user}: {kind} {place} closed"
    kind: str
    place: str  # the address or path that is no longer listened on


class File(Event):  # if audit_files is set
    name = "file"
    text = "user {user}: {operation} {path}[ {target}][ failed: {reason}], by the {source}'s report"
    operation: str  # write, setstat, remove, mkdir, rmdir, rename, symlink, hardlink, ...-xattr
    path: str  # as the client gave it
    target: str | None  # the new name of rename and hardlink, the path of a symlink, an xattr
    reason: str | None  # of a failure
    source: str  # the program that says so; it is the user's


class Tunnel(Event):
    name = "tunnel"
    text = "user {user}: tunnel device {device} opened"
    device: str


class TunnelRefused(Event):
    name = "tunnel_refused"
    text = "user {user}: tunnel device {device} refused: {reason}"
    device: str
    reason: str


class TunnelClosed(Event):
    name = "tunnel_closed"
    text = "user {user}: tunnel device {device} closed"
    device: str


class Disconnected(Event):
    name = "disconnected"
    text = (
        "disconnected from {address} port {port} after {seconds} s: {reason}"
        "[, {received} bytes in][, {sent} bytes out]"
    )
    seconds: float
    reason: str
    received: int | None  # bytes on the wire, None if the worker was killed
    sent: int | None


_PLAIN: Final = ("reason",)  # texts of our own, which may have blanks
_QUOTED: Final = ("command",)  # a peer's texts, which keep their blanks to be readable

_file: int | None = None
_everywhere: dict[str, Any] = {}
_held: list[tuple[Event, Fields]] | None = None


def open_file(path: str) -> None:
    """Writes events to this file from now on, to none if ``path`` is ''; raises UsageError.

    Called again after a log rotation; processes that were forked before keep the old file.
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
    """Closes the file; a worker does this first, because it writes no events."""
    global _file
    if _file is not None:
        os.close(_file)
        _file = None


def descriptors() -> set[int]:
    """The audit file's descriptor, for a new process that closes all other descriptors."""
    return set() if _file is None else {_file}


def serve_connection(number: int, peer: Peer) -> None:
    """Adds the connection's number and addresses to every event from now on."""
    _everywhere.update(
        connection=number,
        address=peer.address,
        port=peer.port,
        local_address=peer.local_address,
        local_port=peer.local_port,
    )


def serve_user(name: str) -> None:
    """Adds the logged-in user to every event from now on."""
    _everywhere["user"] = name


def write(event: Event) -> None:
    """Writes an event, with the fields of the connection and the user."""
    told = _everywhere | event.fields()
    if _held is None:
        _write(event, told)
    else:
        _held.append((event, told))


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Holds events back until the context ends, so that a worker does not wait for the log."""
    global _held
    events: list[tuple[Event, Fields]] = []
    _held = events
    try:
        yield
    finally:
        _held = None
        for event, told in events:
            _write(event, told)


def _write(event: Event, told: Fields) -> None:
    _log.log(event.level, "%s", _text(event.text, told))
    if _file is not None:
        seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        line = {"time": f"{moment}.{milliseconds:03d}Z", "event": event.name, "pid": os.getpid()}
        line |= {key: value for key, value in told.items() if value is not None}
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


def of_key(algorithm: str, blob: bytes) -> Key:
    """The fields for a key that a client offered; ``blob`` may be any bytes."""
    digest = b2a_base64(hashlib.sha256(blob).digest(), newline=False).rstrip(b"=")
    return Key(algorithm, f"SHA256:{digest.decode()}")


def word(text: str) -> str:
    """A peer's text as one word that holds no blank, quote, backslash or control character."""
    return _harmless(text, " \\'\"") or "''"


def _harmless(text: str, without: str) -> str:
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return "".join(c if c.isprintable() and c not in without else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\U{number:08x}"
