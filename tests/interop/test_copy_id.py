"""ssh-copy-id runs what PATH calls ssh: our client by a link, or OpenSSH at our server."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, OURS, pair_of, write_program
from tests.peers import (
    CULVERT,
    PATH,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    environment,
    find_program,
)


@pytest.fixture
def authorized(account: Account) -> Iterator[Path]:
    """The account's authorized_keys, which is afterwards as it was."""
    path = account.home / ".ssh/authorized_keys"
    before = path.read_text()
    yield path
    account.authorize(before.splitlines())


@pytest.fixture
def ssh(client: ClientKind, tmp_path: Path) -> Path:
    """A folder in which ssh is the client."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if client.name == OURS and len(CULVERT) == 1:
        (folder / "ssh").symlink_to(CULVERT[0])
    elif client.name == OURS:
        write_program(folder / "ssh", [*CULVERT, "ssh"])
    else:
        (folder / "ssh").symlink_to(find_program("ssh"))
    return folder


@pytest.mark.root
@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)
def test_a_key_is_installed_once(
    client: ClientKind,
    server: Server,
    login: Login,
    authorized: Path,
    ssh: Path,
    tmp_path: Path,
) -> None:
    key = Keyring(tmp_path / "new").key()
    new = Login(login.account, key)
    before = authorized.read_text()
    assert client.run(server, new, "true").status == 255  # not yet

    by_password = client.invocation(server, Login(login.account, method="password"), None)
    env = environment(tmp_path, {"PATH": f"{ssh}:{PATH}"})
    names = ("SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "TEST_PASSWORD")
    env |= {name: by_password.env[name] for name in names}
    (tmp_path / ".ssh").mkdir(mode=0o700)
    shutil.copy(server.known_hosts, tmp_path / "known_hosts")
    options = [f"-oUserKnownHostsFile={tmp_path / 'known_hosts'}", "-oGlobalKnownHostsFile=none"]
    argv = [find_program("ssh-copy-id"), "-i", f"{key}.pub", "-p", str(server.port), *options]
    argv.append(f"{login.user}@{server.address}")

    def copy_id() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    done = copy_id()
    assert done.returncode == 0, done.stderr
    assert "Number of key(s) added: 1" in done.stdout, done.stderr
    assert authorized.read_text() == before + Path(f"{key}.pub").read_text()
    assert client.run(server, new, "true").status == 0

    again = copy_id()
    assert "All keys were skipped because they already exist" in again.stderr
    assert again.returncode == 0
    assert authorized.read_text().count(Path(f"{key}.pub").read_text()) == 1


@pytest.mark.parametrize(("client", "server"), [pair_of(OURS, "dropbear")], indirect=True)
def test_it_learns_that_the_server_is_dropbear(
    client: ClientKind, server: Server, login: Login
) -> None:
    """By these words; it takes Dropbear to keep its keys in /etc."""
    options = ["-v", "-oPreferredAuthentications=,", "-oControlPath=none"]
    call = client.invocation(server, login, None, options=options)
    words = [word for word in call.argv if word != "-oPreferredAuthentications=publickey"]
    done = subprocess.run(
        words, env=call.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 255
    assert "remote software version dropbear_" in done.stderr
