"""rclone, which brings an SSH of its own (Go's x/crypto/ssh), with our server."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns import wait_until
from tests.peers import (
    KEY_TYPES,
    SERVERS,
    Account,
    Keyring,
    Server,
    ServerSettings,
    environment,
    find_program,
    start,
)

SFTP_SERVER = "/usr/lib/openssh/sftp-server"

Serve = Callable[..., Server]


@pytest.fixture
def serve_rclone(
    account: Account, host_keys: Keyring, authorized_keys: Path, tmp_path: Path
) -> Iterator[Serve]:
    """A function that starts our server with these settings."""
    running: list[Server] = []

    def run(text: str = "") -> Server:
        config = tmp_path / "sshd.toml"
        config.write_text(text)
        settings = ServerSettings(
            host_keys.keys(),
            authorized_keys=None if account.password else authorized_keys,
            passwords=True,
            options=("--config", str(config)),
        )
        running.append(start(SERVERS["culvert"], settings, tmp_path / "server"))
        return running[-1]

    yield run
    for server in running:
        server.stop()


def rclone(
    server: Server, account: Account, *words: str, key: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run rclone, for which `:sftp:` is the server, with a key or the password."""
    program = find_program("rclone")
    env = environment(
        server.folder,
        {
            "RCLONE_CONFIG": "/notfound",  # its word for none
            "RCLONE_LOW_LEVEL_RETRIES": "1",
            "RCLONE_SFTP_HOST": server.address,
            "RCLONE_SFTP_PORT": str(server.port),
            "RCLONE_SFTP_USER": account.name,
            "RCLONE_SFTP_KNOWN_HOSTS_FILE": str(server.known_hosts),
        },
    )
    if key is not None:
        env["RCLONE_SFTP_KEY_FILE"] = str(key)
    else:
        hidden = subprocess.run(
            [program, "obscure", account.password], env=env, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        env["RCLONE_SFTP_PASS"] = hidden.stdout.strip()
    return subprocess.run(
        [program, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("key_type", [*KEY_TYPES, pytest.param(None, marks=pytest.mark.root)])
def test_rclone_logs_in_and_says_that_there_is_no_sftp(
    serve_rclone: Serve, account: Account, user_keys: Keyring, key_type: str | None
) -> None:
    server = serve_rclone("sftp = false\n")
    key = None if key_type is None else user_keys.key(key_type)
    done = rclone(server, account, "lsf", ":sftp:/", key=key)
    assert (done.returncode, done.stdout) == (1, "")
    assert "couldn't initialise SFTP: ssh: subsystem request failed" in done.stderr
    assert wait_until(lambda: "disconnected from" in server.log, 5)
    with_what = "password" if key is None else f"publickey {key_type}"
    assert f"user {account.name} logged in from 127.0.0.1" in server.log
    assert f"with {with_what}" in server.log
    assert "subsystem refused: no such subsystem" in server.log
    assert server.log.count("connection from") == server.log.count("disconnected from") == 1


def test_rclone_with_a_strange_key_is_told_so(
    serve_rclone: Serve, account: Account, host_keys: Keyring
) -> None:
    server = serve_rclone()
    done = rclone(server, account, "lsf", ":sftp:/", key=host_keys.key())
    assert (done.returncode, done.stdout) == (1, "")
    assert "ssh: unable to authenticate, attempted methods [none publickey]" in done.stderr
    assert f"user {account.name} from 127.0.0.1" in server.log
    assert "refused: publickey: key not accepted" in server.log


@pytest.mark.parametrize("lines", ["", f"[subsystems]\nsftp = '{SFTP_SERVER}'\n"])
def test_rclone_copies_by_sftp_and_runs_commands(
    serve_rclone: Serve,
    account: Account,
    user_keys: Keyring,
    there: Path,
    tmp_path: Path,
    lines: str,
) -> None:
    """It compares by running md5sum at the far end; meanwhile keys are exchanged again."""
    server = serve_rclone(f"rekey_bytes = 4194304\n{lines}")
    here, back = tmp_path / "here", tmp_path / "back"
    here.mkdir()
    (here / "big").write_bytes(os.urandom(24 << 20))
    for number in range(50):
        (here / f"file {number}").write_bytes(os.urandom(number))
    far = f":sftp:{there}/copy"
    key = user_keys.key()
    for words in (("copy", str(here), far), ("copy", far, str(back))):
        done = rclone(server, account, *words, key=key)
        assert done.returncode == 0, done.stderr
    for path in here.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()
    done = rclone(server, account, "check", str(here), far, key=key)
    assert done.returncode == 0, done.stderr
    assert "51 matching files" in done.stderr
    assert "could not be checked" not in done.stderr  # as it says without md5sum
