"""Hosts, users and proxies as people write them, on the command line and in files.

Every value is checked before other code sees it, because it becomes an argument or a part of a
command line. An error is a ValueError whose text says what is expected; the text never repeats
the value, which may contain a password.
"""

import re
from typing import Final, NamedTuple

# The characters that OpenSSH refuses in names (ssh.c, valid_hostname and valid_ruser), and the
# others that are special to a shell.
_SPECIAL: Final = "'\"`$\\;&<>|(){}*?!#~,"
_PROXY: Final = re.compile(
    r"(?P<scheme>http|socks5)://"
    r"(?:(?P<user>[^:@/\s]+):(?P<password>[^:@/\s]*)@)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:@/\[\]]+):(?P<port>[0-9]{1,5})/?"
)
_PROXY_FORM: Final = (
    "expected http://[user:password@]host:port or socks5://[user:password@]host:port"
)
_SOCKS_LIMIT: Final = 255  # bytes of a name: RFC 1928 section 5, RFC 1929 section 2


class Destination(NamedTuple):
    """``[user@]host[:port]``, as -J takes it; '' and 0 for parts that are not given."""

    user: str
    host: str
    port: int


class Endpoint(NamedTuple):
    """``host:port``, as permit_open and permit_listen take it; '*' and 0 for any."""

    host: str
    port: int


class Proxy(NamedTuple):
    """An HTTP or SOCKS5 proxy; ``user`` is None for a proxy without authentication."""

    scheme: str  # 'http' or 'socks5'
    host: str
    port: int
    user: bytes | None
    password: bytes

    def __repr__(self) -> str:
        """Returns the URL without the password."""
        user = "" if self.user is None else self.user.decode(errors="replace") + ":...@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}"


def host_name(text: str) -> str:
    """Returns the name or address of a host, no brackets; raises ValueError if it is unsafe."""
    if text.startswith("-") or not _is_one_word(text) or set(text) & set("@/[]" + _SPECIAL):
        raise ValueError("expected the name or address of a host")
    return text


def user_name(text: str) -> str:
    """Returns the name of a user; raises ValueError if it is unsafe."""
    if text.startswith("-") or not _is_one_word(text) or set(text) & set("@/:" + _SPECIAL):
        raise ValueError("expected the name of a user")
    return text


def _is_one_word(text: str) -> bool:
    return bool(text) and text.isprintable() and not any(map(str.isspace, text))


def destination(text: str) -> Destination:
    """The parts of ``[ssh://][user@]host[:port]``, an IPv6 address with a port in brackets."""
    user, at, place = text.removeprefix("ssh://").rpartition("@")
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", place)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif place.count(":") == 1:
        host, port = place.split(":")
    else:
        host, port = place, None
    try:
        return Destination(
            user_name(user) if at else "", host_name(host), 0 if port is None else port_number(port)
        )
    except ValueError as error:
        raise ValueError("expected [user@]host[:port]") from error


def endpoint(text: str) -> Endpoint:
    """The parts of ``host:port``, an IPv6 address in brackets; '*' for any host or port."""
    parts = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):(.*)", text)
    try:
        if parts is None:
            raise ValueError("no colon, or too many")
        host = parts[1] or parts[2] or ""
        return Endpoint(
            "*" if host == "*" else host_name(host), 0 if parts[3] == "*" else port_number(parts[3])
        )
    except ValueError as error:
        raise ValueError(
            "expected host:port, '*' for any, such as 192.0.2.1:22 or *:8080"
        ) from error


def proxy(text: str) -> Proxy:
    """The parts of a proxy's URL; %-escapes in user and password are resolved."""
    match = _PROXY.fullmatch(text)
    if match is None:
        raise ValueError(_PROXY_FORM)
    try:
        host, port = host_name(match["host"].strip("[]")), port_number(match["port"])
        user = None if match["user"] is None else _unquoted(match["user"])
        password = _unquoted(match["password"] or "")
    except ValueError as error:
        raise ValueError(_PROXY_FORM) from error
    if match["scheme"] == "socks5":
        if user is not None and not (len(user) <= _SOCKS_LIMIT and 0 < len(password) <= 255):
            raise ValueError("expected a user and a password of 1 to 255 bytes for socks5")
    elif user is not None and b":" in user:  # RFC 7617 section 2
        raise ValueError("expected a user without a colon in it for http")
    return Proxy(match["scheme"], host, port, user, password)


def port_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("expected a port")
    return int(text)


def _unquoted(text: str) -> bytes:
    """The bytes of a %-escaped word; raises ValueError for a control character as well."""
    from urllib.parse import unquote_to_bytes

    if re.search(r"%(?![0-9a-fA-F]{2})", text):
        raise ValueError("expected %XX")
    data = unquote_to_bytes(text)
    if any(byte < 32 or byte == 127 for byte in data):
        raise ValueError("expected no control characters")
    return data
