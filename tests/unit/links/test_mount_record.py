"""What a killed supervisor left of mounts: only what is ours is ended."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.links import mount_record
from appliance.links.mount_record import MountRecord, end_left, names_left, save

PLACE = "/nowhere/photos"
IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(mount_record, "END_SECONDS", 1.0)
    return tmp_path / "mounts"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program with words of its command line, which has begun to wait."""
    made = []

    def begin(*words: str, before: str = "") -> "subprocess.Popen[bytes]":
        code = before + "import time; print(flush=True); time.sleep(60)"
        argv = [sys.executable, "-c", code, *words]
        made.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        assert made[-1].stdout is not None
        made[-1].stdout.readline()
        return made[-1]

    yield begin
    for program in made:
        program.kill()
        program.communicate()


def test_a_record_outlives_its_process(folder: Path) -> None:
    save("photos", MountRecord(1, PLACE, "joe@host:"))
    save("music", MountRecord(2, "/mnt/music", "host:"))
    assert names_left() == ["music", "photos"]
    assert (folder / "photos.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((folder / "photos.json").read_text()) == {
        "process": 1,
        "mountpoint": PLACE,
        "source": "joe@host:",
    }


@pytest.mark.parametrize("before", ["", IGNORES])
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_program_is_ended(start: Start, before: str, is_stopped: bool) -> None:
    program = start("--supervised", "5", PLACE, before=before)
    if is_stopped:
        program.send_signal(signal.SIGSTOP)
    save("photos", MountRecord(program.pid, PLACE, "host:"))
    end_left("photos")
    assert program.wait(5) == (-signal.SIGKILL if before else -signal.SIGTERM)
    assert names_left() == []


@pytest.mark.parametrize("words", [("--supervised", "/other"), (PLACE,), ()])
def test_another_process_that_has_got_the_number_is_left_alone(
    start: Start, words: tuple[str, ...]
) -> None:
    program = start(*words)
    save("photos", MountRecord(program.pid, PLACE, "host:"))
    end_left("photos")
    assert program.poll() is None
    assert names_left() == []


def test_a_process_that_is_gone_is_no_mistake(start: Start) -> None:
    program = start()
    program.kill()
    program.wait()
    save("photos", MountRecord(program.pid, PLACE, "host:"))
    end_left("photos")
    end_left("photos")
    assert names_left() == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"process": 1}', '{"process": "x"}'])
def test_a_record_that_is_none_ends_nothing(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "photos.json").write_text(text)
    end_left("photos")
    assert not os.listdir(folder)


def test_a_record_that_cannot_be_written_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file")
    save("photos", MountRecord(1, PLACE, "host:"))
    assert "photos.json" in caplog.text
