"""Sources and sinks: nothing is read ahead of the channel, nothing is kept beyond its window."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.relay import READ, Sink, Source, wants_nonblocking
from appliance.ssh.channels import ChannelHandler
from tests.protocol.harness import Event, Pair, Recording
from tests.unit.services.harness import FakeDriver

WINDOW = 1 << 20


class Relay:
    """A channel whose server side is to be joined to a descriptor."""

    def __init__(self) -> None:
        self.pair = Pair(window=WINDOW).log_in()
        self.client, self.server = self.pair.open()
        self.driver = FakeDriver(self.pair, self.pair.server)
        self.pipe = os.pipe()
        for fd in self.pipe:
            os.set_blocking(fd, False)
        self.ended: list[str] = []

    @property
    def events(self) -> list[Event]:
        handler = self.client.handler
        assert isinstance(handler, Recording)
        return handler.events

    def turn(self, pump: bool = True) -> None:
        self.driver.loop.call_later(0.0, lambda: None)
        self.driver.loop._turn()
        if pump:
            self.pair.pump()

    def sink(self) -> Sink:
        sink = Sink(self.pipe[1], self.server, self.driver, lambda: self.ended.append("broken"))  # type: ignore[arg-type]
        handler = ChannelHandler()
        handler.data = sink.write  # type: ignore[method-assign]
        self.server.handler = handler
        return sink

    def source(self, fd: int | None = None, **options: object) -> Source:
        source = Source(
            self.pipe[0] if fd is None else fd, self.server, self.driver,  # type: ignore[arg-type]
            lambda: self.ended.append("ended"), **options,  # type: ignore[arg-type]
        )  # fmt: skip
        handler = ChannelHandler()
        handler.resume = source.start  # type: ignore[method-assign]
        self.server.handler = handler
        return source

    def close(self) -> None:
        self.driver.loop.close()
        for fd in self.pipe:
            with open(os.devnull, "rb") as null:
                os.dup2(null.fileno(), fd)
            os.close(fd)


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


def fill(fd: int) -> int:
    count = 0
    while True:
        try:
            count += os.write(fd, bytes(65536))
        except BlockingIOError:
            return count


def test_a_slow_reader_costs_one_window_and_then_the_peer_waits(relay: Relay) -> None:
    sink = relay.sink()
    fill(relay.pipe[1])
    while room := relay.client.sendable():
        relay.client.send(b"x" * min(room, 30_000))
        relay.pair.pump()
    assert len(sink._waiting) == WINDOW
    assert relay.client.send_window == 0
    received = 0
    while received < WINDOW:
        relay.turn()
        received += os.read(relay.pipe[0], 1 << 20).count(b"x")
    assert not sink._waiting
    assert relay.client.sendable() > WINDOW // 2


def test_a_flood_of_tiny_messages_to_a_slow_reader_costs_little_more_than_its_bytes(
    relay: Relay,
) -> None:
    sink = relay.sink()
    fill(relay.pipe[1])
    view = memoryview(b"x")
    tracemalloc.start()
    try:
        for _ in range(200_000):
            sink.write(view)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(sink._waiting) == 200_000
    assert used < 4_000_000
    received = b""
    while len(received) < 200_000:
        relay.turn()
        received += os.read(relay.pipe[0], 1 << 20).replace(b"\0", b"")
    assert received == b"x" * 200_000


def test_bytes_arrive_in_their_order_however_slowly(relay: Relay) -> None:
    sink = relay.sink()
    filled = fill(relay.pipe[1])
    sent = b"".join(b"%07d" % number for number in range(20_000))
    for start in range(0, len(sent), 4_321):
        sink.write(memoryview(sent[start : start + 4_321]))
    received = b""
    while len(received) < filled + len(sent):
        received += os.read(relay.pipe[0], 3_000)
        relay.turn()
    assert received[filled:] == sent


def test_a_reader_that_is_gone_is_told_once_and_the_rest_is_thrown_away(relay: Relay) -> None:
    sink = relay.sink()
    fill(relay.pipe[1])
    sink.write(memoryview(b"x" * 1000))
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), relay.pipe[0])
    relay.turn()
    for _ in range(3):
        sink.write(memoryview(b"y" * 1000))
    assert relay.ended == ["broken"]
    assert not sink._waiting


def test_drained_means_that_everything_is_written(relay: Relay) -> None:
    sink = relay.sink()
    sink.when_drained(lambda: relay.ended.append("at once"))
    fill(relay.pipe[1])
    sink.write(memoryview(b"x"))
    sink.when_drained(lambda: relay.ended.append("later"))
    assert relay.ended == ["at once"]
    os.read(relay.pipe[0], 1 << 20)
    relay.turn()
    assert relay.ended == ["at once", "later"]


def test_a_source_stops_when_the_channel_is_full_and_goes_on_afterwards(relay: Relay) -> None:
    handler = relay.client.handler
    assert isinstance(handler, Recording)
    handler.consumes = False
    source = relay.source()
    source.start()
    for _ in range(100):
        fill(relay.pipe[1])
        relay.turn()
    got = sum(len(e[1]) for e in relay.events if e[0] == "data")
    assert got == WINDOW
    assert not source._reading
    relay.client.consume(WINDOW)
    relay.pair.pump()
    relay.turn()
    assert source._reading


def test_a_source_reads_nothing_while_the_socket_is_full(relay: Relay) -> None:
    source = relay.source()
    source.start()
    for _ in range(100):
        fill(relay.pipe[1])
        relay.turn(pump=False)
    assert relay.pair.server.transport.unsent < 2 * READ + 100_000
    assert not source._reading
    relay.pair.pump()
    relay.turn()
    assert source._reading


def test_the_end_of_a_source_is_told_once(relay: Relay) -> None:
    source = relay.source()
    source.start()
    os.write(relay.pipe[1], b"last")
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), relay.pipe[1])
    for _ in range(4):
        relay.turn()
    assert relay.ended == ["ended"]
    assert relay.events[-1] == ("data", b"last")
    source.start()
    relay.turn()
    assert relay.ended == ["ended"]


def test_a_regular_file_is_a_source_too(relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(500_000))
    with path.open("rb") as file:
        relay.source(file.fileno()).start()
        for _ in range(60):
            relay.turn()
    got = b"".join(e[1] for e in relay.events if e[0] == "data")
    assert got == path.read_bytes()
    assert relay.ended == ["ended"]


def test_errors_go_as_another_stream_and_keep_to_the_largest_packet(relay: Relay) -> None:
    relay.source(extended=1).start()
    os.write(relay.pipe[1], b"e" * 60_000)
    for _ in range(5):
        relay.turn()
    pieces = [e[2] for e in relay.events if e[0] == "extended_data"]
    assert b"".join(pieces) == b"e" * 60_000
    assert max(map(len, pieces)) <= 32_768
    assert relay.pair.client.transport.error is None


def test_a_transformation_that_adds_bytes_never_overruns_the_window(relay: Relay) -> None:
    """As an escape character does that turned out to be none."""
    relay.server.send_window = 10
    relay.source(transform=lambda data: b"~" + data).start()
    os.write(relay.pipe[1], b"x" * 100)
    for _ in range(3):
        relay.turn(pump=False)
    assert relay.server.send_window >= 0


def test_only_pipes_and_sockets_are_made_nonblocking(tmp_path: Path) -> None:
    read, write = os.pipe()
    with (tmp_path / "file").open("wb") as file:
        assert wants_nonblocking(read)
        assert not wants_nonblocking(file.fileno())
    os.close(read)
    os.close(write)
