"""What is an address, and what is a name."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.aio.addresses import is_address, look_up, socket_address
from appliance.aio.connecting import connect_address
from appliance.aio.listening import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2001:db8::1", "fe80::1%lo", "fe80::1%1"])
def test_an_address_is_one(host: str) -> None:
    assert is_address(host)


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "127.1", "0x7f.1", "127.0.0.1%x", "127.0.0.1%é", "::1%é", "::1%nosuch",
     "::1\0", "127.0.0.1 ", "[::1]", "%lo", "fe80::1%", "::1%4294967296",
     pytest.param("::1%" + "9" * 5000, id="a long zone")],
)  # fmt: skip
def test_everything_else_is_a_name_and_nothing_is_looked_up(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("it was looked up"))
    assert not is_address(host)
    if host != "localhost":
        assert connect_address(host, 80) is None


@given(st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    found = socket_address(text, 80)
    assert found is None or found[0] in (socket.AF_INET, socket.AF_INET6)
    if found is None:
        with pytest.raises(OSError, match="is not an address"):
            listen([text], 0)


@pytest.mark.parametrize(
    "name", ["a..b", "x" * 70, "é" * 300, "a" * 300 + ".example", "\ud800", "\0"]
)
def test_a_name_that_cannot_be_is_an_error_of_the_system(name: str) -> None:
    with pytest.raises(OSError):
        look_up(name, 80)
