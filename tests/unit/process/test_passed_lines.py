"""What a confined process has for the log: another writes it, so much and no more."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.log import TRACE
from appliance.process.passed_lines import LINES_A_SECOND, LINES_AT_ONCE, PassedLines
from tests.netns import wait_until
from tests.peers import ROOT, Keyring, end, environment, free_port


def test_a_worker_that_was_taken_over_cannot_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level("INFO")
    it = PassedLines("worker")
    for _ in range(LINES_AT_ONCE + 500):
        it.write(20, b"a line")
    assert caplog.messages == ["worker: a line"] * LINES_AT_ONCE
    caplog.clear()
    now[0] += 2.5 / LINES_A_SECOND
    for _ in range(3):
        it.write(20, b"another")
    assert caplog.messages == [
        "500 lines of the worker are lost: it wrote too many",
        "worker: another",
        "worker: another",
    ]


def test_a_trace_takes_no_other_lines_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(TRACE)
    it = PassedLines("worker")
    for _ in range(2 * LINES_AT_ONCE):
        it.write(TRACE, b"a message")
    it.write(20, b"a line")
    assert caplog.messages[-2:] == ["worker: a message", "worker: a line"]


_SERVER = """
import sys
from appliance import log
log.SOCKET = sys.argv.pop(1)
from appliance.multicall import main
sys.argv[0] = "culvert"
sys.exit(main())
"""


def test_a_living_connection_logs_on_when_the_systems_log_is_started_again(
    tmp_path: Path, host_keys: Keyring
) -> None:
    place, port = tmp_path / "log", free_port()
    words = ["sshd", "-F", "-v", "-p", f"127.0.0.1:{port}", "-r", str(host_keys.key())]
    errors = tmp_path / "errors"

    def said(log: socket.socket, word: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            while line := log.recv(1 << 16):
                if word in line:
                    return True
        return False

    with _syslog(place) as first, open(errors, "wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(place), *words],
            cwd=ROOT, env=environment(tmp_path), stdin=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
        try:
            assert wait_until(lambda: said(first, b"listening on"), 20)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(b"SSH-2.0-first\r\n")
                assert wait_until(lambda: said(first, b"remote software version first"), 20)
                first.close()
                os.unlink(place)
                with _syslog(place) as second:
                    client.close()
                    wanted = b"worker: connection closed: the peer closed the connection"
                    assert wait_until(lambda: said(second, wanted), 20)
                    end(server)
        finally:
            end(server)
    assert errors.read_bytes() == b""


def _syslog(place: Path) -> socket.socket:
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.bind(str(place))
    log.setblocking(False)
    return log
