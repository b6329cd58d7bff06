"""Certificates and revocation lists between Culvert and OpenSSH, made by the one or the other."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.conftest import OURS, pair_of
from tests.peers import (
    CULVERT,
    KEY_TYPES,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Result,
    Server,
    ServerKind,
    ServerSettings,
    environment,
    find_program,
    private_folder,
    ssh_agent,
)

PAIRS = [("openssh", OURS), (OURS, "openssh"), (OURS, OURS)]
KEYGENS = {"openssh": ["ssh-keygen"], "culvert": [*CULVERT, "keygen"]}
ALL = pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in PAIRS], indirect=True
)


class Office(NamedTuple):
    """An authority with its files."""

    folder: Path

    def keygen(self, maker: str, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        argv = [*KEYGENS[maker], *map(str, words)]
        argv[0] = argv[0] if maker == "culvert" else find_program(argv[0])
        env = environment(self.folder)
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)

    def sign(self, maker: str, key: Path, *words: str) -> None:
        """Make KEY-cert.pub of KEY.pub."""
        done = self.keygen(maker, "-q", "-s", self.folder / "ca", "-I", "an id", *words, key)
        assert done.returncode == 0, done.stderr

    def revoke(self, maker: str, spec: str) -> None:
        """Make the servers' revocation list."""
        (self.folder / "spec").write_text(spec)
        files = ("-s", self.folder / "ca.pub", self.folder / "spec")
        done = self.keygen(maker, "-q", "-k", "-f", self.folder / "krl.new", *files)
        assert done.returncode == 0, done.stderr
        (self.folder / "krl.new").replace(self.folder / "krl")


@pytest.fixture(scope="session")
def authority(host_keys: Keyring) -> Iterator[Office]:
    """The authority of users and hosts; its host certificates are for 127.0.0.1."""
    with private_folder("authority") as folder:
        office = Office(folder)
        for name in ("ca", "other"):
            argv = ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name]
            assert office.keygen("openssh", *argv).returncode == 0
        for number, key in enumerate(host_keys.keys()):
            copy = folder / key.name
            shutil.copy(f"{key}.pub", f"{copy}.pub")
            maker = list(KEYGENS)[number % 2]
            office.sign(maker, Path(f"{copy}.pub"), "-h", "-n", "127.0.0.1")
        (folder / "host_ca").write_text(
            f"@cert-authority 127.0.0.*,[127.0.0.*]:* {(folder / 'ca.pub').read_text()}"
        )
        office.revoke("openssh", "")
        yield office


@pytest.fixture
def server(
    request: pytest.FixtureRequest,
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    authority: Office,
) -> Server:
    """A server that trusts the authority and shows certificates of its host keys."""
    folder = authority.folder
    keys = host_keys.keys()
    certificates = [f"{folder / key.name}-cert.pub" for key in keys]
    (folder / "none").mkdir(exist_ok=True)
    (folder / "none/authorized_keys").touch(0o600)
    settings = {
        "TrustedUserCAKeys": folder / "ca.pub",
        "RevokedKeys": folder / "krl",
    }
    if request.param == "culvert":
        config = folder / "sshd.toml"
        config.write_text(
            f'trusted_user_ca_keys = "{folder}/ca.pub"\nrevoked_keys = "{folder}/krl"\n'
            f"host_certificates = {certificates}\n"
        )
        options = ["--config", str(config)]
    else:
        options = [f"-o{name}={value}" for name, value in settings.items()]
        options += [f"-oHostCertificate={path}" for path in certificates]
    return serve(
        SERVERS[request.param],
        ServerSettings(
            host_keys=keys,
            authorized_keys=folder / "none/authorized_keys",
            options=tuple(options),
        ),
    )


@pytest.fixture
def key(tmp_path: Path, user_keys: Keyring) -> Callable[[str], Path]:
    """A function that copies a key of a type, so that a certificate can stand beside it."""

    def copy(key_type: str) -> Path:
        path = tmp_path / "id"
        shutil.copy(user_keys.key(key_type), path)
        shutil.copy(f"{user_keys.key(key_type)}.pub", f"{path}.pub")
        return path

    return copy


def log_in(
    client: ClientKind, server: Server, account: Account, key: Path, known: Path | None = None
) -> Result:
    call = client.invocation(server, Login(account, key), "echo in")
    words = list(call.argv)
    if known is not None:
        at = next(i for i, word in enumerate(words) if word.startswith("-oUserKnownHostsFile="))
        words[at] = f"-oUserKnownHostsFile={known}"
    done = subprocess.run(
        words, env=call.env, capture_output=True, timeout=30, check=False, start_new_session=True
    )
    return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


# -- users -------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("maker", KEYGENS)
@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_certificate_logs_its_user_in(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    maker: str,
    key_type: str,
) -> None:
    path = key(key_type)
    assert log_in(client, server, account, path).status == 255
    authority.sign(maker, path, "-n", f"x,{account.name}", "-V", "+1h", "-z", "7")
    done = log_in(client, server, account, path)
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


@ALL
@pytest.mark.parametrize(
    "words",
    [
        ["-n", "somebody-else"],
        [],
        ["-h", "-n", "{user}"],
        ["-n", "{user}", "-V", "20200101:20210101"],
        ["-n", "{user}", "-O", "source-address=192.0.2.0/24"],
        ["-n", "{user}", "-O", "critical:unknown@example.com"],
    ],
    ids=" ".join,
)
def test_a_certificate_that_is_not_good_logs_nobody_in(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    words: list[str],
) -> None:
    path = key("ssh-ed25519")
    authority.sign("openssh", path, *(word.format(user=account.name) for word in words))
    assert log_in(client, server, account, path).status == 255


@ALL
def test_a_certificate_of_another_authority_logs_nobody_in(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
) -> None:
    path = key("ssh-ed25519")
    words = ("-q", "-s", authority.folder / "other", "-I", "x", "-n", account.name, path)
    assert authority.keygen("culvert", *words).returncode == 0
    assert log_in(client, server, account, path).status == 255


@ALL
@pytest.mark.parametrize("maker", KEYGENS)
def test_the_command_of_a_certificate_runs_whatever_is_asked_for(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    maker: str,
) -> None:
    path = key("ssh-ed25519")
    words = ("-n", account.name, "-O", "force-command=echo forced")
    authority.sign(maker, path, *words)
    done = log_in(client, server, account, path)
    assert (done.status, done.stdout) == (0, b"forced\n"), done.stderr


@ALL
@pytest.mark.parametrize("maker", KEYGENS)
def test_a_revoked_certificate_logs_nobody_in(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    maker: str,
) -> None:
    path = key("ssh-ed25519")
    public = Path(f"{path}.pub").read_text()
    authority.sign("openssh", path, "-n", account.name, "-z", "77")
    try:
        for spec, status in [
            ("serial: 70-76\n", 0),
            ("serial: 70-80\n", 255),
            ("id: an id\n", 255),
            (f"sha256: {public}", 255),
            (f"key: {public}", 255),
            ((authority.folder / "ca.pub").read_text(), 255),
            ("", 0),
        ]:
            authority.revoke(maker, spec)
            assert log_in(client, server, account, path).status == status, spec
    finally:
        authority.revoke("openssh", "")


@pytest.mark.parametrize(("client", "server"), [pair_of(OURS, "openssh")], indirect=True)
def test_a_certificate_of_an_agent_logs_its_user_in(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = key("ssh-rsa")
    authority.sign("openssh", path, "-n", account.name)
    with ssh_agent(tmp_path / "agent") as socket:
        env = {"SSH_AUTH_SOCK": str(socket)}
        subprocess.run([find_program("ssh-add"), "-q", str(path)], env=env, check=True)
        call = client.invocation(server, Login(account, tmp_path / "no-file"), "echo in")
        words = [word for word in call.argv if word != "-oIdentitiesOnly=yes"]
        done = subprocess.run(words, env=call.env | env, capture_output=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr


# -- hosts -------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_host_is_known_by_its_authority(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    key_type: str,
) -> None:
    path = key("ssh-ed25519")
    authority.sign("openssh", path, "-n", account.name)
    names = {"ssh-rsa": "rsa-sha2-512"}
    algorithm = f"{names.get(key_type, key_type)}-cert-v01@openssh.com"
    call = client.invocation(server, Login(account, path), "echo in")
    known = authority.folder / "host_ca"
    words = [
        f"-oUserKnownHostsFile={known}" if word.startswith("-oUserKnownHostsFile=") else word
        for word in call.argv
    ]
    words.insert(words.index("-p"), f"-oHostKeyAlgorithms={algorithm}")
    done = subprocess.run(words, env=call.env, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr


@ALL
def test_a_host_is_asked_for_its_certificate_without_being_told(
    client: ClientKind,
    server: Server,
    account: Account,
    authority: Office,
    key: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = key("ssh-ed25519")
    authority.sign("openssh", path, "-n", account.name)
    done = log_in(client, server, account, path, authority.folder / "host_ca")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr
    known = tmp_path / "known_hosts"
    other = (authority.folder / "other.pub").read_text()
    known.write_text(f"@cert-authority * {other}")
    assert log_in(client, server, account, path, known).status == 255
    revoked = f"@revoked * {(authority.folder / 'ca.pub').read_text()}"
    known.write_text((authority.folder / "host_ca").read_text() + revoked)
    assert log_in(client, server, account, path, known).status == 255
