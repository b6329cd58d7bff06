"""Runs a function that blocks in a thread, and gives its result to the event loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from .loop import Loop
from .tasks import Future

T = TypeVar("T")


def in_thread(loop: Loop, function: Callable[[], T]) -> Future[T]:
    """Returns the future of what the function returns or raises; it cannot be cancelled."""
    future: Future[T] = Future()
    outcome: list[Callable[[], None]] = []
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run() -> None:
        # signals are for the main thread, whose system call they interrupt
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            result = function()
        except BaseException as error:
            failure = error
            outcome.append(lambda: future.fail(failure))
        else:
            outcome.append(lambda: future.resolve(result))
        os.close(write)

    def done() -> None:
        loop.watch_reader(read, None)
        os.close(read)
        thread.join()
        outcome[0]()

    loop.watch_reader(read, done)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return future
