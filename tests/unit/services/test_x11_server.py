"""The display of a session: connections become channels, one or many, until the session ends."""

import socket
from collections.abc import Iterator

import pytest

from appliance.wire.session import Command, X11Request
from tests.unit.services.harness import SessionTest

COOKIE = b"00112233445566778899aabbccddeeff"


def x11_request(single: bool = False) -> bytes:
    return X11Request(single, b"MIT-MAGIC-COOKIE-1", COOKIE, 0).encode()


@pytest.fixture
def it() -> Iterator[SessionTest]:
    session = SessionTest()
    yield session
    for sock in session.offered:
        sock.close()
    session.close()


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_a_request_makes_a_display_and_its_program_gets_it(it: SessionTest) -> None:
    assert it.request("x11-req", x11_request())
    assert it.display_requests == [X11Request.decode(x11_request())]
    assert it.request("exec", Command(b"true").encode())
    assert it.privileges.displays == [7]
    it.run_until(lambda: it.has("closed"))
    assert it.closed_displays == [7]
    assert refused(it.display_port)


def test_a_program_without_a_request_gets_none(it: SessionTest) -> None:
    assert it.request("exec", Command(b"true").encode())
    assert it.privileges.displays == [0]
    it.run_until(lambda: it.has("closed"))


def test_each_connection_is_offered(it: SessionTest) -> None:
    assert it.request("x11-req", x11_request())
    programs = [socket.create_connection(("127.0.0.1", it.display_port)) for _ in range(3)]
    it.run_until(lambda: len(it.offered) == 3)
    origins = {sock.getpeername() for sock in it.offered}
    assert origins == {program.getsockname() for program in programs}
    for program in programs:
        program.close()


def test_of_a_single_connection_there_is_one(it: SessionTest) -> None:
    assert it.request("x11-req", x11_request(single=True))
    with (
        socket.create_connection(("127.0.0.1", it.display_port)),
        socket.create_connection(("127.0.0.1", it.display_port)),  # waits in the kernel's queue
    ):
        it.run_until(lambda: it.offered)
        assert refused(it.display_port)
    it.run_until(lambda: True)
    assert len(it.offered) == 1
    assert it.closed_displays == []  # the program has yet to read its cookie
    it.channel.close()
    it.run_until(lambda: it.has("closed"))
    assert it.closed_displays == [7]


def test_a_second_request_is_refused_and_the_first_display_stays(it: SessionTest) -> None:
    assert it.request("x11-req", x11_request())
    assert not it.request("x11-req", x11_request())
    assert len(it.display_requests) == 1
    assert not refused(it.display_port)


def test_a_request_comes_too_late_for_a_program_that_runs(it: SessionTest) -> None:
    assert it.request("exec", Command(b"cat").encode())
    assert not it.request("x11-req", x11_request())
    it.channel.eof()
    it.run_until(lambda: it.has("closed"))


def test_a_session_whose_display_is_refused_goes_on_without(it: SessionTest) -> None:
    it.no_display = True
    assert not it.request("x11-req", x11_request())
    assert it.request("exec", Command(b"echo on").encode())
    it.run_until(lambda: it.has("closed"))
    assert it.output() == b"on\n"
    assert it.privileges.displays == [0]
    assert it.closed_displays == []


@pytest.mark.parametrize("cut", [1, 4, 40])
def test_a_malformed_request_ends_the_connection_as_the_peers_fault(
    it: SessionTest, cut: int
) -> None:
    it.channel.request("x11-req", x11_request()[:-cut])
    it.pair.pump()
    assert it.pair.server.transport.error is not None


def test_the_end_of_the_connection_ends_the_display(it: SessionTest) -> None:
    assert it.request("x11-req", x11_request())
    it.pair.server.transport.close()
    it.pair.pump()
    assert it.closed_displays == [7]
    assert refused(it.display_port)
