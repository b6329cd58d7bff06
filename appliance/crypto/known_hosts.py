"""known_hosts: which keys a host is known by, and whether to trust the key it shows (sshd(8)).

A line is ``[@marker] hosts type base64 [comment]``. ``hosts`` is a comma list of names and
wildcards, or one name hashed as ``|1|salt|HMAC-SHA1(salt, name)``. A host on another port
than 22 is called ``[host]:port``; if no key is known under that name, a key known under the
bare name is trusted, too, as with OpenSSH. This module works on the text of the files; the
client reads and writes the files.

    decision   what is known of the host               what the client does
    TRUSTED    this very key                           goes on
    UNKNOWN    no key                                  asks, or adds the key, or refuses
    CHANGED    only other keys, of any type            refuses, and names the line
    REVOKED    this key, behind @revoked               refuses
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple

from ..errors import MalformedMessage, UsageError
from .keys import PublicKey, load_public_key
from .patterns import matches_list

# Of OpenSSH
SSH_PORT: Final = 22
SALT_BYTES: Final = 20
_HASH_MAGIC: Final = "|1|"
AUTHORITY: Final = "@cert-authority"
_REVOKED: Final = "@revoked"


class Decision(Enum):
    """The decision about the key that a host has shown."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class KnownKey(NamedTuple):
    """A key and the number of the line that it stands in, counted from 1."""

    key: PublicKey
    line_number: int


class Line(NamedTuple):
    """One line of a file; a blank or a comment has neither hosts nor a mistake."""

    text: str
    number: int
    marker: str = ""
    hosts: str = ""
    key_type: str = ""
    encoded: str = ""
    comment: str = ""
    mistake: str = ""

    def load(self) -> PublicKey:
        """The line's key; raises MalformedMessage. Called on demand: few lines' keys are needed."""
        try:
            key = load_public_key(a2b_base64(self.encoded.encode(), strict_mode=True))
        except (Base64Error, UnicodeEncodeError) as error:
            raise MalformedMessage("its key is not base64") from error
        if key.key_type != self.key_type:
            raise MalformedMessage("its key is of another type than it says")
        return key


def host_name(host: str, port: int) -> str:
    """The name of a host in known_hosts: '[host]:port' unless the port is 22."""
    host = host.lower()
    return host if port == SSH_PORT else f"[{host}]:{port}"


class Lookup:
    """The keys of one host in one or several files; ``+`` merges files."""

    __slots__ = ("authorities", "bare_keys", "ignored", "keys", "name", "revoked")

    def __init__(self, name: str) -> None:
        self.name = name  # as known_hosts calls the host
        self.keys: tuple[KnownKey, ...] = ()  # under that name
        self.bare_keys: tuple[KnownKey, ...] = ()  # under the name without the port
        self.authorities: tuple[KnownKey, ...] = ()
        self.revoked: tuple[KnownKey, ...] = ()
        self.ignored: tuple[tuple[int, str], ...] = ()  # line number and reason

    def __add__(self, other: Lookup) -> Lookup:
        both = Lookup(self.name)
        both.keys = self.keys + other.keys
        both.bare_keys = self.bare_keys + other.bare_keys
        both.authorities = self.authorities + other.authorities
        both.revoked = self.revoked + other.revoked
        both.ignored = self.ignored + other.ignored
        return both

    @property
    def key_types(self) -> tuple[str, ...]:
        """The key types that the host is known by; a client asks for these first."""
        known = self.keys or self.bare_keys
        return tuple(dict.fromkeys(each.key.key_type for each in known))

    def decide(self, key: PublicKey) -> Decision:
        """The decision about ``key``, which the host has shown."""
        if any(each.key == key for each in self.revoked):
            return Decision.REVOKED
        if any(each.key == key for each in self.keys):
            return Decision.TRUSTED
        if self.keys:
            return Decision.CHANGED
        if any(each.key == key for each in self.bare_keys):
            return Decision.TRUSTED
        return Decision.UNKNOWN

    def offending(self, key: PublicKey) -> KnownKey | None:
        """The key whose line to name when ``key`` is CHANGED: of the same type, else the first."""
        same = [each for each in self.keys if each.key.key_type == key.key_type]
        return next(iter([*same, *self.keys]), None)


def lookup(text: str, host: str, port: int, address: str | None = None) -> Lookup:
    """The keys of a host in a file's text.

    ``address`` is the IP address at which the host was reached; it counts only for @revoked,
    since people trust names. Pass a HostKeyAlias as ``host`` with port 22. Lines that cannot
    be read are listed in ``ignored``.
    """
    found = Lookup(host_name(host, port))
    bare = host.lower()
    others = {address.lower(), host_name(address, port)} if address else set()
    keys: list[KnownKey] = []
    bare_keys: list[KnownKey] = []
    authorities: list[KnownKey] = []
    revoked: list[KnownKey] = []
    ignored: list[tuple[int, str]] = []
    for line in parse(text):
        if line.mistake:
            ignored.append((line.number, line.mistake))
        if not line.hosts:
            continue
        if matches_host(line.hosts, found.name):
            place = keys
        elif bare != found.name and matches_host(line.hosts, bare):
            place = bare_keys
        elif line.marker == _REVOKED and any(matches_host(line.hosts, name) for name in others):
            place = revoked
        else:
            continue
        if line.marker:
            place = revoked if line.marker == _REVOKED else authorities
        try:
            place.append(KnownKey(line.load(), line.number))
        except MalformedMessage as error:
            ignored.append((line.number, str(error)))
    found.keys = tuple(keys)
    found.bare_keys = tuple(bare_keys)
    found.authorities = tuple(authorities)
    found.revoked = tuple(revoked)
    found.ignored = tuple(ignored)
    return found


def parse(text: str) -> Iterator[Line]:
    """Every line of a file's text, in order."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield _parse_line(line, number)


def _parse_line(line: str, number: int) -> Line:
    rest = line.strip(" \t\r")
    if not rest or rest.startswith("#"):
        return Line(line, number)
    marker = ""
    if rest.startswith("@"):
        marker, *more = rest.split(None, 1)
        if marker not in (AUTHORITY, _REVOKED):
            return Line(line, number, mistake=f"the marker {marker!r} is not known")
        rest = "".join(more)
    words = rest.split(None, 3)
    if len(words) < 3:
        return Line(line, number, mistake="it lacks a host, a key type or a key")
    return Line(line, number, marker, *words)


def matches_host(hosts: str, name: str) -> bool:
    """Whether ``hosts``, of a line, cover the host of this name (see ``host_name``)."""
    if not hosts.startswith("|"):
        return matches_list(name, hosts.lower()) is True
    if not hosts.startswith(_HASH_MAGIC):
        return False
    salt, _, digest = hosts[len(_HASH_MAGIC) :].partition("|")
    try:
        return _hashed(name, a2b_base64(salt)) == a2b_base64(digest)
    except (Base64Error, ValueError):
        return False


def _hashed(name: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.hmac import HMAC

    context = HMAC(salt, SHA1())  # the format's choice: it hides names, and proves nothing
    context.update(name.encode(errors="surrogateescape"))
    return context.finalize()


def hash_host(name: str, salt: bytes) -> str:
    """The hashed form of a name; ``salt`` is SALT_BYTES random bytes."""
    both = (b2a_base64(part, newline=False).decode() for part in (salt, _hashed(name, salt)))
    return _HASH_MAGIC + "|".join(both)


def add_line(host: str, port: int, key: PublicKey, hashed: bool = False, salt: bytes = b"") -> str:
    """The line, without its end, that makes ``key`` known for the host.

    Raises UsageError for a name that would match other hosts as well.
    """
    name = host_name(host, port)
    if hashed:
        return f"{hash_host(name, salt)} {key.line()}"
    if not host or any(c in ",*?!|#@" or c.isspace() or not c.isprintable() for c in host):
        raise UsageError(f"the host name {host!r} cannot be written to a known_hosts file")
    return f"{name} {key.line()}"


def update(
    text: str, host: str, port: int, keys: Sequence[PublicKey], hashed: bool, salts: Iterator[bytes]
) -> str | None:
    """The text, changed so that the host is known by exactly ``keys``; None to leave it unchanged.

    None if the host shares a line with others, by a list or a wildcard, or is not known at all.
    Each of ``salts`` is SALT_BYTES random bytes.
    """
    name = host_name(host, port)
    kept: list[str] = []
    known: list[PublicKey] = []
    at = None
    for line in parse(text):
        if not line.hosts or line.marker or not matches_host(line.hosts, name):
            kept.append(line.text)
            continue
        if line.hosts.lower() != name and not line.hosts.startswith(_HASH_MAGIC):
            return None
        try:
            key = line.load()
        except MalformedMessage:
            return None
        if key in keys:
            kept.append(line.text)
            known.append(key)
        at = len(kept)
    if at is None:
        return None
    new = [add_line(host, port, key, hashed, next(salts)) for key in keys if key not in known]
    return "".join(line + "\n" for line in [*kept[:at], *new, *kept[at:]])


def remove(text: str, host: str, port: int) -> tuple[str, tuple[Line, ...]]:
    """The text without the host's keys, and the removed lines; lines with a marker stay.

    Without its line, a key behind @revoked would be accepted again.
    """
    name = host_name(host, port)
    kept: list[str] = []
    removed: list[Line] = []
    for line in parse(text):
        if line.hosts and not line.marker and matches_host(line.hosts, name):
            removed.append(line)
        else:
            kept.append(line.text + "\n")
    return "".join(kept), tuple(removed)
