"""The pairs of peers, and a server of each kind that all tests of a worker share.

CULVERT_STAND_IN=openssh puts OpenSSH where Culvert belongs, which tells a test's own mistakes from
Culvert's.
"""

import os
import pwd
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.algorithms import DROPBEAR_HOST_KEYS
from tests.interop.mounts import Mounter
from tests.peers import (
    CLIENTS,
    KEY_TYPES,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    private_folder,
)

OURS = os.environ.get("CULVERT_STAND_IN", "culvert")
CLIENTS_TO_OURS = ("openssh", "dbclient", "plink", "asyncssh", "paramiko")
SERVERS_FOR_OURS = ("openssh", "dropbear", "asyncssh")

PAIRS = [
    *((client, OURS) for client in CLIENTS_TO_OURS),
    *((OURS, server) for server in SERVERS_FOR_OURS),
    (OURS, OURS),
]
# For programs that run an ssh: each of our ends beside OpenSSH's, and both.
BESIDE_OPENSSH = [("openssh", OURS), (OURS, "openssh"), (OURS, OURS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `client` and `server`, and says no more, once for each pair."""
    named = {"client", "server"} <= set(metafunc.fixturenames)
    if named and not any(
        "client" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize(
            ("client", "server"),
            [pair_of(*names) for names in PAIRS],
            indirect=True,
        )


def pair_of(client: str, server: str, *more: object, name: str = "") -> Any:
    """Return the parameters of a test for one pair, named for a person, on one worker a server."""
    return pytest.param(
        client,
        server,
        *more,
        id="-".join(filter(None, (client, server, name))),
        marks=pytest.mark.xdist_group(f"{client}-{server}" if server == OURS else server),
    )


@pytest.fixture
def server(
    request: pytest.FixtureRequest,
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    account: Account,
) -> Server:
    """A server of the kind that the parameter names, with every host key it takes."""
    name: str = request.param
    own_keys_only = name == "dropbear" or account.password
    types: Iterable[str] = DROPBEAR_HOST_KEYS if name == "dropbear" else KEY_TYPES
    keys = None if own_keys_only else request.getfixturevalue("authorized_keys")
    settings = ServerSettings(
        host_keys=host_keys.keys(types),
        authorized_keys=keys,
        passwords=True,
        keyboard_interactive=bool(account.password),
        accounts=[account],
    )
    return serve(SERVERS[name], settings)


@pytest.fixture
def client(request: pytest.FixtureRequest, need: Callable[[ClientKind], None]) -> ClientKind:
    """The client that the parameter names."""
    kind = CLIENTS[request.param]
    need(kind)
    return kind


@pytest.fixture
def login(account: Account, user_keys: Keyring) -> Login:
    """A login of the test's user by an Ed25519 key."""
    return Login(account, user_keys.key())


# Mounts


@pytest.fixture(scope="session")
def mounter(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    user_keys: Keyring,
    account: Account,
    authorized_keys: Path,
) -> Mounter:
    """Mounts directories as our program does."""
    return Mounter(serve, host_keys, authorized_keys, Login(account, user_keys.key()), OURS)


# Programs that run an ssh


@pytest.fixture
def there(account: Account) -> Iterator[Path]:
    """A folder that belongs to the user who logs in, short enough for sockets."""
    with private_folder("there") as folder:
        entry = pwd.getpwnam(account.name)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        yield folder


@pytest.fixture(scope="module")
def no_cookies_stay(account: Account) -> Iterator[None]:
    """At the end of a module, the account has no cookies of OpenSSH's servers, which leave some."""
    yield
    if os.geteuid() == 0:  # the account is the tests' own
        for path in account.home.glob(".Xauthority*"):
            path.unlink()


def words_of(
    client: ClientKind, server: Server, login: Login, options: Sequence[str] = ()
) -> list[str]:
    """Return the client's command line up to the host's name, which another program adds."""
    return client.invocation(server, login, None, options=options).argv[:-1]


def write_program(path: Path, words: Sequence[str]) -> Path:
    """Make `path` a program that runs these words and its own, for who wants one word."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def logins(server: Server) -> int:
    """How many connections the server has let in by now, by its log."""
    return sum(
        "Accepted publickey" in line or "logged in" in line for line in server.log.splitlines()
    )
