"""Who is let in to a display: only a program that shows the cookie of a session, whole."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.wire.x11 import COOKIE_PROTOCOL, SetUpRequest, read_set_up
from appliance.x11.set_up import Authorization, SetUp, SetUpState, authorized

FAKE = bytes(range(16))
REAL = Authorization(COOKIE_PROTOCOL, bytes(range(100, 116)))
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def request(order: str, name: bytes = COOKIE_PROTOCOL, data: bytes = FAKE) -> bytes:
    return SetUpRequest(order, 11, 0, name, data).encode()


def set_up(data: bytes) -> SetUp[str]:
    made = SetUp({bytes(16): "other", FAKE: "mine"})
    made.receive(data)
    return made


@ORDERS
def test_the_right_cookie_passes_and_the_displays_own_takes_its_place(order: str) -> None:
    made = set_up(request(order))
    assert (made.state, made.grant, made.rest) == (SetUpState.PASSED, "mine", b"")
    passed = authorized(made.request, REAL)
    assert FAKE not in passed
    assert passed == request(order, *REAL)


@ORDERS
def test_a_display_without_access_control_is_told_no_cookie(order: str) -> None:
    passed = authorized(set_up(request(order)).request, Authorization())
    assert passed == struct.pack(order + "BxHHHHxx", request(order)[0], 11, 0, 0, 0)


@ORDERS
def test_a_request_may_come_byte_by_byte_and_with_more_behind_it(order: str) -> None:
    made = SetUp({FAKE: "mine"})
    data = request(order)
    for place in range(len(data) - 1):
        made.receive(data[place : place + 1])
        assert made.state is SetUpState.READING
    made.receive(data[-1:] + b"glued")
    assert made.state is SetUpState.PASSED
    assert made.rest == b"glued"


@ORDERS
@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        (b"", b"", "no cookie"),
        (COOKIE_PROTOCOL, bytes(range(1, 17)), "a wrong cookie"),
        (COOKIE_PROTOCOL, FAKE[:15], "a wrong cookie"),
        (COOKIE_PROTOCOL, FAKE + b"x", "a wrong cookie"),
        (COOKIE_PROTOCOL, b"", "a wrong cookie"),
        (COOKIE_PROTOCOL[:-1], FAKE, "another kind of authorization"),
        (b"XDM-AUTHORIZATION-1", FAKE, "another kind of authorization"),
    ],
)
def test_others_are_told_in_their_byte_order_that_they_are_turned_away(
    order: str, name: bytes, data: bytes, why: str
) -> None:
    made = set_up(request(order, name, data))
    assert (made.state, made.grant, made.why) == (SetUpState.REFUSED, None, why)
    answer = made.failed("go away")
    assert struct.unpack(order + "BBHHH", answer[:8]) == (0, 7, 11, 0, 2)
    assert answer[8:] == b"go away\0"


@ORDERS
@pytest.mark.parametrize(("name", "data"), [(257, 16), (18, 1025), (65535, 65535)])
def test_lengths_over_the_limits_are_refused_at_once(order: str, name: int, data: int) -> None:
    made = set_up(struct.pack(order + "BxHHHHxx", request(order)[0], 11, 0, name, data))
    assert made.state is SetUpState.REFUSED
    assert made.failed("no")


def test_no_cookie_passes_where_no_session_has_asked() -> None:
    made: SetUp[str] = SetUp({})
    made.receive(request("<"))
    assert made.state is SetUpState.REFUSED


def test_another_version_and_another_byte_order_are_refused() -> None:
    assert set_up(SetUpRequest("<", 10, 0, COOKIE_PROTOCOL, FAKE).encode()).why
    made = set_up(b"x")
    assert made.state is SetUpState.REFUSED
    assert made.failed("no") == b""


@given(st.binary(max_size=60))
def test_arbitrary_bytes_pass_nowhere(data: bytes) -> None:
    assert set_up(data).state is not SetUpState.PASSED


@given(
    st.builds(
        SetUpRequest,
        st.sampled_from("<>"),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.binary(max_size=256),
        st.binary(max_size=1024),
    ),
    st.binary(max_size=9),
)
def test_a_request_survives_the_round_trip(made: SetUpRequest, behind: bytes) -> None:
    data = made.encode()
    assert read_set_up(data + behind) == (made, len(data))
    assert read_set_up(data[:-1]) is None
