"""Culvert's own extensions, each beside the plain requests that it spares."""

import errno
import os
from pathlib import Path

import pytest

from appliance.sftp import own_extensions
from appliance.wire import sftp
from tests.unit.sftp.conftest import Client

NOTHING = sftp.Attributes()
NEW = sftp.WRITE | sftp.CREATE


def test_attributes_have_an_identity_once_that_was_asked_for(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    (tmp_path / "link").hardlink_to(path)
    os.utime(path, ns=(5_000_000_006, 7_000_000_008))
    plain = client.attributes(sftp.Stat(1, bytes(path)))
    assert plain.identity is None
    assert client.extended(sftp.ATTRIBUTES) == sftp.Status(7, sftp.OK, "Success")
    status = path.stat()
    identity = sftp.FileIdentity(
        status.st_dev,
        status.st_ino,
        2,
        status.st_blocks,
        6,
        8,
        divmod(status.st_ctime_ns, 1_000_000_000),
    )
    plain.identity = identity
    handle = client.open(bytes(path))
    assert client.attributes(sftp.Stat(1, bytes(path))) == plain
    assert client.attributes(sftp.FStat(1, handle)) == plain
    listed = client.ask(sftp.ReadDir(1, client.handle(sftp.OpenDir(1, bytes(tmp_path)))))
    assert isinstance(listed, sftp.Names)
    assert [each.attributes for each in listed.entries if each.filename == b"file"] == [plain]


def test_a_status_has_the_errno_once_that_was_asked_for(client: Client, tmp_path: Path) -> None:
    (tmp_path / "full/x").mkdir(parents=True)
    client.extended(sftp.ERRNO)
    reply = client.ask(sftp.RmDir(1, bytes(tmp_path / "full")))
    assert isinstance(reply, sftp.Status)
    assert reply.rest == bytes(4) + errno.ENOTEMPTY.to_bytes(4, "big")


def test_a_small_file_is_read_by_one_request(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", (2_000_000_000, 5))  # which reading does not change
    path = bytes(tmp_path / "file")
    for length in (7, 8, 0xFFFFFFFF):
        found = client.reply(sftp.FileContent, sftp.READ_FILE, sftp.ReadFile(path, length))
        assert (found.handle, found.data) == (b"", b"content")
        assert found.attrs == client.attributes(sftp.Stat(1, path))
    assert not [*client.session.files]


def test_a_large_file_stays_open_for_the_rest(client: Client, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    path = bytes(tmp_path / "file")
    for length in (0, 10, 0xFFFFFFFF):
        found = client.reply(sftp.FileContent, sftp.READ_FILE, sftp.ReadFile(path, length))
        assert found.data == content[: min(length, own_extensions._FILE_ROOM)]
        rest = client.ask(sftp.Read(1, found.handle, len(found.data), 9))
        assert rest == sftp.Data(1, content[len(found.data) :][:9])


def test_a_file_of_proc_is_read_whole(client: Client) -> None:
    found = client.reply(
        sftp.FileContent, sftp.READ_FILE, sftp.ReadFile(b"/proc/self/status", 60_000)
    )
    assert found.attrs.size == 0
    assert found.data.startswith(b"Name:")


def test_what_cannot_be_read_as_a_file_leaves_no_handle(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, why in ((".", "Is a directory"), ("fifo", "Illegal seek"), ("none", "No such file")):
        path = bytes(tmp_path) + b"/" + name.encode()
        assert why in client.refusal(sftp.READ_FILE, sftp.ReadFile(path, 10))
    assert not [*client.session.files]


def write_file(client: Client, path: Path, pflags: int, data: bytes) -> str:
    """'' or the message of the refusal."""
    made = sftp.Attributes(permissions=0o600)
    kept = sftp.Attributes(permissions=0o640, times=(5, 6))
    asked = sftp.WriteFile(bytes(path), pflags, made, data, kept)
    reply = client.extended(sftp.WRITE_FILE, asked)
    if isinstance(reply, sftp.Status):
        return reply.message
    assert isinstance(reply, sftp.AttrsReply)
    assert reply.attrs == client.attributes(sftp.Stat(1, bytes(path)))
    assert (reply.attrs.permissions, reply.attrs.times) == (0o100640, (5, 6))
    return ""


def test_a_file_is_written_by_one_request(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_file(client, path, NEW | sftp.EXCLUSIVE, b"first") == ""
    assert path.read_bytes() == b"first"
    assert write_file(client, path, NEW | sftp.EXCLUSIVE, b"x") == "File exists"
    assert path.read_bytes() == b"first"
    assert write_file(client, path, NEW | sftp.TRUNCATE, b"two") == ""
    assert path.read_bytes() == b"two"
    assert write_file(client, path, sftp.WRITE | sftp.APPEND, b"!") == ""
    assert path.read_bytes() == b"two!"
    assert write_file(client, tmp_path / "none", sftp.WRITE, b"") == "No such file or directory"
    assert write_file(client, path, sftp.READ, b"") == "Invalid argument"
    (tmp_path / "link").symlink_to("beyond")
    assert write_file(client, tmp_path / "link", NEW, b"x") == ""
    assert (tmp_path / "beyond").read_bytes() == b"x"
    assert not [*client.session.files]


def test_a_write_that_fails_removes_only_what_it_made(client: Client, tmp_path: Path) -> None:
    full = bytes(tmp_path / "old")
    (tmp_path / "old").write_text("old")

    def fail(descriptor: int, data: object, offset: int) -> None:
        raise OSError(errno.ENOSPC, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_extensions, "write_all", fail)
        for name in (full, bytes(tmp_path / "new")):
            data = sftp.WriteFile(name, NEW, NOTHING, b"data", NOTHING)
            assert client.refusal(sftp.WRITE_FILE, data) == "No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_extents_are_where_data_is(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
        for place in (0, 1 << 20, 1 << 29):
            os.pwrite(file.fileno(), b"x", place)
    handle = client.open(bytes(path))
    found = client.reply(sftp.Extents, sftp.EXTENTS, sftp.FindExtents(handle, 0))
    assert found.is_complete
    assert [start for start, _ in found.runs] == [0, 1 << 20, 1 << 29]
    assert all(0 < length <= 1 << 16 for _, length in found.runs)
    later = client.reply(sftp.Extents, sftp.EXTENTS, sftp.FindExtents(handle, 1 << 28))
    assert later == sftp.Extents(True, found.runs[2:])
    ended = client.reply(sftp.Extents, sftp.EXTENTS, sftp.FindExtents(handle, 1 << 31))
    assert ended == sftp.Extents(True, ())


def test_extents_come_in_parts(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_extensions, "_RUNS_LIMIT", 2)
    with open(tmp_path / "sparse", "wb") as file:
        for number in range(5):
            os.pwrite(file.fileno(), b"x", number << 20)
    handle = client.open(bytes(tmp_path / "sparse"))
    starts: list[int] = []
    offset, is_complete = 0, False
    while not is_complete:
        found = client.reply(sftp.Extents, sftp.EXTENTS, sftp.FindExtents(handle, offset))
        starts += [start for start, _ in found.runs]
        is_complete = found.is_complete
        offset = sum(found.runs[-1]) if found.runs else offset
    assert starts == [number << 20 for number in range(5)]


def test_extended_attributes(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = bytes(tmp_path / "file")
    try:
        os.setxattr(path, "user.probe", b"")
    except OSError:
        pytest.skip("this file system has none")
    os.removexattr(path, "user.probe")

    def set_value(value: bytes, flags: int) -> str:
        reply = client.extended(sftp.SET_XATTR, sftp.SetXattr(path, b"user.a", value, flags))
        assert isinstance(reply, sftp.Status)
        return reply.message

    assert set_value(b"1", 2) == "No data available"
    assert set_value(b"\xff\0", 1) == set_value(b"\xff\0", 0) == "Success"
    assert set_value(b"2", 1) == "File exists"
    assert set_value(b"2", 4) == "Invalid argument"
    named = sftp.NamedXattr(path, b"user.a")
    assert client.reply(sftp.XattrValue, sftp.GET_XATTR, named).value == b"\xff\0"
    listed = client.reply(sftp.XattrNames, sftp.LIST_XATTRS, sftp.OnePath(path))
    assert b"user.a" in listed.names
    reply = client.extended(sftp.REMOVE_XATTR, named)
    assert reply == sftp.Status(7, sftp.OK, "Success")
    assert client.refusal(sftp.GET_XATTR, named) == "No data available"
    assert "NUL" in client.refusal(sftp.GET_XATTR, sftp.NamedXattr(path, b"user.\0"))
