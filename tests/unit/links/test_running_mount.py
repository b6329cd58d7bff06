"""A mount while its supervisor runs: when its program is started, and what it may report.

No program is started here, and the clock is the test's: each test says what the program does.
"""

import errno
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.aio.loop import Loop
from appliance.config.links import DeclaredMount
from appliance.errors import CulvertError
from appliance.links import mount_record
from appliance.links.link import FIRST_DELAY, LinkState
from appliance.links.reports import (
    DATAGRAM,
    AttemptFailed,
    MountOrder,
    MountProgress,
    PacketsDropped,
    PassedLine,
)
from appliance.links.running import LOGIN_SECONDS
from appliance.links.running_mount import RunningMount
from appliance.wire.codec import Message

PHOTOS = DeclaredMount(
    name="photos",
    host="office.example.org",
    user="root",
    proxy="http://me:secret@192.0.2.1:3128",
    directory="/srv/photos",
    mountpoint="/mnt/photos",
    options=("allow_other,ro", "timeout=5"),
)


class Program:
    """In place of `culvert sshfs`."""

    pid = 4711

    def __init__(self, words: list[str], *, pass_fds: tuple[int], **settings: Any) -> None:
        self.words = words
        self.settings = settings
        self.socket = socket.socket(fileno=os.dup(pass_fds[0]))
        self.status: int | None = None
        self.order = MountOrder((b"?",))
        started.append(self)

    def wait(self, timeout: float | None = None) -> int:
        if self.status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("sshfs", timeout)
        return self.status

    def kill(self) -> None:
        if self.status is None:
            self.end(-9)

    def end(self, status: int) -> None:
        self.status = status
        self.socket.close()


started: list[Program] = []


class Clock:
    """A loop's time, which moves only when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[RunningMount]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", Program)
    started.clear()
    loop = Loop()
    loop.time = clock
    it = RunningMount(PHOTOS, loop, lambda: None, lambda: None)
    yield it
    for program in started:
        program.kill()
    if it.process:
        it._end_program()
    loop.close()


def tell(mount: RunningMount, *reports: Message) -> None:
    """Have the program report something."""
    for report in reports:
        started[-1].socket.send(report.encode())
        mount._on_report()


def progress(
    is_connected: bool = True, received: int = 0, sent: int = 0, error: str = ""
) -> MountProgress:
    return MountProgress(is_connected, received, sent, 20_000, error)


def come_up(mount: RunningMount) -> None:
    mount.start()
    tell(mount, progress())
    assert mount.life.state is LinkState.UP


def end(mount: RunningMount, status: int) -> None:
    started[-1].end(status)
    mount._on_report()


def test_the_program_is_told_how_to_log_in_and_not_by_its_command_line(mount: RunningMount) -> None:
    mount.start()
    (program,) = started
    descriptor = program.words[program.words.index("--supervised") + 1]
    assert program.words[-10:] == [
        "sshfs", "-f", "--supervised", descriptor, "-o", "allow_other,ro", "-o", "timeout=5",
        "--", "root@office.example.org:/srv/photos", "/mnt/photos",
    ][-10:]  # fmt: skip
    assert "secret" not in " ".join(program.words)
    assert set(program.settings["env"]) == {"PATH", "LANG"}
    words = MountOrder.decode(program.socket.recv(DATAGRAM)).settings
    settings = dict(zip(words[::2], words[1::2], strict=True))
    assert settings[b"Proxy"] == b"http://me:secret@192.0.2.1:3128"
    assert settings[b"BatchMode"] == settings[b"StrictHostKeyChecking"] == b"yes"
    assert settings[b"ServerAliveInterval"] == b"15"


def test_it_is_up_once_the_program_has_mounted(mount: RunningMount) -> None:
    mount.start()
    tell(mount, PassedLine(logging.WARNING, b"hello"))
    assert mount.life.connects == 0
    tell(mount, progress(received=7, sent=9))
    assert mount.life.state is LinkState.UP
    assert (mount.traffic, mount.round_trip) == ((7, 9), 0.02)
    assert mount_record.names_left() == ["photos"]


def test_a_lost_connection_is_the_programs_own_affair(mount: RunningMount) -> None:
    come_up(mount)
    tell(mount, progress(False, error="the server\nis \x1b[2Jsilent"))
    assert mount.life.state is LinkState.DIALLING
    assert mount.life.last_error == "the server is \\x1b[2Jsilent"
    tell(mount, progress())
    assert (mount.life.state, mount.life.reconnects) == (LinkState.UP, 1)
    assert len(started) == 1


def test_a_program_that_has_ended_is_started_again_after_a_while(
    mount: RunningMount, clock: Clock
) -> None:
    come_up(mount)
    end(mount, -9)
    assert (mount.life.state, mount.process) == (LinkState.BACKING_OFF, 0)
    assert mount.life.last_error == "its program ended (status -9)"
    assert FIRST_DELAY / 2 <= mount.life.due - clock.now <= FIRST_DELAY * 1.5
    clock.now = mount.life.due
    mount._loop._turn()
    assert (mount.life.state, len(started)) == (LinkState.DIALLING, 2)
    tell(mount, progress())
    assert mount.life.reconnects == 1


def test_somebody_who_unmounts_it_is_named(mount: RunningMount) -> None:
    come_up(mount)
    end(mount, 0)
    assert (mount.life.state, mount.life.last_error) == (
        LinkState.BACKING_OFF,
        "somebody has unmounted it",
    )


@pytest.mark.parametrize(
    ("is_final", "state"), [(True, LinkState.STOPPED), (False, LinkState.BACKING_OFF)]
)
def test_the_programs_reason_is_the_mounts(
    mount: RunningMount, is_final: bool, state: LinkState
) -> None:
    mount.start()
    tell(mount, AttemptFailed(is_final, "Permission denied\n(publickey)"))
    end(mount, 1)
    assert mount.life.state is state
    assert mount.life.last_error == "Permission denied (publickey)"
    mount.network_changed()
    assert len(started) == (1 if is_final else 2)


def test_a_program_has_a_limit_until_it_has_mounted(mount: RunningMount, clock: Clock) -> None:
    mount.start()
    clock.now += PHOTOS.connect_timeout + LOGIN_SECONDS + 5
    mount._loop._turn()
    assert mount.life.state is LinkState.BACKING_OFF
    assert started[0].status == -9
    assert "in time" in mount.life.last_error


def test_a_program_that_is_up_has_no_limit(mount: RunningMount, clock: Clock) -> None:
    come_up(mount)
    tell(mount, progress(False))
    clock.now += 10_000
    mount._loop.call_soon(lambda: None)
    mount._loop._turn()
    assert started[0].status is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"x" * 999,
        progress().encode()[:-1],
        progress().encode() + b"x",
        PacketsDropped("no_window", 1).encode(),
        MountOrder(()).encode(),
    ],
)
def test_a_program_that_reports_something_else_is_ended(mount: RunningMount, data: bytes) -> None:
    come_up(mount)
    started[0].socket.send(data)
    mount._on_report()
    assert (mount.life.state, started[0].status) == (LinkState.STOPPED, -9)
    assert "broke the rules" in mount.life.last_error


def test_bytes_of_all_programs_add_up(mount: RunningMount) -> None:
    come_up(mount)
    tell(mount, progress(received=100, sent=10))
    end(mount, -9)
    assert (mount.traffic, mount.round_trip) == ((100, 10), None)
    mount.network_changed()
    tell(mount, progress(received=5, sent=1))
    assert mount.traffic == (105, 11)


def test_it_is_stopped_by_the_end_of_the_socket_and_its_last_lines_are_read(
    mount: RunningMount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    come_up(mount)
    (program,) = started
    program.socket.recv(DATAGRAM)  # the settings

    def write_and_end(timeout: float | None = None) -> int:
        if program.status is None:
            assert program.socket.recv(1) == b""
            program.socket.send(PassedLine(logging.WARNING, b"the last line").encode())
            program.end(0)
        return 0

    monkeypatch.setattr(program, "wait", write_and_end)
    mount.ask_to_end()
    mount.stop()
    assert mount.life.state is LinkState.IDLE
    assert "mount photos: the last line" in caplog.text
    assert mount_record.names_left() == []


@pytest.mark.parametrize("status", [1, None])
def test_what_has_not_reached_the_server_is_told(mount: RunningMount, status: int | None) -> None:
    come_up(mount)
    if status is not None:
        started[0].end(status)
    with pytest.raises(CulvertError, match="not all that was written there has reached"):
        mount.stop()
    assert mount.process == 0


def test_a_program_that_has_not_mounted_is_not_waited_for(mount: RunningMount) -> None:
    mount.start()
    mount.stop()
    assert (started[0].status, mount.process) == (-9, 0)


def test_without_a_process_to_spare_it_is_tried_again(
    mount: RunningMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as short:
        short.setattr(subprocess, "Popen", none_left)
        mount.start()
    assert (mount.life.state, mount.process) == (LinkState.BACKING_OFF, 0)
    assert os.strerror(errno.EAGAIN) in mount.life.last_error
    mount.network_changed()
    assert mount.process == Program.pid
