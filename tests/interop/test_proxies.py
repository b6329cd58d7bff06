"""The ways to a host that is not reached directly: jump hosts, -W, proxies and commands.

Jump hosts and targets are the real servers. The proxies are tinyproxy and microsocks, and one of
our own, which shows what it was asked for.
"""

import contextlib
import hashlib
import os
import select
import selectors
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.algorithms import DROPBEAR_HOST_KEYS
from tests.netns import wait_until
from tests.peers import (
    CULVERT,
    KEY_TYPES,
    SERVERS,
    Account,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    end,
    environment,
    find_program,
    free_port,
    start,
)

OPENSSH = ["ssh"]
OURS = [*CULVERT, "ssh"]
SECRET = "pass-word"

pytestmark = pytest.mark.xdist_group("proxies")


@pytest.fixture
def hosts(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    account: Account,
    request: pytest.FixtureRequest,
) -> dict[str, Server]:
    """A server of each kind that jumps and targets need."""
    found = {}
    for name in ("openssh", "dropbear", "culvert"):
        own_keys_only = name == "dropbear" or account.password
        types = DROPBEAR_HOST_KEYS if name == "dropbear" else tuple(KEY_TYPES)
        settings = ServerSettings(
            host_keys=host_keys.keys(types),
            authorized_keys=None if own_keys_only else request.getfixturevalue("authorized_keys"),
        )
        found[name] = serve(SERVERS[name], settings)
    return found


@pytest.fixture
def config(hosts: dict[str, Server], login: Login, tmp_path: Path) -> Path:
    """An ssh_config that knows the servers by their kinds."""
    path = tmp_path / "config"
    path.write_text(
        "".join(
            f"Host {name}\n HostName {server.address}\n Port {server.port}\n"
            f" UserKnownHostsFile {server.known_hosts}\n"
            for name, server in hosts.items()
        )
        + f"Host *\n User {login.user}\n IdentityFile {login.key}\n IdentitiesOnly yes\n"
        " GlobalKnownHostsFile /dev/null\n BatchMode yes\n StrictHostKeyChecking yes\n"
    )
    path.chmod(0o600)
    return path


Ssh = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def ssh(config: Path, tmp_path: Path) -> Ssh:
    """A function that runs a client with these words."""

    def run(
        *words: str, program: Sequence[str] = OURS, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        argv = [find_program(program[0]), *program[1:], "-F", str(config), *words]
        return subprocess.run(
            argv,
            input=data,
            env=environment(tmp_path, {"SHELL": "/bin/sh"}),
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )

    return run


def assert_works(done: subprocess.CompletedProcess[bytes], output: bytes = b"in\n") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, output, b"")


def assert_told(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """One line on standard error is ours, says this, and the status is ssh's."""
    assert (done.returncode, done.stdout) == (255, b""), done.stderr
    lines = done.stderr.decode().splitlines()
    (line,) = (line for line in lines if line.startswith("culvert"))
    assert line.startswith("culvert ssh: "), line
    for word in words:
        assert word in line
    assert SECRET not in line


# -- our own proxy -------------------------------------------------------------------------


class Proxy:
    """An HTTP or SOCKS5 proxy that keeps what it was asked for."""

    def __init__(self, speak: Callable[["Proxy", Any], tuple[str, int]]) -> None:
        self.asked: list[bytes] = []
        self._speak = speak
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, client.makefile("rwb", 0) as stream, contextlib.suppress(OSError):
            client.settimeout(30)
            with socket.create_connection(self._speak(self, stream)) as server:
                self._relay(client, server)

    @staticmethod
    def _relay(client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while selector.get_map():
                for key, _ in selector.select(30):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if data:
                        key.data.sendall(data)
                    else:
                        selector.unregister(key.fileobj)
                        key.data.shutdown(socket.SHUT_WR)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()


def connect(proxy: Proxy, stream: Any) -> tuple[str, int]:
    """CONNECT; the server's first words may come in the same packet as the answer."""
    line = stream.readline()
    proxy.asked = [line]
    while line.strip():
        line = stream.readline()
        proxy.asked.append(line)
    host, _, port = proxy.asked[0].split()[1].decode().rpartition(":")
    stream.write(b"HTTP/1.1 200 Connection established\r\nServer: x\r\n\r\n")
    return host, int(port)


def socks(proxy: Proxy, stream: Any) -> tuple[str, int]:
    """SOCKS 5 with a name and no password; a name is resolved to the loopback."""
    greeting = stream.read(2)
    proxy.asked = [greeting + stream.read(greeting[1])]
    stream.write(b"\x05\x00")
    head = stream.read(4)
    size = stream.read(1)[0] if head[3] == 3 else 4
    name, port = stream.read(size), int.from_bytes(stream.read(2), "big")
    proxy.asked.append(name)
    stream.write(b"\x05\x00\x00\x03\x04name\x00\x00")
    return (socket.inet_ntoa(name) if head[3] == 1 else "127.0.0.1"), port


@pytest.mark.parametrize("target", ["openssh", "culvert"])
@pytest.mark.parametrize(
    ("scheme", "speak"), [("http", connect), ("socks5", socks)], ids=["http", "socks5"]
)
def test_a_login_through_a_proxy(
    ssh: Ssh,
    hosts: dict[str, Server],
    target: str,
    scheme: str,
    speak: Callable[[Proxy, Any], tuple[str, int]],
) -> None:
    with Proxy(speak) as proxy:
        url = f"{scheme}://{'u:p@' if scheme == 'http' else ''}127.0.0.1:{proxy.port}"
        assert_works(ssh("-o", f"Proxy={url}", target, "echo in"))
    if scheme == "http":
        assert proxy.asked[0] == b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % hosts[target].port
        assert b"Proxy-Authorization: Basic dTpw\r\n" in proxy.asked
    else:
        assert proxy.asked == [b"\x05\x01\x00", socket.inet_aton("127.0.0.1")]


def test_the_proxy_resolves_the_name(ssh: Ssh, hosts: dict[str, Server]) -> None:
    with Proxy(socks) as proxy:
        words = ["-o", f"Proxy=socks5://127.0.0.1:{proxy.port}", "-o", "HostName=far.invalid"]
        words += ["-o", f"HostKeyAlias={hosts['openssh'].address}"]
        assert_works(ssh(*words, "openssh", "echo in"))
    assert proxy.asked[1] == b"far.invalid"


# -- real proxies --------------------------------------------------------------------------


@contextlib.contextmanager
def running(argv: Sequence[str], port: int, folder: Path) -> Iterator[None]:
    """Run a proxy until the test is over."""
    with open(folder / "proxy.log", "wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def listens() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        assert wait_until(listens, 10), (folder / "proxy.log").read_text()
        yield
    finally:
        end(process)


@pytest.fixture
def tinyproxy(tmp_path: Path, hosts: dict[str, Server]) -> Iterator[int]:
    """The port of a tinyproxy that wants the user anna."""
    port = free_port()
    config = tmp_path / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nMaxClients 10\nBasicAuth anna {SECRET}\n"
        + "".join(f"ConnectPort {server.port}\n" for server in hosts.values())
    )
    with running([find_program("tinyproxy"), "-d", "-c", str(config)], port, tmp_path):
        yield port


@pytest.fixture
def microsocks(tmp_path: Path) -> Iterator[int]:
    """The port of a microsocks that wants the user anna."""
    port = free_port()
    argv = [find_program("microsocks"), "-i", "127.0.0.1", "-p", str(port)]
    with running([*argv, "-u", "anna", "-P", SECRET], port, tmp_path):
        yield port


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("target", ["openssh", "culvert"])
def test_a_login_through_a_real_proxy(
    ssh: Ssh, request: pytest.FixtureRequest, scheme: str, target: str
) -> None:
    port = request.getfixturevalue("tinyproxy" if scheme == "http" else "microsocks")
    url = f"{scheme}://anna:{SECRET}@127.0.0.1:{port}"
    data = os.urandom(1 << 20)
    assert_works(ssh("-o", f"Proxy={url}", target, "cat", data=data), data)
    for wrong in (f"anna:x{SECRET}@", ""):
        done = ssh("-o", f"Proxy={scheme}://{wrong}127.0.0.1:{port}", target, "echo in")
        other = "other " if wrong else ""
        assert_told(done, f"proxy 127.0.0.1 port {port}: the proxy wants {other}credentials")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_real_proxy_refuses(ssh: Ssh, request: pytest.FixtureRequest, scheme: str) -> None:
    port = request.getfixturevalue("tinyproxy" if scheme == "http" else "microsocks")
    url = f"{scheme}://anna:{SECRET}@127.0.0.1:{port}"
    done = ssh("-o", f"Proxy={url}", "-p", str(free_port()), "openssh", "echo in")
    assert_told(done, "it refuses: 403" if scheme == "http" else "it refuses: connection refused")


# -- jump hosts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jumps", "target"),
    [
        ("openssh", "culvert"),
        ("dropbear", "culvert"),
        ("dropbear", "openssh"),
        ("openssh", "dropbear"),
        ("openssh,dropbear", "culvert"),
        ("dropbear,openssh", "culvert"),
        ("culvert", "openssh"),
        ("culvert,openssh,culvert", "dropbear"),
    ],
)
def test_a_login_through_jump_hosts(ssh: Ssh, config: Path, jumps: str, target: str) -> None:
    assert_works(ssh("-J", jumps, target, "echo in"))
    config.write_text(f"Host {target}\n ProxyJump {jumps}\n" + config.read_text())
    data = os.urandom(3 << 20)
    assert_works(ssh(target, "cat", data=data), data)


def test_a_jump_host_is_named_with_user_and_port(
    ssh: Ssh, hosts: dict[str, Server], login: Login, config: Path
) -> None:
    server = hosts["openssh"]
    config.write_text(
        f"UserKnownHostsFile {server.known_hosts}\n"
        + config.read_text().replace(f" User {login.user}\n", " User nobody-at-all\n")
    )
    jump = f"{login.user}@{server.address}:{server.port}"
    assert_works(ssh("-J", jump, "-l", login.user, "culvert", "echo in"))


def test_openssh_goes_through_our_w(ssh: Ssh, config: Path) -> None:
    ours = shlex.join([*OURS, "-F", str(config), "-W", "%h:%p", "openssh"])
    data = os.urandom(3 << 20)
    for target in ("culvert", "dropbear"):
        words = ["-o", f"ProxyCommand={ours}", target, "cat"]
        assert_works(ssh(*words, program=OPENSSH, data=data), data)


def test_we_go_through_openssh_s_w(ssh: Ssh, config: Path) -> None:
    theirs = shlex.join([find_program("ssh"), "-F", str(config), "-W", "[%h]:%p", "openssh"])
    data = os.urandom(3 << 20)
    for target in ("culvert", "dropbear"):
        assert_works(ssh("-o", f"ProxyCommand={theirs}", target, "cat", data=data), data)


# -- -W ------------------------------------------------------------------------------------


@contextlib.contextmanager
def summing() -> Iterator[int]:
    """A port that reads to the end, and then answers with the SHA-256 of what it read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.settimeout(30)
                total = hashlib.sha256()
                while data := connection.recv(1 << 16):
                    total.update(data)
                connection.sendall(total.hexdigest().encode())

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


@pytest.mark.parametrize("hop", ["openssh", "dropbear"])
def test_each_direction_ends_on_its_own(ssh: Ssh, hop: str) -> None:
    data = os.urandom(5 << 20)
    with summing() as port:
        done = ssh("-W", f"127.0.0.1:{port}", hop, data=data)
    assert_works(done, hashlib.sha256(data).hexdigest().encode())
    with summing() as port:
        assert_works(
            ssh("-n", "-W", f"127.0.0.1:{port}", hop), hashlib.sha256().hexdigest().encode()
        )


def to_the_end(fd: int) -> bytes:
    """All that can be read."""
    found = b""
    while select.select([fd], [], [], 20)[0] and (data := os.read(fd, 4096)):
        found += data
    return found


@pytest.mark.parametrize("hop", ["openssh", "dropbear"])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_the_far_end_may_end_first(hop: str, kind: str, config: Path, tmp_path: Path) -> None:
    """Its last word is an end of file for our reader, while we go on to send."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe() if kind == "pipe" else (-1, -1)
    with socket.create_server(("127.0.0.1", 0)) as listener, ours:
        listener.settimeout(20)
        argv = [*OURS, "-F", str(config), "-W", f"127.0.0.1:{listener.getsockname()[1]}", hop]
        with theirs:
            process = subprocess.Popen(
                argv,
                stdin=theirs.fileno(),
                stdout=write if kind == "pipe" else theirs.fileno(),
                env=environment(tmp_path),
                start_new_session=True,
            )
        if kind == "pipe":
            os.close(write)
        try:
            ours.settimeout(20)
            with listener.accept()[0] as far:
                far.settimeout(20)
                far.sendall(b"bye")
                far.shutdown(socket.SHUT_WR)
                assert to_the_end(read if kind == "pipe" else ours.fileno()) == b"bye"
                ours.sendall(b"more")
                ours.shutdown(socket.SHUT_WR)
                assert far.recv(4, socket.MSG_WAITALL) == b"more"
                assert far.recv(1) == b""
            assert process.wait(20) == 0
        finally:
            end(process)
            if kind == "pipe":
                os.close(read)


@pytest.mark.parametrize("hop", ["openssh", "dropbear"])
def test_a_place_that_is_not_there_is_told(ssh: Ssh, hop: str) -> None:
    port = free_port()
    done = ssh("-W", f"127.0.0.1:{port}", hop)
    assert (done.returncode, done.stdout) == (255, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"culvert: the server does not connect to 127.0.0.1:{port}: ")


def test_a_jump_host_that_forwards_nothing_says_so(
    ssh: Ssh, config: Path, host_keys: Keyring, tmp_path: Path, hosts: dict[str, Server]
) -> None:
    settings = tmp_path / "sshd.toml"
    settings.write_text("allow_tcp_forwarding = 'no'\n")
    keys = hosts["culvert"].settings.authorized_keys
    options = ("--config", str(settings))
    closed = ServerSettings([host_keys.key()], authorized_keys=keys, options=options)
    with start(SERVERS["culvert"], closed, tmp_path / "closed") as server:
        config.write_text(
            f"Host closed\n HostName {server.address}\n Port {server.port}\n"
            f" UserKnownHostsFile {server.known_hosts}\n" + config.read_text()
        )
        done = ssh("-J", "closed", "openssh", "echo in")
    assert done.returncode == 255
    first, last = done.stderr.decode().splitlines()
    assert first.startswith("culvert: the server does not connect to 127.0.0.1:")
    assert first.endswith("port forwarding is not allowed")
    assert last.endswith("ssh to the jump host closed ended with exit status 255")


def test_dbclient_names_its_hops_with_commas(
    login: Login, hosts: dict[str, Server], tmp_path: Path
) -> None:
    """All have the one key, and -y as in Dropbear accepts what is not known."""
    first, second, third = (hosts[name] for name in ("dropbear", "culvert", "openssh"))
    route = f"{login.user}@{first.address}/{first.port},{login.user}@{second.address}^{second.port}"
    argv = [*CULVERT, "dbclient", "-y", "-i", str(login.key), "-l", login.user]
    argv += [f"{route},{third.address}^{third.port}", "echo in"]
    done = subprocess.run(
        argv, env=environment(tmp_path, {"USER": login.user}), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"in\n"), done.stderr


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "scheme", "words"),
    [
        (b"SSH-2.0-x\r\n\r\n", "http", "this is no HTTP proxy"),
        (b"x" * 9000, "http", "its answer has more than 8192 bytes"),
        (b"", "http", "it closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "socks5", "this is no SOCKS 5 proxy"),
        (b"", "socks5", "it closed the connection"),
    ],
)
def test_a_proxy_that_speaks_nonsense(ssh: Ssh, answer: bytes, scheme: str, words: str) -> None:
    def speak(_: Proxy, stream: Any) -> tuple[str, int]:
        stream.read(4096)
        stream.write(answer)
        raise OSError

    with Proxy(speak) as proxy:
        url = f"{scheme}://anna:{SECRET}@127.0.0.1:{proxy.port}"
        done = ssh("-vvv", "-o", f"Proxy={url}", "openssh", "echo in")
    assert SECRET.encode() not in done.stderr
    assert_told(done, f"proxy 127.0.0.1 port {proxy.port}: {words}")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_silent_proxy_is_given_up_after_the_connect_timeout(ssh: Ssh, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        done = ssh("-o", f"Proxy={url}", "-o", "ConnectTimeout=1", "openssh", "echo in")
    assert_told(done, "no answer within 1 s")


def test_a_proxy_that_is_not_there(ssh: Ssh) -> None:
    port = free_port()
    done = ssh("-o", f"Proxy=http://anna:{SECRET}@127.0.0.1:{port}", "openssh", "echo in")
    assert_told(done, f"the proxy: connect to host 127.0.0.1 port {port}: Connection refused")


def test_a_proxy_s_url_is_wrong(ssh: Ssh) -> None:
    done = ssh("-o", f"Proxy=https://anna:{SECRET}@proxy", "openssh", "echo in")
    assert_told(done, "Proxy: expected http://[user:password@]host:port or socks5://")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/nonexistent/program %h", "ProxyCommand ended with exit status 127"),
        ("false", "ProxyCommand ended with exit status 1"),
        ("echo nonsense; false", "ProxyCommand ended with exit status 1"),
        ("kill -9 $$", "ProxyCommand ended with signal 9"),
        ("nc %q", "%q is not known"),
    ],
)
def test_a_command_that_is_no_way_to_the_host(ssh: Ssh, command: str, words: str) -> None:
    if " " in command and "%" not in command:
        command = f"sh -c {shlex.quote(command)}"
    assert_told(ssh("-o", f"ProxyCommand={command}", "openssh", "echo in"), words)


def test_a_jump_host_that_is_not_there(ssh: Ssh) -> None:
    port = free_port()
    done = ssh("-J", f"127.0.0.1:{port}", "openssh", "echo in")
    assert done.returncode == 255
    first, last = done.stderr.decode().splitlines()
    assert first == f"culvert ssh: connect to host 127.0.0.1 port {port}: Connection refused"
    assert last.endswith(f"ssh to the jump host 127.0.0.1:{port} ended with exit status 255")


def test_a_folder_of_the_current_directory_is_not_taken_for_ours(ssh: Ssh, tmp_path: Path) -> None:
    (tmp_path / "appliance").mkdir()
    (tmp_path / "appliance/__init__.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "contextlib.py").write_text("raise SystemExit('taken over')")
    assert_works(ssh("-J", "openssh", "culvert", "echo in"))


def test_nothing_is_left_of_a_command(ssh: Ssh, tmp_path: Path) -> None:
    """The command gets a signal when the session is over, as from OpenSSH."""
    script = tmp_path / "way.py"
    script.write_text(
        "import os, signal, socket, sys, threading\n"
        "def gone(*_):\n    open(sys.argv[3], 'w').write('gone'); os._exit(0)\n"
        "signal.signal(signal.SIGHUP, gone)\n"
        "sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    while data := sock.recv(65536): os.write(1, data)\n"
        "    signal.pause()\n"
        "threading.Thread(target=back, daemon=True).start()\n"
        "while data := os.read(0, 65536): sock.sendall(data)\n"
        "signal.pause()\n"
    )
    gone = tmp_path / "gone"
    command = f"{sys.executable} {script} %h %p {gone}"
    assert_works(ssh("-o", f"ProxyCommand={command}", "openssh", "echo in"))
    assert gone.read_text() == "gone"
