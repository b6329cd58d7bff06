"""A channel to the agent: nothing flows before the agent has answered for whom it works."""

import socket
from collections.abc import Iterator

import pytest

from appliance.aio.connecting import Attempt
from appliance.services import forwarded_agent
from appliance.services.agent_client import ANSWER_LIMIT
from appliance.services.forwarded_agent import ArrivingAgent
from appliance.ssh.channels import Channel, ChannelHandler
from appliance.wire.codec import write_string
from appliance.wire.forward import AUTH_AGENT
from tests.protocol.harness import Event, Pair, Recording
from tests.unit.services.harness import FakeDriver

ANSWER = write_string(b"\5")  # of an agent that does not know the request


class Forwarded:
    """A channel that the server has opened to a client, whose agent the test is."""

    def __init__(self) -> None:
        self.pair = Pair().log_in()
        self.driver = FakeDriver(self.pair, self.pair.client)
        self.near, self.agent = socket.socketpair()
        self.near.setblocking(False)
        self.ended: list[ChannelHandler] = []
        self.said: list[str] = []
        self.events: list[Event] = []  # at the server's end
        self.pair.at_client.channel_open = self._arrived  # type: ignore[method-assign]
        handler = Recording(self.events)
        handler.channel = self.pair.server.open_channel(AUTH_AGENT, b"", handler)
        self.pair.pump()

    def _arrived(self, channel: Channel, type_data: bytes) -> None:
        ArrivingAgent(
            channel, self.driver, Attempt(self.near), self.ended.append, self.said.append  # type: ignore[arg-type]
        )  # fmt: skip

    def turn(self) -> None:
        """Whatever is ready is done."""
        for _ in range(3):
            self.driver.loop.call_later(0, lambda: None)
            self.driver.loop._turn()
            self.pair.pump()

    def close(self) -> None:
        self.pair.client.transport.close()
        self.pair.pump()
        self.driver.loop.close()
        self.near.close()
        self.agent.close()


@pytest.fixture
def it() -> Iterator[Forwarded]:
    made = Forwarded()
    yield made
    made.close()


def test_the_channel_opens_once_the_answer_is_whole_and_hears_only_what_follows(
    it: Forwarded,
) -> None:
    it.turn()
    request = it.agent.recv(4096)
    assert int.from_bytes(request[:4], "big") == len(request) - 4
    assert b"session-bind@openssh.com" in request
    for place in range(len(ANSWER)):
        assert it.events == []
        it.agent.send(ANSWER[place : place + 1])
        it.turn()
    assert it.events == [("opened", b"")]
    it.agent.send(b"rest")
    it.turn()
    assert it.events[1:] == [("data", b"rest")]
    assert it.said == [""]


@pytest.mark.parametrize("answer", [b"", b"\0\0\0", bytes(4), b"\0\4\0\1", b"\xff" * 4])
def test_an_agent_that_breaks_the_rules_is_none(it: Forwarded, answer: bytes) -> None:
    it.turn()
    it.agent.send(answer)
    it.agent.shutdown(socket.SHUT_WR)
    it.turn()
    assert it.events == [("open_failed", 2), ("closed",)]
    assert it.said[0]
    assert len(it.ended) == 1
    assert it.near.fileno() < 0


@pytest.mark.parametrize("length", [0, ANSWER_LIMIT + 1, 0xFFFFFFFF])
def test_an_answer_of_no_possible_length_is_not_waited_for(it: Forwarded, length: int) -> None:
    it.turn()
    it.agent.send(length.to_bytes(4, "big"))
    it.turn()
    assert it.events == [("open_failed", 2), ("closed",)]
    assert it.said == ["its answer is malformed"]


def test_an_agent_that_does_not_answer_is_none(
    it: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarded_agent, "BIND_SECONDS", 0.0)
    it.turn()
    assert it.events == [("open_failed", 2), ("closed",)]
    assert it.said == ["it does not answer"]
    assert len(it.ended) == 1
    assert it.near.fileno() < 0


def test_a_connection_that_ends_meanwhile_lets_the_agent_go(it: Forwarded) -> None:
    it.turn()
    it.pair.client.transport.close()
    it.pair.pump()
    assert len(it.ended) == 1
    assert it.near.fileno() < 0
    it.turn()
