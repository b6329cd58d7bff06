"""culvert scp over SSH: to each server, over a shared connection, between two hosts, and cut."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.interop.conftest import write_program
from tests.netns import wait_until
from tests.peers import CULVERT, SFTP_SERVER, Login, Server, environment, find_program


def server_named(name: str) -> Any:
    """The parameter of a test that needs this server, on one worker with others that do."""
    return pytest.param(name, marks=pytest.mark.xdist_group(name))


Done = subprocess.CompletedProcess[bytes]
Scp = Callable[..., Done]

servers = pytest.mark.parametrize(
    "server",
    [server_named(name) for name in ("openssh", "asyncssh", "culvert")],
    indirect=True,
)
openssh = pytest.mark.parametrize("server", [server_named("openssh")], indirect=True)


@pytest.fixture
def config(server: Server, login: Login, tmp_path: Path) -> Path:
    """A configuration in which the server has the names 'there' and 'yonder'."""
    path = tmp_path / "config"
    path.write_text(
        f"Host there yonder\n HostName {server.address}\n Port {server.port}\n"
        f" User {login.user}\n IdentityFile {login.key}\n IdentitiesOnly yes\n BatchMode yes\n"
        f" UserKnownHostsFile {server.known_hosts}\n GlobalKnownHostsFile /dev/null\n"
    )
    return path


@pytest.fixture
def scp(config: Path, server: Server) -> Scp:
    def run(*words: object) -> Done:
        return subprocess.run(
            [*CULVERT, "scp", "-F", config, *map(str, words)],
            env=environment(server.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


def assert_copied(done: Done) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@servers
def test_a_tree_goes_there_and_comes_back(scp: Scp, there: Path, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    (here / "deep").mkdir(parents=True)
    (here / "deep/big").write_bytes(os.urandom(5_000_000))
    for index in range(200):
        (here / f"{index}").write_bytes(os.urandom(index * 10))
    assert_copied(scp("-rp", here, f"there:{there}/copy"))
    assert_copied(scp("-r", f"there:{there}/copy", back))
    assert subprocess.run(["diff", "-r", here, back], check=False).returncode == 0
    assert os.stat(back / "deep/big").st_mode == os.stat(here / "deep/big").st_mode


@servers
def test_what_is_between_two_hosts_goes_through_this_one(scp: Scp, there: Path) -> None:
    (there / "file").write_bytes(content := os.urandom(1_000_000))
    assert_copied(scp("-3", f"there:{there}/file", f"yonder:{there}/copy"))
    assert (there / "copy").read_bytes() == content


@pytest.mark.parametrize(
    "server", [server_named("openssh"), server_named("culvert")], indirect=True
)
def test_what_cannot_be_read_or_written_is_told_with_its_reason(
    scp: Scp, there: Path, tmp_path: Path
) -> None:
    done = scp("there:/etc/shadow", tmp_path / "copy")
    assert done.returncode == 1
    assert done.stderr == b"culvert scp: /etc/shadow: Permission denied\n"
    assert not (tmp_path / "copy").exists()
    done = scp("/etc/hostname", "there:/etc/culvert-hostname")
    assert done.returncode == 1
    assert done.stderr == b"culvert scp: /etc/culvert-hostname: Permission denied\n"


@openssh
def test_a_shared_connection_is_used(
    scp: Scp, config: Path, server: Server, there: Path, tmp_path: Path
) -> None:
    path = tmp_path / "control"
    master = subprocess.Popen(
        [*CULVERT, "ssh", "-F", config, "-M", "-N", "-S", path, "there"],
        env=environment(server.folder),
    )
    try:
        assert wait_until(path.exists, 20)
        (there / "file").write_text("text")
        for _ in range(2):
            words = ("-o", f"ControlPath={path}", "-o", "IdentityFile=none", f"there:{there}/file")
            assert_copied(scp(*words, tmp_path / "copy"))
            assert (tmp_path / "copy").read_text() == "text"
            (tmp_path / "copy").unlink()
    finally:
        master.terminate()
        master.wait()


@openssh
def test_the_program_of_s_connects(
    scp: Scp, config: Path, there: Path, tmp_path: Path, server: Server
) -> None:
    (there / "file").write_text("text")
    program = write_program(tmp_path / "connect", [find_program("ssh"), "-F", str(config)])
    assert_copied(scp("-S", program, f"there:{there}/file", tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "text"


@servers
def test_a_connection_that_is_cut_ends_the_copy_with_an_error(
    config: Path, server: Server, there: Path, tmp_path: Path
) -> None:
    with open(there / "file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 30)  # no holes, which would be left out
    with relay(server) as cut:
        words = ["-P", str(cut.port), "-o", f"HostKeyAlias=[{server.address}]:{server.port}"]
        copy = subprocess.Popen(
            [*CULVERT, "scp", "-F", config, *words, f"there:{there}/file", tmp_path / "copy"],
            env=environment(server.folder),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert wait_until(lambda: (tmp_path / "copy").exists(), 20)
        cut.process.kill()
        _, told = copy.communicate(timeout=20)
    assert copy.returncode == 1
    assert told.startswith(b"culvert scp: ")
    assert told.count(b"\n") == 1


class Cut(NamedTuple):
    """A relay in another process, which cuts the connection when it is killed."""

    port: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def relay(server: Server) -> Iterator[Cut]:
    argv = [sys.executable, "-m", "tests.bench.line", server.address, str(server.port)]
    with subprocess.Popen(
        [*argv, "--milliseconds", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield Cut(int(process.stdout.readline()), process)
        process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def local(program: Sequence[str], *words: object) -> Done:
    return subprocess.run(
        [*CULVERT, "scp", "-D", shlex.join(program), *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [([SFTP_SERVER], "Failure"), ([*CULVERT, "sftp-server"], "No space left on device")],
)
def test_a_full_disk_is_an_error_at_either_end(
    small_disk: Path, tmp_path: Path, program: list[str], reason: str
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    done = local(program, tmp_path / "file", f"x:{small_disk}/file")
    assert (done.returncode, done.stderr) == (
        1,
        f"culvert scp: {small_disk}/file: {reason}\n".encode(),
    )
    done = local(program, f"x:{tmp_path}/file", small_disk / "copy")
    assert (done.returncode, done.stderr) == (
        1,
        f"culvert scp: {small_disk}/copy: No space left on device\n".encode(),
    )


def test_a_file_of_5_gib_keeps_its_holes_in_both_directions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with open(file, "wb") as sparse:
        for offset in (0, 1 << 31, 5 << 30):
            sparse.seek(offset)
            sparse.write(os.urandom(10_000))
        sparse.truncate((5 << 30) + 50_000)
    ours = [*CULVERT, "sftp-server"]
    assert_copied(local(ours, file, f"x:{tmp_path}/there"))
    assert_copied(local(ours, f"x:{tmp_path}/there", tmp_path / "back"))
    for copy in (tmp_path / "there", tmp_path / "back"):
        status = os.stat(copy)
        assert status.st_size == (5 << 30) + 50_000
        assert status.st_blocks * 512 < 1 << 20
        with open(copy, "rb") as copied, open(file, "rb") as original:
            for offset in (0, 1 << 31, 5 << 30):
                copied.seek(offset)
                original.seek(offset)
                assert copied.read(50_000) == original.read(50_000)


@pytest.mark.parametrize("program", [[SFTP_SERVER], [*CULVERT, "sftp-server"]])
def test_100_000_entries_are_copied_with_bounded_memory(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "many").mkdir()
    for index in range(100_000):
        os.mknod(tmp_path / "many" / f"entry-{index}")
    (tmp_path / "one").mkdir()
    command = shlex.join([*CULVERT, "scp", "-q", "-r", "-D", shlex.join(program)])
    limited = f"ulimit -v 400000; exec {command} x:{tmp_path}/many/entry-777* {tmp_path}/one"
    subprocess.run(["sh", "-c", limited], check=True, timeout=120)
    assert len(os.listdir(tmp_path / "one")) == 111


def test_paramiko_s_server_gets_a_file_and_gives_it_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(700_001))
    program = [sys.executable, "-m", "tests.interop.paramiko_sftp_server"]
    assert_copied(local(program, tmp_path / "file", f"x:{tmp_path}/there"))
    assert_copied(local(program, f"x:{tmp_path}/there", tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
