"""Requests and replies, over a socket in place of /dev/fuse: each message is one packet as well."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from appliance.aio.loop import Loop
from appliance.aio.tasks import Future, sleep
from appliance.mount import fuse_session
from appliance.mount.fuse_session import PENDING, Answer, FuseSession, Granted, Handler, Reply
from appliance.wire import fuse
from appliance.wire.fuse import Request


class Kernel:
    """The other end of the socket."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handlers: dict[int, Handler] = {}
        ours, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fd = ours.detach()
        self.session = FuseSession(self.loop, self._fd, self.handlers, 0.2, 0, lambda: None)
        self._unique = 0

    def close(self) -> None:
        self.session.close()
        os.close(self._fd)
        self._socket.close()
        self.loop.close()

    def ask(self, opcode: int, body: bytes = b"") -> int:
        self._unique += 2
        head = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._unique, 1, 0, 0, 0, 0, 0)
        self._socket.send(head + body)
        return self._unique

    def turn(self, seconds: float = 0.01) -> None:
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()

    def replies(self) -> dict[int, tuple[int, bytes]]:
        """The errno and structure of each reply that has come."""
        found: dict[int, tuple[int, bytes]] = {}
        while True:
            try:
                data = self._socket.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            length, error, unique = struct.unpack_from("=IiQ", data)
            assert length == len(data)
            assert unique not in found
            found[unique] = (-error, data[16:])


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def answers(kernel: Kernel, opcode: int, handler: Callable[[Request], Answer]) -> None:
    kernel.handlers[opcode] = handler


def test_a_handler_answers_at_once_fails_or_is_missing(kernel: Kernel) -> None:
    def fails(_: Request) -> Answer:
        raise PermissionError(errno.EACCES, "")

    answers(kernel, fuse.ACCESS, lambda _: b"")
    answers(kernel, fuse.GETATTR, fails)
    good = kernel.ask(fuse.ACCESS, bytes(8))
    bad = kernel.ask(fuse.GETATTR, bytes(16))
    none = kernel.ask(fuse.STATFS)
    kernel.turn()
    assert kernel.replies() == {good: (0, b""), bad: (errno.EACCES, b""), none: (errno.ENOSYS, b"")}


def test_a_coroutine_answers_when_it_is_done(kernel: Kernel) -> None:
    async def later() -> Reply:
        await sleep(kernel.loop, 0.05)
        return b"done"

    async def fails() -> Reply:
        await sleep(kernel.loop, 0.05)
        raise FileNotFoundError(errno.ENOENT, "")

    answers(kernel, fuse.STATFS, lambda _: later())
    answers(kernel, fuse.READLINK, lambda _: fails())
    good, bad = kernel.ask(fuse.STATFS), kernel.ask(fuse.READLINK)
    kernel.turn()
    assert kernel.replies() == {}
    kernel.turn(0.1)
    assert kernel.replies() == {good: (0, b"done"), bad: (errno.ENOENT, b"")}


def test_whoever_waits_for_too_long_gets_an_error_and_no_second_answer(kernel: Kernel) -> None:
    answers(kernel, fuse.STATFS, lambda _: PENDING)
    first = kernel.ask(fuse.STATFS)
    kernel.turn(0.1)
    second = kernel.ask(fuse.STATFS)
    kernel.turn(0.15)
    assert kernel.replies() == {first: (errno.ETIMEDOUT, b"")}
    kernel.session.reply(first, b"late")
    kernel.session.reply(second, b"in time")
    assert kernel.replies() == {second: (0, b"in time")}


def test_a_long_request_waits_as_long_as_there_is_progress(kernel: Kernel) -> None:
    answers(kernel, fuse.FSYNC, lambda _: PENDING)
    answers(kernel, fuse.STATFS, lambda _: PENDING)
    long, short = kernel.ask(fuse.FSYNC, bytes(16)), kernel.ask(fuse.STATFS)
    for _ in range(5):
        kernel.turn(0.1)
        kernel.session.progress = kernel.loop.time()
    assert kernel.replies() == {short: (errno.ETIMEDOUT, b"")}
    kernel.turn(0.3)
    assert kernel.replies() == {long: (errno.ETIMEDOUT, b"")}


def test_an_interrupted_request_ends_soon(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_session, "INTERRUPT_GRACE", 0.02)
    answers(kernel, fuse.SETLKW, lambda _: PENDING)
    unique = kernel.ask(fuse.SETLKW, bytes(48))
    kernel.turn(0.3)
    assert kernel.replies() == {}  # a lock may be waited for for ever
    kernel.ask(fuse.INTERRUPT, struct.pack("=Q", unique))
    kernel.ask(fuse.INTERRUPT, struct.pack("=Q", 12345))
    kernel.turn(0.05)
    assert kernel.replies() == {unique: (errno.EINTR, b"")}


def test_what_nobody_takes_is_taken_back(kernel: Kernel) -> None:
    taken: list[str] = []
    future: Future[None] = Future()

    async def later() -> Reply:
        await future
        return Granted(b"", lambda: taken.append("back"))

    answers(kernel, fuse.OPENDIR, lambda _: later())
    unique = kernel.ask(fuse.OPENDIR, bytes(8))
    kernel.turn(0.3)
    assert kernel.replies() == {unique: (errno.ETIMEDOUT, b"")}
    future.resolve(None)
    assert taken == ["back"]
    assert kernel.replies() == {}


def test_nothing_answers_what_has_no_answer(kernel: Kernel) -> None:
    seen: list[int] = []

    def forget(request: Request) -> Answer:
        seen.append(request.fields()[0])
        return b""

    answers(kernel, fuse.FORGET, forget)
    kernel.ask(fuse.FORGET, struct.pack("=Q", 3))
    kernel.turn()
    assert seen == [3]
    assert kernel.replies() == {}
