"""A user's entry in shadow(5): the stored hash, and whether password or account has expired."""

import os
from typing import Final

# shadow(5)
DAY: Final = 86400  # seconds
SHADOW_FIELDS: Final = 9

# Our own choice
SHADOW_LIMIT: Final = 16 << 20  # bytes of /etc/shadow


def entry(name: str) -> list[str] | None:
    """The user's fields in /etc/shadow, shadow(5).

    Missing fields at the end count as empty: glibc accepts such lines, too, and images have them.
    """
    for line in lines():
        if line.startswith(name + ":"):
            fields = line.split(":")
            return fields + [""] * (SHADOW_FIELDS - len(fields))
    return None


def lines() -> list[str]:
    """The lines of /etc/shadow, none when it cannot be read."""
    try:
        fd = os.open("/etc/shadow", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    data = os.read(fd, SHADOW_LIMIT).decode("latin-1")
    os.close(fd)
    return data.split("\n")


def expiry(name: str, today: int) -> str:
    """The reason in shadow(5) to refuse a user, '' if none; ``today`` is in days since 1970."""
    fields = entry(name)
    if fields is None:
        return ""
    days = [int(field) if field.isdecimal() else None for field in fields[2:8]]
    changed, _, longest, _, inactive, end = days
    if end is not None and today >= end:
        return "the account has expired"
    if not changed or longest is None or inactive is None:
        return ""
    if today > changed + longest + inactive:
        return "the password expired so long ago that the account is inactive (chage -I)"
    return ""


def fault_of_password(name: str, today: int) -> str:
    """The reason why a password of shadow(5) is no longer accepted, '' if it is.

    This server has no dialogue to change the password. A key is still accepted, as with sshd
    without PAM: a board whose clock was wrong when the password was set must not lock everybody
    out. For the same reason a last change on day 0 is ignored: images and boards without a clock
    have it.
    """
    fields = entry(name)
    if fields is None or not fields[2].isdecimal() or not int(fields[2]):
        return ""
    if fields[4].isdecimal() and today > int(fields[2]) + int(fields[4]):
        return "the password has expired (passwd, or chage -M)"
    return ""
