"""What -v tells: the questions that a person has, in OpenSSH's words where it has some."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import OURS, SERVERS_FOR_OURS, pair_of
from tests.interop.test_refusals import answering, assert_one_line, ssh
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    free_port,
)

pytestmark = pytest.mark.skipif(OURS != "culvert", reason="other programs use other words")
servers = pytest.mark.parametrize(
    ("client", "server"),
    [pair_of(OURS, server) for server in (*SERVERS_FOR_OURS, OURS)],
    indirect=True,
)


def assert_told(text: str, *patterns: str) -> None:
    """Each pattern is a whole line of the text, and they come in this order."""
    lines = iter(text.splitlines())
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, text)


@servers
def test_a_login_is_told_from_the_address_to_the_exit_status(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "exit 3", options=["-v"])
    assert done.status == 3
    place = re.escape(server.address)
    key = rf"{re.escape(str(login.key))} ssh-ed25519 SHA256:[\w+/]{{43}}"
    assert_told(
        done.stderr,
        rf"debug1: Connecting to {place} \[{place}\] port {server.port}\.",
        r"debug1: Connection established\.",
        r"debug1: Remote protocol version 2\.0, remote software version \S.*",
        r"debug1: peer offers KEX algorithms: \S+,\S+",
        r"debug1: peer offers ciphers: \S+,\S+",
        r"debug1: kex: algorithm: \S+",
        r"debug1: kex: server->client cipher: \S+ MAC: \S+ compression: none",
        r"debug1: Server host key: \S+ SHA256:[\w+/]{43}",
        rf"debug1: Host '\[{place}\]:{server.port}' is known and matches the host key in .*\.",
        rf"debug1: Offering public key: {key}",
        rf"Authenticated to {place} \(\[{place}\]:{server.port}\) using \"publickey\"\.",
        r"debug1: Requesting a session: exec",
        r"Transferred: sent \d+, received \d+ bytes, in \d+\.\d seconds",
        r"debug1: Exit status 3",
    )
    assert not re.search(r"\w+\(\w+=|<\w+[ .]", done.stderr.replace("<implicit>", ""))  # an object


@servers
def test_a_refusal_is_told_with_the_keys_that_were_tried_and_what_can_continue(
    client: ClientKind, server: Server, account: Account, host_keys: Keyring
) -> None:
    wrong = host_keys.key()
    done = client.run(server, Login(account, wrong), "true", options=["-v"])
    assert done.status == 255
    assert_told(
        done.stderr,
        rf"debug1: Offering public key: {re.escape(str(wrong))} ssh-ed25519 SHA256:\S+",
        r"debug1: Authentications that can continue: \S*publickey\S*",
        r"culvert ssh: .*Permission denied \(\S+\); tried publickey",
    )


def test_each_address_that_does_not_answer_is_told(tmp_path: Path) -> None:
    port = str(free_port())
    done = ssh(tmp_path, "-v", "-F", "none", "-p", port, "localhost", "true")
    assert done.returncode == 255
    assert_told(
        done.stderr,
        rf"debug1: Connecting to localhost \[127\.0\.0\.1\] port {port}\.",
        rf"debug1: connect to address 127\.0\.0\.1 port {port}: Connection refused",
    )


@pytest.mark.parametrize("options", [[], ["-v"]], ids=["without -v", "with -v"])
def test_what_a_server_says_before_its_identification_is_shown(
    tmp_path: Path, options: list[str]
) -> None:
    """sshd says so when MaxStartups is reached, and hangs up."""
    with answering(b"one moment\r\nExceeded MaxStartups\x1b[31m\r\n") as port:
        done = ssh(tmp_path, *options, "-F", "none", "-p", str(port), "127.0.0.1", "true")
    assert done.returncode == 255
    said = r"Exceeded MaxStartups\x1b[31m"
    if options:
        assert f"debug1: banner line 0: one moment\ndebug1: banner line 1: {said}\n" in done.stderr
    else:
        assert_one_line(done.stderr, f"the peer closed the connection, saying: {said}")


def messages(text: str) -> list[str]:
    """The messages of a trace, '<' for those that were received, as far as they have a name."""
    pattern = r"(send|receive) packet: type \d+ \(SSH_MSG_(\w+)\)"
    return [
        f"{'>' if direction == 'send' else '<'} {name}"
        for direction, name in re.findall(pattern, text)
    ]


def assert_in_order(found: list[str], expected: str) -> None:
    rest = iter(found)
    for each in re.findall(r"[<>] \w+", expected):
        assert each in rest, (each, found)


@pytest.mark.parametrize(("client", "server"), [pair_of(OURS, "openssh")], indirect=True)
def test_vvv_names_every_message_of_a_login(
    client: ClientKind, server: Server, login: Login
) -> None:
    done = client.run(server, login, "echo told; exit 3", options=["-vvv"])
    assert (done.status, done.stdout) == (3, b"told\n"), server.log
    traced = [line for line in done.stderr.splitlines() if line.startswith("debug3: ")]
    found = messages("\n".join(traced))
    assert len(found) == len(traced) > 20
    kex = "KEX_HYBRID" if "KEX_HYBRID_INIT" in done.stderr else "KEX_ECDH"
    assert_in_order(
        found,
        f"""
        > KEXINIT < KEXINIT > {kex}_INIT < {kex}_REPLY > NEWKEYS > SERVICE_REQUEST < NEWKEYS
        < EXT_INFO < SERVICE_ACCEPT > USERAUTH_REQUEST < USERAUTH_SUCCESS > CHANNEL_OPEN
        < CHANNEL_OPEN_CONFIRMATION > CHANNEL_REQUEST < CHANNEL_CLOSE > CHANNEL_CLOSE > DISCONNECT
        """,
    )
    assert {"< CHANNEL_DATA", "< CHANNEL_REQUEST"} <= {*found}  # sshd sends either one first
    assert login.user not in "".join(traced) and "told" not in "".join(traced)
    for quieter in ("-v", "-vv"):
        told = client.run(server, login, "true", options=[quieter]).stderr
        assert "debug1: " in told and "packet: type" not in told


@pytest.mark.root
@pytest.mark.parametrize(("client", "server"), [pair_of(OURS, "openssh")], indirect=True)
@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_no_password_stands_in_a_trace(
    client: ClientKind, server: Server, account: Account, method: str
) -> None:
    done = client.run(server, Login(account, method=method), "true", options=["-vvv"])
    assert done.status == 0, done.stderr
    assert_in_order(messages(done.stderr), "> USERAUTH_REQUEST < USERAUTH_SUCCESS")
    if method == "keyboard-interactive":
        wanted = "< USERAUTH_INFO_REQUEST > USERAUTH_INFO_RESPONSE < USERAUTH_SUCCESS"
        assert_in_order(messages(done.stderr), wanted)
    assert account.password not in done.stderr


@pytest.mark.parametrize("asked_by", ["trace = true", "-vvv"])
def test_a_servers_trace_names_every_message_of_a_login_in_its_log(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    authorized_keys: Path,
    login: Login,
    tmp_path: Path,
    asked_by: str,
) -> None:
    config = tmp_path / "sshd.toml"
    config.write_text(asked_by if "=" in asked_by else "")
    options = ["--config", str(config), *([] if "=" in asked_by else [asked_by])]
    keys = authorized_keys if os.geteuid() else None  # root's server reads those of the account
    server = serve(
        SERVERS[OURS],
        ServerSettings(host_keys=[host_keys.key()], authorized_keys=keys, options=options),
    )
    done = CLIENTS["openssh"].run(server, login, "echo told; exit 3")
    assert (done.status, done.stdout) == (3, b"told\n"), server.log
    assert wait_until(
        lambda: "> DISCONNECT" in messages(server.log) or "disconnected" in server.log
    )
    traced = [line for line in server.log.splitlines() if " packet: type " in line]
    assert all(
        re.match(r"\[\d+\] \w+ \d+ [\d:]+ worker: (send|receive) packet", each) for each in traced
    )
    kex = "KEX_HYBRID" if "KEX_HYBRID_INIT" in server.log else "KEX_ECDH"
    assert_in_order(
        messages("\n".join(traced)),
        f"""
        > KEXINIT < KEXINIT < {kex}_INIT > {kex}_REPLY > NEWKEYS > EXT_INFO < NEWKEYS
        < SERVICE_REQUEST > SERVICE_ACCEPT < USERAUTH_REQUEST > USERAUTH_FAILURE < USERAUTH_REQUEST
        > USERAUTH_PK_OK < USERAUTH_REQUEST > USERAUTH_SUCCESS < CHANNEL_OPEN
        > CHANNEL_OPEN_CONFIRMATION < CHANNEL_REQUEST > CHANNEL_SUCCESS > CHANNEL_DATA
        > CHANNEL_REQUEST > CHANNEL_CLOSE < CHANNEL_CLOSE < DISCONNECT
        """,
    )
    assert login.user not in "".join(traced) and "told" not in "".join(traced)


def test_nothing_is_told_without_v(tmp_path: Path) -> None:
    done = ssh(tmp_path, "-F", "none", "-E", str(tmp_path / "log"), "-p", "1", "127.0.0.1", "true")
    assert done.returncode == 255
    assert os.path.getsize(tmp_path / "log") == 0


@pytest.mark.parametrize(("client", "server"), [pair_of(OURS, "openssh")], indirect=True)
def test_a_file_takes_what_is_told(
    client: ClientKind, server: Server, login: Login, tmp_path: Path
) -> None:
    options = ["-v", "-E", str(tmp_path / "log")]
    done = client.run(server, login, "echo in >&2", options=options)
    assert done.stderr == "in\n"
    assert "debug1: Exit status 0\n" in (tmp_path / "log").read_text()
