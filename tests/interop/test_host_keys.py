"""New host keys are rolled in without a warning to anybody (hostkeys-00@openssh.com)."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.conftest import OURS
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Keyring,
    Login,
    Result,
    Server,
    ServerSettings,
    free_port,
    start,
)

PAIRS = [("openssh", OURS), (OURS, "openssh"), (OURS, OURS)]
pairs = pytest.mark.parametrize(("client", "server"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


MakeKey = Callable[..., Path]


class Site:
    """A server that may change its keys, and a client with a known_hosts file of its own."""

    def __init__(
        self, client: str, server: str, login: Login, folder: Path, authorized_keys: Path | None
    ) -> None:
        self.client, self.server = CLIENTS[client], SERVERS[server]
        self.login, self.folder = login, folder
        self.authorized_keys = authorized_keys
        self.port = free_port()
        self.known_hosts = folder / "known_hosts"
        self.name = f"[127.0.0.1]:{self.port}"
        self.starts = 0

    @contextmanager
    def serving(self, *keys: Path) -> Iterator[Server]:
        settings = ServerSettings(list(keys), authorized_keys=self.authorized_keys)
        self.starts += 1
        folder = self.folder / f"server-{self.starts}"
        with start(self.server, settings, folder, self.port) as server:
            yield server

    def log_in(self, server: Server, *options: str) -> Result:
        words = (f"-oUserKnownHostsFile={self.known_hosts}", "-oUpdateHostKeys=yes")
        call = self.client.invocation(server, self.login, "echo in", options=options)
        argv = [call.argv[0], *(["ssh"] if call.argv[1] == "ssh" else []), *words]
        argv += call.argv[len(argv) - len(words) :]
        done = subprocess.run(
            argv, env=call.env, capture_output=True, timeout=30, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def know(self, *keys: Path) -> None:
        lines = [f"{self.name} {line(key)}\n" for key in keys]
        self.known_hosts.write_text("# mine\n" + "".join(lines))

    def known(self) -> set[str]:
        return {" ".join(each.split()[1:3]) for each in self.lines()}

    def lines(self) -> list[str]:
        return [each for each in self.known_hosts.read_text().splitlines() if each[0] != "#"]


def line(key: Path) -> str:
    return " ".join(Path(f"{key}.pub").read_text().split()[:2])


@pytest.fixture
def key(tmp_path: Path) -> MakeKey:
    """A function that makes a host key."""

    def make(name: str, kind: str = "ed25519") -> Path:
        path = tmp_path / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True, capture_output=True
        )
        return path

    return make


@pytest.fixture
def keys_of_login(account: Account, request: pytest.FixtureRequest) -> Path | None:
    return None if account.password else request.getfixturevalue("authorized_keys")


@pairs
def test_a_new_key_is_learned_and_an_old_one_forgotten(
    client: str, server: str, login: Login, tmp_path: Path, key: MakeKey, keys_of_login: Path | None
) -> None:
    old, new, rsa = key("old"), key("new"), key("rsa", "rsa")
    site = Site(client, server, login, tmp_path, keys_of_login)
    site.know(old)
    for keys in ((old, new), (old, rsa, new), (new, rsa), (new,)):
        with site.serving(*keys) as running:
            done = site.log_in(running)
        assert (done.status, done.stdout) == (0, b"in\n"), done.stderr
        assert "WARNING" not in done.stderr
        assert site.known() == {line(each) for each in keys}
    assert site.known_hosts.read_text().startswith("# mine\n")


@pytest.mark.parametrize("hosts", ["{name},other", "*", "!x,{name}"])
def test_a_line_that_is_not_the_hosts_alone_stays_as_it_is(
    login: Login, tmp_path: Path, key: MakeKey, keys_of_login: Path | None, hosts: str
) -> None:
    old, new = key("old"), key("new")
    site = Site(OURS, "openssh", login, tmp_path, keys_of_login)
    site.known_hosts.write_text(f"{hosts.format(name=site.name)} {line(old)}\n")
    before = site.known_hosts.read_text()
    with site.serving(old, new) as running:
        assert site.log_in(running).status == 0
    assert site.known_hosts.read_text() == before


def test_a_name_that_is_hashed_stays_hashed(
    login: Login, tmp_path: Path, key: MakeKey, keys_of_login: Path | None
) -> None:
    old, new = key("old"), key("new")
    site = Site(OURS, "openssh", login, tmp_path, keys_of_login)
    site.know(old)
    subprocess.run(["ssh-keygen", "-H", "-f", site.known_hosts], check=True, capture_output=True)
    with site.serving(old, new) as running:
        assert site.log_in(running, "-oHashKnownHosts=yes").status == 0
    assert site.known() == {line(old), line(new)}
    assert all(each.startswith("|1|") for each in site.lines())
    found = subprocess.run(
        ["ssh-keygen", "-F", site.name, "-f", site.known_hosts], capture_output=True, check=True
    )
    assert found.stdout.count(b"ssh-ed25519") == 2


def test_nothing_is_learned_when_nobody_wants_it(
    login: Login, tmp_path: Path, key: MakeKey, keys_of_login: Path | None, host_keys: Keyring
) -> None:
    old, new = key("old"), key("new")
    site = Site(OURS, "openssh", login, tmp_path, keys_of_login)
    site.know(old)
    before = site.known_hosts.read_text()
    with site.serving(old, new) as running:
        done = CLIENTS[OURS].run(
            running, login, "echo in", options=(f"-oUserKnownHostsFile={site.known_hosts}",)
        )
        assert done.status == 0
    assert site.known_hosts.read_text() == before
