"""A server on the loopback, connections to it driven byte by byte, and a monitor alone."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.config.server import ServerConfig
from appliance.crypto.key_files import load_private_key
from appliance.crypto.keys import PrivateKey
from appliance.server import accounts, programs, shadow
from appliance.server.requests import DATAGRAM
from appliance.ssh.auth_client import Identity
from appliance.ssh.connection import Connection
from appliance.ssh.order import Phase
from appliance.ssh.settings import ClientSide, Settings
from tests.netns import Namespace, wait_until
from tests.peers import SERVERS, Account, Keyring, Server, ServerSettings, start, temporary_account
from tests.processes import family, status
from tests.protocol.harness import FAST, Recorder, TestCredentials
from tests.unit.server.office import Office

Serve = Callable[..., Server]
HERE = "127.0.0.1"
STRANGER = 12345  # a uid that is neither root's nor an account's
Ends = tuple[socket.socket, socket.socket]


class Dialler:
    """A real connection to a server, which the test moves on step by step."""

    def __init__(
        self,
        place: tuple[str, int] | socket.socket,
        account: Account,
        key: Path,
        credentials: TestCredentials | None = None,
    ) -> None:
        credentials = credentials or _Key(load_private_key(key.read_bytes()))
        self.recorder = Recorder()
        self.connection = Connection(
            ClientSide(account.name, lambda key: None, credentials, ("publickey",)),
            Settings(FAST),
            self.recorder,
            os.urandom,
            0.0,
        )
        if isinstance(place, tuple):
            place = socket.create_connection(place, timeout=10)
        self.socket = place

    def until(self, condition: Callable[[Connection], object], seconds: float = 15) -> bool:
        """Send and receive until `condition` holds; False when the connection ends first."""
        end = time.monotonic() + seconds
        connection = self.connection
        while not condition(connection):
            assert time.monotonic() < end, f"it takes too long: {connection.transport.phase}"
            while connection.transport.unsent:
                with contextlib.suppress(OSError):
                    connection.transport.sent(self.socket.send(connection.transport.data_to_send()))
                    continue
                return False
            if condition(connection) or connection.transport.phase is Phase.CLOSED:
                break
            try:
                count = self.socket.recv_into(connection.transport.receive_buffer())
            except OSError:
                count = 0
            if not count:
                connection.transport.receive_eof()
                break
            connection.transport.received(count, 0.0)
        return bool(condition(connection))

    def log_in(self) -> "Dialler":
        assert self.until(lambda connection: connection.transport.phase is Phase.OPEN), (
            self.connection.transport.error
        )
        return self

    def answers(self) -> bool:
        """Whether the connection still works."""
        answers: list[object] = []
        self.connection.global_request("x", b"", answers.append)
        return self.until(lambda _: answers)

    def close(self) -> None:
        self.socket.close()


Dial = Callable[..., Dialler]


class _Key(TestCredentials):
    """One key, which is used at once."""

    def __init__(self, key: PrivateKey) -> None:
        super().__init__(key)
        self._always = key

    def identities(self) -> list[Identity]:
        public = self._always.public
        return [Identity(public.blob, public.signature_algorithms, self._always.sign, False, "")]


@pytest.fixture
def our_server(
    host_keys: Keyring, authorized_keys: Path, tmp_path: Path
) -> Iterator[Callable[..., Server]]:
    """A function that starts a server with more settings of its TOML file."""
    running: list[Server] = []

    def run(
        text: str = "",
        *options: str,
        passwords: bool = False,
        namespace: Namespace | None = None,
        address: str = "127.0.0.1",
    ) -> Server:
        config = tmp_path / f"sshd-{len(running)}.toml"
        config.write_text(text)
        settings = ServerSettings(
            host_keys=[host_keys.key()],
            # root's server reads keys with the account's eyes, in the account's home
            authorized_keys=authorized_keys if os.geteuid() else None,
            passwords=passwords,
            namespace=namespace,
            address=address,
            options=["--config", str(config), "-v", *options],
        )
        server = start(SERVERS["culvert"], settings, tmp_path / f"server-{len(running)}")
        running.append(server)
        stops.callback(server.stop)
        # It listens before it is ready; a first visitor shows that it is.
        place = server.address, server.port

        def visit() -> None:
            with socket.create_connection(place, timeout=20) as sock:
                sock.recv(1)

        namespace.inside(visit) if namespace is not None else visit()
        assert is_alone(server), server.log
        return server

    with contextlib.ExitStack() as stops:
        yield run
        for server in running:
            for pid in family(server.process.pid)[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def dial(account: Account, user_keys: Keyring) -> Iterator[Callable[..., Dialler]]:
    """A function that connects to a server as `account`, with its key unless told otherwise."""
    made: list[Dialler] = []

    def connect(server: Server, credentials: TestCredentials | None = None) -> Dialler:
        place = server.address, server.port
        made.append(Dialler(place, account, user_keys.key(), credentials))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def is_alone(server: Server, seconds: float = 10) -> bool:
    """Whether the server has no monitor and no worker any more, after a while."""
    return wait_until(lambda: len(family(server.process.pid)) == 1, seconds)


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


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def make(lines: str = "", **changes: object) -> Office:
        made.append(Office(monkeypatch, lines, **changes))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What programs would have been started with."""
    calls: list[tuple[object, ...]] = []

    def start(*arguments: object) -> None:
        calls.append(arguments)
        raise OSError(11, "enough")

    monkeypatch.setattr(programs, "start", start)
    return calls


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The worker's and the monitor's."""
    worker, monitor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker, monitor:
        yield worker, monitor


def answering(monitor: socket.socket, answer: bytes, fds: list[int]) -> Callable[[], bytes]:
    """Answer one request; the result joins, and returns what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        asked.append(monitor.recv(DATAGRAM))
        socket.send_fds(monitor, [answer], fds)

    thread = threading.Thread(target=serve)
    thread.start()

    def joined() -> bytes:
        thread.join()
        return asked[0]

    return joined


@pytest.fixture
def changeable(worker: str) -> Iterator[Account]:
    """An account whose password and shell a test may change."""
    with temporary_account(f"culvert-{worker}-change") as account:
        assert accounts.find(account.name, ServerConfig(), HERE) is not None
        yield account


def days_ago(days: int) -> str:
    """As chage takes it."""
    return str(int(time.time()) // shadow.DAY - days)
