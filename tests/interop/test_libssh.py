"""libssh, which qemu, hydra, remmina and Ansible's libssh plugin are linked with."""

import ctypes
import hashlib

import pytest

from tests.interop.libssh_client import LIBRARY
from tests.peers import Account, Algorithms, LibraryClient, Login, Missing, Server

BULK = 3 << 20  # bytes


@pytest.fixture
def libssh() -> LibraryClient:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Missing(f"{LIBRARY} is not installed") from error
    return LibraryClient("libssh")


@pytest.mark.parametrize("server", ["culvert"], indirect=True)
@pytest.mark.parametrize(
    "cipher", [None, "aes128-ctr", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"]
)
def test_a_command_its_status_and_its_output(
    libssh: LibraryClient, server: Server, login: Login, cipher: str | None
) -> None:
    command = f"seq 1 10000000 | head -c {BULK}; exit 7"
    done = libssh.run(server, login, command, Algorithms(cipher=cipher))
    assert done.status == 7, done.stderr
    wanted = "".join(f"{number}\n" for number in range(1, 1 << 20)).encode()[:BULK]
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(wanted).digest()


@pytest.mark.root
@pytest.mark.parametrize("server", ["culvert"], indirect=True)
def test_a_password(libssh: LibraryClient, server: Server, account: Account) -> None:
    done = libssh.run(server, Login(account, method="password"), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr
