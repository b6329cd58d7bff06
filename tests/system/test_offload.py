"""Every kind of packet through a tunnel, whoever finished its checksum and cut its segments.

Packets from the gateway's own sockets, and from the host behind it, reach the device with
checksums that the kernel has left to a network card; TCP comes as packets of up to 64 KiB.
"""

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns import Namespace, Sites
from tests.peers import CLIENTS, SERVERS
from tests.tunnels import tunnel

pytestmark = [pytest.mark.root, pytest.mark.netns]

PAIRS = [("culvert", "culvert"), ("culvert", "openssh"), ("openssh", "culvert")]
# One byte, odd and even lengths, one packet, fragments, the largest datagram there is.
SIZES = [1, 7, 8, 1400, 1472, 1473, 8001, 65507 - 20]
PORT = 5001
TCP_BYTES = 8 << 20

# linux/if_packet.h, linux/ipv6.h
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_AUXDATA = 8
AUXDATA = struct.Struct("=IIIHHHH")
DESTINATION_OPTIONS = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # 8 bytes: one PadN


@pytest.fixture(params=PAIRS, ids="-".join)
def ends(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A client and a server."""
    client, server = request.param
    return client, server


@contextmanager
def serving(where: Namespace, address: str, kind: int) -> Iterator[None]:
    """A UDP or TCP server that sends back what it gets."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def bind() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, PORT))
        return sock

    sock = where.inside(bind)
    work = _echo_datagrams if kind == socket.SOCK_DGRAM else _echo_stream
    if kind == socket.SOCK_STREAM:
        sock.listen()
    thread = threading.Thread(target=work, args=(sock,))
    thread.start()
    try:
        yield
    finally:
        # an end that arrives whatever the tunnel does
        with where.inside(lambda: socket.socket(family, kind)) as last:
            last.connect((address, PORT))
            if kind == socket.SOCK_DGRAM:
                last.send(b"")
        thread.join()
        sock.close()


def _echo_datagrams(sock: socket.socket) -> None:
    while True:
        data, source = sock.recvfrom(1 << 16)
        if not data:
            return
        sock.sendto(data, source)


def _echo_stream(sock: socket.socket) -> None:
    while True:
        connection, _ = sock.accept()
        with connection:
            data = connection.recv(1 << 18)
            if not data:
                return
            while data:
                connection.sendall(data)
                data = connection.recv(1 << 18)


def ask(source: Namespace, address: str, size: int, options: bytes = b"") -> None:
    """Send one datagram and have the same back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with source.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        if options:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
        sock.settimeout(5)
        data = os.urandom(size)
        sock.sendto(data, (address, PORT))
        assert sock.recv(1 << 16) == data, size


def stream(source: Namespace, address: str) -> None:
    """Send a stream and have the same back, both at once."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with source.inside(lambda: socket.socket(family, socket.SOCK_STREAM)) as sock:
        sock.settimeout(20)
        sock.connect((address, PORT))
        data = os.urandom(TCP_BYTES)

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        digest, received = hashlib.sha256(), 0
        while part := sock.recv(1 << 18):
            digest.update(part)
            received += len(part)
        thread.join()
        assert received == len(data)
        assert digest.digest() == hashlib.sha256(data).digest()


def sources(sites: Sites) -> list[Namespace]:
    """The gateway itself and the host behind it."""
    return [sites.west.gateway, sites.west.lan]


@pytest.mark.parametrize("mode", ["point-to-point", "ethernet"])
def test_datagrams_of_every_size_and_their_fragments_come_through(
    sites: Sites, folder: Path, ends: tuple[str, str], mode: str
) -> None:
    client, server = ends
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server], mode=mode):
        for address in (sites.east.inner, sites.east.inner6):
            with serving(sites.east.lan, address, socket.SOCK_DGRAM):
                for source in sources(sites):
                    for size in SIZES:
                        ask(source, address, size)


@pytest.mark.parametrize("mode", ["point-to-point", "ethernet"])
def test_streams_come_through_whole_in_both_directions(
    sites: Sites, folder: Path, ends: tuple[str, str], mode: str
) -> None:
    client, server = ends
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server], mode=mode):
        for address in (sites.east.inner, sites.east.inner6):
            with serving(sites.east.lan, address, socket.SOCK_STREAM):
                for source in sources(sites):
                    stream(source, address)


@pytest.mark.parametrize("mode", ["point-to-point", "ethernet"])
def test_extension_headers_of_ipv6_come_through(
    sites: Sites, folder: Path, ends: tuple[str, str], mode: str
) -> None:
    client, server = ends
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server], mode=mode):
        address = sites.east.inner6
        with serving(sites.east.lan, address, socket.SOCK_DGRAM):
            for source in sources(sites):
                ask(source, address, 1200, DESTINATION_OPTIONS)
        for here, there in ((sites.west, sites.east), (sites.east, sites.west)):
            for _ in range(4):  # whether Linux loses what is not cut depends on sequence numbers
                one_way(here.gateway, there.lan, there.inner6, DESTINATION_OPTIONS)


def one_way(source: Namespace, target: Namespace, address: str, options: bytes) -> None:
    """Send a stream, from a gateway: behind it, Linux itself would lose such packets."""
    listening = target.inside(lambda: socket.create_server((address, PORT), family=socket.AF_INET6))
    listening.settimeout(10)
    data = os.urandom(TCP_BYTES)
    digests = []

    def receive() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(10)
            digest = hashlib.sha256()
            with contextlib.suppress(TimeoutError):
                while part := connection.recv(1 << 18):
                    digest.update(part)
            digests.append(digest.digest())

    thread = threading.Thread(target=receive)
    with listening:
        thread.start()
        with source.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
            sock.settimeout(10)
            with contextlib.suppress(TimeoutError):
                sock.connect((address, PORT))
                sock.sendall(data)
        thread.join()
    assert digests == [hashlib.sha256(data).digest()]


def test_a_small_mtu_at_one_end_cuts_what_the_other_sends_whole(
    sites: Sites, folder: Path, ends: tuple[str, str]
) -> None:
    client, server = ends
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server]) as made:
        for site in (sites.west, sites.east):
            site.gateway.ip("link", "set", made.device, "mtu", "1280")
        with serving(sites.east.lan, sites.east.inner, socket.SOCK_STREAM):
            stream(sites.west.lan, sites.east.inner)
        with serving(sites.east.lan, sites.east.inner, socket.SOCK_DGRAM):
            ask(sites.west.lan, sites.east.inner, 8001)


def raw(where: Namespace, device: str) -> socket.socket:
    """Sees and sends the frames of a device."""

    def bind() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.bind((device, ETH_P_ALL))
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.settimeout(5)
        return sock

    return where.inside(bind)


def tagged_frames(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The VLAN and the rest of each frame that has one; the kernel takes the tag out."""
    while True:
        frame, ancillary, _, _ = sock.recvmsg(1 << 16, 256)
        for _, _, data in ancillary:
            *_, tci, protocol = AUXDATA.unpack_from(data)
            if protocol == 0x8100:
                yield tci, frame


@pytest.mark.parametrize("size", [46, 1000, 1500])
def test_frames_with_a_vlan_tag_come_through(
    sites: Sites, folder: Path, ends: tuple[str, str], size: int
) -> None:
    client, server = ends
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server], mode="ethernet") as made:
        near, far = (raw(site.gateway, made.device) for site in (sites.west, sites.east))
        with near, far:
            payload = os.urandom(size)
            head = bytes.fromhex("02 00 00 00 00 02  02 00 00 00 00 01")
            near.send(head + struct.pack(">HHH", 0x8100, 7, 0x88B5) + payload)
            tci, frame = next(tagged_frames(far))
            assert tci == 7
            assert frame == head + b"\x88\xb5" + payload


FRAMES: dict[str, Callable[[], bytes]] = {
    "a fragment in the middle": lambda: _ipv4(b"x" * 64, flags_and_offset=0x2004),
    "options in the IPv4 header": lambda: _ipv4(b"x" * 32, options=b"\x01" * 8),
    "an unknown protocol": lambda: _ipv4(b"x" * 32, protocol=253),
    "a TCP header that is cut": lambda: _ipv4(b"x" * 10, protocol=6),
}


def _ipv4(
    payload: bytes, protocol: int = 17, flags_and_offset: int = 0, options: bytes = b""
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | words, 0, 4 * words + len(payload), 7, flags_and_offset, 64,
        protocol, 0, socket.inet_aton("10.255.0.1"), socket.inet_aton("10.255.0.2"),
    ) + options  # fmt: skip
    checksum = 0xFFFF - int.from_bytes(head, "big") % 0xFFFF
    return head[:10] + checksum.to_bytes(2, "big") + head[12:] + payload


@pytest.mark.parametrize("name", FRAMES)
def test_a_packet_arrives_as_it_was_sent(
    sites: Sites, folder: Path, ends: tuple[str, str], name: str
) -> None:
    client, server = ends
    packet = FRAMES[name]()
    with tunnel(sites, folder, CLIENTS[client], SERVERS[server]) as made:
        far = raw(sites.east.gateway, made.device)

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
                sock.sendto(packet, (made.device, 0x0800))

        with far:
            sites.west.gateway.inside(send)
            while far.recv(1 << 16) != packet:
                pass
