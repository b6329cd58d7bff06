"""A client's forwards: what it says when it opens one, and what a server may not open."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.forwards import Forward, TcpPlace, forward
from appliance.services.forward_client import ForwardClient, ForwardSettings
from appliance.wire.codec import Record
from appliance.wire.forward import (
    AUTH_AGENT,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
)
from appliance.wire.messages import (
    ChannelData,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelWindowAdjust,
)
from tests.protocol.harness import Event, Pair, Recorder, Recording, Script, make_client
from tests.unit.services.harness import FakeDriver


def test_the_opening_is_that_of_rfc_4254() -> None:
    opening = DirectTcpip("host", 22, "127.0.0.1", 65535)
    assert opening.encode() == (b"\0\0\0\x04host\0\0\0\x16\0\0\0\x09127.0.0.1\0\0\xff\xff")
    assert DirectTcpip.decode(opening.encode()) == opening


class Client:
    """A client's forwards, and a server that opens channels."""

    def __init__(self, settings: ForwardSettings) -> None:
        self.pair = Pair().log_in()
        self.driver = FakeDriver(self.pair, self.pair.client)
        self.said: list[str] = []
        self.forwards = ForwardClient(settings, self.driver, self.said.append, lambda: None)  # type: ignore[arg-type]
        self.pair.at_client.channel_open = self.forwards.channel_open  # type: ignore[method-assign]
        self.pair.at_server.global_request = lambda name, data: b""  # type: ignore[method-assign]

    def add(self, wanted: Forward) -> None:
        done: list[str] = []
        self.forwards.add(wanted, lambda why, port: done.append(why))
        self.pair.pump()
        assert done == [""]

    def opens(self, channel_type: str, opening: Record | None = None) -> Recording:
        """A channel that the server opens, as it has it."""
        events: list[Event] = []
        handler = Recording(events)
        data = b"" if opening is None else opening.encode()
        handler.channel = self.pair.server.open_channel(channel_type, data, handler)
        self.pair.pump()
        self.driver.run_until(lambda: events)
        return handler

    def refused(self, wanted: Forward) -> str:
        done: list[str] = []
        self.forwards.add(wanted, lambda why, port: done.append(why))
        return done[0]

    def close(self) -> None:
        self.forwards.close()
        self.pair.client.transport.close()
        self.pair.pump()
        self.driver.loop.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[socket.socket, Path]]:
    """A Unix-domain socket here."""
    path = tmp_path / "place"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(bytes(path))
        sock.listen()
        sock.setblocking(False)
        yield sock, path


def is_refused(handler: Recording) -> bool:
    return handler.events[0] == ("open_failed", 1)


def tcp(address: str, port: int) -> ForwardedTcpip:
    return ForwardedTcpip(address, port, "192.0.2.1", 5)


def test_a_server_opens_nothing_that_was_not_asked_for(
    place: tuple[socket.socket, Path],
) -> None:
    listening, path = place
    it = Client(ForwardSettings())
    it.add(forward("R", f"1007:{path}"))
    assert is_refused(it.opens(FORWARDED_TCPIP, tcp("localhost", 1009)))
    for wanted in ("1008:{}", "/there:{}"):
        it.add(forward("R", wanted.format(path)))
    for kind, opening in (
        (FORWARDED_TCPIP, tcp("localhost", 1009)),
        (FORWARDED_TCPIP, tcp(str(path), 0)),
        (FORWARDED_STREAMLOCAL, ForwardedStreamlocal(b"/elsewhere")),
        (FORWARDED_STREAMLOCAL, ForwardedStreamlocal(os.fsencode(path))),
        (AUTH_AGENT, None),
        ("session", None),
        ("x11", None),
        ("direct-tcpip", DirectTcpip("localhost", 1007, "192.0.2.1", 5)),
    ):
        assert is_refused(it.opens(kind, opening)), (kind, opening)
    with pytest.raises(BlockingIOError):
        listening.accept()
    assert not is_refused(it.opens(FORWARDED_TCPIP, tcp("localhost", 1007)))
    assert not is_refused(it.opens(FORWARDED_STREAMLOCAL, ForwardedStreamlocal(b"/there")))
    for _ in range(2):
        listening.accept()[0].close()
    it.close()


@pytest.mark.parametrize(("permitted", "reached"), [("127.0.0.1", True), ("192.0.2.9", False)])
def test_a_place_that_permit_remote_open_does_not_name_is_not_reached(
    permitted: str, reached: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        listening.setblocking(False)
        it = Client(ForwardSettings(permit_remote_open=((permitted, 0),)))
        it.add(forward("R", "1007"))
        handler = it.opens(FORWARDED_TCPIP, tcp("localhost", 1007))
        handler.channel.send(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big"))
        it.driver.run_until(lambda: len(handler.events) > 2)
        answers = b"".join(event[1] for event in handler.events if event[0] == "data")
        assert answers[:4] == (b"\5\0\5\0" if reached else b"\5\0\5\1")
        assert it.said == (
            [] if reached else [f"127.0.0.1:{port} is not permitted (PermitRemoteOpen)"]
        )
        if reached:
            listening.accept()[0].close()
        else:
            with pytest.raises(BlockingIOError):
                listening.accept()
        it.close()


@pytest.mark.parametrize("words", ["L 1:host:1", "R 1:host:1", "D 1"])
def test_no_forward_begins_where_none_may(words: str) -> None:
    """Neither at the start, nor by ~C or by another client that shares the connection."""
    client = Client(ForwardSettings(refusal="the host's key has changed"))
    assert client.refused(forward(*words.split())) == "the host's key has changed"
    client.close()


def test_what_a_client_of_minus_d_says_early_waits_for_the_servers_window() -> None:
    script = Script(make_client(Recorder())).log_in()
    driver = FakeDriver(Pair(), script.peer)
    forwards = ForwardClient(ForwardSettings(), driver, pytest.fail, lambda: None)  # type: ignore[arg-type]
    here, there = socket.socketpair()
    with there:
        forwards._connect(here, TcpPlace("host", 80), b"early words")
        number = ChannelOpen.decode(script.expect(90)).sender_channel
        script.send(ChannelOpenConfirmation(number, 7, 4, 1 << 15))
        assert ChannelData.decode(script.expect(94)).data == b"earl"
        assert script.receive() == []
        script.send(ChannelWindowAdjust(number, 100))
        assert ChannelData.decode(script.expect(94)).data == b"y words"
        script.peer.transport.close()
    driver.loop.close()
