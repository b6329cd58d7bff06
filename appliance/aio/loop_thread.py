"""Runs an event loop in a thread of its own, beside a main thread that waits for its user.

A connection is served while the main thread reads a line: keepalive messages are answered, and
keys are exchanged again. The main thread gives the loop a coroutine and waits for its end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .loop import Loop
from .tasks import Future, Task

T = TypeVar("T")


class LoopThread:
    """The thread that runs ``loop``, which belongs to it until ``close``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._posted: deque[Callable[[], None]] = deque()
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting: threading.Event | None = None
        self._failure: BaseException | None = None
        loop.watch_reader(self._wakeup_read, self._on_wakeup)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # signals are for the main thread, whose system call they interrupt
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._loop.run()
        except BaseException as error:
            self._failure = error
            if self._waiting is not None:
                self._waiting.set()

    def _post(self, callback: Callable[[], None]) -> None:
        self._posted.append(callback)
        os.write(self._wakeup_write, b"\0")

    def _on_wakeup(self) -> None:
        os.read(self._wakeup_read, 4096)
        while self._posted:
            self._posted.popleft()()

    def call(self, coroutine: Coroutine[Future[Any], None, T]) -> T:
        """Runs a coroutine in the loop and returns its result, or raises its exception.

        A KeyboardInterrupt meanwhile cancels the coroutine, and is raised once it has ended.
        Raises whatever has ended the loop.
        """
        done = threading.Event()
        tasks: list[Task[T]] = []

        def begin() -> None:
            task = Task(self._loop, coroutine)
            tasks.append(task)
            task.when_done(done.set)

        self._waiting = done
        self._post(begin)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._check(coroutine)
                done.wait()
                break
            except KeyboardInterrupt as error:
                interrupt = error
                self._post(lambda: tasks[0].cancel())
        self._check(coroutine)
        if interrupt is not None:
            tasks[0].when_done(lambda: None)
            raise interrupt
        return tasks[0].result()

    def _check(self, coroutine: Coroutine[Future[Any], None, Any]) -> None:
        if self._failure is not None:
            coroutine.close()  # it may not have begun
            raise self._failure

    def close(self) -> None:
        """Ends the thread; the loop belongs to the caller again."""
        self._post(self._loop.stop)
        self._thread.join()
        self._loop.watch_reader(self._wakeup_read, None)
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
