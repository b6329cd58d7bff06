"""The real server on the loopback: what its processes may do, and what bad peers cost."""

import contextlib
import os
import pwd
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.config.server import ServerConfig
from appliance.crypto.certificates import NONCE_BYTES, Kind, Terms, issue
from appliance.crypto.keys import SK_ECDSA, SK_ED25519, PublicKey, generate
from appliance.errors import AuthenticationFailed
from appliance.process import sandbox
from appliance.server.listener import Listener
from appliance.server.penalties import Penalties, blocks_of
from appliance.ssh.auth_client import Identity
from appliance.ssh.channels import ChannelHandler
from appliance.ssh.order import Phase, Role
from appliance.wire.messages import Ping
from appliance.wire.session import Command, PtyRequest
from tests.netns import Namespace, add_address, wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    Account,
    Keyring,
    Login,
    Server,
    environment,
    find_program,
    free_port,
)
from tests.protocol.harness import FAST, Script, TestCredentials
from tests.security_keys import TOUCHED, Token
from tests.unit.server.conftest import (
    Dialler,
    descriptors,
    family,
    going_by,
    is_alone,
    lives,
    status,
)

Serve = Callable[..., Server]
Dial = Callable[[Server], Dialler]
VERSION = b"SSH-2.0-test\r\n"
LARGE = os.urandom(3 << 20)
ANSWERS = 1 << 20  # bytes of questions that nobody reads the answers to


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.address, server.port), timeout=10)


def greeting(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and b"\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            break
        data += more
    return data


def worker_of(server: Server, count: int = 1) -> list[int]:
    """The workers, once there are so many of them."""
    assert wait_until(lambda: len(family(server.process.pid)) == 1 + 2 * count), server.log
    monitors = [
        pid
        for pid in family(server.process.pid)[1:]
        if int(status(pid)["PPid"][0]) == server.process.pid
    ]
    return [family(monitor)[1] for monitor in monitors]


# The sandbox


@pytest.mark.root
@pytest.mark.parametrize("authenticated", [False, True])
def test_a_worker_never_runs_as_root_and_cannot_become_it(
    our_server: Serve, dial: Dial, authenticated: bool
) -> None:
    groups = os.getgroups()
    os.setgroups([*groups, 4711])  # as a server has that is started from a root's shell
    try:
        server = our_server()
    finally:
        os.setgroups(groups)
    client = dial(server)
    if authenticated:
        client.log_in()
    else:
        assert client.until(lambda connection: connection.transport.peer_version)
    (worker,) = worker_of(server)
    own = next(
        pwd.getpwnam(name) for name in sandbox.USERS if name in {u.pw_name for u in pwd.getpwall()}
    )
    fields = status(worker)
    assert fields["Uid"] == [str(own.pw_uid)] * 4
    assert fields["Gid"] == [str(own.pw_gid)] * 4
    assert fields["Groups"] == []
    assert fields["NoNewPrivs"] == ["1"]
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(fields[name][0], 16) == 0


@pytest.mark.root
def test_a_workers_root_directory_is_empty_and_nobody_can_write_there(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    root = Path(f"/proc/{worker}/root")
    assert list(root.iterdir()) == []
    assert "(deleted)" in os.readlink(root)
    assert "(deleted)" in os.readlink(f"/proc/{worker}/cwd")
    with pytest.raises(OSError, match="No such file"):  # a directory that was removed takes nothing
        (root / "file").touch()


@pytest.mark.root
def test_a_workers_limits_leave_no_new_process_no_core_and_little_memory(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    lines = Path(f"/proc/{worker}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max data size"] == [str(sandbox.DATA_LIMIT)] * 2
    assert limits["Max open files"][0] == limits["Max open files"][1]


@pytest.mark.root
def test_a_worker_holds_nothing_but_its_connection_and_its_monitor(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    rest = [name for fd, name in sorted(descriptors(worker).items()) if fd > 2]
    sockets = [name for name in rest if name.startswith("socket:")]
    others = [name for name in rest if not name.startswith("socket:")]
    assert len(sockets) == 2, rest
    assert [name for name in others if name != "anon_inode:[eventpoll]"] == []


def test_what_the_listener_inherited_ends_there(
    our_server: Serve, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a server has files open that are nobody else's business."""
    read, write = os.pipe()
    start = subprocess.Popen

    def with_more(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        return start(*words, **options | {"stdin": read, "pass_fds": (write,)})

    monkeypatch.setattr(subprocess, "Popen", with_more)
    with open(read), open(write):
        server = our_server()
        inherited = os.readlink(f"/proc/self/fd/{write}")
        assert inherited in descriptors(server.process.pid).values()
        dial(server).log_in()
        (worker,) = worker_of(server)
        for pid in (worker, int(status(worker)["PPid"][0])):
            assert inherited not in descriptors(pid).values()


def test_a_server_of_an_ordinary_user_gives_up_what_it_can() -> None:
    """In a process of its own, which enters the sandbox without being root."""
    code = (
        "import os\n"
        "from appliance.process import sandbox\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "assert sandbox.prepare() is None\n"
        "sandbox.enter(None)\n"
        "print(open('/proc/self/status').read())\n"
        "try: os.fork()\n"
        "except BlockingIOError: print('no fork')\n"
    )
    folder = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=folder, timeout=30, env={"PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert "NoNewPrivs:\t1" in done.stdout, done.stderr
    if os.geteuid() == 0:
        assert "no fork" in done.stdout


def test_entering_the_sandbox_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "fchdir", broken)
    with pytest.raises(PermissionError):
        sandbox.enter(sandbox.Identity(65534, 65534, -1))


# The grace time, and what is left behind


def test_the_login_grace_time_ends_a_thousand_silent_peers_and_leaves_nothing(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server(
        "login_grace_time = 1\nmax_startups = [300, 30, 400]\nper_source_max_startups = 400\n"
    )
    ours = dial(server).log_in()
    opened = descriptors(server.process.pid)
    for _ in range(4):
        started = time.monotonic()
        half = connect(server)
        half.sendall(VERSION + b"\0\0\4\4\5")  # of a packet of 0x404 bytes
        silent = [half, *(connect(server) for _ in range(249))]
        for sock in silent:
            # a worker that is killed with bytes unread resets its connection
            with sock, contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
        assert 0.5 < time.monotonic() - started < 30
        assert wait_until(lambda: len(family(server.process.pid)) == 3), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)
    assert server.log.count("no login from 127.0.0.1 within 1 s") == 1000
    assert answers(ours)
    assert ours.connection.transport.phase is Phase.OPEN


@pytest.mark.parametrize(
    "said", [b"", b"SSH", VERSION, VERSION + b"\0\0", VERSION + b"\xff" * 100, b"x" * 100_000],
    ids=["nothing", "half a version", "a version", "half a packet", "nonsense", "a flood"],
)  # fmt: skip
def test_a_peer_that_goes_away_leaves_nothing_behind(our_server: Serve, said: bytes) -> None:
    server = our_server()
    opened = descriptors(server.process.pid)
    for abruptly in (False, True):
        with connect(server) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(said)
            if abruptly:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert is_alone(server), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)
    assert "Traceback" not in server.log


def test_a_client_that_goes_away_at_any_point_of_a_login_disturbs_nobody(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server("max_startups = [200, 30, 300]\nper_source_max_startups = 300\n")
    other = dial(server).log_in()
    opened = descriptors(server.process.pid)
    whole = dial(server)
    total = 0
    while whole.connection.transport.phase is not Phase.OPEN:
        while whole.connection.transport.unsent:
            count = whole.socket.send(whole.connection.transport.data_to_send())
            whole.connection.transport.sent(count)
            total += count
        count = whole.socket.recv_into(whole.connection.transport.receive_buffer())
        whole.connection.transport.received(count, 0.0)
    whole.close()
    for cut in range(0, total, max(1, total // 40)):
        client = dial(server)
        left = cut
        connection = client.connection
        while left:
            while connection.transport.unsent and left:
                count = client.socket.send(connection.transport.data_to_send()[:left])
                connection.transport.sent(count)
                left -= count
            if not left:
                break
            count = client.socket.recv_into(connection.transport.receive_buffer())
            if not count:
                break
            connection.transport.received(count, 0.0)
        client.close()
    assert wait_until(lambda: len(family(server.process.pid)) == 3, 15), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)
    assert "Traceback" not in server.log
    answers: list[object] = []
    other.connection.global_request("x", b"", answers.append)
    assert other.until(lambda _: answers)


def test_two_sessions_that_begin_at_once_have_a_terminal_each(
    our_server: Serve, dial: Dial
) -> None:
    class Session(ChannelHandler):
        def __init__(self) -> None:
            self.output = b""
            self.is_open = self.is_closed = False

        def opened(self, type_data: bytes) -> None:
            self.is_open = True

        def data(self, view: memoryview) -> None:
            self.output += view

        def closed(self) -> None:
            self.is_closed = True

    client = dial(our_server()).log_in()
    sessions = [Session(), Session()]
    channels = [client.connection.open_channel("session", b"", session) for session in sessions]
    assert client.until(lambda _: all(session.is_open for session in sessions))
    for columns, channel in zip((81, 82), channels, strict=True):
        channel.request("pty-req", PtyRequest("vt100", columns, 24, 0, 0, b"").encode())
    for channel in channels:
        channel.request("exec", Command(b"stty size").encode())
    assert client.until(lambda _: all(session.is_closed for session in sessions))
    assert [session.output for session in sessions] == [b"24 81\r\n", b"24 82\r\n"]


class Terminal(ChannelHandler):
    """A session's end of the client, and what its requests are answered with."""

    def __init__(self, client: Dialler) -> None:
        self.client = client
        self.output = b""
        self.is_open = self.is_closed = False
        self.channel = client.connection.open_channel("session", b"", self)
        assert client.until(lambda _: self.is_open)

    def opened(self, type_data: bytes) -> None:
        self.is_open = True

    def data(self, view: memoryview) -> None:
        self.output += view

    def closed(self) -> None:
        self.is_closed = True

    def ask(self, name: str, data: bytes) -> bool:
        answers: list[bool] = []
        self.channel.request(name, data, answers.append)
        assert self.client.until(lambda _: answers)
        return answers[0]

    def get_terminal(self) -> bool:
        return self.ask("pty-req", PtyRequest("vt100", 80, 24, 0, 0, b"").encode())


def test_a_terminal_without_a_program_is_given_back_with_its_session(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server("max_sessions = 2\n")
    client = dial(server).log_in()
    (worker,) = worker_of(server)
    monitor = int(status(worker)["PPid"][0])
    opened = [descriptors(process) for process in (monitor, worker)]
    kept = Terminal(client)
    assert kept.get_terminal()

    def gets_one_and_ends() -> bool:
        session = Terminal(client)
        assert session.get_terminal()
        session.channel.close()
        return client.until(lambda _: session.is_closed)

    for _ in range(500):
        assert gets_one_and_ends()
    kept.channel.close()
    assert client.until(lambda _: kept.is_closed)
    assert [descriptors(process) for process in (monitor, worker)] == opened


def test_a_terminal_outlives_a_program_that_was_refused(our_server: Serve, dial: Dial) -> None:
    session = Terminal(dial(our_server()).log_in())
    assert session.get_terminal()
    assert not session.ask("subsystem", Command(b"none").encode())
    assert session.ask("exec", Command(b"tty").encode())
    assert session.client.until(lambda _: session.is_closed)
    assert session.output.startswith(b"/dev/")


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
    answers: list[object] = []
    client.connection.global_request("x", b"", answers.append)
    assert client.until(lambda _: answers)


@pytest.mark.root
def test_the_users_rc_runs_before_the_command_and_does_not_take_its_input(
    our_server: Serve, account: Account, user_keys: Keyring
) -> None:
    server = our_server()
    login = Login(account, user_keys.key())
    rc = account.home / ".ssh/rc"
    rc.write_text('echo "rc of $USER"; cat\n')
    try:
        ran = CLIENTS["openssh"].run(server, login, "cat", data=b"hello")
    finally:
        rc.unlink()
    assert ran.stdout == f"rc of {account.name}\nhello".encode()
    assert CLIENTS["openssh"].run(server, login, "cat", data=b"hello").stdout == b"hello"


class Refusable(ChannelHandler):
    """Notes why it was not opened."""

    refusal = ""

    def open_failed(self, reason: int, description: str) -> None:
        self.refusal = description


def test_a_peer_that_asks_without_reading_costs_its_own_connection_only(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    other = dial(server).log_in()
    greedy = dial(server).log_in()
    workers = worker_of(server, 2)
    connection = greedy.connection
    greedy.socket.settimeout(1)
    sent = 0
    highest = 0
    ended = False
    while sent < 64 * ANSWERS and not ended:
        for _ in range(8):
            connection.transport._writer.packet(Ping(bytes(100_000)).encode())
        while connection.transport.unsent and not ended:
            try:
                connection.transport.sent(greedy.socket.send(connection.transport.data_to_send()))
            except TimeoutError:
                ended = True  # it does not read any more, which is as good
            except OSError:
                ended = True
        sent += 800_000
        for worker in workers:
            with contextlib.suppress(OSError, KeyError):
                highest = max(highest, int(status(worker)["RssAnon"][0]))
    assert ended
    assert highest < 64 << 10, highest  # KiB
    answers: list[object] = []
    other.connection.global_request("x", b"", answers.append)
    assert other.until(lambda _: answers)


# Peers that say nothing


def real_client(server: Server, login: Login, command: str) -> subprocess.Popen[bytes]:
    call = CLIENTS["openssh"].invocation(server, login, command)
    return subprocess.Popen(call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_client_that_stands_still_is_given_up_and_one_that_answers_is_not(
    our_server: Serve, account: Account, user_keys: Keyring
) -> None:
    server = our_server("client_alive_interval = 1\nclient_alive_count_max = 2\n")
    login = Login(account, user_keys.key())
    clients = [real_client(server, login, "echo up; cat") for _ in range(2)]
    try:
        for client in clients:
            assert client.stdout
            assert client.stdout.readline() == b"up\n"
        os.kill(clients[0].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        assert wait_until(lambda: "the client does not answer any more" in server.log, 20)
        assert 2 < time.monotonic() - stopped < 10
        assert wait_until(
            lambda: server.log.count("disconnected from") == 2
        )  # the first was a visitor
        assert clients[1].poll() is None
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def test_a_client_that_does_nothing_is_ended_and_one_at_work_is_not(
    our_server: Serve, account: Account, user_keys: Keyring
) -> None:
    """Questions whether somebody is there do not keep a connection alive."""
    server = our_server("idle_timeout = 2\nclient_alive_interval = 1\n")
    login = Login(account, user_keys.key())
    idle = real_client(server, login, "cat")
    busy = real_client(server, login, "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.5; done")
    assert busy.stdout
    assert [line.strip() for line in busy.stdout] == [b"%d" % number for number in range(1, 10)]
    assert busy.wait(20) == 0
    busy.communicate()
    assert idle.wait(20) == 255
    idle.communicate()
    assert server.log.count("idle for 2 s") == 1


# Penalties


def test_a_source_that_never_authenticates_is_refused_for_a_while(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server("per_source_penalty_exempt_list = []\n")
    logged_in = dial(server).log_in()
    for _ in range(20):  # each costs a second or more, and ten are too many
        connect(server).close()
    assert wait_until(lambda: "is refused for a while: no_authentication" in server.log)
    with connect(server) as sock:
        assert sock.recv(1) == b""
    answers: list[object] = []
    logged_in.connection.global_request("x", b"", answers.append)
    assert logged_in.until(lambda _: answers)  # who is in stays in


def test_nobody_is_punished_for_logging_in(our_server: Serve, dial: Dial) -> None:
    server = our_server("per_source_penalty_exempt_list = []\n")
    for _ in range(20):
        dial(server).log_in().close()
    assert is_alone(server)
    dial(server).log_in()


# Start-up limits


def test_one_source_may_have_so_many_start_ups_and_no_more(our_server: Serve, dial: Dial) -> None:
    server = our_server("per_source_max_startups = 5\n")
    for _ in range(7):  # whoever is authenticated does not count
        dial(server).log_in()
    waiting = [connect(server) for _ in range(5)]
    assert all(b"Culvert" in greeting(sock) for sock in waiting)
    with connect(server) as refused:
        assert greeting(refused) == b""
    assert "dropped: too many start-ups" in server.log
    waiting.pop().close()
    assert wait_until(lambda: _is_served(server))
    for sock in waiting:
        sock.close()


def test_real_start_ups_are_dropped_at_random_from_10_on_and_never_reach_100(
    our_server: Serve,
) -> None:
    server = our_server("per_source_max_startups = 1000\n")
    waiting, served = [], []
    try:
        for _ in range(250):
            waiting.append(connect(server))
            with contextlib.suppress(ConnectionResetError):
                served.append(greeting(waiting[-1]) != b"")
    finally:
        for sock in waiting:
            sock.close()
    assert served[:10] == [True] * 10
    assert 10 < sum(served) <= 100
    assert not all(served[10:60])
    assert is_alone(server)
    assert wait_until(lambda: _is_served(server))


def test_a_source_that_makes_the_server_exchange_keys_in_a_loop_is_soon_refused(
    our_server: Serve, dial: Dial
) -> None:
    """DHEat, CVE-2002-20001: what costs the server most, again and again."""
    server = our_server("per_source_penalty_exempt_list = []\n")
    started = time.monotonic()
    exchanged = 0
    while time.monotonic() - started < 4:
        client = dial(server)
        exchanged += client.until(lambda connection: connection.transport.session_id)
        client.close()
    assert 5 < exchanged < 4 * 20, exchanged  # fewer than 20 a second
    assert "is refused for a while: no_authentication" in server.log


def test_idle_connections_of_one_source_cost_another_one_none(our_server: Serve) -> None:
    server = our_server()
    place = (server.address, server.port)
    idle = [connect(server) for _ in range(20)]
    try:
        assert all(greeting(sock) for sock in idle[:10])
        for _ in range(60):
            with socket.create_connection(place, 10, ("127.0.0.2", 0)) as other:
                assert greeting(other).startswith(b"SSH-2.0-")
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.netns
def test_a_source_is_the_whole_network_of_an_ipv6_customer(
    our_server: Serve, tmp_path: Path
) -> None:
    with contextlib.closing(Namespace("customers")) as space:
        space.ip("link", "set", "lo", "up")
        add_address(space, "lo", "fd00:1::1/64")
        for number in range(2, 7):
            add_address(space, "lo", f"fd00:1::{number}/128")
        add_address(space, "lo", "fd00:2::1/128")
        server = our_server("per_source_max_startups = 3\n", namespace=space, address="fd00:1::1")

        def visit(number: int, network: int) -> tuple[socket.socket, bool]:
            source = (f"fd00:{network}::{number}", 0)
            sock = socket.create_connection(
                (server.address, server.port), timeout=10, source_address=source
            )
            return sock, greeting(sock) != b""

        def visit_all() -> list[bool]:
            visits = [visit(number, 1) for number in range(2, 7)] + [visit(1, 2)]
            for sock, _ in visits:
                sock.close()
            return [served for _, served in visits]

        assert space.inside(visit_all) == [True, True, True, False, False, True]
        server.stop()


@pytest.mark.netns
def test_idle_connections_of_a_whole_ipv6_site_cost_another_one_none(our_server: Serve) -> None:
    """Each from a /64 of its own, of one /48."""
    with contextlib.closing(Namespace("customers")) as space:
        space.ip("link", "set", "lo", "up")
        for number in range(41):
            add_address(space, "lo", f"fd00:1:0:{number:x}::1/128")
        add_address(space, "lo", "fd00:2::1/128")
        server = our_server("per_source_penalties = false\n", namespace=space, address="fd00:1::1")
        place = (server.address, server.port)

        def attack() -> int:
            idle = [
                socket.create_connection(place, 10, (f"fd00:1:0:{number:x}::1", 0))
                for number in range(1, 41)
            ]
            served = 0
            for _ in range(30):
                with socket.create_connection(place, 10, ("fd00:2::1", 0)) as other:
                    served += greeting(other) != b""
                wait_until(partial(_has_ended, server, "fd00:2::1", served))
            for sock in idle:
                sock.close()
            return served

        assert space.inside(attack) == 30
        server.stop()


def _has_ended(server: Server, source: str, connections: int) -> bool:
    return server.log.count(f"disconnected from {source}") == connections


def _is_served(server: Server) -> bool:
    with connect(server) as sock, contextlib.suppress(OSError):
        return bool(greeting(sock))
    return False


def test_start_ups_are_limited_as_10_30_100() -> None:
    """The chance to be dropped, asked of the listener itself."""

    listener = going_by(config=ServerConfig(per_source_max_startups=1000))
    dropped = {}
    for waiting in (0, 9, 10, 55, 99, 100, 200):
        listener._starting = {number: (number,) for number in range(waiting)}
        listener._per_block = Counter(range(waiting))
        dropped[waiting] = sum(listener._drops((4711,)) for _ in range(2000)) / 2000
    assert dropped[0] == dropped[9] == 0
    assert 0.24 < dropped[10] < 0.36
    assert 0.58 < dropped[55] < 0.72
    assert dropped[99] > 0.9
    assert dropped[100] == dropped[200] == 1
    listener._starting = {}
    listener._per_block = Counter({4711: 1000})
    assert listener._drops((4711,))
    assert not listener._drops((4712,))


def filled(limits: tuple[int, int, int], networks: int) -> Listener:
    """A listener with as many start-ups as so many /64s of one site get, from its first on."""
    listener = going_by(config=ServerConfig(max_startups=limits))
    listener._starting, listener._per_block = {}, Counter()
    for pid in range(1000):
        blocks = blocks_of(f"2001:db8:7:{pid * 7 % networks:x}::1", (32, 64))
        if not listener._drops(blocks):
            listener._starting[pid] = blocks
            listener._per_block.update(blocks)
    return listener


@pytest.mark.parametrize("limits", [(10, 30, 100), (1, 30, 100), (5, 100, 10), (2, 100, 4)])
@pytest.mark.parametrize(("networks", "most"), [(1, 20), (256, 40), (65536, 75)])
def test_one_source_or_site_alone_has_nobody_else_dropped(
    limits: tuple[int, int, int], networks: int, most: int
) -> None:
    listener = filled(limits, networks)
    assert len(listener._starting) <= min(most, limits[2] - limits[2] // 4)
    for other in ("2001:db8:8::1", "192.0.2.1"):
        own = blocks_of(other, (32, 64))
        assert not any(listener._drops(own) for _ in range(1000)), other
        # Also while some of its own are waiting.
        listener._per_block[own[0]] = limits[0] - limits[0] // 4 - 1
        assert not any(listener._drops(own) for _ in range(1000)), other


@pytest.mark.parametrize(("networks", "neighbour"), [(1, "1"), (1, "100"), (256, "100")])
def test_neither_is_a_neighbour_within_the_site_that_somebody_has_only_a_part_of(
    networks: int, neighbour: str
) -> None:
    listener = filled((10, 30, 100), networks)
    own = blocks_of(f"2001:db8:7:{neighbour}::1", (32, 64))
    assert not any(listener._drops(own) for _ in range(1000))


def test_what_a_source_counts_is_given_back_once() -> None:
    listener = Listener.__new__(Listener)
    listener._starting = {1: (11, 13), 2: (12, 13)}
    listener._per_block = Counter({11: 1, 12: 1, 13: 2})
    for pid in (1, 1, 3):
        listener._release(pid)
    assert listener._per_block == {12: 1, 13: 1}
    listener._release(2)
    assert listener._per_block == {}


@pytest.mark.parametrize(
    ("status", "seconds"), [(0, 0), (1, 90), (2, 90), (-9, 90), (-11, 90), (3, 1), (5, 5), (6, 10)]
)
def test_a_monitor_that_ends_in_an_unknown_way_has_crashed(status: int, seconds: int) -> None:
    penalties = Penalties((), (32, 64))
    listener = going_by(penalties=penalties)
    began = time.monotonic()
    listener._punish("192.0.2.7", status)
    ended = time.monotonic()
    ends = [record.end for record in penalties._records[4].values()]
    assert len(ends) == bool(seconds)
    assert all(began <= end - seconds <= ended for end in ends)


# The listener


def test_a_listener_that_is_ended_leaves_its_connections_alive(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    client = dial(server).log_in()
    processes = family(server.process.pid)[1:]
    server.process.terminate()
    assert server.process.wait(10) == 0
    answers: list[object] = []
    client.connection.global_request("x", b"", answers.append)
    assert client.until(lambda _: answers)
    with pytest.raises(OSError, match="refused"):
        connect(server)
    client.close()
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in processes))


def answers(client: Dialler) -> bool:
    """Whether the connection still works."""
    got: list[object] = []
    client.connection.global_request("x", b"", got.append)
    return client.until(lambda _: got)


def test_a_worker_that_crashes_takes_its_own_connection_only(our_server: Serve, dial: Dial) -> None:
    server = our_server()
    first, second = dial(server).log_in(), dial(server).log_in()
    workers = worker_of(server, 2)
    os.kill(workers[0], signal.SIGSEGV)
    ended = []
    for client in (first, second):
        ended.append(not answers(client))
    assert sorted(ended) == [False, True]
    assert wait_until(lambda: len(family(server.process.pid)) == 3), server.log
    assert "Traceback" not in server.log


def test_a_monitor_that_dies_takes_its_worker_along(our_server: Serve, dial: Dial) -> None:
    server = our_server()
    client = dial(server).log_in()
    _, monitor, worker = family(server.process.pid)
    os.kill(monitor, signal.SIGKILL)
    assert wait_until(lambda: family(worker) == [worker] and not lives(worker), 5)
    assert not client.until(lambda connection: False)
    assert is_alone(server)


class Wire:
    """Lets a script speak to a server behind a socket."""

    role = Role.SERVER
    error = None

    def __init__(self, server: Server) -> None:
        self.socket = connect(server)
        self.transport = self  # a connection has one, whose part this plays

    def receive_data(self, data: bytes, now: float) -> None:
        with contextlib.suppress(OSError):  # what it said before comes out of data_to_send
            self.socket.sendall(data)

    def data_to_send(self) -> bytes:
        with contextlib.suppress(OSError):
            if select.select([self.socket], [], [], 3)[0]:
                return self.socket.recv(65536)
        return b""

    def sent(self, count: int) -> None:
        """Nothing is kept."""


def test_too_many_key_exchanges_before_authentication_end_the_connection(
    our_server: Serve,
) -> None:
    """And leave a line in the log, not a traceback."""
    server = our_server()
    wire = Wire(server)
    algorithms = FAST._replace(key_exchange=("curve25519-sha256",))
    script = Script(wire, algorithms=algorithms).connect()  # type: ignore[arg-type]
    with wire.socket:
        script.exchange()
        script.kexinit()
        assert script.take()[:1] == b"\1"  # type: ignore[index]
        assert is_alone(server)
    assert "too many key exchanges" in server.log
    assert "Traceback" not in server.log


def inetd(
    host_keys: Keyring, tmp_path: Path, *options: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*CULVERT, "sshd", "-i", "-E", "-r", str(host_keys.key()), *options],
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
            env=environment(tmp_path),
        )  # fmt: skip
    return process, ours


def test_inetd_mode_serves_one_connection_on_standard_input(
    host_keys: Keyring,
    authorized_keys: Path,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
) -> None:
    keys = ["-D", str(authorized_keys.parent)] if os.geteuid() else []
    process, sock = inetd(host_keys, tmp_path, *keys)
    sock.settimeout(20)
    try:
        Dialler(sock, account, user_keys.key()).log_in()
    finally:
        sock.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("program", ["{}", "cat | {} | cat"], ids=["socket", "pipes"])
def test_inetd_mode_is_a_proxy_command(
    host_keys: Keyring,
    authorized_keys: Path,
    account: Account,
    user_keys: Keyring,
    tmp_path: Path,
    program: str,
) -> None:
    """OpenSSH's client gives it a socket; behind cat there are two pipes."""
    keys = ["-D", str(authorized_keys.parent)] if os.geteuid() else []
    server = [*CULVERT, "sshd", "-i", "-E", "-r", str(host_keys.key()), *keys]
    options = {
        "ProxyCommand": program.format(f"{shlex.join(server)} 2>{tmp_path / 'log'}"),
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "BatchMode": "yes",
    }
    done = subprocess.run(
        [find_program("ssh"), "-F", "none", *(f"-o{key}={value}" for key, value in options.items()),
         "-i", str(user_keys.key()), "-l", account.name, "culvert", "cat; exit 7"],
        input=LARGE, env=environment(tmp_path), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, LARGE), done.stderr
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("end", ["stdin", "stdout"])
def test_the_end_of_either_pipe_ends_a_connection(
    host_keys: Keyring, tmp_path: Path, end: str
) -> None:
    server = [*CULVERT, "sshd", "-i", "-r", str(host_keys.key())]
    process = subprocess.Popen(
        server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(tmp_path)
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline().startswith(b"SSH-2.0-")
        if end == "stdin":
            process.stdin.close()
        else:
            process.stdout.close()
            process.stdin.write(b"no version\n")  # it has to say so, and finds nobody
            process.stdin.flush()
        assert process.wait(20) == 0


def test_a_connection_that_is_standard_error_too_gets_no_line_of_the_servers(
    host_keys: Keyring, tmp_path: Path
) -> None:
    """As inetd arranges it; there is no system's log here, which would be told."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*CULVERT, "sshd", "-i", "-r", str(host_keys.key())],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno(),
                env=environment(tmp_path),
            )  # fmt: skip
        ours.settimeout(20)
        said = ours.recv(100)
        assert said.startswith(b"SSH-2.0-"), said
    assert process.wait(20) == 0


def test_a_pid_file_that_cannot_be_written_keeps_no_server_down(our_server: Serve) -> None:
    server = our_server("", "-P", "/nonexistent/pid")
    assert "pid file /nonexistent/pid: No such file or directory" in server.log


# Host keys


def test_two_servers_that_start_at_once_agree_on_one_host_key(tmp_path: Path) -> None:
    key = tmp_path / "keys/ssh_host_ed25519_key"
    servers = [
        subprocess.Popen(
            [*CULVERT, "sshd", "-F", "-E", "-R", "-r", str(key), "-P", "",
             "-p", f"127.0.0.1:{free_port()}"],
            env=environment(tmp_path), stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    assert wait_until(key.exists, 20)
    time.sleep(0.3)
    logs = []
    for server in servers:
        server.terminate()
        logs.append(server.communicate(timeout=20)[1].decode())
    assert sum("made host key" in log for log in logs) == 1, logs
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    assert key.stat().st_mode & 0o777 == 0o600


# Security keys and certificates


class _Shown(TestCredentials):
    """One key or certificate, and how it signs."""

    def __init__(self, key: PublicKey, sign: Callable[[bytes], bytes]) -> None:
        super().__init__(None)
        self._shown = key
        self._sign = sign

    def identities(self) -> list[Identity]:
        algorithms = self._shown.signature_algorithms
        return [
            Identity(self._shown.blob, algorithms, lambda _, data: self._sign(data), True, "a key")
        ]


@pytest.mark.parametrize("key_type", [SK_ED25519, SK_ECDSA])
def test_a_security_key_logs_in_by_its_certificate_when_it_was_touched(
    our_server: Serve,
    dial: Callable[..., Dialler],
    account: Account,
    tmp_path: Path,
    key_type: str,
) -> None:
    authority, token = generate("ssh-ed25519"), Token(key_type)
    path = tmp_path / "authorities"
    path.write_text(authority.public.line())
    server = our_server(f'trusted_user_ca_keys = "{path}"\nper_source_penalties = false\n')
    terms = Terms(Kind.USER, "who", (account.name,))
    made = issue(authority, "ssh-ed25519", token.public, terms, bytes(NONCE_BYTES))
    dial(server, _Shown(made, lambda data: token.sign(data, TOUCHED))).log_in()
    for key, flags in ((made, 0), (token.public, TOUCHED)):
        it = dial(server, _Shown(key, partial(token.sign, flags=flags)))
        assert not it.until(lambda connection: connection.transport.phase is Phase.OPEN)
        assert isinstance(it.connection.transport.error, AuthenticationFailed)
