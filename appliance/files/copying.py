"""What downloads and uploads have in common: settings, requests in flight, and the order of work.

A copy of a tree is a queue of jobs (``Jobs``): files and directories, done by a number of tasks at
once, so that a long link does not cost a round trip per file. A job that fails is reported, and the
others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

from ..aio.loop import Loop
from ..aio.tasks import Budget, Future, Task, sleep

# Our own choices
JOBS: Final = 64  # files and directories worked on at once; each may hold a file open
AT_ONCE: Final = 16 << 20  # bytes of the files that are copied at once; a larger one goes alone
LISTINGS: Final = 32  # directories listed at once; the other jobs make room for what is in them
FILES_AHEAD: Final = 4096  # files that wait, before more of a directory is listed
# Bytes that are asked for or sent, and not answered: 1 Gbit/s at 130 ms
IN_FLIGHT: Final = 16 << 20
MOST_IN_FLIGHT: Final = 1024  # requests of one file: a server may say that it takes single bytes
FIRST_IN_FLIGHT: Final = 4 << 20  # so many at first, and as many more as were answered
SMALL_FILE: Final = 128 << 10  # bytes: such a file is one request to a server of ours
SHORTER: Final = "the file has become shorter"  # while it was read: what was copied never was
PART: Final = ".culvert-part"  # the end of a temporary name


class CopySettings(NamedTuple):
    """How files are copied."""

    preserve: bool = False  # times and permissions
    recursive: bool = False
    resume: bool = False  # what is there is the beginning of the file
    fsync: bool = False
    temporary_name: bool = False  # write under another name, renamed once the file is whole
    buffer: int = 0  # bytes of one request; 0 is the server's limit
    requests: int = 0  # in flight for one file; 0 follows the path
    rate: int = 0  # bytes a second; 0 is no limit
    follow_links: bool = True  # within a tree; what is named is always followed


class Meter(Protocol):
    """The progress of one file."""

    def advance(self, count: int) -> None:
        """Counts bytes that were copied."""
        ...

    def done(self) -> None:
        """The file is copied, or has failed."""
        ...


class Progress(Protocol):
    """Shows how far a copy is, and what failed."""

    def begin(self, name: bytes, size: int) -> Meter:
        """Begins a file of ``size`` bytes; 0 if that is not known."""
        ...

    def failed(self, path: bytes, error: Exception) -> None:
        """Reports a file that was not copied."""
        ...

    def skipped(self, path: bytes) -> None:
        """Reports a symbolic link that was not followed."""
        ...


class InFlight:
    """How many requests of one file may be in flight: few at first, more as they are answered."""

    def __init__(self, chunk: int, requests: int) -> None:
        self._most = requests or min(max(IN_FLIGHT // chunk, 2), MOST_IN_FLIGHT)
        self._window = requests or min(max(FIRST_IN_FLIGHT // chunk, 2), self._most)
        self.count = 0

    @property
    def has_room(self) -> bool:
        """Whether another request may be sent."""
        return self.count < self._window

    def answered(self) -> None:
        """Takes note of a reply."""
        self.count -= 1
        if self._window < self._most:
            self._window += 1


class Pace:
    """Holds a copy to a number of bytes a second."""

    def __init__(self, loop: Loop, rate: int) -> None:
        self._loop = loop
        self._rate = rate
        self._free_at = 0.0  # when the bytes so far are due

    async def wait(self, count: int) -> None:
        """Waits as long as ``count`` more bytes would be too early."""
        if self._rate:
            now = self._loop.time()
            self._free_at = max(self._free_at, now) + count / self._rate
            if self._free_at - now > 0.05:
                await sleep(self._loop, self._free_at - now)


Job = Callable[[], Coroutine[Future[Any], None, None]]


class Jobs:
    """Files and directories that are still to be copied.

    Files come first: a directory is listed only when few files wait, so memory does not grow with
    the tree. Small files share the line, large ones go one after the other.
    """

    def __init__(self, loop: Loop, failed: Callable[[Exception], None]) -> None:
        """``failed`` gets an OSError that a job raises; other exceptions end all."""
        self._loop = loop
        self._failed = failed
        self._files: deque[tuple[int, Job]] = deque()
        self._ahead = Budget(FILES_AHEAD)
        self._directories: list[Job] = []
        self._listing = 0
        self._idle: list[Future[None]] = []
        self._running = 0
        self._copied = 0  # bytes of the files that are being copied

    def add_file(self, size: int, job: Job) -> None:
        """Adds the copy of a file of ``size`` bytes."""
        self._files.append((size, job))
        self._ahead.hold(1)
        self._wake()

    async def room(self) -> None:
        """Waits, in a directory's job, until few files wait: a listing may have no end."""
        await self._ahead.room()

    def add_directory(self, job: Job) -> None:
        """Adds a directory, whose job adds what is in it."""
        self._directories.append(job)
        self._wake()

    def _wake(self) -> None:
        if self._idle:
            self._loop.call_soon(self._wake_one)

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.pop().resolve(None)

    async def run(self) -> None:
        """Does all jobs, those included that they add."""
        workers = [Task(self._loop, self._work()) for _ in range(JOBS)]
        try:
            for worker in workers:
                await worker
        except BaseException:
            for worker in workers:
                worker.cancel()
                worker.when_done(lambda: None)
            raise

    @property
    def _lists(self) -> bool:
        """Whether a directory may be listed."""
        if not self._directories or self._listing == LISTINGS:
            return False
        return len(self._files) < FILES_AHEAD

    @property
    def _copies(self) -> bool:
        """Whether the next file may begin."""
        if not self._files:
            return False
        return not self._copied or self._copied + self._files[0][0] <= AT_ONCE

    async def _work(self) -> None:
        while self._files or self._directories or self._running:
            size, listing = 0, 0
            if self._lists:
                job, listing = self._directories.pop(), 1
            elif self._copies:
                size, job = self._files.popleft()
                self._ahead.give(1)
            else:
                future: Future[None] = Future()
                self._idle.append(future)
                await future
                continue
            self._running += 1
            self._listing += listing
            self._copied += size
            try:
                await job()
            except OSError as error:
                self._failed(error)
            finally:
                self._running -= 1
                self._listing -= listing
                self._copied -= size
            if self._lists or self._copies:
                self._wake()
        while self._idle:  # all is done
            self._wake_one()


def named(error: OSError, path: bytes) -> OSError:
    """Returns the failure of a system call as one of ``path``, if it does not tell its own."""
    return error if error.filename is not None else OSError(error.errno, error.strerror, path)
