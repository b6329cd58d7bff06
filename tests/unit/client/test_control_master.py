"""Who may share a connection: the user, and whoever is asked for."""

import os
import pwd
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from appliance.client import prompts
from appliance.client.control_master import ControlMaster, ControlSocket
from appliance.client.control_messages import Check, Ended, NewSession, NewStdioForward, Running
from appliance.server import accounts
from appliance.wire.codec import Message
from tests.peers import private_folder


class Driver:
    """What a master asks of a connection's driver: nobody is to reach the connection itself."""

    def __init__(self) -> None:
        self.loop = Loop()

    def flush(self) -> None:
        """Nothing waits."""


class Master:
    """A master without a connection, and a client's end of its socket."""

    def __init__(self, path: Path, ask: bool) -> None:
        self.driver = Driver()
        control = ControlSocket(str(path))
        self.it = ControlMaster(
            control,
            self.driver,  # type: ignore[arg-type]
            pytest.fail,
            lambda *_: None,
            "host",
            ask,
            lambda: None,
            pytest.fail,
        )
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def turn(self) -> None:
        for _ in range(5):
            self.driver.loop.call_later(0.01, lambda: None)
            self.driver.loop._turn()

    def ask(self, message: Message, descriptors: int) -> bytes:
        """What it answers; b'' if it hangs up."""
        self.sock.connect(str(self.path))
        with open(os.devnull, "rb") as null:
            socket.send_fds(self.sock, [message.encode()], [null.fileno()] * descriptors)
        self.turn()
        self.sock.setblocking(False)
        return self.sock.recv(1000)

    def close(self) -> None:
        self.it.close()
        self.sock.close()
        self.driver.loop.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder("c") as made:
        yield made


@pytest.fixture
def master(folder: Path) -> Iterator[Master]:
    made = Master(folder / "s", ask=True)
    yield made
    made.close()


def test_the_socket_is_its_users_alone(master: Master) -> None:
    status = master.path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o600)
    assert os.listdir(master.path.parent) == ["s"]
    with pytest.raises(FileExistsError):
        ControlSocket(str(master.path))
    assert os.listdir(master.path.parent) == ["s"]
    assert master.ask(Check(), 0)[0] == Running.number


@pytest.mark.root
@pytest.mark.parametrize(("name", "answered"), [("root", True), ("nobody", False)])
def test_somebody_else_shares_nothing(
    master: Master, folder: Path, name: str, answered: bool
) -> None:
    """Even if the file lets them: the kernel says who they are."""
    folder.chmod(0o755)
    master.path.chmod(0o666)
    user = pwd.getpwnam(name)
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            accounts.become(user)
            master.sock.connect(str(master.path))
            master.sock.settimeout(10)
            master.sock.send(Check().encode())
            status = 0 if master.sock.recv(1000) else 1
        except ConnectionError:
            status = 1
        finally:
            os._exit(status)
    end = time.monotonic() + 15
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end:
        master.turn()
    assert os.waitstatus_to_exitcode(ended[1]) == (0 if answered else 1)


@pytest.mark.parametrize("answer", ["n", "no", "never", None])
@pytest.mark.parametrize("kind", ["session", "forward"])
def test_the_user_may_say_no(
    master: Master, monkeypatch: pytest.MonkeyPatch, kind: str, answer: str | None
) -> None:
    monkeypatch.setattr(prompts, "line", lambda prompt: answer)
    if kind == "session":
        wanted = master.ask(NewSession("exec", b"x", (), b"", False, False, b"", False), 3)
    else:
        wanted = master.ask(NewStdioForward("host", 7, False), 2)
    assert Ended.decode(wanted).status == 255
    assert not master.it.sessions
