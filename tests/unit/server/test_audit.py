"""Every fact is one line, and nothing that a peer says can pass for another."""

import json
import logging
import os
import re
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

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


def connected() -> None:
    with socket.socket() as nothing:
        peer = Peer(nothing)
    peer.address, peer.port = "192.0.2.7", 4711
    peer.local_address, peer.local_port = "198.51.100.1", 22
    audit.serve_connection(5, peer)


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_and_its_fields_stand_in_the_table() -> None:
    assert audit.__doc__
    table = audit.__doc__.partition("fields\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^    (\w+) *(.*(?:\n {21}.*)*)", table, re.M)
    assert [name for name, _ in rows] == list(audit.EVENTS)
    of_a_connection = {"user", "address", "port", "local_address", "local_port"}
    for name, fields in rows:
        for field in re.findall(r"{(\w+)}", audit.EVENTS[name].text):
            assert field in of_a_connection or field in fields, (name, field)


def test_an_event_is_a_line_of_the_log_and_an_object_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit"
    audit.open_file(str(path))
    connected()
    audit.event("refused", user="anna", method="password", reason="wrong password")
    key = audit.of_key("ssh-ed25519", b"blob")
    audit.event("login", user="anna", method="publickey", **key)
    audit.serve_user("anna")
    audit.event("session", kind="exec", terminal=None, command='echo "a b"')
    audit.event("disconnected", seconds=1.5, reason="normal", received=7, sent=8)
    fingerprint = key["key"]
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
        audit.event("started", version="1")
        audit.event("stopped")
        assert caplog.messages == []
        raise ZeroDivisionError
    assert caplog.messages == ["Culvert 1 started", "stopped listening"]
    with caplog.at_level(logging.INFO):
        audit.event("reloaded")
    assert caplog.messages[2:] == ["the settings are read again"]


def test_a_certificate_is_named_with_its_authority(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connected()
    key: audit.Fields = {"key_type": "ssh-ed25519-cert", "key": "SHA256:a"}
    key |= {"certificate": "anna 1", "serial": 7, "ca_type": "ssh-ed25519", "ca": "b"}
    audit.event("login", user="anna", method="publickey", **key)
    assert caplog.messages[0].endswith("SHA256:a ID anna\\x201 (serial 7) CA ssh-ed25519 b")


@patient
@given(name=st.sampled_from(list(audit.EVENTS)), data=st.data())
def test_no_text_of_a_peers_forges_a_line_or_a_field(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "forged"
    path.unlink(missing_ok=True)
    audit.open_file(str(path))
    template = audit.EVENTS[name].text
    names = set(re.findall(r"{(\w+)}", template))
    fields = {field: data.draw(TEXTS, label=field) for field in names}
    audit.event(name, **fields)
    assert path.read_bytes().count(b"\n") == 1
    (told,) = written(path)
    assert {field: told[field] for field in fields} == fields
    plain = dict.fromkeys(fields, "x")
    line = audit._text(template, fields)
    assert line.isprintable()
    assert log.harmless(line) == line
    if not names & {"reason"}:  # a text of our own
        expected = audit._text(template, plain)
        assert line.count(" ") - fields.get("command", "").count(" ") == expected.count(" ")
        assert len(shlex.split(line)) == len(shlex.split(expected))


def test_a_long_text_is_cut_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connected()
    audit.event("session", kind="exec", command="x" * 100_000)
    assert len(caplog.messages[0]) < 2 * audit.SHOWN


@pytest.mark.parametrize("character", ["x", "\n", "\U0001f40d"])
def test_a_long_name_leaves_room_for_the_address(
    caplog: pytest.LogCaptureFixture, character: str
) -> None:
    caplog.set_level(logging.INFO)
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    name = character * 1000
    audit.event("refused", user=name, address=address, port=65535, method="m", reason="r")
    place = caplog.messages[0].index(" port 65535 refused: m: r")
    assert caplog.messages[0][:place].endswith(f"... from {address}")
    assert len(caplog.messages[0].encode()) < 200


def test_a_file_is_the_servers_alone_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(2):
        audit.open_file(str(path))
        audit.event("reloaded")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["event"] for line in written(path)] == ["reloaded"] * 2


def test_a_file_that_was_renamed_is_made_again_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit.open_file(str(path))
    path.rename(tmp_path / "audit.1")
    audit.event("stopped")
    audit.open_file(str(path))
    audit.event("started", version="1")
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
    audit.event("stopped")
    assert len(written(path)) == 1


def test_a_full_disk_costs_the_line_and_not_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit.open_file(str(tmp_path / "audit"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    audit.event("stopped")
    assert "audit file: No space left on device" in caplog.text
