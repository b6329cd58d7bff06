"""What a server tells of its keys, and what becomes of known_hosts: nothing that is not proven."""

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from appliance.client import prompts
from appliance.client.host_keys_update import HostKeysUpdate
from appliance.client.known_hosts_file import locked
from appliance.client.ssh_config import Person, load
from appliance.crypto.keys import PrivateKey, generate
from appliance.errors import MalformedMessage
from appliance.ssh.transport import HostBinding
from appliance.wire.host_keys import HOSTKEYS_PROVE, KEYS_LIMIT, Proof, write_strings
from tests.netns import wait_until

OLD, NEW, OTHER = (generate("ssh-ed25519") for _ in range(3))
SESSION = b"s" * 32


class FakeConnection:
    """Remembers what is asked, and has proven OLD."""

    transport = SimpleNamespace(
        session_id=SESSION, host_binding=HostBinding(OLD.public.blob, SESSION, b"")
    )

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer: Callable[[bytes | None], None]

    def global_request(self, name: str, data: bytes, reply: Callable[[bytes | None], None]) -> None:
        assert name == HOSTKEYS_PROVE
        self.asked.append(data)
        self.answer = reply


@pytest.fixture
def it(tmp_path: Path) -> SimpleNamespace:
    """An update, its connection and its file, in which the host has OLD."""
    path = tmp_path / "known_hosts"
    path.write_text(f"host {OLD.public.line()} comment\nother {OTHER.public.line()}\n")
    person = Person("me", 1000, str(tmp_path), "here")
    options = load("host", [f"UserKnownHostsFile {path}"], "none", person)
    connection = FakeConnection()
    update = HostKeysUpdate(options, connection)  # type: ignore[arg-type]
    return SimpleNamespace(update=update, connection=connection, path=path, before=path.read_text())


def blobs(*keys: PrivateKey) -> bytes:
    return write_strings(key.public.blob for key in keys)


def proof(key: PrivateKey, by: PrivateKey | None = None, session: bytes = SESSION) -> bytes:
    signed = Proof(HOSTKEYS_PROVE, session, key.public.blob).encode()
    return (by or key).sign("ssh-ed25519", signed)


def test_a_key_that_is_proven_is_added_and_others_stay(it: SimpleNamespace) -> None:
    it.update.announced(blobs(OLD, NEW))
    assert it.connection.asked == [blobs(NEW)]
    it.connection.answer(write_strings([proof(NEW)]))
    first, second, third = it.path.read_text().splitlines()
    assert first == it.before.splitlines()[0]
    assert second == f"host {NEW.public.line()}"
    assert third == it.before.splitlines()[1]


UNPROVEN = {
    "refused": None,
    "nothing": b"",
    "malformed": b"\0",
    "empty": write_strings([b""]),
    "by another": write_strings([proof(NEW, by=OLD)]),
    "of another": write_strings([proof(OLD)]),
    "of another connection": write_strings([proof(NEW, session=b"t" * 32)]),
    "twice": write_strings([proof(NEW), proof(NEW)]),
}


@pytest.mark.parametrize("answer", UNPROVEN.values(), ids=UNPROVEN)
def test_what_is_not_proven_changes_nothing(
    it: SimpleNamespace, answer: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    it.update.announced(blobs(OLD, NEW))
    it.connection.answer(answer)
    assert it.path.read_text() == it.before
    assert "does not prove" in capsys.readouterr().err


def test_a_key_that_is_announced_no_more_is_forgotten(it: SimpleNamespace) -> None:
    it.path.write_text(it.before + f"host {NEW.public.line()}\n")
    it.update.announced(blobs(OLD))
    assert not it.connection.asked
    assert it.path.read_text() == it.before


@pytest.mark.parametrize("keys", [(), (NEW,), (OTHER, NEW)], ids=["none", "new", "others"])
def test_a_server_that_does_not_announce_the_key_it_used_is_not_believed(
    it: SimpleNamespace, keys: tuple[PrivateKey, ...]
) -> None:
    it.update.announced(blobs(*keys))
    assert not it.connection.asked
    assert it.path.read_text() == it.before


def test_a_revoked_key_is_never_learned(it: SimpleNamespace) -> None:
    it.path.write_text(it.before + f"@revoked * {NEW.public.line()}\n")
    it.update.announced(blobs(OLD, NEW))
    assert not it.connection.asked


def test_nonsense_is_malformed(it: SimpleNamespace) -> None:
    for data in (b"\0", b"\0\0\0\5abc", write_strings([b"x"] * (KEYS_LIMIT + 1))):
        with pytest.raises(MalformedMessage):
            it.update.announced(data)
    it.update.announced(blobs(OLD) + write_strings([b"", b"\0\0\0\1x"]))  # unknown types
    assert it.path.read_text() == it.before


def test_what_others_add_meanwhile_stays(
    it: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its user is asked, another client adds a host; while it writes, one waits to."""
    line = f"third {OTHER.public.line()}\n"

    def asked(_: str) -> str:
        with it.path.open("a") as file:
            file.write(line)
        return "yes"

    waiting: list[threading.Thread] = []

    def replace(old: str, new: str) -> None:
        waiting.append(threading.Thread(target=add))
        waiting[0].start()
        assert wait_until(lambda: opened)
        rename(old, new)

    def add() -> None:
        with locked(str(it.path)) as file:
            file.write(line.replace("third", "fourth").encode())

    def lock(file: BinaryIO, how: int) -> None:
        opened.extend(waiting)
        flock(file, how)

    opened: list[threading.Thread] = []
    rename, flock = os.replace, fcntl.flock
    monkeypatch.setattr(prompts, "line", asked)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(fcntl, "flock", lock)
    it.update._options.update_host_keys = "ask"
    it.update.announced(blobs(OLD, NEW))
    it.connection.answer(write_strings([proof(NEW)]))
    waiting[0].join()
    hosts = [each.split()[0] for each in it.path.read_text().splitlines()]
    assert hosts == ["host", "host", "other", "third", "fourth"]
