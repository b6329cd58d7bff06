"""The data types of RFC 4251 section 5, with the examples that stand there."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire.codec import (
    NAMES_LIMIT,
    MPInt,
    NameList,
    Reader,
    Record,
    String,
    Text,
    UInt32,
    write_mpint,
    write_name,
    write_string,
    write_uint32,
)

READS: list[Callable[[Reader], object]] = [
    Reader.byte,
    Reader.boolean,
    Reader.uint32,
    Reader.uint64,
    Reader.string,
    Reader.text,
    Reader.name,
    Reader.names,
    Reader.mpint,
]


class Example(Record):
    number: UInt32
    text: Text = "default"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00 00 00 00"),
        (0x9A378F9B2E332A7, "00 00 00 08 09 a3 78 f9 b2 e3 32 a7"),
        (0x80, "00 00 00 02 00 80"),
        (-0x1234, "00 00 00 02 ed cc"),
        (-0xDEADBEEF, "00 00 00 05 ff 21 52 41 11"),
    ],
)
def test_the_mpints_of_rfc_4251_come_out_as_it_prints_them(value: int, encoded: str) -> None:
    assert write_mpint(value) == bytes.fromhex(encoded)
    assert Reader(bytes.fromhex(encoded)).mpint() == value


@given(st.integers(-(1 << 300), 1 << 300))
def test_every_mpint_survives_the_round_trip(value: int) -> None:
    reader = Reader(write_mpint(value))
    assert reader.mpint() == value
    reader.end()


@pytest.mark.parametrize("data", ["00", "0001", "ff80", "0000", "00" * 3000])
def test_an_mpint_that_is_not_the_shortest_is_refused(data: str) -> None:
    with pytest.raises(MalformedMessage):
        Reader(write_string(bytes.fromhex(data))).mpint()


def test_an_mpint_longer_than_any_modulus_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        Reader(write_string(b"\x01" * 4096)).mpint()


@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b"])
def test_an_empty_name_in_a_list_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        Reader(write_name(text)).names()


@pytest.mark.parametrize("text", ["a,b", "a,b,", ",a,b", "a,,b"])
def test_an_empty_name_offers_nothing(text: str) -> None:
    assert Reader(write_name(text)).offered() == ("a", "b")


def test_a_list_of_more_names_than_the_limit_is_refused() -> None:
    for read in (Reader.names, Reader.offered):
        with pytest.raises(MalformedMessage):
            read(Reader(write_name(",".join(["a"] * (NAMES_LIMIT + 1)))))


def test_a_text_for_a_person_is_shown_whatever_its_encoding() -> None:
    assert Reader(write_string("größer".encode("latin-1"))).shown() == "gr\\xf6\\xdfer"


def test_the_empty_list_has_no_names() -> None:
    for read in (Reader.names, Reader.offered):
        assert read(Reader(write_name(""))) == ()


def test_a_string_that_claims_4_gib_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        Reader(write_uint32(0xFFFFFFFF) + b"x").string()


def test_all_values_but_0_are_true() -> None:
    assert [Reader(bytes([value])).boolean() for value in (0, 1, 2, 255)] == [0, 1, 1, 1]


def test_text_that_is_not_utf8_and_names_that_are_not_ascii_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        Reader(write_string(b"\xff")).text()
    with pytest.raises(MalformedMessage):
        Reader(write_string("é".encode())).name()


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        Example.decode(Example(number=1).encode() + b"\0")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_reader_takes_whatever_holds_bytes(kind: Callable[[bytes], bytes]) -> None:
    assert Example.decode(kind(Example(number=7, text="ü").encode())) == Example(7, "ü")


@given(st.binary(max_size=40), st.lists(st.sampled_from(READS), max_size=8))
def test_whatever_is_read_from_arbitrary_bytes_nothing_but_malformed_message_is_raised(
    data: bytes, reads: list[Callable[[Reader], object]]
) -> None:
    reader = Reader(data)
    try:
        for read in reads:
            read(reader)
        reader.end()
    except MalformedMessage:
        pass


def test_a_record_takes_fields_by_place_and_name_and_has_defaults() -> None:
    assert Example(1) == Example(number=1) == Example(1, "default") != Example(2)
    assert hash(Example(1)) == hash(Example(1))
    with pytest.raises(TypeError):
        Example()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Example(1, "a", "b")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Example(1, nonsense=2)  # type: ignore[call-arg]


def test_a_derived_record_has_the_fields_of_its_base_first() -> None:
    class Longer(Example):
        names: NameList = ()
        size: MPInt = 0

    assert Longer(1, "a", ("b",), 3).encode() == Example(1, "a").encode() + (
        write_name("b") + write_mpint(3)
    )


def test_what_is_shown_of_a_record_holds_none_of_its_bytes() -> None:
    class Secret(Record):
        password: String

    assert repr(Secret(b"hunter2")) == "Secret(password=<7 bytes>)"
