"""What is measured, one `Work` for each kind, and how.

A contender is a client and a server. Its context manager sets both up and yields a function that
measures once; all contenders of a work are up at the same time and take turns, so that whatever
else the machine does meets them alike.
"""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.netns import CommandFailed, Sites, iperf3
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Algorithms,
    Invocation,
    Keyring,
    Login,
    Server,
    ServerSettings,
    end,
    environment,
    start,
)
from tests.tunnels import tunnel

GIBIBYTE = 1 << 30
IDLE_CONNECTIONS = 10
LOGINS = 40  # in each measurement of connections a second
IPERF_SECONDS = 2  # in each direction
PINGS = 200  # one every 10 ms

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share: a user who may log in, host keys and a folder."""

    folder: Path
    account: Account
    user_keys: Keyring
    host_keys: Keyring

    def login(self) -> Login:
        """Return the login that every measurement uses."""
        return Login(self.account, self.user_keys.key())

    def serve(self, name: str) -> Server:
        """Start a server; the caller stops it."""
        settings = ServerSettings(host_keys=[self.host_keys.key()])
        return start(SERVERS[name], settings, self.new_folder(name))

    def new_folder(self, name: str) -> Path:
        """Return a new folder."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}-{name}"
        path.mkdir()
        return path


@dataclass(frozen=True, slots=True)
class Contender:
    """A client and a server, by the names that `tests.peers` gives them."""

    client: str
    server: str


CULVERT = Contender("culvert", "culvert")
OPENSSH = Contender("openssh", "openssh")
DROPBEAR = Contender("dbclient", "dropbear")

Setup = Callable[[Bench, Contender], AbstractContextManager[Measure]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: a contender's ratio to OpenSSH, and the ratio to reach."""

    what: str
    contender: Contender
    target: float


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work, done by OpenSSH, by the contenders of its lines, and maybe by Dropbear."""

    name: str
    unit: str
    more_is_better: bool
    setup: Setup
    lines: Sequence[Line]
    dropbear: bool = False

    def contenders(self) -> list[Contender]:
        """Return who takes part, OpenSSH first."""
        others = [line.contender for line in self.lines] + [DROPBEAR] * self.dropbear
        return [OPENSSH, *others]


# One connection


@contextlib.contextmanager
def login_and_true(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the milliseconds that `ssh host true` takes."""
    with bench.serve(contender.server) as server:

        def measure() -> float:
            began = time.perf_counter()
            done = CLIENTS[contender.client].run(server, bench.login(), "true")
            if done.status != 0:
                raise CommandFailed(done.stderr)
            return (time.perf_counter() - began) * 1000

        yield measure


def _run(call: Invocation, source: str) -> float:
    """Run a client with `source` as its input; return the seconds it took."""
    with open(source, "rb") as data:
        began = time.perf_counter()
        done = subprocess.run(
            call.argv,
            env=call.env,
            stdin=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=600,
            check=False,
        )
    if done.returncode != 0:
        raise CommandFailed(done.stderr.decode(errors="replace"))
    return time.perf_counter() - began


def download(cipher: str) -> Setup:
    """Measure the megabytes a second of `ssh host 'head -c 1G /dev/zero'`."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with bench.serve(contender.server) as server:
            call = CLIENTS[contender.client].invocation(
                server, bench.login(), f"head -c {GIBIBYTE} /dev/zero", Algorithms(cipher=cipher)
            )
            yield lambda: GIBIBYTE / 1e6 / _run(call, "/dev/null")

    return setup


def upload(cipher: str) -> Setup:
    """Measure the megabytes a second of `head -c 1G /dev/zero | ssh host 'cat >/dev/null'`."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with bench.serve(contender.server) as server:
            call = CLIENTS[contender.client].invocation(
                server, bench.login(), "cat >/dev/null", Algorithms(cipher=cipher)
            )
            argv = ["sh", "-c", f'head -c {GIBIBYTE} /dev/zero | "$@"', "sh", *call.argv]
            fed = Invocation(argv, call.env)
            yield lambda: GIBIBYTE / 1e6 / _run(fed, "/dev/null")

    return setup


# Many connections


def _connections(bench: Bench, server: Server, work: str, count: int) -> list[str]:
    login = bench.login()
    argv = [sys.executable, "-m", "tests.bench.connections", work, "--count", str(count)]
    argv += ["--address", server.address, "--port", str(server.port)]
    argv += ["--known-hosts", str(server.known_hosts)]
    return [*argv, "--user", login.user, "--key", str(login.key)]


@contextlib.contextmanager
def logins_a_second(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure how many logins a second the server takes, four at a time, from AsyncSSH."""
    with bench.serve(contender.server) as server:

        def measure() -> float:
            done = subprocess.run(
                _connections(bench, server, "logins", LOGINS),
                env=environment(server.folder),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise CommandFailed(f"{done.stderr}\n{server.log}")
            return float(done.stdout)

        yield measure


@contextlib.contextmanager
def idle_memory(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the mebibytes (PSS) that one idle connection adds, over all of its processes."""
    with bench.serve(contender.server) as server:

        def measure() -> float:
            before = _proportional_set_size(server.process.pid)
            holder = subprocess.Popen(
                _connections(bench, server, "hold", IDLE_CONNECTIONS),
                env=environment(server.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert holder.stdin is not None and holder.stdout is not None
            try:
                if holder.stdout.readline() != b"ready\n":
                    raise CommandFailed(f"the connections did not come\n{server.log}")
                time.sleep(1)  # what follows a login, such as the end of helper processes
                after = _proportional_set_size(server.process.pid)
                holder.stdin.close()
                holder.wait(10)
            finally:
                end(holder)
                holder.stdout.close()
            time.sleep(1)  # the server's processes end
            return (after - before) / IDLE_CONNECTIONS / (1 << 20)

        yield measure


def _proportional_set_size(pid: int) -> int:
    """Return the PSS, in bytes, of a process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family, total = [pid], 0
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
            match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            total += int(match[1]) * 1024 if match else 0
    return total


# Tunnels


@contextlib.contextmanager
def _sites(bench: Bench, contender: Contender) -> Iterator[Sites]:
    with Sites() as sites:
        folder = bench.new_folder("tunnel")
        try:
            with tunnel(sites, folder, CLIENTS[contender.client], SERVERS[contender.server]):
                sites.west.lan.run("ping", "-c", "3", "-i", "0.1", sites.east.inner)
                yield sites
        finally:
            sites.end_processes()


@contextlib.contextmanager
def tunnel_throughput(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure Mbit/s of one TCP stream through the tunnel, as the mean of both directions."""
    with _sites(bench, contender) as sites:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = sites.east.lan.popen(["iperf3", "-s"], stdin=subprocess.DEVNULL, **quiet)
        time.sleep(0.3)

        def one_way(*words: str) -> float:
            return iperf3(sites.west.lan, sites.east.inner, IPERF_SECONDS, *words) / 1e6

        try:
            yield lambda: (one_way() + one_way("-R")) / 2
        finally:
            end(server)


@contextlib.contextmanager
def tunnel_round_trip(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the mean milliseconds of a ping through an otherwise idle tunnel."""
    with _sites(bench, contender) as sites:

        def measure() -> float:
            ping = ["ping", "-q", "-c", str(PINGS), "-i", "0.01", sites.east.inner]
            return float(sites.west.lan.run(*ping).rpartition("= ")[2].split("/")[1])

        yield measure


WORKS = (
    Work(
        "tunnel",
        "Mbit/s",
        True,
        tunnel_throughput,
        [
            Line("VPN, one TCP stream, Culvert to Culvert", CULVERT, 2.0),
            Line("the same, OpenSSH's client", Contender("openssh", "culvert"), 1.2),
            Line("the same, OpenSSH's server", Contender("culvert", "openssh"), 1.2),
        ],
    ),
    Work(
        "round-trip",
        "ms",
        False,
        tunnel_round_trip,
        [Line("VPN, round trip of a small packet", CULVERT, 1.3)],
    ),
    Work(
        "download-gcm",
        "MB/s",
        True,
        download("aes128-gcm@openssh.com"),
        [Line("1 GiB from the server, aes128-gcm", CULVERT, 1.0)],
    ),
    Work(
        "upload-gcm",
        "MB/s",
        True,
        upload("aes128-gcm@openssh.com"),
        [Line("1 GiB to the server, aes128-gcm", CULVERT, 1.0)],
    ),
    Work(
        "download-chacha",
        "MB/s",
        True,
        download("chacha20-poly1305@openssh.com"),
        [Line("1 GiB from the server, chacha20-poly1305", CULVERT, 0.5)],
        dropbear=True,
    ),
    Work(
        "upload-chacha",
        "MB/s",
        True,
        upload("chacha20-poly1305@openssh.com"),
        [Line("1 GiB to the server, chacha20-poly1305", CULVERT, 0.5)],
        dropbear=True,
    ),
    Work(
        "login",
        "ms",
        False,
        login_and_true,
        [Line("login and `true`", CULVERT, 1.0)],
        dropbear=True,
    ),
    Work(
        "connections",
        "a second",
        True,
        logins_a_second,
        [Line("connections until authenticated", CULVERT, 1.0)],
        dropbear=True,
    ),
    Work(
        "memory",
        "MiB",
        False,
        idle_memory,
        [Line("memory of an idle connection on the server", CULVERT, 1.3)],
        dropbear=True,
    ),
)
