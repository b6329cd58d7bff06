"""Programs of a session whose round trips are hidden, from their sockets to their channels."""

import socket
from collections.abc import Iterator

import pytest

from appliance.services.x11_relay import X11Program, X11Relays
from appliance.ssh.channels import ChannelHandler
from appliance.wire.forward import X11, X11Open
from appliance.wire.session import X11Request
from appliance.wire.x11 import COOKIE_PROTOCOL, SetUpRequest, read_set_up
from tests.protocol.harness import Event, Pair, Recording
from tests.unit.services.harness import FakeDriver
from tests.unit.x11.xserver import SYNC, XServer, intern_atom, request, set_up_reply

COOKIE = bytes(range(16))


class Shown(Recording):
    """The client's end of a channel, with an X server behind it."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__(events)
        self.set_up: SetUpRequest | None = None
        self.server = XServer()
        self.is_still = False

    def data(self, view: memoryview) -> None:
        self.channel.consume(len(view))
        data = bytes(view)
        if self.set_up is None:
            found = read_set_up(data)
            assert found is not None
            self.set_up, size = found
            data = data[size:]
            self.channel.send(set_up_reply())
        if (answer := self.server.receive(data)) and not self.is_still:
            self.channel.send(answer)

    def eof(self) -> None:
        self.channel.close()


class Session:
    """The server's end of a session's display, and programs."""

    def __init__(self, mode: str) -> None:
        self.pair = Pair().log_in()
        self.driver = FakeDriver(self.pair, self.pair.server)
        self.handlers: list[Shown] = []
        self.pair.at_client.handler = self._shown
        asked = X11Request(False, COOKIE_PROTOCOL, COOKIE.hex().encode(), 0)
        self.relays = X11Relays(self.driver, asked, mode)  # type: ignore[arg-type]
        self.offered: set[ChannelHandler] = set()
        self.ends: list[socket.socket] = []
        self.is_still = False

    def _shown(self, events: list[Event]) -> Recording:
        self.handlers.append(Shown(events))
        self.handlers[-1].is_still = self.is_still
        return self.handlers[-1]

    def program(self, byte_order: str = "<") -> socket.socket:
        """Begin a program; it says who it is."""
        here, there = socket.socketpair()
        self.ends.append(there)
        program = X11Program(here, self.driver, self.offered, self.relays)  # type: ignore[arg-type]
        opening = X11Open("127.0.0.1", 1).encode()
        program.join(self.pair.server.open_channel(X11, opening, program))
        there.sendall(SetUpRequest(byte_order, 11, 0, COOKIE_PROTOCOL, COOKIE).encode())
        there.settimeout(10)
        self.heard(there, len(set_up_reply()))
        return there

    def heard(self, program: socket.socket, size: int) -> bytes:
        """What a program reads next."""
        data = b""

        def is_there() -> bool:
            nonlocal data
            program.setblocking(False)
            try:
                data += program.recv(size - len(data))
            except BlockingIOError:
                return False
            return len(data) == size

        self.driver.run_until(is_there)
        return data

    def run(self, turns: int = 30) -> None:
        """Serve for a while."""
        left = iter(range(turns))
        self.driver.run_until(lambda: next(left, None) is None)

    def close(self) -> None:
        self.pair.client.transport.close()
        self.pair.pump()
        self.run(3)
        for end in self.ends:
            end.close()
        self.driver.loop.close()


@pytest.fixture
def it(request: pytest.FixtureRequest) -> Iterator[Session]:
    session = Session(getattr(request, "param", "on"))
    yield session
    session.close()


def test_a_program_is_answered_without_its_server(it: Session) -> None:
    program = it.program()
    program.sendall(SYNC + request(17, 0, "I", 69))  # GetAtomName
    assert it.heard(program, 64)[32] == 1
    it.run()
    assert it.handlers[0].server.requests == [SYNC, SYNC]


@pytest.mark.parametrize("it", ["auto", "off"], indirect=True)
def test_a_short_line_has_no_relay(it: Session) -> None:
    program = it.program()
    program.sendall(intern_atom(b"WM_STATE"))
    it.heard(program, 32)
    assert len(it.handlers) == 1
    assert it.handlers[0].server.requests == [intern_atom(b"WM_STATE")]


def test_a_long_line_has_one(it: Session) -> None:
    it = Session("auto")
    try:
        it.relays.measured(0.1)
        assert it.relays.is_on
    finally:
        it.close()


def test_a_program_of_the_other_byte_order_passes(it: Session) -> None:
    it.program()
    program = it.program(">")
    program.sendall(b"\x2b\0\0\1")
    it.run()
    assert it.handlers[-1].server._part == b"\x2b\0\0\1"  # as it came


def test_a_server_that_does_not_answer_questions_holds_no_program_up(it: Session) -> None:
    it.is_still = True
    program = it.program()
    program.sendall(SYNC)
    it.run()
    assert it.handlers[0].server.requests == []
    it.relays.ready()  # as after PATIENCE
    it.run()
    assert it.handlers[0].server.requests == [SYNC]


def test_many_requests_are_not_held(it: Session) -> None:
    it.is_still = True
    program = it.program()
    program.sendall(request(127) * 2000)
    it.driver.run_until(lambda: it.handlers[0].server.sequence == 2000)


def test_a_session_that_ends_asks_no_longer(it: Session) -> None:
    program = it.program()
    program.sendall(SYNC)
    it.heard(program, 32)
    it.relays.session_over()
    it.run()
    assert ("closed",) not in it.handlers[1].events  # the program goes on, and needs it
    program.close()
    it.driver.run_until(lambda: ("closed",) in it.handlers[1].events)


def test_without_its_connection_nothing_is_believed(it: Session) -> None:
    """The X server may be another one, with other atoms."""
    program = it.program()
    program.sendall(SYNC + intern_atom(b"WM_STATE"))
    it.heard(program, 64)
    it.handlers[1].channel.close()
    it.driver.run_until(lambda: not it.relays.is_on)
    before = len(it.handlers[0].server.requests)
    program.sendall(request(17, 0, "I", 1))
    it.heard(program, 32)
    assert it.handlers[0].server.requests[before:] == [request(17, 0, "I", 1)]
