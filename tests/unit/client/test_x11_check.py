"""What --check says of our own display; hosts are in tests/interop/test_x11_hops.py."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.client.host_options import HostOptions
from appliance.client.ssh_config import load
from appliance.client.x11_check import _said, check
from appliance.wire.x11 import set_up_failed

SUCCESS = struct.pack("<BxHHH", 1, 11, 0, 2) + bytes(8)
Answer = Callable[[socket.socket], None]


@pytest.fixture
def nowhere() -> list[HostOptions]:
    """A host that nobody reaches."""
    return [load("127.0.0.1", [("Port", "1"), ("BatchMode", "yes")], "none")]


@pytest.fixture
def answered_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that lets a display answer in this way."""
    threads: list[threading.Thread] = []
    path = tmp_path / "display"
    monkeypatch.setenv("DISPLAY", str(path))
    monkeypatch.setenv("XAUTHORITY", "/nonexistent")

    def serve(answer: Answer) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with listener, listener.accept()[0] as sock:
                assert sock.recv(100) == b"l\0\x0b\0\0\0\0\0\0\0\0\0"
                answer(sock)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield serve
    for thread in threads:
        thread.join()


def said(hops: list[HostOptions]) -> list[str]:
    lines: list[str] = []
    assert not check(hops, lines.append)
    return lines


def hosts_listed(sock: socket.socket, enabled: bool) -> None:
    for piece in (SUCCESS[:5], SUCCESS[5:9], SUCCESS[9:]):
        sock.sendall(piece)
    assert sock.recv(100) == b"\x6e\0\1\0"
    sock.sendall(bytes((1, enabled)) + bytes(30))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_display_without_access_control_is_said_to_have_none(
    nowhere: list[HostOptions], answered_by: Callable[[Answer], None], enabled: bool
) -> None:
    answered_by(lambda sock: hosts_listed(sock, enabled))
    lines = said(nowhere)
    assert lines[0] == "ok    here: the display can be reached"
    assert any("access control is off" in line for line in lines) is not enabled
    assert lines[-1].startswith("FAIL  127.0.0.1: ")


def test_a_display_that_refuses_says_why(
    nowhere: list[HostOptions], answered_by: Callable[[Answer], None]
) -> None:
    answered_by(lambda sock: sock.sendall(set_up_failed("<", "no \x1b cookie")))
    first, mend, *_ = said(nowhere)
    assert first == "FAIL  here: the display lets nobody in without a cookie: no \\x1b cookie"
    assert mend.startswith("      to mend it: XAUTHORITY has to name the file")


def test_a_display_that_closes_the_connection(
    nowhere: list[HostOptions], answered_by: Callable[[Answer], None]
) -> None:
    answered_by(lambda sock: None)
    assert "the display cannot be reached: it has closed the connection" in said(nowhere)[0]


def test_a_display_that_is_not_there(
    nowhere: list[HostOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISPLAY", str(tmp_path / "none"))
    assert "the display cannot be reached: No such file or directory" in said(nowhere)[0]
    monkeypatch.setenv("DISPLAY", "")
    assert said(nowhere)[0] == "FAIL  here: DISPLAY is not set"


def test_nothing_behind_a_host_that_cannot_be_passed_is_tried(
    nowhere: list[HostOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", "")
    *_, last = said([*nowhere, load("behind", [], "none")])
    assert last == "note  127.0.0.1: nothing behind it was tried"


WHOLE = b"culvert-x11-begin\n:1\n\n/a\n\1\n\n\0\nculvert-x11-end"


def test_a_shell_has_said_everything_at_its_last_byte() -> None:
    for size in range(len(WHOLE)):
        assert _said(b"motd\n" + WHOLE[:size]) is None
    assert _said(b"motd\n" + WHOLE) == (":1", "", "/a", b"\1\n\n\0")


@pytest.mark.parametrize("lines", range(3))
def test_a_shell_that_leaves_lines_out_has_said_nothing(lines: int) -> None:
    assert _said(b"culvert-x11-begin\n" + b"x\n" * lines + b"\nculvert-x11-end") is None
