"""Links between sites behind a router, while networks, programs and addresses come and go."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import Stream
from tests.netns import FrameWatch, Namespace, add_address, wait_until
from tests.sites import OUTER, LinkedSite, Routed, pause, transfer

pytestmark = [pytest.mark.root, pytest.mark.netns]

# Quick to notice and to come back; the long cuts below use what people get without asking.
EAGER = "server_alive_interval = 1\nserver_alive_count_max = 2\n"
FREE = "any_source = true\n"  # without addresses
SERVER = """
[[tunnel]]
device = "tun0"
addresses = ["10.255.0.2/30", "fd00:255::2/64"]
peer = ["10.255.0.1", "fd00:255::1"]
routes = ["10.1.0.0/24"]
forward = ["10.2.0.0/24"]
[tunnel.client]
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
routes = ["10.2.0.0/24"]
"""
CLIENT = """
device = "tun0"
remote_device = "tun0"
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
peer = ["10.255.0.2", "fd00:255::2"]
routes = ["10.2.0.0/24"]
"""


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    """West and east; what still runs there after the test is its mistake."""
    with Routed(folder) as made:
        yield made
        for site in made.sites.values():
            site.culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


def status_of(site: LinkedSite, name: str = "east") -> dict[str, Any]:
    links = json.loads(site.culvert("status", "--json", status=None))["links"]
    return next(link for link in links if link["name"] == name)


def state_of(site: LinkedSite, name: str = "east") -> str:
    return str(status_of(site, name)["state"])


def connected(sites: Routed, more: str = CLIENT + EAGER) -> LinkedSite:
    """West with its link to east up, as a person brings it up."""
    west = sites["west"]
    sites.declare("west", sites.link("east", more))
    assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
    assert west.reaches(sites["east"].inner)
    return west


def comes_back(west: LinkedSite, address: str, timeout: float = 30) -> None:
    assert wait_until(lambda: west.reaches(address), timeout), west.culvert("status", status=None)


def carriers(site: LinkedSite) -> list[int]:
    """The processes that carry the links of a site."""
    return [pid for pid in site.space.processes() if _user(pid) != 0]


def _user(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid or int(
            Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()[1]
        )
    except OSError:
        return 0


def roots(site: LinkedSite, applet: str) -> list[int]:
    """The processes of an applet at a site that run as root."""
    found = []
    for pid in site.space.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if applet.encode() in words and _user(pid) == 0:
                found.append(pid)
    return found


def supervisor(site: LinkedSite) -> int:
    return min(roots(site, "up"))  # younger ones look after the routes for a moment


def test_a_link_trusts_an_authority_and_shows_a_certificate(sites: Routed) -> None:
    """Both are read before the process that carries the link has no files any more."""
    west, east = sites["west"], sites["east"]
    folder = west.folder / "authority"
    folder.mkdir()
    user = folder / "id"
    shutil.copy(sites.user_keys.key(), user)
    shutil.copy(f"{sites.user_keys.key()}.pub", f"{user}.pub")
    shutil.copy(f"{sites.host_keys.key()}.pub", folder / "host.pub")
    west.culvert("keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(folder / "ca"))
    sign = ("keygen", "-q", "-s", str(folder / "ca"), "-I", "id")
    west.culvert(*sign, "-n", "root", str(user))
    west.culvert(*sign, "-h", "-n", east.outer, str(folder / "host.pub"))
    (folder / "authorized").mkdir()
    sites.serve(
        "east",
        f'trusted_user_ca_keys = "{folder}/ca.pub"\n'
        f'host_certificates = ["{folder}/host-cert.pub"]\n{SERVER}',
    )
    (east.folder / "authorized/authorized_keys").write_text("")
    kind, key, *_ = (folder / "ca.pub").read_text().split()
    text = sites.link("east", CLIENT + EAGER)
    for name, value in (
        ("identity_file", str(user)),
        ("host_key", f"@cert-authority {kind} {key}"),
    ):
        text = re.sub(f'{name} = ".*"', f'{name} = "{value}"', text)
    sites.declare("west", text)
    assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
    assert west.reaches(east.inner)
    assert "CA ecdsa-sha2-nistp256" in east.said()


# -- what is broken while a file is on its way ------------------------------------------------


def cut(sites: Routed, seconds: float) -> None:
    sites.router.ip("link", "set", "east", "down")
    pause(seconds)
    sites.router.ip("link", "set", "east", "up")


def cut_5(sites: Routed) -> None:
    cut(sites, 5)


def kill_the_server(sites: Routed) -> None:
    sites.kill_all("east")
    pause(1)
    sites.serve("east", SERVER)


def restart_the_server(sites: Routed) -> None:
    sites._programs[-1].terminate()
    sites._programs[-1].wait(10)
    sites.serve("east", SERVER)


def change_the_clients_address(sites: Routed) -> None:
    west = sites["west"].space
    west.ip("address", "del", "192.0.1.2/24", "dev", OUTER)
    west.ip("address", "add", "192.0.1.77/24", "dev", OUTER)
    west.ip("route", "replace", "default", "via", "192.0.1.1")


def stop_the_servers_worker(sites: Routed) -> None:
    for pid in carriers(sites["east"]):
        os.kill(pid, signal.SIGSTOP)


def stop_the_clients_carrier_for_a_while(sites: Routed) -> None:
    pids = carriers(sites["west"])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    pause(6)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def kill_the_carrier(sites: Routed) -> None:
    for pid in carriers(sites["west"]):
        os.kill(pid, signal.SIGKILL)


def a_wrong_route(sites: Routed) -> None:
    west = sites["west"]
    west.space.ip("route", "add", "blackhole", sites["east"].outer)
    assert wait_until(lambda: state_of(west) != "up", 30)
    west.space.ip("route", "del", "blackhole", sites["east"].outer)


def kill_the_supervisor(sites: Routed) -> None:
    west = sites["west"]
    os.kill(supervisor(west), signal.SIGKILL)
    assert wait_until(lambda: not west.space.processes(), 5)
    west.culvert("up", "-c", str(west.links))


BREAKAGES = (
    cut_5,
    kill_the_server,
    restart_the_server,
    change_the_clients_address,
    stop_the_servers_worker,
    stop_the_clients_carrier_for_a_while,
    kill_the_carrier,
    a_wrong_route,
    kill_the_supervisor,
)


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda each: each.__name__)
def test_a_transfer_inside_the_tunnel_survives(
    sites: Routed, breakage: Callable[[Routed], None]
) -> None:
    sites.serve("east", SERVER)
    before = sites["west"].snapshot()
    west, east = connected(sites), sites["east"]
    with transfer(west, east, east.inner):
        breakage(sites)
        comes_back(west, east.inner)
    assert wait_until(lambda: state_of(west) == "up")
    west.culvert("down")
    if breakage is not change_the_clients_address:
        assert west.snapshot() == before


@pytest.mark.timeout(300)
def test_a_transfer_survives_a_cut_of_90_seconds_with_the_usual_keepalive(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west, east = connected(sites, CLIENT), sites["east"]
    with transfer(west, east, east.inner):
        cut(sites, 90)
        comes_back(west, east.inner, 90)
    assert status_of(west)["reconnects"] == 1


@pytest.mark.timeout(300)
def test_a_transfer_survives_a_server_that_stands_still_for_a_minute(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west, east = connected(sites, CLIENT), sites["east"]
    with transfer(west, east, east.inner):
        pids = east.space.processes()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        pause(60)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        comes_back(west, east.inner, 90)


# -- from up to down --------------------------------------------------------------------------


def test_down_leaves_the_machine_as_it_was_byte_for_byte(sites: Routed) -> None:
    east, west = sites["east"], sites["west"]
    before = west.snapshot(), east.snapshot()
    server = sites.serve("east", SERVER)
    more = 'forward = ["10.1.0.0/24"]\nmasquerade = "into-tunnel"\nmtu = 1400\nkill_switch = true\n'
    connected(sites, CLIENT + EAGER + more)
    assert west.snapshot() != before[0]
    west.culvert("down")
    assert west.snapshot() == before[0]
    server.terminate()
    server.wait(10)
    assert east.snapshot() == before[1]


def test_one_end_is_enough_when_the_server_hands_out_addresses(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = connected(sites, "from_server = true\n" + EAGER)
    status = status_of(west)
    assert status["addresses"] == ["10.255.0.1/30", "fd00:255::1/64"]
    assert status["routes"] == ["10.2.0.0/24"]
    assert west.reaches("fd00:255::2")


def test_a_link_that_counts_on_a_server_that_hands_out_nothing_is_tried_again(
    sites: Routed,
) -> None:
    sites.serve("east", 'permit_tunnel = "yes"')
    sites.declare("west", sites.link("east", "from_server = true\n"))
    said = sites["west"].culvert("up", "-c", str(sites["west"].links), status=1)
    assert "east: the server hands out no addresses" in said
    assert "it is tried again" in said


def test_an_openssh_server_carries_a_link_too(sites: Routed) -> None:
    east = sites["east"]
    authorized = east.folder / "authorized_keys"
    authorized.write_text(f"{sites.user_keys.public()}\n")
    config = east.folder / "sshd_config"
    config.write_text(
        f"Port 2222\nHostKey {sites.host_keys.key()}\nPermitTunnel yes\nPermitRootLogin yes\n"
        f"StrictModes no\nAuthorizedKeysFile {authorized}\nPidFile none\n"
    )
    sshd = east.space.popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        sites.declare("west", sites.link("east", CLIENT + EAGER))
        west = sites["west"]
        assert wait_until(
            lambda: "up, tun0" in west.culvert("up", "-c", str(west.links), status=None)
        )
        east.space.ip("address", "add", "10.255.0.2", "peer", "10.255.0.1", "dev", "tun0")
        east.space.ip("link", "set", "tun0", "up")
        assert west.reaches("10.255.0.2")
        assert not status_of(west)["offload"]
        west.culvert("down")
    finally:
        sshd.terminate()
        sshd.wait(10)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("host_key", "somebody may be listening in"),
        ("identity_file", "Permission denied (publickey"),
    ],
)
def test_what_is_refused_for_good_stops_the_link_with_one_line(
    sites: Routed, wrong: str, words: str
) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    link = sites.link("east", CLIENT + EAGER)
    if wrong == "host_key":
        other = " ".join(sites.user_keys.public().split()[:2])
        link = link.replace(" ".join(sites.host_keys.public().split()[:2]), other)
    else:
        link = link.replace(str(sites.user_keys.key()), str(sites.host_keys.key()))
    sites.declare("west", link)
    (line,) = west.culvert("up", "-c", str(west.links), status=1).splitlines()
    assert line.startswith("east: stopped: ")
    assert words in line
    pause(2.5)
    assert status_of(west)["connects"] == 0
    assert east_logins(sites) <= 1


def east_logins(sites: Routed) -> int:
    return sites["east"].said().count("connection from")


def test_a_server_that_is_not_there_yet_is_tried_again(sites: Routed) -> None:
    west = sites["west"]
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    said = west.culvert("up", "-c", str(west.links), status=1)
    assert "Connection refused" in said
    assert "tried again" in said
    sites.serve("east", SERVER)
    comes_back(west, sites["east"].inner)


def test_a_kill_switch_lets_nothing_out_another_way(sites: Routed) -> None:
    server = sites.serve("east", SERVER)
    west = connected(sites, CLIENT + EAGER + "kill_switch = true\n")
    with FrameWatch(sites.router, "west", sites["east"].inner) as outside:
        server.terminate()
        server.wait(10)
        sites.kill_all("east")
        west.space.ip("route", "del", "10.2.0.0/24", "dev", "tun0")  # as somebody might
        assert not west.reaches(sites["east"].inner)
        assert outside.frames == 0
        west.culvert("down")
        assert not west.reaches(sites["east"].inner)
        assert outside.frames > 0  # the router sees it once nothing holds it back


def test_up_again_reads_the_declarations_again(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = connected(sites)
    west.culvert("up", "-c", str(west.links))
    assert status_of(west)["reconnects"] == 0  # nothing changed, nothing happened
    sites.declare("west", sites.link("east", CLIENT.replace('"10.2.0.0/24"', "") + EAGER))
    west.culvert("up", "-c", str(west.links))
    assert status_of(west)["routes"] == []
    sites.declare("west", sites.link("east", CLIENT + EAGER + "mtu = 70000\n"))
    said = west.culvert("up", "-c", str(west.links), status=1)
    assert "mtu" in said
    assert state_of(west) == "up"


# -- hosts behind the sites, and neighbours on the outer network ------------------------------

BEHIND = """
routes = ["10.{far}.0.0/24", "fd00:{far}::/64"]
forward = ["10.{near}.0.0/24", "fd00:{near}::/64"]
"""


@contextlib.contextmanager
def host_of(site: LinkedSite, number: int) -> Iterator[Namespace]:
    """A host of the network behind a site, which the site routes for."""
    with contextlib.closing(Namespace(f"{site.name} host")) as host:
        port = ("type", "veth", "peer", "name", "lan", "netns", host.path)
        site.space.ip("link", "add", "port", "master", "inner", "up", *port)
        add_address(site.space, "inner", f"fd00:{number}::1/64")
        for address in (f"10.{number}.0.10/24", f"fd00:{number}::10/64"):
            add_address(host, "lan", address)
        host.ip("link", "set", "lan", "up")
        for gateway in (site.inner, f"fd00:{number}::1"):
            host.ip("route", "add", "default", "via", gateway)
        yield host


def test_hosts_reach_each_other_and_neighbours_on_the_outer_network_reach_none(
    sites: Routed,
) -> None:
    """At both ends, with addresses of their own and with those of the hosts."""
    west, east, router = sites["west"], sites["east"], sites.router
    for number, site in enumerate((west, east), 1):
        add_address(router, site.name, f"2001:db8:{number}::1/64")
        add_address(site.space, OUTER, f"2001:db8:{number}::2/64")
        site.space.ip("route", "add", "default", "via", f"2001:db8:{number}::1")
    addresses = 'addresses = ["10.255.0.{}/30", "fd00:255::{}/64"]\n'
    sites.serve("east", "[[tunnel]]\ndevice = 'tun0'\n" + addresses.format(2, 2)
                + BEHIND.format(far=1, near=2))  # fmt: skip
    declared = "device = 'tun0'\nremote_device = 'tun0'\n" + addresses.format(1, 1)
    with host_of(west, 1) as west_host, host_of(east, 2) as east_host:
        sites.declare("west", sites.link("east", declared + BEHIND.format(far=2, near=1) + EAGER))
        west.culvert("up", "-c", str(west.links))
        for here, there in ((west_host, 2), (east_host, 1)):
            for address in (f"10.{there}.0.10", f"fd00:{there}::10"):
                assert here.ping(address, seconds=2), address
        targets: dict[str, Namespace] = {}
        sources: dict[str, str] = {}
        for far, near, host in ((1, 2, west_host), (2, 1, east_host)):
            for network, gateway, target, posed in (
                (f"10.{far}.0.0/24", f"192.0.{near}.2", f"10.{far}.0.10", f"10.{near}.0.77"),
                (f"fd00:{far}::/64", f"2001:db8:{near}::2", f"fd00:{far}::10", f"fd00:{near}::77"),
            ):
                router.ip("route", "add", network, "via", gateway)
                add_address(router, "lo", posed)
                targets[target] = host
                sources[target] = posed
        with contextlib.ExitStack() as stack:
            watches = [
                stack.enter_context(FrameWatch(host, "lan", target))
                for target, host in targets.items()
            ]
            with Stream(router, *targets) as stream:
                assert wait_until(lambda: stream.sent > 1000)
            for target, source in sources.items():
                router.ping(target, "-I", source, count=3, seconds=0.1)
            assert [watch.frames for watch in watches] == [0, 0, 0, 0]


# -- three sites ------------------------------------------------------------------------------


def test_three_sites_reach_each_other_through_the_middle_one(folder: Path) -> None:
    with Routed(folder, ("west", "east", "north")) as sites:
        middle, west, north = sites["east"], sites["west"], sites["north"]
        before = {name: site.snapshot() for name, site in sites.sites.items()}
        server = sites.serve("east", MIDDLE)
        for number, (site, routes) in enumerate(((west, "10.3.0.0/24"), (north, "10.1.0.0/24")), 0):
            sites.declare(
                site.name,
                sites.link(
                    "east",
                    f'device = "tun{number}"\nremote_device = "tun{number}"\n'
                    f'addresses = ["10.255.{number}.1/30"]\npeer = ["10.255.{number}.2"]\n'
                    f'routes = ["10.2.0.0/24", "{routes}"]\n' + EAGER,
                ),
            )
            site.culvert("up", "-c", str(site.links))
        for source, target in ((west, north), (north, west), (west, middle), (north, middle)):
            assert source.space.ping(target.inner, "-I", source.inner, seconds=2), (
                f"{source.name} to {target.name}"
            )
        for site in (west, north):
            site.culvert("down")
        server.terminate()
        server.wait(10)
        assert {name: site.snapshot() for name, site in sites.sites.items()} == before
        assert not sites.close()


MIDDLE = "".join(
    f"""
[[tunnel]]
device = "tun{number}"
addresses = ["10.255.{number}.2/30"]
peer = ["10.255.{number}.1"]
routes = ["10.{site}.0.0/24"]
forward = ["10.{other}.0.0/24"]
"""
    for number, site, other in ((0, 1, 3), (1, 3, 1))
)


# -- to be seen -------------------------------------------------------------------------------


def test_status_and_metrics_tell_what_is_so(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    text = f"metrics_port = 9123\n[[link]]\n{sites.link('east', CLIENT + EAGER)}"
    west.links.write_text(text)
    west.culvert("up", "-c", str(west.links))
    table = west.culvert("status")
    assert "east" in table
    assert "up" in table
    assert west.reaches(sites["east"].inner)
    status = status_of(west)
    assert status["sent_bytes"] > 0
    assert status["received_bytes"] > 0
    assert status["round_trip"] is None or 0 < status["round_trip"] < 1
    socket_path = west.folder / "run" / "links.sock"
    assert socket_path.stat().st_mode & 0o777 == 0o600
    by_socket = west.space.run("curl", "-s", "--unix-socket", str(socket_path), "http://x/metrics")
    by_port = west.space.run("curl", "-s", "http://127.0.0.1:9123/metrics")
    for metrics in (by_socket, by_port):
        assert 'culvert_link_up{link="east"' in metrics
        assert metrics.endswith("# EOF\n")
    west.culvert("down")
    said = west.culvert("status", status=1)
    assert "no link is up" in said
    assert "no link is up" in west.culvert("down", status=1)


def test_a_link_that_is_traced_names_each_message(sites: Routed) -> None:
    sites.serve("east", SERVER)
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    west = sites["west"]
    program = west.start("up", "-F", "-E", "-vvv", "-c", str(west.links))
    try:
        assert wait_until(lambda: "SSH_MSG_CHANNEL_OPEN_CONFIRMATION" in west.said()), west.said()
        assert wait_until(lambda: status_of(west)["state"] == "up")
        assert west.reaches(sites["east"].inner)
        assert wait_until(lambda: "SSH_MSG_CHANNEL_DATA" in west.said()), west.said()
    finally:
        program.terminate()
        program.wait(20)
    told = "link east: send packet: type 90 (SSH_MSG_CHANNEL_OPEN), tun-offload@culvert.example"
    assert told in west.said()


def test_nonsense_on_the_control_socket_disturbs_nobody(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = connected(sites)
    for nonsense in (
        b"",
        b"\0" * 9000,
        b"GET\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\n\r\n",
        b"\xff\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(west.folder / "run" / "links.sock"))
            sock.sendall(nonsense)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(5)
            while sock.recv(4096):
                pass
    assert state_of(west) == "up"


def test_a_second_supervisor_is_not_started(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = connected(sites)
    assert "up, tun0" in west.culvert("up", "-F")
    other = west.folder / "other.toml"
    other.write_text(west.links.read_text())
    said = west.culvert("up", "-c", str(other), status=1)
    assert f"the links of {west.links} are up: 'culvert down' ends them" in said
    assert wait_until(lambda: len(roots(west, "up")) == 1)


# -- what else breaks -------------------------------------------------------------------------


def test_a_route_of_somebody_else_ends_one_attempt_and_not_the_supervisor(sites: Routed) -> None:
    server = sites.serve("east", SERVER)
    west = connected(sites)
    server.terminate()
    server.wait(10)
    assert wait_until(lambda: state_of(west) == "backing_off")
    west.space.ip("route", "replace", "10.2.0.0/24", "via", west.gateway, "dev", OUTER)
    pause(1.5)
    assert state_of(west) in ("backing_off", "dialling")
    west.space.ip("route", "del", "10.2.0.0/24", "dev", OUTER)
    sites.serve("east", SERVER)
    comes_back(west, sites["east"].inner)


def test_a_device_that_somebody_removed_comes_back(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = connected(sites)
    west.space.ip("link", "del", "tun0")
    comes_back(west, sites["east"].inner)
    assert wait_until(lambda: state_of(west) == "up")


def test_a_device_of_somebody_else_stays_as_it_is(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    code = "from appliance.services.tunnel.device import open_device; import time; "
    code += "print(open_device(1, 0), flush=True); time.sleep(60)"
    holder = west.space.popen(
        [sys.executable, "-c", code], env=west.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        west.space.ip("link", "set", "tun0", "mtu", "1400", "up")
        before = west.snapshot()
        sites.declare("west", sites.link("east", CLIENT + EAGER))
        said = west.culvert("up", "-c", str(west.links), status=1)
        assert "tun0: it is in use" in said
        assert west.snapshot() == before
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


@pytest.mark.parametrize("known", [False, True], ids=["never connected", "connected before"])
def test_a_kill_switch_is_closed_before_the_server_has_handed_out_anything(
    sites: Routed, known: bool
) -> None:
    more = "from_server = true\nkill_switch = true\n" + EAGER
    west, target = sites["west"], sites["east"].inner
    if known:
        server = sites.serve("east", SERVER)
        connected(sites, more)
        west.culvert("down")
        server.terminate()
        server.wait(10)
    sites.declare("west", sites.link("east", more))
    west.culvert("up", "-c", str(west.links), status=1)
    with FrameWatch(sites.router, "west", target) as outside:
        assert not west.reaches(target)
        assert outside.frames == 0
        assert west.reaches("192.0.1.1") == known  # until then everything might be meant
        west.culvert("down")
        west.reaches(target)
        assert outside.frames > 0


def test_a_proxy_command_ends_with_its_link(sites: Routed) -> None:
    west = sites["west"]
    sites.declare(
        "west", sites.link("east", 'proxy_command = "sleep 600"\nconnect_timeout = 3\n' + FREE)
    )
    west.culvert("up", "-c", str(west.links), status=1)
    for number in range(3):  # each attempt, after 3 seconds or a change, has its own
        assert wait_until(lambda: len(sleepers(west)) == 1, 20)
        west.space.ip("address", "add", f"192.0.1.{50 + number}/24", "dev", OUTER)
        pause(2.5)
        assert len(sleepers(west)) <= 1
    west.culvert("down")
    assert wait_until(lambda: not sleepers(west), 5)


def sleepers(site: LinkedSite) -> list[int]:
    found = []
    for pid in site.space.processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):
                found.append(pid)
    return found


def test_sighup_starts_nothing_that_was_not_wanted(sites: Routed) -> None:
    sites.serve("east", MIDDLE)
    west = sites["west"]
    links = [
        sites.link("east", f'device = "tun{n}"\nremote_device = "tun{n}"\n{FREE}{EAGER}', name)
        for n, name in ((0, "first"), (1, "second"))
    ]
    sites.declare("west", *links)
    west.culvert("up", "-c", str(west.links), "first")
    os.kill(supervisor(west), signal.SIGHUP)
    pause(1)
    names = [link["name"] for link in json.loads(west.culvert("status", "--json"))["links"]]
    assert names == ["first"]
    west.culvert("up")
    west.culvert("down", "first")
    os.kill(supervisor(west), signal.SIGHUP)
    pause(1)
    names = [link["name"] for link in json.loads(west.culvert("status", "--json"))["links"]]
    assert names == ["second"]


def test_any_device_is_the_same_after_the_supervisor_was_killed(sites: Routed) -> None:
    sites.serve("east", SERVER)
    more = CLIENT.replace('device = "tun0"\nremote_', "remote_", 1) + EAGER
    west = connected(sites, more)
    os.kill(supervisor(west), signal.SIGKILL)
    assert wait_until(lambda: not west.space.processes(), 5)
    assert "up, tun0" in west.culvert("up", "-c", str(west.links))
    west.culvert("down")
    assert "tun0" not in west.space.devices()


def test_declarations_that_others_may_write_are_refused(sites: Routed) -> None:
    west = sites["west"]
    sites.declare("west", sites.link("east", CLIENT))
    west.links.chmod(0o666)
    said = west.culvert("up", "-c", str(west.links), status=1)
    assert "others than root may write it" in said
