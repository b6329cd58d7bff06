"""How long a login waits for a server, by a clock that only a test moves."""

import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from appliance.aio.dial import HANDSHAKE_SECONDS, DialFailed, LoginTime, Patience, login
from appliance.wire.messages import Ignore, ServiceAccept, UserauthBanner, UserauthFailure
from tests.protocol.harness import Recorder, Script, make_client

PATIENCE = Patience(handshake=10, silence=100, answer=1000)


class Dialled:
    """A client that has just connected, and the server that a test plays."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self.script = Script(make_client(Recorder()))
        self.now = 0.0
        self.time = LoginTime(self.script.peer, patience, 0.0)

    def after(self, seconds: float, step: Callable[[], object], asking: float = 0) -> float:
        """The server does something; the user is asked for so long. Returns the new limit."""
        self.now += seconds
        began = self.now
        step()
        self.now += asking
        self.time.handled(began, self.now)
        return self.time.until

    def text(self) -> str:
        return str(self.time.expired())


def test_a_server_that_says_nothing_has_the_time_of_a_handshake() -> None:
    it = Dialled()
    assert it.time.until == 10
    assert it.text() == "Connection timed out during banner exchange"


def test_lines_of_greeting_give_no_more_time() -> None:
    it = Dialled()
    for _ in range(9):
        assert it.after(1, lambda: it.script.raw(b"one moment\r\n")) == 10
    assert it.text() == "Connection timed out during banner exchange"


def test_the_time_of_a_handshake_lasts_until_the_login_begins() -> None:
    it = Dialled()
    assert it.after(3, it.script.begin) == 10
    assert it.after(3, it.script.exchange) == 10
    assert it.text() == "Connection timed out during key exchange"
    assert it.after(3, lambda: it.script.send(ServiceAccept("ssh-userauth"))) > 10
    assert it.text() == "Connection timed out during authentication"


def test_the_time_in_which_the_user_looks_at_the_host_key_does_not_count() -> None:
    it = Dialled()
    assert it.after(3, it.script.begin, asking=500) == 510


def test_each_request_of_the_login_has_a_time_of_its_own() -> None:
    it = Dialled(Patience(10, 5000, 1000))
    assert it.after(3, it.script.connect) == 10
    assert it.after(6, lambda: it.script.send(ServiceAccept("ssh-userauth"))) == 1009
    assert it.script.numbers() == [5, 50]
    assert it.after(6, lambda: it.script.send(UserauthFailure(("password",), False)), 60) == 1075
    assert it.text() == "Connection timed out during authentication"


def test_what_brings_a_login_no_further_gives_no_more_time() -> None:
    it = Dialled()
    until = it.after(3, it.script.serve)
    assert until == 103
    for number in range(1, 100):
        message = Ignore(b"") if number % 2 else UserauthBanner("wait")
        assert it.after(9, partial(it.script.send, message)) <= 1003
    it.after(9, it.script.exchange)
    assert it.time.until <= 1003


def test_a_server_that_falls_silent_is_given_up_earlier() -> None:
    """By ServerAliveInterval and ServerAliveCountMax, as in OpenSSH."""
    it = Dialled(Patience(1000, 4, 1000))
    assert it.time.until == 4
    it = Dialled(Patience(1000, 4, 1000))
    assert it.after(3, it.script.connect) == 7
    assert it.after(3, lambda: it.script.send(Ignore(b""))) == 10


def test_a_command_may_ask_its_user_before_the_first_byte() -> None:
    """As a jump host's client does, which wants a password or a key to be touched."""
    it = Dialled(Patience(math.inf, 4, 1000, by_command=True))
    assert it.time.until == math.inf
    assert it.after(600, it.script.begin) == 604
    it = Dialled(Patience(10, 4, 1000, by_command=True))  # ConnectTimeout counts all the same
    assert it.time.until == 10
    it = Dialled(Patience(math.inf, 5000, 5000, by_command=True))
    assert it.after(600, lambda: it.script.raw(b"one moment\r\n")) == 600 + HANDSHAKE_SECONDS
    assert it.after(9, lambda: it.script.raw(b"one moment\r\n")) == 600 + HANDSHAKE_SECONDS


def test_a_server_that_takes_no_bytes_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16), socket.MSG_DONTWAIT)
        with pytest.raises(DialFailed, match="Connection timed out during banner exchange"):
            login(ours, make_client(Recorder()), Patience(handshake=0.05))
