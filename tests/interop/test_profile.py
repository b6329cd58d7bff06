"""The hardened profile with stock peers: it carries sessions, and refuses all that it excludes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    SERVERS,
    Account,
    Algorithms,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    environment,
)

Run = Callable[[ServerKind, ServerSettings], Server]

HARDENED = ["--profile", "hardened"]
OURS = ["-o", "profile=hardened"]
POST_QUANTUM = "mlkem768x25519-sha256"
SPEAK_IT = ("asyncssh", "paramiko", "culvert", "culvert-dbclient")


@pytest.fixture
def server(serve: Run, host_keys: Keyring, authorized_keys: Path) -> Server:
    """Ours with the profile, and an RSA key besides the usual one."""
    keys = host_keys.keys(["ssh-ed25519", "ssh-rsa"])
    own = authorized_keys if os.geteuid() else None
    return serve(SERVERS["culvert"], ServerSettings(keys, authorized_keys=own, options=HARDENED))


def run(client: ClientKind, server: Server, login: Login, offer: Algorithms) -> tuple[int, bytes]:
    done = client.run(server, login, "echo done", offer)
    return done.status, done.stdout


@pytest.mark.parametrize("name", SPEAK_IT)
def test_a_client_with_the_post_quantum_exchange_gets_a_session(
    name: str, server: Server, account: Account, user_keys: Keyring
) -> None:
    login = Login(account, user_keys.key())
    assert run(CLIENTS[name], server, login, Algorithms()) == (0, b"done\n")


@pytest.mark.parametrize("name", ["openssh", "dbclient", "plink"])
def test_a_client_without_it_is_told_so_or_gets_a_session(
    name: str, server: Server, account: Account, user_keys: Keyring
) -> None:
    """Their newer versions have it."""
    done = CLIENTS[name].run(server, Login(account, user_keys.key()), "echo done")
    if done.status == 0:
        assert done.stdout == b"done\n"
    else:
        said = done.stderr.lower()
        assert "no matching key exchange" in said or "couldn't agree" in said or "kex" in said
        assert wait_until(lambda: "no key exchange method in common" in server.log)


@pytest.mark.parametrize(
    ("offer", "works"),
    [
        (Algorithms(kex=POST_QUANTUM), True),
        (Algorithms(kex="curve25519-sha256"), False),
        (Algorithms(kex="ecdh-sha2-nistp256"), False),
        (Algorithms(kex="diffie-hellman-group16-sha512"), False),
        (Algorithms(host_key="ssh-ed25519"), True),
        (Algorithms(host_key="rsa-sha2-512"), True),
        (Algorithms(host_key="ecdsa-sha2-nistp256"), False),
        (Algorithms(cipher="aes256-gcm@openssh.com"), True),
        (Algorithms(cipher="chacha20-poly1305@openssh.com"), True),
        (Algorithms(cipher="aes256-ctr", mac="hmac-sha2-256-etm@openssh.com"), True),
        (Algorithms(cipher="aes256-ctr", mac="hmac-sha2-512-etm@openssh.com"), True),
        (Algorithms(cipher="aes256-ctr", mac="hmac-sha2-256"), False),
        (Algorithms(cipher="aes256-ctr", mac="hmac-sha2-512"), False),
    ],
)
def test_what_a_stock_client_offers_is_taken_from_the_profile_alone(
    server: Server, account: Account, user_keys: Keyring, offer: Algorithms, works: bool
) -> None:
    status, output = run(CLIENTS["asyncssh"], server, Login(account, user_keys.key()), offer)
    assert (status == 0, output) == (works, b"done\n" if works else b"")


@pytest.mark.parametrize(
    ("key_type", "works"),
    [
        ("ssh-ed25519", True),
        ("ssh-rsa", True),  # of 3072 bits
        ("ecdsa-sha2-nistp256", False),
        ("ecdsa-sha2-nistp384", False),
        ("ecdsa-sha2-nistp521", False),
    ],
)
@pytest.mark.parametrize("name", ["asyncssh", "culvert"])
def test_users_log_in_with_the_keys_that_it_leaves(
    server: Server, account: Account, user_keys: Keyring, name: str, key_type: str, works: bool
) -> None:
    login = Login(account, user_keys.key(key_type))
    assert (run(CLIENTS[name], server, login, Algorithms())[0] == 0) == works


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-b", "2048", "-t", "rsa"], "this profile wants RSA host keys of 3072 bits"),
        (["-t", "ecdsa"], "no host key that this profile accepts"),
    ],
)
def test_a_server_does_not_start_with_a_host_key_that_it_excludes(
    tmp_path: Path, options: list[str], told: str
) -> None:
    path = tmp_path / "key"
    words = ["ssh-keygen", "-q", "-N", "", "-f", str(path), *options]
    subprocess.run(words, check=True, env=environment(tmp_path))
    done = subprocess.run(
        [*CULVERT, "sshd", "--check", "-r", str(path), *HARDENED],
        env=environment(tmp_path), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "works"), [("asyncssh", True), ("dropbear", False)])
def test_our_client_takes_from_a_stock_server_what_the_profile_leaves(
    serve: Run,
    host_keys: Keyring,
    authorized_keys: Path,
    account: Account,
    user_keys: Keyring,
    name: str,
    works: bool,
) -> None:
    own = None if account.password else authorized_keys
    keys = host_keys.keys(["ssh-ed25519"])
    settings = ServerSettings(keys, authorized_keys=own, accounts=[account])
    server = serve(SERVERS[name], settings)
    done = CLIENTS["culvert"].run(
        server, Login(account, user_keys.key()), "echo done", options=OURS
    )
    assert (done.status, done.stdout) == ((0, b"done\n") if works else (255, b"")), done.stderr
    if not works:
        assert "no key exchange method in common" in done.stderr
