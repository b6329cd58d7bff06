"""A declared kill switch is closed, whatever happens: a listener outside counts what leaves.

West's link is a full tunnel to east. While one thing or another happens to it, a stream of packets
is sent at west, every 2 ms, to addresses behind the tunnel, to the server's own address, and to a
neighbour in the local network. Nothing of it may pass the router.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appliance.config.links import load_links_config
from tests.leaks import Outside, Stream
from tests.links_soak import SERVER, VICTIM, VICTIM6
from tests.netns import Namespace, add_address, wait_until
from tests.peers import end
from tests.sites import OUTER, PORT, LinkedSite, Routed, pause
from tests.system.test_links import carriers, comes_back, state_of, status_of, supervisor

pytestmark = [pytest.mark.root, pytest.mark.netns]

EAGER = "server_alive_interval = 1\nserver_alive_count_max = 2\n"
CLIENT = """
device = "tun0"
remote_device = "tun0"
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
peer = ["10.255.0.2", "fd00:255::2"]
routes = ["0.0.0.0/0", "::/0"]
kill_switch = true
"""
FROM_SERVER = """
device = "tun0"
remote_device = "tun0"
from_server = true
kill_switch = true
"""


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    """West and east, with IPv6 at west; what still runs there after the test is its mistake."""
    with Routed(folder) as made:
        west = made["west"].space
        add_address(west, OUTER, "2001:db8:1::2/64")
        add_address(made.router, "west", "2001:db8:1::1/64")
        west.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")
        yield made
        for site in made.sites.values():
            site.culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


@contextlib.contextmanager
def watched(sites: Routed) -> Iterator[Callable[[], dict[str, int]]]:
    """A stream, and a function that tells what of it has left."""
    west, server = sites["west"], sites["east"].outer
    targets = (VICTIM, VICTIM6, server, west.gateway)
    with Outside(sites.router, "west", server, PORT) as outside, Stream(west.space, *targets):
        yield outside.leaks


def up(sites: Routed, more: str = CLIENT) -> LinkedSite:
    west = sites["west"]
    sites.declare("west", sites.link("east", more + EAGER))
    assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
    return west


def test_without_a_kill_switch_the_listener_sees_what_leaves(sites: Routed) -> None:
    with watched(sites) as leaks:
        assert wait_until(lambda: len(leaks()) == 4), leaks()
    assert {int(key.split()[1]) for key in leaks()} == {17}


def test_nothing_leaves_from_boot_until_down(sites: Routed) -> None:
    west = sites["west"]
    before = west.snapshot()
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    said = west.culvert("up", "--close", "-c", str(west.links))
    assert said == "east: its kill switch is closed\n"
    with watched(sites) as leaks:
        assert "Connection refused" in west.culvert("up", "-c", str(west.links), status=1)
        sites.serve("east", SERVER)
        comes_back(west, "10.255.0.2")
        west.culvert("down", "--closed")
        said = west.culvert("status", status=1)
        assert "the kill switch of east is closed ('culvert down' opens it)" in said
        pause(0.3)
        west.culvert("up", "--close", "-c", str(west.links))  # as at a boot
        assert "up, tun0" in west.culvert("up", "-c", str(west.links))
        os.kill(supervisor(west), signal.SIGTERM)
        assert wait_until(west.is_quiet)
        pause(0.3)
        assert leaks() == {}
        assert "up, tun0" in west.culvert("up", "-c", str(west.links))
        assert leaks() == {}
        west.culvert("down")
        assert wait_until(lambda: len(leaks()) == 4)
    assert west.snapshot() == before


def test_nothing_leaves_over_a_reload(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    pid = supervisor(west)
    with watched(sites) as leaks:
        for more in (
            CLIENT + EAGER.replace("interval = 1", "interval = 2"),
            CLIENT.replace("tun0", "tun7", 1) + EAGER,
            CLIENT.replace('device = "tun0"\n', "", 1) + EAGER,
            CLIENT.replace('"0.0.0.0/0", ', '"0.0.0.0/1", "128.0.0.0/1", ') + EAGER,
            CLIENT + EAGER,
        ):
            sites.declare("west", sites.link("east", more))
            os.kill(pid, signal.SIGHUP)
            pause(0.5)
            comes_back(west, "10.255.0.2")
            assert leaks() == {}, more
        sites.declare("west", sites.link("east", CLIENT + EAGER, name="other"))
        # The end of the first connection is kept in, too: the server asks it for some seconds.
        west.culvert("up", "-c", str(west.links), status=None)
        comes_back(west, "10.255.0.2")
        sites.declare("west", "this is no toml")
        os.kill(pid, signal.SIGHUP)
        pause(0.5)
        assert leaks() == {}
    assert supervisor(west) == pid


def test_nothing_leaves_when_a_process_is_killed(sites: Routed) -> None:
    server = sites.serve("east", SERVER)
    west = up(sites)
    with watched(sites) as leaks:
        for pid in carriers(west):
            os.kill(pid, signal.SIGKILL)
        comes_back(west, "10.255.0.2")
        os.kill(supervisor(west), signal.SIGKILL)
        assert wait_until(west.is_quiet)
        pause(0.3)
        assert leaks() == {}
        west.culvert("up", "-c", str(west.links))
        comes_back(west, "10.255.0.2")
        server.kill()
        sites.kill_all("east")
        server.wait()
        west.space.ip("link", "del", "tun0")
        pause(1)
        assert leaks() == {}


def flush(west: LinkedSite) -> None:
    west.space.run("nft", "flush", "ruleset")


def delete_the_table(west: LinkedSite) -> None:
    west.space.run("nft", "delete", "table", "inet", "culvert-link-east")


def flush_the_table(west: LinkedSite) -> None:
    west.space.run("nft", "flush", "table", "inet", "culvert-link-east")


def load_another_ruleset(west: LinkedSite) -> None:
    west.space.run("sh", "-c", "printf 'flush ruleset\ntable inet a {\n}\n' | nft -f -")


@pytest.mark.parametrize(
    "removal",
    [flush, delete_the_table, flush_the_table, load_another_ruleset],
    ids=lambda each: each.__name__,
)
def test_nothing_leaves_when_somebody_removes_the_rules(
    sites: Routed, removal: Callable[[LinkedSite], None]
) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    table = ("nft", "list", "table", "inet", "culvert-link-east")
    made = west.space.run(*table).partition("counter foreign")[0]

    def is_back() -> bool:
        return west.space.run(*table, check=False).startswith(made)

    with watched(sites) as leaks:
        for _ in range(3):
            removal(west)
            assert wait_until(is_back, 5)
            assert leaks() == {}
        assert state_of(west) == "up"
        assert status_of(west)["reconnects"] == 0, west.said() + sites["east"].said()
    west.culvert("down")
    assert "culvert" not in west.space.run("nft", "list", "ruleset")


@contextlib.contextmanager
def full_disk(site: LinkedSite) -> Iterator[None]:
    """A site's state lies on a disk that has no room left."""
    state = site.folder / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(state)], check=True)
    try:
        with contextlib.suppress(OSError), (state / "all").open("wb") as file:
            file.write(bytes(1 << 20))
        yield
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def test_a_full_disk_opens_nothing_and_keeps_nothing_closed(sites: Routed) -> None:
    west = sites["west"]
    before = west.snapshot()
    with full_disk(west):
        sites.serve("east", SERVER)
        sites.declare("west", sites.link("east", CLIENT + EAGER))
        west.culvert("up", "--close", "-c", str(west.links))
        with watched(sites) as leaks:
            pause(0.3)
            assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
            assert west.reaches("10.255.0.2")
            os.kill(supervisor(west), signal.SIGKILL)
            assert wait_until(west.is_quiet)
            assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
            assert leaks() == {}
            west.culvert("down")
        assert west.snapshot() == before
        assert not list((west.folder / "run" / "network").glob("*.json"))


def test_a_flush_opens_nothing_while_no_supervisor_runs(sites: Routed) -> None:
    west = sites["west"]
    before = west.snapshot()
    sites.serve("east", SERVER)
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    links = ("-c", str(west.links))
    west.culvert("up", "--close", *links)
    with watched(sites) as leaks:
        for how in ("boot", "restart", "crash", "crash of all"):
            if how != "boot":
                west.culvert("up", *links)
                comes_back(west, "10.255.0.2")
            if how == "restart":
                west.culvert("down", "--closed")
            elif how != "boot":
                os.kill(supervisor(west), signal.SIGKILL)
            assert wait_until(west.is_quiet)
            if how == "crash of all":
                for pid in west.keepers():
                    os.kill(pid, signal.SIGKILL)
            else:
                flush(west)
            pause(0.3)
            if how == "restart":  # the table was made again, and needs nobody
                for pid in west.keepers():
                    os.kill(pid, signal.SIGKILL)
                pause(0.3)
            assert leaks() == {}, how
            said = west.culvert("status", status=1)
            assert "the kill switch of east is closed ('culvert down' opens it)" in said
        west.culvert("down")
        assert wait_until(lambda: len(leaks()) == 4)
    assert west.snapshot() == before
    assert wait_until(lambda: not west.space.processes())


def test_a_killed_keeper_is_started_again(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    (old,) = west.keepers()
    with watched(sites) as leaks:
        os.kill(old, signal.SIGKILL)
        held = ("nft", "list", "table", "inet", "culvert-link-east/held")
        assert wait_until(lambda: old not in west.keepers() and west.space.succeeds(*held))
        flush(west)
        pause(0.3)
        os.kill(supervisor(west), signal.SIGKILL)
        assert wait_until(west.is_quiet)
        flush(west)
        pause(0.3)
        assert leaks() == {}


def test_a_keeper_that_stays_is_a_service_of_its_own(sites: Routed) -> None:
    west = sites["west"]
    sites.serve("east", SERVER)
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    links = ("-c", str(west.links))
    keeper = west.start("up", "--close", "-F", *links)
    held = ("nft", "list", "table", "inet", "culvert-link-east/held")
    assert wait_until(lambda: west.space.succeeds(*held))
    with watched(sites) as leaks:
        west.culvert("up", *links)
        assert west.keepers() == []  # no second one
        for _ in range(2):
            flush(west)
            west.culvert("down", "--closed")
            flush(west)
            pause(0.3)
            west.culvert("up", *links)
        assert leaks() == {}
        west.culvert("down")
        assert wait_until(lambda: len(leaks()) == 4)
        assert not west.space.succeeds(*held)
        assert keeper.poll() is None
        keeper.kill()
        keeper.wait()
        keeper = west.start("up", "--close", "-F", *links)  # as a service manager does
        assert wait_until((west.folder / "run" / "keeper.sock").exists)
        before = sum(leaks().values())
        assert wait_until(lambda: sum(leaks().values()) > before + 10)
    end(keeper)


def test_a_keeper_that_takes_over_does_not_wait_for_a_supervisor_that_waits_for_it(
    sites: Routed,
) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    (old,) = west.keepers()
    keeper = west.start("up", "--close", "-F", "-c", str(west.links))
    lock = west.folder / "run" / "keeper.lock"
    assert wait_until(lambda: f"{lock.stat().st_ino} " in waiting_locks())
    busy = supervisor(west)
    os.kill(busy, signal.SIGSTOP)
    os.kill(old, signal.SIGKILL)
    pause(0.5)
    os.kill(busy, signal.SIGCONT)
    began = time.monotonic()
    pause(0.2)
    west.culvert("status")
    assert time.monotonic() - began < 5
    held = ("nft", "list", "table", "inet", "culvert-link-east/held")
    assert wait_until(lambda: west.space.succeeds(*held))
    assert west.keepers() == []
    end(keeper)


def waiting_locks() -> str:
    """The lines of proc(5)'s /proc/locks that tell of a process which waits."""
    return "\n".join(each for each in Path("/proc/locks").read_text().splitlines() if "->" in each)


def test_a_mistake_in_the_declarations_opens_nothing_at_boot(sites: Routed) -> None:
    """What was closed when the machine went down is closed again."""
    sites.serve("east", SERVER)
    west = up(sites)
    west.culvert("down", "--closed")
    for pid in west.keepers():  # as at a boot: no rule is left, and the record is of an earlier one
        os.kill(pid, signal.SIGKILL)
    flush(west)
    record = west.folder / "state/network/link-east.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps({**data, "boot": "b0070000-0000-4000-8000-000000000000"}))
    west.links.write_text("this is no toml")
    said = west.culvert("up", "--close", "-c", str(west.links), status=1)
    assert "this is no toml" in said or "links.toml" in said
    assert "east: its kill switch is closed" in said
    with watched(sites) as leaks:
        flush(west)
        pause(0.3)
        assert leaks() == {}


def test_other_declarations_open_nothing(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    west.culvert("down", "--closed")
    other = west.folder / "other.toml"
    less = CLIENT.replace("kill_switch = true", "").replace("0.0.0.0/0", "10.2.0.0/24")
    other.write_text(
        f"[[link]]\n{sites.link('east', CLIENT + EAGER, name='other')}"
        f"[[link]]\n{sites.link('east', less.replace('tun0', 'tun1'))}"
    )
    with watched(sites) as leaks:
        said = west.culvert("up", "-c", str(other), "east", status=1)
        assert f"the kill switch of east, of {west.links}, is closed" in said
        assert leaks() == {}
        west.culvert("down")
        assert "other: up, tun0" in west.culvert("up", "-c", str(other), "other")


# -- names ------------------------------------------------------------------------------------


class NameServer:
    """Answers every question with the same addresses, in their order, and counts the questions."""

    def __init__(self, where: Namespace, address: str, answers: Sequence[str]) -> None:
        def bind() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address, 53))
            sock.settimeout(0.05)
            return sock

        self.answers = list(answers)
        self.questions = 0
        self._over = False
        self._socket = where.inside(bind)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                question, who = self._socket.recvfrom(512)
                self.questions += 1
                self._socket.sendto(self._answer(question), who)

    def _answer(self, question: bytes) -> bytes:
        """RFC 1035 section 4: the question again, and a record of type A for each address."""
        end = question.index(0, 12) + 5
        wants_ipv4 = question[end - 4 : end - 2] == b"\0\1"
        found = self.answers if wants_ipv4 else []
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4)
        return head + question[12:end] + b"".join(record + socket.inet_aton(a) for a in found)

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()


@pytest.mark.parametrize("more", [CLIENT, FROM_SERVER], ids=["declared", "from_server"])
def test_what_a_resolver_says_opens_nothing_and_only_the_right_server_is_remembered(
    sites: Routed, more: str
) -> None:
    """ServerIP of TunnelCrack: the answer names a victim's address before the server's own."""
    west, east = sites["west"], sites["east"]
    sites.serve("east", SERVER)
    names = NameServer(sites.router, west.gateway, [VICTIM, east.outer])
    try:
        text = sites.link("east", more + EAGER + "connect_timeout = 2\n")
        sites.declare("west", text.replace(f'host = "{east.outer}"', 'host = "east.test"'))
        west.culvert("up", "--close", "-c", str(west.links))
        resolver = west.folder / "resolv.conf"
        resolver.write_text(f"nameserver {west.gateway}\noptions attempts:1 timeout:2\n")
        # The connection's own packets to the wrong address, TCP to the declared port, do leave.
        allowed = f"protocol 6 to {VICTIM} port {PORT}"
        asked = f"protocol 17 to {west.gateway} port 53"
        with watched(sites) as leaks:
            program = west.start_with(
                {"/etc/resolv.conf": resolver}, "up", "-F", "-E", "-c", str(west.links)
            )
            assert wait_until(lambda: west.reaches("10.255.0.2"), 20), west.said()
            assert wait_until(lambda: (west.folder / "state/links/east.json").exists())
            assert leaks().keys() == {allowed, asked}
            west.space.ping(VICTIM, seconds=0.2)
            for port in (53, PORT):  # somebody else's questions, and connections
                west.space.inside(lambda port=port: knock(west.gateway, port))  # type: ignore[misc]
                west.space.inside(lambda port=port: knock(VICTIM, port))  # type: ignore[misc]
            counted = leaks()
            assert counted.keys() == {allowed, asked}
            assert counted[asked] == names.questions
            end(program)
        remembered = (west.folder / "state/links/east.json").read_text()
        assert east.outer in remembered
        assert VICTIM not in remembered
    finally:
        names.close()


def knock(address: str, port: int) -> None:
    """A packet of each kind."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.2)
            sock.connect((address, port))
            sock.send(b"in clear")


def test_what_goes_to_the_servers_address_goes_through_the_tunnel(sites: Routed) -> None:
    """All but the link's connection: the pinned route is for its packets alone."""
    sites.serve("east", SERVER)
    west, east = up(sites, CLIENT.replace("kill_switch = true", "")), sites["east"]
    with Outside(sites.router, "west", east.outer, PORT) as outside:
        assert west.reaches(east.outer)
        west.space.inside(lambda: knock(east.outer, 7))
        assert outside.leaks() == {}


@pytest.mark.parametrize("strict", ["0", "1", "2"])
def test_the_reverse_path_filter_lets_the_answers_of_the_server_in(
    sites: Routed, strict: str
) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    for name in ("all", OUTER):
        west.space.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter={strict}")
    up(sites)
    assert west.reaches("10.255.0.2")
    pause(3)
    assert status_of(west)["reconnects"] == 0


# -- what a server hands out ------------------------------------------------------------------


@pytest.mark.parametrize("kill_switch", ["", "kill_switch = true\n"])
def test_a_hand_out_that_does_not_work_is_not_kept(sites: Routed, kill_switch: str) -> None:
    """A network of addresses that covers the server, which its route did not, once cut it off."""
    west, east = sites["west"], sites["east"]
    wide = SERVER.partition("[tunnel.client]")[0].replace(', "fd00:255::2/64"', "")
    wide = wide.replace(', "fd00:255::1"', "") + (
        'any_source = true\n[tunnel.client]\naddresses = ["193.0.0.1/2"]\n'
        'routes = ["10.2.0.0/24"]\n'
    )
    server = sites.serve("east", wide)
    client = FROM_SERVER.replace("kill_switch = true\n", kill_switch)
    sites.declare("west", sites.link("east", client + EAGER))
    assert "east: up, tun0" in west.culvert("up", "-c", str(west.links))
    pause(4)
    assert status_of(west)["reconnects"] == 0
    end(server)
    sites.serve("east", SERVER)
    comes_back(west, "10.255.0.2")
    assert status_of(west)["addresses"] == ["10.255.0.1/30", "fd00:255::1/64"]
    assert load_links_config(str(west.links)).link[0].name == "east"
    assert east.outer in (west.folder / "state/links/east.json").read_text()


def test_a_machine_without_ipv6_takes_what_is_left_of_a_hand_out(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    west.space.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    up(sites, FROM_SERVER)
    assert west.reaches("10.255.0.2")
    assert "fd00" not in west.space.ip("address")


# -- the server's side ------------------------------------------------------------------------


def test_no_mistake_of_a_tunnel_takes_ssh_away(sites: Routed) -> None:
    east = sites["east"]
    with full_disk(east):
        east.space.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        server = sites.serve("east", SERVER)
        assert "IPv6 is switched off" in east.said(), east.said()
        east.space.run("sysctl", "-qw", "net.ipv6.conf.tun0.disable_ipv6=0")
        assert wait_until(lambda: "tunnel tun0 can be used now" in east.said(), 20)
        up(sites)
        end(server)
        assert "tun0" not in east.space.devices()


def test_rules_of_the_servers_that_somebody_removes_are_back_at_once(sites: Routed) -> None:
    sites.serve("east", SERVER)
    east = sites["east"]
    tables = {"table inet culvert-sshd-tun0", "table inet culvert-forward-ipv4"}

    def present() -> set[str]:
        return set(east.space.run("nft", "list", "tables").splitlines())

    assert tables <= present()
    for _ in range(3):
        east.space.run("nft", "flush", "ruleset")
        assert wait_until(lambda: tables <= present(), 5)
    assert "tunnel tun0: somebody changed its rules" in east.said()


def test_a_router_of_its_own_right_is_no_reason_to_make_rules_again(sites: Routed) -> None:
    """Where packets were passed on before, no table of ours says which."""
    for name in ("west", "east"):
        sites[name].space.forward()
    sites.serve("east", SERVER)
    west, east = up(sites, CLIENT + 'forward = ["10.1.0.0/24"]\n'), sites["east"]
    pause(1)
    for site in (west, east):
        site.space.run("nft", "flush", "ruleset")
    pause(1.5)
    assert west.reaches("10.255.0.2")
    assert east.said().count("somebody changed its rules") == 1
    assert "forward" not in east.space.run("nft", "list", "tables")


def test_name_servers_inside_the_tunnel_are_asked_once_it_is_up(sites: Routed) -> None:
    """A switch that was closed at boot is no sign of a tunnel that was up."""
    west = sites["west"]
    sites.serve("east", SERVER)
    sites.declare("west", sites.link("east", CLIENT + EAGER + 'dns = ["10.255.0.2"]\n'))
    west.culvert("up", "--close", "-c", str(west.links))
    resolver = west.folder / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.53\n")
    text = west.links.read_text()
    west.links.write_text(text.replace(f"port = {PORT}", f"port = {PORT + 1}"))
    program = west.start_with(
        {"/etc/resolv.conf": resolver}, "up", "-F", "-E", "-c", str(west.links)
    )
    assert wait_until(lambda: "Connection refused" in west.said())
    assert "10.255.0.2" not in resolver.read_text()
    end(program)


# -- what an attacker tried next --------------------------------------------------------------


def test_the_copy_of_the_rules_follows_a_reload(sites: Routed) -> None:
    """One of an older version would let the old port out, and only that."""
    sites.serve("east", SERVER)
    west = up(sites)
    text = west.links.read_text()
    with watched(sites) as leaks:
        sites.declare(
            "west", text.replace("[[link]]\n", "").replace("10.255.0.1/30", "10.255.0.1/31")
        )
        os.kill(supervisor(west), signal.SIGHUP)
        pause(1)
        comes_back(west, "10.255.0.2")
        west.links.write_text(text.replace(f"port = {PORT}", f"port = {PORT + 1}"))
        os.kill(supervisor(west), signal.SIGHUP)
        pause(1)
        held = west.space.run("nft", "list", "table", "inet", "culvert-link-east/held")
        assert f"tcp dport {PORT + 1} return" in held
        assert f"tcp dport {PORT} return" not in held
        flush(west)
        pause(0.5)
        own = f"protocol 6 to {sites['east'].outer} port {PORT + 1}"  # the connection itself
        assert leaks().keys() <= {own}


@pytest.mark.parametrize("how", ["restart", "reload of some"])
def test_another_name_opens_nothing(sites: Routed, how: str) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    west.culvert("up", "-c", str(west.links), "east")
    with watched(sites) as leaks:
        sites.declare("west", sites.link("east", CLIENT + EAGER, name="other"))
        if how == "restart":
            west.culvert("down", "--closed")
            west.culvert("up", "-c", str(west.links))
            comes_back(west, "10.255.0.2")
        else:
            os.kill(supervisor(west), signal.SIGHUP)
        pause(1)
        assert leaks() == {}
    # The server asks the first connection, of whose end it did not hear, for some seconds.
    west.culvert("up", "-c", str(west.links), status=None)
    comes_back(west, "10.255.0.2")
    west.culvert("down")
    assert "culvert" not in west.space.run("nft", "list", "tables")


def test_a_device_that_somebody_holds_leaves_the_switch_closed(sites: Routed) -> None:
    west = sites["west"]
    west.space.ip("tuntap", "add", "tun0", "mode", "tap")  # of another kind
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    said = west.culvert("up", "-c", str(west.links), status=1)
    assert "it exists and is of another kind" in said
    with watched(sites) as leaks:
        pause(0.5)
        flush(west)
        pause(0.5)
        os.kill(supervisor(west), signal.SIGTERM)
        assert wait_until(west.is_quiet)
        west.culvert("up", "--close", "-c", str(west.links))
        pause(0.3)
        assert leaks() == {}


def make_it_a_folder(record: Path) -> None:
    record.unlink(missing_ok=True)
    record.mkdir()


def make_its_folder_a_file(record: Path) -> None:
    shutil.rmtree(record.parent, ignore_errors=True)
    record.parent.write_text("in the way")


def nest_it(record: Path) -> None:
    record.write_text("[" * 100000)


@pytest.mark.parametrize(
    "damage", [make_it_a_folder, make_its_folder_a_file, nest_it], ids=lambda each: each.__name__
)
def test_a_record_that_cannot_be_read_keeps_no_switch_open(
    sites: Routed, damage: Callable[[Path], None]
) -> None:
    west = sites["west"]
    before = west.snapshot()
    record = west.folder / "state/network/link-east.json"
    record.parent.mkdir(parents=True)
    damage(record)
    sites.serve("east", SERVER)
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    west.culvert("up", "--close", "-c", str(west.links))
    with watched(sites) as leaks:
        pause(0.3)
        assert "up, tun0" in west.culvert("up", "-c", str(west.links))
        assert leaks() == {}
    west.culvert("down")
    assert west.snapshot() == before


def test_a_lost_record_keeps_no_rules_from_coming_back_nor_from_going(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    (west.folder / "state/network/link-east.json").unlink()
    with watched(sites) as leaks:
        flush(west)
        tables = ("nft", "list", "tables")
        assert wait_until(lambda: "culvert-link-east\n" in west.space.run(*tables), 5)
        os.kill(supervisor(west), signal.SIGKILL)
        assert wait_until(west.is_quiet)
        pause(0.3)
        assert leaks() == {}
    shutil.rmtree(west.folder / "state/network")
    west.culvert("down")
    left = west.snapshot()
    assert "culvert" not in left
    assert "tun0" not in left
    assert "198" not in west.space.run("ip", "rule")
    assert west.space.run("ip", "route", "show", "table", "198", check=False) == ""


def test_close_beside_a_supervisor_says_what_is_open(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = up(sites)
    west.culvert("up", "--close", "-c", str(west.links))
    other = sites.link("east", OTHER, name="other")
    sites.declare("west", sites.link("east", CLIENT + EAGER), other)
    said = west.culvert("up", "--close", "-c", str(west.links), status=1)
    assert "the kill switch of other is open: 'culvert up' closes it" in said


@pytest.mark.parametrize("words", [(), ("-F",)], ids=["once", "stays"])
def test_a_runtime_directory_that_cannot_be_written_opens_nothing(
    sites: Routed, words: tuple[str, ...]
) -> None:
    west = sites["west"]
    run = west.folder / "run"
    run.mkdir(exist_ok=True)
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(run)], check=True)
    try:
        west.culvert("up", "--close", *words, "-c", str(west.links), status=len(words))
        with watched(sites) as leaks:
            pause(0.3)
            assert leaks() == {}
        west.culvert("down")
        assert "culvert" not in west.space.run("nft", "list", "tables")
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)


OTHER = CLIENT.replace("tun0", "tun1").replace("255", "254")


def test_a_switch_that_is_declared_no_more_does_not_outlast_down(sites: Routed) -> None:
    """Its record went as the link was not to be started, its copy did not."""
    west = sites["west"]
    before = west.snapshot()
    sites.serve("east", SERVER)
    both = [sites.link("east", CLIENT + EAGER), sites.link("east", OTHER, name="other")]
    sites.declare("west", *both)
    west.culvert("up", "--close", "-c", str(west.links))
    sites.declare("west", both[0], both[1].replace("kill_switch = true", ""))
    west.culvert("up", "-c", str(west.links), "east")
    assert "link-other" not in west.space.run("nft", "list", "tables")
    west.culvert("down")
    assert west.snapshot() == before


def test_what_cannot_be_undone_keeps_no_other_switch_closed(sites: Routed) -> None:
    west = sites["west"]
    both = [sites.link("east", CLIENT + EAGER), sites.link("east", OTHER, name="other")]
    sites.declare("west", *both)
    west.culvert("up", "--close", "-c", str(west.links))
    record = west.folder / "state/network/link-east.json"
    data = json.loads(record.read_text())
    mtu = {"kind": "Mtu", "device": OUTER, "mtu": 1400}
    data["changes"].append({"change": mtu, "before": {"mtu": "9999999"}})
    record.write_text(json.dumps(data))
    said = west.culvert("down", status=1)
    assert f"not undone: ip link set dev {OUTER} mtu 1400" in said
    assert "culvert" not in west.space.run("nft", "list", "tables")


@pytest.mark.parametrize("words", [("down",), ("down", "--closed")], ids=" ".join)
def test_down_ends_a_supervisor_that_has_only_begun(sites: Routed, words: tuple[str, ...]) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    sites.declare("west", sites.link("east", CLIENT + EAGER))
    begun = west.start("up", "-F", "-c", str(west.links))
    lock = west.folder / "run" / "links.lock"
    assert wait_until(lambda: lock.exists() and lock.read_text())
    begun.send_signal(signal.SIGSTOP)
    assert not (west.folder / "run" / "links.sock").exists()
    going = threading.Timer(1, begun.send_signal, [signal.SIGCONT])
    going.start()
    west.culvert(*words, status=None)
    going.join()
    assert begun.wait(10) == 0
    assert ("culvert" in west.space.run("nft", "list", "tables")) == (len(words) > 1)


def test_ipv6_that_is_switched_on_later_is_guarded(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west = sites["west"]
    west.space.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    up(sites)
    with watched(sites) as leaks:
        west.space.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
        add_address(west.space, OUTER, "2001:db8:1::2/64")
        west.space.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")
        pause(2)
        assert leaks() == {}
