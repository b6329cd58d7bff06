"""SIGHUP and restarts of a real server: what is new counts, and no connection is lost."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.crypto.key_files import load_private_key
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    SERVERS,
    Account,
    Keyring,
    Login,
    Server,
    ServerSettings,
    environment,
    find_program,
    free_port,
    start,
)
from tests.processes import descriptors, family
from tests.unit.server.conftest import Dial, Serve, is_alone


def config_of(server: Server) -> Path:
    return Path(server.settings.options[1])


def hang_up(server: Server, said: str) -> None:
    count = server.log.count(said)
    server.process.send_signal(signal.SIGHUP)
    assert wait_until(lambda: server.log.count(said) > count), server.log


def reload(server: Server, text: str) -> None:
    config_of(server).write_text(text)
    hang_up(server, "the settings are read again")


def test_new_settings_count_for_new_connections_and_no_other(
    our_server: Serve, dial: Dial, account: Account, user_keys: Keyring
) -> None:
    server = our_server("force_command = 'echo old'\nidle_timeout = 0\n")
    old = dial(server).log_in()
    login = Login(account, user_keys.key())
    assert CLIENTS["openssh"].run(server, login, "x").stdout == b"old\n"
    opened = len(descriptors(server.process.pid))
    for number in range(3):
        reload(server, f"force_command = 'echo new {number}'\nidle_timeout = 1\n")
        assert CLIENTS["openssh"].run(server, login, "x").stdout == f"new {number}\n".encode()
    time.sleep(1.5)
    assert old.answers()
    assert len(descriptors(server.process.pid)) == opened


def test_new_connections_are_traced_from_then_on(our_server: Serve, dial: Dial) -> None:
    server = our_server("")
    old = dial(server).log_in()
    reload(server, "trace = true\n")
    assert old.answers()
    assert "SSH_MSG_" not in server.log
    dial(server).log_in()
    assert "worker: send packet: type 52 (SSH_MSG_USERAUTH_SUCCESS), 1 bytes" in server.log


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no_such_key = 1", "there is no key 'no_such_key'"),
        ("listen = [", "not a TOML file"),
        ("banner = '/nowhere'", "banner /nowhere: No such file or directory"),
        ("audit_file = '/nowhere/audit'", "audit_file /nowhere/audit: No such file"),
        ("profile = 'hardened'\nper_source_penalty_exempt_list = ['x']", "exempt_list: "),
    ],
)
def test_a_mistake_leaves_everything_as_it_was_and_is_one_line(
    our_server: Serve, account: Account, user_keys: Keyring, text: str, told: str
) -> None:
    server = our_server("force_command = 'echo old'\n")
    opened = descriptors(server.process.pid)
    config_of(server).write_text(f"force_command = 'echo new'\n{text}\n")
    hang_up(server, "the settings stay as they were: ")
    (line,) = (line for line in server.log.splitlines() if "the settings stay" in line)
    assert told in line
    ran = CLIENTS["openssh"].run(server, Login(account, user_keys.key()), "x")
    assert ran.stdout == b"old\n"
    assert is_alone(server)
    assert descriptors(server.process.pid) == opened
    reload(server, "force_command = 'echo right'\n")
    ran = CLIENTS["openssh"].run(server, Login(account, user_keys.key()), "x")
    assert ran.stdout == b"right\n"


def test_host_keys_are_read_again(
    host_keys: Keyring, authorized_keys: Path, account: Account, user_keys: Keyring, tmp_path: Path
) -> None:
    own = Keyring(tmp_path / "own")
    key = own.key()
    settings = ServerSettings(
        host_keys=[key], authorized_keys=authorized_keys if os.geteuid() else None
    )
    with start(SERVERS["culvert"], settings, tmp_path / "server") as server:
        login = Login(account, user_keys.key())
        assert CLIENTS["openssh"].run(server, login, "true").status == 0
        key.write_bytes(host_keys.key().read_bytes())
        hang_up(server, "the settings are read again")
        other = CLIENTS["openssh"].run(server, login, "true")
        assert other.status == 255
        assert "HOST IDENTIFICATION HAS CHANGED" in other.stderr
        assert host_keys.fingerprint("ssh-ed25519") in other.stderr
        assert load_private_key(key.read_bytes()).public.fingerprint() in other.stderr


@pytest.mark.root
def test_declared_tunnels_wait_for_a_start_and_the_rest_does_not(
    our_server: Serve, account: Account, user_keys: Keyring
) -> None:
    server = our_server()
    text = "force_command = 'echo new'\n[[tunnel]]\ndevice = 'tun4711'\nany_source = true\n"
    reload(server, text)
    assert "changes in [[tunnel]] take effect when the server starts again" in server.log
    assert not Path("/sys/class/net/tun4711").exists()
    ran = CLIENTS["openssh"].run(server, Login(account, user_keys.key()), "x")
    assert ran.stdout == b"new\n"


@pytest.fixture
def listening(
    host_keys: Keyring, authorized_keys: Path, tmp_path: Path
) -> Iterator[tuple[Server, list[int]]]:
    """A server whose file says where it listens, and two ports; it begins with the first."""
    ports = [free_port(), free_port()]
    config = tmp_path / "sshd.toml"
    config.write_text(f"listen = ['127.0.0.1:{ports[0]}']\n")
    keys = ["-D", str(authorized_keys.parent)] if os.geteuid() else []
    folder = tmp_path / "server"
    folder.mkdir()
    words = [*CULVERT, "sshd", "-F", "-E", "-r", str(host_keys.key()), "--config", str(config)]
    words += ["-P", str(tmp_path / "pid")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*words, *keys], stderr=log, env=environment(folder))
    settings = ServerSettings([host_keys.key()], options=["--config", str(config)])
    server = Server(SERVERS["culvert"], settings, ports[0], folder, process)
    assert wait_until(lambda: accepts(ports[0]), 20), server.log
    yield server, ports
    server.stop()


def accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            return bool(sock.recv(1))
    except OSError:
        return False


def test_ports_that_stay_are_kept_new_ones_opened_and_old_ones_closed(
    listening: tuple[Server, list[int]], dial: Dial
) -> None:
    server, (first, second) = listening
    tcp = Path("/proc/net/tcp")

    def sockets() -> set[str]:
        """Those that listen; the others lead to who logs, and to who signs."""
        found = descriptors(server.process.pid).values()
        known = {f"socket:[{line.split()[9]}]" for line in tcp.read_text().splitlines()[1:]}
        return {name for name in found if name in known}

    client = dial(server).log_in()
    before = sockets()
    reload(server, f"listen = ['127.0.0.1:{first}', '127.0.0.1:{second}']\n")
    assert accepts(first)
    assert accepts(second)
    assert before < sockets()
    reload(server, f"listen = ['127.0.0.1:{second}']\n")
    assert not accepts(first)
    assert accepts(second)
    assert client.answers()
    assert not before & sockets()


def test_a_port_that_is_taken_leaves_the_old_ones_open(
    listening: tuple[Server, list[int]],
) -> None:
    server, (first, second) = listening
    third = free_port()
    with socket.create_server(("127.0.0.1", second)):
        opened = descriptors(server.process.pid)
        config_of(server).write_text(f"listen = ['127.0.0.1:{third}', '127.0.0.1:{second}']\n")
        hang_up(server, "the settings stay as they were: cannot listen on 127.0.0.1")
        assert accepts(first)
        assert not accepts(third)
        assert is_alone(server)
        assert descriptors(server.process.pid) == opened


def test_an_audit_file_that_was_renamed_is_begun_again(our_server: Serve, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    server = our_server(f"audit_file = '{path}'\n")
    path.rename(tmp_path / "audit.1")
    hang_up(server, "the settings are read again")
    assert '"event": "reloaded"' in path.read_text()
    assert "reloaded" not in (tmp_path / "audit.1").read_text()


def test_what_a_source_has_still_to_wait_for_outlives_a_reload(
    our_server: Serve, dial: Dial
) -> None:
    text = "per_source_penalty_exempt_list = []\n"
    server = our_server(text)
    for _ in range(20):
        socket.create_connection((server.address, server.port)).close()
    assert wait_until(lambda: "is refused for a while" in server.log)
    reload(server, text)
    assert not accepts(server.port)


def test_a_server_that_starts_again_takes_the_port_at_once_and_sessions_live_on(
    listening: tuple[Server, list[int]], account: Account, user_keys: Keyring
) -> None:
    """As systemd restarts it, which ends the listener alone (KillMode=process)."""
    server, (port, _) = listening
    login = Login(account, user_keys.key())
    call = CLIENTS["openssh"].invocation(server, login, "cat")
    session = subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert session.stdin and session.stdout
    session.stdin.write(b"before\n")
    session.stdin.flush()
    assert session.stdout.readline() == b"before\n"
    living = family(server.process.pid)[1:]
    assert len(living) >= 3
    server.process.terminate()
    assert server.process.wait(10) == 0
    words = server.process.args
    assert isinstance(words, list)
    with open(server.folder / "log", "ab") as log:
        again = subprocess.Popen(words, stderr=log, env=environment(server.folder))
    try:
        assert wait_until(lambda: accepts(port), 20), server.log
        assert CLIENTS["openssh"].run(server, login, "echo new").stdout == b"new\n"
        session.stdin.write(b"after\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"after\n"
        session.stdin.close()
        assert session.wait(20) == 0
        session.stdout.close()
    finally:
        again.terminate()
        again.wait(10)


def test_a_server_that_ends_leaves_the_pid_file_of_another(
    listening: tuple[Server, list[int]], tmp_path: Path
) -> None:
    server, _ = listening
    path = tmp_path / "pid"
    assert path.read_text() == f"{server.process.pid}\n"
    path.write_text("4711\n")
    server.process.terminate()
    assert server.process.wait(10) == 0
    assert path.read_text() == "4711\n"


def test_systemd_is_told_that_a_server_reads_its_settings_again(
    our_server: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import peers

    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        usual = peers.environment
        monkeypatch.setattr(
            peers, "environment", lambda home: usual(home, {"NOTIFY_SOCKET": str(path)})
        )
        server = our_server()
        assert manager.recv(4096) == b"READY=1"
        hang_up(server, "the settings are read again")
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(4096) == b"READY=1"


def test_busyboxs_script_reloads_a_daemon_whose_file_was_named_from_another_directory(
    host_keys: Keyring, tmp_path: Path
) -> None:
    port = free_port()
    text = f"listen = ['127.0.0.1:{port}']\nhost_keys = ['{host_keys.key()}']\n"
    text += f"audit_file = '{tmp_path / 'audit'}'\n"
    (tmp_path / "sshd.toml").write_text(text)
    wrapper = tmp_path / "culvert"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(CULVERT)} "$@"\n')
    wrapper.chmod(0o755)
    pid_file = tmp_path / "pid"
    env = environment(tmp_path) | {
        "CULVERT": str(wrapper),
        "SSHD_CONFIG": "sshd.toml",
        "LINKS_CONFIG": "none",
        "PID_FILE": str(pid_file),
    }

    def script(word: str) -> int:
        path = Path(__file__).resolve().parents[3] / "conf/init.d/culvert"
        done = subprocess.run(
            [find_program("busybox"), "sh", str(path), word], env=env, cwd=tmp_path, timeout=60
        )
        return done.returncode

    assert script("start") == 0
    try:
        assert wait_until(lambda: accepts(port), 20)
        assert script("reload") == 0
        assert wait_until(lambda: '"event": "reloaded"' in (tmp_path / "audit").read_text())
    finally:
        assert script("stop") == 0
    assert not pid_file.exists()
