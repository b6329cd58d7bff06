"""Every message crosses the wire and comes back; no bytes make a decoder do anything else."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire import codec, messages
from appliance.wire.codec import Field, Message, Reader

MESSAGES = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, Message) and value is not Message
]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(string.ascii_letters + string.digits + "-@.", min_size=1, max_size=20)
BLOBS = st.binary(max_size=50)


def field_of(hint: Any) -> Field:
    """How a wire type crosses the wire; a type checker takes it for the type of the value."""
    assert isinstance(hint, Field)
    return hint


VALUES: dict[Field, st.SearchStrategy[Any]] = {
    field_of(hint): values
    for hint, values in [
        (codec.Byte, st.integers(0, 255)),
        (codec.Boolean, st.booleans()),
        (codec.UInt32, st.integers(0, (1 << 32) - 1)),
        (codec.UInt64, st.integers(0, (1 << 64) - 1)),
        (codec.String, BLOBS),
        (codec.Text, TEXTS),
        (codec.Shown, TEXTS),
        (codec.Name, NAMES),
        (codec.NameList, st.lists(NAMES, max_size=4).map(tuple)),
        (codec.Offered, st.lists(NAMES, max_size=4).map(tuple)),
        (codec.MPInt, st.integers(-(1 << 70), 1 << 70)),
        (codec.Rest, BLOBS),
        (codec.Cookie, st.binary(min_size=16, max_size=16)),
        (codec.Extensions, st.lists(st.tuples(NAMES, BLOBS), max_size=3).map(tuple)),
        (codec.Prompts, st.lists(st.tuples(TEXTS, st.booleans()), max_size=3).map(tuple)),
        (codec.Strings, st.lists(BLOBS, max_size=3).map(tuple)),
    ]
}


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_every_message_survives_the_round_trip(kind: type[Message], data: st.DataObject) -> None:
    values = {name: data.draw(VALUES[field]) for name, field in kind._fields.items()}
    message = kind(**values)
    encoded = message.encode()
    assert encoded[0] == kind.number
    assert kind.decode(encoded) == message


@pytest.mark.parametrize("kind", MESSAGES)
@given(body=st.binary(max_size=100))
def test_arbitrary_bytes_are_a_message_or_malformed_and_nothing_else(
    kind: type[Message], body: bytes
) -> None:
    try:
        message = kind.decode(bytes([kind.number]) + body)
    except MalformedMessage:
        return
    assert kind.decode(message.encode()) == message


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_every_message_cut_short_is_malformed_or_shorter_in_its_last_field(
    kind: type[Message], data: st.DataObject
) -> None:
    values = {name: data.draw(VALUES[field]) for name, field in kind._fields.items()}
    encoded = kind(**values).encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    try:
        message = kind.decode(encoded[:cut])
    except MalformedMessage:
        return
    assert message.encode() == encoded[:cut]
    assert list(kind._fields.values())[-1] == field_of(codec.Rest)


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_with_another_number_or_none_is_refused(kind: type[Message]) -> None:
    for data in (b"", bytes([kind.number ^ 1]) + bytes(100)):
        with pytest.raises(MalformedMessage):
            kind.decode(data)


@given(st.integers(0, (1 << 32) - 1), BLOBS)
def test_the_packed_channel_data_equals_the_declared_record(channel: int, data: bytes) -> None:
    record = messages.ChannelData(recipient_channel=channel, data=data)
    header = messages.CHANNEL_DATA_HEADER.pack(record.number, channel, len(data))
    assert header + data == record.encode()


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), BLOBS)
def test_the_packed_extended_data_equals_the_declared_record(
    channel: int, kind: int, data: bytes
) -> None:
    record = messages.ChannelExtendedData(recipient_channel=channel, data_type_code=kind, data=data)
    header = messages.CHANNEL_EXTENDED_DATA_HEADER.pack(record.number, channel, kind, len(data))
    assert header + data == record.encode()


def test_more_extensions_prompts_or_strings_than_the_limit_are_refused() -> None:
    for hint in (codec.Extensions, codec.Prompts, codec.Strings):
        reader = Reader(codec.write_uint32(0xFFFFFFFF) + bytes(100))
        with pytest.raises(MalformedMessage):
            field_of(hint).read(reader)
