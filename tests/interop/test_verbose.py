"""What -v tells: the questions that a person has, in OpenSSH's words where it has some."""

import os
import re
from pathlib import Path

import pytest

from tests.interop.conftest import OURS, SERVERS_FOR_OURS, pair_of
from tests.interop.test_refusals import answering, assert_one_line, ssh
from tests.peers import Account, ClientKind, Keyring, Login, Server, free_port

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
