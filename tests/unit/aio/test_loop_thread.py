"""An event loop beside a main thread."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from appliance.aio.loop import Loop
from appliance.aio.loop_thread import LoopThread
from appliance.aio.tasks import Cancelled, Future, sleep


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def thread(loop: Loop) -> Iterator[LoopThread]:
    thread = LoopThread(loop)
    yield thread
    thread.close()


async def _after(loop: Loop, seconds: float, result: int) -> int:
    await sleep(loop, seconds)
    return result


def test_a_coroutine_s_result_comes_to_the_caller(loop: Loop, thread: LoopThread) -> None:
    for number in range(100):
        assert thread.call(_after(loop, 0, number)) == number


async def _fail() -> None:
    raise ValueError("what has failed")


def test_its_exception_comes_to_the_caller(thread: LoopThread) -> None:
    with pytest.raises(ValueError, match="what has failed"):
        thread.call(_fail())
    with pytest.raises(ValueError):
        thread.call(_fail())


def test_timers_go_on_while_the_main_thread_waits(loop: Loop, thread: LoopThread) -> None:
    fired = threading.Event()

    async def later() -> None:
        loop.call_later(0.01, fired.set)

    thread.call(later())
    assert fired.wait(5)


def test_an_interrupt_cancels_what_runs(loop: Loop, thread: LoopThread) -> None:
    ended = []

    async def wait() -> None:
        try:
            await Future[None]()
        except Cancelled:
            ended.append(True)
            raise

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        thread.call(wait())
    timer.join()
    assert ended == [True]
    assert thread.call(_after(loop, 0, 5)) == 5


def test_the_end_of_the_loop_reaches_the_caller(loop: Loop) -> None:
    thread = LoopThread(loop)

    async def break_it() -> None:
        loop.call_soon(_raise)
        await Future[None]()

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            thread.call(break_it())
    begin = time.monotonic()
    thread.close()
    assert time.monotonic() - begin < 5


def _raise() -> None:
    raise ZeroDivisionError
