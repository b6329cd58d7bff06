"""scp -O, which runs scp at the far end; test_sftp_server.py has its newer protocol."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, OURS, pair_of, write_program
from tests.peers import ClientKind, Login, Server, find_program

BIG = 24 << 20  # bytes

Scp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scp(client: ClientKind, server: Server, login: Login, tmp_path: Path) -> Scp:
    """A function that runs scp with the client in place of its ssh."""
    call = client.invocation(server, login, None)
    program = write_program(tmp_path / "ssh", call.argv[:-1])

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [find_program("scp"), "-S", str(program), *words],
            env=call.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )

    return run


def assert_works(done: subprocess.CompletedProcess[str]) -> None:
    told = [line for line in done.stderr.splitlines() if "Ignoring unknown" not in line]
    assert (done.returncode, done.stdout, told) == (0, "", [])  # dbclient ignores scp's options


pairs = pytest.mark.parametrize(
    ("client", "server"),
    [*(pair_of(*names) for names in BESIDE_OPENSSH), pair_of("dbclient", OURS)],
    indirect=True,
)


@pairs
def test_files_and_folders_go_there_and_come_back(
    scp: Scp, server: Server, there: Path, tmp_path: Path
) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    (here / "deep/er").mkdir(parents=True)
    back.mkdir()
    (here / "big").write_bytes(os.urandom(BIG))
    (here / "deep/er/two words").write_text("text")
    (here / "program").write_text("#!/bin/sh\n")
    (here / "program").chmod(0o755)
    os.utime(here / "program", (1_000_000_000, 1_000_000_000))
    assert_works(scp("-O", "-r", "-p", str(here), f"{server.address}:{there}/"))
    assert_works(scp("-O", "-r", "-p", f"{server.address}:{there}/here", str(back)))
    for folder in (there / "here", back / "here"):
        assert (folder / "big").read_bytes() == (here / "big").read_bytes()
        assert (folder / "deep/er/two words").read_text() == "text"
        assert (folder / "program").stat().st_mode & 0o777 == 0o755
        assert (folder / "program").stat().st_mtime == 1_000_000_000


@pairs
def test_a_file_goes_from_the_far_end_to_the_far_end(scp: Scp, server: Server, there: Path) -> None:
    (there / "first").write_bytes(os.urandom(1 << 20))
    places = (f"{server.address}:{there}/{name}" for name in ("first", "second"))
    assert_works(scp("-O", "-3", *places))
    assert (there / "second").read_bytes() == (there / "first").read_bytes()


@pairs
def test_a_file_that_is_not_there_is_told(
    scp: Scp, server: Server, there: Path, tmp_path: Path
) -> None:
    done = scp("-O", f"{server.address}:{there}/none", str(tmp_path))
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
