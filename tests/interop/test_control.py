"""Clients that share one connection: ControlMaster, ControlPath, ControlPersist and -O."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.client.control_messages import Check, NewSession, Running, Suspend
from tests.interop.conftest import OURS, logins, pair_of
from tests.interop.test_forwards import Echo, assert_echoes, eventually, listens
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    ClientKind,
    Invocation,
    Login,
    Server,
    Terminal,
    environment,
    free_port,
    private_folder,
)
from tests.processes import descriptors

PAIRS = [(OURS, "openssh"), (OURS, OURS), ("openssh", OURS)]
pairs = pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in PAIRS], indirect=True
)
with_ours = pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, "openssh"), pair_of(OURS, OURS)], indirect=True
)


class Shared:
    """One client program, by one control socket."""

    def __init__(self, client: ClientKind, server: Server, login: Login, path: Path) -> None:
        self.client, self.server, self.login, self.path = client, server, login, path

    def options(self, *more: str) -> tuple[str, ...]:
        return (*more, "-S", str(self.path))

    def run(
        self, command: str | None, *options: str, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        call = self.client.invocation(
            self.server, self.login, command, options=self.options(*options)
        )
        return subprocess.run(
            call.argv, env=call.env, input=data, capture_output=True, timeout=30, check=False,
            start_new_session=True,
        )  # fmt: skip

    def tell(self, what: str, *options: str) -> tuple[int, str, str]:
        done = self.run(None, "-O", what, *options)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def master(self) -> int:
        """The process that has the connection."""
        return int(self.tell("check")[2].split("pid=")[1].split(")")[0])

    def begin(self, persist: str = "yes") -> None:
        done = self.run("echo in", "-oControlMaster=auto", f"-oControlPersist={persist}")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"in\n", b"")

    def logins(self) -> int:
        return logins(self.server)


@pytest.fixture
def shared(client: ClientKind, server: Server, login: Login) -> Iterator[Shared]:
    with private_folder("c") as folder:
        it = Shared(client, server, login, folder / "s")
        yield it
        if it.path.exists():
            it.tell("exit")
        assert wait_until(lambda: not it.path.exists(), 5)


@pytest.fixture
def echo() -> Iterator[Echo]:
    it = Echo()
    yield it
    it.close()


@pairs
def test_the_first_login_serves_all(shared: Shared) -> None:
    before = shared.logins()
    shared.begin()
    code, _, said = shared.tell("check")
    assert code == 0
    assert "Master running (pid=" in said
    for status in (0, 7):
        done = shared.run(f"echo out; echo err >&2; exit {status}")
        assert (done.returncode, done.stdout, done.stderr) == (status, b"out\n", b"err\n")
    data = os.urandom(5 << 20)
    assert shared.run("cat", data=data).stdout == data
    assert shared.logins() == before + 1
    assert shared.path.stat().st_mode & 0o777 == 0o600
    assert shared.tell("exit")[0] == 0
    assert wait_until(lambda: not shared.path.exists(), 5)
    assert shared.tell("check")[0] == 255


@pairs
def test_many_at_once(shared: Shared) -> None:
    shared.begin()
    call = shared.client.invocation(shared.server, shared.login, "cat", options=shared.options())
    running = [
        subprocess.Popen(call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    for number, process in enumerate(running):
        data = os.urandom(100000) + bytes([number])
        assert process.communicate(data, timeout=20)[0] == data
        assert process.returncode == 0


@pairs
def test_forwards_of_a_running_connection(shared: Shared, echo: Echo) -> None:
    shared.begin()
    local, remote = free_port(), free_port()
    words = (
        "-L", f"{local}:127.0.0.1:{echo.port}", "-R", f"{remote}:127.0.0.1:{echo.port}",
    )  # fmt: skip
    assert shared.tell("forward", *words)[0] == 0
    assert_echoes(local)
    assert_echoes(remote)
    assert shared.tell("cancel", *words)[0] == 0
    for port in (local, remote):
        assert wait_until(lambda port=port: not listens(port), 5)  # type: ignore[misc]
    code, out, _ = shared.tell("forward", "-R", f"0:127.0.0.1:{echo.port}")
    assert code == 0
    assert_echoes(int(out))
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        code, _, said = shared.tell("forward", "-L", f"{port}:127.0.0.1:1")
    assert code == 255
    assert str(port) in said or "forwarding" in said


@with_ours
def test_standard_input_and_output_and_forwards_share_it_too(shared: Shared, echo: Echo) -> None:
    before = shared.logins()
    shared.begin()
    done = shared.run(None, "-W", f"127.0.0.1:{echo.port}", data=b"hello")
    assert (done.returncode, done.stdout) == (0, b"hellobye")
    port = free_port()
    assert shared.run("true", "-L", f"{port}:127.0.0.1:{echo.port}").returncode == 0
    assert_echoes(port)  # as OpenSSH's, it lives with the master
    assert shared.logins() == before + 1


@with_ours
def test_a_terminal(shared: Shared) -> None:
    shared.begin()
    call = shared.client.invocation(
        shared.server, shared.login, "tty; stty size; read x; stty size; echo got $x; exit 5",
        options=shared.options("-tt"),
    )  # fmt: skip
    with Terminal(call, rows=30, columns=90) as terminal:
        terminal.read_until(b"/dev/pts/")
        terminal.read_until(b"30 90")
        terminal.resize(40, 100)
        wait_until(lambda: False, 0.3)
        terminal.write(b"a word\r")
        terminal.read_until(b"40 100")
        terminal.read_until(b"got a word")
        terminal.read_until(b"Shared connection to")
        assert terminal.wait() == 5
    call = shared.client.invocation(
        shared.server, shared.login, "sleep 1000", options=shared.options("-tt")
    )
    with Terminal(call) as terminal:
        wait_until(lambda: False, 1)
        terminal.write(b"\r~?")
        terminal.read_until(b"Supported escape sequences")
        terminal.write(b"\r~.")
        assert terminal.wait() == 255


@with_ours
def test_a_terminal_that_stands_still_stops_its_own_session_only(shared: Shared) -> None:
    shared.begin()
    call = shared.client.invocation(
        shared.server, shared.login, "echo in; yes; true", options=shared.options("-tt")
    )
    with Terminal(call) as terminal:
        terminal.read_until(b"in")
        wait_until(lambda: False, 1)  # nobody reads the rest: its buffer is full by now
        assert shared.run("echo too").stdout == b"too\n"
        terminal.read_until(b"y\r\ny\r\n")
        terminal.write(b"\r~.")
        assert terminal.wait() == 255


@with_ours
def test_a_client_that_is_killed_takes_its_program_along_and_nothing_else(shared: Shared) -> None:
    shared.begin()
    call = shared.client.invocation(
        shared.server, shared.login, "echo $$; exec cat", options=shared.options()
    )
    with subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
    assert shared.run("echo in").stdout == b"in\n"


@with_ours
def test_it_ends_when_nobody_has_used_it_for_so_long(shared: Shared) -> None:
    shared.begin("1")
    assert shared.run("sleep 1.5; echo in").stdout == b"in\n"  # in use
    assert shared.path.exists()
    assert wait_until(lambda: not shared.path.exists(), 10)


@pairs
def test_a_master_in_the_background_that_was_stopped_ends_after_its_last_client(
    shared: Shared,
) -> None:
    shared.begin()
    master = shared.master()
    call = shared.client.invocation(
        shared.server, shared.login, "echo in; read x", options=shared.options()
    )
    with subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        assert shared.tell("stop")[0] == 0
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        assert is_running(master)
        other.stdin.write(b"\n")
        other.stdin.flush()
        assert other.wait(10) == 0
    assert wait_until(lambda: not is_running(master), 5)


@with_ours
def test_a_client_that_came_before_the_stop_is_still_served(shared: Shared) -> None:
    shared.begin()
    master = shared.master()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(shared.path))
        sock.settimeout(5)
        sock.send(Check().encode())
        assert sock.recv(1000)[0] == Running.number
        assert shared.tell("stop")[0] == 0
        sock.send(Check().encode())
        assert sock.recv(1000)[:1] == bytes([Running.number])
    assert wait_until(lambda: not is_running(master), 5)


@pairs
@pytest.mark.parametrize("how", ["exit", "stop", "kill"])
def test_a_proxy_command_ends_with_its_master(shared: Shared, tmp_path: Path, how: str) -> None:
    """By a signal, if it can; and it keeps nobody waiting for the end of our standard error."""
    script, said = tmp_path / "way.py", tmp_path / "pid"
    script.write_text(
        "import os, select, signal, socket, sys\n"
        "open(sys.argv[3], 'w').write(str(os.getpid()))\n"
        "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "while True:\n"
        "    for end in select.select([0, sock], [], [])[0]:\n"
        "        if not (data := os.read(0, 65536) if end == 0 else sock.recv(65536)):\n"
        "            sys.exit() if sys.argv[4] == 'kill' else signal.pause()\n"
        "        sock.sendall(data) if end == 0 else os.write(1, data)\n"
    )
    way = f"-oProxyCommand={sys.executable} {script} %h %p {said} {how}"
    done = shared.run("echo in", "-oControlMaster=auto", "-oControlPersist=yes", way)
    assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr
    assert shared.run("echo too").stdout == b"too\n"
    master = shared.master()
    if how == "kill":
        os.kill(master, signal.SIGKILL)
        shared.path.unlink()
    else:
        assert shared.tell(how)[0] == 0
    for pid in (master, int(said.read_text())):
        assert wait_until(lambda pid=pid: not is_running(pid), 5)  # type: ignore[misc]


def is_running(pid: int) -> bool:
    """Whether a process that is perhaps none of ours has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@with_ours
def test_a_foreground_master_waits_for_the_others(shared: Shared) -> None:
    call = shared.client.invocation(
        shared.server, shared.login, "echo in; read x", options=shared.options("-M")
    )
    master = subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert master.stdin is not None
    assert master.stdout is not None
    with master:
        assert master.stdout.readline() == b"in\n"
        call = shared.client.invocation(
            shared.server, shared.login, "echo too; read x", options=shared.options()
        )
        with subprocess.Popen(
            call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == b"too\n"
            master.stdin.write(b"\n")
            master.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                master.wait(0.7)
            assert shared.tell("stop")[0] == 0
            assert not shared.path.exists()
            other.stdin.write(b"\n")
            other.stdin.flush()
            assert other.wait(10) == 0
        assert master.wait(10) == 0


@with_ours
def test_a_socket_that_was_left_behind_is_no_obstacle(shared: Shared) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(shared.path))
    shared.begin()
    assert shared.tell("check")[0] == 0
    second = shared.run("echo in", "-oControlMaster=yes")
    assert (second.returncode, second.stdout) == (0, b"in\n")
    assert b"already exists, disabling multiplexing" in second.stderr


@with_ours
def test_when_the_master_is_killed_its_clients_say_so(shared: Shared) -> None:
    shared.begin()
    pid = int(shared.tell("check")[2].partition("pid=")[2].partition(")")[0])
    call = shared.client.invocation(
        shared.server, shared.login, "echo in; exec cat", options=shared.options()
    )
    with subprocess.Popen(
        call.argv,
        env=call.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"in\n"
        os.kill(pid, signal.SIGKILL)
        assert process.wait(10) == 255
        assert b"the connection is gone" in process.stderr.read()
    shared.path.unlink()


@with_ours
def test_nonsense_on_the_socket_disturbs_nobody(shared: Shared) -> None:
    shared.begin()
    for data in (b"\0", b"\6", b"\x04\0\0\0\1X\0\0\0\0", os.urandom(1000), b"\x06" + bytes(60)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(shared.path))
            sock.settimeout(5)
            sock.send(data)
            answer = eventually(lambda sock=sock: sock.recv(1000))  # type: ignore[misc]
            assert answer is not None
    assert shared.run("echo in").stdout == b"in\n"


@with_ours
def test_a_client_leaves_no_descriptors_with_the_master(shared: Shared) -> None:
    """Each message may bring some; a session has those of its first."""
    shared.begin()
    pid = shared.master()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock,
        open(os.devnull, "rb") as null,
    ):
        sock.connect(str(shared.path))
        sock.settimeout(5)
        before = len(descriptors(pid))
        for _ in range(20):
            socket.send_fds(sock, [Check().encode()], [null.fileno()] * 3)
            assert sock.recv(1000)[0] == Running.number
        assert len(descriptors(pid)) <= before + 4  # these, and its own socket


def test_a_master_that_goes_away_while_its_client_is_suspended_is_not_replaced(
    tmp_path: Path,
) -> None:
    """Or what was asked for would be done twice."""
    with private_folder("c") as folder:
        path = folder / "s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as master:
            master.bind(str(path))
            master.listen()
            words = [*CULVERT, "ssh", "-F", "none", "-tt", "-S", str(path), "-p", "1", "127.0.0.1"]
            with Terminal(Invocation(words, environment(tmp_path))) as terminal:
                client, _ = master.accept()
                assert client.recv(65536)[0] == NewSession.number
                client.send(Suspend().encode())  # after which the terminal's size is told again
                client.close()
                said = terminal.read_until(b"the connection is gone")
                assert b"connect to host" not in said
                assert terminal.wait() == 255


def test_a_command_that_is_none_or_has_no_path_is_one_line(login: Login, tmp_path: Path) -> None:
    client = CLIENTS[OURS]
    for words, said in (
        (["-O", "dance", "-S", str(tmp_path / "s"), "host"], "expected one of check, exit"),
        (["-O", "check", "host"], "-O needs a ControlPath"),
        (["-O", "check", "-S", str(tmp_path / "s"), "host"], "Control socket connect("),
    ):
        done = subprocess.run(
            [*client.words, "-F", "none", *words],  # type: ignore[attr-defined]
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 255
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
