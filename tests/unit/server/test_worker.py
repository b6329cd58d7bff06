"""What a worker does for its own client, and what that costs the others."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from appliance.aio.loop import Loop
from appliance.config.server import ServerConfig
from appliance.server.worker import Job, Worker
from appliance.ssh.channels import Channel
from appliance.ssh.connection import Connection
from appliance.ssh.order import Role
from appliance.wire.host_keys import HOSTKEYS, write_strings
from appliance.wire.messages import ADMINISTRATIVELY_PROHIBITED, RESOURCE_SHORTAGE, Ping
from appliance.wire.session import Command
from tests.netns import wait_until
from tests.peers import CLIENTS, Account, Keyring, Login, Server
from tests.processes import family, lives, status
from tests.protocol.harness import (
    FAST,
    HOST_KEY,
    USER,
    Event,
    Pair,
    Recording,
    Script,
    TestAuthority,
)
from tests.unit.server.conftest import Dial, Serve, connect, is_alone, worker_of
from tests.unit.services.harness import FakeDriver, FakePrivileges

ANSWERS = 1 << 20  # bytes of questions that nobody reads the answers to


class FakeMonitor(FakePrivileges, TestAuthority):
    """A monitor without a process, which lets USER_KEY in and starts programs as whoever we are."""

    def __init__(self) -> None:
        FakePrivileges.__init__(self)
        TestAuthority.__init__(self)

    def sign(self, algorithm: str, exchange_hash: bytes) -> bytes:
        return HOST_KEY.sign(algorithm, exchange_hash)

    def settings(self, config: ServerConfig) -> ServerConfig:
        return replace(config, max_sessions=2)

    def watch(self, loop: Loop, questioned: Callable[[], None]) -> None:
        self.questioned = questioned

    def client_answers(self) -> None:
        self.asked.append(("client_answers",))

    def end_sessions(self, open_sessions: int) -> None:
        self.asked.append(("end_sessions", open_sessions))


class InMemory:
    """A worker, its client, and a monitor; no socket, no other process but the session's."""

    def __init__(self) -> None:
        self.monitor = FakeMonitor()
        self.pair = Pair()
        blob = HOST_KEY.public.blob
        job = Job(ServerConfig(), FAST, {"ssh-ed25519": blob}, (blob,), "")
        self.worker = Worker(job, self.monitor, self._drive, 0.0)  # type: ignore[arg-type]
        self.monitor.session_id = lambda: self.pair.server.transport.session_id
        self.pair.log_in()

    def _drive(self, connection: Connection) -> Any:
        self.pair.server = connection
        self.driver = FakeDriver(self.pair, connection)
        return self.driver

    def session(self) -> Channel:
        handler = Recording(self.pair.at_client.events)
        channel = self.pair.client.open_channel("session", b"", handler)
        handler.channel = channel
        self.pair.pump()
        return channel

    @property
    def events(self) -> list[Event]:
        """What the client has seen."""
        return self.pair.at_client.events

    def close(self) -> None:
        self.pair.server.transport.close()
        self.pair.pump()
        self.monitor.close()
        self.driver.loop.close()


@pytest.fixture
def it() -> Iterator[InMemory]:
    made = InMemory()
    yield made
    made.close()


def test_a_login_and_a_program_in_memory(it: InMemory) -> None:
    assert ("key", USER) in it.monitor.asked
    assert ("global_request", HOSTKEYS, write_strings([HOST_KEY.public.blob])) in it.events
    it.session().request("exec", Command(b"echo hello; exit 7").encode())
    it.driver.run_until(lambda: ("closed",) in it.events)
    assert ("spawn", "exec", b"echo hello; exit 7", (), False) in it.monitor.asked
    assert ("data", b"hello\n") in it.events
    assert ("request", "exit-status", (7).to_bytes(4, "big")) in it.events


def test_sessions_are_as_many_as_the_users_settings_say(it: InMemory) -> None:
    channels = [it.session() for _ in range(3)]
    assert it.events.count(("open_failed", RESOURCE_SHORTAGE)) == 1
    channels[0].close()
    it.pair.pump()
    it.session()
    assert it.events.count(("opened", b"")) == 3
    it.pair.client.global_request("no-more-sessions@openssh.com")
    it.pair.pump()
    assert it.monitor.asked[-1] == ("end_sessions", 2)
    it.session()
    assert ("open_failed", ADMINISTRATIVELY_PROHIBITED) in it.events


def test_the_client_is_asked_when_the_monitor_asks(it: InMemory) -> None:
    it.monitor.questioned()
    it.driver.run_until(lambda: ("client_answers",) in it.monitor.asked)


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
    assert other.answers()


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


def test_a_worker_that_crashes_takes_its_own_connection_only(our_server: Serve, dial: Dial) -> None:
    server = our_server()
    first, second = dial(server).log_in(), dial(server).log_in()
    workers = worker_of(server, 2)
    os.kill(workers[0], signal.SIGSEGV)
    ended = []
    for client in (first, second):
        ended.append(not client.answers())
    assert sorted(ended) == [False, True]
    assert wait_until(lambda: len(family(server.process.pid)) == 3), server.log


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
