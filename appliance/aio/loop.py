"""The event loop: epoll, timers, and nothing else.

asyncio would do. But importing it takes 45 ms, which is half of a whole login. Its first loop
touches 1 MiB of a forked worker's memory, a quarter of what an idle connection costs. And for a
small packet in a tunnel its handles and contexts take longer than all other work. The few
functions of a loop that a connection needs fit on this page.

An exception of a callback ends ``run``: a connection never goes on half broken.
"""

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from select import EPOLLIN, EPOLLOUT
from typing import Any, Final

Callback = Callable[[], None]

# Our own choice
EVENTS: Final = 32  # descriptors served in one turn: few, so that timers are not late


class Timer:
    """A callback that is due at ``when`` (seconds, monotonic)."""

    __slots__ = ("_arguments", "_callback", "when")

    def __init__(self, when: float, callback: Callable[..., None], arguments: Any) -> None:
        self.when = when
        self._callback: Callable[..., None] | None = callback
        self._arguments = arguments

    def cancel(self) -> None:
        """Prevents the call."""
        self._callback = None

    def fire(self) -> None:
        """Calls the callback, unless it was cancelled."""
        if self._callback is not None:
            self._callback(*self._arguments)


class Loop:
    """Calls readers and writers when their descriptors are ready, and timers when due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._soon: deque[Timer] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._signals: dict[int, Callback] = {}
        self._wakeup: tuple[int, ...] = ()
        self._stopped = False
        self.time = time.monotonic

    def watch_reader(self, fd: int, callback: Callback | None) -> None:
        """Calls ``callback`` whenever ``fd`` is readable; None ends that.

        Raises PermissionError for a regular file, which epoll cannot wait for.
        """
        self._watch(fd, callback, self._writers.get(fd))

    def watch_writer(self, fd: int, callback: Callback | None) -> None:
        """Calls ``callback`` whenever ``fd`` is writable; None ends that."""
        self._watch(fd, self._readers.get(fd), callback)

    def _watch(self, fd: int, reader: Callback | None, writer: Callback | None) -> None:
        known = fd in self._readers or fd in self._writers
        mask = (EPOLLIN if reader else 0) | (EPOLLOUT if writer else 0)
        if not mask:
            if known:
                self._epoll.unregister(fd)
        elif known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        for table, callback in ((self._readers, reader), (self._writers, writer)):
            if callback is not None:
                table[fd] = callback
            else:
                table.pop(fd, None)

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Calls ``callback`` in the next turn."""
        self._soon.append(Timer(0.0, callback, arguments))

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        """Calls ``callback`` after ``delay`` seconds."""
        return self.call_at(self.time() + delay, callback, *arguments)

    def call_at(self, when: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        """Calls ``callback`` at ``when`` (seconds, monotonic)."""
        timer = Timer(when, callback, arguments)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def on_signal(self, number: int, callback: Callback) -> None:
        """Calls ``callback`` from the loop after the signal; only for the main thread."""
        if not self._signals:
            self._wakeup = read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(write)
            self.watch_reader(read, lambda: self._on_wakeup(read))
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)

    def _on_wakeup(self, fd: int) -> None:
        for number in os.read(fd, 512):
            if number in self._signals:
                self._signals[number]()

    def stop(self) -> None:
        """Makes ``run`` return after this turn, or the next ``run`` return at once."""
        self._stopped = True

    def run(self) -> None:
        """Serves until ``stop``, or until a callback raises; may be called again after it."""
        while not self._stopped:
            self._turn()
        self._stopped = False

    def close(self) -> None:
        """Closes the descriptors of the loop itself, which then can watch nothing any more."""
        self._epoll.close()
        if self._wakeup:
            signal.set_wakeup_fd(-1)
            for fd in self._wakeup:
                os.close(fd)

    def _turn(self) -> None:
        wait = -1.0
        if self._soon:
            wait = 0.0
        elif self._timers:
            wait = max(0.0, self._timers[0][0] - self.time())
        for fd, event in self._epoll.poll(wait, EVENTS):
            if event & ~EPOLLOUT:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
            if event & ~EPOLLIN:
                writer = self._writers.get(fd)
                if writer is not None:
                    writer()
        for _ in range(len(self._soon)):
            self._soon.popleft().fire()
        timers = self._timers
        while timers and timers[0][0] <= self.time():
            heapq.heappop(timers)[2].fire()
