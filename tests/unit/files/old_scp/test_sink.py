"""The sink of the old scp protocol, fed by hostile and by honest sources."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.files.old_scp.peer import ScpPeer, ScpSettings
from appliance.files.old_scp.request import wanted
from appliance.files.old_scp.sink import ScpSink


class Outcome(NamedTuple):
    """What became of a transfer: success, our answers to the source, and what the user saw."""

    is_well: bool
    answers: bytes
    told: bytes


Receive = Callable[..., Outcome]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "outer/target"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def receive(target: Path) -> Receive:
    """A function that feeds a sink with what a source sends, whatever the answers are."""

    def run(
        sent: bytes,
        request: bytes | None = None,
        into: Path = target,
        recursive: bool = False,
        preserve: bool = False,
        must_be_directory: bool = False,
    ) -> Outcome:
        told: list[bytes] = []
        answers: list[bytes] = []
        from_source, to_sink = os.pipe()
        to_source, from_sink = os.pipe()
        threads = [
            threading.Thread(target=_write, args=(to_sink, sent)),
            threading.Thread(target=lambda: answers.append(_read(to_source))),
        ]
        for thread in threads:
            thread.start()
        peer = ScpPeer(from_source, from_sink, told.append)
        is_wanted = wanted(request) if request is not None else lambda name: True
        sink = ScpSink(peer, ScpSettings(recursive, preserve), is_wanted)
        is_well = peer.run(lambda: sink.receive(os.fsencode(into), must_be_directory))
        os.close(from_sink)
        _read(from_source)
        for thread in threads:
            thread.join()
        return Outcome(is_well, answers[0], b"\n".join(told))

    return run


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def file(name: bytes, content: bytes, mode: bytes = b"0644") -> bytes:
    return b"C%s %d %s\n%s\0" % (mode, len(content), name, content)


# Honest sources


def test_a_file_is_received_into_a_directory(receive: Receive, target: Path) -> None:
    done = receive(file(b"name", b"content"))
    assert done == (True, b"\0\0\0", b"")
    assert (target / "name").read_bytes() == b"content"


def test_a_file_is_received_under_another_name(receive: Receive, target: Path) -> None:
    assert receive(file(b"name", b"content"), into=target / "other").is_well
    assert (target / "other").read_bytes() == b"content"


def test_a_longer_file_is_replaced_whole(receive: Receive, target: Path) -> None:
    (target / "name").write_bytes(b"x" * 100_000)
    assert receive(file(b"name", bytes(5000) + b"end")).is_well
    assert (target / "name").read_bytes() == bytes(5000) + b"end"


def test_directories_lie_in_each_other(receive: Receive, target: Path) -> None:
    sent = b"D0755 0 a\n" + file(b"1", b"one") + b"D0500 0 b\n" + file(b"2", b"two") + b"E\n"
    done = receive(sent + file(b"3", b"") + b"E\n" + file(b"4", b""), recursive=True)
    assert done == (True, b"\0" * 13, b"")
    assert everything(target) == ["4", "a", "a/1", "a/3", "a/b", "a/b/2"]
    assert (target / "a/b").stat().st_mode & 0o777 == 0o500


def test_a_directory_is_received_under_another_name(receive: Receive, target: Path) -> None:
    sent = b"D0755 0 a\n" + file(b"1", b"one") + b"E\n"
    assert receive(sent, into=target / "b", recursive=True).is_well
    assert everything(target) == ["b", "b/1"]


def test_times_and_modes_are_kept_when_asked_for(receive: Receive, target: Path) -> None:
    times = b"T1000000000 250000 1100000000 0\n"
    sent = times + b"D0751 0 d\n" + times + file(b"f", b"x", b"4715") + b"E\n"
    assert receive(sent, recursive=True, preserve=True).is_well
    for name, mode in (("d", 0o751), ("d/f", 0o4715)):
        status = (target / name).stat()
        assert status.st_mode & 0o7777 == mode
        assert status.st_mtime_ns == 1_000_000_000_250_000_000
        assert status.st_atime_ns == 1_100_000_000_000_000_000


def test_holes_are_made_of_zeros(receive: Receive, target: Path) -> None:
    content = b"begin" + bytes(3 << 20) + b"middle" + bytes(5 << 20)
    assert receive(file(b"sparse", content)).is_well
    assert (target / "sparse").read_bytes() == content
    assert (target / "sparse").stat().st_blocks * 512 <= 256 << 10


def test_what_cannot_be_written_is_told_and_the_next_file_follows(
    receive: Receive, target: Path
) -> None:
    (target / "taken").mkdir()
    sent = b"C0644 1 taken\n" + file(b"next", b"content")
    done = receive(sent)
    assert not done.is_well
    assert b"scp: " + os.fsencode(target / "taken") + b": Is a directory" == done.told
    assert done.answers == b"\0\1" + done.told + b"\n" + b"\0\0"
    assert (target / "next").read_bytes() == b"content"


@pytest.mark.root
def test_a_full_disk_is_told_and_the_transfer_goes_on(
    receive: Receive, target: Path, small_disk: Path
) -> None:
    sent = file(b"big", os.urandom(2 << 20)) + file(b"small", b"")
    done = receive(sent, into=small_disk)
    assert not done.is_well
    assert done.told == b"scp: " + os.fsencode(small_disk / "big") + b": No space left on device"
    assert done.answers == b"\0" + b"\0\1" + done.told + b"\n" + b"\0\0"
    assert (small_disk / "small").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_target_that_has_to_be_a_directory_is_one(receive: Receive, target: Path) -> None:
    (target / "file").touch()
    for name, reason in (("none", b"No such file or directory"), ("file", b"Not a directory")):
        done = receive(b"", into=target / name, must_be_directory=True)
        assert not done.is_well
        assert done.told == b"scp: " + os.fsencode(target / name) + b": " + reason
        assert done.answers == b"\1" + done.told + b"\n"


# Hostile sources


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../x", b"/etc/x", b"a/b", b"a\0b"])
@pytest.mark.parametrize("kind", [b"C", b"D"])
def test_a_name_that_leads_elsewhere_ends_the_transfer(
    receive: Receive, target: Path, name: bytes, kind: bytes
) -> None:
    before = target.stat()
    done = receive(kind + b"0777 0 " + name + b"\n\0", recursive=True, preserve=True)
    assert not done.is_well
    assert done.told.startswith(b"scp: error: unexpected filename: ")
    assert everything(target.parent) == ["target"]
    assert target.stat().st_mode == before.st_mode  # CVE-2018-20685


@pytest.mark.parametrize(
    ("request_", "name"),
    [(b"file", b".bashrc"), (b"*", b".ssh"), (b"d/*.txt", b"x.sh"), (b"{a,b}", b"c")],
)
def test_a_name_that_was_not_asked_for_ends_the_transfer(
    receive: Receive, target: Path, request_: bytes, name: bytes
) -> None:
    """CVE-2019-6111."""
    done = receive(file(name, b"evil"), request=request_)
    assert not done.is_well
    assert b"does not match request" in done.told
    assert everything(target) == []


def test_a_directory_that_was_not_asked_for_ends_the_transfer(
    receive: Receive, target: Path
) -> None:
    sent = b"D0755 0 .ssh\n" + file(b"authorized_keys", b"evil") + b"E\n"
    assert not receive(sent, request=b"folder", recursive=True).is_well
    assert everything(target) == []


def test_names_within_a_directory_are_its_own(receive: Receive, target: Path) -> None:
    sent = b"D0755 0 folder\n" + file(b"any", b"") + b"E\n"
    assert receive(sent, request=b"folder", recursive=True).is_well
    assert everything(target) == ["folder", "folder/any"]


def test_a_directory_comes_only_with_r(receive: Receive, target: Path) -> None:
    done = receive(b"D0755 0 folder\nE\n")
    assert done.told == b"scp: protocol error: received directory without -r"
    assert everything(target) == []


def test_no_directory_ends_that_was_not_begun(receive: Receive, target: Path) -> None:
    done = receive(b"E\n" + file(b"x", b""), recursive=True)
    assert not done.is_well
    assert everything(target) == []


def test_a_refused_directory_has_no_end(receive: Receive, target: Path) -> None:
    (target / "taken").touch()
    sent = b"D0755 0 taken\n" + file(b"x", b"") + b"E\n" + file(b"y", b"")
    assert not receive(sent, recursive=True).is_well
    assert everything(target) == ["taken", "x"]


@pytest.mark.parametrize("mode", [b"4755", b"2755", b"1777", b"7777"])
def test_no_special_bits_are_kept_without_p(receive: Receive, target: Path, mode: bytes) -> None:
    """CVE-2026-35385."""
    sent = b"D" + mode + b" 0 d\n" + file(b"f", b"x", mode) + b"E\n"
    assert receive(sent, recursive=True).is_well
    mask = os.umask(0o022)
    os.umask(mask)
    for name in ("d", "d/f"):
        got = (target / name).stat().st_mode & 0o7777
        assert got == int(mode, 8) & 0o777 & ~mask


def test_permissions_of_a_file_that_was_there_stay(receive: Receive, target: Path) -> None:
    (target / "f").touch(0o600)
    assert receive(file(b"f", b"x", b"0777")).is_well
    assert (target / "f").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("size", [b"-1", b"9223372036854775808", b"1e9", b"99999999999999999999"])
def test_an_impossible_size_ends_the_transfer(receive: Receive, target: Path, size: bytes) -> None:
    done = receive(b"C0644 " + size + b" name\ncontent\0")
    assert not done.is_well
    assert done.told.startswith(b"scp: protocol error: size")
    assert everything(target) == []


def test_a_size_that_never_comes_costs_nothing(receive: Receive, target: Path) -> None:
    done = receive(b"C0644 9223372036854775807 name\n" + b"x" * 100)
    assert (done.is_well, done.told) == (False, b"lost connection")
    assert (target / "name").stat().st_size == 100


@pytest.mark.parametrize("times", [b"T-1 0 0 0", b"T0 1000000 0 0", b"T1 0 1", b"Tx 0 0 0"])
def test_impossible_times_end_the_transfer(receive: Receive, target: Path, times: bytes) -> None:
    done = receive(times + b"\n" + file(b"x", b""), preserve=True)
    assert not done.is_well
    assert done.told.startswith(b"scp: protocol error: time")
    assert everything(target) == []


def test_times_beyond_what_is_possible_are_told(receive: Receive, target: Path) -> None:
    done = receive(b"T9223372036854775807 0 9223372036854775807 0\n" + file(b"x", b"content"))
    assert (target / "x").read_bytes() == b"content"
    assert done.is_well or b"set times" in done.told


def test_a_line_without_an_end_is_refused(receive: Receive, target: Path) -> None:
    done = receive(b"C0644 0 " + b"x" * (1 << 20))
    assert done.told == b"scp: protocol error: line too long"
    assert everything(target) == []


def test_what_a_shell_says_is_shown(receive: Receive, target: Path) -> None:
    done = receive(b"Welcome to this machine\n")
    assert b"expected control record, not 'Welcome to this machine'" in done.told


def test_a_message_counts_as_a_failure(receive: Receive, target: Path) -> None:
    done = receive(b"\1scp: a: Permission denied\n" + file(b"b", b"x"))
    assert (done.is_well, done.told) == (False, b"scp: a: Permission denied")
    assert everything(target) == ["b"]


def test_the_last_message_ends_the_transfer(receive: Receive, target: Path) -> None:
    done = receive(b"\2scp: enough\n" + file(b"b", b"x"))
    assert (done.is_well, done.told) == (False, b"scp: enough")
    assert everything(target) == []


def test_a_source_that_could_not_read_its_file_counts_as_a_failure(
    receive: Receive, target: Path
) -> None:
    done = receive(b"C0644 3 a\n\0\0\0\1scp: a: Input/output error\n" + file(b"b", b"x"))
    assert (done.is_well, done.told) == (False, b"scp: a: Input/output error")
    assert everything(target) == ["a", "b"]


def test_directories_without_end_are_bounded(receive: Receive, target: Path) -> None:
    begin = time.monotonic()
    done = receive(b"D0755 0 d\n" * 20_000, recursive=True)
    assert not done.is_well
    assert b"File name too long" in done.told
    assert time.monotonic() - begin < 30
    subprocess.run(["rm", "-r", str(target)], check=True)  # deeper than Python's recursion


def test_a_connection_that_is_cut_is_told(receive: Receive, target: Path) -> None:
    whole = b"D0755 0 d\n" + file(b"f", b"content") + b"E\n"
    for end in range(1, len(whole)):
        done = receive(whole[:end], recursive=True)
        assert (done.is_well, done.told) == (False, b"lost connection"), whole[:end]


def test_what_a_source_sends_late_goes_through_no_symlink_of_its_own(
    receive: Receive, target: Path
) -> None:
    """A source has no way to make a symlink; one of the user's is followed, as ever."""
    (target / "link").symlink_to(target.parent / "elsewhere")
    assert receive(file(b"link", b"content")).is_well
    assert (target.parent / "elsewhere").read_bytes() == b"content"
