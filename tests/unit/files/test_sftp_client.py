"""The client's requests, each answered by our own server and by a bare one."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.aio.loop import Loop
from appliance.aio.tasks import Future, Task, run
from appliance.files.sftp_client import SftpClient, StatusError
from appliance.files.sftp_streams import SocketStream
from appliance.server.sftp_program import SftpServer
from appliance.wire import sftp
from appliance.wire.sftp import Attributes

OURS = SftpServer((), False).command(None, "", False)
BARE = [sys.executable, "-m", "tests.interop.odd_sftp_server"]
NEW = sftp.READ | sftp.WRITE | sftp.CREATE

Do = Callable[[Callable[[SftpClient], Coroutine[Future[Any], None, Any]]], Any]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def connected(loop: Loop, words: list[str]) -> Iterator[Do]:
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno()) as server:
        theirs.close()
        client = SocketStream(loop, ours).client
        run(loop, client.start())
        yield lambda work: run(loop, work(client))
        client.close()
        server.wait()


@pytest.fixture
def ours(loop: Loop) -> Iterator[Do]:
    """Does a coroutine with a client of our own server."""
    yield from connected(loop, OURS)


@pytest.fixture
def bare(loop: Loop) -> Iterator[Do]:
    """Does a coroutine with a client of a server without extensions."""
    yield from connected(loop, BARE)


def test_our_own_server_tells_the_rest_of_stat_and_the_true_errno(ours: Do, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    os.link(tmp_path / "file", tmp_path / "other")

    async def work(client: SftpClient) -> None:
        found = await client.stat(bytes(tmp_path / "file"))
        status = os.stat(tmp_path / "file")
        assert found.identity is not None and found.times is not None
        assert (found.identity.inode, found.identity.links) == (status.st_ino, 2)
        assert found.identity.blocks == status.st_blocks
        nanoseconds = found.times[1] * 10**9 + found.identity.modification_nanoseconds
        assert nanoseconds == status.st_mtime_ns
        with pytest.raises(StatusError, match="Directory not empty") as raised:
            await client.rmdir(bytes(tmp_path))
        assert raised.value.errno == errno.ENOTEMPTY

    ours(work)


def test_times_are_set_with_their_nanoseconds(ours: Do, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def work(client: SftpClient) -> None:
        kept = Attributes(times=(5, 7), nanoseconds=(123, 456))
        await client.setstat(bytes(tmp_path / "file"), kept)
        assert os.stat(tmp_path / "file").st_mtime_ns == 7_000_000_456

    ours(work)


def test_locks_of_two_handles_exclude_each_other_and_one_waits(
    ours: Do, loop: Loop, tmp_path: Path
) -> None:
    path = bytes(tmp_path / "file")

    async def work(client: SftpClient) -> None:
        first, second = await client.open(path, NEW), await client.open(path, NEW)
        await client.lock(first, sftp.LOCK_EXCLUSIVE, 0, 0, False)
        for kind in (sftp.LOCK_SHARED, sftp.LOCK_TEST_SHARED):
            with pytest.raises(BlockingIOError) as raised:
                await client.lock(second, kind, 0, 10, False)
            assert isinstance(raised.value, StatusError)
            assert raised.value.errno == errno.EAGAIN
        waiting = Task(loop, client.lock(second, sftp.LOCK_SHARED, 0, 10, True))
        await client.stat(path)  # which is answered meanwhile
        assert not waiting.done
        await client.lock(first, sftp.LOCK_NONE, 0, 0, False)
        await waiting

    ours(work)


def test_extended_attributes_are_kept_with_their_bytes(ours: Do, tmp_path: Path) -> None:
    path, name = bytes(tmp_path / "file"), b"user.note"
    (tmp_path / "file").touch()

    async def work(client: SftpClient) -> None:
        await client.set_xattr(path, name, b"\0\xff")
        assert await client.get_xattr(path, name) == b"\0\xff"
        assert await client.list_xattrs(path) == (name,)
        await client.remove_xattr(path, name)
        with pytest.raises(StatusError) as raised:
            await client.get_xattr(path, name)
        assert raised.value.errno == errno.ENODATA

    ours(work)


def test_changes_are_told_while_other_requests_are_answered(
    ours: Do, loop: Loop, tmp_path: Path
) -> None:
    async def work(client: SftpClient) -> None:
        watch = await client.watch(bytes(tmp_path))
        told = Task(loop, client.changes())
        await client.stat(bytes(tmp_path))
        assert not told.done
        (tmp_path / "new").touch()
        reply = await told
        assert not reply.lost
        assert sftp.Change(watch, b"new") in reply.changes
        await client.unwatch(watch)

    ours(work)


def test_what_a_bare_server_lacks_is_said_before_it_is_asked(bare: Do, tmp_path: Path) -> None:
    path = bytes(tmp_path)

    async def work(client: SftpClient) -> None:
        handle = await client.open(bytes(tmp_path / "file"), NEW)
        for asked in (
            client.watch(path),
            client.lock(handle, sftp.LOCK_SHARED, 0, 0, False),
            client.get_xattr(path, b"user.x"),
            client.statvfs(path),
            client.fsync(handle),
            client.hardlink(path, path + b"x"),
            client.lookup_tree(path, 1, 10),
        ):
            with pytest.raises(StatusError) as raised:
                await asked
            assert raised.value.errno == errno.EOPNOTSUPP
        assert client.read_limit == client.write_limit == 32 << 10

    bare(work)


def test_requests_that_are_in_flight_fail_when_the_server_ends(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = SocketStream(loop, ours).client
        starting = Task(loop, client.start())
        theirs.recv(100)
        theirs.send(bytes.fromhex("000000050200000003"))
        asked: list[Future[Any]] = []

        async def work() -> None:
            await starting
            asked.extend([client.ask(sftp.Stat(0, b"x"), sftp.AttrsReply) for _ in range(3)])
            theirs.close()
            await asked[0]

        with pytest.raises(Exception, match="the SFTP server has ended"):
            run(loop, work())
    assert all(each.done for each in asked)


def test_a_client_counts_its_bytes_in_both_directions(bare: Do, tmp_path: Path) -> None:
    data = bytes(30_000)

    async def work(client: SftpClient) -> None:
        before = client.received_bytes, client.sent_bytes
        assert all(before)
        handle = await client.open(bytes(tmp_path / "new"), NEW, Attributes())
        done: Future[None] = Future()
        client.write(handle, 0, data, lambda _: done.resolve(None))
        await done
        assert len(data) < client.sent_bytes - before[1] < len(data) + 300
        assert client.received_bytes - before[0] < 300
        read: Future[None] = Future()
        client.read(handle, 0, len(data), lambda *_: read.resolve(None))
        await read
        assert len(data) < client.received_bytes - before[0] < len(data) + 300

    bare(work)
