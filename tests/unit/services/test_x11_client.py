"""x11 channels at the display's end: who is let in, and who is told why not."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.connecting import Attempt
from appliance.services import x11_client
from appliance.services.base import X11_WINDOW
from appliance.services.x11_client import X11Client, X11Session, X11Settings
from appliance.ssh.channels import Channel
from appliance.wire.codec import Reader
from appliance.wire.forward import X11, X11Open
from appliance.wire.session import X11Request
from appliance.wire.x11 import COOKIE_PROTOCOL, SetUpRequest, read_set_up
from appliance.x11.display import Display
from appliance.x11.filter import EARLY_LIMIT
from appliance.x11.set_up import Authorization
from tests.protocol.harness import Pair, Recording
from tests.unit.services.harness import FakeDriver
from tests.unit.x11.server import OTHERS, OWN, ROOT, set_up_reply

REAL = Authorization(COOKIE_PROTOCOL, b"the display's own")


class Forwarded:
    """A client with a display, whose X server is the test; the test is the SSH server as well."""

    def __init__(self, folder: Path, timeout: int = 1200, trusted: bool = False) -> None:
        self.pair = Pair().log_in()
        self.driver = FakeDriver(self.pair, self.pair.client)
        self.path = folder / "X0"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.idle = 0
        display = Display((b"/nowhere", bytes(self.path)), "", "any", 0, 3)
        self.it = X11Client(
            X11Settings(display, REAL, trusted, timeout, "out"),
            self.driver,  # type: ignore[arg-type]
            self._be_idle,
        )
        self.pair.at_client.channel_open = self.it.channel_open  # type: ignore[method-assign]
        self.servers: list[socket.socket] = []

    def _be_idle(self) -> None:
        self.idle += 1

    def session(self, trusted: bool = False) -> X11Session:
        made = self.it.session(trusted)
        made.granted()
        return made

    def open(self) -> tuple[Channel, Recording]:
        """A channel that the SSH server opens, for a program that has connected there."""
        handler = Recording([])
        opening = X11Open("127.0.0.1", 5000).encode()
        handler.channel = channel = self.pair.server.open_channel(X11, opening, handler)
        self.pair.pump()
        return channel, handler

    def send(self, channel: Channel, data: bytes) -> None:
        while data and (room := channel.sendable()):
            channel.send(data[:room])
            data = data[room:]
            self.turn()
        self.turn()

    def turn(self) -> None:
        for _ in range(4):
            self.driver.loop.call_later(0, lambda: None)
            self.driver.loop._turn()
            self.pair.pump()

    def accepted(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(5)
        self.servers.append(sock)
        return sock

    def nobody_has_come(self) -> bool:
        try:
            self.accepted()
        except BlockingIOError:
            return True
        return False

    def let_in(
        self, session: X11Session, order: str = "<"
    ) -> tuple[Channel, Recording, socket.socket]:
        """A program that has shown its cookie, and was greeted by the X server."""
        channel, program = self.open()
        self.send(channel, greeting(session.cookie, order))
        server = self.accepted()
        assert server.recv(4096) == SetUpRequest(order, 11, 0, *REAL).encode()
        server.sendall(set_up_reply(order))
        self.turn()
        assert received(program) == set_up_reply(order)
        return channel, program, server

    def close(self) -> None:
        self.pair.client.transport.close()
        self.pair.pump()
        for sock in (*self.servers, self.listener):
            sock.close()
        self.turn()
        self.it.close()
        self.driver.loop.close()


def greeting(cookie: bytes, order: str = "<", name: bytes = COOKIE_PROTOCOL) -> bytes:
    return SetUpRequest(order, 11, 0, name, cookie).encode()


def received(program: Recording) -> bytes:
    return b"".join(event[1] for event in program.events if event[0] == "data")


def reason(program: Recording, order: str = "<") -> str:
    """Why the X server does not let the program in, as a toolkit prints it."""
    data = received(program)
    failed, length, major, _, words = struct.unpack_from(order + "BBHHH", data)
    assert (failed, major, len(data)) == (0, 11, 8 + 4 * words)
    return data[8 : 8 + length].decode()


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often this process would have been called ssh."""
    calls: list[None] = []
    monkeypatch.setattr(x11_client, "be_called_ssh", lambda: calls.append(None))
    return calls


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Forwarded]:
    made = Forwarded(tmp_path)
    yield made
    made.close()


def test_a_request_has_a_fresh_cookie_of_the_real_ones_length_and_the_screen(it: Forwarded) -> None:
    first, second = (X11Request.read(Reader(it.it.session(False).request)) for _ in range(2))
    assert first.authentication_cookie != second.authentication_cookie
    assert len(bytes.fromhex(first.authentication_cookie.decode())) == len(REAL.data)
    assert (first.authentication_protocol, first.screen_number) == (COOKIE_PROTOCOL, 3)
    assert not first.single_connection


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_program_with_the_cookie_talks_to_the_display(
    it: Forwarded, order: str, named: list[None]
) -> None:
    channel, program, server = it.let_in(it.session(), order)
    assert len(named) == 1
    it.send(channel, struct.pack(order + "BBH", 43, 0, 1))
    assert server.recv(100) == struct.pack(order + "BBH", 43, 0, 1)
    it.send(channel, struct.pack(order + "BBHI", 113, 0, 2, OTHERS))  # KillClient
    assert server.recv(100)[0] == 126
    server.sendall(bytes(8).ljust(32, b"\0"))
    it.turn()
    assert len(received(program)) == len(set_up_reply(order)) + 32
    assert it.it.programs == 1
    server.close()
    channel.close()
    it.turn()
    assert ("closed",) in program.events
    assert (it.it.programs, it.idle) == (0, 1)


def test_the_filter_is_for_who_is_not_trusted(tmp_path: Path) -> None:
    it = Forwarded(tmp_path, trusted=True)
    try:
        kill = struct.pack("<BBHI", 113, 0, 2, OTHERS)
        trusted, other = it.session(trusted=True), it.session(trusted=False)
        for session, seen in ((trusted, 113), (other, 126)):
            channel, _, server = it.let_in(session)
            it.send(channel, kill)
            assert server.recv(100)[0] == seen
    finally:
        it.close()


def test_a_session_is_never_trusted_more_than_its_connection(it: Forwarded) -> None:
    assert not it.it.session(trusted=True).trusted


def test_a_greeting_may_come_byte_by_byte_and_with_more_behind_it(it: Forwarded) -> None:
    session = it.session()
    channel, _ = it.open()
    data = greeting(session.cookie)
    for place in range(len(data) - 1):
        it.send(channel, data[place : place + 1])
        assert it.nobody_has_come()
    it.send(channel, data[-1:] + struct.pack("<BBH", 43, 0, 1))
    server = it.accepted()
    found = read_set_up(server.recv(4096))
    assert found is not None and found[0].data == REAL.data
    server.sendall(set_up_reply("<"))
    it.turn()
    assert server.recv(100) == struct.pack("<BBH", 43, 0, 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("cookie", "name", "why"),
    [
        (b"", b"", "no cookie"),
        (b"x" * 17, COOKIE_PROTOCOL, "a wrong cookie"),
        (b"x", COOKIE_PROTOCOL, "a wrong cookie"),
        (REAL.data, COOKIE_PROTOCOL, "a wrong cookie"),
        (b"x" * 17, b"XDM-AUTHORIZATION-1", "another kind of authorization"),
    ],
)
def test_a_program_without_the_cookie_is_told_so_and_the_display_sees_nothing(
    it: Forwarded, order: str, cookie: bytes, name: bytes, why: str
) -> None:
    it.session()
    channel, program = it.open()
    it.send(channel, greeting(cookie, order, name) + b"more")
    assert why in reason(program, order)
    assert program.events[-2:] == [("eof",), ("closed",)]
    assert it.nobody_has_come()
    assert (it.it.programs, it.idle) == (0, 1)


@pytest.mark.parametrize(
    "data", [b"x", b"GET / HTTP/1.0\r\n\r\n", struct.pack("<BxHHHHxx", 0x6C, 11, 0, 65535, 65535)]
)
def test_what_is_no_greeting_ends_its_channel_alone(it: Forwarded, data: bytes) -> None:
    session = it.session()
    channel, program = it.open()
    it.send(channel, data)
    assert ("closed",) in program.events
    assert it.nobody_has_come()
    it.let_in(session)


def test_a_greeting_that_is_cut_off_ends_its_channel(it: Forwarded) -> None:
    """OpenSSH's client keeps such a channel for ever."""
    session = it.session()
    channel, program = it.open()
    it.send(channel, greeting(session.cookie)[:5])
    channel.eof()
    it.turn()
    assert ("closed",) in program.events
    assert it.nobody_has_come()


def test_a_program_that_says_nothing_is_turned_away(
    it: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x11_client, "SET_UP_SECONDS", 0.0)
    session = it.session()
    _, program = it.open()
    it.turn()
    assert ("closed",) in program.events
    monkeypatch.setattr(x11_client, "SET_UP_SECONDS", 30.0)
    it.let_in(session)


def test_a_channel_that_nobody_asked_for_is_refused(it: Forwarded) -> None:
    it.it.session(False)  # requested, and not granted
    _, program = it.open()
    assert program.events == [("open_failed", 1), ("closed",)]


def test_none_is_accepted_after_the_session_and_those_that_exist_go_on(it: Forwarded) -> None:
    session = it.session()
    channel, _, server = it.let_in(session)
    session.end()
    _, program = it.open()
    assert program.events == [("open_failed", 1), ("closed",)]
    it.send(channel, struct.pack("<BBH", 43, 0, 1))
    assert server.recv(100)


def test_nor_after_the_timeout(it: Forwarded, monkeypatch: pytest.MonkeyPatch) -> None:
    session = it.session()
    channel, _, server = it.let_in(session)
    now = it.driver.loop.time()
    monkeypatch.setattr(it.driver.loop, "time", lambda: now + 1201)
    late, program = it.open()
    it.send(late, greeting(session.cookie))
    assert "ForwardX11Timeout" in reason(program)
    assert it.nobody_has_come()
    it.send(channel, struct.pack("<BBH", 43, 0, 1))
    assert server.recv(100)


def test_a_trusted_session_has_no_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Forwarded(tmp_path, trusted=True)
    try:
        session = it.session(trusted=True)
        now = it.driver.loop.time()
        monkeypatch.setattr(it.driver.loop, "time", lambda: now + 1e9)
        assert not session.is_expired
    finally:
        it.close()


def test_a_dead_display_is_said(it: Forwarded) -> None:
    session = it.session()
    it.listener.close()
    channel, program = it.open()
    it.send(channel, greeting(session.cookie))
    assert reason(program) == "culvert: the display cannot be reached: Connection refused"
    assert ("closed",) in program.events
    assert it.it.programs == 0


def test_a_display_that_stands_still_holds_no_more_than_a_window(it: Forwarded) -> None:
    channel, _, server = it.let_in(it.session())
    image = struct.pack("<BBHII", 72, 2, 60_000, OWN, OWN).ljust(240_000, b"\0")
    it.send(channel, image * 40)
    assert channel.sendable() == 0
    assert len(it.it._programs) == 1
    taken = 0
    while channel.sendable() == 0:
        taken += len(server.recv(1 << 20))
        it.turn()
    assert taken > 0


def test_what_the_filter_adds_gives_the_peer_no_larger_window(it: Forwarded) -> None:
    channel, _, server = it.let_in(it.session())
    create = struct.pack("<BBHIIhhHHHHII", 1, 24, 8, OWN, ROOT, 0, 0, 9, 9, 0, 1, 0, 0)
    ours = it.pair.client.open_channels()[0]
    for _ in range(30):
        it.send(channel, create * 5_000 + struct.pack("<BBH", 43, 0, 1))
        server.setblocking(False)
        while True:
            try:
                server.recv(1 << 20)
            except BlockingIOError:
                it.turn()
                if not it.driver.loop._writers:
                    break
        assert ours.receive_window + ours._credit == X11_WINDOW


def test_the_end_of_the_connection_ends_what_was_begun(it: Forwarded) -> None:
    session = it.session()
    it.let_in(session)
    it.open()
    it.pair.client.transport.close()
    it.pair.pump()
    it.turn()
    assert it.it.programs == 0
    assert it.servers[0].recv(10) == b""


def test_a_program_that_breaks_the_protocol_loses_its_channel(it: Forwarded) -> None:
    channel, program, server = it.let_in(it.session())
    it.send(channel, bytes(8))
    assert ("closed",) in program.events
    assert server.recv(10) == b""


class NoAnswer:
    """A display that neither takes a connection nor refuses it."""

    def __init__(self, _: object, attempt: Attempt, *__: object) -> None:
        self._sock = attempt.sock

    def cancel(self) -> None:
        self._sock.close()


def test_a_program_says_no_more_than_a_little_before_the_display_answers(
    it: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x11_client, "Connecting", NoAnswer)
    session = it.session()
    channel, program = it.open()
    it.send(channel, greeting(session.cookie) + bytes(EARLY_LIMIT))
    assert not received(program)
    it.send(channel, bytes(1))
    assert "before the display has answered" in reason(program)
    assert ("closed",) in program.events


def test_a_connection_has_no_more_programs_than_an_x_server_takes(
    it: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may hold a window of data while the display stands still.

    Those without a cookie do not count: other users of the server could take all places.
    """
    monkeypatch.setattr(x11_client, "PROGRAMS_LIMIT", 2)
    session = it.session()
    for _ in range(3):
        it.open()
    first, _, _ = it.let_in(session)
    it.let_in(session)
    channel, program = it.open()
    it.send(channel, greeting(session.cookie))
    assert "too many X11 programs" in reason(program)
    first.close()
    it.turn()
    it.servers[0].close()
    it.turn()
    it.let_in(session)
