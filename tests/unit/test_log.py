"""A line of the log is one line, nothing in it steers a terminal, and a log may be missing."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import log
from appliance.ssh import trace

HOSTILE = "a\x1b]0;title\x07\nb\r\tc\x9b\u202e\x7f"


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leaves the handlers as they were."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield
    for handler in logger.handlers:
        if handler not in before:
            handler.close()
    logger.handlers[:] = before
    logger.setLevel(level)


def test_a_peers_text_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    logging.getLogger("peer").debug("it says %s", HOSTILE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("it says a\\x1b]0;title\\x07\\nb\\x0d\tc\\x9b\\x202e\\x7f")


def test_a_traceback_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("peer").exception("it failed")
    said = capsys.readouterr().err
    first, *others = said.splitlines()
    assert first.endswith("it failed") and others
    assert all(line.startswith("  ") for line in others)
    assert "\x1b" not in said


# -- the system's log ------------------------------------------------------------------------


class Syslog:
    """A system's log that can be started again, as syslogd does it: with a new socket."""

    def __init__(self, path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM) -> None:
        self._path, self._kind = path, kind
        self._socket: socket.socket | None = None
        self._accepted: list[socket.socket] = []

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, self._kind)
        self._socket.bind(str(self._path))
        self._socket.settimeout(10)
        if self._kind is socket.SOCK_STREAM:
            self._socket.listen()

    def line(self) -> bytes:
        """The next one."""
        assert self._socket is not None
        if self._kind is socket.SOCK_DGRAM:
            return self._socket.recv(1 << 20)
        if not self._accepted:
            self._accepted.append(self._socket.accept()[0])
        return self._accepted[0].recv(1 << 20)

    def stop(self) -> None:
        for sock in (self._socket, *self._accepted):
            if sock is not None:
                sock.close()
        self._accepted.clear()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["datagrams", "a stream"])
def syslog(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Syslog]:
    """One that is not started yet."""
    it = Syslog(tmp_path / "log", request.param)
    monkeypatch.setattr(log, "SOCKET", str(tmp_path / "log"))
    yield it
    it.stop()


def test_a_missing_log_costs_one_line_on_standard_error(
    syslog: Syslog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log.set_up("culvert", logging.INFO, to_stderr=False)
    assert capfd.readouterr().err == ""  # there may be a mistake to tell, and that is one line
    log.tell_if_missing()
    for _ in range(3):
        logging.getLogger("peer").info("nobody reads this")
    said = f"culvert: no log at {tmp_path / 'log'}: lines are lost (-E logs to standard error)\n"
    assert capfd.readouterr().err == said


def test_a_log_that_is_started_late_or_again_gets_the_next_line(
    syslog: Syslog, capfd: pytest.CaptureFixture[str]
) -> None:
    log.set_up("culvert", logging.INFO, to_stderr=False)
    for number in range(3):
        syslog.start()
        logging.getLogger("peer").info("line %d", number)
        assert syslog.line() == f"<86>culvert[{os.getpid()}]: line {number}\0".encode()
        syslog.stop()
    assert capfd.readouterr().err == ""


def test_a_log_that_cannot_be_reached_for_want_of_descriptors_is_no_error(
    syslog: Syslog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log.set_up("culvert", logging.INFO, to_stderr=False)

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as full:
        full.setattr("socket.socket", none_left)
        logging.getLogger("peer").info("nobody reads this")
    assert "lines are lost" in capfd.readouterr().err


def test_a_line_of_any_length_is_a_line(syslog: Syslog) -> None:
    syslog.start()
    log.set_up("culvert", logging.INFO, to_stderr=False)
    logging.getLogger("peer").error("%s", "x" * 1_000_000)
    line = syslog.line()
    assert line.startswith(b"<83>culvert[") and line.endswith(b"x\0")
    assert len(line) == log.LINE_LIMIT + 1


def test_standard_error_that_nobody_reads_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), open(write, "w") as broken:
        monkeypatch.setattr("sys.stderr", broken)
        log.set_up("culvert", logging.INFO, to_stderr=True)
        logging.getLogger("peer").info("nobody reads this")
    monkeypatch.undo()
    assert capfd.readouterr().err == ""


# -- lines of another process's --------------------------------------------------------------


def test_a_line_that_is_passed_on_is_written_as_it_would_have_been(
    capsys: pytest.CaptureFixture[str],
) -> None:
    passed: list[tuple[int, bytes]] = []
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    log.pass_on(lambda level, text: passed.append((level, text)))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("peer").exception("it says %s", HOSTILE)
    assert capsys.readouterr().err == ""
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    for level, text in passed:
        log.write_for("worker", level, text)
    lines = capsys.readouterr().err.splitlines()
    assert " worker: it says a\\x1b]0;title\\x07" in lines[0]
    assert len(lines) > 3
    assert all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize("text", [b"\nforged", b"a\n[1] forged", b"\xff", b"", b"%s %d", b"\0"])
@pytest.mark.parametrize("level", [0, 20, 77, 0xFFFFFFFF])
def test_nothing_that_is_passed_on_can_pass_for_another_line(
    text: bytes, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up("culvert", logging.INFO, to_stderr=True)
    log.write_for("worker", level, text)
    first, *others = capsys.readouterr().err.splitlines()
    assert " worker: " in first
    assert all(line.startswith("  ") for line in others)


def test_a_log_that_nobody_passes_on_any_more_is_no_error() -> None:
    def gone(level: int, text: bytes) -> None:
        raise BrokenPipeError

    log.pass_on(gone)
    logging.getLogger("peer").error("nobody reads this")


# -- a trace ---------------------------------------------------------------------------------


def test_a_trace_takes_no_more_than_its_share_of_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log.set_up("culvert", logging.INFO, to_stderr=True)
    traced = logging.getLogger(trace.__name__)
    for _ in range(log.TRACED_AT_ONCE + 70):
        traced.log(log.TRACE, "a %s", "message")
    logging.getLogger("other").info("a line")
    *told, other = capsys.readouterr().err.splitlines()
    assert len(told) == log.TRACED_AT_ONCE
    assert other.endswith(" a line")
    now[0] += 1.5 / log.TRACED_A_SECOND
    for _ in range(2):
        traced.log(log.TRACE, "a %s", "message")
    (told_later,) = capsys.readouterr().err.splitlines()
    assert told_later.endswith(" (70 messages are not shown) a message")


def test_a_trace_is_passed_on_whatever_the_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    sent: list[tuple[int, bytes]] = []
    logging.getLogger().setLevel(logging.INFO)
    log.pass_on(lambda level, text: sent.append((level, text)))
    for _ in range(log.TRACED_AT_ONCE + 70):
        logging.getLogger(trace.__name__).log(log.TRACE, "a message")
    assert sent[0] == (log.TRACE, b"a message")
    assert len(sent) == log.TRACED_AT_ONCE
    log.set_up("culvert", logging.INFO, to_stderr=True)
    log.write_for("worker", *sent[0])
    log.write_for("worker", logging.DEBUG, b"a line of -v")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" worker: a message")
