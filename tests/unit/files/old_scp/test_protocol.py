"""The records of the old scp protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.files.old_scp.protocol import (
    LINE_LIMIT,
    End,
    Entry,
    Failure,
    Times,
    UnexpectedName,
    parse,
)

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and not {*name} & {*b"/\0\n"}
)
sizes = st.integers(0, (1 << 63) - 1)
microseconds = st.integers(0, (1 << 62)).map(lambda number: number * 1000)


@given(st.booleans(), st.integers(0, 0o7777), sizes, names)
def test_an_entry_survives_the_round_trip(
    is_directory: bool, mode: int, size: int, name: bytes
) -> None:
    line = Entry(is_directory, mode, size, name).encode()
    read = parse(line[:-1])
    assert isinstance(read, Entry)
    assert (read.is_directory, read.mode, read.size, read.name) == (is_directory, mode, size, name)


@given(microseconds, microseconds)
def test_times_survive_the_round_trip(modified: int, accessed: int) -> None:
    read = parse(Times(modified, accessed).encode()[:-1])
    assert isinstance(read, Times)
    assert (read.modified, read.accessed) == (modified, accessed)


def test_the_lines_are_those_of_openssh() -> None:
    assert Entry(False, 0o644, 5, b"a b").encode() == b"C0644 5 a b\n"
    assert Entry(True, 0o4755, 0, b"d").encode() == b"D4755 0 d\n"
    assert Times(1_700_000_000_000_000_000, 1_600_000_000_250_000_999).encode() == (
        b"T1700000000 0 1600000000 250000\n"
    )
    assert Times(-5, 0).encode() == b"T0 0 0 0\n"
    assert End().encode() == b"E\n"
    assert Failure(b"scp: a\nb").encode() == b"\1scp: a?b\n"
    assert Failure(b"x", ends=True).encode() == b"\2x\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"C",
        b"C0644",
        b"C0644 ",
        b"C0644 5",
        b"C0644  5 name",
        b"C 0644 5 name",
        b"C644 5 name",
        b"C00644 5 name",
        b"C0648 5 name",
        b"C-644 5 name",
        b"C0x44 5 name",
        b"C0644 -1 name",
        b"C0644 +1 name",
        b"C0644 0x5 name",
        b"C0644 1_0 name",
        b"C0644 9223372036854775808 name",
        b"C0644 99999999999999999999999999999999 name",
        b"C0644 " + b"9" * 5000 + b" name",
        b"T1 0 1",
        b"T1 0 1 0 ",
        b"T1 0 1 0 5",
        b"T-1 0 1 0",
        b"T1 1000000 1 0",
        b"T1 0 1 -1",
        b"T9223372036854775808 0 1 0",
        b"T",
        b"E ",
        b"End",
        b"c0644 5 name",
        b"\3fatal",
        b"\0",
    ],
)
def test_a_line_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse(line)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"../x", b"a/", b"a\0b"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: bytes) -> None:
    for letter in (b"C", b"D"):
        with pytest.raises(UnexpectedName) as raised:
            parse(letter + b"0644 5 " + name)
        assert raised.value.name == name


@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    for line in (data, *(letter + data for letter in (b"C0644 ", b"D", b"T", b"E", b"\1"))):
        try:
            record = parse(line)
        except MalformedMessage:
            continue
        assert len(record.encode()) <= max(len(line) + 20, LINE_LIMIT)
