"""How names are connected to without waiting."""

import errno
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.connecting import Attempt, Connecting
from appliance.aio.loop import Loop
from appliance.aio.name_connector import NameConnector
from tests.processes import descriptors


@pytest.fixture
def connector() -> Iterator[NameConnector]:
    it = NameConnector(lambda: None)
    yield it
    it.close()


def outcome(attempt: Attempt) -> socket.socket | str:
    """What comes of an attempt."""
    loop = Loop()
    results: list[socket.socket | str] = []

    def done(result: socket.socket | str) -> None:
        results.append(result)
        loop.stop()

    Connecting(loop, attempt, done, done)
    loop.run()
    loop.close()
    return results[0]


def test_a_name_is_connected_to_by_one_child(connector: NameConnector) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for _ in range(3):
            sock = outcome(connector.connect("127.1", port))
            assert isinstance(sock, socket.socket)
            assert not os.get_blocking(sock.fileno())
            sock.close()
            server.accept()[0].close()
    assert outcome(connector.connect("127.1", port)) == "Connection refused"
    assert outcome(connector.connect("a..b", port)) == "not a host name"


def test_a_child_that_was_killed_is_followed_by_another(connector: NameConnector) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for _ in range(2):
            sock = outcome(connector.connect("127.1", port))
            assert isinstance(sock, socket.socket)
            sock.close()
            signal_child(connector)


def signal_child(connector: NameConnector) -> None:
    import signal

    signal.pidfd_send_signal(connector._child, signal.SIGKILL)
    os.waitid(os.P_PIDFD, connector._child, os.WEXITED | os.WNOWAIT)


def test_too_many_names_are_refused_at_once_and_the_end_waits_for_none() -> None:
    """Each waits for a server whose queue is full, which never answers."""
    connector = NameConnector(lambda: None)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        place = server.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(place)
        attempts = []
        began = time.monotonic()
        refused = set()
        for _ in range(1000):
            try:
                attempts.append(connector.connect("127.1", place[1]))
            except OSError as error:
                refused.add(error.strerror)
        assert time.monotonic() - began < 20
        assert refused <= {"too many names at once"}
        child = Path(f"/proc/self/fdinfo/{connector._child}").read_text()
        connector.close()
        assert "Pid:" in child
        for attempt in attempts:
            attempt.sock.close()
        for filler in fillers:
            filler.close()
    pid = int(child.split("Pid:")[1].split()[0])
    assert not Path(f"/proc/{pid}").exists()


def child_of(connector: NameConnector) -> int:
    child = Path(f"/proc/self/fdinfo/{connector._child}").read_text()
    return int(child.split("Pid:")[1].split()[0])


def test_a_child_that_may_have_no_threads_serves_one_after_another() -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    connector = NameConnector(lambda: setattr(threading.Thread, "start", none_left))
    try:
        for _ in range(3):
            assert outcome(connector.connect("a..b", 1)) == "not a host name"
    finally:
        connector.close()


def test_a_request_that_loses_its_descriptor_costs_no_other_one() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    connector = NameConnector(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4, limits[1])))
    try:
        assert outcome(connector.connect("a..b", 1)) == "Connection timed out"
        resource.prlimit(child_of(connector), resource.RLIMIT_NOFILE, limits)
        assert outcome(connector.connect("a..b", 1)) == "not a host name"
    finally:
        connector.close()


def test_the_child_holds_nothing_of_its_parents(connector: NameConnector) -> None:
    """Whoever waits for the end of our output must not wait for the child's as well."""
    assert outcome(connector.connect("a..b", 1)) == "not a host name"
    pid = child_of(connector)
    held = descriptors(pid)
    assert [held.pop(fd) for fd in range(3)] == [os.devnull] * 3
    assert all(target.startswith("socket:") for target in held.values()), held


def test_a_child_that_cannot_be_watched_ends(
    connector: NameConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as short:
        short.setattr(os, "pidfd_open", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            connector.connect("a..b", 1)
    assert descriptors() == before
    assert outcome(connector.connect("a..b", 1)) == "not a host name"
