"""What an X server tells of itself, and colours by it."""

import pytest

from appliance.x11.screens import FirstAnswer, Screens
from tests.unit.x11.xserver import BASE, COLORMAP, ROOT, request, set_up_reply


def screens(answer: bytes) -> Screens | None:
    first = FirstAnswer("<")
    first.receive(answer)
    return first.screens


def test_the_roots_and_the_programs_own_resources() -> None:
    found = screens(set_up_reply())
    assert found is not None
    assert set(found.roots) == {ROOT}
    assert found.is_own(BASE + 5) and not found.is_own(BASE + 0x200000)


def test_only_the_default_colormap_of_true_colours_is_computed() -> None:
    found = screens(set_up_reply())
    assert found is not None
    assert found.color(request(84, 0, "IHHHxx", COLORMAP, 1, 2, 3))
    assert found.color(request(84, 0, "IHHHxx", COLORMAP + 1, 1, 2, 3)) == b""
    assert found.color(request(84, 0, "IHH", COLORMAP, 1, 2)) == b""


@pytest.mark.parametrize("reply", [b"", b"\0" * 8, set_up_reply()[:60], b"\2" + set_up_reply()[1:]])
def test_what_lets_nobody_in_tells_nothing(reply: bytes) -> None:
    assert screens(reply) is None


def test_what_follows_is_told_apart_and_a_refusal_is_not_collected() -> None:
    first = FirstAnswer("<")
    assert [first.receive(bytes((byte,))) for byte in set_up_reply()][-1] == b""
    assert FirstAnswer("<").receive(set_up_reply() + b"more") == b"more"
    refused = FirstAnswer("<")
    assert refused.receive(bytes(8)) is refused.receive(bytes(1 << 20)) is None
    assert not refused._bytes
