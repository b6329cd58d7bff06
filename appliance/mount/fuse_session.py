"""One mount's conversation with the kernel: requests of /dev/fuse, and their replies.

A handler takes a Request and returns its reply's structure; or a coroutine, which is run as a
task; or PENDING, and calls ``reply`` or ``fail`` later. It raises OSError. The request's body is
valid until the handler waits for the first time.

A reply that gives the kernel something (a lookup, an open file) is ``Granted``: what it grants is
taken back when the kernel no longer wants it.

No caller waits for ever. A request that is not answered within ``patience`` fails with ETIMEDOUT,
and one that is interrupted with EINTR. What it began goes on; only the answer is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from ..aio.loop import Loop
from ..aio.tasks import Future, Task
from ..aio.threads import in_thread
from ..errors import PeerError
from ..wire import fuse
from ..wire.fuse import Request

_log = logging.getLogger(__name__)

# Our own choices
LARGEST: Final = 1 << 20  # bytes of one READ or WRITE
BATCH: Final = 16  # requests of one wake-up
INTERRUPT_GRACE: Final = 0.4  # seconds: most signals are no reason to stop, and kill -9 is no hurry

_WANTED: Final = (
    fuse.ASYNC_READ
    | fuse.ATOMIC_O_TRUNC
    | fuse.BIG_WRITES
    | fuse.AUTO_INVAL_DATA
    | fuse.DO_READDIRPLUS
    | fuse.PARALLEL_DIROPS
    | fuse.MAX_PAGES
)
_UNANSWERED: Final = (fuse.FORGET, fuse.BATCH_FORGET)
# These take as long as there is progress: they stand for many requests to the server.
_LONG: Final = (fuse.WRITE, fuse.FLUSH, fuse.FSYNC, fuse.RELEASE, fuse.COPY_FILE_RANGE)
_ENDLESS: Final = (fuse.SETLKW,)


class Granted(NamedTuple):
    """A reply's structure, and what takes back the grant if the kernel does not take it."""

    structure: bytes
    take_back: Callable[[], None]


class Pending:
    """The type of PENDING."""


PENDING: Final = Pending()
Reply = bytes | Granted
Answer = Reply | Pending | Coroutine[Future[Any], None, Reply]
Handler = Callable[[Request], Answer]


class _Waiting(NamedTuple):
    """A request that is not answered yet."""

    opcode: int
    since: float


class FuseSession:
    """Reads requests from one descriptor of /dev/fuse, and answers them by the handlers."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        handlers: Mapping[int, Handler],
        patience: float,
        flags: int,
        on_end: Callable[[], None],
    ) -> None:
        """``flags`` of INIT are wanted besides those of every mount.

        ``on_end`` is called once, when the file system is unmounted.
        """
        self._loop = loop
        self._fd = fd
        self._handlers = handlers
        self._patience = patience
        self._flags = _WANTED | flags
        self._on_end = on_end
        self._buffer = bytearray(LARGEST + fuse.PAGE)
        self._view = memoryview(self._buffer)
        self._waiting: dict[int, _Waiting] = {}  # in the order in which they came
        self._has_timer = False
        self._is_open = True
        self._notices: queue.SimpleQueue[bytes] | None = None
        self.progress = 0.0  # when the server last did a part of something long (monotonic)
        os.set_blocking(fd, False)
        loop.watch_reader(fd, self._on_readable)

    def close(self) -> None:
        """Answers no more; the caller closes the descriptor."""
        if self._is_open:
            self._is_open = False
            if self._notices is not None:
                self._notices.put(b"")
            self._loop.watch_reader(self._fd, None)

    # -- requests ----------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            try:
                length = os.readv(self._fd, (self._buffer,))
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                if error.errno == errno.ENODEV:
                    self.close()
                    self._on_end()
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                raise
            self._on_request(fuse.parse(self._view[:length]))
            if not self._is_open:
                return

    def _on_request(self, request: Request) -> None:
        opcode, unique = request.opcode, request.unique
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("request %d: opcode %d of node %d", unique, opcode, request.node)
        handler = self._handlers.get(opcode)
        if handler is None:
            self._special(request)
            return
        try:
            answer = handler(request)
        except OSError as error:
            self._write(unique, None, error.errno or errno.EIO)
            return
        if opcode in _UNANSWERED:
            return
        if type(answer) is bytes:
            self._write(unique, answer)
        elif isinstance(answer, Granted):
            self._grant(unique, answer)
        elif isinstance(answer, Pending):
            self._wait(unique, opcode)
        else:
            assert not isinstance(answer, bytes)
            self._wait(unique, opcode)
            task = Task(self._loop, answer)
            task.when_done(partial(self._on_done, unique, task))

    def _special(self, request: Request) -> None:
        if request.opcode == fuse.INTERRUPT:
            (unique,) = request.fields()
            if unique in self._waiting:
                self._loop.call_later(INTERRUPT_GRACE, self.fail, unique, errno.EINTR)
        elif request.opcode == fuse.INIT:
            structure, agreement = fuse.negotiate(request, self._flags, LARGEST)
            if agreement is not None:
                _log.debug("FUSE 7.%d, flags %#x", agreement.minor, agreement.flags)
            self._write(request.unique, structure)
        elif request.opcode == fuse.DESTROY:
            self._write(request.unique, b"")
        else:
            self._write(request.unique, None, errno.ENOSYS)

    def _on_done(self, unique: int, task: Task[Reply]) -> None:
        try:
            reply = task.result()
        except OSError as error:
            self.fail(unique, error.errno or errno.EIO)
        except PeerError as error:
            _log.debug("request %d: %s", unique, error)
            self.fail(unique, errno.EIO)
        else:
            if isinstance(reply, Granted):
                if self._waiting.pop(unique, None) is None:
                    reply.take_back()
                else:
                    self._grant(unique, reply)
            else:
                self.reply(unique, reply)

    # -- replies -----------------------------------------------------------------------

    def reply(self, unique: int, structure: bytes | memoryview) -> None:
        """Answers a request that was PENDING; does nothing if it was answered meanwhile."""
        if self._waiting.pop(unique, None) is not None:
            self._write(unique, structure)

    def fail(self, unique: int, number: int) -> None:
        """Answers a request that was PENDING with an errno."""
        if self._waiting.pop(unique, None) is not None:
            self._write(unique, None, number)

    def notify(self, parts: list[bytes]) -> None:
        """Tells the kernel something that it did not ask for.

        It may wait for locks that are held until we have answered a request, so another thread
        does that.
        """
        if self._notices is None:
            self._notices = queue.SimpleQueue()
            threading.Thread(target=self._notify, args=(self._notices,), daemon=True).start()
        self._notices.put(b"".join(parts))

    def _notify(self, notices: queue.SimpleQueue[bytes]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while notice := notices.get():
            self._notice(notice)

    async def notified(self, parts: list[bytes]) -> None:
        """As ``notify``; returns when the kernel has done what it was told."""
        await in_thread(self._loop, lambda: self._notice(b"".join(parts)))

    def _notice(self, notice: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel does not know it, or is gone
            os.write(self._fd, notice)

    def _grant(self, unique: int, granted: Granted) -> None:
        if not self._write(unique, granted.structure):
            granted.take_back()

    def _write(self, unique: int, structure: bytes | memoryview | None, number: int = 0) -> bool:
        if structure is None:
            return self._write_all([fuse.failure(unique, number)])
        return self._write_all(fuse.reply(unique, structure))

    def _write_all(self, parts: list[bytes] | list[bytes | memoryview]) -> bool:
        """Whether the kernel took it: it no longer wants the answer to a caller that is gone."""
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return True

    # -- patience ----------------------------------------------------------------------

    def _wait(self, unique: int, opcode: int) -> None:
        self._waiting[unique] = _Waiting(opcode, self._loop.time())
        if not self._has_timer:
            self._has_timer = True
            self._loop.call_later(self._patience, self._on_timer)

    def _on_timer(self) -> None:
        """Ends requests that wait for too long; looks again when the next one may be due."""
        self._has_timer = False
        now = self._loop.time()
        next_due = now + self._patience
        late = []
        for unique, (opcode, since) in self._waiting.items():
            if opcode in _ENDLESS:
                continue
            due = (max(since, self.progress) if opcode in _LONG else since) + self._patience
            if due <= now:
                late.append(unique)
            else:
                next_due = min(next_due, due)
                if opcode not in _LONG:
                    break  # all others came later
        for unique in late:
            self.fail(unique, errno.ETIMEDOUT)
        if self._waiting:
            self._has_timer = True
            self._loop.call_at(next_due, self._on_timer)
