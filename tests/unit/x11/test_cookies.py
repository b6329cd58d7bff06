"""Which entry of an Xauthority file belongs to a display."""

import pytest

from appliance.wire.x11 import (
    COOKIE_PROTOCOL,
    FAMILY_INTERNET,
    FAMILY_INTERNET6,
    FAMILY_LOCAL,
    FAMILY_WILD,
    XauthorityEntry,
)
from appliance.x11.cookies import cookie_for, local_address

HERE = local_address("here")


def entry(
    family: int, address: bytes, number: bytes, data: bytes, name: bytes = COOKIE_PROTOCOL
) -> XauthorityEntry:
    return XauthorityEntry(family, address, number, name, data)


ENTRIES = [
    entry(FAMILY_LOCAL, b"here", b"0", b"xdm", b"XDM-AUTHORIZATION-1"),
    entry(FAMILY_LOCAL, b"here", b"0", b""),
    entry(FAMILY_LOCAL, b"there", b"0", b"there"),
    entry(FAMILY_LOCAL, b"here", b"0", b"here"),
    entry(FAMILY_INTERNET, b"\xc0\0\2\1", b"1", b"four"),
    entry(FAMILY_INTERNET6, bytes(15) + b"\1", b"1", b"six"),
    entry(FAMILY_LOCAL, b"here", b"", b"any number"),
    entry(FAMILY_WILD, b"", b"7", b"wild"),
]


@pytest.mark.parametrize(
    ("address", "number", "data"),
    [
        (HERE, 0, b"here"),
        (HERE, 1, b"any number"),
        (local_address("elsewhere"), 7, b"wild"),
        (local_address("elsewhere"), 0, None),
        ((FAMILY_INTERNET, b"\xc0\0\2\1"), 1, b"four"),
        ((FAMILY_INTERNET, b"\xc0\0\2\1"), 2, None),
        ((FAMILY_INTERNET6, bytes(15) + b"\1"), 1, b"six"),
    ],
)
def test_the_first_entry_that_fits_counts(
    address: tuple[int, bytes], number: int, data: bytes | None
) -> None:
    found = cookie_for(ENTRIES, [address], number)
    assert (found.data if found else None) == data


def test_a_cookie_longer_than_any_is_none() -> None:
    assert cookie_for([entry(FAMILY_WILD, b"", b"", bytes(1025))], [HERE], 0) is None
