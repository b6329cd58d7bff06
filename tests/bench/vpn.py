"""What is measured of tunnels: traffic between the inner hosts of two sites, and what it costs."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.bench.contest import WIREGUARD, Bench, Contender, Measure, Sample, Setup
from tests.bench.processes import family, processor_seconds, proportional_set_size
from tests.bench.wireguard import wireguard
from tests.netns import CommandFailed, Namespace, Sites, iperf3_report, wait_until
from tests.peers import CLIENTS, SERVERS, end
from tests.sites import Routed
from tests.tunnels import tunnel, tunnels

GIBIBYTE = 1 << 30
SECONDS = 2  # of each TCP measurement
PINGS = 200  # one every 10 ms
LINKS = 8  # in links.toml

DATAGRAM = 1400  # bytes
LOST = 1.0  # per cent; a rate at which more are lost is too high
BUFFER = 4 << 20  # bytes at iperf3's ends, where the machine allows as much
LOWEST_RATE = 50.0  # Mbit/s; where the search for the highest begins
HALVINGS = 4  # of the last step: the result is within 1/16
TRIES = 2  # at each rate, of which one must do: a machine's hiccup is not the tunnel's limit


@dataclass(frozen=True, slots=True)
class Vpn:
    """A tunnel between two sites, and the programs that carry it."""

    sites: Sites
    client: int  # process ids
    server: int

    def tcp(self, *words: str, seconds: int = SECONDS) -> dict[str, Any]:
        """Send TCP from the west to an iperf3 server in the east (-R: back).

        Returns what arrived, in bytes, seconds and bits_per_second.
        """
        lan, target = self.sites.west.lan, self.sites.east.inner
        report = _report(lan, target, "-t", str(seconds), *words)
        return cast("dict[str, Any]", report["sum_received"])

    def ping(self) -> float:
        """Return the mean round trip of PINGS pings, in milliseconds."""
        ping = ["ping", "-q", "-c", str(PINGS), "-i", "0.01", self.sites.east.inner]
        return float(self.sites.west.lan.run(*ping).rpartition("= ")[2].split("/")[1])


def _report(source: Namespace, address: str, *words: str) -> dict[str, Any]:
    """Return what iperf3 tells of a run, its `end`.

    An iperf3 server closes its listener for a moment between two runs, and refuses or resets who
    comes then; so a run that fails is tried again.
    """
    for pause in (0.2, 1.0):
        with contextlib.suppress(CommandFailed):
            return cast("dict[str, Any]", iperf3_report(source, address, *words)["end"])
        time.sleep(pause)
    return cast("dict[str, Any]", iperf3_report(source, address, *words)["end"])


@contextlib.contextmanager
def _listeners(sites: Sites, count: int = 1) -> Iterator[list[int]]:
    """Have iperf3 servers on the eastern inner host; yield their ports."""
    ports = list(range(5201, 5201 + count))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as up:
        for port in ports:
            argv = ["iperf3", "-s", "-p", str(port)]
            up.callback(end, sites.east.lan.popen(argv, stdin=subprocess.DEVNULL, **quiet))
        time.sleep(0.3)
        yield ports


@contextlib.contextmanager
def _vpn(bench: Bench, contender: Contender) -> Iterator[Vpn]:
    folder = bench.new_folder("tunnel")
    with Sites() as sites, ExitStack() as up:
        up.callback(sites.end_processes)
        if contender == WIREGUARD:
            client, server = up.enter_context(wireguard(sites, folder))
        else:
            kinds = CLIENTS[contender.client], SERVERS[contender.server]
            made = up.enter_context(tunnel(sites, folder, *kinds))
            client, server = made.client.pid, made.server.process.pid
        sites.west.lan.run("ping", "-c", "3", "-i", "0.1", sites.east.inner)
        up.enter_context(_listeners(sites))
        yield Vpn(sites, client, server)


def tcp(*words: str) -> Setup:
    """Measure the Mbit/s of TCP through the tunnel; `words` say to iperf3 how many and which way.

    Where one end is OpenSSH's, also the share of a core that its busiest process takes meanwhile.
    """

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with _vpn(bench, contender) as vpn:
            ends = ((contender.client, vpn.client), (contender.server, vpn.server))
            openssh = [pid for name, pid in ends if name == "openssh"]

            def measure() -> Sample:
                before = processor_seconds(openssh)
                received = vpn.tcp(*words)
                after = processor_seconds(openssh)
                busiest = max((after[pid] - before.get(pid, 0) for pid in after), default=0)
                figure = received["bits_per_second"] / 1e6
                mixed = len(openssh) == 1
                return Sample(figure, busiest / received["seconds"] if mixed else None)

            yield measure

    return setup


def _largest_buffer() -> int:
    """Return the bytes of buffer to give iperf3, so that what it reads too late is not lost."""
    limits = (Path(f"/proc/sys/net/core/{way}mem_max").read_text() for way in "rw")
    return min(BUFFER, *map(int, limits))


@contextlib.contextmanager
def udp(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the highest Mbit/s of datagrams to the server of which hardly any is lost.

    The rate doubles until too many are lost, and is then sought between the last two.
    """
    with _vpn(bench, contender) as vpn:
        lan, target = vpn.sites.west.lan, vpn.sites.east.inner
        words = ("-u", "-l", str(DATAGRAM), "-w", str(_largest_buffer()), "-t", "1")

        def received(rate: float) -> float | None:
            """Return the Mbit/s that arrive when so many are sent; None where too many do not."""
            for _ in range(TRIES):
                report = _report(lan, target, *words, "-b", f"{rate:.2f}M")
                lost = float(report["sum"]["lost_percent"])
                sent = float(report["sum_sent"]["bits_per_second"] / 1e6)
                # Where iperf3 itself sends no faster, doubling would never end.
                if lost < LOST and sent > 0.95 * rate:
                    # Not what iperf3 says: its receiver's clock runs until the tunnel has brought
                    # the word that all is sent, which may take it seconds.
                    return sent * (1 - lost / 100)
            return None

        def measure() -> Sample:
            best, low, high = 0.0, 0.0, LOWEST_RATE
            while (arrived := received(high)) is not None:
                best, low, high = arrived, high, high * 2
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                arrived = received(middle)
                if arrived is None:
                    high = middle
                else:
                    best, low = arrived, middle
            return Sample(best)

        yield measure


@contextlib.contextmanager
def round_trip(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the mean milliseconds of a ping through an otherwise idle tunnel."""
    with _vpn(bench, contender) as vpn:
        yield lambda: Sample(vpn.ping())


@contextlib.contextmanager
def busy_round_trip(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the mean milliseconds of a ping while a TCP stream to the server has begun."""
    with _vpn(bench, contender) as vpn, ThreadPoolExecutor() as beside:

        def measure() -> Sample:
            stream = beside.submit(vpn.tcp, seconds=SECONDS + 1)
            time.sleep(0.5)
            mean = vpn.ping()
            stream.result()
            return Sample(mean)

        yield measure


@contextlib.contextmanager
def links(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the sum of the Mbit/s of all links, one TCP stream to the server in each."""
    folder = bench.new_folder("links")
    with Sites() as sites, ExitStack() as up:
        up.callback(sites.end_processes)
        kinds = CLIENTS[contender.client], SERVERS[contender.server]
        pairs = up.enter_context(tunnels(sites, folder, *kinds, contender.links))
        ports = up.enter_context(_listeners(sites, len(pairs)))
        pool = up.enter_context(ThreadPoolExecutor(len(pairs)))

        def one(pair: tuple[str, str], port: int) -> float:
            source, target = pair
            words = ("-B", source, "-p", str(port), "-t", str(SECONDS))
            report = _report(sites.west.lan, target, *words)
            return float(report["sum_received"]["bits_per_second"] / 1e6)

        yield lambda: Sample(sum(pool.map(one, pairs, ports)))


@contextlib.contextmanager
def processor_time(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the processor seconds of both ends together for a GiB of TCP to the server."""
    with _vpn(bench, contender) as vpn:
        programs = (vpn.client, vpn.server)

        def measure() -> Sample:
            before = sum(processor_seconds(programs).values())
            octets = vpn.tcp()["bytes"]
            spent = sum(processor_seconds(programs).values()) - before
            return Sample(spent / octets * GIBIBYTE)

        yield measure


@contextlib.contextmanager
def _supervisor(bench: Bench) -> Iterator[int]:
    """Have `culvert up` keep LINKS links from a links.toml; yield its process id."""
    with Routed(bench.new_folder("supervisor")) as sites:
        west = sites["west"]
        sites.serve("east", 'permit_tunnel = "point-to-point"')
        sites.declare(
            "west",
            *(
                sites.link(
                    "east",
                    f'device = "tun{number}"\nremote_device = "tun{number}"\n'
                    f'addresses = ["10.255.{number}.1/30"]\npeer = ["10.255.{number}.2"]\n',
                    f"east{number}",
                )
                for number in range(LINKS)
            ),
        )

        def up() -> bool:
            said = west.culvert("status", "--json", status=None)
            return said.count('"state": "up"') == LINKS

        process = west.start("up", "-F", "-E", "-c", str(west.links))
        try:
            if not wait_until(up, 30):
                raise CommandFailed(f"the links did not come up\n{west.said()}")
            for number in range(LINKS):
                sites["east"].space.ip(
                    *("address", "add", f"10.255.{number}.2/30", "dev", f"tun{number}")
                )
                sites["east"].space.ip("link", "set", f"tun{number}", "up")
                west.space.run("ping", "-c", "3", "-i", "0.1", f"10.255.{number}.2")
            yield process.pid
        finally:
            end(process)


@contextlib.contextmanager
def supervisor_memory(bench: Bench, _: Contender) -> Iterator[Measure]:
    """Measure the mebibytes (PSS) of `culvert up` without its links' processes."""
    with _supervisor(bench) as pid:
        yield lambda: Sample(proportional_set_size(pid) / (1 << 20))


@contextlib.contextmanager
def link_memory(bench: Bench, _: Contender) -> Iterator[Measure]:
    """Measure the mebibytes (PSS) of what `culvert up` runs for a link, as the mean of LINKS."""
    with _supervisor(bench) as pid:
        yield lambda: Sample(sum(map(proportional_set_size, family(pid)[1:])) / LINKS / (1 << 20))
