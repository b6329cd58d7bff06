"""What -L, -R and -D take, as OpenSSH reads it."""

import pytest

from appliance.config.forwards import DYNAMIC, LOCAL, REMOTE, Forward, TcpPlace, forward


@pytest.mark.parametrize(
    ("direction", "text", "listen", "target"),
    [
        (LOCAL, "8080:host:80", TcpPlace(None, 8080), TcpPlace("host", 80)),
        (LOCAL, "127.0.0.1:8080:host:80", TcpPlace("127.0.0.1", 8080), TcpPlace("host", 80)),
        (LOCAL, "[::1]:8080:[2001:db8::1]:80", TcpPlace("::1", 8080), TcpPlace("2001:db8::1", 80)),
        (LOCAL, ":8080:host:80", TcpPlace("", 8080), TcpPlace("host", 80)),
        (LOCAL, "*:8080:host:80", TcpPlace("*", 8080), TcpPlace("host", 80)),
        (LOCAL, "8080:/run/a.sock", TcpPlace(None, 8080), "/run/a.sock"),
        (LOCAL, "localhost:8080:/run/a.sock", TcpPlace("localhost", 8080), "/run/a.sock"),
        (LOCAL, "/run/a.sock:host:80", "/run/a.sock", TcpPlace("host", 80)),
        (LOCAL, "/run/a.sock:/run/b.sock", "/run/a.sock", "/run/b.sock"),
        (REMOTE, "0:host:80", TcpPlace(None, 0), TcpPlace("host", 80)),
        (REMOTE, "8080", TcpPlace(None, 8080), None),
        (REMOTE, "*:0", TcpPlace("*", 0), None),
        (REMOTE, "/run/a.sock", "/run/a.sock", None),
        (REMOTE, "192.0.2.1:80:/run/b.sock", TcpPlace("192.0.2.1", 80), "/run/b.sock"),
        (DYNAMIC, "1080", TcpPlace(None, 1080), None),
        (DYNAMIC, "[::]:1080", TcpPlace("::", 1080), None),
        (DYNAMIC, "/run/socks.sock", "/run/socks.sock", None),
    ],
)
def test_the_forms(direction: str, text: str, listen: object, target: object) -> None:
    assert forward(direction, text) == Forward(direction, listen, target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "text"),
    [
        (LOCAL, ""),
        (LOCAL, "8080"),
        (LOCAL, "8080:host"),
        (LOCAL, "8080:host:99999"),
        (LOCAL, "8080:host:0"),
        (LOCAL, "8080:host:"),
        (LOCAL, "8080:host:0xff"),
        (LOCAL, "0:host:80"),
        (LOCAL, "1:2:3:4:5"),
        (LOCAL, "8080:-host:80"),
        (LOCAL, "8080:ho st:80"),
        (LOCAL, "[::1:8080:host:80"),
        (LOCAL, "[::1]8080:host:80"),
        (LOCAL, "::1:8080:host:80"),
        (LOCAL, "/a:/b:/c"),
        (LOCAL, "/a"),
        (REMOTE, "x"),
        (REMOTE, "65536"),
        (REMOTE, "4294967295:host:80"),
        (DYNAMIC, "0"),
        (DYNAMIC, "no"),
        (DYNAMIC, "1080:host:80"),
    ],
)
def test_mistakes_are_told_with_the_form_that_is_expected(direction: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected \[address:\]port"):
        forward(direction, text)


def test_a_forward_reads_as_it_was_written() -> None:
    for text in ("8080:host:80", "[::1]:80:[::2]:90", "/a.sock:/b.sock", "*:80:/b.sock"):
        assert str(forward(LOCAL, text)) == text
    assert str(forward(DYNAMIC, "1080")) == "1080"
