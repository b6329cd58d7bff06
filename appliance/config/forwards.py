"""Forwards, in the notation of -L, -R and -D (ssh(1)).

    [address:]port:host:port    [address:]port:/socket
    /socket:host:port           /socket:/socket
    [address:]port  /socket     for -D, and for -R: SOCKS

An IPv6 address stands in brackets. The address ``''`` or ``'*'`` means every address.
"""

from typing import Final, NamedTuple

from .hosts import host_name, port_number

LOCAL: Final = "L"
REMOTE: Final = "R"
DYNAMIC: Final = "D"

_FORMS: Final = {
    LOCAL: "[address:]port:host:port, with /path in place of [address:]port or of host:port",
    REMOTE: "[address:]port:host:port, with /path in place of either half, or the first half",
    DYNAMIC: "[address:]port, or /path",
}


class TcpPlace(NamedTuple):
    """A host and a port; the host is None if none was given."""

    host: str | None
    port: int

    def __str__(self) -> str:
        if self.host is None:
            return str(self.port)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Place = TcpPlace | str  # a str is the path of a Unix-domain socket


class Forward(NamedTuple):
    """The place to listen at, and the target; None if each connection names its own (SOCKS)."""

    direction: str  # LOCAL, REMOTE or DYNAMIC
    listen: Place
    target: Place | None

    def __str__(self) -> str:
        return str(self.listen) + ("" if self.target is None else f":{self.target}")


def forward(direction: str, text: str) -> Forward:
    """Returns the parsed forward; raises ValueError, whose text says what is expected."""
    try:
        if "\0" in text:
            raise ValueError("a NUL")
        listening, target = _halves(_fields(text))
        listen = _listen(listening)
        if isinstance(listen, TcpPlace) and not listen.port and direction != REMOTE:
            raise ValueError("port 0")
        if bool(target) is (direction == DYNAMIC) and direction != REMOTE:
            raise ValueError("a target too many, or none")
        return Forward(direction, listen, _target(target) if target else None)
    except ValueError as error:
        raise ValueError(f"expected {_FORMS[direction]}") from error


def _halves(fields: list[str]) -> tuple[list[str], list[str]]:
    """Returns the fields of the place to listen at, and those of the target, which may be none."""
    if _is_path(fields[0]):
        size = len(fields) - 1
    elif len(fields) > 1 and _is_path(fields[-1]):
        size = 1
    else:
        size = 2 if len(fields) > 2 else 0
    middle = len(fields) - size
    return fields[:middle], fields[middle:]


def _fields(text: str) -> list[str]:
    """Returns the fields between colons; a colon inside brackets separates nothing."""
    fields = []
    rest = text
    while True:
        if rest.startswith("["):
            field, bracket, rest = rest[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")) or _is_path(field):
                raise ValueError("brackets")
            colon, rest = rest[:1], rest[1:]
        else:
            field, colon, rest = rest.partition(":")
        fields.append(field)
        if not colon:
            return fields


def _is_path(text: str) -> bool:
    return text.startswith("/")


def _listen(fields: list[str]) -> Place:
    *hosts, last = fields
    if not hosts and _is_path(last):
        return last
    port = 0 if last == "0" else port_number(last)
    if not hosts:
        return TcpPlace(None, port)
    (host,) = hosts
    return TcpPlace(host if host in ("", "*") else host_name(host), port)


def _target(fields: list[str]) -> Place:
    if len(fields) == 1 and _is_path(fields[0]):
        return fields[0]
    host, port = fields
    return TcpPlace(host_name(host), port_number(port))
