"""Every fact is one line, and nothing that a peer says can pass for another."""

import json
import logging
import os
import re
import shlex
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import log
from appliance.errors import UsageError
from appliance.server import audit
from appliance.server.peer import Peer
from tests.unit.config.toml import patient

TEXTS = st.text(max_size=40) | st.text(" \n\r\t\"'\\\x1b\x00:{}[]=,a\u2028\u202e", max_size=20)


@pytest.fixture(autouse=True)
def nobody_connected() -> Iterator[None]:
    audit._everywhere.clear()
    yield
    audit._everywhere.clear()
    audit.close_file()


def connected(address: str = "192.0.2.7", port: int = 4711) -> None:
    with socket.socket() as nothing:
        peer = Peer(nothing)
    peer.address, peer.port = address, port
    peer.local_address, peer.local_port = "198.51.100.1", 22
    audit.serve_connection(5, peer)


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


EVENTS: list[Any] = audit.Event.__subclasses__()
OF_A_CONNECTION = {"user", "address", "port", "local_address", "local_port"}
OF_A_KEY = "key_type key certificate serial ca_type ca"
STAY = {  # what programs that read logs know; more may be added
    "started": "version",
    "listening": "local_address local_port",
    "reloaded": "",
    "not_reloaded": "reason",
    "stopped": "",
    "dropped": "address reason others",
    "penalty": "address reason network",
    "connected": "",
    "late": "grace_time",
    "refused": f"user method reason {OF_A_KEY}",
    "partial": f"user method {OF_A_KEY}",
    "login": f"user method {OF_A_KEY}",
    "session": "kind terminal command",
    "forward": "kind place",
    "forward_refused": "kind place reason",
    "forward_closed": "kind place",
    "file": "operation path target reason source",
    "tunnel": "device",
    "tunnel_refused": "device reason",
    "tunnel_closed": "device",
    "disconnected": "seconds reason received sent",
}


def made(kind: Any, text: Callable[[str], Any]) -> audit.Event:
    """An event of this kind, with a text in each field."""
    values = {}
    for field in kind.__annotations__:
        if field == "with_key":
            values["with_key"] = audit.Key(*map(text, audit.Key._fields))
        else:
            values[field] = text(field)
    event = kind(**values)
    assert isinstance(event, audit.Event)
    return event


def test_events_and_fields_stay() -> None:
    names = [kind.name for kind in EVENTS]
    assert len(names) == len(set(names))
    fields = {kind.name: set(made(kind, str).fields()) for kind in EVENTS}
    for name, stay in STAY.items():
        assert set(stay.split()) <= fields.get(name, set()), name


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_a_line_names_fields_that_there_are(kind: Any) -> None:
    fields = set(made(kind, str).fields()) | OF_A_CONNECTION
    assert set(re.findall(r"{(\w+)}", kind.text)) <= fields


@pytest.mark.parametrize("fields", [{"devise": "tun0"}, {}, {"device": "tun0", "reason": "x"}])
def test_a_field_that_is_none_of_the_events_is_refused(fields: Any) -> None:
    with pytest.raises(TypeError):
        audit.Tunnel(**fields)


def test_an_event_is_a_line_of_the_log_and_an_object_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit"
    audit.open_file(str(path))
    connected()
    audit.write(
        audit.Refused(user="anna", method="password", reason="wrong password", with_key=None)
    )
    key = audit.of_key("ssh-ed25519", b"blob")
    audit.write(audit.Login(user="anna", method="publickey", with_key=key))
    audit.serve_user("anna")
    audit.write(audit.Session(kind="exec", terminal=None, command='echo "a b"'))
    audit.write(audit.Disconnected(seconds=1.5, reason="normal", received=7, sent=8))
    fingerprint = key.key
    assert [record.message for record in caplog.records] == [
        "user anna from 192.0.2.7 port 4711 refused: password: wrong password",
        f"user anna logged in from 192.0.2.7 port 4711 with publickey ssh-ed25519 {fingerprint}",
        'user anna: exec: "echo \\x22a b\\x22"',
        "disconnected from 192.0.2.7 port 4711 after 1.5 s: normal, 7 bytes in, 8 bytes out",
    ]
    refused, login, session, disconnected = written(path)
    assert refused.items() >= {
        "event": "refused", "pid": os.getpid(), "connection": 5, "address": "192.0.2.7",
        "port": 4711, "local_address": "198.51.100.1", "local_port": 22, "user": "anna",
        "method": "password", "reason": "wrong password",
    }.items()  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(refused["time"]))
    assert (login["key_type"], login["key"]) == ("ssh-ed25519", fingerprint)
    assert "terminal" not in session
    assert session["command"] == 'echo "a b"'
    assert disconnected["user"] == "anna"


def test_what_is_held_is_written_at_the_end_whatever_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError), audit.held():
        audit.write(audit.Started(version="1"))
        audit.write(audit.Stopped())
        assert caplog.messages == []
        raise ZeroDivisionError
    assert caplog.messages == ["Culvert 1 started", "stopped listening"]
    with caplog.at_level(logging.INFO):
        audit.write(audit.Reloaded())
    assert caplog.messages[2:] == ["the settings are read again"]


def test_a_certificate_is_named_with_its_authority(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connected()
    key = audit.Key("ssh-ed25519-cert", "SHA256:a", "anna 1", 7, "ssh-ed25519", "b")
    audit.write(audit.Login(user="anna", method="publickey", with_key=key))
    assert caplog.messages[0].endswith("SHA256:a ID anna\\x201 (serial 7) CA ssh-ed25519 b")


@patient
@given(kind=st.sampled_from(EVENTS), data=st.data())
def test_no_text_of_a_peers_forges_a_line_or_a_field(
    kind: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "forged"
    path.unlink(missing_ok=True)
    audit.open_file(str(path))
    audit._everywhere.update((field, data.draw(TEXTS, label=field)) for field in OF_A_CONNECTION)
    event = made(kind, lambda field: data.draw(TEXTS, label=field))
    fields = audit._everywhere | event.fields()
    audit.write(event)
    assert path.read_bytes().count(b"\n") == 1
    (told,) = written(path)
    assert {field: told[field] for field in fields} == fields
    plain = dict.fromkeys(fields, "x")
    line = audit._text(kind.text, fields)
    assert line.isprintable()
    assert log.harmless(line) == line
    if "reason" not in fields:  # a text of our own
        expected = audit._text(kind.text, plain)
        assert line.count(" ") - fields.get("command", "").count(" ") == expected.count(" ")
        assert len(shlex.split(line)) == len(shlex.split(expected))


def test_a_long_text_is_cut_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connected()
    audit.write(audit.Session(kind="exec", terminal=None, command="x" * 100_000))
    assert len(caplog.messages[0]) < 2 * audit.SHOWN


@pytest.mark.parametrize("character", ["x", "\n", "\U0001f40d"])
def test_a_long_name_leaves_room_for_the_address(
    caplog: pytest.LogCaptureFixture, character: str
) -> None:
    caplog.set_level(logging.INFO)
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    connected(address, 65535)
    audit.write(audit.Refused(user=character * 1000, method="m", reason="r", with_key=None))
    place = caplog.messages[0].index(" port 65535 refused: m: r")
    assert caplog.messages[0][:place].endswith(f"... from {address}")
    assert len(caplog.messages[0].encode()) < 200


def test_a_file_is_the_servers_alone_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(2):
        audit.open_file(str(path))
        audit.write(audit.Reloaded())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["event"] for line in written(path)] == ["reloaded"] * 2


def test_a_file_that_was_renamed_is_made_again_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit.open_file(str(path))
    path.rename(tmp_path / "audit.1")
    audit.write(audit.Stopped())
    audit.open_file(str(path))
    audit.write(audit.Started(version="1"))
    assert [line["event"] for line in written(tmp_path / "audit.1")] == ["stopped"]
    assert [line["event"] for line in written(path)] == ["started"]


def test_what_is_no_file_of_our_own_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit.open_file(str(path))
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path, tmp_path / "none/audit", tmp_path / "link", tmp_path / "pipe"):
        with pytest.raises(UsageError, match=f"audit_file {bad}"):
            audit.open_file(str(bad))
    with pytest.raises(UsageError, match="is not a regular file"):
        audit.open_file("/dev/null")
    audit.write(audit.Stopped())
    assert len(written(path)) == 1


def test_a_full_disk_costs_the_line_and_not_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit.open_file(str(tmp_path / "audit"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    audit.write(audit.Stopped())
    assert "audit file: No space left on device" in caplog.text
