"""What goes wrong is told in one line, with ssh's exit status, and never as a traceback."""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.interop.conftest import OURS, pair_of
from tests.peers import (
    CULVERT,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    environment,
    free_port,
    ssh_agent,
)

our_client = pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, "openssh")], indirect=True
)
strict_about_words = pytest.mark.skipif(OURS != "culvert", reason="other programs use more words")


def assert_one_line(text: str, *words: str) -> None:
    """The text is a single line that has each of the words, in whatever case."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    for word in words:
        assert word.lower() in lines[0].lower(), text


def run_with_known_hosts(
    client: ClientKind, server: Server, login: Login, known_hosts: Path, checking: str
) -> subprocess.CompletedProcess[str]:
    """Log in with another known_hosts file and another strictness."""
    call = client.invocation(server, login, "echo in")
    words = {
        f"-oUserKnownHostsFile={server.known_hosts}": f"-oUserKnownHostsFile={known_hosts}",
        "-oStrictHostKeyChecking=yes": f"-oStrictHostKeyChecking={checking}",
    }
    return subprocess.run(
        [words.get(word, word) for word in call.argv],
        env=call.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )


@our_client
@strict_about_words
@pytest.mark.parametrize("checking", ["yes", "ask"])
def test_an_unknown_host_key_is_refused_in_one_line(
    client: ClientKind, server: Server, login: Login, tmp_path: Path, checking: str
) -> None:
    done = run_with_known_hosts(client, server, login, tmp_path / "none", checking)
    assert (done.returncode, done.stdout) == (255, "")
    assert_one_line(done.stderr, "key", server.address)


@our_client
@pytest.mark.parametrize("checking", ["accept-new", "no"])
def test_an_unknown_host_key_is_remembered_when_that_is_wanted(
    client: ClientKind, server: Server, login: Login, tmp_path: Path, checking: str
) -> None:
    known = tmp_path / "known_hosts"
    done = run_with_known_hosts(client, server, login, known, checking)
    assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
    again = run_with_known_hosts(client, server, login, known, "yes")
    assert (again.returncode, again.stdout) == (0, "in\n"), again.stderr


@our_client
@pytest.mark.parametrize("checking", ["yes", "accept-new", "ask"])
def test_a_changed_host_key_is_refused(
    client: ClientKind,
    server: Server,
    login: Login,
    user_keys: Keyring,
    tmp_path: Path,
    checking: str,
) -> None:
    known = tmp_path / "known_hosts"
    other = " ".join(user_keys.public().split()[:2])
    known.write_text(f"[{server.address}]:{server.port} {other}\n")
    done = run_with_known_hosts(client, server, login, known, checking)
    assert (done.returncode, done.stdout) == (255, "")
    if OURS == "culvert":
        assert_one_line(done.stderr, "host key", "changed", str(known))


def listening(table: str) -> set[int]:
    """The ports that are listened on, by /proc/net/tcp."""
    rows = [line.split() for line in table.splitlines() if ":" in line]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


@pytest.mark.root
@pytest.mark.netns
@pytest.mark.parametrize(
    ("client", "server"),
    [pair_of("openssh", "openssh"), pair_of(OURS, "openssh", name="ours")],
    indirect=True,
)
def test_a_changed_host_key_leaves_nothing_that_somebody_in_between_could_use(
    client: ClientKind, server: Server, login: Login, user_keys: Keyring, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    other = " ".join(user_keys.public().split()[:2])
    known.write_text(f"[{server.address}]:{server.port} {other}\n")
    ports = free_port(), free_port(), free_port()
    options = ["-A", "-w", "any", "-L", f"{ports[0]}:127.0.0.1:1"]
    options += ["-R", f"{ports[1]}:127.0.0.1:1", "-D", str(ports[2])]
    command = "echo agent:$SSH_AUTH_SOCK; cat /proc/net/tcp"
    with ssh_agent(tmp_path / "agent") as agent:
        call = client.invocation(server, login, command, options=options)
        words = {
            f"-oUserKnownHostsFile={server.known_hosts}": f"-oUserKnownHostsFile={known}",
            "-oStrictHostKeyChecking=yes": "-oStrictHostKeyChecking=no",
        }
        done = subprocess.run(
            [words.get(word, word) for word in call.argv],
            env=call.env | {"SSH_AUTH_SOCK": str(agent)}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=30, check=False, start_new_session=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, _, table = done.stdout.partition("\n")
    assert first == "agent:"
    assert server.port in listening(table)
    assert not listening(table) & set(ports)
    for what in ("Agent", "Port", "Tunnel"):
        assert f"{what} forwarding is disabled to avoid man-in-the-middle attacks." in done.stderr


@our_client
@strict_about_words
def test_a_wrong_key_is_refused_in_one_line(
    client: ClientKind, server: Server, account: Account, host_keys: Keyring
) -> None:
    done = client.run(server, Login(account, host_keys.key()), "echo in")
    assert done.status == 255
    assert_one_line(done.stderr, "Permission denied")


def ssh(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run our client with these words only."""
    program = ["ssh"] if OURS == "openssh" else [*CULVERT, "ssh"]
    return subprocess.run(
        [*program, *words],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a port, `talk` to the first who connects, and wait for them to hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                talk(connection)
                connection.settimeout(None)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def answering(answer: bytes) -> contextlib.AbstractContextManager[int]:
    """Listen on a port, send `answer` to the first who connects, and hang up."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    return serving(talk)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"SSH-1.5-old\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-x\r\n\xff\xff\xff\xff" + bytes(100),
        b"SSH-2.0-x\r\n\x00\x00\x00\x0c\x04\x14" + bytes(10),
        b"x" * 100_000,
    ],
    ids=["nothing", "banner", "ssh-1", "http", "huge-packet", "short-kexinit", "no-banner"],
)
def test_a_server_that_talks_nonsense_is_one_line(tmp_path: Path, answer: bytes) -> None:
    with answering(answer) as port:
        done = ssh(tmp_path, "-F", "none", "-p", str(port), "127.0.0.1", "true")
    assert done.returncode == 255
    if OURS == "culvert":
        assert_one_line(done.stderr)


_STALLS = {
    "nothing": [],
    "a greeting without an end": [b"one moment\r\n"] * 1000,
    "an identification": [b"SSH-2.0-x\r\n"],
    "a part of a packet": [b"SSH-2.0-x\r\n", b"\0\0\1\4"],
}


@pytest.mark.parametrize("stall", _STALLS)
@pytest.mark.parametrize(
    "options",
    [["ConnectTimeout=1"], ["ServerAliveInterval=1", "ServerAliveCountMax=1"]],
    ids=["ConnectTimeout", "ServerAlive"],
)
def test_a_server_that_stalls_before_the_login_is_given_up(
    tmp_path: Path, stall: str, options: Sequence[str]
) -> None:
    def talk(connection: socket.socket) -> None:
        connection.settimeout(0.2)
        for piece in _STALLS[stall]:
            connection.sendall(piece)
            with contextlib.suppress(TimeoutError):
                while connection.recv(4096):
                    pass
                return

    words = [f"-o{option}" for option in options]
    with serving(talk) as port:
        done = ssh(tmp_path, "-F", "none", *words, "-p", str(port), "127.0.0.1", "true")
    assert done.returncode == 255
    if OURS == "culvert":
        assert_one_line(done.stderr, "Connection timed out during")


def test_a_port_where_nobody_listens_is_one_line(tmp_path: Path) -> None:
    port = str(free_port())
    done = ssh(tmp_path, "-F", "none", "-p", port, "127.0.0.1", "true")
    assert done.returncode == 255
    assert_one_line(done.stderr, "refused", port)


def test_a_name_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    done = ssh(tmp_path, "-F", "none", "no-such-host.invalid", "true")
    assert done.returncode == 255
    assert_one_line(done.stderr, "no-such-host.invalid")


@strict_about_words
@pytest.mark.parametrize(
    "words",
    [
        ["-@", "host"],
        ["-p", "no-port", "host"],
        ["-p", "65536", "host"],
        ["-o", "NoSuchOption=1", "host"],
        ["-o", "Ciphers=no-such-cipher", "host"],
        ["-w", "x", "host"],
        ["-F", "/nonexistent", "host"],
        ["-l"],
        [],
    ],
    ids=" ".join,
)
def test_a_bad_option_is_one_line(tmp_path: Path, words: Sequence[str]) -> None:
    done = ssh(tmp_path, *words)
    assert done.returncode == 255
    assert_one_line(done.stderr)


def test_a_broken_configuration_file_is_named_with_the_line(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  Port 22\n  NoSuchKeyword yes\n")
    done = ssh(tmp_path, "-F", str(config), "host")
    assert done.returncode == 255
    if OURS == "culvert":
        assert_one_line(done.stderr, str(config), "3", "NoSuchKeyword")


# The server


def sshd(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run our server, which is expected to end at once."""
    if OURS != "culvert":
        pytest.skip("only Culvert's server has these words")
    return subprocess.run(
        [*CULVERT, "sshd", "-F", "-E", *words],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_port_in_use_is_one_line(tmp_path: Path, host_keys: Keyring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = sshd(tmp_path, "-p", f"127.0.0.1:{port}", "-r", str(host_keys.key()))
    assert done.returncode != 0
    assert_one_line(done.stderr, port, "in use")


@pytest.mark.parametrize(
    "words",
    [
        ["-@"],
        ["-p", "127.0.0.1:65536"],
        ["-p", "127.0.0.1:"],
        ["-r", "/nonexistent/key"],
        ["--permit-tunnel", "perhaps"],
        ["--config", "/nonexistent/sshd.toml"],
        ["-b", "/nonexistent/banner"],
        ["-K", "-1"],
        ["-T", "many"],
    ],
    ids=" ".join,
)
def test_a_bad_option_of_the_server_is_one_line(
    tmp_path: Path, host_keys: Keyring, words: Sequence[str]
) -> None:
    done = sshd(tmp_path, "-r", str(host_keys.key()), "-p", f"127.0.0.1:{free_port()}", *words)
    assert done.returncode != 0
    assert_one_line(done.stderr)


@pytest.mark.parametrize(
    "text", ["nonsense", "no_such_setting = 1\n", "permit_tunnel = 7\n", "listen = {"]
)
def test_a_broken_configuration_of_the_server_is_one_line(tmp_path: Path, text: str) -> None:
    config = tmp_path / "sshd.toml"
    config.write_text(text)
    done = sshd(tmp_path, "--config", str(config))
    assert done.returncode != 0
    assert_one_line(done.stderr, str(config))


def test_a_host_key_that_is_no_key_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("this is not a key\n")
    path.chmod(0o600)
    done = sshd(tmp_path, "-p", f"127.0.0.1:{free_port()}", "-r", str(path))
    assert done.returncode != 0
    assert_one_line(done.stderr, str(path))
