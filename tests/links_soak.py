"""A link with a kill switch, and everything that ever opened one, again and again.

    python -m tests.links_soak [--seconds 600] [--seed 1]

One *act* after another is picked at random until the time is over, while packets are sent in
clear every 2 ms at the link's end. After each act the link has to come back, and the listener
outside must have seen nothing but the link's own connection. At the end `culvert down` must leave
the machine's network as it was, no process, and no file.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.leaks import Outside, Stream
from tests.netns import Namespace, add_address, wait_until
from tests.peers import end, private_folder
from tests.sites import OUTER, PORT, LinkedSite, Routed

VICTIM = "203.0.113.9"
VICTIM6 = "2001:db8:f::9"
COMES_BACK = 90  # seconds, the longest delay between two attempts and half of it
SERVER = """
[[tunnel]]
device = "tun0"
user = "root"
addresses = ["10.255.0.2/30", "fd00:255::2/64"]
peer = ["10.255.0.1", "fd00:255::1"]
masquerade = "from-tunnel"
forward = ["0.0.0.0/0", "::/0"]
[tunnel.client]
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
peer = ["10.255.0.2", "fd00:255::2"]
routes = ["0.0.0.0/0", "::/0"]
"""
DECLARED = """
remote_device = "tun0"
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
peer = ["10.255.0.2", "fd00:255::2"]
routes = ["0.0.0.0/0", "::/0"]
"""
WAYS = {
    "declared": DECLARED + 'device = "tun0"\n',
    "another device": DECLARED + 'device = "tun5"\n',
    "any device": DECLARED,
    "handed out": 'device = "tun0"\nremote_device = "tun0"\nfrom_server = true\n',
}
COMMON = "kill_switch = true\nserver_alive_count_max = 2\nserver_alive_interval = "


class Failed(Exception):
    """Something was not as it had to be."""


@dataclass(slots=True)
class Report:
    """How a soak went."""

    seed: int
    seconds: float = 0
    packets: int = 0  # sent in clear
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        acts = ", ".join(f"{count} {act}" for act, count in sorted(self.done.items()))
        what = "\n".join(self.wrong) or "nothing left, in both meanings"
        return f"seed {self.seed}, {self.seconds:.0f} s, {self.packets} packets: {acts}\n{what}"


class Soak:
    """West with its link, east with its server, and a router that counts."""

    def __init__(self, sites: Routed, chance: random.Random) -> None:
        self._sites = sites
        self._west, self._east = sites["west"], sites["east"]
        self._chance = chance
        self._interval = 1
        self._state = self._west.folder / "state"
        self._server = sites.serve("east", SERVER)
        self._declare("declared")
        self._west.culvert("up", "--close", "-c", str(self._west.links))
        self._up()

    def acts(self) -> list[Callable[[], None]]:
        """What may happen."""
        return [
            self.change_the_interval, self.change_the_way, self.kill_the_carrier,
            self.kill_the_supervisor, self.restart, self.boot, self.flush, self.delete_the_table,
            self.delete_the_device, self.kill_the_server, self.restart_the_server, self.cut,
            self.fill_the_disk, self.stop_the_carrier, self.kill_the_keeper,
        ]  # fmt: skip

    def is_up(self) -> bool:
        """Whether the tunnel carries packets."""
        return self._west.reaches("10.255.0.2")

    def _declare(self, way: str) -> None:
        text = f"{WAYS[way]}{COMMON}{self._interval}\n"
        self._sites.declare("west", self._sites.link("east", text))

    def _up(self) -> None:
        self._west.culvert("up", "-c", str(self._west.links), status=None)

    def _processes(self, root: bool) -> list[int]:
        found = []
        for pid in set(self._west.space.processes()) - set(self._west.keepers()):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if (status.partition("Uid:")[2].split()[0] == "0") is root:
                    found.append(pid)
        return found

    def _signal(self, pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def change_the_interval(self) -> None:
        self._interval = 3 - self._interval
        self._declare("declared")
        self._signal([min(self._processes(root=True))], signal.SIGHUP)

    def change_the_way(self) -> None:
        self._declare(self._chance.choice([*WAYS]))
        self._up()

    def kill_the_carrier(self) -> None:
        self._signal(self._processes(root=False), signal.SIGKILL)

    def stop_the_carrier(self) -> None:
        pids = self._processes(root=False)
        self._signal(pids, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0, 6))
        self._signal(pids, signal.SIGCONT)

    def kill_the_supervisor(self) -> None:
        self._signal([min(self._processes(root=True))], signal.SIGKILL)
        wait_until(self._west.is_quiet)
        self._flush_or_not()
        self._up()

    def restart(self) -> None:
        self._west.culvert("down", "--closed")
        self._flush_or_not()
        self._up()

    def boot(self) -> None:
        self._west.culvert("down", "--closed")
        self._west.culvert("up", "--close", "-c", str(self._west.links))
        time.sleep(self._chance.uniform(0, 1))
        self._flush_or_not()
        self._up()

    def flush(self) -> None:
        self._west.space.run("nft", "flush", "ruleset")

    def _flush_or_not(self) -> None:
        """While no supervisor runs."""
        if self._chance.random() < 0.5:
            self.flush()
            time.sleep(self._chance.uniform(0, 1))

    def kill_the_keeper(self) -> None:
        self._wait_for_the_table()
        self._signal(self._west.keepers(), signal.SIGKILL)
        held = ("nft", "list", "table", "inet", "culvert-link-east/held")
        if not wait_until(lambda: self._west.space.succeeds(*held)):
            raise Failed("the kill switch's copy is not held again")

    def delete_the_table(self) -> None:
        self._wait_for_the_table()
        self._west.space.run("nft", "delete", "table", "inet", "culvert-link-east")

    def _wait_for_the_table(self) -> None:
        """A copy of it is held, but whoever takes both away opens the switch."""
        tables = ("nft", "list", "tables")
        if not wait_until(lambda: "culvert-link-east\n" in self._west.space.run(*tables)):
            raise Failed("the table is not made again")

    def delete_the_device(self) -> None:
        tunnels = [each for each in self._west.space.devices() if each.startswith("tun")]
        self._west.space.ip("link", "del", tunnels[0])

    def kill_the_server(self) -> None:
        self._sites.kill_all("east")
        self._server.wait()
        self._server = self._sites.serve("east", SERVER)

    def restart_the_server(self) -> None:
        end(self._server)
        self._server = self._sites.serve("east", SERVER)

    def cut(self) -> None:
        self._sites.router.ip("link", "set", "east", "down")
        time.sleep(self._chance.uniform(0, 5))
        self._sites.router.ip("link", "set", "east", "up")

    def fill_the_disk(self) -> None:
        whole = self._state / "whole"
        with contextlib.suppress(OSError), whole.open("wb") as file:
            file.write(bytes(1 << 20))
        self._chance.choice([self.change_the_way, self.kill_the_supervisor, self.restart])()
        if not wait_until(self.is_up, COMES_BACK):
            raise Failed("the link does not come back while the disk is full")
        whole.unlink(missing_ok=True)


def run(seconds: float, seed: int | None = None) -> Report:
    """Soak for `seconds`, at least every act once."""
    report = Report(random.randrange(1 << 32) if seed is None else seed)
    chance = random.Random(report.seed)
    began = time.monotonic()
    with private_folder("soak") as folder, Routed(folder) as sites:
        west = sites["west"]
        _give_ipv6(west.space, sites.router)
        before = west.snapshot()
        state = west.folder / "state"
        state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(state)], check=True)
        try:
            _soak(report, sites, chance, began + seconds)
            west.culvert("down", status=None)
            if not wait_until(lambda: not west.space.processes(), 5):
                report.wrong.append(f"processes: {west.space.processes()}")
            if west.snapshot() != before:
                report.wrong.append(f"the network is not as it was: {west.snapshot()}")
            left = [*state.glob("network/*"), *(west.folder / "run/network").glob("*")]
            report.wrong += [f"file: {path}" for path in left]
        finally:
            subprocess.run(["umount", "-l", str(state)], check=True)
    report.seconds = time.monotonic() - began
    return report


def _give_ipv6(west: Namespace, router: Namespace) -> None:
    add_address(west, OUTER, "2001:db8:1::2/64")
    add_address(router, "west", "2001:db8:1::1/64")
    west.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")


def _soak(report: Report, sites: Routed, chance: random.Random, until: float) -> None:
    soak = Soak(sites, chance)
    west, server = sites["west"], sites["east"].outer
    targets = (VICTIM, VICTIM6, server, west.gateway)
    outside = Outside(sites.router, "west", server, PORT)
    with outside, Stream(west.space, *targets) as sent:
        acts = soak.acts()
        chance.shuffle(acts)
        while acts or time.monotonic() < until:
            act = acts.pop() if acts else chance.choice(soak.acts())
            name = act.__name__.replace("_", " ")
            act()
            report.done[name] += 1
            if not wait_until(soak.is_up, COMES_BACK):
                status = west.culvert("status", status=None)
                report.wrong.append(f"{name}: it does not come back: {status}\n{_end_of(west)}")
                break
            if leaks := outside.leaks():
                report.wrong.append(f"{name}: leaked {leaks}\n{_end_of(west)}")
                break
        report.packets = sent.sent


def _end_of(site: LinkedSite) -> str:
    return "\n".join(site.said().splitlines()[-20:])


def main() -> int:
    """Run it and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int)
    chosen = parser.parse_args()
    report = run(chosen.seconds, chosen.seed)
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
