"""Entries of Xauthority files, as xauth writes them and not; and how a server greets a client."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire.x11 import (
    COOKIE_PROTOCOL,
    FAMILY_INTERNET6,
    FAMILY_LOCAL,
    FAMILY_WILD,
    XauthorityEntry,
    set_up_failed,
    set_up_refusal,
    xauthority_entries,
)
from tests.peers import find_program

COUNTED = st.binary(max_size=40)
ENTRIES = st.builds(XauthorityEntry, st.integers(0, 0xFFFF), COUNTED, COUNTED, COUNTED, COUNTED)


@given(st.lists(ENTRIES, max_size=5))
def test_entries_survive_the_round_trip(entries: list[XauthorityEntry]) -> None:
    assert xauthority_entries(b"".join(entry.encode() for entry in entries)) == entries


@given(st.binary(max_size=200))
def test_whatever_is_read_is_written_as_it_was(data: bytes) -> None:
    try:
        entries = xauthority_entries(data)
    except MalformedMessage:
        return
    assert b"".join(entry.encode() for entry in entries) == data


@pytest.mark.parametrize("length", range(1, 58))
def test_an_entry_that_is_cut_off_is_an_error(length: int) -> None:
    entry = XauthorityEntry(FAMILY_LOCAL, b"board", b"10", COOKIE_PROTOCOL, bytes(16)).encode()
    whole = entry + entry[: length % len(entry) or 1]
    with pytest.raises(MalformedMessage):
        xauthority_entries(whole)


def test_xauth_writes_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "authority"
    cookie = "00112233445566778899aabbccddeeff"
    script = f"add board/unix:10 . {cookie}\nadd [2001:db8::1]:3 . {cookie}\n"
    xauth = [find_program("xauth"), "-f", str(file)]
    subprocess.run(xauth, input=script, text=True, check=True, capture_output=True)
    local, internet = xauthority_entries(file.read_bytes())
    assert local == XauthorityEntry(
        FAMILY_LOCAL, b"board", b"10", COOKIE_PROTOCOL, bytes.fromhex(cookie)
    )
    assert internet.family == FAMILY_INTERNET6
    assert internet.address == bytes.fromhex("20010db8" + "0" * 23 + "1")


def test_xauth_lists_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "authority"
    entry = XauthorityEntry(FAMILY_WILD, b"", b"", COOKIE_PROTOCOL, bytes(range(16)))
    file.write_bytes(entry.encode())
    done = subprocess.run(
        [find_program("xauth"), "-f", str(file), "list"], text=True, check=True, capture_output=True
    )
    assert done.stdout.split() == ["#ffff##:", "MIT-MAGIC-COOKIE-1", bytes(range(16)).hex()]


def answer(status: int, body: bytes, length: int = 0) -> bytes:
    return bytes((status, length, 11, 0, 0, 0, len(body) // 4, 0)) + body


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (answer(1, bytes(24)), ""),
        (answer(0, b"go away\0", 7), "go away"),
        (answer(0, b"go away!", 255), "go away!"),
        (answer(2, b"more\n\0\0\0"), "more"),
        (answer(0, b""), "it gives no reason"),
        (answer(77, b"odd\0"), "odd"),
        (set_up_failed("<", "reason"), "reason"),
    ],
)
def test_an_answer_to_a_set_up_is_read_once_it_is_whole(data: bytes, refusal: str) -> None:
    for size in range(len(data)):
        assert set_up_refusal(data[:size]) is None
    assert set_up_refusal(data) == (refusal, len(data))
    assert set_up_refusal(data + b"more") == (refusal, len(data))
