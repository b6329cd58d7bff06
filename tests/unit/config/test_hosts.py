"""Hosts, jump hosts and proxies as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import hosts
from appliance.config.hosts import Destination, Endpoint, Proxy

from .toml import patient


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("", "a", 0)),
        ("u@a", ("u", "a", 0)),
        ("u@a.b:22", ("u", "a.b", 22)),
        ("a:65535", ("", "a", 65535)),
        ("[fd00::1]", ("", "fd00::1", 0)),
        ("u@[fd00::1]:2", ("u", "fd00::1", 2)),
        ("fd00::1", ("", "fd00::1", 0)),
        ("ssh://u@a:22", ("u", "a", 22)),
    ],
)
def test_a_destination_has_its_parts(text: str, parts: tuple[str, str, int]) -> None:
    assert hosts.destination(text) == Destination(*parts)


@pytest.mark.parametrize(
    "text",
    [
        *("", "@a", "u@", "a:", "a:0", "a:65536", "a:x", "a:22x", "-a", "-u@a", "u@-a", "a b"),
        *("[a", "a]", "[a]b", "[a]:", "[]", "a,b", "a;b", "a`b`", "$a", "a\nb", "u@v@a", "a/b"),
        *("a:²", "[a]:٣"),
    ],
)
def test_a_destination_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected \[user@\]host\[:port\]"):
        hosts.destination(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.b:22", ("a.b", 22)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
        ("*:80", ("*", 80)),
        ("[*]:80", ("*", 80)),
        ("a:*", ("a", 0)),
        ("*:*", ("*", 0)),
    ],
)
def test_an_endpoint_has_its_parts(text: str, parts: tuple[str, int]) -> None:
    assert hosts.endpoint(text) == Endpoint(*parts)


@pytest.mark.parametrize("port", ["0", "65536", "", "no", "0xffffffff", "4294967318", "-1", "22 "])
def test_a_port_that_is_none_never_means_any(port: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        hosts.endpoint(f"a:{port}")


@pytest.mark.parametrize("text", ["", "a", "22", ":22", "[]:22", "fd00::1:22", "a*:22", "a b:22"])
def test_an_endpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        hosts.endpoint(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://a:3128", ("http", "a", 3128, None, b"")),
        ("http://a:3128/", ("http", "a", 3128, None, b"")),
        ("socks5://[fd00::1]:1080", ("socks5", "fd00::1", 1080, None, b"")),
        ("http://u:@a:1", ("http", "a", 1, b"u", b"")),
        ("http://u:p%40%3a%C3%B6@a:1", ("http", "a", 1, b"u", "p@:ö".encode())),
        ("socks5://u:pö@a:1", ("socks5", "a", 1, b"u", "pö".encode())),
        ("socks5://u%3av:p@a:1", ("socks5", "a", 1, b"u:v", b"p")),
    ],
)
def test_a_proxy_has_its_parts(text: str, parts: tuple[str, str, int, bytes | None, bytes]) -> None:
    assert hosts.proxy(text) == Proxy(*parts)


SECRET = "pass1234"


@pytest.mark.parametrize(
    "text",
    [
        *("", "a:1", "a", "http://a", "http://a:0", "http://a:65536", "http://a:x", "HTTP://a:1"),
        *(
            "http://:1",
            "http://-a:1",
            "http://a:1/x",
            "http://a:1?x",
            "https://a:1",
            "socks4://a:1",
        ),
        *("http://fd00::1:1", "http://[]:1", "http://[fd00::1:1", "http:// a:1", "http://a:1\n"),
        *("socks5h://a:1", f"http://u:{SECRET}@a", f"http://u:{SECRET}%@a:1", "http://u@a:1"),
        *(f"http://u:{SECRET}%0a@a:1", f"http://:{SECRET}@a:1", f"http://u:{SECRET}/@a:1"),
        *(f"http://u%3a:{SECRET}@a:1", "socks5://u:@a:1", f"socks5://u:{SECRET * 40}@a:1"),
        *(f"socks5://{'u' * 256}:{SECRET}@a:1", f"http://u:{SECRET} @a:1", f"http://{SECRET}"),
    ],
)
def test_a_proxy_that_is_none_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        hosts.proxy(text)
    assert str(caught.value).startswith("expected ")
    assert SECRET not in str(caught.value)


@patient
@given(st.text(st.sampled_from("ab@:/[]%-.,0123456789 \n$ö") | st.characters()))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (hosts.destination, hosts.host_name, hosts.user_name, hosts.proxy):
        for written in (text, "http://" + text, "socks5://a:b@" + text):
            with contextlib.suppress(ValueError):
                parse(written)
