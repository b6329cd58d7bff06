"""What a mount's program tells its supervisor, for which it never waits."""

import os
import socket
from collections.abc import Iterator
from typing import NamedTuple, cast

import pytest

from appliance.aio.loop import Loop
from appliance.errors import (
    AuthenticationFailed,
    CulvertError,
    HostKeyRejected,
    MalformedMessage,
    UsageError,
)
from appliance.links.mount_reports import MountReports
from appliance.links.reports import DATAGRAM, AttemptFailed, MountOrder, MountProgress, PassedLine
from appliance.mount.mount import Figures, Mount


class Ends(NamedTuple):
    """The supervisor's end of the socket, and the program's."""

    supervisor: socket.socket
    program: MountReports


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    made = Ends(ours, MountReports(theirs.detach()))
    yield made
    ours.close()
    made.program._socket.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Mounted:
    """A mount of which only the figures count."""

    def __init__(self) -> None:
        self.now = Figures(True, 1, 2, 0.02, "")

    def figures(self) -> Figures:
        return self.now


def follow(ends: Ends, loop: Loop, mount: Mounted) -> bytes | None:
    """What the next look at a mount has the program report, None for nothing."""
    ends.program.follow(loop, cast(Mount, mount))
    try:
        return ends.supervisor.recv(DATAGRAM)
    except BlockingIOError:
        return None


def test_settings_come_as_keywords_and_values(ends: Ends) -> None:
    ends.supervisor.send(MountOrder((b"User", b"joe", b"IdentityFile", b"/a b\xff")).encode())
    assert ends.program.settings() == [("User", "joe"), ("IdentityFile", "/a b\udcff")]


@pytest.mark.parametrize("data", [b"", b"\x00", PassedLine(1, b"").encode()])
def test_something_else_is_no_settings(ends: Ends, data: bytes) -> None:
    if data:
        ends.supervisor.send(data)
    else:
        ends.supervisor.close()
    with pytest.raises(MalformedMessage):
        ends.program.settings()


def test_a_descriptor_of_something_else_is_named() -> None:
    read, write = os.pipe()
    with pytest.raises(UsageError, match=f"--supervised={read}: Socket operation on non-socket"):
        MountReports(read)
    os.close(read)
    os.close(write)
    with pytest.raises(UsageError, match="Bad file descriptor"):
        MountReports(read)


def test_programs_that_it_starts_do_not_get_the_socket(ends: Ends) -> None:
    assert not os.get_inheritable(ends.program._socket.fileno())


def test_progress_is_reported_when_there_is_some(ends: Ends, loop: Loop) -> None:
    mount = Mounted()
    data = follow(ends, loop, mount)
    assert data is not None
    assert MountProgress.decode(data) == MountProgress(True, 1, 2, 20_000, "")
    assert follow(ends, loop, mount) is None
    mount.now = mount.now._replace(is_connected=False, last_error="x" * 9999)
    data = follow(ends, loop, mount)
    assert data is not None
    assert MountProgress.decode(data) == MountProgress(False, 1, 2, 20_000, "x" * 1000)


def test_nothing_waits_for_a_supervisor_that_does_not_read(ends: Ends, loop: Loop) -> None:
    for _ in range(9999):
        ends.program.write(30, bytes(1000))
    mount = Mounted()
    ends.program.follow(loop, cast(Mount, mount))
    while True:
        try:
            ends.supervisor.recv(DATAGRAM)
        except BlockingIOError:
            break
    assert follow(ends, loop, mount) is not None, "it was not sent before"


def test_the_end_of_the_supervisor_is_told_once(ends: Ends, loop: Loop) -> None:
    told = []
    ends.program.watch(loop, lambda: told.append(1))
    ends.supervisor.shutdown(socket.SHUT_WR)
    for _ in range(2):
        loop.call_soon(lambda: None)
        loop._turn()
    assert told == [1]


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (AuthenticationFailed("no"), True),
        (HostKeyRejected("no"), True),
        (UsageError("no"), False),
        (CulvertError("no" * 9999), False),
    ],
)
def test_a_failure_is_final_where_the_server_would_be_asked_in_vain(
    ends: Ends, error: CulvertError, is_final: bool
) -> None:
    ends.program.failed(error)
    told = AttemptFailed.decode(ends.supervisor.recv(DATAGRAM))
    assert (told.final, told.why) == (is_final, str(error)[:1000])
