"""The source of the old scp protocol, towards our own sink and towards hostile ones."""

import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from appliance.files.old_scp.peer import ScpPeer, ScpSettings
from appliance.files.old_scp.sink import ScpSink
from appliance.files.old_scp.source import ScpSource
from tests.hard_names import HARD_NAMES, NEWLINE, content, make_tree

ENOUGH = b"\0" * 1000


def send(
    answers: bytes, paths: Iterable[Path | bytes], settings: ScpSettings | None = None
) -> tuple[bool, bytes, list[bytes]]:
    """Send to a sink that gives these answers; return success, what was sent, what was told."""
    ours, theirs = socket.socketpair()
    told: list[bytes] = []
    sent = bytearray()

    def collect() -> None:
        while data := theirs.recv(1 << 16):
            sent.extend(data)

    with ours, theirs:
        theirs.sendall(answers)
        theirs.shutdown(socket.SHUT_WR)
        collector = threading.Thread(target=collect)
        collector.start()
        peer = ScpPeer(ours.fileno(), ours.fileno(), told.append)
        source = ScpSource(peer, settings or ScpSettings())
        is_well = peer.run(lambda: source.send([os.fsencode(path) for path in paths]))
        ours.shutdown(socket.SHUT_WR)
        collector.join()
    return is_well, bytes(sent), told


def copy_tree(source: Path, target: Path, how: ScpSettings) -> tuple[bool, list[bytes]]:
    """Send a file or tree from our source to our sink; return success and what was told."""
    near, far = socket.socketpair()
    told: list[bytes] = []
    results = []

    def receive() -> None:
        peer = ScpPeer(far.fileno(), far.fileno(), told.append)
        sink = ScpSink(peer, how)
        results.append(peer.run(lambda: sink.receive(os.fsencode(target), False)))

    with near, far:
        thread = threading.Thread(target=receive)
        thread.start()
        peer = ScpPeer(near.fileno(), near.fileno(), told.append)
        sender = ScpSource(peer, how)
        results.append(peer.run(lambda: sender.send([os.fsencode(source)])))
        near.shutdown(socket.SHUT_RDWR)
        thread.join()
    return all(results), told


def test_a_file_is_sent_as_openssh_sends_it(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"content")
    (tmp_path / "a b").chmod(0o640)
    assert send(ENOUGH, [tmp_path / "a b"]) == (True, b"C0640 7 a b\ncontent\0", [])


def test_times_are_sent_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch(0o600)
    os.utime(path, ns=(1_100_000_000_000_000_000, 1_000_000_000_123_456_789))
    _, sent, _ = send(ENOUGH, [path], ScpSettings(preserve=True))
    assert sent == b"T1000000000 123456 1100000000 0\nC0600 0 f\n\0"


def test_a_directory_is_sent_only_with_r(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(0o700)
    is_well, sent, told = send(ENOUGH, [tmp_path / "d"])
    assert not is_well
    assert told == [b"scp: " + os.fsencode(tmp_path / "d") + b": not a regular file"]
    assert sent == b"\1" + told[0] + b"\n"
    assert send(ENOUGH, [os.fsencode(tmp_path / "d") + b"//"], ScpSettings(recursive=True)) == (
        True,
        b"D0700 0 d\nE\n",
        [],
    )


@pytest.mark.root
def test_what_cannot_be_read_is_told_and_the_next_file_follows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "last").write_bytes(b"x")
    is_well, sent, told = send(
        ENOUGH, [tmp_path / "none", tmp_path / "fifo", b"/dev/null", tmp_path / "last"]
    )
    assert not is_well
    assert [text.rpartition(b": ")[2] for text in told] == [
        b"No such file or directory",
        b"not a regular file",
        b"not a regular file",
    ]
    assert sent.endswith(b"C0644 1 last\nx\0")


def test_a_newline_in_a_name_is_written_as_openssh_writes_it(tmp_path: Path) -> None:
    path = os.path.join(bytes(tmp_path), NEWLINE)
    with open(path, "wb"):
        pass
    assert b" new\\^Jline\n" in send(ENOUGH, [path])[1]


def test_a_symlink_to_a_directory_above_is_told(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/up").symlink_to("..")
    is_well, sent, told = send(ENOUGH, [tmp_path / "d"], ScpSettings(recursive=True))
    assert not is_well
    assert sent.count(b"D0") == 2
    assert [text.rpartition(b": ")[2] for text in told] == [b"Too many levels of symbolic links"]


def test_a_file_that_shrinks_is_told_and_keeps_its_announced_length(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (1 << 20))

    class Shrinking:
        def advance(self, count: int) -> None:
            os.truncate(path, 0)

        def done(self) -> None:
            pass

    is_well, sent, told = send(ENOUGH, [path], ScpSettings(begin=lambda name, size: Shrinking()))
    assert not is_well
    assert told == [b"scp: " + bytes(path) + b": the file has become shorter"]
    head = b"C0644 1048576 f\n"
    assert len(sent) == len(head) + (1 << 20) + len(b"\1" + told[0] + b"\n")


def test_a_file_that_grows_is_sent_as_it_was_announced(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (1 << 20))

    class Growing:
        def advance(self, count: int) -> None:
            with open(path, "ab") as file:
                file.write(b"y" * 1000)

        def done(self) -> None:
            pass

    is_well, sent, _ = send(ENOUGH, [path], ScpSettings(begin=lambda name, size: Growing()))
    assert is_well
    assert sent == b"C0644 1048576 f\n" + b"x" * (1 << 20) + b"\0"


# Hostile sinks


def test_a_refused_file_is_not_sent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"secret")
    is_well, sent, told = send(
        b"\0" + b"\1scp: a: Permission denied\n" + ENOUGH, [tmp_path / "a", tmp_path / "b"]
    )
    assert (is_well, told) == (False, [b"scp: a: Permission denied"])
    assert sent == b"C0644 6 a\nC0644 6 b\nsecret\0"


@pytest.mark.parametrize("answer", [b"\2no\n", b"sh: scp: not found\n", b"\n", b"\xff\n"])
def test_the_last_answer_ends_the_transfer(tmp_path: Path, answer: bytes) -> None:
    (tmp_path / "a").write_bytes(b"secret")
    is_well, sent, told = send(answer + ENOUGH, [tmp_path / "a"])
    assert (is_well, sent) == (False, b"")
    assert told == [answer.strip(b"\n\2")]


def test_an_answer_without_an_end_is_refused(tmp_path: Path) -> None:
    is_well, _, told = send(b"\1" + b"x" * 40_000, [tmp_path])
    assert not is_well
    assert told == [b"scp: protocol error: line too long"]


def test_a_sink_that_goes_away_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    for answers in (b"", b"\0", b"\0\0", b"\1half a mess"):
        is_well, _, told = send(answers, [tmp_path / "a"])
        assert (is_well, told) == (False, [b"lost connection"])


# To our own sink


def test_a_tree_of_hard_names_arrives(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    make_tree(source, HARD_NAMES)
    assert copy_tree(source, target, ScpSettings(recursive=True)) == (True, [])
    assert content(target) == content(source)


def test_holes_modes_and_times_arrive(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(10 << 20)
        file.write(b"end")
    (source / "sparse").chmod(0o4711)
    os.utime(source / "sparse", ns=(10**18, 10**18 + 5000))
    source.chmod(0o2750)
    assert copy_tree(source, target, ScpSettings(recursive=True, preserve=True)) == (True, [])
    assert (target / "sparse").read_bytes() == (source / "sparse").read_bytes()
    status = (target / "sparse").stat()
    assert status.st_blocks * 512 <= 256 << 10
    assert status.st_mode & 0o7777 == 0o4711
    assert status.st_mtime_ns == 10**18 + 5000
    assert target.stat().st_mode & 0o7777 == 0o2750


def test_a_meter_and_a_pace_see_every_byte(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 600_000)
    seen: list[tuple[str, int]] = []

    class Meter:
        def advance(self, count: int) -> None:
            seen.append(("meter", count))

        def done(self) -> None:
            seen.append(("done", 0))

    def begin(name: bytes, size: int) -> Meter:
        seen.append((os.fsdecode(name), size))
        return Meter()

    pace: Callable[[int], None] = lambda count: seen.append(("pace", count))  # noqa: E731
    send(ENOUGH, [tmp_path / "f"], ScpSettings(begin=begin, pace=pace))
    assert (seen[0], seen[-1]) == (("f", 600_000), ("done", 0))
    for what in ("meter", "pace"):
        assert sum(count for name, count in seen if name == what) == 600_000
