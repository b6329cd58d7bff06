"""Packets that a tunnel drops are seen: in the log of a server, of a client, and of a link.

The peer is hostile: it takes no bytes, sends headers that do not fit, and goes on while the device
is down or deleted.
"""

import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.crypto.key_files import load_private_key
from appliance.links.network_watch import CALM
from appliance.ssh.auth_server import Offer, Outcome
from appliance.ssh.channels import Channel
from appliance.ssh.connection import Connection
from appliance.ssh.settings import ServerSide, Settings
from appliance.wire.tun import (
    OFFLOAD_CHANNEL_TYPE,
    OFFLOAD_MESSAGE,
    POINT_TO_POINT,
    HandedOut,
    TunnelOpen,
)
from tests.netns import Namespace, Sites, wait_until
from tests.peers import SERVERS
from tests.protocol.harness import FAST, Event, Recorder, Recording, TestAuthority
from tests.sites import PORT, Routed
from tests.system.test_links import CLIENT, state_of, status_of
from tests.tunnels import serve_tunnels
from tests.unit.server.conftest import Dialler

pytestmark = [pytest.mark.root, pytest.mark.netns]

WINDOW = 10_000  # bytes: a few packets, and a rest that is too small for one more
PACKET = b"\x45" + bytes(39)
PLAIN = bytes(10)
UNSOUND = struct.pack("<BBHHHH", 2, 0, 0, 0, 0, 0)  # 'the checksum is right': nobody checked
DATAGRAMS = 100
# Reports often, but does not give up a test that looks elsewhere for a moment.
PATIENT = "server_alive_interval = 1\nserver_alive_count_max = 20\n"


def framed(header: bytes, packets: int) -> bytes:
    return (struct.pack(">I", len(header + PACKET)) + header + PACKET) * packets


def flood(where: Namespace, address: str) -> None:
    """Far more than the window takes."""
    with where.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for _ in range(DATAGRAMS):
            sock.sendto(bytes(1000), (address, 9))


def send(peer: Dialler, channel: Channel, header: bytes, packets: int) -> None:
    """Send packets, and nothing more: who reads now may learn that the channel is closed."""
    channel.send(framed(header, packets))
    flush(peer)


def flush(peer: Dialler) -> None:
    transport = peer.connection.transport
    while transport.unsent:
        transport.sent(peer.socket.send(transport.data_to_send()))


def settle(peer: Dialler) -> None:
    """Wait until the other end has handled all that it was sent."""
    got: list[object] = []
    peer.connection.global_request("x", b"", got.append)
    assert peer.until(lambda _: got)


def told(text: str) -> dict[str, int]:
    """The reasons in the one line that tells of dropped packets."""
    (line,) = re.findall(r"dropped \d+ packets?: (.*)", text)
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", line)}


class Greedy(Recording):
    """Gives no window back."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__(events)
        self.consumes = False


def test_a_server_tells_why_packets_of_a_tunnel_were_dropped(sites: Sites, folder: Path) -> None:
    server, login = serve_tunnels(sites, folder, SERVERS["culvert"], "point-to-point")
    assert login.key is not None
    east = sites.east.gateway
    with server:
        place = sites.west.gateway.inside(
            lambda: socket.create_connection((server.address, server.port), timeout=20)
        )
        client = Dialler(place, login.account, login.key).log_in()
        handler = Greedy(client.recorder.events)
        wanted = TunnelOpen(POINT_TO_POINT, 0).encode()
        handler.channel = client.connection.open_channel(
            OFFLOAD_CHANNEL_TYPE, wanted, handler, WINDOW, OFFLOAD_MESSAGE
        )
        assert client.until(lambda _: any(event[0] == "opened" for event in handler.events))
        east.ip("address", "add", "10.255.0.2/30", "dev", "tun0")
        east.ip("link", "set", "tun0", "up")

        flood(east, "10.255.0.1")
        send(client, handler.channel, UNSOUND, 3)
        east.ip("link", "set", "tun0", "down")
        send(client, handler.channel, PLAIN, 2)
        settle(client)
        east.ip("link", "delete", "tun0")
        send(client, handler.channel, PLAIN, 4)
        assert client.until(lambda _: ("closed",) in handler.events)
        client.close()
        assert wait_until(lambda: "connection closed" in server.log), server.log
        reasons = told(server.log)
    assert DATAGRAMS - 10 <= reasons.pop("no_window") <= DATAGRAMS
    assert reasons == {"unsound_header": 3, "device_down": 2, "device_gone": 4}
    assert "tunnel device tun0: dropped" in server.log


class Everybody(TestAuthority):
    """Lets everybody in who has a key."""

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        return None

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        return Outcome(True)


class Tunnels(Recorder):
    """Opens every tunnel that is asked for, and takes what its window takes, but no more."""

    handler = Greedy

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        channel.resize(WINDOW, OFFLOAD_MESSAGE)
        handler = Greedy(self.events)
        handler.channel = channel
        self.channels.append(channel)
        channel.accept(handler, HandedOut((), (), (), 0, (), ()).encode())


class HostileServer(Dialler):
    """The connection of one client, which the test serves step by step."""

    def __init__(self, sock: socket.socket, key: Path) -> None:
        host_key = load_private_key(key.read_bytes())
        self.recorder = Tunnels()
        self.connection = Connection(
            ServerSide(
                {"ssh-ed25519": host_key.public.blob},
                lambda _, exchange_hash: host_key.sign("ssh-ed25519", exchange_hash),
                Everybody(),
                extensions=(OFFLOAD_CHANNEL_TYPE,),
            ),
            Settings(FAST),
            self.recorder,
            os.urandom,
            0.0,
        )
        self.socket = sock

    def open(self) -> Channel:
        """Serve until the client has its tunnel."""
        assert self.until(lambda _: self.recorder.channels)
        settle(self)
        return self.recorder.channels[0]


def accepted(listening: socket.socket, routed: Routed) -> closing[HostileServer]:
    """The next client's connection, until the context ends."""
    return closing(HostileServer(listening.accept()[0], routed.host_keys.key()))


@pytest.fixture
def routed(folder: Path) -> Iterator[Routed]:
    with Routed(folder) as made:
        yield made
        made["west"].culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


def test_a_link_shows_why_its_packets_were_dropped(routed: Routed) -> None:
    west, east = routed["west"], routed["east"]
    routed.declare("west", routed.link("east", CLIENT + PATIENT))
    listening = east.space.inside(lambda: socket.create_server(("", PORT)))
    listening.settimeout(20)
    program = west.start("up", "-F", "-E", "-c", str(west.links))
    with listening, accepted(listening, routed) as server:
        tunnel = server.open()
        assert server.until(lambda _: state_of(west) == "up"), west.said()

        def dropped() -> dict[str, int]:
            found = status_of(west)["dropped"]
            return {reason: packets for reason, packets in found.items() if packets}

        assert dropped() == {}
        flood(west.space, east.inner)
        send(server, tunnel, UNSOUND, 3)
        west.space.ip("link", "set", "tun0", "down")
        send(server, tunnel, PLAIN, 2)
        settle(server)
        assert server.until(lambda _: "device_down" in dropped())
        seen = dropped()
        assert 0 < seen.pop("no_window") <= DATAGRAMS + 20  # and what the kernel sends by itself
        assert seen == {"unsound_header": 3, "device_down": 2}
        assert server.until(lambda _: "tun0" in west.space.ip("-o", "link", "show", "up"))
        calm = time.monotonic() + 2 * CALM  # the supervisor looks at the network no more
        assert server.until(lambda _: time.monotonic() > calm)

        west.space.ip("link", "delete", "tun0")
        send(server, tunnel, PLAIN, 4)
        assert server.until(lambda _: ("closed",) in server.recorder.events)
        flush(server)
        assert wait_until(lambda: "device_gone" in dropped()), west.said()
        assert dropped().items() >= {"device_gone": 4, "unsound_header": 3}.items()
        assert wait_until(lambda: "link east: dropped" in west.said()), west.said()
        assert told(west.said()) == dropped()
        where = west.folder / "run" / "links.sock"
        metrics = west.space.run("curl", "-s", "--unix-socket", str(where), "http://x/metrics")
        family = "culvert_link_dropped_packets_total"
        labels = f'link="east",host="{east.outer}",reason="unsound_header"'
        assert f"{family}{{{labels}}} 3\n" in metrics
    west.culvert("down")
    assert program.wait(10) == 0


def test_a_client_tells_why_packets_of_its_tunnel_were_dropped(routed: Routed) -> None:
    west, east = routed["west"], routed["east"]
    listening = east.space.inside(lambda: socket.create_server(("", PORT)))
    listening.settimeout(20)
    options = ("-v", "-F", "none", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")
    place = ("-i", str(routed.user_keys.key()), "-p", str(PORT), f"root@{east.outer}")
    program = west.start("ssh", "-N", "-w", "0:0", *options, *place)
    with listening, accepted(listening, routed) as server:
        tunnel = server.open()
        send(server, tunnel, UNSOUND, 3)
        send(server, tunnel, PLAIN, 2)  # nobody has turned the device on
        settle(server)
        server.close()
        assert program.wait(10) == 255
    assert told(west.said()) == {"unsound_header": 3, "device_down": 2}
    assert "tunnel device tun0: dropped 5 packets" in west.said()
