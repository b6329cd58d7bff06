"""Coroutines on the loop."""

from collections.abc import Iterator

import pytest

from appliance.aio.loop import Loop
from appliance.aio.tasks import Budget, Cancelled, Future, Task, run, sleep


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


async def _value(future: Future[int]) -> int:
    return await future + 1


def test_a_task_goes_on_in_the_call_that_resolves_its_future(loop: Loop) -> None:
    future: Future[int] = Future()
    task = Task(loop, _value(future))
    assert not task.done
    future.resolve(41)
    assert task.result() == 42


def test_an_exception_is_raised_where_the_future_is_awaited(loop: Loop) -> None:
    future: Future[int] = Future()
    task = Task(loop, _value(future))
    future.fail(KeyError("x"))
    with pytest.raises(KeyError):
        task.result()


def test_an_exception_that_nobody_awaits_ends_the_loop(loop: Loop) -> None:
    async def fails() -> None:
        raise KeyError("x")

    Task(loop, fails())
    with pytest.raises(KeyError):
        loop.run()


def test_run_returns_what_the_coroutine_returns_and_may_be_called_again(loop: Loop) -> None:
    async def slow(value: int) -> int:
        await sleep(loop, 0.001)
        return value

    assert run(loop, slow(1)) == 1
    assert run(loop, slow(2)) == 2


def test_a_cancelled_task_gets_the_exception_at_its_await_and_no_late_result(loop: Loop) -> None:
    future: Future[int] = Future()
    seen = []

    async def waits() -> None:
        try:
            await future
        except Cancelled:
            seen.append("cancelled")
            raise

    task = Task(loop, waits())
    task.cancel()
    future.resolve(1)
    task.cancel()
    assert seen == ["cancelled"]
    assert task.done
    loop.call_soon(loop.stop)
    loop.run()  # a cancelled task is no failure


def test_a_coroutine_is_cancelled_when_a_callback_of_the_loop_raises(loop: Loop) -> None:
    seen = []

    async def waits() -> None:
        try:
            await Future[None]()
        except Cancelled:
            seen.append("cancelled")
            raise

    def fails() -> None:
        raise KeyError("x")

    loop.call_soon(fails)
    with pytest.raises(KeyError):
        run(loop, waits())
    assert seen == ["cancelled"]


def test_a_budget_has_room_again_once_enough_was_given_back(loop: Loop) -> None:
    budget = Budget(10)
    budget.hold(15)
    task = Task(loop, budget.room())
    budget.give(5)
    assert not task.done
    budget.give(1)
    assert task.done


def test_a_task_that_runs_is_cancelled_at_its_next_await(loop: Loop) -> None:
    begin, end = Future[None](), Future[None]()
    seen = []

    async def runs() -> None:
        await begin
        end.resolve(None)  # whose callback cancels this very task
        seen.append("went on")
        try:
            await sleep(loop, 0)
        except Cancelled:
            seen.append("cancelled")
            raise

    task = Task(loop, runs())
    end.when_done(task.cancel)
    begin.resolve(None)
    with pytest.raises(Cancelled):
        task.result()
    assert seen == ["went on", "cancelled"]
    run(loop, _slept(loop))  # nothing is resolved a second time


async def _slept(loop: Loop) -> None:
    await sleep(loop, 0.01)
