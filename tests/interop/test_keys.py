"""The keys that Culvert's client takes: every file format, encrypted ones, an agent's."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import OURS, pair_of
from tests.peers import (
    Account,
    ClientKind,
    Invocation,
    Keyring,
    Login,
    Server,
    dropbear_key,
    find_program,
    ssh_agent,
)

pytestmark = pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, "openssh")], indirect=True
)

PASSPHRASE = "with a space and ü"


def converted(key: Path, folder: Path, *options: str) -> Path:
    """Return a copy of a private key that ssh-keygen has written anew."""
    path = folder / "id"
    path.write_bytes(key.read_bytes())
    path.chmod(0o600)
    argv = [find_program("ssh-keygen"), "-q", "-p", "-P", "", "-f", str(path), *options]
    subprocess.run(argv, check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("key_type", "form"),
    [
        ("ssh-rsa", "PEM"),
        ("ecdsa-sha2-nistp256", "PEM"),
        ("ecdsa-sha2-nistp521", "PEM"),
        ("ssh-rsa", "PKCS8"),
        ("ecdsa-sha2-nistp384", "PKCS8"),
    ],
)
@pytest.mark.parametrize("passphrase", ["", PASSPHRASE], ids=["plain", "encrypted"])
def test_a_key_in_an_older_format_logs_in(
    client: ClientKind,
    server: Server,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
    key_type: str,
    form: str,
    passphrase: str,
) -> None:
    key = converted(user_keys.key(key_type), tmp_path, "-N", passphrase, "-m", form)
    done = client.run(server, Login(account, key, passphrase=passphrase), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


@pytest.mark.parametrize("cipher", ["aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com"])
def test_an_encrypted_key_logs_in_with_its_passphrase(
    client: ClientKind,
    server: Server,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
    cipher: str,
) -> None:
    key = converted(user_keys.key(), tmp_path, "-N", PASSPHRASE, "-Z", cipher)
    done = client.run(server, Login(account, key, passphrase=PASSPHRASE), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr
    done = client.run(server, Login(account, key, passphrase="wrong"), "echo in")
    assert (done.status, done.stdout) == (255, b""), done.stderr


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_key_in_dropbears_format_logs_in(
    client: ClientKind, server: Server, account: Account, user_keys: Keyring, key_type: str
) -> None:
    key = dropbear_key(user_keys.key(key_type))
    done = client.run(server, Login(account, key), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent without keys."""
    with ssh_agent(tmp_path / "agent") as path:
        yield path


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ecdsa-sha2-nistp384", "ssh-rsa"])
def test_a_key_of_an_agent_logs_in(
    client: ClientKind,
    server: Server,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
    agent: Path,
    key_type: str,
) -> None:
    env = os.environ | {"SSH_AUTH_SOCK": str(agent)}
    argv = [find_program("ssh-add"), "-q", str(user_keys.key(key_type))]
    subprocess.run(argv, env=env, check=True)
    call = client.invocation(server, Login(account, tmp_path / "none"), "echo in")
    words = [word for word in call.argv if word != "-oIdentitiesOnly=yes"]
    call = Invocation(words, call.env | {"SSH_AUTH_SOCK": str(agent)})
    done = subprocess.run(call.argv, env=call.env, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr
