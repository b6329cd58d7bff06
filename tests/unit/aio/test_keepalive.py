"""Questions to a silent peer, with a loop whose clock stands still until a test moves it."""

import heapq
from typing import Any

from appliance.aio.keepalive import KeepAlive
from appliance.aio.loop import Timer
from tests.protocol.harness import Pair


class Clock:
    """A loop of timers alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, Timer]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any, *arguments: Any) -> Timer:
        timer = Timer(self.now + delay, callback, arguments)
        heapq.heappush(self._timers, (timer.when, len(self._timers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._timers)
            timer.fire()
        self.now = end


class Watched:
    """A client that watches its server, which answers only while ``answers`` holds."""

    def __init__(self, interval: float = 15, count: int = 3) -> None:
        self.pair = Pair().log_in()
        self.loop = Clock()
        self.connection = self.pair.client
        self.silences = 0
        self.round_trips: list[float] = []
        self.answers = True
        self.keepalive = KeepAlive(self, interval, count, self._silent, self.round_trips.append)  # type: ignore[arg-type]

    def flush(self) -> None:
        if self.answers:
            self.pair.pump()

    def _silent(self) -> None:
        self.silences += 1


def test_a_peer_that_answers_is_never_given_up() -> None:
    it = Watched()
    it.loop.advance(15 * 100)
    assert it.silences == 0
    assert len(it.round_trips) == 100


def test_a_silent_peer_is_given_up_after_as_many_questions_as_were_wanted() -> None:
    it = Watched(interval=15, count=3)
    it.answers = False
    it.loop.advance(59.9)
    assert it.silences == 0
    it.loop.advance(0.2)
    assert it.silences == 1
    it.loop.advance(1000)
    assert it.silences == 1


def test_whatever_arrives_is_an_answer() -> None:
    it = Watched(interval=15, count=3)
    it.answers = False
    for _ in range(20):
        it.loop.advance(15)
        it.pair.server.global_request("anything")
        data = bytes(it.pair.server.transport.data_to_send())
        it.pair.server.transport.sent(len(data))
        it.pair.client.transport.receive_data(data, it.loop.now)
    assert it.silences == 0


def test_a_probe_gives_a_silent_peer_only_so_long() -> None:
    it = Watched(interval=15, count=3)
    it.answers = False
    it.keepalive.probe(5)
    it.loop.advance(4.9)
    assert it.silences == 0
    it.loop.advance(0.2)
    assert it.silences == 1


def test_a_probe_that_is_answered_changes_nothing() -> None:
    it = Watched(interval=15, count=3)
    it.loop.advance(7)
    it.keepalive.probe(5)
    assert it.round_trips == [0.0]
    it.answers = False
    it.loop.advance(5 + 15 + 14)
    assert it.silences == 0


def test_probes_without_end_do_not_hide_a_peer_that_is_gone() -> None:
    it = Watched(interval=15, count=3)
    it.answers = False
    for _ in range(20):
        if it.silences:
            break
        it.keepalive.probe(5)
        it.loop.advance(2)
    assert it.silences == 1
    assert it.loop.now == 6


def test_nobody_asks_on_a_connection_that_is_closed() -> None:
    it = Watched()
    it.pair.client.transport.close()
    it.loop.advance(1000)
    assert it.silences == 0
    assert it.round_trips == []
