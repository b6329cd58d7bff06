"""The handshakes with proxies: what is sent and understood, and not a byte of SSH is lost."""

import contextlib
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.aio.proxy import HEADER_LIMIT, ProxyFailed, ProxyHandshake, parse_status
from appliance.config.hosts import proxy

SSH = b"SSH-2.0-server\r\n"
OK = b"HTTP/1.1 200 OK\r\n\r\n"
SOCKS_OK = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)
SOCKS_LOGIN_OK = b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x01" + bytes(6)
URLS = ("http://p:1", "http://u:secret@p:1", "socks5://p:1", "socks5://u:secret@p:1")


@contextmanager
def pair(answer: bytes) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our socket and the proxy's, which has answered all already."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        yield ours, theirs


def talk(url: str, answer: bytes, host: str = "host", port: int = 22) -> tuple[bytes, bytes]:
    """What was sent, and what was left of the answer."""
    with pair(answer) as (ours, theirs):
        theirs.shutdown(socket.SHUT_WR)
        ProxyHandshake(proxy(url), host, port).run(ours, 5)
        left = ours.recv(1 << 16)
        ours.close()
        return theirs.recv(1 << 16), left


def refusal(url: str, answer: bytes, host: str = "host") -> str:
    with pytest.raises(ProxyFailed) as caught:
        talk(url, answer, host)
    text = str(caught.value)
    assert text.startswith("proxy p port 1: ")
    assert "secret" not in text and text.isprintable()
    return text.removeprefix("proxy p port 1: ")


# -- HTTP --------------------------------------------------------------------------------


def test_connect_names_the_host_and_shows_the_credentials() -> None:
    sent, left = talk("http://u:s%3Ae@p:1", OK + SSH)
    assert left == SSH
    head, secret = sent.split(b"Proxy-Authorization: Basic ")
    assert head == b"CONNECT host:22 HTTP/1.1\r\nHost: host:22\r\n"
    assert secret.endswith(b"\r\n\r\n") and b64decode(secret) == b"u:s:e"
    assert b"Authorization" not in talk("http://p:1", OK)[0]
    assert talk("http://p:1", OK, "fd00::1")[0].startswith(b"CONNECT [fd00::1]:22 HTTP/1.1\r\n")
    assert talk("http://p:1", OK, "ö.example")[0].startswith(b"CONNECT xn--nda.example:22 ")


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.0 200\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No \xff Content\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEADER_LIMIT - 26) + b"\r\n\r\n",
    ],
)
def test_a_header_of_success_is_read_to_its_last_byte(answer: bytes) -> None:
    assert talk("http://p:1", answer + SSH)[1] == SSH
    assert talk("http://p:1", answer + b"\r\n\r\n" + SSH)[1] == b"\r\n\r\n" + SSH


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Authenticate\r\n\r\n", "the proxy wants credentials"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "it refuses: 403 Forbidden"),
        (b"HTTP/1.1 502\r\n\r\n", "it refuses: 502"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "it refuses: 100 Continue"),
        (b"HTTP/1.1 403 \x1b[31mno\r\n\r\n", r"it refuses: 403 \x1b[31mno"),
        (b"HTTP/2 200 OK\r\n\r\n", "this is no HTTP proxy"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "this is no HTTP proxy"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "this is no HTTP proxy"),
        (b"HTTP/1.1 200OK\r\n\r\n", "this is no HTTP proxy"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "this is no HTTP proxy"),
        ("HTTP/1.1 ²00 OK\r\n\r\n".encode("latin-1"), "this is no HTTP proxy"),
        (SSH + b"\r\n\r\n", "this is no HTTP proxy"),
        (b"\r\n\r\n", "this is no HTTP proxy"),
        (b"", "it closed the connection"),
        (b"HTTP/1.1 200 OK\r\n", "it closed the connection"),
        (b"HTTP/1.1 200 OK\n\n", "it closed the connection"),
        (b"x" * HEADER_LIMIT, "its answer has more than 8192 bytes"),
        (b"x" * HEADER_LIMIT * 2, "its answer has more than 8192 bytes"),
    ],
)
def test_any_other_header_is_a_refusal(answer: bytes, words: str) -> None:
    assert refusal("http://p:1", answer) == words


@pytest.mark.parametrize("code", [b"407", b"401"])
def test_a_password_that_is_not_accepted_is_told_without_it(code: bytes) -> None:
    answer = b"HTTP/1.1 " + code + b" secret\r\n\r\n"
    assert refusal("http://u:secret@p:1", answer) == "the proxy wants other credentials"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60) | st.text(max_size=20).map(lambda t: f"HTTP/1.1 {t}".encode()))
def test_any_status_line_is_understood_or_refused(line: bytes) -> None:
    try:
        code, _ = parse_status(line)
    except ProxyFailed:
        return
    assert 100 <= code <= 999


# -- SOCKS -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("host", b"\x03\x04host"),
        ("10.0.0.1", b"\x01\x0a\x00\x00\x01"),
        ("fd00::1", b"\x04\xfd" + bytes(14) + b"\x01"),
        ("ö.example", b"\x03\x0fxn--nda.example"),
        ("x" * 63 + ".y", b"\x03\x41" + b"x" * 63 + b".y"),
    ],
)
def test_socks_gets_the_name_or_the_address(host: str, address: bytes) -> None:
    sent, left = talk("socks5://p:1", SOCKS_OK + SSH, host, 0x1234)
    assert sent == b"\x05\x01\x00" + b"\x05\x01\x00" + address + b"\x12\x34"
    assert left == SSH


def test_socks_asks_with_name_and_password_only_if_the_proxy_wants_them() -> None:
    url = "socks5://us:pass@p:1"
    request = b"\x05\x01\x00\x03\x04host\x00\x16"
    assert talk(url, SOCKS_OK)[0] == b"\x05\x02\x00\x02" + request
    sent = talk(url, SOCKS_LOGIN_OK)[0]
    assert sent == b"\x05\x02\x00\x02" + b"\x01\x02us\x04pass" + request


@pytest.mark.parametrize(
    "bound", [b"\x01" + bytes(4), b"\x04" + bytes(16), b"\x03\x00", b"\x03\x05hello"]
)
def test_socks_answers_of_each_length_are_read_to_their_last_byte(bound: bytes) -> None:
    answer = b"\x05\x00\x05\x00\x00" + bound + b"\x00\x07"
    assert talk("socks5://p:1", answer + SSH)[1] == SSH


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x04\x00", "this is no SOCKS 5 proxy"),
        (b"HT", "this is no SOCKS 5 proxy"),
        (b"\x05\x02", "it wants a method that was not offered"),
        (b"\x05\xff", "the proxy wants credentials"),
        (b"\x05", "it closed the connection"),
        (b"", "it closed the connection"),
        (b"\x05\x00\x05\x05\x00\x01", "it refuses: connection refused"),
        (b"\x05\x00\x05\x02\x00\x01", "it refuses: not allowed"),
        (b"\x05\x00\x05\x63\x00\x01", "it refuses: code 99"),
        (b"\x05\x00\x04\x00\x00\x01", "its answer is malformed"),
        (b"\x05\x00\x05\x00\x01\x01", "its answer is malformed"),
        (b"\x05\x00\x05\x00\x00\x02", "its answer is malformed"),
        (b"\x05\x00\x05\x00\x00\x01" + bytes(5), "it closed the connection"),
        (b"\x05\x00\x05\x00\x00\x03\x09abc", "it closed the connection"),
    ],
)
def test_any_other_socks_answer_is_a_refusal(answer: bytes, words: str) -> None:
    assert refusal("socks5://p:1", answer) == words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x05\x02\x01\x01", "the proxy wants other credentials"),
        (b"\x05\xff", "the proxy wants other credentials"),
        (b"\x05\x02\x05\x00", "its answer is malformed"),
        (b"\x05\x01", "it wants a method that was not offered"),
    ],
)
def test_socks_credentials_that_are_not_accepted(answer: bytes, words: str) -> None:
    assert refusal("socks5://u:secret@p:1", answer) == words


# -- both --------------------------------------------------------------------------------


@pytest.mark.parametrize("url", URLS)
@settings(deadline=None)
@given(answer=st.binary(max_size=40))
def test_any_answer_succeeds_or_is_a_refusal(url: str, answer: bytes) -> None:
    with contextlib.suppress(ProxyFailed):
        talk(url, answer)


class Drip:
    """A socket that has one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 5

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, count: int, flags: int = 0) -> bytes:
        assert count > 0
        byte = self.left[:1]
        if not flags & socket.MSG_PEEK:
            self.left = self.left[1:]
        return byte


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("http://p:1", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
        ("socks5://p:1", SOCKS_OK),
        ("socks5://u:p@p:1", SOCKS_LOGIN_OK),
    ],
)
def test_byte_by_byte_is_as_good_as_at_once(url: str, answer: bytes) -> None:
    drip = Drip(answer + SSH)
    ProxyHandshake(proxy(url), "host", 22).run(drip, 5)  # type: ignore[arg-type]
    assert drip.left == SSH


@pytest.mark.parametrize("url", URLS)
def test_a_silent_proxy_is_given_up_in_time(url: str) -> None:
    with pair(b"") as (ours, _):
        begin = time.monotonic()
        with pytest.raises(ProxyFailed, match=r"proxy p port 1: no answer within 0 s"):
            ProxyHandshake(proxy(url), "host", 22).run(ours, 0.05)
        assert time.monotonic() - begin < 2


def test_a_proxy_that_drips_is_given_up_in_time_too() -> None:
    class Slow(Drip):
        def recv(self, count: int, flags: int = 0) -> bytes:
            time.sleep(0.01)
            return super().recv(count, flags)

    with pytest.raises(ProxyFailed, match="no answer within"):
        ProxyHandshake(proxy("http://p:1"), "host", 22).run(Slow(b"x" * 10000), 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("host", ["ö" * 100, "a..ö"])
def test_a_name_that_cannot_be_said_is_refused(url: str, host: str) -> None:
    with pytest.raises(ProxyFailed, match="not a host name"):
        ProxyHandshake(proxy(url), host, 22)


@pytest.mark.parametrize("url", URLS)
def test_a_handshake_needs_no_modules_once_it_is_there(url: str) -> None:
    """Privileges, and the way to files, may be given up before it is run."""
    socks_answer = SOCKS_LOGIN_OK if "secret" in url else SOCKS_OK
    answer = socks_answer if "socks" in url else OK
    program = f"""
import socket, sys
from appliance.aio.proxy import ProxyHandshake
from appliance.config.hosts import proxy
ours, theirs = socket.socketpair()
theirs.sendall({answer!r})
handshake = ProxyHandshake(proxy({url!r}), "ö.example", 22)
before = set(sys.modules)
handshake.run(ours, 5)
raise SystemExit(str(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        timeout=30,
        check=False,
    )
    assert done.stderr == "set()\n"


def test_a_name_that_is_too_long_for_socks_is_refused() -> None:
    with pytest.raises(ProxyFailed, match="too long a name for SOCKS"):
        ProxyHandshake(proxy("socks5://p:1"), "x." * 128, 22)
