"""Every form of DISPLAY that Xlib takes, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.x11.display import Display, display


def local(number: int, screen: int = 0) -> Display:
    path = b"/tmp/.X11-unix/X%d" % number
    return Display((path, b"\0" + path), "", "any", number, screen)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (":0", local(0)),
        (":12.3", local(12, 3)),
        ("unix:0", local(0)),
        ("unix/:1", local(1)),
        ("local/:1.2", local(1, 2)),
        ("unix/host:1", local(1)),
        ("localhost:10.0", Display((), "localhost", "any", 10, 0)),
        ("host:1.2", Display((), "host", "any", 1, 2)),
        ("tcp/host:0", Display((), "host", "any", 0, 0)),
        ("inet/host:0", Display((), "host", "inet", 0, 0)),
        ("inet6/host:0", Display((), "host", "inet6", 0, 0)),
        ("192.0.2.1:0", Display((), "192.0.2.1", "any", 0, 0)),
        ("[::1]:0", Display((), "::1", "any", 0, 0)),
        ("::1:0", Display((), "::1", "any", 0, 0)),
        ("[fe80::1%eth0]:0.1", Display((), "fe80::1%eth0", "any", 0, 1)),
        ("/x/sock", Display((b"/x/sock",), "", "any", 0, 0)),
        ("unix:/x/sock", Display((b"/x/sock",), "", "any", 0, 0)),
        ("unix//x/sock", Display((b"/x/sock",), "", "any", 0, 0)),
        (
            "/tmp/launchd.x/org.xquartz:0",
            Display(
                (b"/tmp/launchd.x/org.xquartz:0", b"/tmp/launchd.x/org.xquartz"), "", "any", 0, 0
            ),
        ),
        ("/x/s:7.2", Display((b"/x/s:7.2", b"/x/s:7", b"/x/s"), "", "any", 7, 2)),
        ("unix:/x/s7.2", Display((b"/x/s7.2", b"/x/s7"), "", "any", 0, 2)),
    ],
)
def test_a_display(text: str, wanted: Display) -> None:
    assert display(text) == wanted


def test_a_tcp_display_has_its_port() -> None:
    assert display("host:12").port == 6012


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "0", "host", "host:", "host:x", ":0.", ":0.x", ":-1", ":123456", ":0.401",
        "$(id):0", "`id`:0", "a b:0", "a;b:0", ":0\n", ":0\0", "host:59536", "tcp/:0",
        ":0.1.2", "dnet/host:0",
        "ü:0", "-o:0'", "x" * 300 + ":0", "decnet::0\n", "/x:0.999",
    ],
)  # fmt: skip
def test_what_is_no_display(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        display(text)


@given(st.text(max_size=40))
def test_arbitrary_text_is_a_display_or_none(text: str) -> None:
    try:
        found = display(text)
    except ValueError:
        return
    assert bool(found.paths) != bool(found.host)
