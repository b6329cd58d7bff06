"""Terminals and programs of a real server's sessions."""

import pytest

from appliance.ssh.channels import ChannelHandler
from appliance.wire.session import Command, PtyRequest
from tests.peers import CLIENTS, Account, Keyring, Login
from tests.processes import descriptors, status
from tests.unit.server.conftest import Dial, Dialler, Serve, worker_of


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
