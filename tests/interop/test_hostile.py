"""Clients after their login, local users and servers that mean ill; and mistakes of a caller's."""

import asyncio
import os
import re
import resource
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.interop.conftest import OURS
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
    mistake_in,
    start,
)
from tests.processes import descriptors

LINE = b"TOP-SECRET-42"


@pytest.fixture
def ours(host_keys: Keyring, tmp_path: Path, account: Account, request: pytest.FixtureRequest) -> (
    Iterator[Server]
):  # fmt: skip
    keys = None if account.password else request.getfixturevalue("authorized_keys")
    config = tmp_path / "sshd.toml"
    config.write_text("gateway_ports = 'clientspecified'\n")
    settings = ServerSettings(
        [host_keys.key()], authorized_keys=keys, options=("--config", str(config))
    )
    with start(SERVERS[OURS], settings, tmp_path / "ours") as server:
        yield server


class Relay:
    """Passes bytes on to a server, and keeps those that a client says."""

    def __init__(self, server: Server) -> None:
        self.said = b""
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection((self._server.address, self._server.port)) as far:
            while True:
                for sock in select.select([client, far], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    if sock is client:
                        self.said += data
                    (far if sock is client else client).sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_no_way_out_for_what_is_said(
    closed: str, ours: Server, login: Login
) -> None:
    """CVE-2002-0572's kind: the connection must not become the standard output."""
    relay = Relay(ours)
    try:
        call = CLIENTS[OURS].invocation(ours, login, f"printf {LINE.decode()}; printf x >&2")
        argv = [str(relay.port) if word == str(ours.port) else word for word in call.argv]
        argv[1:1] = []
        known = ours.folder / "relay_known_hosts"
        known.write_text(ours.known_hosts.read_text().replace(f":{ours.port} ", f":{relay.port} "))
        argv = [word.replace(str(ours.known_hosts), str(known)) for word in argv]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *argv],
            env=call.env, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert relay.said.startswith(b"SSH-2.0-")
        assert LINE not in relay.said
        assert (done.stdout == LINE) == (">&-" not in closed.split())
    finally:
        relay.close()


def test_a_server_starts_with_closed_descriptors(host_keys: Keyring, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *CULVERT, "sshd", "--check",
         "-r", str(host_keys.key())],
        env=environment(tmp_path), timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0


Connect = Callable[..., None]


async def _ask(
    server: Server, login: Login, ask: Callable[[asyncssh.SSHClientConnection], object]
) -> None:
    async with asyncssh.connect(
        server.address, server.port, username=login.user, client_keys=[str(login.key)],
        known_hosts=str(server.known_hosts), agent_path=None, config=None,
    ) as connection:  # fmt: skip
        await ask(connection)  # type: ignore[misc]
        done = await connection.run("echo in")
        assert done.stdout == "in\n"


@pytest.mark.parametrize(
    "host", ["127.0.0.1%é", "::1%éé", "127.0.0.1%x", "a..b", "é" * 300, "x" * 2000, "\0", "%"]
)
def test_a_place_that_is_none_costs_its_channel_only(host: str, ours: Server, login: Login) -> None:
    async def ask(connection: asyncssh.SSHClientConnection) -> None:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection(host, 80)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.start_server(lambda *_: None, host, 0)

    asyncio.run(_ask(ours, login, ask))
    assert not mistake_in(ours.log)
    assert "crash" not in ours.log


@pytest.mark.root
def test_a_monitor_without_descriptors_refuses_and_loses_none(ours: Server, login: Login) -> None:
    """As a connection can bring it to that, it must not end it: each request finds fewer."""

    async def everything(
        connection: asyncssh.SSHClientConnection, port: int
    ) -> list[BaseException | None]:
        async def connect(host: str) -> None:
            (await connection.open_connection(host, port))[1].close()

        async def listen() -> None:
            (await connection.start_server(lambda *_: None, "127.0.0.1", 0)).close()

        async def run(term: str | None) -> None:
            await connection.run("true", term_type=term)

        work = (connect("127.0.0.1"), connect("127.1"), listen(), run(None), run("xterm"))
        return [(await asyncio.gather(each, return_exceptions=True))[0] for each in work]

    def listening() -> int:
        """How many forwarded ports the log has not seen closed."""
        text = ours.log
        opened = re.findall(r"forwarded-tcpip \S+ opened", text)
        closed = re.findall(r"forwarded-tcpip \S+ closed", text)
        return len(opened) - len(closed)

    async def ask(connection: asyncssh.SSHClientConnection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as there:
            port = there.getsockname()[1]
            living = await connection.create_process("cat")
            left = listening()
            assert await everything(connection, port) == [None] * 5
            assert wait_until(lambda: listening() == left)  # it hears of an end a bit later
            (monitor,) = children(ours.process.pid)
            before = len(descriptors(monitor))
            usual = resource.prlimit(monitor, resource.RLIMIT_NOFILE)
            seen: set[type[BaseException]] = set()
            for limit in range(before - 2, before + 10):
                resource.prlimit(monitor, resource.RLIMIT_NOFILE, (limit, usual[1]))
                found = await everything(connection, port)
                seen |= {type(each) for each in found if each is not None}
                living.stdin.write("x\n")
                assert await living.stdout.readline() == "x\n"
            assert seen <= {asyncssh.ChannelOpenError, asyncssh.ChannelListenError}
            assert asyncssh.ChannelOpenError in seen
            resource.prlimit(monitor, resource.RLIMIT_NOFILE, usual)
            assert await everything(connection, port) == [None] * 5
            assert wait_until(lambda: len(descriptors(monitor)) == before, 5)
            living.close()

    asyncio.run(_ask(ours, login, ask))
    assert "Too many open files" in ours.log
    assert not mistake_in(ours.log)


def children(pid: int) -> list[int]:
    """The processes that the first thread of this one has started."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_wrong_bind_address_is_one_line_and_no_end_of_a_shared_connection(
    ours: Server, login: Login, tmp_path: Path
) -> None:
    client = CLIENTS[OURS]
    path = Path(f"/tmp/cv-{os.getpid()}")
    shared = ("-S", str(path))
    begin = (*shared, "-oControlMaster=auto", "-oControlPersist=yes")
    assert client.run(ours, login, "true", options=begin).status == 0
    try:
        for name in ("a..b", "x" * 70):
            spec = f"{name}:8080:localhost:80"
            done = client.run(ours, login, None, options=(*shared, "-O", "forward", "-L", spec))
            assert done.status == 255
            assert done.stderr.count("\n") == 1
            plain = client.run(
                ours, login, "echo in", options=("-L", spec, "-oExitOnForwardFailure=yes")
            )
            assert plain.status == 255
            assert plain.stderr.count("\n") == 1
        assert client.run(ours, login, "echo in", options=shared).stdout == b"in\n"
    finally:
        client.run(ours, login, None, options=(*shared, "-O", "exit"))


def test_nothing_to_write_down_is_no_mistake(ours: Server, login: Login) -> None:
    known = ("-oUserKnownHostsFile=none", "-oUpdateHostKeys=yes", "-oStrictHostKeyChecking=no")
    call = CLIENTS[OURS].invocation(ours, login, "echo in")
    argv = [call.argv[0], call.argv[1], *known, *call.argv[2:]]
    done = subprocess.run(
        argv, env=call.env, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"in\n")
    assert not mistake_in(done.stderr.decode())
