"""The same bytes mean the same, however they arrive; every algorithm carries a session."""

import pytest

from appliance.crypto.ciphers import AEAD, CIPHERS, MACS
from appliance.crypto.key_exchange import METHODS
from appliance.ssh.auth_client import Credentials
from tests.protocol.harness import ALL, FAST, Event, Pair, TestCredentials


def session(pair: Pair, size: int = 1 << 20) -> list[Event]:
    """Log in, have a session with data both ways, and end it; all events of both sides."""
    pair.pump(size)
    channel, accepted = pair.open()
    replies: list[bool] = []
    channel.request("exec", b"\0\0\0\4true", replies.append)
    channel.request("no", b"", replies.append)
    pair.client.global_request("yes", b"x", lambda data: replies.append(data == b""))
    pair.client.global_request("no", b"x", lambda data: replies.append(data is None))
    for number in range(5):
        channel.send(bytes([number]) * (number * 1000 + 1))
        accepted.send(bytes([number]) * (number * 3000 + 1))
        accepted.send_extended(1, b"stderr")
    pair.pump(size)
    pair.server.transport.rekey()
    pair.pump(size)
    channel.send(b"after")
    pair.pump(size)
    accepted.request("exit-status", b"\0\0\0\0")
    accepted.eof()
    accepted.close()
    pair.pump(size)
    pair.client.transport.close("bye")
    pair.pump(size)
    assert replies == [True, False, True, True]
    assert pair.client.transport.error is None
    return [*pair.at_client.events, ("--",), *pair.at_server.events, *pair.authority.asked]


@pytest.mark.parametrize(
    "cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"]
)
@pytest.mark.parametrize("compression", ["none", "zlib@openssh.com"])
def test_a_transcript_fed_whole_and_byte_by_byte_gives_the_same_events(
    cipher: str, compression: str
) -> None:
    algorithms = FAST._replace(cipher=(cipher,), mac=("hmac-sha2-256",), compression=(compression,))
    whole = session(Pair(algorithms))
    assert session(Pair(algorithms), 1) == whole
    assert session(Pair(algorithms), 7) == whole
    assert ("data", b"after") in whole


@pytest.mark.parametrize(
    ("cipher", "mac"),
    [
        *((cipher, "hmac-sha2-256") for cipher in AEAD),
        *((cipher, mac) for cipher in CIPHERS if cipher not in AEAD for mac in MACS),
    ],
)
def test_every_cipher_with_every_mac_carries_a_session(cipher: str, mac: str) -> None:
    session(Pair(FAST._replace(cipher=(cipher,), mac=(mac,))))


@pytest.mark.parametrize("method", METHODS)
def test_every_key_exchange_carries_a_session(method: str) -> None:
    session(Pair(FAST._replace(key_exchange=(method,))))


def test_two_sides_that_offer_everything_agree() -> None:
    session(Pair(ALL._replace(host_key=FAST.host_key)))


@pytest.mark.parametrize(
    ("credentials", "methods", "asked"),
    [
        (TestCredentials(), ("publickey",), ["show", "key"]),
        (TestCredentials(None), ("password",), ["none", "password"]),
        (TestCredentials(None), ("keyboard-interactive",), ["none", "keyboard-interactive"]),
    ],
)
def test_every_method_logs_in(
    credentials: Credentials, methods: tuple[str, ...], asked: list[str]
) -> None:
    pair = Pair(credentials=credentials, methods=methods).log_in()
    assert [event[0] for event in pair.authority.asked] == asked


def test_a_banner_comes_before_the_answer() -> None:
    pair = Pair(banner="hello").log_in()
    assert pair.at_client.events == [("banner", "hello"), ("authenticated",)]


def test_a_client_without_anything_that_helps_is_told_so() -> None:
    pair = Pair(credentials=TestCredentials(None, None))
    pair.pump()
    assert "Permission denied" in str(pair.client.transport.error)
    assert {event[0] for event in pair.authority.asked} == {"none"}


def test_the_two_directions_may_use_different_algorithms() -> None:
    """A peer that has one cipher to send and another to receive is served."""
    one = FAST._replace(cipher=("aes128-ctr", "aes256-ctr"), mac=("hmac-sha2-512",))
    other = FAST._replace(cipher=("aes256-ctr", "aes128-ctr"), mac=("hmac-sha2-512",))
    session(Pair(one, other))
