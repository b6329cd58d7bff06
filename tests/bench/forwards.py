"""What is measured of forwards: streams through -L, and the time that a request by -D takes."""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.bench.contest import Bench, Contender, Measure, Sample, Setup
from tests.netns import CommandFailed, wait_until
from tests.peers import CLIENTS, Server, end, environment, free_port

ADDRESS = "127.0.0.1"
REQUESTS = 100  # in each measurement of SOCKS


@contextlib.contextmanager
def _pump(bench: Bench, size: int) -> Iterator[int]:
    """Serve `size` bytes to each byte that comes; yield the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.pump", "serve", ADDRESS, "--size", str(size)],
        env=environment(bench.folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        end(process)


@contextlib.contextmanager
def _forwarding(
    bench: Bench, contender: Contender, server: Server, letter: str, rest: str = ""
) -> Iterator[int]:
    """A client that forwards a port, which is yielded."""
    port = free_port()
    client = CLIENTS[contender.client]
    options = ("-N", letter, f"{port}{rest}")
    call = client.invocation(server, bench.login(), None, options=options)
    argv = ["prlimit", "--nofile=20000", *call.argv]
    with subprocess.Popen(argv, env=call.env, stdin=subprocess.DEVNULL) as process:
        try:
            if not wait_until(lambda: _listens(port), 20):
                raise CommandFailed(f"{client.name} does not forward\n{server.log}")
            yield port
        finally:
            end(process)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((ADDRESS, port)) == 0


def streams(count: int, size: int) -> Setup:
    """Measure the megabytes a second of `count` connections at once, of `size` bytes each."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with (
            bench.serve(contender.server) as server,
            _pump(bench, size) as target,
            _forwarding(bench, contender, server, "-L", f":{ADDRESS}:{target}") as port,
        ):

            def measure() -> Sample:
                done = subprocess.run(
                    ["prlimit", "--nofile=20000", sys.executable, "-m", "tests.bench.pump",
                     "fetch", ADDRESS, str(port), str(count), "--size", str(size)],
                    env=environment(bench.folder), capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode != 0:
                    raise CommandFailed(f"{done.stderr}\n{server.log}")
                return Sample(count * size / 1e6 / float(done.stdout))

            yield measure

    return setup


def socks(host: str) -> Setup:
    """Measure the milliseconds from a connection to -D to the first byte from `host`."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with (
            bench.serve(contender.server) as server,
            _pump(bench, 1) as target,
            _forwarding(bench, contender, server, "-D") as port,
        ):

            def measure() -> Sample:
                return Sample(
                    statistics.median(_request(port, host, target) for _ in range(REQUESTS)) * 1000
                )

            yield measure

    return setup


def _request(port: int, host: str, target: int) -> float:
    """Return the seconds that one takes, as a browser makes it (RFC 1928, by name)."""
    began = time.perf_counter()
    with socket.create_connection((ADDRESS, port)) as sock:
        sock.sendall(b"\5\1\0")
        if sock.recv(2) != b"\5\0":
            raise CommandFailed("the SOCKS port wants a password")
        name = host.encode()
        sock.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + target.to_bytes(2, "big"))
        if sock.recv(10)[:2] != b"\5\0":
            raise CommandFailed("the SOCKS port does not connect")
        sock.sendall(b"?")
        if len(sock.recv(1)) != 1:
            raise CommandFailed("nothing came through the SOCKS port")
    return time.perf_counter() - began
