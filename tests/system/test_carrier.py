"""The processes of a link that read from the network: what they are held to, and what they lack."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.crypto.key_files import load_private_key
from appliance.links.supervisor import SPARE_UID
from tests.netns import wait_until
from tests.peers import end
from tests.sites import PORT, Routed
from tests.system.test_links import CLIENT, EAGER, SERVER, carriers, comes_back, state_of

USERS = Path("/etc/passwd")

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    """West, east and, between them, north; what still runs after the test is its mistake."""
    with Routed(folder, ("west", "east", "north")) as made:
        yield made
        made["west"].culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


def status_of(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"\n{field}:")[2].partition("\n")[0].strip()


def memory_of(pid: int) -> bytes:
    """Everything that a process can write to, and so may have a secret in."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end, rights = re.split("[- ]", line)[:3]
            if rights.startswith("rw"):
                memory.seek(int(start, 16))
                found.append(memory.read(int(end, 16) - int(start, 16)))
    return b"\0".join(found)


def secret_of(path: Path) -> list[bytes]:
    """What only somebody who has the key has: its seed, and a line of its file."""
    key = load_private_key(path.read_bytes())
    assert isinstance(key.secret, Ed25519PrivateKey)
    lines = path.read_bytes().splitlines()
    return [key.secret.private_bytes_raw(), lines[len(lines) // 2]]


def assert_confined(pid: int) -> None:
    assert status_of(pid, "Uid").split() == [str(SPARE_UID)] * 4
    assert status_of(pid, "CapEff") == "0" * 16
    assert status_of(pid, "Seccomp") == "2"
    assert status_of(pid, "NoNewPrivs") == "1"
    assert os.readlink(f"/proc/{pid}/root").endswith("(deleted)")


def test_the_process_of_a_link_has_neither_privileges_nor_the_key(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    assert "east: up" in west.culvert("up", "-c", str(west.links))
    (carrier,) = carriers(west)
    assert_confined(carrier)
    memory = memory_of(carrier)
    assert sites["east"].outer.encode() in memory  # so that it is there to be found
    for secret in secret_of(sites.user_keys.key()):
        assert secret not in memory
    # Workers of a server on the same machine are others.
    assert {status_of(pid, "Uid").split()[0] for pid in carriers(sites["east"])} != {str(SPARE_UID)}


def test_the_process_that_hands_out_metrics_has_no_privileges(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    west.links.write_text(f"metrics_port = 9123\n[[link]]\n{sites.link('east', CLIENT + EAGER)}")
    west.culvert("up", "-c", str(west.links))
    ports = west.space.run("ss", "-Hltnp", "sport = 9123")
    pids = {int(pid) for pid in re.findall(r"pid=(\d+)", ports)}
    (confined,) = pids & {*carriers(west)}
    assert_confined(confined)
    assert "culvert_link_up" in west.space.run("curl", "-s", "http://127.0.0.1:9123/metrics")


def through(sites: Routed, more: str = "") -> subprocess.Popen[bytes]:
    """West's link to east, by the jump host north, whose key and the user's root's home has."""
    west, north = sites["west"], sites["north"]
    home = west.folder / ".ssh"
    home.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(sites.user_keys.key(), home / "id_ed25519")
    kind, key, *_ = sites.host_keys.public().split()
    (home / "known_hosts").write_text(f"[{north.outer}]:{PORT} {kind} {key}\n")
    users = west.folder / "passwd"
    users.write_text(
        re.sub("(?m)^root:.*$", f"root:x:0:0::{west.folder}:/bin/sh", USERS.read_text())
    )
    jump = f'proxy_jump = ["root@{north.outer}:{PORT}"]\n'
    sites.declare("west", sites.link("east", CLIENT + EAGER + jump + more))
    return west.start_with({str(USERS): users}, "up", "-F", "-E", "-c", str(west.links))


def test_a_jump_host_is_not_trusted_with_a_process_of_roots(sites: Routed) -> None:
    sites.serve("east", SERVER)
    sites.serve("north")
    west = sites["west"]
    program = through(sites, "kill_switch = true\n")
    comes_back(west, sites["east"].inner)
    both = carriers(west)
    assert len(both) == 2  # the link's, and the one that is logged in to the jump host
    for pid in both:
        assert_confined(pid)
        memory = memory_of(pid)
        for secret in secret_of(sites.user_keys.key()):
            assert secret not in memory
    sites.kill_all("north")
    assert wait_until(lambda: state_of(west) != "up")
    sites.serve("north")
    comes_back(west, sites["east"].inner)
    assert len(carriers(west)) == 2
    end(program)


@pytest.mark.parametrize("wrong", ["forwarding", "key"])
def test_what_a_jump_host_refuses_is_told(sites: Routed, wrong: str) -> None:
    sites.serve("east", SERVER)
    sites.serve("north", 'allow_tcp_forwarding = "no"\n')
    if wrong == "key":
        (sites["north"].folder / "authorized/authorized_keys").write_text("")
    program = through(sites)
    words = {"forwarding": "the jump host does not connect", "key": "Permission denied"}[wrong]
    assert wait_until(lambda: words in sites["west"].said()), sites["west"].said()
    end(program)
