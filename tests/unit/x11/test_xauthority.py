"""Files with a display's cookie, and without it again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire.x11 import (
    COOKIE_PROTOCOL,
    FAMILY_LOCAL,
    FAMILY_WILD,
    XauthorityEntry,
    xauthority_entries,
)
from appliance.x11.xauthority import with_entries, without_cookie
from tests.unit.wire.test_x11 import ENTRIES

FILES = st.lists(ENTRIES, max_size=5).map(lambda entries: b"".join(e.encode() for e in entries))


def local(number: bytes, data: bytes = bytes(16)) -> XauthorityEntry:
    return XauthorityEntry(FAMILY_LOCAL, b"board", number, COOKIE_PROTOCOL, data)


@given(FILES, st.lists(ENTRIES, max_size=2))
def test_other_displays_stay_byte_for_byte(file: bytes, ours: list[XauthorityEntry]) -> None:
    displays = {(entry.family, entry.address, entry.number) for entry in ours}
    others = b"".join(
        entry.encode()
        for entry in xauthority_entries(file)
        if (entry.family, entry.address, entry.number) not in displays
    )
    assert with_entries(file, ours) == b"".join(entry.encode() for entry in ours) + others


@given(FILES, ENTRIES)
def test_other_cookies_stay_byte_for_byte(file: bytes, ours: XauthorityEntry) -> None:
    others = [
        entry.encode()
        for entry in xauthority_entries(file)
        if (entry.number, entry.data) != (ours.number, ours.data)
    ]
    for place in range(len(others) + 1):
        mixed = b"".join([*others[:place], ours.encode(), *others[place:]])
        assert without_cookie(mixed, ours.number, ours.data) == b"".join(others)


def test_a_displays_old_cookie_makes_place_whatever_its_protocol() -> None:
    old = XauthorityEntry(FAMILY_LOCAL, b"board", b"10", b"XDM-AUTHORIZATION-1", b"old")
    file = old.encode() + local(b"1").encode() + local(b"10", b"older").encode()
    assert xauthority_entries(with_entries(file, [local(b"10")])) == [local(b"10"), local(b"1")]


def test_a_display_managers_entry_for_all_displays_does_not_stand_before_ours() -> None:
    wild = XauthorityEntry(FAMILY_WILD, b"", b"", COOKIE_PROTOCOL, b"w" * 16)
    assert xauthority_entries(with_entries(wild.encode(), [local(b"10")])) == [local(b"10"), wild]


def test_only_this_cookie_is_removed() -> None:
    """A later session may have the display's number by now."""
    file = local(b"10", b"new").encode() + local(b"11", b"old").encode()
    assert without_cookie(file, b"10", b"old") == file


def test_a_cookie_goes_whatever_address_it_has() -> None:
    """Names are looked up when it is stored, and may lead elsewhere at the end."""
    far = XauthorityEntry(FAMILY_WILD, b"", b"10", COOKIE_PROTOCOL, b"old")
    file = local(b"10", b"old").encode() + far.encode()
    assert without_cookie(file, b"10", b"old") == b""


@pytest.mark.parametrize("file", [b"x", local(b"1").encode()[:-1], local(b"1").encode() + b"\0"])
def test_a_file_that_is_none_is_not_changed(file: bytes) -> None:
    with pytest.raises(MalformedMessage):
        with_entries(file, [local(b"10")])
    with pytest.raises(MalformedMessage):
        without_cookie(file, b"10", bytes(16))
