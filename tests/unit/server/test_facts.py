"""What a server that runs writes down: its log, its audit file, and what fail2ban makes of it."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from appliance.wire.messages import Disconnect
from tests.netns import wait_until
from tests.peers import CLIENTS, Account, Keyring, Login, find_program
from tests.unit.server.conftest import Dial, Serve, is_alone

Facts = list[dict[str, object]]

CONF = Path(__file__).resolve().parents[3] / "conf/fail2ban"
FORGED = "root from 203.0.113.6 port 1 refused: password: wrong password"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def facts(path: Path, *names: str) -> Facts:
    """The events in the file, or those of these names."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if not names or line["event"] in names]


def soon(path: Path, name: str, count: int = 1) -> Facts:
    assert wait_until(lambda: len(facts(path, name)) >= count), facts(path)
    return facts(path, name)


def test_a_login_is_told_from_its_connection_to_its_end(
    our_server: Serve, account: Account, user_keys: Keyring, path: Path
) -> None:
    server = our_server(f"audit_file = '{path}'\naudit_commands = true\n")
    login = Login(account, user_keys.key("ecdsa-sha2-nistp256"))
    ran = CLIENTS["openssh"].run(server, login, "head -c 3000000 /dev/zero; cat", data=b"x" * 70000)
    assert len(ran.stdout) == 3_070_000
    soon(path, "disconnected", 2)  # the first is the one by which the server was seen to be ready
    number = facts(path, "login")[0]["connection"]
    told = [line for line in facts(path) if line.get("connection") == number]
    assert [line["event"] for line in told] == ["connected", "login", "session", "disconnected"]
    connected, logged_in, session, end = told
    assert len({(line["address"], line["port"], line["pid"]) for line in told}) == 1
    assert (connected["address"], connected["local_port"]) == ("127.0.0.1", server.port)
    assert logged_in["method"] == "publickey"
    assert logged_in["key"] == user_keys.fingerprint("ecdsa-sha2-nistp256")
    assert {line["user"] for line in told[1:]} == {account.name}
    assert session["command"] == "head -c 3000000 /dev/zero; cat"
    assert (session["kind"], "terminal" in session) == ("exec", False)
    assert end["reason"] == "normal"
    assert 70_000 < int(str(end["received"])) < 100_000
    assert 3_070_000 < int(str(end["sent"])) < 3_200_000
    assert 0 < float(str(end["seconds"])) < 60


def test_commands_stand_in_no_log_unless_they_are_wanted(
    our_server: Serve, account: Account, user_keys: Keyring, path: Path
) -> None:
    server = our_server(f"audit_file = '{path}'\n")
    login = Login(account, user_keys.key())
    assert CLIENTS["openssh"].run(server, login, "echo secret-word").status == 0
    assert is_alone(server)
    assert "secret-word" not in path.read_text() + server.log


def test_a_server_tells_when_it_begins_and_ends(our_server: Serve, path: Path) -> None:
    server = our_server(f"audit_file = '{path}'\n")
    server.process.terminate()
    assert server.process.wait(10) == 0
    assert [line["event"] for line in facts(path, "started", "listening", "stopped")] == [
        "started",
        "listening",
        "stopped",
    ]


def test_a_refused_login_names_the_user_the_method_and_the_key(
    our_server: Serve, account: Account, tmp_path: Path, path: Path
) -> None:
    server = our_server(f"audit_file = '{path}'\n", passwords=True)
    strangers = Keyring(tmp_path / "stranger")
    assert CLIENTS["openssh"].run(server, Login(account, strangers.key()), "true").status == 255
    (refused,) = soon(path, "refused")
    assert refused["user"] == account.name
    assert (refused["method"], refused["reason"]) == ("publickey", "key not accepted")
    assert (refused["key_type"], refused["key"]) == (
        "ssh-ed25519",
        strangers.fingerprint("ssh-ed25519"),
    )
    assert soon(path, "disconnected", 2)[-1]["reason"] == "failed"


def test_a_flood_of_dropped_connections_is_few_lines_that_count_them(
    our_server: Serve, dial: Dial, path: Path
) -> None:
    server = our_server(f"audit_file = '{path}'\nper_source_max_startups = 1\n")
    waiting = dial(server)
    assert waiting.until(lambda connection: connection.transport.peer_version)
    dropped = 60
    for _ in range(dropped):
        dial(server).until(lambda connection: connection.transport.peer_version)
    time.sleep(1.1)
    dial(server).until(lambda connection: connection.transport.peer_version)
    told = soon(path, "dropped", 2)
    assert len(told) <= 5
    assert len(told) + sum(int(str(line.get("others", 0))) for line in told) == dropped + 1
    assert told[0]["reason"] == "too many start-ups"


# fail2ban


@pytest.fixture
def attacked(our_server: Serve, dial: Dial, account: Account, user_keys: Keyring) -> str:
    """The log of a server to which right and wrong clients came, and some that make things up."""
    server = our_server("login_grace_time = 2\n", passwords=True)
    wrong = Account(account.name, account.home, "wrong")
    ssh = CLIENTS["openssh"]
    assert ssh.run(server, Login(account, user_keys.key()), "true").status == 0
    assert ssh.run(server, Login(wrong, method="password"), "true").status == 255
    for name in (FORGED, f"a\nuser {FORGED}", "' from 203.0.113.6 port 1"):
        liar = Account(name, account.home, "wrong")
        assert CLIENTS["paramiko"].run(server, Login(liar, method="password"), "true").status
    parting = dial(server).log_in()
    text = f"bye\n[1] Nov 20 16:26:00 user {FORGED}\n  h culvert[1]: user {FORGED}"
    parting.connection.transport._writer.packet(Disconnect(11, text).encode())
    parting.until(lambda connection: False)
    silent = dial(server)
    assert silent.until(lambda connection: connection.transport.peer_version)
    assert wait_until(lambda: "no login from 127.0.0.1" in server.log)
    assert FORGED.split()[2] in server.log
    return server.log


def fail2ban(log: str, folder: Path) -> tuple[list[str], list[str]]:
    """The lines that fail2ban's own program matches with our filter, and the addresses in them."""
    program = find_program("fail2ban-regex")
    path = folder / "log"
    path.write_text(log)
    words = [program, "--print-all-matched", str(path), str(CONF / "filter.d/culvert.conf")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.partition("Matched line(s):")[2].partition("`-")[0].splitlines()
    words = [program, "--out", "ip", str(path), str(CONF / "filter.d/culvert.conf")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [line.removeprefix("|").strip() for line in lines if line.strip()], done.stdout.split()


@pytest.mark.root
@pytest.mark.parametrize("form", ["standard error", "syslog"])
def test_fail2ban_finds_every_failure_and_no_address_that_was_made_up(
    attacked: str, tmp_path: Path, form: str
) -> None:
    if form == "syslog":
        attacked = re.sub(r"(?m)^\[(\d+)\] (\w+ \d+ [\d:]+) ", r"\2 host culvert[\1]: ", attacked)
    lines, addresses = fail2ban(attacked, tmp_path)
    assert set(addresses) == {"127.0.0.1"}
    failures = [line for line in attacked.splitlines() if "refused: password: wrong pass" in line]
    late = [line for line in attacked.splitlines() if "no login from 127.0.0.1 within" in line]
    assert len(lines) == len(addresses) == 4 + len(late)
    assert late
    assert set(late) <= set(lines) <= {line.strip() for line in failures + late}
    assert not [line for line in lines if "closed" in line]


@pytest.mark.parametrize(
    "begin",
    [
        "[7] Nov 20 20:01:02",
        "Nov 20 20:01:02 host culvert[7]:",
        "2026-11-20T20:01:02.123456+00:00 host culvert[7]:",
    ],
)
def test_fail2ban_takes_no_user_for_the_time(tmp_path: Path, begin: str) -> None:
    """A failure of years ago would count for nothing; the first line tells it how times look."""
    for name in ("@400000005e0d0e2537c6bd4c", "1577934245", "2020-01-02T03:04:05"):
        line = f"user {name} from 192.0.2.9 port 1 refused: password: wrong password"
        _, addresses = fail2ban(f"{begin} {line}\n", tmp_path)
        assert addresses == ["192.0.2.9"]


def test_fail2ban_can_read_the_jail() -> None:
    """The words of its file, which the daemon would need a firewall for."""
    from configparser import ConfigParser

    jail = ConfigParser()
    assert jail.read(CONF / "jail.d/culvert.conf")
    assert jail["culvert"]["filter"] == "culvert"
    assert (CONF / "filter.d/culvert.conf").exists()
