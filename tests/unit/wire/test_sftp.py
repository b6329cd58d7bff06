"""Attributes of SFTP, in every form in which servers send them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire.codec import Reader, write_string, write_uint32
from appliance.wire.sftp import (
    ATTRIBUTES,
    Attributes,
    FileIdentity,
    NamedFile,
    Names,
    read_attributes,
    write_attributes,
)

uint32 = st.integers(0, 0xFFFFFFFF)
uint64 = st.integers(0, (1 << 64) - 1)
nanoseconds = st.integers(0, 999_999_999)
identities = st.builds(
    FileIdentity, uint64, uint64, uint32, uint64, nanoseconds, nanoseconds,
    st.tuples(uint64, nanoseconds),
)  # fmt: skip
attributes = st.builds(
    Attributes,
    st.none() | uint64,
    st.none() | st.tuples(uint32, uint32),
    st.none() | uint32,
    st.none() | st.tuples(uint32, uint32),
    st.none() | st.tuples(nanoseconds, nanoseconds),
    st.none() | identities,
)
whole = st.builds(
    Attributes, uint64, st.tuples(uint32, uint32), uint32, st.tuples(uint32, uint32),
    st.none() | st.tuples(nanoseconds, nanoseconds), st.none() | identities,
)  # fmt: skip


@given(attributes | whole, st.binary(max_size=5))
def test_attributes_survive_the_round_trip(given: Attributes, rest: bytes) -> None:
    reader = Reader(write_attributes(given) + rest)
    assert read_attributes(reader) == given
    assert reader.rest() == rest


@given(st.lists(whole, max_size=5))
def test_a_listing_survives_the_round_trip(several: list[Attributes]) -> None:
    entries = tuple(NamedFile(b"name", b"longname", each) for each in several)
    assert Names.decode(Names(7, entries).encode()).entries == entries


@given(whole, st.data())
def test_attributes_that_are_cut_are_refused(given: Attributes, data: st.DataObject) -> None:
    encoded = write_attributes(given)
    end = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(MalformedMessage):
        read_attributes(Reader(encoded[:end]))


def test_pairs_of_other_names_are_skipped() -> None:
    identity = FileIdentity(1, 2, 3, 4, 5, 6, (7, 8))
    pair = write_string(ATTRIBUTES.encode()) + write_string(identity.encode())
    other = write_string(b"attributes@elsewhere.example") + write_string(b"x" * 48)
    head = write_uint32(0x8000000F) + bytes(28)
    for pairs, found in (([other, pair], identity), ([pair, other], identity), ([other], None)):
        encoded = head + write_uint32(len(pairs)) + b"".join(pairs)
        assert read_attributes(Reader(encoded)).identity == found


def test_an_identity_of_a_wrong_length_is_refused() -> None:
    head = write_uint32(0x8000000F) + bytes(28) + write_uint32(1)
    for size in (47, 49):
        pair = write_string(ATTRIBUTES.encode()) + write_string(bytes(size))
        with pytest.raises(MalformedMessage):
            read_attributes(Reader(head + pair))


def test_nanoseconds_that_are_a_second_are_refused() -> None:
    identity = FileIdentity(1, 2, 3, 4, 1_000_000_000, 6, (7, 8))
    encoded = write_attributes(Attributes(1, (2, 3), 4, (5, 6), None, identity))
    with pytest.raises(MalformedMessage):
        read_attributes(Reader(encoded))
