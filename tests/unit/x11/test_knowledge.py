"""What the relays of a session remember of their X server."""

import struct

from appliance.x11.knowledge import LIMIT, Knowledge
from tests.unit.x11.xserver import XServer, intern_atom, property_of, query_extension

ATOM, PROPERTY, EXTENSION = (bytes((opcode, 0)) for opcode in (16, 20, 98))


def test_an_atom_is_known_both_ways() -> None:
    knowledge = Knowledge()
    knowledge.learn(ATOM + b"NAME", XServer().receive(intern_atom(b"NAME")))
    known = knowledge.answer(bytes((17, 0)) + struct.pack("<I", 69))
    assert known[32:36] == b"NAME"


def test_an_error_is_not_remembered() -> None:
    knowledge = Knowledge()
    knowledge.learn(ATOM + b"NAME", struct.pack("<BB30x", 0, 11))
    assert knowledge.answer(ATOM + b"NAME") == b""


def test_an_extension_is_known_by_its_opcode() -> None:
    knowledge = Knowledge()
    for name in (b"RENDER", b"MISSING"):
        knowledge.learn(EXTENSION + name, XServer().receive(query_extension(name)))
        assert knowledge.answer(EXTENSION + name)
    assert knowledge.extensions == {139: b"RENDER"}


def test_what_is_only_expected_can_be_doubted() -> None:
    knowledge, server = Knowledge(), XServer()
    knowledge.learn(PROPERTY, server.receive(property_of(0)))
    knowledge.learn(ATOM + b"A", server.receive(intern_atom(b"A")))
    knowledge.doubt(0)
    assert not knowledge.answer(PROPERTY)
    assert knowledge.answer(ATOM + b"A")


def test_after_its_end_nothing_is_known_any_more() -> None:
    knowledge, server = Knowledge(), XServer()
    answer = server.receive(intern_atom(b"A"))
    knowledge.learn(ATOM + b"A", answer)
    knowledge.end()
    assert not knowledge.answer(ATOM + b"A")
    knowledge.learn(EXTENSION + b"RENDER", server.receive(query_extension(b"RENDER")))
    assert knowledge.extensions  # of which programs that go on make requests
    knowledge.learn(ATOM + b"A", answer)
    assert not knowledge.answer(ATOM + b"A")


def test_there_is_a_limit() -> None:
    knowledge = Knowledge()
    answer = struct.pack("<BxHI24x", 1, 0, 1 << 18) + bytes(1 << 20)
    for number in range(20):
        knowledge.learn(bytes((49, 0, number)), answer)
    kept = [number for number in range(20) if knowledge.answer(bytes((49, 0, number)))]
    assert kept[-1] == 19
    assert len(kept) * len(answer) <= LIMIT
