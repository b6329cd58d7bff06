"""How many connections a server takes, from whom, and what outlives it."""

import contextlib
import os
import socket
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config.server import ServerConfig
from appliance.server.listener import Listener
from appliance.server.penalties import Penalties, blocks_of
from tests.netns import Namespace, add_address, wait_until
from tests.peers import Server
from tests.processes import descriptors, family, lives, status
from tests.unit.server.conftest import Dial, Serve, connect, greeting, is_alone, worker_of


def test_what_the_listener_inherited_ends_there(
    our_server: Serve, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a server has files open that are nobody else's business."""
    read, write = os.pipe()
    start = subprocess.Popen

    def with_more(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        return start(*words, **options | {"stdin": read, "pass_fds": (write,)})

    monkeypatch.setattr(subprocess, "Popen", with_more)
    with open(read), open(write):
        server = our_server()
        inherited = os.readlink(f"/proc/self/fd/{write}")
        assert inherited in descriptors(server.process.pid).values()
        dial(server).log_in()
        (worker,) = worker_of(server)
        for pid in (worker, int(status(worker)["PPid"][0])):
            assert inherited not in descriptors(pid).values()


def test_one_source_may_have_so_many_start_ups_and_no_more(our_server: Serve, dial: Dial) -> None:
    server = our_server("per_source_max_startups = 5\n")
    for _ in range(7):  # whoever is authenticated does not count
        dial(server).log_in()
    waiting = [connect(server) for _ in range(5)]
    assert all(b"Culvert" in greeting(sock) for sock in waiting)
    with connect(server) as refused:
        assert greeting(refused) == b""
    assert "dropped: too many start-ups" in server.log
    waiting.pop().close()
    assert wait_until(lambda: _is_served(server))
    for sock in waiting:
        sock.close()


def test_real_start_ups_are_dropped_at_random_from_10_on_and_never_reach_100(
    our_server: Serve,
) -> None:
    server = our_server("per_source_max_startups = 1000\n")
    waiting, served = [], []
    try:
        for _ in range(250):
            waiting.append(connect(server))
            with contextlib.suppress(ConnectionResetError):
                served.append(greeting(waiting[-1]) != b"")
    finally:
        for sock in waiting:
            sock.close()
    assert served[:10] == [True] * 10
    assert 10 < sum(served) <= 100
    assert not all(served[10:60])
    assert is_alone(server)
    assert wait_until(lambda: _is_served(server))


def test_idle_connections_of_one_source_cost_another_one_none(our_server: Serve) -> None:
    server = our_server()
    place = (server.address, server.port)
    idle = [connect(server) for _ in range(20)]
    try:
        assert all(greeting(sock) for sock in idle[:10])
        for _ in range(60):
            with socket.create_connection(place, 10, ("127.0.0.2", 0)) as other:
                assert greeting(other).startswith(b"SSH-2.0-")
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.netns
def test_a_source_is_the_whole_network_of_an_ipv6_customer(
    our_server: Serve, tmp_path: Path
) -> None:
    with contextlib.closing(Namespace("customers")) as space:
        space.ip("link", "set", "lo", "up")
        add_address(space, "lo", "fd00:1::1/64")
        for number in range(2, 7):
            add_address(space, "lo", f"fd00:1::{number}/128")
        add_address(space, "lo", "fd00:2::1/128")
        server = our_server("per_source_max_startups = 3\n", namespace=space, address="fd00:1::1")

        def visit(number: int, network: int) -> tuple[socket.socket, bool]:
            source = (f"fd00:{network}::{number}", 0)
            sock = socket.create_connection(
                (server.address, server.port), timeout=10, source_address=source
            )
            return sock, greeting(sock) != b""

        def visit_all() -> list[bool]:
            visits = [visit(number, 1) for number in range(2, 7)] + [visit(1, 2)]
            for sock, _ in visits:
                sock.close()
            return [served for _, served in visits]

        assert space.inside(visit_all) == [True, True, True, False, False, True]
        server.stop()


@pytest.mark.netns
def test_idle_connections_of_a_whole_ipv6_site_cost_another_one_none(our_server: Serve) -> None:
    """Each from a /64 of its own, of one /48."""
    with contextlib.closing(Namespace("customers")) as space:
        space.ip("link", "set", "lo", "up")
        for number in range(41):
            add_address(space, "lo", f"fd00:1:0:{number:x}::1/128")
        add_address(space, "lo", "fd00:2::1/128")
        server = our_server("per_source_penalties = false\n", namespace=space, address="fd00:1::1")
        place = (server.address, server.port)

        def attack() -> int:
            idle = [
                socket.create_connection(place, 10, (f"fd00:1:0:{number:x}::1", 0))
                for number in range(1, 41)
            ]
            served = 0
            for _ in range(30):
                with socket.create_connection(place, 10, ("fd00:2::1", 0)) as other:
                    served += greeting(other) != b""
                wait_until(partial(_has_ended, server, "fd00:2::1", served))
            for sock in idle:
                sock.close()
            return served

        assert space.inside(attack) == 30
        server.stop()


def _has_ended(server: Server, source: str, connections: int) -> bool:
    return server.log.count(f"disconnected from {source}") == connections


def _is_served(server: Server) -> bool:
    with connect(server) as sock, contextlib.suppress(OSError):
        return bool(greeting(sock))
    return False


def going_by(**settings: object) -> Listener:
    """A listener that has begun nothing yet, and goes by these settings."""
    listener = Listener.__new__(Listener)
    listener._settings = SimpleNamespace(**settings)  # type: ignore[assignment]
    return listener


def test_start_ups_are_limited_as_10_30_100() -> None:
    """The chance to be dropped, asked of the listener itself."""

    listener = going_by(config=ServerConfig(per_source_max_startups=1000))
    dropped = {}
    for waiting in (0, 9, 10, 55, 99, 100, 200):
        listener._starting = {number: (number,) for number in range(waiting)}
        listener._per_block = Counter(range(waiting))
        dropped[waiting] = sum(listener._drops((4711,)) for _ in range(2000)) / 2000
    assert dropped[0] == dropped[9] == 0
    assert 0.24 < dropped[10] < 0.36
    assert 0.58 < dropped[55] < 0.72
    assert dropped[99] > 0.9
    assert dropped[100] == dropped[200] == 1
    listener._starting = {}
    listener._per_block = Counter({4711: 1000})
    assert listener._drops((4711,))
    assert not listener._drops((4712,))


def filled(limits: tuple[int, int, int], networks: int) -> Listener:
    """A listener with as many start-ups as so many /64s of one site get, from its first on."""
    listener = going_by(config=ServerConfig(max_startups=limits))
    listener._starting, listener._per_block = {}, Counter()
    for pid in range(1000):
        blocks = blocks_of(f"2001:db8:7:{pid * 7 % networks:x}::1", (32, 64))
        if not listener._drops(blocks):
            listener._starting[pid] = blocks
            listener._per_block.update(blocks)
    return listener


@pytest.mark.parametrize("limits", [(10, 30, 100), (1, 30, 100), (5, 100, 10), (2, 100, 4)])
@pytest.mark.parametrize(("networks", "most"), [(1, 20), (256, 40), (65536, 75)])
def test_one_source_or_site_alone_has_nobody_else_dropped(
    limits: tuple[int, int, int], networks: int, most: int
) -> None:
    listener = filled(limits, networks)
    assert len(listener._starting) <= min(most, limits[2] - limits[2] // 4)
    for other in ("2001:db8:8::1", "192.0.2.1"):
        own = blocks_of(other, (32, 64))
        assert not any(listener._drops(own) for _ in range(1000)), other
        # Also while some of its own are waiting.
        listener._per_block[own[0]] = limits[0] - limits[0] // 4 - 1
        assert not any(listener._drops(own) for _ in range(1000)), other


@pytest.mark.parametrize(("networks", "neighbour"), [(1, "1"), (1, "100"), (256, "100")])
def test_neither_is_a_neighbour_within_the_site_that_somebody_has_only_a_part_of(
    networks: int, neighbour: str
) -> None:
    listener = filled((10, 30, 100), networks)
    own = blocks_of(f"2001:db8:7:{neighbour}::1", (32, 64))
    assert not any(listener._drops(own) for _ in range(1000))


def test_what_a_source_counts_is_given_back_once() -> None:
    listener = Listener.__new__(Listener)
    listener._starting = {1: (11, 13), 2: (12, 13)}
    listener._per_block = Counter({11: 1, 12: 1, 13: 2})
    for pid in (1, 1, 3):
        listener._release(pid)
    assert listener._per_block == {12: 1, 13: 1}
    listener._release(2)
    assert listener._per_block == {}


@pytest.mark.parametrize(
    ("status", "seconds"), [(0, 0), (1, 90), (2, 90), (-9, 90), (-11, 90), (3, 1), (5, 5), (6, 10)]
)
def test_a_monitor_that_ends_in_an_unknown_way_has_crashed(status: int, seconds: int) -> None:
    penalties = Penalties((), (32, 64))
    listener = going_by(penalties=penalties)
    began = time.monotonic()
    listener._punish("192.0.2.7", status)
    ended = time.monotonic()
    ends = [record.end for record in penalties._records[4].values()]
    assert len(ends) == bool(seconds)
    assert all(began <= end - seconds <= ended for end in ends)


def test_a_listener_that_is_ended_leaves_its_connections_alive(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    client = dial(server).log_in()
    processes = family(server.process.pid)[1:]
    server.process.terminate()
    assert server.process.wait(10) == 0
    assert client.answers()
    with pytest.raises(OSError, match="refused"):
        connect(server)
    client.close()
    assert wait_until(lambda: not any(lives(pid) for pid in processes))


def test_a_pid_file_that_cannot_be_written_keeps_no_server_down(our_server: Serve) -> None:
    server = our_server("", "-P", "/nonexistent/pid")
    assert "pid file /nonexistent/pid: No such file or directory" in server.log
