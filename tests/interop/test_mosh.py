"""mosh: its server is started over SSH, and from then on there is UDP, here over the loopback."""

import shlex
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, pair_of, words_of
from tests.peers import (
    ClientKind,
    Invocation,
    Login,
    Server,
    Terminal,
    environment,
    find_program,
)


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)
@pytest.mark.parametrize("way", ["proxy", "remote"])  # who tells mosh the server's address
def test_a_shell_by_mosh(
    client: ClientKind, server: Server, login: Login, tmp_path: Path, way: str
) -> None:
    find_program("mosh-server")
    shell = shlex.join(words_of(client, server, login))
    argv = [find_program("mosh"), f"--ssh={shell}", f"--experimental-remote-ip={way}"]
    argv += ["--predict=never", server.address, "--", "/bin/sh"]
    call = Invocation(argv, environment(tmp_path, {"TERM": "xterm-256color"}))
    with Terminal(call, rows=33, columns=97) as terminal:
        terminal.read_until(b"\x1b[")  # mosh-client draws
        terminal.write(b"stty size; echo $((6*7))-and-more\r")
        terminal.read_until(b"33 97")
        terminal.read_until(b"42-and-more")
        terminal.resize(20, 70)
        terminal.write(b"sleep 0.3; stty size; locale charmap\r")
        terminal.read_until(b"20 70")
        terminal.read_until(b"UTF-8")
        terminal.write(b"exit\r")
        terminal.read_until(b"[mosh is exiting.]")
        assert terminal.wait() == 0
