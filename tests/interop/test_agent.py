"""Agent forwarding, with OpenSSH's agent at the near end and its programs at the far one."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import OURS
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerSettings,
    find_program,
    ssh_agent,
    start,
)


@pytest.fixture
def agent(tmp_path: Path, user_keys: Keyring) -> Iterator[Path]:
    """The socket of an agent that holds the user's key."""
    with ssh_agent(tmp_path / "agent") as path:
        add(path, str(user_keys.key()))
        yield path


def add(agent: Path, *words: str) -> None:
    subprocess.run(
        [find_program("ssh-add"), "-q", *words], env={"SSH_AUTH_SOCK": str(agent)}, check=True,
        capture_output=True,
    )  # fmt: skip


def run(
    client: ClientKind, server: Server, login: Login, command: str, agent: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    call = client.invocation(server, login, command, options=options)
    return subprocess.run(
        call.argv, env=call.env | {"SSH_AUTH_SOCK": str(agent)}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip


def test_programs_there_reach_the_agent_here(
    client: ClientKind, server: Server, login: Login, agent: Path, account: Account
) -> None:
    look = "ls -ld $(dirname $SSH_AUTH_SOCK) $SSH_AUTH_SOCK; ssh-add -L; echo $SSH_AUTH_SOCK"
    done = run(client, server, login, look, agent, "-A")
    lines = done.stdout.splitlines()
    assert len(lines) == 4, (done.stdout, done.stderr)
    for line, mode in zip(lines, ("drwx------", "srw"), strict=False):
        assert line.startswith(mode)
        # AsyncSSH's server is one process for all users.
        assert account.name in line or not account.password or server.kind.name == "asyncssh"
    assert lines[2].split()[:2] == Path(f"{login.key}.pub").read_text().split()[:2]
    assert wait_until(lambda: not Path(lines[3]).parent.exists(), 5)  # nothing stays behind


@pytest.mark.parametrize("name", ["openssh", OURS])
def test_nobody_reaches_it_unasked(
    name: str, login: Login, agent: Path, serve_ours: Callable[..., Server]
) -> None:
    done = run(CLIENTS[name], serve_ours(), login, "ssh-add -l", agent)
    assert done.returncode == 2
    assert "authentication agent" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("no-agent-forwarding", ""),
        ("restrict", ""),
        ("", "allow_agent_forwarding = false\n"),
        ("", "disable_forwarding = true\n"),
    ],
)
def test_who_may_not_has_a_session_all_the_same(
    login: Login, agent: Path, serve_ours: Callable[..., Server], options: str, settings: str
) -> None:
    server = serve_ours(options, settings)
    done = run(CLIENTS["openssh"], server, login, "echo in ${SSH_AUTH_SOCK:-none}", agent, "-A")
    assert (done.returncode, done.stdout) == (0, "in none\n"), done.stderr
    assert "agent forwarding is not allowed" in server.log


@pytest.mark.root
def test_an_agent_learns_which_hosts_ask(
    login: Login, agent: Path, serve_ours: Callable[..., Server], tmp_path: Path, user_keys: Keyring
) -> None:
    """A key that is bound to one way (ssh-add -h) works on it, and on no other."""
    first, second = serve_ours(), serve_ours()
    known = tmp_path / "known_hosts"
    known.write_text(first.known_hosts.read_text() + second.known_hosts.read_text())
    hosts = [f"[{each.address}]:{each.port}" for each in (first, second)]
    command = (
        f"ssh -F none -p {second.port} -o BatchMode=yes -o StrictHostKeyChecking=no"
        f" -o UserKnownHostsFile=/dev/null {second.address} echo in"
    )
    client = CLIENTS[OURS]
    for way, works in (([hosts[0], f"{hosts[0]}>{hosts[1]}"], True), ([hosts[0]], False)):
        add(agent, "-D")
        words = [word for each in way for word in ("-h", each)]
        add(agent, "-H", str(known), *words, str(user_keys.key()))
        done = run(client, first, login, command, agent, "-A")
        assert (done.stdout == "in\n") == works, done.stderr


@pytest.mark.parametrize("room", [100, 0])
def test_an_agent_that_hangs_stops_those_only_who_talk_to_it(
    login: Login, serve_ours: Callable[..., Server], tmp_path: Path, room: int
) -> None:
    """Whether it accepts connections and answers none, or does not even accept them."""
    server = serve_ours()
    path = tmp_path / "agent"
    with contextlib.ExitStack() as stack:
        hanging = stack.enter_context(socket.socket(socket.AF_UNIX))
        hanging.bind(str(path))
        hanging.listen(room)
        if not room:
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))  # its only place
        asking = 'for n in 1 2 3; do ssh-add -l >/dev/null 2>&1 & asking="$asking $!"; done'
        command = f"{asking}; echo in; cat; kill $asking"
        options = (f"-oForwardAgent={path}",)  # the login does without it
        call = CLIENTS[OURS].invocation(server, login, command, options=options)
        pipe = subprocess.PIPE
        process = stack.enter_context(
            subprocess.Popen(
                call.argv, env=call.env, text=True, bufsize=1, stdin=pipe, stdout=pipe,
                stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "in\n"
        if room:
            for _ in range(3):
                stack.enter_context(hanging.accept()[0])
        began = time.monotonic()
        for number in range(3):
            process.stdin.write(f"{number}\n")
            assert process.stdout.readline() == f"{number}\n"
        assert time.monotonic() - began < 3
        process.stdin.close()
        process.wait(15)  # after the time-out, for the agent may hang for ever


@pytest.fixture
def serve_ours(
    host_keys: Keyring, user_keys: Keyring, account: Account, tmp_path: Path
) -> Iterator[Callable[..., Server]]:
    """A function that starts our server with these settings, and options before the key."""
    running: list[Server] = []

    def run(options: str = "", settings: str = "") -> Server:
        number = len(running)
        folder = Path(account.home, f"keys{number}") if account.password else None
        keys = None
        if folder is not None:
            folder.mkdir(mode=0o755)
            keys = folder / "authorized_keys"
            keys.write_text(f"{options} {user_keys.public()}\n".lstrip())
        config = tmp_path / f"sshd-{number}.toml"
        config.write_text(settings)
        host_key = tmp_path / f"host-{number}"
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", host_key], check=True)
        server = ServerSettings([host_key], authorized_keys=keys, options=("--config", str(config)))
        running.append(start(SERVERS[OURS], server, tmp_path / f"ours-{number}"))
        return running[-1]

    yield run
    for number, server in enumerate(running):
        server.stop()
        if account.password:
            folder = Path(account.home, f"keys{number}")
            (folder / "authorized_keys").unlink()
            folder.rmdir()


@pytest.mark.parametrize(
    ("setting", "listed"), [("yes", True), ("no", False), ("1h", True), ("confirm", True)]
)
def test_a_key_that_is_used_can_be_left_with_the_agent(
    login: Login, agent: Path, serve_ours: Callable[..., Server], setting: str, listed: bool
) -> None:
    add(agent, "-D")
    options = (f"-oAddKeysToAgent={setting}",)
    done = run(CLIENTS[OURS], serve_ours(), login, "echo in", agent, *options)
    assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
    found = subprocess.run(
        [find_program("ssh-add"), "-L"], env={"SSH_AUTH_SOCK": str(agent)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    key = Path(f"{login.key}.pub").read_text().split()[1]
    assert (key in found.stdout) == listed
