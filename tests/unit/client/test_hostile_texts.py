"""What a server says is shown to a person, and steers no terminal."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import ssh
from appliance.client import tunnel
from appliance.client.client import Client
from appliance.client.credentials import UserCredentials
from appliance.client.host_trust import HostTrust
from appliance.client.ssh_config import load
from appliance.config.forwards import forward
from appliance.services.forward_client import ForwardClient, ForwardSettings
from appliance.services.session_client import SessionClient, Streams, Wanted
from appliance.services.stdio_forward import StdioForward
from appliance.ssh.channels import Channel
from appliance.wire.messages import Disconnect
from appliance.wire.session import ExitSignal
from tests.interop.test_refusals import answering
from tests.protocol.harness import Pair
from tests.unit.services.harness import FakeDriver

HOSTILE = "no\x1b]0;title\x07\r\x9b2J\x7f\u202e\b"
SHOWN = r"no\x1b]0;title\x07\x0d\x9b2J\x7f\x202e\x08"


class Refusing:
    """A connection whose server refuses every channel in hostile words."""

    def __init__(self) -> None:
        self.pair = Pair().log_in()
        self.driver = FakeDriver(self.pair, self.pair.client)
        self.said: list[str] = []
        self.pair.at_server.channel_open = self._refuse  # type: ignore[method-assign]

    def _refuse(self, channel: Channel, type_data: bytes) -> None:
        channel.reject(1, HOSTILE)

    def session(self) -> SessionClient:
        wanted = Wanted("exec", b"true", (), None, False, b"", False)
        return SessionClient(
            wanted, Streams(0, 1, 2), None, self.driver, lambda: None, self.said.append  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def it() -> Iterator[Refusing]:
    made = Refusing()
    yield made
    made.pair.client.transport.close()
    made.pair.pump()
    made.driver.loop.close()


def test_the_refusal_of_a_session(it: Refusing) -> None:
    session = it.session()
    session.start(it.pair.client.open_channel("session", b"", session))
    it.pair.pump()
    assert it.said == [f"the server refuses a session: {SHOWN}"]


def test_the_name_of_a_signal(it: Refusing) -> None:
    it.session().request("exit-signal", ExitSignal(HOSTILE[:7], False, HOSTILE, "").encode())
    assert it.said == [rf"the program was ended by signal {SHOWN[:10]}"]


def test_the_refusal_of_a_forward_of_standard_input(it: Refusing) -> None:
    driver, say = it.driver, it.said.append
    StdioForward(("host", 7), None, 1, driver, lambda: None, say).start()  # type: ignore[arg-type]
    it.pair.pump()
    assert it.said == [f"culvert: the server does not connect to host:7: {SHOWN}"]


def test_the_refusal_of_a_forwarded_connection(it: Refusing, tmp_path: Path) -> None:
    path = tmp_path / "s"
    client = ForwardClient(ForwardSettings(), it.driver, it.said.append, lambda: None)  # type: ignore[arg-type]
    client.add(forward("L", f"{path}:host:7"), lambda why, port: None)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        it.driver.run_until(lambda: it.said)
    assert it.said == [f"channel 0: open failed: {SHOWN}"]
    client.close()


def test_the_refusal_of_a_tunnel(
    it: Refusing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    near, far = socket.socketpair()
    monkeypatch.setattr(tunnel, "open_device", lambda mode, unit: (near.detach(), "tun0"))
    made = tunnel.ClientTunnel(load("host", ["Tunnel yes"], "none"))
    made.start(it.driver, lambda: None)  # type: ignore[arg-type]
    it.pair.pump()
    assert capsys.readouterr().err == f"culvert: the server refuses the tunnel: {SHOWN}\n"
    made.close()
    far.close()


def test_a_banner(capsys: pytest.CaptureFixture[str]) -> None:
    Client(load("host", (), "none"), "", False).banner(f"{HOSTILE}\n\tmore\n")
    assert capsys.readouterr().err == f"{SHOWN}\n\tmore\n"


def test_the_questions_of_a_dialogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "askpass"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >>{tmp_path}/asked\n')
    program.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(program))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    options = load("host", ["User me"], "none")
    credentials = UserCredentials(options, HostTrust(options))
    asked = ((HOSTILE, True), (HOSTILE, False))
    assert credentials.answers(HOSTILE, HOSTILE, asked) == ("", "")
    assert capsys.readouterr().err == f"{SHOWN}\n" * 2
    assert (tmp_path / "asked").read_text() == f"(me@host) {SHOWN}\n" * 2


def test_the_reason_of_a_disconnect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    payload = Disconnect(2, HOSTILE).encode()
    padding = 16 - (len(payload) + 5) % 8
    length = len(payload) + 1 + padding
    packet = length.to_bytes(4, "big") + bytes((padding,)) + payload + bytes(padding)
    with answering(b"SSH-2.0-x\r\n" + packet) as port:
        status = ssh.main(["-F", "none", "-p", str(port), "me@127.0.0.1", "true"], "ssh")
    assert status == 255
    assert capfd.readouterr().err == f"culvert ssh: 127.0.0.1 port {port}: {SHOWN}\n"
