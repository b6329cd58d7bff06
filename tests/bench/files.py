"""What copies of files are measured by: scp, sftp-server, one large file and many small ones.

The files lie in memory (/dev/shm), so that no disk is measured.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.server.sftp_program import SftpServer
from tests.bench.contest import (
    CULVERT,
    Bench,
    Contender,
    Line,
    Measure,
    Sample,
    Setup,
    Work,
)
from tests.bench.processes import private_size
from tests.netns import CommandFailed
from tests.peers import CULVERT as PROGRAM
from tests.peers import (
    SFTP_SERVER,
    Server,
    environment,
    find_program,
    private_folder,
    write_ssh_config,
)

BARE = Contender("tcp", "tcp")
PYTHON = Contender("python", "python")
TO_OPENSSH = Contender("culvert", "openssh")
FROM_OPENSSH = Contender("openssh", "culvert")

GIGABYTE = 1_000_000_000
NAMES = 100_000
NEAR = 20  # milliseconds of a round trip
ROUND_TRIP = 138  # milliseconds of the long line
RATE = 200  # Mbit/s
LONG = 150_000_000  # bytes of the file that goes over it
SMALL = 4096  # bytes


@contextlib.contextmanager
def line(address: str, port: int, milliseconds: float, rate: float = 0) -> Iterator[int]:
    """A relay that delays what it carries; yields its port."""
    argv = [sys.executable, "-m", "tests.bench.line", address, str(port)]
    argv += ["--milliseconds", str(milliseconds), "--rate", str(rate)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory that the benchmark's user may write to."""
    with private_folder("bench-files") as folder:
        memory = Path("/dev/shm") / folder.name
        memory.mkdir(mode=0o755)
        try:
            yield memory
        finally:
            shutil.rmtree(memory)


class Copier:
    """scp or sftp of a contender, to a server or to a line that leads to it."""

    def __init__(self, bench: Bench, contender: Contender, server: Server, port: int) -> None:
        config = write_ssh_config(bench.new_folder("config"), server, bench.login(), port)
        self._words = ["-q", "-F", str(config)]
        self._is_ours = contender.client == "culvert"
        self._environment = environment(server.folder)

    def _argv(self, program: str, words: Sequence[str]) -> list[str]:
        argv = [*PROGRAM, program] if self._is_ours else [find_program(program)]
        return [*argv, *self._words, *words]

    def start(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        """Start scp or sftp, with pipes."""
        return subprocess.Popen(
            self._argv(program, words),
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(self, program: str, *words: str, feed: str = "") -> float:
        """Run scp or sftp; return the seconds it took."""
        began = time.perf_counter()
        done = subprocess.run(
            self._argv(program, words),
            env=self._environment,
            input=feed,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(done.stderr)
        return time.perf_counter() - began


def _serving(bench: Bench, contender: Contender) -> contextlib.AbstractContextManager[Server]:
    return bench.serve(contender.server)


def large(direction: str) -> Setup:
    """Measure the megabytes a second of scp with one file of a gigabyte."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with memory_folder() as folder, _serving(bench, contender) as server:
            shutil.chown(folder, bench.account.name)
            content = os.urandom(1_000_000)
            with open(folder / "file", "wb") as file:
                for _ in range(GIGABYTE // len(content)):
                    file.write(content)
            copier = Copier(bench, contender, server, server.port)

            def measure() -> Sample:
                (folder / "copy").unlink(missing_ok=True)
                there = f"there:{folder}"
                words = [f"{folder}/file", f"{there}/copy"]
                if direction == "get":
                    words = [f"{there}/file", f"{folder}/copy"]
                return Sample(GIGABYTE / 1e6 / copier.run("scp", *words))

            yield measure

    return setup


def small(direction: str, milliseconds: float, count: int) -> Setup:
    """Measure the files a second of scp -r with files of 4 KiB."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with contextlib.ExitStack() as up:
            folder = up.enter_context(memory_folder())
            server = up.enter_context(_serving(bench, contender))
            shutil.chown(folder, bench.account.name)
            # OpenSSH takes minutes for what others do in seconds: it copies fewer of them.
            files = count if not milliseconds or contender.client == "culvert" else count // 20
            (folder / "files").mkdir()
            for index in range(files):
                (folder / "files" / str(index)).write_bytes(os.urandom(SMALL))
            port = server.port
            if milliseconds:
                port = up.enter_context(line(server.address, port, milliseconds))
            copier = Copier(bench, contender, server, port)

            def measure() -> Sample:
                shutil.rmtree(folder / "copy", ignore_errors=True)
                there = f"there:{folder}"
                words = [f"{folder}/files", f"{there}/copy"]
                if direction == "get":
                    words = [f"{there}/files", f"{folder}/copy"]
                return Sample(files / copier.run("scp", "-r", *words))

            yield measure

    return setup


@contextlib.contextmanager
def empty(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the milliseconds of scp with an empty file."""
    with memory_folder() as folder, _serving(bench, contender) as server:
        shutil.chown(folder, bench.account.name)
        (folder / "file").touch()
        copier = Copier(bench, contender, server, server.port)
        words = (f"there:{folder}/file", f"{folder}/copy")
        yield lambda: Sample(copier.run("scp", *words) * 1000)


def long_line(direction: str) -> Setup:
    """Measure the megabytes a second of one large file over a long line, without the login."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with contextlib.ExitStack() as up:
            if contender == BARE:
                yield up.enter_context(_bare_line())
                return
            folder = up.enter_context(memory_folder())
            server = up.enter_context(_serving(bench, contender))
            shutil.chown(folder, bench.account.name)
            (folder / "file").write_bytes(bytes(LONG))
            (folder / "empty").touch()
            port = up.enter_context(line(server.address, server.port, ROUND_TRIP, RATE))
            copier = Copier(bench, contender, server, port)

            def seconds(name: str) -> float:
                words = [f"there:{folder}/{name}", f"{folder}/copy"]
                if direction == "put":
                    words = [f"{folder}/{name}", f"there:{folder}/copy"]
                return copier.run("scp", *words)

            def measure() -> Sample:
                begun = seconds("empty")
                return Sample(LONG / 1e6 / (seconds("file") - begun))

            yield measure

    return setup


@contextlib.contextmanager
def _bare_line() -> Iterator[Measure]:
    """Measure the megabytes a second of a TCP connection over the long line."""
    argv = [sys.executable, "-m", "tests.bench.pump", "serve", "127.0.0.1", "--size", str(LONG)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None and serving.stdin is not None
        with line("127.0.0.1", int(serving.stdout.readline()), ROUND_TRIP, RATE) as port:
            words = [sys.executable, "-m", "tests.bench.pump", "fetch", "127.0.0.1", str(port)]

            def measure() -> Sample:
                argv = [*words, "1", "--size", str(LONG)]
                done = subprocess.run(argv, capture_output=True, check=True, text=True)
                return Sample(LONG / 1e6 / float(done.stdout))

            yield measure
        serving.stdin.close()


def _server_words(contender: Contender) -> list[str]:
    """The command line by which a monitor or sshd starts the SFTP server."""
    if contender.server == "openssh":
        return [SFTP_SERVER]
    return SftpServer((), False).command(None, "", False)


@contextlib.contextmanager
def _sftp_server(contender: Contender) -> Iterator[subprocess.Popen[bytes]]:
    """An SFTP server that has answered INIT."""
    with subprocess.Popen(
        _server_words(contender), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(bytes.fromhex("000000050100000003"))
        server.stdin.flush()
        if not server.stdout.read(4):
            raise CommandFailed("no answer to INIT")
        yield server
        server.stdin.close()
        server.stdout.read()


@contextlib.contextmanager
def server_start(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the milliseconds until INIT is answered, or those of a bare Python."""

    def measure() -> Sample:
        began = time.perf_counter()
        if contender == PYTHON:
            subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            return Sample((time.perf_counter() - began) * 1000)
        with _sftp_server(contender):
            return Sample((time.perf_counter() - began) * 1000)

    yield measure


@contextlib.contextmanager
def server_memory(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the private MiB of a server that waits for its client."""

    def measure() -> Sample:
        with _sftp_server(contender) as server:
            return Sample(private_size(server.pid) / (1 << 20))

    yield measure


@contextlib.contextmanager
def busy_memory(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the private MiB of a server that sends 16 files at once, at the most."""
    with memory_folder() as folder:
        (folder / "files").mkdir()
        for index in range(16):
            (folder / "files" / str(index)).write_bytes(bytes(1_000_000))
        program = folder / "server"
        words = shlex.join(_server_words(contender))
        program.write_text(f"#!/bin/sh\necho $$ >{folder}/pid\nexec {words}\n")
        program.chmod(0o755)

        def measure() -> Sample:
            (folder / "pid").write_text("")
            most = 0
            argv = [*PROGRAM, "scp", "-q", "-r", "-D", str(program)]
            with subprocess.Popen([*argv, f"x:{folder}/files", f"{folder}/copy"]) as copy:
                while copy.poll() is None:
                    with contextlib.suppress(OSError, ValueError):
                        most = max(most, private_size(int((folder / "pid").read_text())))
            shutil.rmtree(folder / "copy")
            return Sample(most / (1 << 20))

        yield measure


@contextlib.contextmanager
def prompt(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the milliseconds of sftp until its first command is done, which is bye."""
    with _serving(bench, contender) as server:
        copier = Copier(bench, contender, server, server.port)
        yield lambda: Sample(copier.run("sftp", "there", feed="bye\n") * 1000)


@contextlib.contextmanager
def _names(bench: Bench, contender: Contender) -> Iterator[tuple[Copier, Path]]:
    """A directory of many names at a server that is 20 ms away."""
    with (
        memory_folder() as folder,
        _serving(bench, contender) as server,
        line(server.address, server.port, NEAR) as port,
    ):
        for index in range(NAMES):
            os.mknod(folder / f"name-{index}")
        yield Copier(bench, contender, server, port), folder


@contextlib.contextmanager
def listing(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the seconds of `ls -1` in sftp, without the login."""
    with _names(bench, contender) as (copier, folder):

        def measure() -> Sample:
            begun = copier.run("sftp", "there", feed="bye\n")
            return Sample(copier.run("sftp", "there", feed=f"ls -1 {folder}\n") - begun)

        yield measure


@contextlib.contextmanager
def first_name(bench: Bench, contender: Contender) -> Iterator[Measure]:
    """Measure the round trips from `ls -1f` to its first name."""
    with _names(bench, contender) as (copier, folder):

        def measure() -> Sample:
            with copier.start("sftp", "there") as sftp:
                assert sftp.stdin is not None and sftp.stdout is not None
                _until(sftp, "pwd", b"Remote working directory")
                began = time.perf_counter()
                _until(sftp, f"ls -1f {folder}", b"name-")
                seconds = time.perf_counter() - began
                sftp.kill()
            return Sample(seconds / (NEAR / 1000))

        yield measure


def _until(sftp: subprocess.Popen[bytes], command: str, wanted: bytes) -> None:
    """Give sftp a command, and read its output until what is wanted is there."""
    assert sftp.stdin is not None and sftp.stdout is not None
    sftp.stdin.write(f"{command}\n".encode())
    sftp.stdin.flush()
    read = b""
    while wanted not in read:
        more = os.read(sftp.stdout.fileno(), 4096)
        if not more:
            raise CommandFailed("sftp has ended")
        read += more


def _to_each_server(what: str, target: float) -> list[Line]:
    return [
        Line(what, CULVERT, target),
        Line("the same, OpenSSH's server", TO_OPENSSH, target),
    ]


def _each_end(what: str, target: float) -> list[Line]:
    return [
        Line(what, CULVERT, target),
        Line("the same, OpenSSH's client", FROM_OPENSSH, target),
        Line("the same, OpenSSH's server", TO_OPENSSH, target),
    ]


FILE_WORKS = (
    Work("scp-get", "MB/s", True, large("get"), _each_end("scp of 1 GB from the server", 1.0)),
    Work("scp-put", "MB/s", True, large("put"), _each_end("scp of 1 GB to the server", 1.0)),
    Work(
        "scp-small-get",
        "files/s",
        True,
        small("get", 0, 2000),
        _each_end("scp -r of 2000 files of 4 KiB from the server", 1.0),
    ),
    Work(
        "scp-small-put",
        "files/s",
        True,
        small("put", 0, 2000),
        _each_end("scp -r of 2000 files of 4 KiB to the server", 1.0),
    ),
    Work(
        "scp-small-get-20ms",
        "files/s",
        True,
        small("get", NEAR, 2000),
        _to_each_server("the same from the server, 20 ms away", 5.0),
    ),
    Work(
        "scp-small-put-20ms",
        "files/s",
        True,
        small("put", NEAR, 2000),
        _to_each_server("the same to the server, 20 ms away", 5.0),
    ),
    Work(
        "scp-long-get",
        "MB/s",
        True,
        long_line("get"),
        _to_each_server(f"one file from the server, 138 ms away, {RATE} Mbit/s", 0.9),
        base=BARE,
        base_note="TCP alone",
    ),
    Work(
        "scp-long-put",
        "MB/s",
        True,
        long_line("put"),
        _to_each_server(f"one file to the server, 138 ms away, {RATE} Mbit/s", 0.9),
        base=BARE,
        base_note="TCP alone",
    ),
    Work(
        "sftp-server-start",
        "ms",
        False,
        server_start,
        [Line("sftp-server until it has answered INIT", CULVERT, 1.5)],
        base=PYTHON,
        base_note="a bare Python",
    ),
    Work(
        "sftp-server-memory",
        "MiB",
        False,
        server_memory,
        [Line("private memory of an idle sftp-server", CULVERT, None)],
    ),
    Work(
        "sftp-server-busy",
        "MiB",
        False,
        busy_memory,
        [Line("the same with 16 transfers", CULVERT, None)],
    ),
    Work("sftp-prompt", "ms", False, prompt, [Line("sftp until its prompt", CULVERT, 1.0)]),
    Work(
        "sftp-names",
        "s",
        False,
        listing,
        [Line(f"ls -1 of {NAMES:,} names in sftp, {NEAR} ms away", CULVERT, 0.1)],
    ),
    Work(
        "sftp-first-name",
        "round trips",
        False,
        first_name,
        [Line("the same with -f until its first line", CULVERT, 3.0)],
        base=None,
    ),
    Work("scp-empty", "ms", False, empty, [Line("scp of an empty file", CULVERT, 1.0)]),
)
