"""Network namespaces and the sites of a VPN, for the demonstration, the tests and the benchmark.

A namespace here has no name and no process of its own: it is a file descriptor of this process.
Whatever lies inside (links, addresses, tun devices) goes when the descriptor closes and the last
program started inside has ended, so even a killed process leaves nothing behind.

The sites look like this; `Sites` builds everything but the tunnel:

    west.lan ------ west.gateway ====== east.gateway ------ east.lan
    10.1.0.10    10.1.0.1  192.0.2.1   192.0.2.2  10.2.0.1    10.2.0.10

Only the standard library is used, and `ip` and `nsenter`.
"""

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

# From linux/sched.h, linux/if_ether.h and linux/if_packet.h.
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
TPACKET_V2 = 1
TP_STATUS_KERNEL = 0
SO_RCVBUFFORCE = 33
TPACKET_REQ = struct.Struct("IIII")  # block size, blocks, frame size, frames
TPACKET2_HDR = struct.Struct("IIIHH")  # status, length, length in the ring, where it begins; more

RING_BLOCK = 1 << 20  # bytes
RING_FRAME = 2048  # bytes, which a frame of the usual MTU fits in
RING_FRAMES = 1 << 15  # at 5 Gbit/s what comes in some seconds

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _in_a_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own: a network namespace belongs to a thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Namespace:
    """One network namespace; owns the descriptor that keeps it alive."""

    def __init__(self, name: str) -> None:
        self.name = name

        def make() -> int:
            _call(_libc.unshare(CLONE_NEWNET), "cannot make a network namespace")
            for scope in ("all", "default"):  # addresses are usable without a second of waiting
                Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        self.descriptor = _in_a_thread(make)
        self.ip("link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """A path by which other processes find the namespace while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` as a command line that runs inside."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """Run a program inside and return its standard output.

        Raises CommandFailed, which carries what the program wrote, unless `check` is false.
        """
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise CommandFailed(f"{self.name}: {' '.join(argv)}: {done.stderr or done.stdout}")
        return done.stdout

    def succeeds(self, *argv: str, timeout: float = 60) -> bool:
        """Run a program inside and tell whether its status was 0."""
        command = self.command(argv)
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
        return done.returncode == 0

    def ping(self, address: str, *options: str, count: int = 1, seconds: float = 1) -> bool:
        """Tell whether all of `count` pings are answered, each within `seconds`."""
        words = ["ping", "-q", "-c", str(count), "-i", "0.05", "-W", str(seconds)]
        return self.succeeds(*words, *options, address)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside; the caller ends it."""
        return subprocess.Popen(self.command(argv), **options)

    def has_device(self, name: str) -> bool:
        """Tell whether there is a device of this name inside."""
        return name in self.devices()

    def ip(self, *words: str) -> str:
        """Run `ip` inside."""
        return self.run("ip", *words)

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread that is inside; sockets it opens stay inside."""

        def enter() -> T:
            _call(_libc.setns(self.descriptor, CLONE_NEWNET), "cannot enter a network namespace")
            return work()

        return _in_a_thread(enter)

    def devices(self) -> set[str]:
        """Return the names of the network devices inside."""
        return self.inside(lambda: {name for _, name in socket.if_nameindex()})

    def processes(self) -> list[int]:
        """Return the ids of the processes inside (other threads than the first do not count)."""
        own = os.fstat(self.descriptor)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                theirs = (entry / "ns/net").stat()
                if (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino):
                    found.append(int(entry.name))
        return found

    def forward(self) -> None:
        """Let this namespace pass packets from one of its links to another."""

        def write() -> None:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

        self.inside(write)

    def close(self) -> None:
        """Let the namespace go; closing twice is fine."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class CommandFailed(Exception):
    """A program that had to succeed did not; the text says which one and what it wrote."""


def connect(
    left: Namespace,
    right: Namespace,
    device: str,
    left_addresses: Sequence[str],
    right_addresses: Sequence[str],
) -> None:
    """Join two namespaces by a veth pair, called `device` at the left end and at the right.

    The addresses are written with their prefix length, as 192.0.2.1/30.
    """
    pair = ("type", "veth", "peer", "name", device, "netns", right.path)
    left.ip("link", "add", device, *pair)
    for end, addresses in ((left, left_addresses), (right, right_addresses)):
        for address in addresses:
            add_address(end, device, address)
        end.ip("link", "set", device, "up")


def add_address(where: Namespace, device: str, address: str, *more: str) -> None:
    """Give a device an address that is usable at once (no duplicate detection in IPv6)."""
    at_once = ("nodad",) if ":" in address else ()
    where.ip("address", "add", address, *more, "dev", device, *at_once)


@dataclass(slots=True)
class Site:
    """One side of the VPN: its gateway, the host on its inner network, and their addresses."""

    gateway: Namespace
    lan: Namespace
    outer: str
    inner: str  # the inner host, IPv4
    inner6: str
    network: str
    network6: str
    tunnel: str  # the gateway's end of the tunnel, with prefix length
    tunnel6: str


class Sites:
    """Two sites joined by an outer link that knows nothing of their inner networks."""

    OUTER_DEVICE = "outer"
    LAN_DEVICE = "lan"

    def __init__(self) -> None:
        with ExitStack() as undo:
            self.west = self._site("west", 1, undo)
            self.east = self._site("east", 2, undo)
            connect(
                self.west.gateway,
                self.east.gateway,
                self.OUTER_DEVICE,
                [f"{self.west.outer}/30"],
                [f"{self.east.outer}/30"],
            )
            self._undo = undo.pop_all()

    @classmethod
    def _site(cls, name: str, number: int, undo: ExitStack) -> Site:
        gateway = Namespace(f"{name} gateway")
        undo.callback(gateway.close)
        lan = Namespace(f"{name} host")
        undo.callback(lan.close)
        gateway.forward()
        inner = f"10.{number}.0"
        inner6 = f"fd00:{number}:"
        connect(
            gateway,
            lan,
            cls.LAN_DEVICE,
            [f"{inner}.1/24", f"{inner6}:1/64"],
            [f"{inner}.10/24", f"{inner6}:10/64"],
        )
        lan.ip("route", "add", "default", "via", f"{inner}.1")
        lan.ip("-6", "route", "add", "default", "via", f"{inner6}:1")
        return Site(
            gateway=gateway,
            lan=lan,
            outer=f"192.0.2.{number}",
            inner=f"{inner}.10",
            inner6=f"{inner6}:10",
            network=f"{inner}.0/24",
            network6=f"{inner6}:/64",
            tunnel=f"10.255.0.{number}/30",
            tunnel6=f"fd00:255::{number}/64",
        )

    def configure_tunnel(self, west_device: str = "tun0", east_device: str = "tun0") -> None:
        """Give the two ends of a new tunnel their addresses and the routes to the far networks."""
        ends = ((self.west, west_device, self.east), (self.east, east_device, self.west))
        for here, device, there in ends:
            gateway = here.gateway
            add_address(gateway, device, here.tunnel)
            add_address(gateway, device, here.tunnel6)
            gateway.ip("link", "set", device, "up")
            far, far6 = (address.partition("/")[0] for address in (there.tunnel, there.tunnel6))
            gateway.ip("route", "replace", there.network, "via", far, "dev", device)
            gateway.ip("-6", "route", "replace", there.network6, "via", far6, "dev", device)

    def configure_link(self, number: int) -> tuple[str, str]:
        """Make tunN at both gateways the way between two inner addresses that are its own.

        Returns the two addresses, the western first. Any number of links may stand side by side.
        """
        device = f"tun{number}"
        west, east = (
            f"{site.inner.rpartition('.')[0]}.{100 + number}" for site in (self.west, self.east)
        )
        for here, end, own, far in ((self.west, 1, west, east), (self.east, 2, east, west)):
            add_address(here.lan, self.LAN_DEVICE, f"{own}/24")
            add_address(here.gateway, device, f"10.255.{1 + number}.{end}/30")
            here.gateway.ip("link", "set", device, "up")
            here.gateway.ip("route", "replace", far, "dev", device)
        return west, east

    def end_processes(self, patience: float = 2) -> list[str]:
        """Kill what still runs inside after `patience` seconds; return the names of those."""
        places = [space for site in (self.west, self.east) for space in (site.gateway, site.lan)]
        wait_until(lambda: not any(place.processes() for place in places), patience)
        names = []
        for place in places:
            for pid in place.processes():
                with contextlib.suppress(OSError):
                    names.append(Path(f"/proc/{pid}/comm").read_text().strip())
                    os.kill(pid, signal.SIGKILL)
        return names

    def close(self) -> None:
        """Let all four namespaces go."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for_device(where: Namespace, device: str, timeout: float = 15) -> bool:
    """Wait until `device` exists inside `where`; False when it does not come."""
    return wait_until(lambda: where.has_device(device), timeout)


def wait_until(condition: Callable[[], object], timeout: float = 10) -> bool:
    """Ask `condition` every 20 ms until it holds; False after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def iperf3(source: Namespace, address: str, seconds: int, *words: str) -> float:
    """Return the bits a second that arrive in one TCP stream to an iperf3 server; -R: from it.

    Raises CommandFailed, also for a run whose result did not come back.
    """
    report = iperf3_report(source, address, "-t", str(seconds), *words)
    return float(report["end"]["sum_received"]["bits_per_second"])


def iperf3_report(source: Namespace, address: str, *words: str) -> dict[str, Any]:
    """Return what iperf3 tells of a run to a server, as its JSON.

    Raises CommandFailed, also for a run whose result did not come back.
    """
    report: dict[str, Any] = json.loads(source.run("iperf3", "-J", "-c", address, *words))
    if "sum_received" not in report["end"]:
        raise CommandFailed(f"iperf3: {report.get('error', 'no result')}")
    return report


@dataclass(slots=True)
class Traffic:
    """What a counter saw on its link."""

    frames: int = 0
    octets: int = 0
    missed: int = 0  # frames the kernel had no room to show
    inner: list[bytes] = field(default_factory=list)  # the frames that showed an inner address


class FrameCounter:
    """Counts the frames on one device and looks in each for the inner addresses.

    A frame shows the inner network when its IP header names an address of it, or when the bytes
    of two inner addresses stand side by side in it, as they would in a packet that is wrapped but
    not encrypted. (Eight bytes, or 32 in IPv6: four alone would turn up by chance.) Of the frames
    of 64 KiB that a virtual link carries, the first 2 KiB are looked at. They come through a ring
    in shared memory: as a copy of its own each would soon fill the buffer of a counter that is
    late, which without root is small.
    """

    def __init__(self, where: Namespace, device: str, sites: Sites) -> None:
        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
            size = RING_FRAME * RING_FRAMES
            ring = TPACKET_REQ.pack(RING_BLOCK, size // RING_BLOCK, RING_FRAME, RING_FRAMES)
            sock.setsockopt(SOL_PACKET, PACKET_RX_RING, ring)
            sock.bind((device, ETH_P_ALL))
            return sock

        west, east = sites.west, sites.east
        pairs = ((west.inner, east.inner), (west.inner6, east.inner6))
        self._patterns = [
            ip_address(source).packed + ip_address(target).packed
            for one, other in pairs
            for source, target in ((one, other), (other, one))
        ]
        self.traffic = Traffic()
        self._socket = where.inside(listen)
        self._ring = mmap.mmap(self._socket.fileno(), RING_FRAME * RING_FRAMES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def _shows_inner(self, frame: bytes) -> bool:
        # The IPv4 addresses stand at 26 and 30 of an Ethernet frame; ARP's at 28 and 38.
        ipv4 = frame[12:14] == b"\x08\x00" and 10 in (frame[26], frame[30])
        arp = frame[12:14] == b"\x08\x06" and 10 in (frame[28], frame[38])
        return ipv4 or arp or any(pattern in frame for pattern in self._patterns)

    def _count(self) -> None:
        traffic = self.traffic
        place = 0
        while True:
            status, size, kept, begin, _ = TPACKET2_HDR.unpack_from(self._ring, place)
            if status == TP_STATUS_KERNEL:
                ready, _, _ = select.select([self._socket], [], [], 0.1)
                if not ready and self._stop.is_set():
                    return
                continue
            frame = self._ring[place + begin : place + begin + kept]
            struct.pack_into("I", self._ring, place, TP_STATUS_KERNEL)
            place = (place + RING_FRAME) % len(self._ring)
            traffic.frames += 1
            traffic.octets += size
            if self._shows_inner(frame):
                traffic.inner.append(frame)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.traffic.missed = struct.unpack("II", statistics)[1]
        self._ring.close()
        self._socket.close()


class FrameWatch:
    """Counts the frames on a device that carry packets for one address.

    Neighbour discovery of IPv6, which is not for a router to pass on, does not count.
    """

    def __init__(self, where: Namespace, device: str, address: str) -> None:
        self._target = ip_address(address).packed

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind((device, ETH_P_ALL))
            sock.setblocking(False)
            return sock

        self._socket = where.inside(listen)
        self._frames = 0

    @property
    def frames(self) -> int:
        """How many there were until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(1 << 16)
                match frame[12:14]:
                    case b"\x08\x00":
                        self._frames += frame[30:34] == self._target
                    case b"\x86\xdd":
                        self._frames += frame[38:54] == self._target and frame[21] != 255
        return self._frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
