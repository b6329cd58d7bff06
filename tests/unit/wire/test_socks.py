"""SOCKS clients of every version, in one piece and byte by byte, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire.socks import Dialogue

NAME = b"\x05\x01\x00\x03\x07example\x00\x50"
CASES = [
    (b"\x04\x01\x00\x50\xc0\x00\x02\x01user\x00", ("192.0.2.1", 80)),
    (b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00", ("192.0.2.1", 80)),
    (b"\x04\x01\x00\x50\x00\x00\x00\x01me\x00example\x00", ("example", 80)),
    (b"\x05\x01\x00" + NAME, ("example", 80)),
    (b"\x05\x02\x02\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", ("192.0.2.1", 80)),
    (b"\x05\x01\x00\x05\x01\x00\x04" + bytes(15) + b"\x01\xff\xff", ("::1", 65535)),
]


@pytest.mark.parametrize(("data", "place"), CASES)
def test_a_client_says_where_it_wants_to_go(data: bytes, place: tuple[str, int]) -> None:
    whole = Dialogue()
    whole.receive(data + b"early")
    assert whole.place == place
    assert whole.rest == b"early"
    pieces = Dialogue()
    said = b""
    for at in range(len(data)):
        assert pieces.place is None
        pieces.receive(data[at : at + 1])
        said += pieces.reply
    assert pieces.place == place
    assert said == whole.reply == (b"\x05\x00" if data[0] == 5 else b"")


def test_the_answer_says_whether_it_is_connected() -> None:
    four, five = Dialogue(), Dialogue()
    four.receive(CASES[0][0])
    five.receive(CASES[3][0])
    assert four.answer(True)[:2] == b"\x00\x5a"
    assert four.answer(False)[:2] == b"\x00\x5b"
    assert five.answer(True)[:4] == b"\x05\x00\x00\x01"
    assert five.answer(False)[:4] == b"\x05\x01\x00\x01"
    assert len(four.answer(True)) == 8
    assert len(five.answer(True)) == 10


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"GET / HTTP/1.1\r\n", b""),
        (b"\x06", b""),
        (b"\x05\x01\x02", b"\x05\xff"),  # passwords only
        (b"\x05\x00", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", b"\x05\x00\x05\x07"),  # bind
        (b"\x05\x01\x00\x05\x01\x00\x09\x00\x00", b"\x05\x00\x05\x08"),
        (b"\x05\x01\x00\x04\x01\x00\x01\xc0\x00\x02\x01\x00\x50", b"\x05\x00"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00"),  # no name
        (b"\x05\x01\x00\x05\x01\x00\x03\x02a\n\x00\x50", b"\x05\x00"),
        (b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00", b"\x05\x00\x05\x01"),  # port 0
        (b"\x04\x02\x00\x50\xc0\x00\x02\x01\x00", b"\x00\x5b"),
        (b"\x04\x01\x00\x50\xc0\x00\x02\x01" + b"u" * 256, b""),
        (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"n" * 256, b""),
    ],
)
def test_who_cannot_be_served_is_told(data: bytes, reply: bytes) -> None:
    dialogue = Dialogue()
    with pytest.raises(MalformedMessage):
        dialogue.receive(data)
    assert dialogue.reply.startswith(reply)
    assert bool(dialogue.reply) == bool(reply)
    assert dialogue.place is None


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from([b"", b"\x04", b"\x05"]))
def test_arbitrary_bytes_raise_nothing_else(pieces: list[bytes], first: bytes) -> None:
    dialogue = Dialogue()
    try:
        for piece in [first, *pieces]:
            if dialogue.place is None:
                dialogue.receive(piece)
    except MalformedMessage:
        return
    assert dialogue.place is None or 0 < dialogue.place[1] < 65536
