"""Coroutines on the event loop: futures that they await, and tasks that run them.

``asyncio`` would do, but importing it takes half as long as a login (see loop.py). A result
reaches the task that awaits it at once, not in the loop's next turn, so that a reply is handled
while it is still in the processor's cache.

A task whose exception nobody awaits ends the loop with it, as a callback's would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from .loop import Loop

T = TypeVar("T")


class Cancelled(Exception):
    """Raised in a task at its ``await``, because its owner has cancelled it."""


class Future(Generic[T]):
    """A result that comes later; whoever makes it resolves or fails it, once."""

    __slots__ = ("_callbacks", "_exception", "_result", "_taken", "done")

    def __init__(self) -> None:
        self.done = False
        self._result: T
        self._exception: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._taken = False  # whether anybody has, or will have, the result

    def resolve(self, result: T) -> None:
        """Sets the result, and calls those that wait for it."""
        self._result = result
        self._finish()

    def fail(self, exception: BaseException) -> None:
        """Sets the exception that is raised where the future is awaited."""
        self._exception = exception
        self._finish()

    def _finish(self) -> None:
        assert not self.done
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once the future is done, at once if it is."""
        self._taken = True
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """Returns the result, or raises the exception, of a future that is done."""
        assert self.done
        self._taken = True
        if self._exception is not None:
            raise self._exception
        return self._result

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """Runs a coroutine; the future of what the coroutine returns."""

    __slots__ = ("_awaited", "_coroutine", "_is_cancelled", "_loop", "_runs")

    def __init__(self, loop: Loop, coroutine: Coroutine[Future[Any], None, T]) -> None:
        """Runs ``coroutine`` until its first ``await`` that has to wait."""
        super().__init__()
        self._loop = loop
        self._coroutine = coroutine
        self._awaited: Future[Any] | None = None
        self._runs = False  # its code is on the stack
        self._is_cancelled = False  # while it ran
        self._step(coroutine.send, None)

    def cancel(self) -> None:
        """Raises Cancelled in the coroutine at its ``await``, unless the task is done.

        One that has resolved a future, whose callbacks lead here, gets it at its next ``await``.
        """
        if self._runs:
            self._is_cancelled = True
        elif not self.done:
            self._step(self._coroutine.throw, Cancelled())

    def _resume(self, future: Future[Any]) -> None:
        if future is self._awaited:  # else the task was cancelled meanwhile
            self._step(self._coroutine.send, None)

    def _step(self, go_on: Callable[[Any], Future[Any]], argument: object) -> None:
        self._awaited = None
        self._runs = True
        try:
            future = go_on(argument)
        except StopIteration as stop:
            self._runs = False
            self.resolve(stop.value)
        except BaseException as error:
            self._runs = False
            self.fail(error)
            self._loop.call_soon(self._raise_untaken)
        else:
            self._runs = False
            if self._is_cancelled:
                self._is_cancelled = False
                self.cancel()
                return
            self._awaited = future
            future.when_done(partial(self._resume, future))

    def _raise_untaken(self) -> None:
        if not self._taken and not isinstance(self._exception, Cancelled):
            self.result()


def run(loop: Loop, coroutine: Coroutine[Future[Any], None, T]) -> T:
    """Runs the loop until the coroutine returns; cancels it if a callback of the loop raises."""
    task = Task(loop, coroutine)
    task.when_done(loop.stop)
    try:
        loop.run()
    finally:
        task.cancel()
    return task.result()


class Budget:
    """A number of units that callbacks hold and give back; tasks wait until some are free."""

    def __init__(self, units: int) -> None:
        self._free = units
        self._waiting: deque[Future[None]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether units are free."""
        return self._free > 0

    async def room(self) -> None:
        """Waits until units are free."""
        while self._free <= 0:
            future: Future[None] = Future()
            self._waiting.append(future)
            await future

    def hold(self, units: int) -> None:
        """Takes units at once, even those that are not free."""
        self._free -= units

    def give(self, units: int) -> None:
        """Gives back what ``hold`` took."""
        self._free += units
        while self._waiting and self._free > 0:
            self._waiting.popleft().resolve(None)


def sleep(loop: Loop, seconds: float) -> Future[None]:
    """Returns a future that is done after ``seconds``."""
    future: Future[None] = Future()
    loop.call_later(seconds, future.resolve, None)
    return future
