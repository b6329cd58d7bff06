"""TinySSH, which knows Ed25519 and ChaCha20 only, one session a connection, and no forwards."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.peers import (
    CULVERT,
    Account,
    Invocation,
    Keyring,
    Terminal,
    environment,
    find_program,
    mistake_in,
)

pytestmark = pytest.mark.root

DATA = os.urandom(2 << 20)


@pytest.fixture
def words(tmp_path: Path, account: Account, user_keys: Keyring) -> list[str]:
    """Our client's command line; TinySSH serves one connection on its standard input."""
    keys = tmp_path / "keys"
    subprocess.run([find_program("tinysshd-makekey"), str(keys)], check=True)
    options = [
        "StrictHostKeyChecking=accept-new",
        f"UserKnownHostsFile={tmp_path / 'known_hosts'}",
        f"ProxyCommand={shlex.join([find_program('tinysshd'), '-v', str(keys)])}",
    ]
    argv = [*CULVERT, "ssh", "-F", "none", "-i", str(user_keys.key("ssh-ed25519"))]
    return [*argv, *(f"-o{option}" for option in options), f"{account.name}@tinyssh"]


def test_a_command_its_status_and_what_passes_through_it(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*words, "cat; echo err >&2; exit 7"],
        input=DATA, env=environment(tmp_path), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, DATA)
    assert b"\nerr\n" in done.stderr
    assert b"tinysshd: " in done.stderr  # its own lines, through the ProxyCommand


def test_a_terminal(words: list[str], tmp_path: Path) -> None:
    call = Invocation(words, environment(tmp_path, {"TERM": "xterm"}))
    with Terminal(call, rows=31, columns=97) as terminal:
        terminal.write(b"echo $((6*7)) and more; sleep 0.3; stty size\r")
        terminal.read_until(b"42 and more")
        terminal.read_until(b"31 97")
        terminal.resize(20, 70)
        terminal.write(b"sleep 0.3; stty size; exit 3\r")
        terminal.read_until(b"20 70")
        assert terminal.wait() == 3


def test_a_forward_is_refused_in_words(words: list[str], tmp_path: Path) -> None:
    argv = [*words[:-1], "-W", "127.0.0.1:9", words[-1]]
    done = subprocess.run(
        argv, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, timeout=20,
        check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 255
    assert not mistake_in(done.stderr)
    assert "only one 'session' channel allowed" in done.stderr
