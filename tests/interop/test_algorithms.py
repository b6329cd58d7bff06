"""Every key exchange, host key, cipher, MAC and way to log in that two peers have in common."""

from dataclasses import replace

import pytest

from tests.interop.algorithms import offers_of_client, offers_to_server
from tests.interop.conftest import (
    CLIENTS_TO_OURS,
    OURS,
    PAIRS,
    SERVERS_FOR_OURS,
    pair_of,
)
from tests.peers import (
    KEY_TYPES,
    Account,
    Algorithms,
    ClientKind,
    Keyring,
    Login,
    Server,
)

OFFERS = [
    *(
        pair_of(client, OURS, offer, name=name)
        for client in CLIENTS_TO_OURS
        for name, offer in offers_of_client(client)
    ),
    *(
        pair_of(OURS, server, offer, name=name)
        for server in (*SERVERS_FOR_OURS, OURS)
        for name, offer in offers_to_server(server)
    ),
]


@pytest.mark.parametrize(("client", "server", "offer"), OFFERS, indirect=["client", "server"])
def test_a_single_algorithm_carries_a_session(
    client: ClientKind, server: Server, login: Login, offer: Algorithms
) -> None:
    done = client.run(server, login, "cat; echo done", offer, data=b"through and ")
    assert (done.status, done.stdout) == (0, b"through and done\n"), done.stderr


COMPRESSING = [names for names in PAIRS if names[0] != "dbclient" and names[1] != "dropbear"]


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in COMPRESSING], indirect=True
)
def test_compression_carries_a_session(client: ClientKind, server: Server, login: Login) -> None:
    text = b"the same line again\n" * 50_000
    done = client.run(server, login, "cat", Algorithms(compression=True), data=text)
    assert (done.status, done.stdout) == (0, text), done.stderr


KEYS = [
    pair_of(client, server, key_type, name=key_type)
    for client, server in PAIRS
    for key_type in KEY_TYPES
]


@pytest.mark.parametrize(("client", "server", "key_type"), KEYS, indirect=["client", "server"])
def test_a_key_of_each_type_logs_in(
    client: ClientKind, server: Server, account: Account, user_keys: Keyring, key_type: str
) -> None:
    done = client.run(server, Login(account, user_keys.key(key_type)), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


@pytest.mark.root
def test_a_password_logs_in(client: ClientKind, server: Server, account: Account) -> None:
    done = client.run(server, Login(account, method="password"), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


ASKING = [names for names in PAIRS if names[0] != "dbclient" and names[1] != "dropbear"]


@pytest.mark.root
@pytest.mark.parametrize(("client", "server"), [pair_of(*names) for names in ASKING], indirect=True)
def test_an_answered_question_logs_in(client: ClientKind, server: Server, account: Account) -> None:
    done = client.run(server, Login(account, method="keyboard-interactive"), "echo in")
    assert (done.status, done.stdout) == (0, b"in\n"), done.stderr


@pytest.mark.root
def test_a_wrong_password_is_refused(client: ClientKind, server: Server, account: Account) -> None:
    wrong = Login(replace(account, password="not the password"), method="password")
    done = client.run(server, wrong, "echo in")
    assert done.stdout == b""
    assert done.status != 0 or client.name == "dbclient"  # gives 0 when the server hangs up


def test_a_key_that_is_not_authorized_is_refused(
    client: ClientKind, server: Server, account: Account, host_keys: Keyring
) -> None:
    done = client.run(server, Login(account, host_keys.key()), "echo in")
    assert done.stdout == b""
    assert done.status != 0 or client.name == "dbclient"  # gives 0 when the server hangs up
