"""What is asked before programs ask it."""

from appliance.x11.foreknown import Foreknown
from appliance.x11.knowledge import Knowledge
from tests.unit.x11.xserver import XServer, set_up_reply


def asked_all(foreknown: Foreknown, server: XServer) -> int:
    """Let it ask until it is ready; return the round trips, the set-up's included."""
    pieces, said, rounds = foreknown.begin(), set_up_reply(), 0
    while pieces:
        rounds += 1
        answers = said + server.receive(b"".join(bytes(each) for each in pieces))
        pieces, said = foreknown.from_server(answers), b""
    return rounds


def test_it_takes_three_round_trips() -> None:
    knowledge = Knowledge()
    foreknown = Foreknown(knowledge)
    assert not foreknown.is_ready
    assert asked_all(foreknown, XServer()) == 3
    assert foreknown.is_ready
    assert knowledge.answer(bytes((16, 0)) + b"WM_STATE")
    assert knowledge.answer(
        bytes((139, 0)) + (0).to_bytes(4, "little") + (11).to_bytes(4, "little")
    )


def test_a_change_is_asked_about_again() -> None:
    knowledge, server = Knowledge(), XServer()
    foreknown = Foreknown(knowledge)
    asked_all(foreknown, server)
    before = server.sequence
    pieces = foreknown.from_server(server.change())
    assert pieces
    while pieces:
        pieces = foreknown.from_server(server.receive(b"".join(bytes(each) for each in pieces)))
    assert foreknown.is_ready
    assert server.sequence > before


def test_whoever_is_not_let_in_asks_nothing() -> None:
    foreknown = Foreknown(Knowledge())
    assert foreknown.from_server(b"\0\5\13\0\0\0\2\0Never\0\0\0") == []
    assert not foreknown.is_ready
