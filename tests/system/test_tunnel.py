"""The VPN over real tun and tap devices, with Culvert and OpenSSH at either end.

CULVERT_STAND_IN=openssh runs the same with OpenSSH at both ends.
"""

import hashlib
import os
import signal
import socket
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.netns import Namespace, Sites, wait_for_device, wait_until
from tests.peers import CLIENTS, SERVERS, Algorithms, ClientKind, ServerKind
from tests.tunnels import DEVICES, Tunnel, serve_tunnels, tunnel

pytestmark = [pytest.mark.root, pytest.mark.netns]

OURS = os.environ.get("CULVERT_STAND_IN", "culvert")
PAIRS = [(OURS, OURS), (OURS, "openssh"), ("openssh", OURS)]  # client, server
OUR_CLIENT = [(OURS, OURS), (OURS, "openssh")]

ETH_P_IP = 0x0800
TRANSFER = 30_000_000  # bytes


def pairs(names: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Run a test for each pair of a client and a server."""
    return pytest.mark.parametrize(
        ("client", "server"),
        [
            pytest.param(CLIENTS[client], SERVERS[server], id=f"{client}-{server}")
            for client, server in dict.fromkeys(names)
        ],
    )


def assert_reachable(sites: Sites, made: Tunnel) -> None:
    """Both sites reach each other's inner host, over IPv4 and IPv6."""
    for here, there in ((sites.west, sites.east), (sites.east, sites.west)):
        for address in (there.inner, there.inner6):
            assert here.lan.ping(address, count=3, seconds=3), (
                f"{address} does not answer\n{made.logs()}"
            )


def transfer(source: Namespace, target: Namespace, address: str, size: int = TRANSFER) -> None:
    """Send data over TCP from one namespace to an address in another, and compare checksums."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    data = hashlib.shake_128(address.encode()).digest(1 << 20) * (size >> 20)
    listener = target.inside(lambda: socket.create_server((address, 5000), family=family))
    received = hashlib.sha256()

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            while block := connection.recv(1 << 18):
                received.update(block)

    thread = threading.Thread(target=receive)
    with listener:
        listener.settimeout(30)
        thread.start()
        with source.inside(lambda: socket.create_connection((address, 5000), 30)) as sender:
            sender.sendall(data)
        thread.join()
    assert received.digest() == hashlib.sha256(data).digest()


@pairs(PAIRS)
@pytest.mark.parametrize("mode", DEVICES)
def test_two_sites_become_one_network(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind, mode: str
) -> None:
    assert not sites.west.lan.ping(sites.east.inner, seconds=0.2)
    with tunnel(sites, folder, client, server, mode=mode) as made:
        assert_reachable(sites, made)
        for source, target in ((sites.west, sites.east), (sites.east, sites.west)):
            transfer(source.lan, target.lan, target.inner)
            transfer(source.lan, target.lan, target.inner6)
        assert_reachable(sites, made)


@pairs(PAIRS)
@pytest.mark.parametrize("size", [0, 1, 100, 1400, 1472, 4000, 40000])
def test_packets_of_every_size_pass(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind, size: int
) -> None:
    with tunnel(sites, folder, client, server) as made:
        for here, there in ((sites.west, sites.east), (sites.east, sites.west)):
            for address in (there.inner, there.inner6):
                assert here.lan.ping(address, "-s", str(size), count=3, seconds=3), made.logs()


@pairs(PAIRS)
@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"])
def test_new_keys_under_traffic_change_nothing(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind, cipher: str
) -> None:
    often = Algorithms(cipher=cipher, rekey_bytes=1 << 20)
    with tunnel(sites, folder, client, server, algorithms=often) as made:
        transfer(sites.west.lan, sites.east.lan, sites.east.inner)
        transfer(sites.east.lan, sites.west.lan, sites.west.inner)
        assert_reachable(sites, made)


@pairs([(OURS, "openssh")])
def test_new_keys_that_the_server_wants_under_traffic_change_nothing(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind
) -> None:
    often = ["-oRekeyLimit=1M"]
    with tunnel(sites, folder, client, server, server_options=often) as made:
        transfer(sites.west.lan, sites.east.lan, sites.east.inner)
        transfer(sites.east.lan, sites.west.lan, sites.west.inner)
        assert_reachable(sites, made)


def send_short_packets(where: Namespace, device: str) -> None:
    """Hand the device packets that end within or with their IPv4 header."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
            header = bytes.fromhex("4500001400000000 40ff0000 0aff0001 0aff0002")
            for size in (20, 19, 12, 4, 2, 1):
                sock.sendto(header[:size], (device, ETH_P_IP))

    where.inside(send)


@pairs(PAIRS)
def test_a_packet_of_20_bytes_leaves_the_tunnel_alive(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind
) -> None:
    with tunnel(sites, folder, client, server) as made:
        assert_reachable(sites, made)
        for kind, site in ((client, sites.west), (server, sites.east)):
            if kind.name == OURS:  # what OpenSSH sends from its own device is its own affair
                send_short_packets(site.gateway, made.device)
        assert_reachable(sites, made)
        assert made.client.poll() is None


@pairs(OUR_CLIENT)
def test_a_channel_that_the_peer_ends_comes_back(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind
) -> None:
    with tunnel(sites, folder, client, server) as made:
        assert_reachable(sites, made)
        first = _index(sites.east.gateway, made.device)
        sites.east.gateway.ip("link", "delete", made.device)
        assert wait_until(lambda: _index(sites.east.gateway, made.device) not in ("", first), 15), (
            f"the device did not come back\n{made.logs()}"
        )
        # The western device stayed, with its addresses, or was made again.
        assert wait_for_device(sites.west.gateway, made.device)
        for site in (sites.west, sites.east):
            if "10.255.0" in site.gateway.ip("address", "show", "dev", made.device):
                site.gateway.ip("address", "flush", "dev", made.device, "scope", "global")
        sites.configure_tunnel(made.device, made.device)
        assert_reachable(sites, made)
        assert made.client.poll() is None


def _gone(where: Namespace, device: str) -> bool:
    return not where.has_device(device)


def _index(where: Namespace, device: str) -> str:
    for line in where.ip("-o", "link").splitlines():
        number, name, _ = line.split(":", 2)
        if name.strip() == device:
            return number
    return ""


@pairs(PAIRS)
@pytest.mark.parametrize("mode", DEVICES)
def test_no_device_outlives_the_connection(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind, mode: str
) -> None:
    with tunnel(sites, folder, client, server, mode=mode) as made:
        os.kill(made.client.pid, signal.SIGTERM)
        made.client.wait(10)
        for site in (sites.west, sites.east):
            gone = wait_until(partial(_gone, site.gateway, made.device), 10)
            assert gone, f"{made.device} stays at the {site.gateway.name}\n{made.logs()}"


@pairs(OUR_CLIENT)
def test_no_device_outlives_a_server_that_is_killed(
    sites: Sites, folder: Path, client: ClientKind, server: ServerKind
) -> None:
    with tunnel(sites, folder, client, server) as made:
        for pid in sites.east.gateway.processes():
            os.kill(pid, signal.SIGKILL)
        made.server.process.wait(10)
        assert made.client.wait(20) == 255, made.logs()
        for site in (sites.west, sites.east):
            assert wait_until(partial(_gone, site.gateway, made.device), 10)


def refused(
    sites: Sites,
    folder: Path,
    client: ClientKind,
    server: ServerKind,
    permit: str,
    mode: str = "point-to-point",
) -> subprocess.CompletedProcess[str]:
    """Ask for a tunnel that will not be granted; return how the client ended."""
    running, login = serve_tunnels(sites, folder, server, permit)
    with running:
        options = ["-oExitOnForwardFailure=yes", f"-oTunnel={mode}", "-w", "0:0", "-N"]
        call = client.invocation(running, login, None, options=options)
        return subprocess.run(
            sites.west.gateway.command(call.argv),
            env=call.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pairs(PAIRS)
@pytest.mark.parametrize(
    ("permit", "mode"),
    [("no", "point-to-point"), ("no", "ethernet"), ("ethernet", "point-to-point")],
)
def test_a_tunnel_that_is_not_permitted_is_refused_in_one_line(
    sites: Sites,
    folder: Path,
    client: ClientKind,
    server: ServerKind,
    permit: str,
    mode: str,
) -> None:
    done = refused(sites, folder, client, server, permit, mode)
    assert done.returncode == 255
    assert DEVICES[mode] not in sites.east.gateway.devices()
    if client.name == "culvert":
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert "tunnel" in lines[0].lower()
