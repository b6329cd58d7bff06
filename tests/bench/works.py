"""What is measured, one `Work` for each kind, and how it is done over connections.

How tunnels are measured stands in `vpn.py`.
"""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import forwards, vpn
from tests.bench.contest import (
    CULVERT,
    DROPBEAR,
    WIREGUARD,
    Bench,
    Contender,
    Line,
    Measure,
    Rival,
    Sample,
    Setup,
    Work,
)
from tests.bench.files import FILE_WORKS
from tests.bench.mounts import MOUNT_WORKS
from tests.bench.processes import family, proportional_set_size
from tests.bench.x11 import X11_WORKS
from tests.netns import CommandFailed, wait_until
from tests.peers import CLIENTS, Algorithms, Invocation, Server, end, environment

GIBIBYTE = 1 << 30
IDLE_CONNECTIONS = 500
ATTACKS = 200  # a second
LOGINS = 40  # in each measurement of connections a second


# One connection


@contextlib.contextmanager
def login_and_true(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the milliseconds that `ssh host true` takes."""
    with bench.serve(contender.server) as server:

        def measure() -> Sample:
            began = time.perf_counter()
            done = CLIENTS[contender.client].run(server, bench.login(), "true")
            if done.status != 0:
                raise CommandFailed(done.stderr)
            return Sample((time.perf_counter() - began) * 1000)

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
            yield lambda: Sample(GIBIBYTE / 1e6 / _run(call, "/dev/null"))

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
            yield lambda: Sample(GIBIBYTE / 1e6 / _run(fed, "/dev/null"))

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

        def measure() -> Sample:
            done = subprocess.run(
                _connections(bench, server, "logins", LOGINS),
                env=environment(server.folder),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise CommandFailed(f"{done.stderr}\n{server.log}")
            return Sample(float(done.stdout))

        yield measure


@contextlib.contextmanager
def _at_work(bench: Bench, server: Server, work: str, count: int) -> Iterator[None]:
    """Have AsyncSSH hold connections, or attack, until its standard input ends."""
    process = subprocess.Popen(
        _connections(bench, server, work, count),
        env=environment(server.folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise CommandFailed(f"'{work}' did not begin\n{server.log}")
        yield
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        end(process)
        process.stdout.close()


def _size_of_all(server: Server) -> int:
    return sum(map(proportional_set_size, family(server.process.pid)))


def idle_memory(merged: bool) -> Setup:
    """Measure the mebibytes (PSS) that one idle connection adds, over all of its processes.

    ``merged``: with the kernel's samepage merging, of which ours has a part.
    """

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        options = bench.merging(contender.server) if merged else ()
        with bench.serve(contender.server, options) as server:

            def measure() -> Sample:
                before = _size_of_all(server)
                with _at_work(bench, server, "hold", IDLE_CONNECTIONS):
                    time.sleep(1)  # what follows a login, such as the end of helper processes
                    with _merging() if options else contextlib.nullcontext():
                        after = _size_of_all(server)
                time.sleep(1)  # the server's processes end
                return Sample((after - before) / IDLE_CONNECTIONS / (1 << 20))

            yield measure

    return setup


KSM = Path("/sys/kernel/mm/ksm")


@contextlib.contextmanager
def _merging() -> Iterator[None]:
    """Have ksmd look at all pages three times, faster than it would; then let it be as it was."""
    before = {name: (KSM / name).read_text() for name in ("pages_to_scan", "run")}
    try:
        for name, value in (("pages_to_scan", "20000"), ("run", "1")):
            (KSM / name).write_text(value)
        scans = int((KSM / "full_scans").read_text())
        if not wait_until(lambda: int((KSM / "full_scans").read_text()) > scans + 3, 300):
            raise CommandFailed("ksmd does not look at the pages")
        yield
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


@contextlib.contextmanager
def login_under_attack(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure how many times its idle time a login takes while somebody else floods the server."""
    with bench.serve(contender.server, bench.penalties(contender.server)) as server:
        kind = CLIENTS[contender.client]

        def login() -> float:
            began = time.perf_counter()
            done = kind.run(server, bench.login(), "true")
            if done.status != 0:
                raise CommandFailed(f"{done.stderr}\n{server.log[-2000:]}")
            return time.perf_counter() - began

        def median() -> float:
            return statistics.median(login() for _ in range(5))

        def measure() -> Sample:
            idle = median()
            with _at_work(bench, server, "attack", ATTACKS):
                time.sleep(2)  # until it is in full swing, and found out
                return Sample(median() / idle)

        yield measure


BESIDE_DROPBEAR = (Rival("Dropbear", DROPBEAR),)
BESIDE_WIREGUARD = (Rival("wireguard-go", WIREGUARD, 1.5),)


def _one_stream(name: str, way: str, *words: str) -> Work:
    return Work(
        name,
        "Mbit/s",
        True,
        vpn.tcp(*words),
        [
            Line(f"VPN, one TCP stream {way} the server", CULVERT, 10.0, BESIDE_WIREGUARD),
            Line("the same, OpenSSH's client", Contender("openssh", "culvert"), 1.5),
            Line("the same, OpenSSH's server", Contender("culvert", "openssh"), 1.5),
        ],
    )


def _four_streams(name: str, way: str, *words: str) -> Work:
    return Work(
        name,
        "Mbit/s",
        True,
        vpn.tcp("-P", "4", *words),
        [Line(f"VPN, four TCP streams {way} the server", CULVERT, 10.0, BESIDE_WIREGUARD)],
    )


WORKS = (
    _one_stream("tunnel-to", "to"),
    _one_stream("tunnel-from", "from", "-R"),
    _four_streams("tunnel4-to", "to"),
    _four_streams("tunnel4-from", "from", "-R"),
    Work(
        "tunnel-udp",
        "Mbit/s",
        True,
        vpn.udp,
        [Line("VPN, UDP of 1400 bytes to the server, < 1 % lost", CULVERT, 1.5)],
    ),
    Work(
        "round-trip",
        "ms",
        False,
        vpn.round_trip,
        [Line("VPN, round trip of a small packet", CULVERT, 1.1)],
    ),
    Work(
        "busy-round-trip",
        "ms",
        False,
        vpn.busy_round_trip,
        [Line("the same, beside a TCP stream", CULVERT, 1.0)],
    ),
    Work(
        "links",
        "Mbit/s",
        True,
        vpn.links,
        [Line("VPN, 8 links, one TCP stream in each", Contender("culvert", "culvert", 8), 1.0)],
        base=CULVERT,
        base_note="one link",
    ),
    Work(
        "tunnel-processor",
        "s a GiB",
        False,
        vpn.processor_time,
        [
            Line(
                "VPN, processor time of TCP, both ends",
                CULVERT,
                0.2,
                [Rival("wireguard-go", WIREGUARD)],
            )
        ],
    ),
    Work(
        "supervisor-memory",
        "MiB",
        False,
        vpn.supervisor_memory,
        [Line("memory of `culvert up` with 8 links", CULVERT, None)],
        base=None,
    ),
    Work(
        "link-memory",
        "MiB",
        False,
        vpn.link_memory,
        [Line("memory of each link's process", CULVERT, None)],
        base=None,
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
        [Line("1 GiB from the server, chacha20-poly1305", CULVERT, 0.5, BESIDE_DROPBEAR)],
    ),
    Work(
        "upload-chacha",
        "MB/s",
        True,
        upload("chacha20-poly1305@openssh.com"),
        [Line("1 GiB to the server, chacha20-poly1305", CULVERT, 0.5, BESIDE_DROPBEAR)],
    ),
    Work(
        "forward-stream",
        "MB/s",
        True,
        forwards.streams(1, 1_000_000_000),
        [Line("1 GB through -L", CULVERT, 1.0, BESIDE_DROPBEAR)],
    ),
    Work(
        "forward-many",
        "MB/s",
        True,
        forwards.streams(1000, 1_000_000),
        [Line("1000 connections of 1 MB at once through -L", CULVERT, 1.0)],
    ),
    Work(
        "socks",
        "ms",
        False,
        forwards.socks("localhost"),
        [Line("a request through -D", CULVERT, 1.2)],
    ),
    Work(
        "socks-name",
        "ms",
        False,
        forwards.socks(socket.gethostname()),
        [Line("the same, with a name that has to be looked up", CULVERT, 1.2)],
    ),
    Work(
        "login",
        "ms",
        False,
        login_and_true,
        [Line("login and `true`", CULVERT, 1.0, BESIDE_DROPBEAR)],
    ),
    Work(
        "connections",
        "a second",
        True,
        logins_a_second,
        [Line("connections until authenticated", CULVERT, 1.0, BESIDE_DROPBEAR)],
    ),
    Work(
        "attack",
        "times",
        False,
        login_under_attack,
        [Line("a login under 200 connections a second, to an idle one", CULVERT, 2.0)],
        base=None,
    ),
    Work(
        "memory",
        "MiB",
        False,
        idle_memory(merged=False),
        [Line("memory of an idle connection on the server", CULVERT, 1.3, BESIDE_DROPBEAR)],
    ),
    Work(
        "memory-merged",
        "MiB",
        False,
        idle_memory(merged=True),
        [Line("the same with merge_memory (KSM)", CULVERT, 1.3)],
    ),
    *FILE_WORKS,
    *MOUNT_WORKS,
    *X11_WORKS,
)
