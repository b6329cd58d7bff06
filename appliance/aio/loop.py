"""The event loop: asyncio's, with readers and writers that epoll calls in place.

asyncio wraps each ready descriptor into a handle, queues it, and runs it in a context of
its own. For a tunnel's small packets that costs more than everything else on their way,
so descriptors watched here are served inside of ``select``, before asyncio looks at the
rest. An exception of theirs ends the loop: a connection never goes on half broken.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from select import EPOLLIN, EPOLLOUT
from typing import Any, Final, TypeVar

Callback = Callable[[], None]
T = TypeVar("T")

# Our own choice
EVENTS: Final = 32  # descriptors served a turn, so that timers are never far away


class _Selector(selectors.EpollSelector):
    """An epoll selector that serves some descriptors itself."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll: Any = self._selector  # type: ignore[attr-defined]
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}

    def watch(self, fd: int, reader: Callback | None, writer: Callback | None) -> None:
        """Serve ``fd`` with these from now on; None and None for no longer."""
        readers, writers = self._readers, self._writers
        known = fd in readers or fd in writers
        mask = (EPOLLIN if reader else 0) | (EPOLLOUT if writer else 0)
        if not mask:
            if known:
                self._epoll.unregister(fd)
        elif known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        for table, callback in ((readers, reader), (writers, writer)):
            if callback is not None:
                table[fd] = callback
            else:
                table.pop(fd, None)

    def reader(self, fd: int) -> Callback | None:
        """The reader of ``fd``."""
        return self._readers.get(fd)

    def writer(self, fd: int) -> Callback | None:
        """The writer of ``fd``."""
        return self._writers.get(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, serve what is watched, and return the rest for asyncio."""
        wait = -1 if timeout is None else max(timeout, 0)
        try:
            events = self._epoll.poll(wait, EVENTS)
        except InterruptedError:
            return []
        rest = []
        for fd, event in events:
            reader, writer = self._readers.get(fd), self._writers.get(fd)
            if reader is not None and event & ~EPOLLOUT:
                reader()
            if writer is not None and event & ~EPOLLIN:
                writer()
            if reader is None and writer is None:
                key = self.get_map().get(fd)
                if key is not None:
                    mask = (selectors.EVENT_WRITE if event & ~EPOLLIN else 0) | (
                        selectors.EVENT_READ if event & ~EPOLLOUT else 0
                    )
                    rest.append((key, mask & key.events))
        return rest


class Loop(asyncio.SelectorEventLoop):
    """What ``run`` runs in."""

    def __init__(self) -> None:
        self._watcher = _Selector()
        super().__init__(self._watcher)

    def watch_reader(self, fd: int, callback: Callback | None) -> None:
        """Call ``callback`` whenever ``fd`` is readable; None to stop.

        Raises PermissionError for a regular file, which epoll cannot wait for.
        """
        self._watcher.watch(fd, callback, self._watcher.writer(fd))

    def watch_writer(self, fd: int, callback: Callback | None) -> None:
        """Call ``callback`` whenever ``fd`` is writable; None to stop."""
        self._watcher.watch(fd, self._watcher.reader(fd), callback)


def running() -> Loop:
    """The loop that runs us."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in a Loop."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)
