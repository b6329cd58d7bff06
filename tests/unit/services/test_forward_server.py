"""The server's forwards: how many connections wait for the client's answer."""

import socket
from collections.abc import Iterator

import pytest

from appliance.services.base import Refused
from appliance.services.forward_server import OFFERED_LIMIT, ForwardServer
from appliance.wire.forward import AUTH_AGENT
from tests.protocol.harness import Pair
from tests.unit.services.harness import FakeDriver


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """Of a server whose client has logged in."""
    pair = Pair().log_in()
    it = FakeDriver(pair, pair.server)
    yield it
    it.loop.close()


class NoAgent:
    """Privileges of a user who may not forward an agent; they are asked once a connection."""

    asked = 0

    def listen_agent(self) -> socket.socket:
        self.asked += 1
        raise Refused("agent forwarding is not allowed")


def test_an_agent_that_is_refused_is_asked_for_once(driver: FakeDriver) -> None:
    """The monitor ends a worker that asks again, and a client may ask in every session."""
    privileges = NoAgent()
    forwards = ForwardServer(driver, privileges)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(Refused, match="agent forwarding is not allowed"):
            forwards.forward_agent()
    assert privileges.asked == 1


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_client_that_answers_no_channel_is_offered_so_many_and_no_more(
    driver: FakeDriver,
) -> None:
    """Local users may connect as often as they like: each costs a descriptor until it is taken."""
    forwards = ForwardServer(driver, None)  # type: ignore[arg-type]
    ends = [socket.socketpair() for _ in range(OFFERED_LIMIT + 1)]
    for here, _ in ends:
        forwards._accepted(here, AUTH_AGENT, b"")
    assert [is_closed(there) for _, there in ends] == [False] * OFFERED_LIMIT + [True]
    driver.pair.pump()  # the client takes all of them
    again, there = socket.socketpair()
    forwards._accepted(again, AUTH_AGENT, b"")
    assert not is_closed(there)
    driver.pair.client.transport.close()
    driver.pair.pump()
    for _, end in (*ends, (again, there)):
        end.close()
