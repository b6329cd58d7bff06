"""A link while its supervisor runs: what fails here, and a process that breaks the rules.

No process is started here: each test says what its process reports.
"""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from appliance.config.links import Link
from appliance.links import running
from appliance.links.keeper import Keeper
from appliance.links.link import LinkState
from appliance.links.reports import GO, Alive, Opened, PacketsDropped, Resolved
from appliance.links.running import RunningLink
from appliance.process.sandbox import Confinement
from appliance.services.tunnel.drops import Drop

PROCESS = 4711  # an id that nothing is sent to


class Straight:
    """A login without detours."""

    first_hop = ("192.0.2.1", 22)


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningLink]:
    """A link whose network is already as it should be."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(running, "reconcile_apart", lambda *_: None)
    monkeypatch.setattr(running, "open_device", lambda *_: (os.open(os.devnull, os.O_RDWR), ""))
    monkeypatch.setattr(running, "is_attached", lambda _: True)
    monkeypatch.setattr(running, "login_for", lambda *_: Straight())
    monkeypatch.setattr(os, "fork", lambda: PROCESS)
    monkeypatch.setattr(os, "waitpid", lambda *_: (PROCESS, signal.SIGKILL))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    loop = Loop()
    declared = Link(name="office", host="192.0.2.1", device="tun9")
    it = RunningLink(
        declared, loop, Confinement(None, None, None), Keeper(),
        lambda: None, lambda: None,
    )  # fmt: skip
    yield it
    it.stop()
    loop.close()


def none_left(*_: object) -> None:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize(
    ("place", "name"), [(os, "fork"), (running, "reconcile_apart"), (running, "open_device")]
)
def test_a_link_without_a_process_or_a_device_to_spare_is_tried_again(
    link: RunningLink, monkeypatch: pytest.MonkeyPatch, place: object, name: str
) -> None:
    with monkeypatch.context() as short:
        short.setattr(place, name, none_left)
        link.start()
    assert (link.life.state, link.process) == (LinkState.BACKING_OFF, 0)
    assert os.strerror(errno.EAGAIN) in link.life.last_error
    link.network_changed()
    assert link.life.state is LinkState.DIALLING
    assert link.process == PROCESS


@pytest.fixture
def process(link: RunningLink, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The process's end of the socket between it and its link, which dials."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs = ends[1].dup()
    theirs.setblocking(False)
    with monkeypatch.context() as once:
        once.setattr(socket, "socketpair", lambda *_: ends)
        link.start()
    yield theirs
    theirs.close()


def test_a_process_names_the_servers_addresses_once(
    link: RunningLink, process: socket.socket
) -> None:
    """Later ones may come from the server: they would let it through a kill switch."""
    process.send(Resolved((b"192.0.2.1",)).encode())
    link._on_report()
    assert process.recv(10) == GO
    process.send(Resolved((b"198.51.100.1",)).encode())
    link._on_report()
    assert link.life.state is LinkState.STOPPED
    assert "resolved twice" in link.life.last_error


def test_an_attempt_has_a_deadline(
    link: RunningLink, process: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may keep a login going for ever."""
    monkeypatch.setattr(running, "LOGIN_SECONDS", -float(link.link.connect_timeout))
    process.send(Resolved((b"192.0.2.1",)).encode())
    link._on_report()
    link._loop._turn()
    assert link.life.state is LinkState.BACKING_OFF
    assert "in time" in link.life.last_error


def test_a_process_whose_device_is_gone_does_not_stay_with_another_of_its_name(
    link: RunningLink, process: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made again for whatever reason; the process reads the one that was deleted."""
    monkeypatch.setattr(running, "is_attached", lambda _: False)
    process.send(Resolved((b"192.0.2.1",)).encode())
    link._on_report()
    assert link.life.state is LinkState.BACKING_OFF
    assert link.life.last_error == "the device was removed"
    assert link.process == 0


def come_up(link: RunningLink, process: socket.socket) -> None:
    for report in (Resolved((b"192.0.2.1",)), Opened("192.0.2.1", "Culvert_1", True, b"")):
        process.send(report.encode())
        link._on_report()
    assert link.life.state is LinkState.UP


def report(link: RunningLink, process: socket.socket, *drops: tuple[str, int]) -> None:
    for reason, packets in drops:
        process.send(PacketsDropped(reason, packets).encode())
        link._on_report()


def test_dropped_packets_add_up_and_the_log_tells_each_connections(
    link: RunningLink, process: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    come_up(link, process)
    report(link, process, ("no_window", 2), ("device_down", 1), ("no_window", 3))
    assert link.drops == {Drop.NO_WINDOW: 5, Drop.DEVICE_DOWN: 1}
    assert "dropped" not in caplog.text
    link._lose("the end")
    assert "link office: dropped 6 packets: 5 no_window, 1 device_down" in caplog.text
    assert link.drops.total() == 6
    assert not link._drops


def test_what_a_process_reported_right_before_it_was_killed_counts(
    link: RunningLink, process: socket.socket
) -> None:
    come_up(link, process)
    for message in (Alive(1), PacketsDropped("device_gone", 4), PacketsDropped("boredom", 1)):
        process.send(message.encode())
    link._lose("the device was removed")
    assert link.drops == {Drop.DEVICE_GONE: 4}


@pytest.mark.parametrize("up", [True, False])
def test_a_process_that_drops_for_no_known_reason_or_too_early_breaks_the_rules(
    link: RunningLink, process: socket.socket, up: bool
) -> None:
    if up:
        come_up(link, process)
    report(link, process, ("boredom" if up else "no_window", 1))
    assert link.life.state is LinkState.STOPPED
    assert "broke the rules" in link.life.last_error
    assert not link.drops
