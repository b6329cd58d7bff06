"""Where a copy comes from or goes to, as scp and sftp take it on the command line."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import UsageError


class Place(NamedTuple):
    """A path here or at a host; ``host`` is '' for this machine."""

    user: str
    host: str
    port: int  # 0 is the usual one
    path: str


def parse_place(text: str) -> Place:
    """Returns the place that ``[[user@]host:]path`` or ``scp://[user@]host[:port][/path]`` means.

    As scp(1): a path with a colon is one of this machine if a slash stands before the colon.
    Raises UsageError.
    """
    for scheme in ("scp://", "sftp://"):
        if text.startswith(scheme):
            return _of_uri(text, text.removeprefix(scheme))
    head, path = _split(text)
    if head is None:
        return Place("", "", 0, path)
    user, at, host = head.rpartition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return Place(user if at else "", _checked(host, text), 0, path)


def parse_destination(text: str) -> Place:
    """Returns the place of ``[user@]host[:path]``, where a name alone is a host (sftp(1))."""
    if not text.startswith(("scp://", "sftp://")) and _split(text)[0] is None:
        text += ":"
    return parse_place(text)


def _split(text: str) -> tuple[str | None, str]:
    """The part in front of the colon that ends a host, None if there is none; and the rest."""
    if text.startswith(":"):
        return None, text
    depth = 0
    for position, character in enumerate(text):
        if character == "[" and (position == 0 or text[position - 1] == "@"):
            depth = 1
        elif character == "]" and depth:
            depth = 0
        elif character == "/" and not depth:
            break
        elif character == ":" and not depth:
            return text[:position], text[position + 1 :]
    return None, text


def _of_uri(text: str, rest: str) -> Place:
    from urllib.parse import unquote

    authority, _, path = rest.partition("/")
    user, at, where = authority.rpartition("@")
    host, port = where, 0
    if where.startswith("["):
        host, _, after = where[1:].partition("]")
    else:
        host, _, after = where.partition(":")
        after = f":{after}" if after else ""
    if after:
        digits = after.removeprefix(":")
        if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) < 65536:
            raise UsageError(f"{text}: expected [user@]host[:port][/path] behind the scheme")
        port = int(digits)
    user = user.partition(";")[0]  # connection parameters, draft-ietf-secsh-scp-sftp-ssh-uri
    return Place(unquote(user) if at else "", _checked(unquote(host), text), port, unquote(path))


def _checked(host: str, text: str) -> str:
    if not host or host.startswith("-"):
        raise UsageError(f"{text}: expected the name of a host in front of the colon")
    return host
