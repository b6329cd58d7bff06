"""Changes in watched directories."""

import errno
import os
from pathlib import Path

import pytest

from appliance.sftp import watches
from appliance.wire import sftp
from appliance.wire.codec import write_string
from tests.unit.sftp.conftest import Client


def watch(client: Client, path: Path) -> int:
    return client.reply(sftp.WatchReply, sftp.WATCH, sftp.OnePath(bytes(path))).watch


def ask(client: Client, number: int = 9) -> list[object]:
    """The replies to a CHANGES, none if there is nothing to tell."""
    request = sftp.Extended(number, sftp.CHANGES).encode()
    return [*client.raw(write_string(request))]


def told(client: Client) -> list[object]:
    """The replies that changes have caused."""
    assert client.session.watches is not None
    client.session.watches.tell()
    client.session.replies.flush()
    return [*client.replies()]


def changes(*pairs: tuple[int, bytes], lost: bool = False, number: int = 9) -> sftp.ExtendedReply:
    found = tuple(sftp.Change(watch, name) for watch, name in pairs)
    return sftp.ExtendedReply(number, sftp.ChangesReply(lost, found).encode())


def test_changes_are_told_when_there_are_some(client: Client, tmp_path: Path) -> None:
    number = watch(client, tmp_path)
    assert ask(client) == []
    assert client.names(sftp.RealPath(1, b"/")) == [b"/"]  # others are answered meanwhile
    assert told(client) == []
    (tmp_path / "new").write_text("x")
    (tmp_path / "new").chmod(0o600)
    assert told(client) == [changes((number, b"new"))]
    assert told(client) == []
    (tmp_path / "new").rename(tmp_path / "newer")
    assert ask(client) == [changes((number, b"new"), (number, b"newer"))]


def test_a_directory_is_watched_once(client: Client, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert watch(client, tmp_path) == watch(client, tmp_path) != watch(client, tmp_path / "other")


def test_a_directory_that_goes_says_so(client: Client, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    number = watch(client, tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    assert ask(client) == [changes((number, b""))]
    data = sftp.WatchReply(number)
    assert client.refusal(sftp.UNWATCH, data) == "Invalid argument"


def test_what_is_watched_no_longer_is_not_told(client: Client, tmp_path: Path) -> None:
    number = watch(client, tmp_path)
    reply = client.extended(sftp.UNWATCH, sftp.WatchReply(number))
    assert reply == sftp.Status(7, sftp.OK, "Success")
    (tmp_path / "new").touch()
    assert ask(client) == []


def test_the_limits_are_limits(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "LIMIT", 1)
    watch(client, tmp_path)
    refused = client.refusal(sftp.WATCH, sftp.OnePath(b"/"))
    assert refused == os.strerror(errno.ENOSPC)
    for number in range(watches.PENDING_LIMIT):
        assert ask(client, number) == []
    assert ask(client, 99) == [sftp.Status(99, sftp.FAILURE, os.strerror(errno.EBUSY))]


def test_only_directories_are_watched(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in (("file", "Not a directory"), ("none", "No such file")):
        assert why in client.refusal(sftp.WATCH, sftp.OnePath(bytes(tmp_path / name)))


def test_lost_changes_are_told(client: Client, tmp_path: Path) -> None:
    number = watch(client, tmp_path)
    assert client.session.watches is not None
    overflow = watches._EVENT.pack(-1, watches._OVERFLOW, 0, 0)
    event = watches._EVENT.pack(number, watches._CREATE, 0, 4) + b"a\0\0\0"
    lost, found = client.session.watches._changes(overflow + event + event)
    assert lost
    assert found == (sftp.Change(number, b"a"),)
