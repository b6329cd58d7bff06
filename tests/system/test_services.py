"""The service files in conf/, by the programs that they are for."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import wait_until
from tests.peers import CULVERT, find_program
from tests.sites import PORT, LinkedSite, Routed

pytestmark = [pytest.mark.root, pytest.mark.netns]

CONF = Path(__file__).resolve().parents[2] / "conf"
UNITS = sorted((CONF / "systemd").glob("*.service"))
TUNNEL = """
[[tunnel]]
device = "tun0"
addresses = ["10.255.0.2/30"]
[tunnel.client]
addresses = ["10.255.0.1/30"]
"""


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    """West and east, and nothing left of them."""
    with Routed(folder) as made:
        yield made
        left = made.close()
    assert not left, f"still running in the sites: {left}"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    analyze = find_program("systemd-analyze")
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert "/opt/culvert/bin/culvert" in text
    copy.write_text(text.replace("/opt/culvert/bin/culvert", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, ours) == (0, [])


@contextlib.contextmanager
def service_manager(site: LinkedSite) -> Iterator[socket.socket]:
    """A socket in place of systemd's, which the programs of a site find."""
    path = site.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        site.env["NOTIFY_SOCKET"] = str(path)
        yield manager
        del site.env["NOTIFY_SOCKET"]


def test_both_services_say_when_they_are_ready_and_when_they_stop(sites: Routed) -> None:
    west, east = sites["west"], sites["east"]
    with service_manager(east) as manager:
        server = sites.serve("east", TUNNEL)
        assert manager.recv(4096) == b"READY=1"
        assert "tun0" in east.space.devices()
    sites.declare("west", sites.link("east", "from_server = true"))
    with service_manager(west) as manager:
        supervisor = west.start("up", "-F", "-E", "-c", str(west.links))
        told = [manager.recv(4096)]
        while told[-1] != b"STATUS=1 of 1 links up":
            told.append(manager.recv(4096))
        assert b"READY=1" in told
        supervisor.terminate()
        while told[-1] != b"STOPPING=1":
            told.append(manager.recv(4096))
        assert supervisor.wait(10) == 0
    server.terminate()
    assert server.wait(10) == 0
    assert "tun0" not in east.space.devices() | west.space.devices()


def test_busybox_starts_and_stops_both(sites: Routed) -> None:
    sites.serve("east", TUNNEL)
    west = sites["west"]
    before = west.snapshot()
    wrapper = west.folder / "culvert"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(CULVERT)} "$@"\n')
    wrapper.chmod(0o755)
    sites.declare("west", sites.link("east", "from_server = true"))
    config = west.folder / "sshd.toml"
    config.write_text(
        f'listen = ["{west.outer}:{PORT}"]\nhost_keys = ["{sites.host_keys.key()}"]\n'
    )
    env = west.env | {
        "CULVERT": str(wrapper),
        "SSHD_CONFIG": str(config),
        "LINKS_CONFIG": str(west.links),
        "PID_FILE": str(west.folder / "sshd.pid"),
    }

    def script(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            west.space.command([find_program("busybox"), "sh", str(CONF / "init.d/culvert"), word]),
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = script("start")
    assert done.returncode == 0, done.stderr
    assert "east: up, tun0" in done.stdout
    assert wait_until((west.folder / "sshd.pid").exists)
    assert west.reaches("10.255.0.2")
    done = script("restart")
    assert done.returncode == 0, done.stderr
    assert west.reaches("10.255.0.2")
    done = script("stop")
    assert done.returncode == 0, done.stderr
    assert west.snapshot() == before
    assert not west.space.processes()
    assert script("nonsense").returncode == 2
    assert os.access(CONF / "init.d/culvert", os.X_OK)
