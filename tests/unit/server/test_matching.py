"""Which settings hold for whom, and who is kept out, as sshd_config(5) says."""

import socket
import time

import pytest

from appliance.config.server import Match, ServerConfig
from appliance.server.matching import effective, refusal
from appliance.server.peer import Peer
from appliance.ssh.channels import ChannelHandler
from tests.peers import CLIENTS, Account, Keyring, Login
from tests.unit.server.conftest import Dial, Serve

GROUPS = {"anna": ["anna", "staff"], "ben": ["ben"], "root": ["root", "wheel"]}


def peer(address: str = "192.0.2.7", local: str = "198.51.100.1", port: int = 22) -> Peer:
    with socket.socket() as nothing:
        made = Peer(nothing)
    made.address, made.local_address, made.local_port = address, local, port
    return made


def match(**keys: object) -> Match:
    return Match(**keys, given=frozenset(keys))  # type: ignore[arg-type]


def tries(user: str, *tables: Match, at: Peer | None = None) -> ServerConfig:
    config = ServerConfig(match=tables, max_auth_tries=6)
    return effective(config, user, lambda: GROUPS.get(user, []), at or peer())


@pytest.mark.parametrize(
    ("criteria", "covered"),
    [
        ({"user": "anna"}, True),
        ({"user": "an*,ben"}, True),
        ({"user": "*,!anna"}, False),
        ({"user": "!ben"}, False),  # nothing but exceptions matches nobody
        ({"user": "Anna"}, False),
        ({"group": "staff"}, True),
        ({"group": "st?ff,x"}, True),
        ({"group": "wheel"}, False),
        ({"group": "*,!anna"}, False),
        ({"address": "192.0.2.0/24"}, True),
        ({"address": "192.0.2.*"}, True),
        ({"address": "192.0.2.0/24,!192.0.2.7"}, False),
        ({"address": "2001:db8::/32"}, False),
        ({"local_address": "198.51.100.1"}, True),
        ({"local_address": "198.51.100.2"}, False),
        ({"local_port": "22,2222"}, True),
        ({"local_port": "2?"}, True),
        ({"local_port": "2222"}, False),
        ({"user": "anna", "group": "staff", "address": "192.0.2.7", "local_port": "22"}, True),
        ({"user": "anna", "group": "staff", "address": "192.0.2.7", "local_port": "23"}, False),
        ({"user": "anna", "group": "wheel"}, False),
    ],
)
def test_a_table_covers_a_connection_when_all_of_its_patterns_do(
    criteria: dict[str, str], covered: bool
) -> None:
    assert (tries("anna", match(**criteria, max_auth_tries=1)).max_auth_tries == 1) == covered


def test_of_two_tables_the_first_decides_each_key() -> None:
    config = tries(
        "anna",
        match(user="ben", permit_tty=False),
        match(group="staff", max_auth_tries=2),
        match(user="anna", max_auth_tries=3, max_sessions=1),
    )
    assert (config.max_auth_tries, config.max_sessions, config.permit_tty) == (2, 1, True)


def test_a_table_may_say_again_what_is_so_without_it() -> None:
    table = match(user="anna", password_authentication=True)
    config = ServerConfig(match=(table,), password_authentication=False)
    assert effective(config, "anna", lambda: [], peer()).password_authentication
    assert not effective(config, "ben", lambda: [], peer()).password_authentication


def test_a_user_that_does_not_exist_is_in_no_group_and_has_a_name() -> None:
    tables = match(group="*", max_auth_tries=1), match(user="nobody*", max_auth_tries=2)
    assert tries("nobody-of-this-name", *tables).max_auth_tries == 2


def test_nobody_asks_for_groups_that_no_table_names() -> None:
    config = ServerConfig(match=(match(user="anna", permit_tty=False),), allow_users=("anna",))
    assert not effective(config, "anna", lambda: pytest.fail("asked"), peer()).permit_tty
    assert refusal(config, "anna", lambda: pytest.fail("asked"), "192.0.2.7") == ""


@pytest.mark.parametrize(
    ("settings", "user", "why"),
    [
        ({}, "anna", ""),
        ({"allow_users": ("anna",)}, "anna", ""),
        ({"allow_users": ("anna",)}, "ben", "not in allow_users"),
        ({"allow_users": ("a*", "b?n")}, "ben", ""),
        ({"allow_users": ("anna@192.0.2.0/24",)}, "anna", ""),
        ({"allow_users": ("anna@192.0.2.7",)}, "anna", ""),
        ({"allow_users": ("anna@192.0.3.0/24",)}, "anna", "not in allow_users"),
        ({"allow_users": ("ben@192.0.2.0/24",)}, "anna", "not in allow_users"),
        ({"deny_users": ("*@192.0.2.*",)}, "anna", "denied by deny_users"),
        ({"deny_users": ("anna",), "allow_users": ("anna",)}, "anna", "denied by deny_users"),
        ({"allow_groups": ("staff", "x")}, "anna", ""),
        ({"allow_groups": ("staff",)}, "ben", "not in allow_groups"),
        ({"allow_groups": ("*",)}, "nobody", "not in allow_groups"),
        ({"deny_groups": ("sta*",)}, "anna", "denied by deny_groups"),
        ({"allow_users": ("anna",), "allow_groups": ("wheel",)}, "anna", "not in allow_groups"),
        ({"allow_users": ("ben",), "allow_groups": ("staff",)}, "anna", "not in allow_users"),
    ],
)
def test_lists_of_users_and_groups_keep_the_others_out(
    settings: dict[str, tuple[str, ...]], user: str, why: str
) -> None:
    config = ServerConfig(**settings)  # type: ignore[arg-type]
    assert refusal(config, user, lambda: GROUPS.get(user, []), "192.0.2.7") == why


def test_from_nowhere_no_pattern_of_an_address_matches() -> None:
    config = ServerConfig(allow_users=("anna@0.0.0.0/0",))
    assert refusal(config, "anna", lambda: [], "UNKNOWN") == "not in allow_users"


class Refusable(ChannelHandler):
    """Notes why it was not opened."""

    refusal = ""

    def open_failed(self, reason: int, description: str) -> None:
        self.refusal = description


def test_a_match_changes_what_a_real_client_gets(
    our_server: Serve, dial: Dial, account: Account, user_keys: Keyring
) -> None:
    server = our_server(
        "idle_timeout = 1\n[[match]]\n"
        f"user = '{account.name}'\naddress = '127.0.0.0/8'\nlocal_port = '1*,2*,3*'\n"
        "force_command = 'echo forced'\nmax_sessions = 1\nidle_timeout = 0\n"
        "[[match]]\naddress = '127.0.0.1'\nforce_command = 'echo never'\n"
    )
    login = Login(account, user_keys.key())
    assert CLIENTS["openssh"].run(server, login, "echo asked").stdout == b"forced\n"
    client = dial(server).log_in()
    sessions = [ChannelHandler(), Refusable()]
    for session in sessions:
        client.connection.open_channel("session", b"", session)
    assert client.until(lambda _: sessions[1].refusal)  # type: ignore[attr-defined]
    assert sessions[1].refusal == "too many sessions"  # type: ignore[attr-defined]
    time.sleep(2.5)  # the server's own limit would have ended it
    assert client.answers()
