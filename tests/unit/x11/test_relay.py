"""The round-trip relay: a program hears the same with it, only sooner."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.x11.knowledge import Knowledge
from appliance.x11.relay import Relay
from appliance.x11.round_trips import CORE
from tests.unit.x11.xserver import (
    BASE,
    COLORMAP,
    FOREIGN,
    GONE,
    ROOT,
    SYNC,
    XServer,
    intern_atom,
    property_of,
    query_extension,
    request,
    set_up_reply,
)


class Line:
    """A program's relay and its X server, with a line between them that is pumped by hand."""

    def __init__(self, knowledge: Knowledge | None = None) -> None:
        self.server = XServer()
        self.knowledge = knowledge if knowledge is not None else Knowledge()
        self.relay = Relay(self.knowledge)
        self.heard = b""
        self.relay.from_server(set_up_reply())
        self.upwards = b""
        self.downwards = b""

    def ask(self, *requests: bytes) -> None:
        """The program sends."""
        pieces, answers = self.relay.from_program(b"".join(requests))
        self.upwards += b"".join(bytes(piece) for piece in pieces)
        self.heard += answers

    def carry(self, up: int = 1 << 24, down: int = 1 << 24) -> None:
        """So many bytes arrive, at most."""
        data, self.upwards = self.upwards[:up], self.upwards[up:]
        self.downwards += self.server.receive(data)
        data, self.downwards = self.downwards[:down], self.downwards[down:]
        self.heard += self.relay.from_server(data)

    def tell(self, event: bytes) -> None:
        """The server sends an event behind its answers."""
        self.downwards += event

    def taken(self) -> bytes:
        """What the program has heard since the last call."""
        heard, self.heard = self.heard, b""
        return heard


def answered(line: Line, *requests: bytes) -> bytes:
    """What a program hears of requests after a round trip."""
    line.ask(*requests)
    line.carry()
    return line.taken()


def knowing(*requests: bytes) -> Line:
    """A line where the answers of these are known."""
    first = Line()
    answered(first, *requests)
    line = Line(first.knowledge)
    line.server.atoms = dict(first.server.atoms)
    return line


def test_what_was_answered_once_is_answered_here() -> None:
    line = knowing(intern_atom(b"WM_STATE"))
    line.ask(intern_atom(b"WM_STATE"))
    assert struct.unpack_from("<BxHII", line.taken()) == (1, 1, 0, 69)
    line.carry()
    assert line.taken() == b""
    line.ask(request(17, 0, "I", 69))  # GetAtomName, which nobody else has to see
    assert line.taken()
    line.carry()
    assert line.server.requests == [intern_atom(b"WM_STATE"), SYNC]


def test_an_atom_that_was_made_has_its_name() -> None:
    line = knowing(intern_atom(b"WM_STATE"))
    line.ask(request(17, 0, "I", 69))
    reply = line.taken()
    assert reply[32:40] == b"WM_STATE" and reply[8:10] == b"\x08\0"


def test_bytes_without_a_meaning_are_none() -> None:
    line = knowing(intern_atom(b"abc"))
    asked = bytearray(intern_atom(b"abc"))
    asked[-1] = asked[6] = 0xFF
    line.ask(bytes(asked))
    assert line.taken()


def test_an_atom_that_does_not_exist_may_be_made_later() -> None:
    line = knowing(intern_atom(b"abc", only_if_exists=True))
    line.ask(intern_atom(b"abc", only_if_exists=True))
    assert line.taken() == b""


def test_what_may_change_is_compared_with_the_servers_answer() -> None:
    line = knowing(property_of(ROOT))
    line.ask(property_of(ROOT))
    assert line.taken()[32:44] == b"first value!"
    line.server.change()
    line.carry()
    assert line.taken() == b""
    assert line.relay.counts.mistaken == 1
    line.ask(property_of(ROOT))
    assert line.taken()[32:44] == b"second value"
    line.carry()
    assert line.relay.counts == (2, 2, 0, 1)


def test_what_deletes_a_property_is_the_servers() -> None:
    deleting = property_of(ROOT)[:1] + b"\1" + property_of(ROOT)[2:]
    line = knowing(property_of(ROOT), deleting)
    line.ask(deleting)
    assert line.taken() == b""


@pytest.mark.parametrize("window", [FOREIGN, BASE + 1])
def test_of_other_windows_nothing_is_expected(window: int) -> None:
    line = knowing(property_of(window))
    line.ask(property_of(window))
    assert line.taken() == b""


def test_a_server_that_says_nothing_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the table wrong, that is."""
    line = knowing(intern_atom(b"A"))
    monkeypatch.setitem(CORE, 61, CORE[43])  # ClearArea
    line.ask(request(61, 0, "IHHHH", BASE, 0, 0, 0, 0), intern_atom(b"A"), SYNC)
    line.carry()
    assert [each[2] for each in messages(line.taken())] == [2, 3]


def test_answers_keep_their_order() -> None:
    line = knowing(intern_atom(b"A"), property_of(ROOT))
    line.ask(SYNC, intern_atom(b"A"), property_of(ROOT), SYNC, intern_atom(b"A"))
    assert line.taken() == b""
    line.carry()
    sequences = [struct.unpack_from("<H", each, 2)[0] for each in messages(line.taken())]
    assert sequences == [1, 2, 3, 4, 5]


def test_an_event_is_never_older_than_an_answer() -> None:
    line = knowing(intern_atom(b"A"))
    event = line.server.change()
    line.ask(request(127), request(127), intern_atom(b"A"))
    line.tell(event)
    line.carry(up=0)
    told = messages(line.taken())
    assert [struct.unpack_from("<H", each, 2)[0] for each in told] == [3, 3]


def test_an_error_keeps_its_number() -> None:
    """Toolkits expect errors of requests that name other programs' windows, by their numbers."""
    line = knowing(intern_atom(b"A"))
    line.ask(request(18, 0, "IIIB3xI", GONE, 1, 31, 8, 0), intern_atom(b"A"))
    assert line.taken() == b""
    line.carry()
    told = messages(line.taken())
    assert [(each[0], struct.unpack_from("<H", each, 2)[0]) for each in told] == [(0, 1), (1, 2)]


def test_an_event_does_not_bring_an_answer_before_an_error() -> None:
    line = knowing(property_of(ROOT))
    event = line.server.change()
    line.server.property = b"first value!"
    line.ask(request(18, 0, "IIIB3xI", GONE, 1, 31, 8, 0), property_of(ROOT))
    line.tell(event)
    line.carry(up=0)
    assert messages(line.taken()) == [event]
    line.carry()
    assert [(each[0], each[2]) for each in messages(line.taken())] == [(0, 1), (1, 2)]


def test_behind_a_request_that_nobody_knows_nothing_is_guessed() -> None:
    line = knowing(query_extension(b"UNHEARD-OF"), intern_atom(b"A"))
    for minor in (0, 1):
        line.ask(request(150, minor), intern_atom(b"A"))
        assert line.taken() == b""
        line.carry()
        assert len(messages(line.taken())) == 2 - minor


def test_fonts_are_known_by_their_names() -> None:
    name = struct.Struct("<IHH")

    def font(text: bytes) -> tuple[bytes, bytes]:
        opening = request(45, 0, f"8s{len(text)}s", name.pack(BASE, len(text), 0), text)
        return opening, request(47, 0, "I", BASE)

    line = knowing(*font(b"fixed"))
    line.ask(*font(b"fixed"))
    assert line.taken()[0] == 1
    line.carry()
    assert line.taken() == b""


def test_a_font_that_there_is_not_is_refused_here() -> None:
    opening = request(45, 0, "IHH8s", BASE + 9, 8, 0, b"no-fount")
    asking = request(47, 0, "I", BASE + 9)
    line = knowing(opening, asking)
    line.ask(opening, asking)
    told = messages(line.taken())
    assert [(each[0], each[1], each[2], each[10]) for each in told] == [
        (0, 15, 1, 45),
        (0, 7, 2, 47),
    ]


def test_a_series_of_answers_is_one() -> None:
    asked = request(50, 0, "HH1s", 1, 1, b"*")
    line = knowing(asked)
    line.ask(asked)
    assert [each[2] for each in messages(line.taken())] == [1, 1]


def test_requests_may_be_more_than_there_are_numbers() -> None:
    """The server answers something all the time, and late answers are told apart."""
    line = knowing(intern_atom(b"A"))
    many = request(17, 0, "I", 69) * 1000
    for _ in range(70):
        line.ask(many)
    line.ask(SYNC)
    line.carry()
    told = messages(line.taken())
    assert [struct.unpack_from("<H", each, 2)[0] for each in told] == [
        number & 0xFFFF for number in range(1, 70_002)
    ]
    assert line.relay.counts == (70_001, 70_000, 1, 0)


@pytest.mark.parametrize("color", [(0, 0, 0), (0xFFFF, 0x8000, 0x1234), (257, 256, 255)])
def test_colours_are_computed(color: tuple[int, int, int]) -> None:
    line = Line()
    line.ask(request(84, 0, "IHHHxx", COLORMAP, *color))
    reply = line.taken()
    *shown, pixel = struct.unpack_from("<HHHxxI", reply, 8)
    channels = [pixel >> 16, pixel >> 8 & 0xFF, pixel & 0xFF]
    assert [channel * 257 for channel in channels] == shown
    assert all(abs(a - b) <= 129 for a, b in zip(shown, color, strict=True))


def test_large_requests_pass_as_they_come() -> None:
    line = knowing(query_extension(b"BIG-REQUESTS"))
    line.ask(request(133))
    line.carry()
    line.taken()
    big = struct.pack("<BBHI", 72, 2, 0, 3000) + bytes(11992)
    for start in range(0, len(big), 1000):
        line.ask(big[start : start + 1000])
    assert line.upwards == big


@pytest.mark.parametrize(
    "data", [struct.pack("<BBHI", 72, 2, 0, 1), struct.pack("<BBHI", 72, 2, 0, 0)]
)
def test_a_request_without_a_length_ends_the_program(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Line().ask(data)


def messages(data: bytes) -> list[bytes]:
    """The server's messages."""
    found, at = [], 0
    while at < len(data):
        size = 32 + (4 * struct.unpack_from("<I", data, at + 4)[0] if data[at] == 1 else 0)
        found.append(data[at : at + size])
        at += size
    return found


ASKED = [
    intern_atom(b"A"),
    intern_atom(b"B", only_if_exists=True),
    request(17, 0, "I", 69),
    property_of(ROOT),
    property_of(GONE),
    property_of(FOREIGN),
    SYNC,
    query_extension(b"UNHEARD-OF"),
    query_extension(b"RENDER"),
    request(139, 0, "II", 0, 11),
    request(150, 0),
    request(150, 1),
    request(18, 0, "IIIB3xI", GONE, 1, 31, 8, 0),
    request(18, 0, "IIIB3xI", FOREIGN, 1, 31, 8, 0),
    request(18, 0, "IIIB3xI", BASE + 1, 1, 31, 8, 0),
    request(12, 0, "IHxx", ROOT, 0),
    request(45, 0, "IHH8s", BASE + 9, 8, 0, b"no-fount"),
    request(47, 0, "I", BASE + 9),
    request(49, 0, "HH1s", 1, 1, b"*"),
    request(50, 0, "HH1s", 1, 1, b"*"),
    request(127),
]


@given(st.lists(st.sampled_from(ASKED), max_size=40), st.randoms(use_true_random=False))
def test_a_program_hears_what_it_would_hear_without_a_relay(
    asked: list[bytes], chance: random.Random
) -> None:
    """Whatever it asks, and however the bytes come: answers and errors, in their order."""
    line = knowing(*ASKED)
    direct = XServer()
    direct.atoms = dict(line.server.atoms)
    stream = b"".join(asked)
    heard = b""
    while stream or line.upwards or line.downwards:
        size = chance.randrange(1, 60)
        line.ask(stream[:size])
        stream = stream[size:]
        line.carry(chance.randrange(80), chance.randrange(80))
        heard += line.taken()
    assert messages(heard) == messages(direct.receive(b"".join(asked)))
    assert line.relay.counts.mistaken == 0
    assert line.server.sequence == direct.sequence
