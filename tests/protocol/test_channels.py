"""Channels: windows, ends in every order, requests, numbers and limits (RFC 4254 section 5)."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest

from appliance.errors import ProtocolError
from appliance.ssh.channels import PACKET, WINDOW_LIMIT, Channel, Flow
from appliance.ssh.connection import CHANNELS_LIMIT, ConnectionHandler
from appliance.wire.codec import Message
from appliance.wire.messages import (
    ChannelClose,
    ChannelData,
    ChannelEof,
    ChannelExtendedData,
    ChannelFailure,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelOpenFailure,
    ChannelRequest,
    ChannelSuccess,
    ChannelWindowAdjust,
    GlobalRequest,
    Ping,
    RequestFailure,
    RequestSuccess,
    Unimplemented,
)
from tests.protocol.harness import FAST, Pair, Recorder, Recording, Script, make_client, make_server

WINDOW = 100_000  # bytes, of the connection under test
NOBODY = 4711  # a channel that is not there


def server_script() -> Script:
    """A client that is logged in at a server with small windows."""
    return Script(make_server(Recorder(), window=WINDOW)).log_in()


def client_script() -> tuple[Script, Channel, Recording]:
    """A server at which a client has asked for a channel."""
    recorder = Recorder()
    script = Script(make_client(recorder)).log_in()
    handler = Recording(recorder.events)
    handler.channel = script.peer.open_channel("session", b"", handler)
    script.expect(90)
    return script, handler.channel, handler


def events_of(script: Script) -> list[tuple[object, ...]]:
    events: list[tuple[object, ...]] = script.peer._handler.events  # type: ignore[attr-defined]
    return events


# Windows


def test_the_window_of_a_sender_never_goes_negative() -> None:
    pair = Pair(window=WINDOW).log_in()
    channel, _ = pair.open()
    handler = channel.handler
    pair.at_server.channels[-1].handler.consumes = False  # type: ignore[attr-defined]
    sent = 0
    while room := channel.sendable():
        size = min(room, 33_333)
        channel.send(bytes(size))
        sent += size
        assert channel.send_window >= 0
        pair.pump()
    assert sent == WINDOW
    assert pair.server.transport.error is None
    assert handler is channel.handler
    accepted = pair.at_server.channels[-1]
    accepted.consume(WINDOW)
    pair.pump()
    assert pair.at_client.events[-1] == ("resume",)
    assert channel.sendable() == WINDOW


def test_activity_is_what_channels_carry_and_no_question_or_key_exchange() -> None:
    pair = Pair().log_in()
    channel, _ = pair.open()
    sides = pair.client.transport, pair.server.transport

    def grows(act: Callable[[], object]) -> bool:
        before = [side.activity for side in sides]
        act()
        pair.pump()
        growth = [side.activity > old for side, old in zip(sides, before, strict=True)]
        assert growth[0] == growth[1]
        return growth[0]

    assert grows(lambda: channel.send(b"x"))
    assert grows(lambda: channel.send_batch([b"x"]))
    assert grows(pair.open)
    assert not grows(lambda: pair.client.global_request("keepalive@openssh.com", b"", print))
    assert not grows(lambda: pair.server.global_request("keepalive@openssh.com", b"", print))
    assert not grows(lambda: channel.request("keepalive@openssh.com", b"", print))
    assert not grows(pair.client.transport.rekey)
    assert grows(channel.close)


def test_a_batch_sends_what_fits_and_drops_the_rest() -> None:
    pair = Pair(window=WINDOW).log_in()
    channel, _ = pair.open()
    pair.at_server.channels[-1].handler.consumes = False  # type: ignore[attr-defined]
    channel.overhead = 4
    pieces = [bytes(1400)] * 100
    assert channel.send_batch(pieces) == WINDOW // 1404
    assert channel.send_window == WINDOW % 1404
    assert channel.send_batch([bytes(1400), b"x" * (WINDOW % 1404 - 4), b""]) == 1
    assert channel.send_window == 0
    assert channel.send_batch([b"x"]) == 0
    pair.pump()
    assert pair.server.transport.error is None


def test_a_piece_longer_than_the_largest_packet_is_dropped_from_a_batch() -> None:
    pair = Pair().log_in()
    channel, _ = pair.open()
    assert channel.send_batch([bytes(PACKET + 1), bytes(PACKET)]) == 1
    pair.pump()
    assert pair.server.transport.error is None


def test_more_data_than_the_window_ends_the_connection() -> None:
    script = server_script()
    number = script.open()
    handler = script.peer._channels[number].handler
    handler.consumes = False  # type: ignore[attr-defined]
    for _ in range(WINDOW // 20_000):
        script.send(ChannelData(number, bytes(20_000)))
    assert script.peer.transport.error is None
    script.send(ChannelData(number, b""))
    assert script.peer.transport.error is None
    script.send(ChannelData(number, b"x"))
    assert script.ended


def test_both_streams_share_one_window() -> None:
    script = server_script()
    number = script.open()
    script.peer._channels[number].handler.consumes = False  # type: ignore[attr-defined]
    script.send(ChannelData(number, bytes(WINDOW - 10)), ChannelExtendedData(number, 1, bytes(10)))
    assert script.peer.transport.error is None
    script.send(ChannelExtendedData(number, 1, b"x"))
    assert script.ended


def test_a_window_grows_only_for_what_was_consumed() -> None:
    script = server_script()
    number = script.open()
    channel = script.peer._channels[number]
    channel.handler.consumes = False  # type: ignore[attr-defined]
    script.send(ChannelData(number, bytes(60_000)))
    assert script.numbers() == []
    channel.consume(WINDOW // 4 - 1)
    assert script.numbers() == []
    channel.consume(1)
    adjust = ChannelWindowAdjust.decode(script.expect(93))
    assert (adjust.recipient_channel, adjust.bytes_to_add) == (7, WINDOW // 4)
    assert channel.receive_window == WINDOW - 60_000 + WINDOW // 4


def test_a_window_beyond_the_largest_is_clamped_and_not_an_error() -> None:
    script = server_script()
    number = script.open(window=WINDOW_LIMIT - 5)
    channel = script.peer._channels[number]
    script.send(ChannelWindowAdjust(number, WINDOW_LIMIT), ChannelWindowAdjust(number, 1))
    assert script.peer.transport.error is None
    assert channel.send_window == WINDOW_LIMIT
    channel.send(bytes(10))
    assert channel.send_window == WINDOW_LIMIT - 10


def test_data_is_cut_to_the_peers_largest_packet() -> None:
    script = server_script()
    number = script.open(packet=1000)
    script.peer._channels[number].send(bytes(2500))
    assert [len(ChannelData.decode(p).data) for p in script.receive()] == [1000, 1000, 500]


def test_no_packet_is_longer_than_ours_however_much_the_peer_takes() -> None:
    script = server_script()
    number = script.open(packet=0xFFFFFFFF)
    script.peer._channels[number].send(bytes(PACKET + 1))
    assert [len(ChannelData.decode(p).data) for p in script.receive()] == [PACKET, 1]


def test_a_channel_with_a_largest_packet_of_0_is_refused() -> None:
    script = server_script()
    script.send(ChannelOpen("session", 7, 1000, 0))
    refusal = ChannelOpenFailure.decode(script.expect(92))
    assert refusal.recipient_channel == 7
    assert events_of(script) == [("authenticated",)]
    assert script.peer.transport.error is None
    client, channel, _ = client_script()
    client.send(ChannelOpenConfirmation(channel.number, 0, 1000, 0))
    assert client.ended


# Opening


def test_a_channel_that_the_peer_confirms_or_refuses_is_told_once() -> None:
    script, channel, _ = client_script()
    script.send(ChannelOpenConfirmation(channel.number, 99, 1000, 1000, b"more"))
    assert events_of(script)[-1] == ("opened", b"more")
    script.send(ChannelOpenConfirmation(channel.number, 99, 1000, 1000))
    assert script.ended

    script, channel, _ = client_script()
    script.send(ChannelOpenFailure(channel.number, 4, "no"))
    assert events_of(script)[1:] == [("open_failed", 4), ("closed",)]
    script.send(ChannelOpenFailure(channel.number, 4, "no"))
    assert script.ended


def test_a_channel_that_is_open_cannot_be_refused() -> None:
    script, channel, _ = client_script()
    script.send(ChannelOpenConfirmation(channel.number, 99, 1000, 1000))
    script.send(ChannelOpenFailure(channel.number, 1))
    assert script.ended


@pytest.mark.parametrize(
    "message",
    [
        ChannelData(0, b"early"),
        ChannelExtendedData(0, 1, b"early"),
        ChannelWindowAdjust(0, 10),
        ChannelEof(0),
        ChannelClose(0),
        ChannelRequest(0, "exit-status", False, bytes(4)),
        ChannelSuccess(0),
        ChannelFailure(0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_may_come_on_a_channel_before_it_is_open(message: Message) -> None:
    script, channel, _ = client_script()
    assert channel.number == 0
    before = list(events_of(script))
    script.send(message)
    assert script.ended
    assert events_of(script) == [*before, ("closed",), ("connection closed",)]


def test_a_peer_that_opens_a_channel_cannot_confirm_or_refuse_it_itself() -> None:
    class Undecided(ConnectionHandler):
        """Keeps the channel for later, as a forwarder does that is still connecting."""

        def channel_open(self, channel: Channel, type_data: bytes) -> None:
            self.channel = channel

    for message in (ChannelOpenConfirmation(0, 0, 1000, 1000), ChannelOpenFailure(0, 1)):
        script = Script(make_server(Undecided())).log_in()
        script.send(ChannelOpen("session", 7, 1000, 1000))
        script.send(message)
        assert script.ended


def test_a_peer_may_have_5000_channels_and_no_more() -> None:
    script = server_script()
    numbers = [script.open() for _ in range(CHANNELS_LIMIT)]
    assert len(set(numbers)) == 5000
    script.send(ChannelOpen("session", 8, 1000, 1000))
    assert ChannelOpenFailure.decode(script.expect(92)).recipient_channel == 8
    script.send(ChannelClose(numbers[500]))
    script.expect(97)
    assert script.open() not in numbers
    assert script.peer.transport.error is None


# Ends


@pytest.mark.parametrize("order", list(itertools.permutations(["cE", "cC", "sE", "sC"])))
@pytest.mark.parametrize("at_once", [False, True])
def test_a_channel_ends_once_whatever_the_order(order: tuple[str, ...], at_once: bool) -> None:
    pair = Pair().log_in()
    channel, accepted = pair.open()
    for step in order:
        end = channel if step[0] == "c" else accepted
        (end.eof if step[1] == "E" else end.close)()
        if not at_once:
            pair.pump()
    pair.pump()
    for recorder, connection in ((pair.at_client, pair.client), (pair.at_server, pair.server)):
        assert recorder.events.count(("closed",)) == 1
        assert recorder.events.count(("eof",)) <= 1
        assert recorder.events[-1] == ("closed",)
        assert connection.transport.error is None
        assert not connection._channels
    assert (channel.inbound, channel.outbound) == (Flow.CLOSED, Flow.CLOSED)


def test_data_may_go_on_one_way_after_the_end_of_the_other() -> None:
    pair = Pair().log_in()
    channel, accepted = pair.open()
    channel.eof()
    pair.pump()
    accepted.send(b"still here")
    accepted.request("exit-status", bytes(4))
    accepted.close()
    pair.pump()
    assert pair.at_client.events[-3:] == [
        ("data", b"still here"),
        ("request", "exit-status", bytes(4)),
        ("closed",),
    ]
    assert channel.sendable() == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ChannelEof, ChannelEof),
        (ChannelEof, lambda number: ChannelData(number, b"x")),
        (ChannelEof, lambda number: ChannelExtendedData(number, 1, b"x")),
        (ChannelClose, ChannelClose),
        (ChannelClose, ChannelEof),
        (ChannelClose, lambda number: ChannelData(number, b"x")),
        (ChannelClose, lambda number: ChannelRequest(number, "exec", True)),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
def test_nothing_may_follow_an_end(first: object, second: object, answered: bool) -> None:
    """Neither when our own CLOSE has made the channel disappear, nor while it has not."""
    script = server_script()
    number = script.open()
    if not answered:
        channel = script.peer._channels[number]
        channel.inbound = channel.inbound
        script.peer._channels[number] = channel
    script.send(first(number))  # type: ignore[operator]
    script.receive()
    script.send(second(number))  # type: ignore[operator]
    assert script.ended


def test_a_window_for_a_channel_that_is_closed_changes_nothing() -> None:
    """OpenSSH takes it, too."""
    script = server_script()
    number = script.open()
    script.send(ChannelClose(number))
    assert script.numbers() == [97]
    script.send(ChannelWindowAdjust(number, 1))
    assert script.receive() == []
    assert script.peer.transport.error is None


def test_what_comes_after_our_close_is_counted_and_thrown_away() -> None:
    script = server_script()
    number = script.open()
    script.peer._channels[number].close()
    assert script.numbers() == [97]
    events = list(events_of(script))
    script.send(
        ChannelData(number, b"late"),
        ChannelExtendedData(number, 1, b"late"),
        ChannelRequest(number, "exec", True),
        ChannelWindowAdjust(number, 100),
    )
    assert script.receive() == []
    assert [event for event in events_of(script) if event not in events] == []
    script.send(ChannelClose(number))
    assert script.receive() == []
    assert events_of(script)[-1] == ("closed",)
    assert script.peer.transport.error is None


@pytest.mark.parametrize(
    "message",
    [
        ChannelOpenConfirmation(NOBODY, 0, 1, 1),
        ChannelOpenFailure(NOBODY, 1),
        ChannelWindowAdjust(NOBODY, 1),
        ChannelData(NOBODY, b"x"),
        ChannelExtendedData(NOBODY, 1, b"x"),
        ChannelEof(NOBODY),
        ChannelClose(NOBODY),
        ChannelRequest(NOBODY, "exec", True),
        ChannelSuccess(NOBODY),
        ChannelFailure(NOBODY),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_for_a_channel_that_is_not_there_ends_the_connection(message: Message) -> None:
    script = server_script()
    script.open()
    script.send(message)
    assert script.ended


# Requests


@pytest.mark.parametrize(
    "message",
    [
        ChannelSuccess(0),
        ChannelFailure(0),
        RequestSuccess(),
        RequestFailure(),
        RequestSuccess(b"x"),
    ],
)
def test_an_answer_that_nobody_asked_for_ends_the_connection(message: Message) -> None:
    script = server_script()
    assert script.open() == 0
    script.peer._channels[0].request("no-reply-wanted")
    script.peer.global_request("no-reply-wanted")
    assert script.numbers() == [98, 80]
    script.send(message)
    assert script.ended


def test_answers_belong_to_requests_in_their_order() -> None:
    script = server_script()
    number = script.open()
    channel = script.peer._channels[number]
    seen: list[object] = []

    def answered(name: str, answer: object) -> None:
        seen.append((name, answer))

    for name in "abc":
        channel.request(name, b"", partial(answered, name))
    for name in "de":
        script.peer.global_request(name, b"", partial(answered, name))
    script.send(
        ChannelSuccess(number), RequestFailure(), ChannelFailure(number),
        RequestSuccess(b"yes"), ChannelSuccess(number),
    )  # fmt: skip
    assert seen == [("a", True), ("d", None), ("b", False), ("e", b"yes"), ("c", True)]


def test_requests_are_answered_only_when_that_is_wanted() -> None:
    script = server_script()
    number = script.open()
    script.send(
        ChannelRequest(number, "exec", False), ChannelRequest(number, "no", False),
        GlobalRequest("yes", False), GlobalRequest("no", False),
    )  # fmt: skip
    assert script.receive() == []
    script.send(
        ChannelRequest(number, "exec", True), ChannelRequest(number, "no", True),
        GlobalRequest("yes", True), GlobalRequest("no", True),
    )  # fmt: skip
    assert script.numbers() == [99, 100, 81, 82]


def test_a_request_after_the_end_of_data_is_still_a_request() -> None:
    script = server_script()
    number = script.open()
    script.send(ChannelEof(number), ChannelRequest(number, "exec", True))
    assert script.numbers() == [99]


def test_a_request_on_a_channel_that_we_closed_is_not_made() -> None:
    pair = Pair().log_in()
    channel, _ = pair.open()
    channel.close()
    channel.request("window-change", b"", lambda _: None)
    channel.eof()
    channel.close()
    pair.pump()
    assert pair.server.transport.error is None
    assert pair.client.transport.error is None


# Others


def test_a_message_that_nobody_knows_is_answered_with_its_number() -> None:
    script = server_script()
    before = script.writer.sequence
    script.send(bytes([199]) + b"what is this")
    assert Unimplemented.decode(script.expect(3)).sequence_number == before
    script.send(Unimplemented(3))
    assert script.peer.transport.error is None


@pytest.mark.parametrize("number", [5, 6, 7, 21, 30, 31, 51, 52, 53, 60, 61])
def test_a_message_of_an_earlier_phase_ends_an_open_connection(number: int) -> None:
    script = server_script()
    script.send(bytes([number]) + bytes(40))
    assert script.ended


def test_a_ping_is_answered() -> None:
    script = server_script()
    script.send(Ping(b"echo"))
    assert script.receive() == [b"\xc1\0\0\0\4echo"]


@pytest.mark.parametrize("message", [Ping(bytes(1000)), GlobalRequest("no", True), None])
def test_a_peer_that_asks_and_never_reads_the_answers_costs_bounded_memory(
    message: Message | None,
) -> None:
    script = server_script()
    message = message or ChannelRequest(script.open(), "no", True)
    highest = 0
    for _ in range(30):
        for _ in range(10_000 if not isinstance(message, Ping) else 1000):
            script.queue(message)
        script.flush()  # and nobody takes what the server has to say
        highest = max(highest, script.peer.transport.unsent)
        if script.peer.transport.error is not None:
            break
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert highest < 8 << 20
    assert len(script.peer.transport._writer._buffer) <= 16 << 20


def test_the_end_of_a_connection_ends_each_of_its_channels_once() -> None:
    pair = Pair().log_in()
    for _ in range(3):
        pair.open()
    pair.server.transport.close("enough")
    pair.pump()
    pair.client.transport.receive_eof()
    for recorder in (pair.at_client, pair.at_server):
        assert recorder.events.count(("closed",)) == 3
        assert recorder.events.count(("connection closed",)) == 1
        assert recorder.events[-1] == ("connection closed",)
    assert "enough" in str(pair.client.transport.error)


def test_nothing_is_sent_on_a_connection_that_is_over() -> None:
    pair = Pair().log_in()
    channel, _ = pair.open()
    pair.client.transport.close()
    pair.pump()
    channel.consume(10)
    channel.eof()
    channel.close()
    channel.request("x", b"", lambda _: None)
    pair.client.global_request("x")
    pair.client.transport.rekey()
    pair.client.transport.tick(1e9)
    assert channel.sendable() == 0
    assert not pair.client.transport.unsent
    assert FAST.compression == ("none",)
