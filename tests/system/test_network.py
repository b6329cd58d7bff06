"""What a tunnel changes in the machine's network, with the real kernel, ip, nft and pings.

Every test but those of name servers has a namespace of its own with an outer and an inner link,
and most end by undoing everything and comparing all that can be seen with how it was.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.config.network import TunnelNetwork
from appliance.services.tunnel import kernel, kinds, record, resolver
from appliance.services.tunnel.chains import Outside
from appliance.services.tunnel.device import open_device
from appliance.services.tunnel.kernel import free_device, reconcile, reconcile_apart
from appliance.services.tunnel.marks import MARK
from appliance.services.tunnel.network import (
    Change,
    NetworkError,
    PassedOn,
    Pin,
    Plan,
    Rules,
    plan,
)
from appliance.services.tunnel.programs import Programs
from appliance.services.tunnel.rules import holds, tables
from appliance.wire.tun import POINT_TO_POINT
from tests.netns import ETH_P_ALL, Namespace, add_address, connect, wait_until

pytestmark = [pytest.mark.root, pytest.mark.netns]

SERVER = "203.0.113.5"
SERVER6 = "2001:db8:ffff::5"
PORT = 22
VIRTIO = 10  # bytes before each packet of a tun device
LOOK = """
ip address; ip -d link; ip route show table all; ip -6 route show table all
ip rule; ip -6 rule; nft list ruleset
"""


class Machine:
    """A machine with an outer and an inner link, and what is at their other ends."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.here, self.outside, self.lan = (
            stack.enter_context(contextlib.closing(Namespace(name)))
            for name in ("machine", "outside", "lan")
        )
        self.states = folder / "states"
        # Carriers are reported at once where the ends of a pair have different numbers; otherwise
        # the kernel takes up to a second.
        self.here.ip("link", "add", "spare", "type", "bridge")
        outer, outer6 = ["192.0.2.1/24", "192.0.2.254/24"], ["2001:db8::1/64", "2001:db8::fe/64"]
        connect(self.here, self.outside, "outer", *map(list, zip(outer, outer6, strict=True)))
        lan, lan6 = ["10.1.0.1/24", "10.1.0.10/24"], ["fd00:1::1/64", "fd00:1::10/64"]
        connect(self.here, self.lan, "lan", *map(list, zip(lan, lan6, strict=True)))
        self.here.ip("route", "add", "default", "via", "192.0.2.254")
        self.here.ip("route", "add", "default", "via", "2001:db8::fe")
        self.lan.ip("route", "add", "default", "via", "10.1.0.1")
        self.lan.ip("route", "add", "default", "via", "fd00:1::1")
        for address in (f"{SERVER}/32", f"{SERVER6}/128"):
            add_address(self.outside, "lo", address)
        assert wait_until(self.settled), self.look()
        self.before = self.look()

    def settled(self) -> bool:
        """Both links have their IPv6 addresses, which the kernel makes when it finds the time."""
        return all(
            space.ip("-6", "address", "show", "scope", "link").count("fe80::") == count
            for space, count in ((self.here, 2), (self.lan, 1), (self.outside, 1))
        )

    def look(self) -> str:
        """Everything that can be seen of the network, as text."""

        def settings() -> str:
            paths = [Path("/proc/sys/net/ipv4/ip_forward")]
            for version in (4, 6):
                paths += sorted(Path(f"/proc/sys/net/ipv{version}/conf").glob("*/*"))
            lines = []
            for path in paths:
                with contextlib.suppress(OSError):  # some are for writing only
                    lines.append(f"{path} = {path.read_text()}")
            return "".join(lines)

        return self.here.run("sh", "-c", LOOK) + self.here.inside(settings)

    def make(self, wanted: Sequence[Change], owner: str = "office") -> None:
        self.here.inside(lambda: reconcile(self.states / f"{owner}.json", wanted))

    def assert_undone(self) -> None:
        assert self.look() == self.before
        assert not self.states.exists() or not list(self.states.iterdir())


@pytest.fixture
def machine(folder: Path) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        yield Machine(stack, folder)


@pytest.fixture(autouse=True)
def resolv_conf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of name servers, which is never the machine's own."""
    path = folder / "etc" / "resolv.conf"
    path.parent.mkdir()
    path.write_text("search home.example\nnameserver 192.0.2.53\noptions timeout:1\n")
    monkeypatch.setattr(resolver, "RESOLV_CONF", path)
    monkeypatch.setattr(resolver, "RESOLVED", folder / "resolved")
    return path


def network(**words: Any) -> TunnelNetwork:
    """A TunnelNetwork whose addresses and networks are given as text."""
    read: dict[str, Callable[[str], Any]] = {
        "addresses": ip_interface, "peer": ip_address, "routes": ip_network,
        "forward": ip_network, "dns": ip_address,
    }  # fmt: skip
    for name in read.keys() & words.keys():
        words[name] = tuple(read[name](item) for item in words[name])
    return TunnelNetwork(**words)


SIMPLE = network(
    addresses=["10.9.0.1/30", "fd00:9::1/64"],
    peer=["10.9.0.2", "fd00:9::2"],
    routes=["192.168.2.0/24", "fd00:2::/64"],
)
EVERYTHING = network(
    addresses=["10.9.0.1/30", "fd00:9::1/64"],
    peer=["10.9.0.2", "fd00:9::2"],
    routes=["0.0.0.0/0", "192.168.2.0/24", "::/0"],
    mtu=1400,
    forward=["10.1.0.0/24", "fd00:1::/64"],
    masquerade="both",
    dns=["10.9.0.2"],
)
BRIDGED = network(
    mode="ethernet",
    addresses=["10.9.0.1/24", "fd00:9::1/64"],
    peer=["10.9.0.2"],
    routes=["192.168.2.0/24"],
    bridge="br7",
    mtu=1400,
)


def everything(wanted: Plan) -> tuple[Change, ...]:
    return (*wanted.at_start, *wanted.while_up)


def full(device: str = "tun0", owner: str = "office", **words: Any) -> tuple[Change, ...]:
    outside = to(SERVER, SERVER6)
    return everything(plan(owner, EVERYTHING, device, outside, kill_switch=True, **words))


def to(*servers: str) -> Outside:
    """What a link's connection to these servers needs."""
    return Outside(tuple(map(ip_address, servers)), PORT)


def listener(where: Namespace, device: str) -> socket.socket:
    """A socket that sees what passes a device."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        sock.bind((device, ETH_P_ALL))
        sock.settimeout(3)
        return sock

    return where.inside(listen)


def seen(sock: socket.socket, wanted: Callable[[bytes], bool]) -> list[bytes]:
    """Those of the packets that have come until now."""
    sock.setblocking(False)
    packets = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packets.append(sock.recv(65536))
    return [packet for packet in packets if wanted(packet)]


def target_of(packet: bytes) -> str:
    return str(ip_address(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]))


def source_of(packet: bytes) -> str:
    return str(ip_address(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]))


@contextlib.contextmanager
def reader(where: Namespace, unit: int = 0) -> Iterator[int]:
    """The descriptor of a tun device that exists, with nothing but IP packets in it."""
    descriptor, _ = where.inside(lambda: open_device(POINT_TO_POINT, unit))
    try:
        # Until the kernel has found the time to see that it is open, packets for it are lost.
        assert wait_until(lambda: "state DOWN" not in where.ip("link", "show", f"tun{unit}"))
        yield descriptor
    finally:
        os.close(descriptor)


def packet_from(descriptor: int, wanted: Callable[[bytes], bool]) -> bytes:
    """The first packet of a tun device that is wanted, without its virtio header."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            packet = os.read(descriptor, 65536)[VIRTIO:]
            if wanted(packet):
                return packet
        time.sleep(0.005)
    raise AssertionError("no such packet came")


def ipv4_packet(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    total: int = sum(struct.unpack("!10H", header + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header[:10] + checksum.to_bytes(2, "big") + addresses + payload


def segment_size(packet: bytes) -> int:
    """The MSS option of a SYN, which comes first."""
    tcp = packet[20:] if packet[0] >> 4 == 4 else packet[40:]
    assert tcp[20:22] == b"\x02\x04"
    return int.from_bytes(tcp[22:24], "big")


# Made, seen, made again, undone


def test_device_addresses_and_routes_are_made_and_undone(machine: Machine) -> None:
    wanted = plan("office", SIMPLE, "tun0")
    machine.make(wanted.at_start)
    link = machine.here.ip("-d", "link", "show", "tun0")
    assert "tun type tun pi off vnet_hdr off persist on" in link
    assert "mtu 1500" in link
    assert ",UP" in link
    assert "group 197" in link
    address = machine.here.ip("address", "show", "tun0")
    assert "inet 10.9.0.1 peer 10.9.0.2/30 scope global tun0" in address
    assert "inet6 fd00:9::1 peer fd00:9::2/64 scope global" in address
    assert "tentative" not in address
    assert "192.168.2.0" not in machine.here.ip("route")

    machine.make(everything(wanted))
    assert "192.168.2.0/24 dev tun0 proto 197 scope link" in machine.here.ip("route")
    assert "fd00:2::/64 dev tun0 proto 197" in machine.here.ip("-6", "route")
    machine.make(wanted.at_start)
    assert "192.168.2.0" not in machine.here.ip("route")
    assert "fd00:2::/64" not in machine.here.ip("-6", "route")
    machine.make(())
    machine.assert_undone()


ATTACH = """
import fcntl, os, struct
descriptor = os.open("/dev/net/tun", os.O_RDWR)  # which udev lets everybody do
os.setuid(65534)
try:
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
except PermissionError:
    print("refused")
"""


def test_no_other_user_takes_a_device_that_waits_for_its_connection(machine: Machine) -> None:
    machine.make(plan("office", SIMPLE, "tun0").at_start)
    assert machine.here.run(sys.executable, "-c", ATTACH) == "refused\n"
    machine.make(())
    machine.assert_undone()


def test_making_again_does_nothing_and_what_somebody_removed_is_made_again(
    machine: Machine, resolv_conf: Path
) -> None:
    before = resolv_conf.read_bytes()
    machine.make(full())
    state = machine.states / "office.json"
    assert (state.stat().st_mode & 0o777, machine.states.stat().st_mode & 0o777) == (0o600, 0o700)
    written, made = state.stat().st_ino, machine.look()
    machine.make(full())
    assert lasting(machine.look()) == lasting(made)
    assert state.stat().st_ino == written
    for damage in (
        ("ip", "link", "del", "tun0"),
        ("nft", "flush", "ruleset"),
        ("ip", "route", "del", "128.0.0.0/1"),
        ("ip", "route", "del", SERVER, "table", "198"),
        ("ip", "rule", "del", "fwmark", "197"),
        ("ip", "address", "del", "fd00:9::1", "peer", "fd00:9::2/64", "dev", "tun0"),
        ("ip", "link", "set", "tun0", "mtu", "1300"),
        ("sysctl", "-q", "-w", "net.ipv4.ip_forward=0"),
    ):
        machine.here.run(*damage)
        machine.make(full())
        now = machine.look()
        # A new device has a new number, and its routes come in another order.
        assert sorted(lasting(now)) == sorted(lasting(made)), damage
    machine.make(())
    machine.assert_undone()
    assert resolv_conf.read_bytes() == before


def test_changes_are_made_while_somebody_else_removes_the_table(machine: Machine) -> None:
    guarded = network(addresses=["10.9.0.1/30"], routes=["192.168.2.0/24"])
    wanted = everything(plan("office", guarded, "tun0", to(SERVER), kill_switch=True))
    table = "table inet culvert-office"
    loop = f"while :; do nft add {table}; nft delete {table}; done"
    with subprocess.Popen(machine.here.command(["sh", "-c", loop])) as process:
        try:
            for _ in range(40):
                machine.make(wanted)
        finally:
            process.kill()
    machine.make(())
    machine.assert_undone()


def lasting(text: str) -> list[str]:
    """The lines without what differs each time: indexes, link addresses, counters."""
    changing = ("link/", "packets ", "fe80::", "/tun0/accept_ra")
    lines = [line for line in text.splitlines() if not any(word in line for word in changing)]
    return [line.lstrip("0123456789") for line in lines]


def test_a_device_that_is_somebody_elses_is_used_and_kept(machine: Machine) -> None:
    here = machine.here
    here.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    here.ip("link", "set", "tun0", "mtu", "1380", "up")
    here.ip("link", "set", "tun0", "down")  # the queue that came with 'up' stays for ever
    here.ip("address", "add", "10.9.0.1", "peer", "10.9.0.2/30", "dev", "tun0")
    here.ip("address", "add", "fd00:77::1/64", "dev", "tun0")  # which goes with 'down'
    machine.before = machine.look()
    machine.make(full())
    assert "mtu 1400" in here.ip("link", "show", "tun0")
    machine.make(())
    machine.assert_undone()


def test_a_route_that_was_there_already_stays(machine: Machine) -> None:
    here = machine.here
    here.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    here.ip("link", "set", "tun0", "up")
    add_address(here, "tun0", "10.99.0.1/32")  # routes go with the last address of a device
    here.ip("route", "add", "192.168.2.0/24", "dev", "tun0")
    machine.before = machine.look()
    wanted = network(addresses=["10.9.0.1/30"], routes=["192.168.2.0/24"])
    machine.make(everything(plan("office", wanted, "tun0")))
    machine.make(())
    machine.assert_undone()


def test_the_first_free_device_is_found(machine: Machine) -> None:
    here = machine.here
    for name in ("tun0", "tun2", "tap1"):
        here.ip("tuntap", "add", "dev", name, "mode", name[:3])
    assert here.inside(lambda: free_device("point-to-point")) == "tun1"
    assert here.inside(lambda: free_device("ethernet")) == "tap0"


def test_a_bridge_is_made_with_the_tap_as_its_port(machine: Machine) -> None:
    wanted = everything(plan("office", BRIDGED, "tap0"))
    machine.make(wanted)
    here = machine.here
    assert "master br7" in here.ip("link", "show", "tap0")
    assert "inet 10.9.0.1 peer 10.9.0.2/24" in here.ip("address", "show", "br7")
    assert "192.168.2.0/24 via 10.9.0.2 dev br7 proto 197" in here.ip("route")
    machine.make(wanted)
    machine.make(())
    machine.assert_undone()


@pytest.mark.parametrize("port", [True, False])
def test_a_bridge_that_is_somebody_elses_keeps_its_address(machine: Machine, port: bool) -> None:
    here = machine.here
    here.ip("link", "add", "br7", "type", "bridge")
    if port:
        # A bridge takes the lowest of its ports' addresses; a random one may begin with fe, too.
        here.ip("link", "set", "lan", "address", "02:00:00:00:00:07", "master", "br7")
    here.ip("link", "set", "br7", "up")
    add_address(here, "br7", "10.9.0.1/24")
    # Its own IPv6 address comes and goes with its carrier, which follows in its own time.
    here.run("sysctl", "-q", "-w", "net.ipv6.conf.br7.addr_gen_mode=1")
    here.ip("-6", "address", "flush", "dev", "br7")
    address = here.ip("-o", "link", "show", "br7").partition("link/ether ")[2][:17]
    time.sleep(0.2)

    def state() -> tuple[str, ...]:
        # Without the flags: a bridge has a carrier until its first port is gone.
        bridge = here.ip("address", "show", "br7").partition("link/ether")[2]
        return bridge, here.ip("route").replace(" linkdown", ""), here.ip("link", "show", "lan")

    before = state()
    machine.make(everything(plan("office", BRIDGED, "tap0")))
    if port:
        assert address in here.ip("link", "show", "br7")
    machine.make(())
    assert state() == before


# The SSH server stays on its way


def way_to(where: Namespace, address: str, *words: str) -> str:
    return " ".join(where.ip("route", "get", address, *words).split()[:5])


def pins(machine: Machine) -> list[str]:
    routes = "".join(
        machine.here.ip(*words, "route", "show", "table", "all") for words in ((), ("-6",))
    )
    return [
        " ".join(line.replace(" table 198", "").split())
        for line in dict.fromkeys(routes.splitlines())
        if "proto 198" in line
    ]


def marked_ping(where: Namespace, address: str) -> bool:
    return where.ping(address, "-m", str(MARK))


def connects(where: Namespace, address: str, mark: int = MARK, port: int = PORT) -> bool:
    """Whether a TCP connection of this mark is answered, if only by a refusal."""

    def connect() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.settimeout(1)
            try:
                sock.connect((address, port))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return True

    return where.inside(connect)


def test_a_full_tunnel_leaves_the_default_route_and_the_way_to_the_server(
    machine: Machine,
) -> None:
    machine.make(full())
    here = machine.here
    routes = here.ip("route") + here.ip("-6", "route")
    for line in (
        "default via 192.0.2.254 dev outer",
        "default via 2001:db8::fe dev outer",
        "0.0.0.0/1 dev tun0 proto 197",
        "128.0.0.0/1 dev tun0 proto 197",
        "::/1 dev tun0 proto 197",
        "8000::/1 dev tun0 proto 197",
    ):
        assert line in routes
    for line in (
        f"{SERVER} via 192.0.2.254 dev outer proto 198",
        f"{SERVER6} via 2001:db8::fe dev outer proto 198 metric 1024 pref medium",
    ):
        assert line in pins(machine)
    for target in ("198.51.100.1", SERVER, SERVER6):
        assert "dev tun0" in way_to(here, target)
        assert not here.ping(target, seconds=0.5)
    marked = way_to(here, SERVER, "mark", str(MARK))
    assert marked == f"{SERVER} via 192.0.2.254 dev outer"
    assert connects(here, SERVER)
    assert connects(here, SERVER6)
    assert not connects(here, SERVER, mark=0)
    assert not connects(here, SERVER, port=PORT + 1)
    assert not marked_ping(here, SERVER)  # no TCP
    machine.make(())
    machine.assert_undone()


def test_the_pin_follows_a_new_default_gateway(machine: Machine) -> None:
    machine.make(full())
    here = machine.here
    for default in (["192.0.2.77", "dev", "outer"], ["10.1.0.10", "dev", "lan"]):
        here.ip("route", "replace", "default", "via", *default)
        machine.make(full())
        assert pins(machine)[0].startswith(f"{SERVER} via {' '.join(default)}")
    # For a while there is no way at all; then one with a longer prefix, which needs no pin.
    here.ip("route", "del", "default")
    machine.make(full())
    here.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.254")
    machine.make(full())
    assert [pin.split()[0] for pin in pins(machine)] == [SERVER6]
    here.ip("route", "del", "203.0.113.0/24")
    here.ip("route", "add", "default", "via", "192.0.2.254")
    machine.make(full())
    assert len(pins(machine)) == 2
    machine.make(())
    machine.assert_undone()


def test_the_pin_follows_several_ways_at_once_and_one_over_another_family(
    machine: Machine,
) -> None:
    here = machine.here
    for default in (
        ["nexthop", "via", "192.0.2.9", "nexthop", "via", "10.1.0.10"],
        ["via", "inet6", "2001:db8::fe", "dev", "outer"],
        ["via", "172.30.0.1", "dev", "outer", "onlink"],
        ["dev", "outer", "src", "10.1.0.1"],
    ):
        here.ip("-4", "route", "replace", "default", *default)
        machine.before = machine.look()
        machine.make(full())
        expected = {"nexthop": "via 192.0.2.9 dev outer"}.get(default[0], " ".join(default))
        got = pins(machine)[0].replace("proto 198 ", "").replace("scope link ", "")
        assert got.rstrip().startswith(f"{SERVER} {expected.split(' onlink')[0].split(' src')[0]}")
        assert ("onlink" in got, "src 10.1.0.1" in got) == (
            "onlink" in default, "src" in default,
        )  # fmt: skip
        machine.make(full())
        machine.make(())
        machine.assert_undone()


def test_a_server_on_the_same_network_needs_no_pin_unless_a_route_is_narrower(
    machine: Machine,
) -> None:
    server = to("192.0.2.254")
    machine.make(everything(plan("office", EVERYTHING, "tun0", server)))
    assert pins(machine) == []
    assert machine.here.ping("192.0.2.254", seconds=0.5)
    narrow = network(routes=["192.0.2.128/25"])
    machine.make(everything(plan("office", narrow, "tun0", server)))
    assert pins(machine) == ["192.0.2.254 dev outer proto 198 scope link src 192.0.2.1"]
    assert marked_ping(machine.here, "192.0.2.254")
    machine.make(())
    machine.assert_undone()


# Rules


def test_the_kill_switch_lets_nothing_out_by_another_device(machine: Machine) -> None:
    here, lan = machine.here, machine.lan
    machine.here.forward()
    machine.before = machine.look()
    guarded = network(
        addresses=["10.9.0.1/30"], routes=["192.168.2.0/24", "192.168.2.128/25", "fd00:2::/64"]
    )
    targets = {"192.168.2.7", "192.168.2.130", "fd00:2::7"}

    def leaked(wanted: Sequence[Change]) -> set[str]:
        with listener(machine.outside, "outer") as outer:
            machine.make(wanted)
            for source in (here, lan):
                for target in (*targets, "198.51.100.7"):
                    source.ping(target, seconds=0.05)
            return {target_of(packet) for packet in seen(outer, lambda p: p[0] >> 4 in (4, 6))}

    unguarded = plan("office", guarded, "tun0")
    assert targets <= leaked(unguarded.at_start)
    wanted = plan("office", guarded, "tun0", to(SERVER), kill_switch=True)
    for stage in (wanted.at_start, everything(wanted), wanted.at_start):
        assert leaked(stage) & (targets | {"198.51.100.7"}) == {"198.51.100.7"}
    counted = here.run("nft", "list", "counter", "inet", "culvert-office", "blocked")
    assert int(counted.partition("packets ")[2].split()[0]) >= 12
    with reader(here) as descriptor:
        machine.make(everything(wanted))
        here.ping("192.168.2.7", seconds=0.05)
        packet_from(descriptor, lambda packet: target_of(packet) == "192.168.2.7")
    machine.make(())
    machine.assert_undone()


def test_the_kill_switch_of_a_full_tunnel_leaves_the_server_and_what_came_through(
    machine: Machine,
) -> None:
    here = machine.here
    wanted = plan("office", EVERYTHING, "tun0", to(SERVER, SERVER6), kill_switch=True)
    machine.make(wanted.at_start)
    assert connects(here, SERVER)
    assert connects(here, SERVER6)  # for which the neighbour is asked anew
    assert not here.ping(SERVER, seconds=0.5)
    assert not here.ping(SERVER6, seconds=0.5)
    assert here.ping("127.0.0.1", seconds=0.5)
    assert not here.ping("192.0.2.254", seconds=0.5)
    assert not here.ping("2001:db8::fe", seconds=0.5)
    with reader(here) as descriptor, listener(machine.lan, "lan") as lan:
        udp = struct.pack("!HHHH", 7, 7, 8, 0)
        packet = ipv4_packet("192.168.2.7", "10.1.0.10", 17, udp)
        os.write(descriptor, bytes(VIRTIO) + packet)
        assert wait_until(lambda: bool(seen(lan, lambda p: target_of(p) == "10.1.0.10")), 3)
    machine.make(())
    machine.assert_undone()


def test_the_kill_switch_changes_its_exceptions_without_opening(machine: Machine) -> None:
    here = machine.here
    first, second = (
        plan("office", EVERYTHING, "tun0", to(server), kill_switch=True).at_start
        for server in (SERVER, "203.0.113.6")
    )
    machine.make(first)
    table = here.run("nft", "-a", "list", "table", "inet", "culvert-office")
    events: list[str] = []
    monitor = here.popen(["nft", "monitor", "tables"], stdout=-1, stderr=-2)
    assert monitor.stdout is not None
    try:
        time.sleep(0.2)
        machine.make(second)
        here.run("nft", "add", "table", "inet", "end")
        while not events or "end" not in events[-1]:
            events.append(monitor.stdout.readline().decode())
    finally:
        monitor.kill()
        monitor.wait()
        monitor.stdout.close()
    assert "203.0.113.6" in here.run("nft", "list", "table", "inet", "culvert-office")
    assert SERVER in table
    deleted = [n for n, event in enumerate(events) if "delete table inet culvert-office" in event]
    added = [n for n, event in enumerate(events) if "add table inet culvert-office" in event]
    generation = [n for n, event in enumerate(events) if event.startswith("# new generation")]
    assert deleted
    assert added
    assert not [n for n in generation if deleted[0] < n < added[-1]]  # one transaction


@pytest.mark.parametrize("masquerade", ["no", "from-tunnel", "into-tunnel", "both"])
def test_masquerade_gives_packets_the_machines_address(machine: Machine, masquerade: str) -> None:
    wanted = network(
        addresses=["10.9.0.1/30"],
        routes=["192.168.2.0/24"],
        forward=["10.1.0.0/24"],
        masquerade=masquerade,
    )
    machine.make(everything(plan("office", wanted, "tun0")))
    with reader(machine.here) as descriptor, listener(machine.lan, "lan") as lan:
        machine.lan.ping("192.168.2.7", seconds=0.05)
        out = packet_from(descriptor, lambda packet: target_of(packet) == "192.168.2.7")
        udp = struct.pack("!HHHH", 7, 7, 8, 0)
        packet = ipv4_packet("192.168.2.8", "10.1.0.10", 17, udp)
        os.write(descriptor, bytes(VIRTIO) + packet)
        into = lambda p: p[0] == 0x45 and p[9] == 17 and target_of(p) == "10.1.0.10"  # noqa: E731
        got: list[bytes] = []

        def came() -> bool:
            got.extend(seen(lan, into))
            return bool(got)

        assert wait_until(came, 3)
    assert source_of(out) == ("10.9.0.1" if masquerade in ("into-tunnel", "both") else "10.1.0.10")
    assert source_of(got[0]) == (
        "10.1.0.1" if masquerade in ("from-tunnel", "both") else "192.168.2.8"
    )
    machine.make(())
    machine.assert_undone()


def test_the_segments_of_tcp_are_clamped_both_ways(machine: Machine) -> None:
    wanted = network(
        addresses=["10.9.0.1/30", "fd00:9::1/64"],
        routes=["192.168.2.0/24", "fd00:2::/64"],
        forward=["10.1.0.0/24", "fd00:1::/64"],
        mtu=1400,
    )
    machine.make(everything(plan("office", wanted, "tun0")))

    def knock(address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.setblocking(False)
            sock.connect_ex((address, 80))

    with reader(machine.here) as descriptor, listener(machine.lan, "lan") as lan:
        for address, size in (("192.168.2.7", 1360), ("fd00:2::7", 1340)):
            machine.lan.inside(lambda address=address: knock(address))  # type: ignore[misc]
            syn = packet_from(descriptor, lambda p, a=address: target_of(p) == a)  # type: ignore[misc]
            assert segment_size(syn) == size
        tcp = struct.pack("!HHIIBBHHH", 7, 80, 1, 0, 0x60, 0x02, 1000, 0, 0) + b"\x02\x04\x05\xb4"
        packet = ipv4_packet("192.168.2.8", "10.1.0.10", 6, tcp)
        os.write(descriptor, bytes(VIRTIO) + packet)
        got: list[bytes] = []
        into = lambda p: p[0] == 0x45 and p[9] == 6 and p[33] == 2  # noqa: E731

        def came() -> bool:
            got.extend(seen(lan, into))
            return bool(got)

        assert wait_until(came, 3)
        assert segment_size(got[-1]) == 1360
    machine.make(())
    machine.assert_undone()


@pytest.mark.parametrize("any_source", [False, True])
def test_a_peer_may_use_only_its_own_addresses(machine: Machine, any_source: bool) -> None:
    machine.here.forward()
    machine.before = machine.look()
    wanted = network(
        addresses=["10.9.0.1/30", "fd00:9::1/64"], peer=["10.9.0.2"], routes=["192.168.2.0/24"],
        any_source=any_source,
    )  # fmt: skip
    machine.make(everything(plan("office", wanted, "tun0")))
    machine.here.ip("route", "add", "172.16.0.0/12", "dev", "tun0")  # as somebody might
    udp = struct.pack("!HHHH", 7, 7, 8, 0)
    sources = {"10.9.0.2", "192.168.2.7", "10.9.0.1", "198.51.100.7", "10.1.0.10", "192.168.3.7"}
    with reader(machine.here) as descriptor, listener(machine.lan, "lan") as lan:
        for source in sources:
            packet = ipv4_packet(source, "10.1.0.10", 17, udp)
            os.write(descriptor, bytes(VIRTIO) + packet)
        got: set[str] = set()
        ours = lambda p: p[0] == 0x45 and p[9] == 17  # noqa: E731

        def came() -> bool:
            got.update(map(source_of, seen(lan, ours)))
            return len(got) > 2

        wait_until(came, 1)
        assert {"10.9.0.2", "192.168.2.7"} <= got
        # Our own addresses the kernel refuses by itself.
        assert ("198.51.100.7" in got, "192.168.3.7" in got) == (any_source, any_source)
        for target in ("172.16.0.1", "192.168.2.7"):
            machine.lan.ping(target, seconds=0.05)
        first = packet_from(descriptor, lambda p: p[0] == 0x45 and p[9] == 1 and p[20] == 8)
        assert target_of(first) == ("172.16.0.1" if any_source else "192.168.2.7")
    machine.make(())
    machine.assert_undone()


# Forwarding


def test_forwarding_puts_every_setting_back_that_the_kernel_changes_with_it(
    machine: Machine,
) -> None:
    here = machine.here
    for name in (
        "net.ipv4.conf.all.accept_redirects=0",  # which the kernel sets when forwarding ends
        "net.ipv4.conf.lan.forwarding=1",
        "net.ipv6.conf.lan.forwarding=1",
    ):
        here.run("sysctl", "-q", "-w", name)
    # A default route that was learned from a router, which a router must not have.
    here.ip("-6", "route", "add", "default", "via", "2001:db8::aa", "proto", "ra", "metric", "99")
    machine.before = machine.look()
    machine.make(everything(plan("office", EVERYTHING, "tun0")))
    assert here.run("sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
    assert here.run("sysctl", "-n", "net.ipv6.conf.all.forwarding") == "1\n"
    assert here.run("sysctl", "-n", "net.ipv6.conf.outer.accept_ra") == "2\n"
    machine.make(())
    machine.assert_undone()


def test_only_what_has_to_do_with_a_tunnel_is_passed_on(machine: Machine) -> None:
    """Forwarding is one switch for all devices, and the machine was no router before."""

    def passed(packet: bytes) -> bool:
        return target_of(packet) == SERVER

    def leaks() -> bool:
        with listener(machine.outside, "outer") as outer:
            machine.lan.ping(SERVER, seconds=0.1)
            return bool(seen(outer, passed))

    for number, owner in enumerate(("office", "home")):
        wanted = network(
            addresses=[f"10.9.{number}.1/30"], routes=[f"192.168.{number}.0/24"],
            forward=["10.1.0.0/24"],
        )  # fmt: skip
        machine.make(everything(plan(owner, wanted, f"tun{number}")), owner)
    assert not leaks()
    for unit in (0, 1):
        with reader(machine.here, unit) as descriptor, listener(machine.lan, "lan") as lan:
            machine.lan.ping(f"192.168.{unit}.7", seconds=0.05)
            packet_from(descriptor, lambda p, u=unit: target_of(p) == f"192.168.{u}.7")  # type: ignore[misc]
            packet = ipv4_packet(
                f"192.168.{unit}.8", "10.1.0.10", 17, struct.pack("!HHHH", 7, 7, 8, 0)
            )
            os.write(descriptor, bytes(VIRTIO) + packet)
            assert wait_until(lambda: bool(seen(lan, lambda p: p[9] == 17)), 3)
    machine.make((), "office")
    assert not leaks()
    machine.make((), "home")
    machine.assert_undone()
    machine.here.forward()  # who was a router before stays one
    machine.before = machine.look()
    machine.make(everything(plan("office", wanted, "tun0")))
    assert not [table for table in tables_of(machine) if "forward" in table]
    assert leaks()
    machine.make(())
    machine.assert_undone()


def test_a_tunnel_that_does_not_forward_is_no_way_into_one_that_does(machine: Machine) -> None:
    for unit, forward in ((0, ["10.1.0.0/24", "10.9.1.0/30"]), (1, [])):
        wanted = network(
            addresses=[f"10.9.{unit}.1/30"], peer=[f"10.9.{unit}.2"],
            routes=[f"192.168.{unit}.0/24"], forward=forward,
        )  # fmt: skip
        machine.make(everything(plan(f"link{unit}", wanted, f"tun{unit}")), f"link{unit}")
    udp = struct.pack("!HHHH", 7, 7, 8, 0)
    with reader(machine.here, 0) as first, reader(machine.here, 1) as second:
        for source, target, descriptor in (
            ("10.9.1.2", "192.168.0.7", second),
            ("10.9.0.2", "192.168.1.7", first),
        ):
            os.write(descriptor, bytes(VIRTIO) + ipv4_packet(source, target, 17, udp))
        machine.lan.ping("192.168.0.8", seconds=0.1)
        # In order: had the first packet been passed on, it would come out before.
        out = packet_from(first, lambda packet: packet[0] == 0x45)
        assert target_of(out) == "192.168.0.8"
        machine.here.ping("192.168.1.8", seconds=0.1)
        assert target_of(packet_from(second, lambda packet: packet[0] == 0x45)) == "192.168.1.8"
    for owner in ("link1", "link0"):
        machine.make((), owner)
    machine.assert_undone()


@pytest.mark.parametrize("router", [False, True], ids=["no router before", "a router"])
@pytest.mark.parametrize("masquerade", ["no", "from-tunnel", "into-tunnel", "both"])
def test_nobody_on_the_outer_network_gets_into_a_tunnel(
    machine: Machine, masquerade: str, router: bool
) -> None:
    """Whoever routes packets to the machine, whatever address they have."""
    if router:
        machine.here.forward()
        machine.before = machine.look()
    wanted = network(
        addresses=["10.9.0.1/30", "fd00:9::1/64"],
        peer=["10.9.0.2", "fd00:9::2"],
        routes=["192.168.2.0/24", "fd00:2::/64"],
        forward=["10.1.0.0/24", "fd00:1::/64"],
        masquerade=masquerade,
    )
    machine.make(everything(plan("office", wanted, "tun0")))
    outside, lan = machine.outside, machine.lan
    targets = {"10.9.0.2", "192.168.2.7", "fd00:9::2", "fd00:2::7"}
    for target in targets:
        outside.ip("route", "add", target, "via", "2001:db8::1" if ":" in target else "192.0.2.1")
    own = {4: ("192.0.2.254", SERVER), 6: ("2001:db8::fe", SERVER6)}
    posed = {4: ("10.1.0.10", "192.168.2.8"), 6: ("fd00:1::10", "fd00:2::8")}
    for source in (*posed[4], *posed[6]):
        add_address(outside, "lo", f"{source}/{128 if ':' in source else 32}")
    with reader(machine.here) as descriptor, listener(outside, "outer") as outer:
        for target in targets:
            version = ip_address(target).version
            for source in (*own[version], *posed[version]):
                outside.inside(lambda to=target, source=source: send(source, to))  # type: ignore[misc]
        for version, target in ((4, "192.168.2.9"), (6, "fd00:2::9")):
            lan.ping(target, seconds=0.1)
            # In order: whatever had come from outside would come out before.
            first = packet_from(descriptor, lambda p, v=version: p[0] >> 4 == v and not local(p))  # type: ignore[misc]
            assert target_of(first) == target
        # Nor does the other end reach what is not behind this one.
        udp = struct.pack("!HHHH", 7, 7, 8, 0)
        for target in (SERVER, "10.1.0.10"):
            os.write(descriptor, bytes(VIRTIO) + ipv4_packet("192.168.2.7", target, 17, udp))
        with listener(lan, "lan") as inner:
            os.write(descriptor, bytes(VIRTIO) + ipv4_packet("192.168.2.7", "10.1.0.10", 17, udp))
            assert wait_until(lambda: bool(seen(inner, lambda p: p[0] == 0x45 and p[9] == 17)), 3)
        assert not seen(outer, lambda p: p[0] == 0x45 and p[9] == 17 and target_of(p) == SERVER)
    machine.make(())
    machine.assert_undone()


def send(source: str, target: str) -> None:
    """A packet of UDP."""
    with socket.socket(
        socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.bind((source, 7))
        sock.sendto(b"let me in", (target, 7))


def local(packet: bytes) -> bool:
    """Whether it is what a machine itself says on a device: multicast of IPv6."""
    return packet[0] >> 4 == 6 and target_of(packet).startswith("ff02:")


def test_what_a_tunnel_asks_the_internet_is_answered_and_nothing_else_comes_from_there(
    machine: Machine,
) -> None:
    wanted = network(
        addresses=["10.9.0.1/30"], peer=["10.9.0.2"], forward=["0.0.0.0/0"],
        masquerade="from-tunnel",
    )  # fmt: skip
    machine.make(everything(plan("office", wanted, "tun0")))
    machine.outside.ip("route", "add", "10.9.0.2", "via", "192.0.2.1")
    echo = struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0)
    with reader(machine.here) as descriptor:
        machine.outside.inside(lambda: send(SERVER, "10.9.0.2"))
        os.write(descriptor, bytes(VIRTIO) + ipv4_packet("10.9.0.2", SERVER, 1, echo))
        answer = packet_from(descriptor, lambda packet: packet[0] == 0x45)
        assert (source_of(answer), answer[9]) == (SERVER, 1)
    machine.make(())
    machine.assert_undone()


def tables_of(machine: Machine) -> list[str]:
    return machine.here.run("nft", "list", "tables").splitlines()


def test_a_table_that_lost_a_rule_is_not_taken_for_whole(machine: Machine) -> None:
    changes = full()
    machine.make(changes)
    programs = Programs()
    mine = tables(changes)
    assert {type(table) for table in mine} == {Rules, PassedOn}
    inside = machine.here.inside
    assert all(inside(lambda each=each: holds(each, programs)) for each in mine)  # type: ignore[misc]
    for table in mine:
        name = table.table
        for words in (
            ("flush", "table", "inet", name),
            ("delete", "table", "inet", name),
            ("add", "rule", "inet", name, "passed_on", "accept"),
        ):
            machine.here.run("nft", *words)
            assert not inside(lambda table=table: holds(table, programs))  # type: ignore[misc]
            machine.make(changes)
            assert inside(lambda table=table: holds(table, programs))  # type: ignore[misc]
    machine.make(())
    machine.assert_undone()


# Two links


def test_two_links_to_one_server_share_the_pin_and_forwarding(
    machine: Machine, resolv_conf: Path
) -> None:
    before = resolv_conf.read_bytes()
    first = full()
    other = network(
        addresses=["10.9.1.1/30"],
        routes=["203.0.0.0/8", "192.168.3.0/24"],
        forward=["10.1.0.0/24"],
        dns=["10.9.1.2"],
    )
    second = everything(plan("home", other, "tun1", to(SERVER), kill_switch=True))

    def state() -> tuple[list[str], str, list[str]]:
        names = [line for line in resolv_conf.read_text().splitlines() if "nameserver" in line]
        return pins(machine), here.run("sysctl", "-n", "net.ipv4.ip_forward"), names

    here = machine.here
    for one, two in ((("office", first), ("home", second)), (("home", second), ("office", first))):
        machine.make(one[1], one[0])
        alone = machine.look()
        machine.make(two[1], two[0])
        machine.make(one[1], one[0])
        machine.make(two[1], two[0])
        assert [pin for pin in pins(machine) if pin.startswith(f"{SERVER} ")] == [
            f"{SERVER} via 192.0.2.254 dev outer proto 198"
        ]
        assert len(state()[2]) == 3
        machine.make((), one[0])
        assert f"{SERVER} via 192.0.2.254 dev outer proto 198" in pins(machine)
        assert state()[1] == "1\n"
        assert len(state()[2]) == 2
        assert connects(here, SERVER)
        machine.make(one[1], one[0])
        machine.make((), two[0])
        assert sorted(lasting(machine.look())) == sorted(lasting(alone))
        machine.make((), one[0])
        machine.assert_undone()
        assert resolv_conf.read_bytes() == before


def test_two_links_share_a_bridge(machine: Machine) -> None:
    machine.make(plan("office", BRIDGED, "tap0").at_start, "office")
    machine.make(plan("home", BRIDGED, "tap1").at_start, "home")
    machine.make((), "office")
    assert "inet 10.9.0.1 " in machine.here.ip("address", "show", "br7")
    assert "state" in machine.here.ip("link", "show", "tap1")
    machine.make((), "home")
    machine.assert_undone()


def test_the_same_network_behind_two_links_is_a_conflict(machine: Machine) -> None:
    machine.make(everything(plan("office", SIMPLE, "tun0")))
    made = machine.look()
    other = network(routes=["192.168.2.0/24"])
    with pytest.raises(NetworkError) as caught:
        machine.make(everything(plan("home", other, "tun1")), "home")
    assert str(caught.value) == (
        "ip route add 192.168.2.0/24 dev tun1: "
        "another route to 192.168.2.0/24 exists: dev tun0"
    )  # fmt: skip
    machine.make((), "home")
    assert machine.look() == made
    machine.make(())
    machine.assert_undone()


# Mistakes, crashes and reboots


def test_a_failure_half_way_says_what_and_keeps_what_was_made(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = network(mode="ethernet", addresses=["10.9.0.1/24"], peer=["10.8.0.2"], routes=["192.168.2.0/24"])  # fmt: skip  # noqa: E501
    wrong_plan = plan("office", wrong, "tap0")
    changes = tuple(
        change for change in everything(wrong_plan) if type(change).__name__ != "Address"
    )
    with pytest.raises(NetworkError) as caught:
        machine.make(changes)
    assert str(caught.value) == (
        "ip route add 192.168.2.0/24 via 10.8.0.2 dev tap0: "
        "Network is unreachable: the gateway is in no network of the machine"
    )
    assert "tap0" in machine.here.devices()
    machine.make(())
    machine.assert_undone()
    monkeypatch.setattr("appliance.services.tunnel.programs._SYSTEM", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NetworkError, match="the program nft is missing: install the package"):
        machine.make(full())
    monkeypatch.undo()
    machine.make(())
    machine.assert_undone()


def test_without_root_one_line_says_so(machine: Machine) -> None:
    def unprivileged() -> str:
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                path = Path(f"/tmp/culvert-test-{os.getpid()}/a.json")
                with contextlib.suppress(NetworkError):
                    try:
                        reconcile(path, plan("office", SIMPLE, "tun0").at_start)
                    except NetworkError as error:
                        os.write(writing, str(error).encode())
                    reconcile(path, ())
                path.parent.rmdir()
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return text

    text = machine.here.inside(unprivileged)
    assert text.startswith("nft -f - (table inet culvert-office): ")
    assert "Operation not permitted" in text
    machine.assert_undone()


def killed(machine: Machine, wanted: Sequence[Change], moment: int) -> int:
    """Reconcile in a process that is killed at line `moment` of ours; return how many it ran."""
    ours = str(Path(kernel.__file__).parent)
    reading, writing = os.pipe()

    def work() -> None:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        lines = 0

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.startswith(ours):
                return None
            if event == "line":
                lines += 1
                if lines == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            reconcile(machine.states / "office.json", wanted)
            sys.settrace(None)
            os.write(writing, str(lines).encode())
        finally:
            os._exit(0)

    try:
        machine.here.inside(work)
        os.close(writing)
        writing = -1
        return int(os.read(reading, 100) or b"0")
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


MOMENTS = 16  # of how many lines that a run has


def test_undo_survives_being_killed_at_any_moment(machine: Machine, resolv_conf: Path) -> None:
    before = resolv_conf.read_bytes()
    total = killed(machine, full(), -1)
    machine.make(())
    assert total > 500
    for moment in range(1, total, total // MOMENTS):
        assert killed(machine, full(), moment) == 0
        machine.make(())
        machine.assert_undone()
        assert resolv_conf.read_bytes() == before

    machine.make(full())
    total = killed(machine, (), -1)
    for moment in range(1, total, total // MOMENTS):
        machine.make(full())
        assert killed(machine, (), moment) == 0
        machine.make(())
        machine.assert_undone()
        assert list(resolv_conf.parent.iterdir()) == [resolv_conf]
        assert resolv_conf.read_bytes() == before


def test_a_program_that_outlives_its_killed_parent_is_waited_for(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = folder / "bin" / "nft"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch {folder}/begun; sleep 0.3; exec /usr/sbin/nft "$@"\n')
    program.chmod(0o755)

    def work() -> None:
        if (pid := os.fork()) == 0:
            try:
                monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
                monkeypatch.setattr(kinds._Tables, "find", lambda *_: kinds.Found.MISSING)
                reconcile(machine.states / "office.json", full())
            finally:
                os._exit(0)
        assert wait_until((folder / "begun").exists)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    machine.here.inside(work)
    machine.make(())
    machine.assert_undone()
    time.sleep(0.4)
    machine.assert_undone()


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("made", [False, True], ids=["before it is made", "after it is made"])
def test_undo_survives_being_killed_around_every_change(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, resolv_conf: Path, made: bool
) -> None:
    before = resolv_conf.read_bytes()
    changes = full()
    make = kernel._Reconciliation._make
    save = kernel._Reconciliation._save

    def die(*_: object) -> None:
        raise Killed

    def saves_and_dies(self: Any) -> None:
        save(self)
        raise Killed

    for last in changes:

        def step(self: Any, change: Change, last: Change = last) -> None:
            if change == last and not made:
                monkeypatch.setattr(kernel._Reconciliation, "_save", saves_and_dies)
            make(self, change)
            if change == last:
                raise Killed

        monkeypatch.setattr(kernel._Reconciliation, "_make", step)
        with pytest.raises(Killed):
            machine.make(changes)
        monkeypatch.setattr(kernel._Reconciliation, "_save", save)
        monkeypatch.setattr(kernel._Reconciliation, "_make", make)
        machine.make(())
        machine.assert_undone()
        assert resolv_conf.read_bytes() == before


def test_after_a_reboot_only_the_name_servers_are_put_back(
    machine: Machine, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    before = resolv_conf.read_bytes()
    machine.make(full())
    made = machine.look()
    boot = folder / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(record, "_BOOT_ID", boot)
    machine.make(())
    assert resolv_conf.read_bytes() == before
    assert not list(machine.states.iterdir())
    assert lasting(machine.look()) == lasting(
        made
    )  # as if it were somebody else's, or the next one's to find
    machine.make(full())  # by whose marks it is known
    machine.make(())
    after = machine.look()
    assert "tun0" not in after
    assert "culvert" not in after
    assert pins(machine) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"boot": 1, "changes": []}', "\xff"])
def test_a_damaged_record_is_moved_aside(
    machine: Machine, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = everything(plan("office", SIMPLE, "tun0"))
    machine.make(wanted)
    state = machine.states / "office.json"
    state.write_text(damage)
    machine.make(wanted)
    assert "is damaged" in caplog.text
    assert (machine.states / "office.damaged").read_text() == damage
    (machine.states / "office.damaged").unlink()
    machine.make(())  # the marks say what is ours, and the addresses go with the device
    machine.assert_undone()


def test_what_cannot_be_undone_is_reported_and_does_not_keep_the_rest(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make(full())
    state = machine.states / "office.json"

    def fails(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as context:
        context.setattr(kinds._Routes, "undo", fails)
        with pytest.raises(NetworkError) as caught:
            machine.make(())
    assert str(caught.value).count("not undone: ip route add") == 5
    assert "tun0" not in machine.here.devices()
    assert state.exists()
    machine.make(())
    machine.assert_undone()


# In a process of its own


def test_apart_the_caller_never_loads_what_is_heavy(machine: Machine) -> None:
    script = f"""
import sys
from pathlib import Path
from appliance.services.tunnel.kernel import reconcile_apart
from appliance.services.tunnel.network import Device, NetworkError, Up
path = Path({str(machine.states / "office.json")!r})
reconcile_apart(path, [Device("tun0", "point-to-point"), Up("tun0")])
try:
    reconcile_apart(path, [Device("tun0", "point-to-point"), Up("tun1")])
except NetworkError as error:
    print(error)
assert not [name for name in sys.modules if name.startswith(("pyroute2", "asyncio"))]
"""
    said = machine.here.run(sys.executable, "-c", script)
    assert said == "ip link set dev tun1 up: No such device: there is no such device\n"
    assert "tun0" in machine.here.devices()
    machine.make(())
    machine.assert_undone()


def test_apart_works_within_a_running_event_loop(machine: Machine) -> None:
    state = machine.states / "office.json"

    async def work() -> None:
        reconcile_apart(state, full())
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)

    machine.here.inside(lambda: asyncio.run(work()))
    assert "tun0" in machine.here.devices()
    machine.here.inside(lambda: reconcile_apart(state, ()))
    machine.assert_undone()


def test_apart_a_child_that_dies_is_an_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(kernel, "reconcile", dies)
    with pytest.raises(NetworkError, match="was killed"):
        reconcile_apart(machine.states / "office.json", ())


# Name servers


def servers_only(servers: Sequence[str], domains: Sequence[str] = ()) -> Sequence[Change]:
    wanted = network(dns=servers, domains=tuple(domains), any_source=True)
    return plan("office", wanted, "tun0").while_up


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "nothing"])
def test_resolv_conf_is_put_back_as_it_was(
    machine: Machine, resolv_conf: Path, folder: Path, kind: str
) -> None:
    target = folder / "run" / "resolv.conf"
    target.parent.mkdir()
    content = b"nameserver 192.0.2.53\n# caf\xe9\r\ndomain home.example"
    if kind == "file":
        resolv_conf.write_bytes(content)
        resolv_conf.chmod(0o640)
    else:
        resolv_conf.unlink()
        if kind == "link":
            target.write_bytes(content)
        if kind != "nothing":
            resolv_conf.symlink_to("../run/resolv.conf")

    def state() -> object:
        link = os.readlink(resolv_conf) if resolv_conf.is_symlink() else ""
        there = resolv_conf.exists()
        return link, there and (resolv_conf.read_bytes(), oct(resolv_conf.stat().st_mode))

    before = state()
    machine.make(servers_only(["10.9.0.2", "fd00:9::2"]))
    lines = resolv_conf.read_bytes().split(b"\n")
    rest = [b"nameserver 192.0.2.53", b"# caf\xe9", b"domain home.example"]
    assert [line.rstrip(b"\r") for line in lines[1:]] == [
        b"nameserver 10.9.0.2", b"nameserver fd00:9::2",
        *(rest if kind in ("file", "link") else []), b"",
    ]  # fmt: skip
    machine.make(servers_only(["10.9.0.2"]))
    assert b"fd00:9::2" not in resolv_conf.read_bytes()
    machine.make(())
    assert state() == before
    assert list(resolv_conf.parent.iterdir()) == ([] if kind == "nothing" else [resolv_conf])
    machine.assert_undone()


def test_without_systemd_resolved_some_names_cannot_be_asked_elsewhere(
    machine: Machine, resolv_conf: Path
) -> None:
    """All would go to the tunnel's servers, which is not what `domains` says."""
    before = resolv_conf.read_bytes()
    with pytest.raises(NetworkError, match="install systemd-resolved, or leave them out"):
        machine.make(servers_only(["10.9.0.2"], ["corp.example"]))
    assert resolv_conf.read_bytes() == before
    machine.make(())
    machine.assert_undone()


def test_resolv_conf_that_somebody_else_has_written_is_left_alone(
    machine: Machine, resolv_conf: Path
) -> None:
    machine.make(servers_only(["10.9.0.2"]))
    resolv_conf.write_text("nameserver 192.0.2.99\n")
    machine.make(())
    assert resolv_conf.read_text() == "nameserver 192.0.2.99\n"
    machine.assert_undone()

    machine.make(servers_only(["10.9.0.2"]))
    resolv_conf.write_text("nameserver 192.0.2.98\n")
    machine.make(servers_only(["10.9.0.2"]))
    assert resolv_conf.read_text().splitlines()[1:] == [
        "nameserver 10.9.0.2", "nameserver 192.0.2.98",
    ]  # fmt: skip
    machine.make(())
    assert resolv_conf.read_text() == "nameserver 192.0.2.98\n"
    machine.assert_undone()


RESOLVECTL = """#!/bin/sh
# As resolvectl: with a device alone it answers, with more it sets.
verb=$1 device=$2; shift 2
case $verb in
revert) rm -f {folder}/dns {folder}/domain;;
*) [ $# = 0 ] || echo "$*" >{folder}/$verb; echo "Link 5 ($device): $(cat {folder}/$verb)";;
esac
"""


def test_systemd_resolved_is_told_when_it_runs(
    machine: Machine, resolv_conf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "resolved").mkdir()
    program = folder / "bin" / "resolvectl"
    program.parent.mkdir()
    program.write_text(RESOLVECTL.format(folder=folder / "resolved"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    before = resolv_conf.read_bytes()
    for domains, told in ((("corp.example", "~x.example"), "corp.example ~x.example"), ((), "~.")):
        machine.make((*plan("o", SIMPLE, "tun0").at_start, *servers_only(["10.9.0.2"], domains)))
        assert (folder / "resolved/dns").read_text() == "10.9.0.2\n"
        assert (folder / "resolved/domain").read_text() == f"{told}\n"
    machine.make(())
    assert not list((folder / "resolved").iterdir())
    assert resolv_conf.read_bytes() == before
    machine.assert_undone()


def test_a_pin_of_a_lost_record_is_known_by_its_mark(machine: Machine) -> None:
    machine.make(full())
    (machine.states / "office.json").unlink()
    machine.make([change for change in full() if isinstance(change, Pin)])
    machine.make(())
    assert pins(machine) == []
