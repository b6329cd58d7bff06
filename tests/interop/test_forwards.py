"""Forwarded connections between Culvert and every peer, in both roles."""

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.interop.conftest import OURS, PAIRS, pair_of
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerSettings,
    Terminal,
    end,
    environment,
    find_program,
    free_port,
    start,
)

DATA = os.urandom(3 << 20)
CLIENTS_WITH_SOCKETS = ("openssh", OURS)

SOCKS_PAIRS = [pair for pair in PAIRS if pair[0] not in ("dbclient", "paramiko")]
LOCAL_PAIRS = [("openssh", OURS), (OURS, "openssh"), (OURS, OURS)]


def each(pairs: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("client", "server"), [pair_of(*names) for names in pairs], indirect=True
    )


class Echo:
    """Says back what it hears, and 'bye' once that has ended; on a port or a path."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=2000)
            self.port = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(100)
            path.chmod(0o666)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    @staticmethod
    def _answer(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(65536):
                peer.sendall(data)
            peer.sendall(b"bye")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    it = Echo()
    yield it
    it.close()


def connect(place: int | Path) -> socket.socket:
    """A connection to a port of the loopback or to a path, once somebody listens there."""
    failures: list[OSError] = []

    def attempt() -> socket.socket | None:
        kind = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET
        sock = socket.socket(kind)
        try:
            sock.connect(str(place) if isinstance(place, Path) else ("127.0.0.1", place))
        except OSError as error:
            failures.append(error)
            sock.close()
            return None
        sock.settimeout(20)
        return sock

    sock = eventually(attempt)
    assert sock is not None, failures[-1]
    return sock


T = TypeVar("T")


def eventually(attempt: Callable[[], T | None], timeout: float = 20) -> T | None:
    """The first result that is something."""
    end_time = time.monotonic() + timeout
    while (result := attempt()) is None and time.monotonic() < end_time:
        time.sleep(0.02)
    return result


def assert_echoes(place: int | Path, data: bytes = DATA) -> None:
    """Everything comes back; and our end of file goes there before theirs comes here."""
    with connect(place) as sock:
        assert_answered(sock, data)


def assert_answered(sock: socket.socket, data: bytes = DATA) -> None:
    def say() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    speaker = threading.Thread(target=say)
    speaker.start()
    heard = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    speaker.join()
    assert hashlib.sha256(heard).digest() == hashlib.sha256(data + b"bye").digest(), len(heard)


Run = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A function that starts a client without a command, and ends it after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(
        client: ClientKind, server: Server, login: Login, *options: str
    ) -> subprocess.Popen[bytes]:
        call = client.invocation(server, login, None, options=("-N", *options))
        log = open(tmp_path / "client.log", "ab")  # noqa: SIM115
        with log:
            running.append(
                subprocess.Popen(
                    call.argv, env=call.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip
        return running[-1]

    yield begin
    for process in running:
        end(process)


# -- every peer ----------------------------------------------------------------------------


def test_a_local_port(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    port = free_port()
    run(client, server, login, "-L", f"{port}:127.0.0.1:{echo.port}")
    for _ in range(3):
        assert_echoes(port)


def test_a_remote_port(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    port = free_port()
    run(client, server, login, "-R", f"{port}:127.0.0.1:{echo.port}")

    def reached() -> bool | None:
        try:
            assert_echoes(port)
        except ConnectionResetError:
            # AsyncSSH knows its listener only in the turn after the reply to its request, and
            # refuses a connection that comes together with that reply.
            assert client.name == "asyncssh"
            return None
        return True

    assert eventually(reached)
    for _ in range(2):
        assert_echoes(port)


@each(SOCKS_PAIRS)
def test_a_socks_port(
    client: ClientKind, server: Server, login: Login, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "page").write_bytes(DATA)
    with contextlib.ExitStack() as stack:
        web = subprocess.Popen(
            [find_program("python3"), "-m", "http.server", "0", "--bind", "127.0.0.1"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment(tmp_path, {"PYTHONUNBUFFERED": "1"}),
        )  # fmt: skip
        assert web.stdout is not None
        stack.callback(web.stdout.close)
        stack.callback(end, web)
        found = re.search(rb"port (\d+)", web.stdout.readline())
        assert found
        port = free_port()
        run(client, server, login, "-D", str(port))
        connect(port).close()
        for kind in ("socks4", "socks4a", "socks5", "socks5-hostname"):
            done = subprocess.run(
                ["curl", "-sS", f"--{kind}", f"127.0.0.1:{port}",
                 f"http://localhost:{int(found[1])}/page"],
                capture_output=True, timeout=30, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, b""), kind
            assert done.stdout == DATA


@each([(OURS, "openssh"), (OURS, OURS)])
def test_a_socks_client_learns_by_a_reset_that_its_place_is_not_there(
    client: ClientKind, server: Server, login: Login, run: Run, tmp_path: Path
) -> None:
    port = free_port()
    run(client, server, login, "-D", str(port))
    with connect(port) as sock:
        nowhere = free_port().to_bytes(2, "big")
        sock.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + nowhere + b"early")
        assert sock.recv(12, socket.MSG_WAITALL) == b"\5\0" + b"\5\0\0\1" + bytes(6)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert "open failed: Connection refused" in (tmp_path / "client.log").read_text()


@each([pair for pair in PAIRS if pair[0] not in ("asyncssh", "paramiko")])
def test_standard_input_and_output(
    client: ClientKind, server: Server, login: Login, echo: Echo
) -> None:
    letter = {"plink": "-nc", "dbclient": "-B"}.get(client.name, "-W")
    done = client.run(
        server, login, None, options=(letter, f"127.0.0.1:{echo.port}"), data=DATA[: 1 << 20]
    )
    assert done.stdout == DATA[: 1 << 20] + b"bye", done.stderr


@each(LOCAL_PAIRS)
@pytest.mark.parametrize("direction", ["L", "R"])
def test_unix_domain_sockets(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo, direction: str,
    shared: Path,
) -> None:  # fmt: skip
    port = free_port()
    there = Echo(shared / "there")
    words = []
    for listen, target in (
        (shared / "one", shared / "there"),
        (shared / "two", f"127.0.0.1:{echo.port}"),
        (port, shared / "there"),
    ):
        words += [f"-{direction}", f"{listen}:{target}"]
    client_process = run(client, server, login, *words)
    for place in (shared / "one", shared / "two", port):
        assert_echoes(place)
    assert (shared / "one").stat().st_mode & 0o777 == 0o600
    end(client_process)
    there.close()
    if (server.kind.name if direction == "R" else client.name) == OURS:
        assert wait_until(lambda: not (shared / "one").exists(), 5)


@pytest.fixture
def shared(account: Account) -> Iterator[Path]:
    """A folder in which the account may make sockets, with a path that is short enough."""
    folder = Path(account.home, f"s{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# -- ours, with OpenSSH at the other end ---------------------------------------------------


@each(LOCAL_PAIRS)
def test_the_server_chooses_the_port(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo, tmp_path: Path
) -> None:
    run(client, server, login, "-R", f"0:127.0.0.1:{echo.port}")
    log = tmp_path / "client.log"
    found = eventually(lambda: re.search(r"Allocated port (\d+)", log.read_text()))
    assert found, log.read_text()
    assert_echoes(int(found[1]))


@each(LOCAL_PAIRS)
def test_remote_socks(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    port = free_port()
    run(client, server, login, "-R", str(port))
    for version in (4, 5):
        with connect(port) as sock:
            if version == 4:
                sock.sendall(b"\4\1" + echo.port.to_bytes(2, "big") + b"\0\0\0\1u\0localhost\0")
                assert sock.recv(8)[1] == 90
            else:
                sock.sendall(b"\5\1\0")
                assert sock.recv(2) == b"\5\0"
                sock.sendall(b"\5\1\0\3\x09localhost" + echo.port.to_bytes(2, "big"))
                assert sock.recv(10)[:2] == b"\5\0"
            assert_answered(sock)


@each(LOCAL_PAIRS)
def test_a_place_where_nobody_is_closes_its_connection_only(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    bad, good = free_port(), free_port()
    nowhere = free_port()
    run(
        client, server, login,
        "-L", f"{bad}:localhost:{nowhere}", "-L", f"{good}:localhost:{echo.port}",
    )  # fmt: skip
    with connect(good) as living:
        living.sendall(b"x")
        assert living.recv(1) == b"x"
        with connect(bad) as sock:
            assert is_refused(sock)
        assert_answered(living, b"y" * 1000)


@each(LOCAL_PAIRS)
def test_who_does_not_read_stops_only_their_own_connection(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    """Back pressure goes all the way to who sends, and nothing piles up between."""
    port = free_port()
    process = run(client, server, login, "-L", f"{port}:127.0.0.1:{echo.port}")
    with connect(port) as deaf:
        deaf.setblocking(False)
        sent = 0
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.7 and sent < 200 << 20:
            try:
                sent += deaf.send(DATA)
                quiet = time.monotonic()
            except BlockingIOError:
                time.sleep(0.02)
        assert sent < 150 << 20  # kernel buffers, and a window for each direction
        assert_echoes(port)
        assert rss(process.pid) < 100 << 20
    assert_echoes(port)


def rss(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


@each([("openssh", OURS), (OURS, OURS)])
def test_more_connections_than_1024_descriptors(
    client: ClientKind, server: Server, login: Login, run: Run, echo: Echo
) -> None:
    port = free_port()
    run(client, server, login, "-L", f"{port}:127.0.0.1:{echo.port}")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(port)) for _ in range(1100)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(socks):
            assert sock.recv(10) == b"%d" % number


@each(LOCAL_PAIRS)
def test_a_port_that_is_taken_ends_the_client_only_if_it_is_to(
    client: ClientKind, server: Server, login: Login
) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        refused(client, server, login, taken.getsockname()[1])


def refused(client: ClientKind, server: Server, login: Login, port: int) -> None:
    spec = f"{port}:127.0.0.1:1"
    for letter in ("-L", "-R"):
        done = client.run(server, login, "echo in", options=(letter, spec))
        assert (done.status, done.stdout) == (0, b"in\n")
        assert str(port) in done.stderr
        strict = (letter, spec, "-oExitOnForwardFailure=yes")
        done = client.run(server, login, "echo in", options=strict)
        assert (done.status, done.stdout) == (255, b"")
        assert str(port) in done.stderr
    cleared = client.run(
        server, login, "echo in",
        options=("-L", spec, "-oExitOnForwardFailure=yes", "-oClearAllForwardings=yes"),
    )  # fmt: skip
    assert cleared.status == 0


@each(LOCAL_PAIRS)
def test_a_session_ends_when_its_forwarded_connections_have(
    client: ClientKind, server: Server, login: Login, echo: Echo
) -> None:
    port = free_port()
    spec = f"{port}:127.0.0.1:{echo.port}"
    call = client.invocation(server, login, "echo in; read x", options=("-L", spec))
    process = subprocess.Popen(
        call.argv, env=call.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, connect(port) as sock:
        assert process.stdout.readline() == b"in\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert_answered(sock)
        process.wait(10)


@each(LOCAL_PAIRS)
def test_in_the_background(client: ClientKind, server: Server, login: Login, echo: Echo) -> None:
    port = free_port()
    spec = f"{port}:127.0.0.1:{echo.port}"
    options = ("-f", "-oExitOnForwardFailure=yes", "-R", spec, "sleep 3")
    call = client.invocation(server, login, None)
    done = subprocess.run(
        [*call.argv[:-1], *options[:-1], call.argv[-1], options[-1]],
        env=call.env, stdin=subprocess.DEVNULL, capture_output=False, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert_echoes(port)  # it is there as soon as the command is
    assert wait_until(lambda: not listens(port), 10)


@each(LOCAL_PAIRS)
def test_the_command_line_of_a_session(
    client: ClientKind, server: Server, login: Login, echo: Echo
) -> None:
    """~C adds forwards and cancels them."""
    local, remote = free_port(), free_port()
    extra = ("-oEnableEscapeCommandline=yes", "-tt")
    call = client.invocation(server, login, "stty -echo; echo ready; cat", options=extra)
    with Terminal(call) as terminal:
        terminal.read_until(b"ready")
        for line in (
            f"-L{local}:127.0.0.1:{echo.port}", f"-R {remote}:127.0.0.1:{echo.port}",
        ):  # fmt: skip
            terminal.write(b"\r~C")
            terminal.read_until(b"ssh> ")
            terminal.write(line.encode() + b"\r")
            terminal.read_until(b"Forwarding")
        assert_echoes(local)
        assert_echoes(remote)
        for line in (f"-KL{local}", f"-KR{remote}"):
            terminal.write(b"\r~C")
            terminal.read_until(b"ssh> ")
            terminal.write(line.encode() + b"\r")
            terminal.read_until(b"anceled")
        for port in (local, remote):
            assert wait_until(lambda port=port: not listens(port), 5)  # type: ignore[misc]
        terminal.write(b"\r~C")
        terminal.read_until(b"ssh> ")
        terminal.write(b"-Lnonsense\r")
        terminal.read_until(b"forwarding specification")
        terminal.write(b"\r~.")
        terminal.wait()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


# -- what our server does not allow --------------------------------------------------------


@pytest.fixture
def strict(host_keys: Keyring, account: Account, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts our server with these settings."""
    with contextlib.ExitStack() as stack:

        def run(text: str) -> Server:
            config = tmp_path / "sshd.toml"
            config.write_text(text)
            settings = ServerSettings([host_keys.key()], options=("--config", str(config)))
            return stack.enter_context(start(SERVERS[OURS], settings, tmp_path / "strict"))

        yield run


@pytest.mark.root
@pytest.mark.parametrize("name", ["openssh", OURS])
def test_what_is_not_permitted_is_refused_in_words(
    name: str, strict: Callable[..., Server], login: Login, run: Run, echo: Echo, tmp_path: Path
) -> None:
    client = CLIENTS[name]
    server = strict(f"permit_open = ['localhost:{echo.port}']\nallow_tcp_forwarding = 'local'\n")
    good, bad = free_port(), free_port()
    run(
        client, server, login,
        "-L", f"{good}:localhost:{echo.port}", "-L", f"{bad}:127.0.0.1:{echo.port}",
    )  # fmt: skip
    assert_echoes(good)
    with connect(bad) as sock:
        assert is_refused(sock)
    assert "permitopen" in (tmp_path / "client.log").read_text()
    refusal = f"direct-tcpip 127.0.0.1:{echo.port} refused: this place may not"
    assert wait_until(lambda: refusal in server.log)
    assert f"direct-tcpip localhost:{echo.port} opened" in server.log
    done = client.run(
        server, login, "true",
        options=("-R", f"{bad}:localhost:1", "-oExitOnForwardFailure=yes"),
    )  # fmt: skip
    assert done.status == 255
    assert f"remote port forwarding failed for listen port {bad}" in done.stderr
    refusal = f"forwarded-tcpip localhost:{bad} refused: port forwarding is not"
    assert wait_until(lambda: refusal in server.log)


@pytest.mark.root
def test_running_out_of_descriptors_refuses_the_next_channel_and_ends_nothing_else(
    host_keys: Keyring, login: Login, run: Run, echo: Echo, tmp_path: Path
) -> None:
    settings = ServerSettings([host_keys.key()])
    kind = SERVERS[OURS]
    folder = tmp_path / "few"
    folder.mkdir()
    port = free_port()
    argv = ["prlimit", "--nofile=64:64", *kind.command(settings, port, folder)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(folder)
        )
    server = Server(kind, settings, port, folder, process)
    try:
        connect(port).close()
        local = free_port()
        run(CLIENTS["openssh"], server, login, "-L", f"{local}:127.0.0.1:{echo.port}")
        with connect(local) as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            with contextlib.ExitStack() as stack:
                more = [stack.enter_context(connect(local)) for _ in range(100)]
                for sock in more:
                    with contextlib.suppress(OSError):
                        sock.sendall(b"z")
                ends = sum(is_refused(sock) for sock in more)
                assert 0 < ends < 100
            assert_answered(first, DATA[:100000])
        assert wait_until(lambda: works(local), 10)
    finally:
        server.stop()


def is_refused(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def works(port: int) -> bool:
    with connect(port) as sock:
        sock.sendall(b"x")
        return sock.recv(1) == b"x"


def test_a_word_that_is_no_forward_is_a_line_of_help(tmp_path: Path) -> None:
    for words in (["-L", "1:2"], ["-D", "x"], ["-R", "1:host:0"]):
        done = subprocess.run(
            [*CULVERT, "ssh", "-F", "none", *words, "host"],
            capture_output=True, text=True, env=environment(tmp_path), timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 255
        assert done.stderr.count("\n") == 1
        assert "expected [address:]port" in done.stderr
