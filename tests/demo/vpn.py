"""Two sites on one machine become one private network, over one SSH connection.

Each site is a gateway with an inner network behind it; the gateways share an outer link that knows
nothing of the inner networks. `culvert sshd` runs on one gateway and `culvert ssh -w` on the other.
The scene then uses the tunnel from inner host to inner host, watches every frame on the
outer link meanwhile, and takes everything down again.

"""

import http.client
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.demo.stage import expect, say
from tests.netns import CommandFailed, FrameCounter, Sites, iperf3
from tests.peers import (
    CLIENTS,
    SERVERS,
    end,
    find_program,
    private_folder,
)
from tests.tunnels import tunnel

PAGE = "hello from the far site"

PICTURE = """
  A VPN between two sites, through one SSH connection ({server} sshd, {client} ssh)

     10.1.0.10 ----- gateway =====[ outer link ]===== gateway ----- 10.2.0.10
     west host      192.0.2.1      SSH only         192.0.2.2       east host
"""


T = TypeVar("T")


# The steps, in the order in which they are shown


def no_way_yet(sites: Sites) -> None:
    """Show that the sites cannot reach each other before the tunnel is there."""
    reached = sites.west.lan.ping(sites.east.inner, seconds=0.3)
    expect(not reached, "the inner networks see each other before there is a tunnel")
    say("two sites", "4 network namespaces; the inner networks cannot reach each other")


def ping(sites: Sites) -> None:
    """Ping the far host from the near one, over IPv4 and IPv6."""
    for address in (sites.east.inner, sites.east.inner6):
        output = sites.west.lan.run("ping", "-c", "5", "-i", "0.2", "-W", "2", address)
        expect(" 5 received" in output, f"not every ping of {address} was answered:\n{output}")
        average = output.rpartition("= ")[2].split("/")[1]
        say("ping", f"{address}: 5 of 5 answered, {average} ms")


def web_page(sites: Sites, folder: Path) -> None:
    """Fetch a page from a web server on the far host."""
    site = folder / "site"
    site.mkdir()
    (site / "index.html").write_text(PAGE)
    argv = [sys.executable, "-m", "http.server", "80", "--directory", str(site)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def fetch() -> str:
        connection = http.client.HTTPConnection(sites.east.inner, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    page = _with_server(sites, argv, quiet, lambda: sites.west.lan.inside(fetch))
    expect(page == PAGE, f"the web page was not the right one: {page!r}")
    say("web page", f"http://{sites.east.inner}/ says “{page}”")


def throughput(sites: Sites) -> None:
    """Let iperf3 fill the tunnel in both directions, one after the other."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    argv = [find_program("iperf3"), "-s"]
    for words, direction in (((), "to the far host"), (("-R",), "back")):
        measure = partial(iperf3, sites.west.lan, sites.east.inner, 2, *words)
        rate = _with_server(sites, argv, quiet, measure)
        expect(rate > 1e6, f"iperf3 carried only {rate:.0f} bit/s")
        say("iperf3", f"{_number(rate / 1e6)} Mbit/s {direction}")


def _with_server(sites: Sites, argv: list[str], options: dict[str, int], use: Callable[[], T]) -> T:
    """Run a server on the far host while `use` runs; `use` is tried again until it listens."""
    server = sites.east.lan.popen(argv, stdin=subprocess.DEVNULL, **options)
    try:
        give_up = time.monotonic() + 10
        while True:
            try:
                return use()
            except (ConnectionRefusedError, CommandFailed):
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
    finally:
        end(server)


def outer_link(counter: FrameCounter) -> None:
    """Show what was seen on the outer link."""
    traffic = counter.traffic
    expect(not traffic.inner, f"{len(traffic.inner)} frames on the outer link show inner addresses")
    expect(traffic.frames > 1000, f"only {traffic.frames} frames were seen on the outer link")
    expect(not traffic.missed, f"{traffic.missed} frames on the outer link could not be looked at")
    amount = f"{_number(traffic.frames)} frames, {_number(traffic.octets / 1e6)} MB"
    say("outer link", f"{amount}; not one shows an inner address")


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


# The whole


def demonstrate(server_kind: str, client_kind: str) -> None:
    """Build the sites, show everything, take it all down. Raises Failed."""
    print(PICTURE.format(server=server_kind, client=client_kind), flush=True)
    peers = CLIENTS[client_kind], SERVERS[server_kind]
    with private_folder("demo") as folder, Sites() as sites:
        try:
            no_way_yet(sites)
            with (
                FrameCounter(sites.west.gateway, sites.OUTER_DEVICE, sites) as counter,
                tunnel(sites, folder, *peers),
            ):
                say("tunnel", "tun0 at both gateways, with addresses and routes")
                ping(sites)
                web_page(sites, folder)
                throughput(sites)
            outer_link(counter)
            left = sites.west.gateway.devices() | sites.east.gateway.devices()
            expect("tun0" not in left, "a tunnel device is still there")
        finally:
            leftovers = sites.end_processes()
        expect(not leftovers, f"still running: {', '.join(leftovers)}")
    say("taken down", "no process, device, namespace or file is left")
