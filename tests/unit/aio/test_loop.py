"""The event loop: readers, writers, timers and signals, and that an exception ends it."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from tests.processes import descriptors


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    both = os.pipe()
    yield both
    for fd in both:
        os.close(fd)


def test_timers_fire_in_their_order_and_not_before_their_time(loop: Loop) -> None:
    seen: list[str] = []
    started = loop.time()
    loop.call_later(0.02, seen.append, "second")
    loop.call_later(0.01, seen.append, "first")
    loop.call_at(0.0, seen.append, "long ago")
    loop.call_later(0.0, seen.append, "cancelled").cancel()
    loop.call_soon(seen.append, "soon")
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert seen == ["soon", "long ago", "first", "second"]
    assert loop.time() - started >= 0.03


def test_a_loop_that_was_stopped_before_it_ran_does_not_run(loop: Loop) -> None:
    """As happens to a connection whose peer is gone at the first word."""
    loop.call_soon(lambda: pytest.fail("it runs"))
    loop.stop()
    loop.run()


def test_a_callback_may_ask_for_another_turn_and_does_not_starve_the_rest(loop: Loop) -> None:
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(again)

    loop.call_soon(again)
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert turns > 1


def test_readers_and_writers_are_called_when_ready(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []

    def read() -> None:
        seen.append(os.read(pipe[0], 10))
        loop.watch_reader(pipe[0], None)
        loop.stop()

    def write() -> None:
        os.write(pipe[1], b"x")
        loop.watch_writer(pipe[1], None)

    loop.watch_reader(pipe[0], read)
    loop.watch_writer(pipe[1], write)
    loop.run()
    assert seen == [b"x"]
    for watch in (loop.watch_reader, loop.watch_writer):
        watch(pipe[0], None)  # nobody watches it


def test_a_hung_up_descriptor_wakes_its_reader(loop: Loop) -> None:
    read, write = os.pipe()
    ended: list[bytes] = []

    def on_readable() -> None:
        ended.append(os.read(read, 1))
        loop.watch_reader(read, None)
        loop.stop()

    loop.watch_reader(read, on_readable)
    os.close(write)
    loop.run()
    os.close(read)
    assert ended == [b""]


def test_a_descriptor_that_is_no_longer_watched_is_not_called_in_the_same_turn(
    loop: Loop,
) -> None:
    pipes = [os.pipe() for _ in range(2)]
    seen: list[int] = []

    def on_readable(which: int) -> None:
        seen.append(which)
        for read, _ in pipes:
            loop.watch_reader(read, None)
        loop.stop()

    for which, (read, write) in enumerate(pipes):
        os.write(write, b"x")
        loop.watch_reader(read, partial(on_readable, which))
    loop.run()
    assert len(seen) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_a_regular_file_cannot_be_watched(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        for watch in (loop.watch_reader, loop.watch_writer):
            with pytest.raises(PermissionError):
                watch(file.fileno(), lambda: None)
            watch(file.fileno(), None)


@pytest.mark.parametrize("how", ["soon", "timer", "reader"])
def test_an_exception_of_a_callback_ends_the_loop(
    loop: Loop, pipe: tuple[int, int], how: str
) -> None:
    def fail() -> None:
        raise ValueError(how)

    if how == "soon":
        loop.call_soon(fail)
    elif how == "timer":
        loop.call_later(0.0, fail)
    else:
        loop.watch_writer(pipe[1], fail)
    with pytest.raises(ValueError, match=how):
        loop.run()


def test_a_signal_is_a_callback_and_closing_gives_everything_back() -> None:
    before = signal.getsignal(signal.SIGWINCH)
    opened = descriptors()
    loop = Loop()
    try:
        seen: list[str] = []
        loop.on_signal(signal.SIGWINCH, lambda: seen.append("resized"))
        os.kill(os.getpid(), signal.SIGWINCH)
        loop.call_later(0.01, loop.stop)
        loop.run()
        assert seen == ["resized"]
    finally:
        loop.close()
        signal.signal(signal.SIGWINCH, before)
    assert descriptors() == opened
