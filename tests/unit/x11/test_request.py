"""What a request for X11 forwarding may say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.x11.request import COOKIE_LIMIT, PROTOCOL_LIMIT, SCREEN_LIMIT, fault

PROTOCOL = b"MIT-MAGIC-COOKIE-1"
COOKIE = b"00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    ("protocol", "cookie", "screen"),
    [
        (PROTOCOL, COOKIE, 0),
        (PROTOCOL, COOKIE.upper(), SCREEN_LIMIT),
        (b"XDM-AUTHORIZATION-1", b"00", 1),
        (b"a.b:c/d_e-f", COOKIE, 0),
        (b"p" * PROTOCOL_LIMIT, b"0" * COOKIE_LIMIT, 0),
    ],
)
def test_what_clients_say_is_let_through(protocol: bytes, cookie: bytes, screen: int) -> None:
    assert not fault(protocol, cookie, screen)


HOSTILE = [
    b"",
    b"\n",
    b";",
    b"\0",
    b" ",
    b"\xff",
    b"$(id)",
    b"`id`",
    b"'",
    b"\r\n",
    b"x" * (1 << 20),
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["alone", "first", "last", "within"])
def test_what_a_program_could_take_for_a_command_is_refused(text: bytes, place: str) -> None:
    def put(word: bytes) -> bytes:
        return {
            "alone": text, "first": text + word, "last": word + text,
            "within": word[:4] + text + word[4:],
        }[place]  # fmt: skip

    if text or place == "alone":
        assert "protocol" in fault(put(PROTOCOL), COOKIE, 0)
        assert "cookie" in fault(PROTOCOL, put(COOKIE), 0)


@pytest.mark.parametrize(
    "cookie", [b"0", COOKIE + b"0", COOKIE[:-1], b"0x11", b"gg", b"-1", b"1 1"]
)
def test_a_cookie_is_whole_bytes_in_hexadecimal(cookie: bytes) -> None:
    assert "cookie" in fault(PROTOCOL, cookie, 0)


def test_lengths_and_screens_have_limits() -> None:
    assert fault(b"p" * (PROTOCOL_LIMIT + 1), COOKIE, 0)
    assert fault(PROTOCOL, b"0" * (COOKIE_LIMIT + 2), 0)
    assert fault(PROTOCOL, COOKIE, SCREEN_LIMIT + 1)
    assert fault(PROTOCOL, COOKIE, 0xFFFFFFFF)


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 0xFFFFFFFF))
def test_what_is_let_through_is_one_word_each(protocol: bytes, cookie: bytes, screen: int) -> None:
    if not fault(protocol, cookie, screen):
        assert len((protocol + b" " + cookie).split()) == 2
        assert bytes.fromhex(cookie.decode())
