"""The cookie of a display, from the entries of an Xauthority file (XauGetBestAuthByAddr(3))."""

from collections.abc import Iterable
from typing import Final

from ..wire.x11 import (
    COOKIE_PROTOCOL,
    DATA_LIMIT,
    FAMILY_LOCAL,
    FAMILY_WILD,
    XauthorityEntry,
)
from .set_up import Authorization

# Our own choice
FILE_LIMIT: Final = 1 << 20  # bytes of an Xauthority file: thousands of entries

Address = tuple[int, bytes]  # a family of Xauth.h, and an address of that family


def local_address(host_name: str) -> Address:
    """Returns the address of displays of this machine, which is called ``host_name``."""
    return FAMILY_LOCAL, host_name.encode(errors="surrogateescape")


def cookie_for(
    entries: Iterable[XauthorityEntry], addresses: Iterable[Address], number: int
) -> Authorization | None:
    """Returns the cookie of the first entry for a display, None if there is none.

    ``addresses`` are those by which the display is known. Kinds of authorization other than
    cookies are passed over.
    """
    known = set(addresses)
    for entry in entries:
        if (
            (entry.family == FAMILY_WILD or (entry.family, entry.address) in known)
            and entry.number in (b"", b"%d" % number)
            and entry.name == COOKIE_PROTOCOL
            and 0 < len(entry.data) <= DATA_LIMIT
        ):
            return Authorization(entry.name, entry.data)
    return None
