"""What one owner changed, in a file that outlives a crash, or in memory for want of a disk."""

import contextlib
import os
from pathlib import Path

import pytest

from appliance.services.tunnel import record
from appliance.services.tunnel.network import Up
from appliance.services.tunnel.record import RecordedChange, in_memory, load, others, paths, save

ONE = [RecordedChange(Up("tun0"), {})]
TWO = [*ONE, RecordedChange(Up("tun1"), {"was": "down"})]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "network").mkdir()
    return tmp_path / "network" / "office.json"


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_record_goes_to_memory_while_the_disk_is_full_and_comes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(path, ONE)
    whole = record.write_atomically

    def write(where: Path, content: bytes, mode: int) -> None:
        full() if where == path else whole(where, content, mode)

    with monkeypatch.context() as disk:
        disk.setattr(record, "write_atomically", write)
        save(path, TWO)
        save(path, TWO)
    assert len(caplog.messages) == 1
    assert "No space left on device: the record is kept in" in caplog.text
    assert load(path) == TWO  # not the older one, which lies on the disk
    assert others(path.with_name("home.json")) == TWO
    assert paths(path.parent) == [path]
    save(path, ONE)
    assert not in_memory(path).exists()
    assert load(path) == ONE


def test_nothing_is_left_when_nothing_is_recorded(path: Path) -> None:
    in_memory(path).parent.mkdir(parents=True)
    in_memory(path).write_bytes(b"{}")
    save(path, TWO)
    save(path, [])
    assert paths(path.parent) == []
    assert load(path) == []


def test_a_disk_that_cannot_be_written_at_all_keeps_no_record_from_ending(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, ONE)
    unlink = os.unlink

    def refuse(where: Path, missing_ok: bool = False) -> None:
        if where == path:
            raise OSError(30, "Read-only file system")
        with contextlib.suppress(FileNotFoundError):
            unlink(where)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "unlink", refuse)
        save(path, [])
    assert load(path) == []


def test_a_write_that_fails_leaves_no_part_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.write_atomically(path, b"text", 0o600)
    assert not list(path.parent.iterdir())


def test_the_lock_is_in_memory_where_no_folder_can_be_made(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with record.locked(tmp_path / "state" / "network"):
        assert (memory / "network").is_dir()
