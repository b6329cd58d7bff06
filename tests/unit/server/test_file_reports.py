"""What an SFTP server reports, and what a user may make of it."""

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from appliance.server import audit
from appliance.server.file_reports import BATCH, FileReports
from appliance.wire.sftp_report import DATAGRAM, PATH_LIMIT, FileChange

PID = 4711


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    monkeypatch.setattr(audit, "write", lambda event: found.append(event.fields()))
    return found


@pytest.fixture
def reports() -> Iterator[FileReports]:
    made = FileReports()
    made.watch(select.poll())
    yield made
    made.close()


@pytest.fixture
def program(reports: FileReports) -> Iterator[socket.socket]:
    """The program's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reports.add(PID, ours)
    with theirs:
        yield theirs


def read(reports: FileReports) -> None:
    assert reports._poll is not None
    reports.read(dict(reports._poll.poll(0)))


def test_a_change_becomes_an_event(
    reports: FileReports, program: socket.socket, events: list[dict[str, object]]
) -> None:
    program.send(FileChange("rename", b"/a\n\xff", b"/b", 0).encode())
    program.send(FileChange("remove", b"/a", b"", 13).encode())
    read(reports)
    assert events == [
        {
            "operation": "rename",
            "path": "/a\n\\xff",
            "target": "/b",
            "reason": None,
            "source": "sftp-server",
        },
        {
            "operation": "remove",
            "path": "/a",
            "target": None,
            "reason": "Permission denied",
            "source": "sftp-server",
        },
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        FileChange("logged in as root", b"/a", b"", 0).encode(),
        FileChange("write", b"/a", b"", 0).encode() + b"x",
        FileChange("write", b"a" * 2 * PATH_LIMIT, b"a" * PATH_LIMIT, 0).encode(),
    ],
)
def test_what_is_no_report_ends_the_reports(
    reports: FileReports, program: socket.socket, events: list[dict[str, object]], data: bytes
) -> None:
    program.send(data)
    read(reports)
    assert not events
    with pytest.raises(BrokenPipeError):
        program.send(FileChange("write", b"/a", b"", 0).encode())


def test_the_longest_report_fits(
    reports: FileReports, program: socket.socket, events: list[dict[str, object]]
) -> None:
    data = FileChange("remove-xattr", b"a" * PATH_LIMIT, b"b" * PATH_LIMIT, 1).encode()
    assert len(data) <= DATAGRAM
    program.send(data)
    read(reports)
    assert events[0]["target"] == "b" * PATH_LIMIT


def test_many_reports_are_read_in_batches_and_all_are_read(
    reports: FileReports, program: socket.socket, events: list[dict[str, object]]
) -> None:
    program.setblocking(False)
    count = 0
    try:
        while count < 1000:
            program.send(FileChange("write", b"%d" % count, b"", 0).encode())
            count += 1
    except BlockingIOError:
        pass
    assert count > BATCH
    read(reports)
    assert len(events) == BATCH
    reports.ended(PID)
    assert [event["path"] for event in events] == [str(number) for number in range(count)]


def test_a_program_that_has_ended_reports_no_more_whoever_has_its_end(
    reports: FileReports, program: socket.socket, events: list[dict[str, object]]
) -> None:
    begin = time.monotonic()
    reports.ended(PID)
    with pytest.raises(BrokenPipeError):
        program.send(FileChange("write", b"/a", b"", 0).encode())
    assert time.monotonic() - begin < 1
    assert not events
    reports.ended(PID)


def test_the_end_of_a_program_is_no_mistake(
    reports: FileReports, program: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    os.close(program.detach())
    read(reports)
    read(reports)
    assert not caplog.messages
