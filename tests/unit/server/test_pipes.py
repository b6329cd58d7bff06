"""A connection on standard input and output: inetd, and a proxy command's pipes."""

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from tests.peers import CULVERT, Account, Keyring, environment, find_program, mistake_in
from tests.unit.server.conftest import Dialler

LARGE = os.urandom(3 << 20)


def inetd(
    host_keys: Keyring, tmp_path: Path, *options: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*CULVERT, "sshd", "-i", "-E", "-r", str(host_keys.key()), *options],
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
            env=environment(tmp_path),
        )  # fmt: skip
    return process, ours


def test_inetd_mode_serves_one_connection_on_standard_input(
    host_keys: Keyring,
    authorized_keys: Path,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
) -> None:
    keys = ["-D", str(authorized_keys.parent)] if os.geteuid() else []
    process, sock = inetd(host_keys, tmp_path, *keys)
    sock.settimeout(20)
    try:
        Dialler(sock, account, user_keys.key()).log_in()
    finally:
        sock.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("program", ["{}", "cat | {} | cat"], ids=["socket", "pipes"])
def test_inetd_mode_is_a_proxy_command(
    host_keys: Keyring,
    authorized_keys: Path,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
    program: str,
) -> None:
    """OpenSSH's client gives it a socket; behind cat there are two pipes."""
    keys = ["-D", str(authorized_keys.parent)] if os.geteuid() else []
    server = [*CULVERT, "sshd", "-i", "-E", "-r", str(host_keys.key()), *keys]
    options = {
        "ProxyCommand": program.format(f"{shlex.join(server)} 2>{tmp_path / 'log'}"),
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "BatchMode": "yes",
    }
    done = subprocess.run(
        [find_program("ssh"), "-F", "none", *(f"-o{key}={value}" for key, value in options.items()),
         "-i", str(user_keys.key()), "-l", account.name, "culvert", "cat; exit 7"],
        input=LARGE, env=environment(tmp_path), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, LARGE), done.stderr
    assert not mistake_in((tmp_path / "log").read_text())


@pytest.mark.parametrize("end", ["stdin", "stdout"])
def test_the_end_of_either_pipe_ends_a_connection(
    host_keys: Keyring, tmp_path: Path, end: str
) -> None:
    server = [*CULVERT, "sshd", "-i", "-r", str(host_keys.key())]
    process = subprocess.Popen(
        server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(tmp_path)
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline().startswith(b"SSH-2.0-")
        if end == "stdin":
            process.stdin.close()
        else:
            process.stdout.close()
            process.stdin.write(b"no version\n")  # it has to say so, and finds nobody
            process.stdin.flush()
        assert process.wait(20) == 0


def test_a_connection_that_is_standard_error_too_gets_no_line_of_the_servers(
    host_keys: Keyring, tmp_path: Path
) -> None:
    """As inetd arranges it; there is no system's log here, which would be told."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*CULVERT, "sshd", "-i", "-r", str(host_keys.key())],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno(),
                env=environment(tmp_path),
            )  # fmt: skip
        ours.settimeout(20)
        said = ours.recv(100)
        assert said.startswith(b"SSH-2.0-"), said
    assert process.wait(20) == 0
