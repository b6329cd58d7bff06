"""Xauthority files with a display's cookie, and without it again."""

from collections.abc import Sequence

from ..wire.x11 import XauthorityEntry, xauthority_entries


def with_entries(data: bytes, entries: Sequence[XauthorityEntry]) -> bytes:
    """Returns a file's bytes with these entries; raises MalformedMessage.

    They replace the entries of the same displays, and come first: programs take the first entry
    that fits, and a display manager's may fit every display. All others stay byte for byte.
    """
    displays = {_display(entry) for entry in entries}
    others = (entry for entry in xauthority_entries(data) if _display(entry) not in displays)
    return b"".join(entry.encode() for entry in (*entries, *others))


def without_cookie(data: bytes, number: bytes, cookie: bytes) -> bytes:
    """Returns a file's bytes without the entries of this display that have this cookie.

    Raises MalformedMessage. The address does not matter: a name may lead elsewhere by now.
    """
    entries = xauthority_entries(data)
    others = (entry for entry in entries if (entry.number, entry.data) != (number, cookie))
    return b"".join(entry.encode() for entry in others)


def _display(entry: XauthorityEntry) -> tuple[int, bytes, bytes]:
    return entry.family, entry.address, entry.number
