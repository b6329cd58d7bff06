"""OpenSSH's extensions: its PROTOCOL, section 4."""

import os
import pwd
import struct
from pathlib import Path

import pytest

from appliance.sftp import openssh_extensions
from appliance.sftp.open_files import limit
from appliance.wire import sftp
from appliance.wire.codec import Message, Record, write_string
from tests.unit.sftp.conftest import Client, Make

NEW = sftp.WRITE | sftp.READ | sftp.CREATE


def ok(client: Client, name: str, data: Record) -> None:
    reply = client.extended(name, data)
    assert reply == sftp.Status(7, sftp.OK, "Success")


def test_posix_rename_replaces(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    ok(client, sftp.POSIX_RENAME, sftp.TwoPaths(bytes(tmp_path / "a"), bytes(tmp_path / "b")))
    assert (tmp_path / "b").read_text() == "a"


def test_hardlink_links_a_link_itself(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    ok(client, sftp.HARDLINK, sftp.TwoPaths(bytes(tmp_path / "a"), bytes(tmp_path / "b")))
    assert os.readlink(tmp_path / "b") == "nowhere"


def test_statvfs_by_path_and_by_handle(client: Client, tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    folder = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    for reply in (
        client.reply(sftp.FileSystem, sftp.STATVFS, sftp.OnePath(bytes(tmp_path))),
        client.reply(sftp.FileSystem, sftp.FSTATVFS, sftp.OneHandle(folder)),
    ):
        assert (reply.f_frsize, reply.f_blocks) == (found.f_frsize, found.f_blocks)
        assert reply.f_flag & 1 == bool(found.f_flag & os.ST_RDONLY)
        assert reply.f_namemax == 255
    proc = client.reply(sftp.FileSystem, sftp.STATVFS, sftp.OnePath(b"/proc"))
    assert proc.f_flag == 2 * bool(os.statvfs("/proc").f_flag & os.ST_NOSUID)


def test_fsync_and_limits(client: Client, tmp_path: Path) -> None:
    ok(client, sftp.FSYNC, sftp.OneHandle(client.open(bytes(tmp_path / "file"), NEW)))
    assert client.reply(sftp.Limits, sftp.LIMITS) == sftp.Limits(262144, 261120, 261120, limit())


def test_lsetstat_changes_a_link_and_not_its_target(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    link, file = bytes(tmp_path / "link"), bytes(tmp_path / "file")
    before = (tmp_path / "file").stat()
    ok(client, sftp.LSETSTAT, sftp.PathAttributes(link, sftp.Attributes(times=(5, 6))))
    assert (tmp_path / "link").lstat().st_mtime == 6
    assert (tmp_path / "file").stat().st_mtime == before.st_mtime
    data = sftp.PathAttributes(link, sftp.Attributes(permissions=0o600))
    assert "not supported" in client.refusal(sftp.LSETSTAT, data)
    ok(client, sftp.LSETSTAT, sftp.PathAttributes(file, sftp.Attributes(permissions=0o600)))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    data = sftp.PathAttributes(file, sftp.Attributes(size=0))
    assert client.refusal(sftp.LSETSTAT, data) == "Invalid argument"


def test_homes_and_paths_with_a_tilde(make: Make, tmp_path: Path) -> None:
    client = make(home=bytes(tmp_path))

    def names(name: str, path: bytes) -> list[bytes]:
        reply = client.extended(name, sftp.OnePath(path))
        assert isinstance(reply, sftp.Names), reply
        return [entry.filename for entry in reply.entries]

    root = os.fsencode(pwd.getpwnam("root").pw_dir)
    assert names(sftp.HOME_DIRECTORY, b"") == [bytes(tmp_path)]
    assert names(sftp.HOME_DIRECTORY, b"root") == [root]
    assert names(sftp.EXPAND_PATH, b"~") == names(sftp.EXPAND_PATH, b"~/.") == [bytes(tmp_path)]
    assert names(sftp.EXPAND_PATH, b"~/new") == [bytes(tmp_path / "new")]
    assert names(sftp.EXPAND_PATH, b"~root") == [root]
    assert names(sftp.EXPAND_PATH, b"/etc/../x") == [b"/x"]
    assert names(sftp.EXPAND_PATH, b".") == [os.getcwdb()]
    for name, path in ((sftp.HOME_DIRECTORY, b"no-body"), (sftp.EXPAND_PATH, b"~no-body/x")):
        assert client.refusal(name, sftp.OnePath(path)) == "No such user"


def test_names_of_users_and_groups(client: Client) -> None:
    numbers = struct.pack(">III", 0, 4_000_000_000, 0xFFFFFFFF)
    reply = client.reply(
        sftp.Identifiers, sftp.USERS_GROUPS_BY_ID, sftp.Identifiers(numbers, numbers[:4])
    )
    assert reply.users == write_string(b"root") + write_string(b"") * 2
    assert reply.groups == write_string(b"root")
    refused = client.refusal(sftp.USERS_GROUPS_BY_ID, sftp.Identifiers(b"123", b""))
    assert "wrong length" in refused
    many = sftp.Identifiers(bytes(4 * 10_000), b"")
    assert client.refusal(sftp.USERS_GROUPS_BY_ID, many) == "Argument list too long"


# copy-data


def copy(
    client: Client, source: bytes, read: int, length: int, target: bytes, write: int
) -> Message:
    return client.extended(sftp.COPY_DATA, sftp.CopyData(source, read, length, target, write))


@pytest.mark.parametrize("in_kernel", [True, False])
def test_data_is_copied_between_files(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    if not in_kernel:

        def none(*_: object) -> int:
            raise OSError(18, "across file systems")

        monkeypatch.setattr(os, "copy_file_range", none)
        monkeypatch.setattr(openssh_extensions, "_COPY_BUFFER", 7)
    (tmp_path / "a").write_bytes(bytes(range(100)))
    source = client.open(bytes(tmp_path / "a"))
    target = client.open(bytes(tmp_path / "b"), NEW)
    done = sftp.Status(7, sftp.OK, "Success")
    assert copy(client, source, 0, 0, target, 0) == done
    assert (tmp_path / "b").read_bytes() == bytes(range(100))
    assert copy(client, source, 10, 20, target, 50) == done
    assert (tmp_path / "b").read_bytes()[50:70] == bytes(range(10, 30))
    assert copy(client, source, 90, 1 << 62, target, 100) == done
    assert (tmp_path / "b").stat().st_size == 110


def test_a_file_of_proc_is_copied(client: Client, tmp_path: Path) -> None:
    target = client.open(bytes(tmp_path / "b"), NEW)
    reply = copy(client, client.open(b"/proc/self/status"), 0, 0, target, 0)
    assert reply == sftp.Status(7, sftp.OK, "Success")
    assert (tmp_path / "b").read_text().startswith("Name:")


@pytest.mark.parametrize("by", ["handle", "path", "link"])
def test_a_file_is_copied_onto_itself_only_without_overlap(
    client: Client, tmp_path: Path, by: str
) -> None:
    """Else it would grow until the disk is full."""
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "link").hardlink_to(tmp_path / "a")
    handle = client.open(bytes(tmp_path / "a"), NEW)
    other = {
        "handle": handle,
        "path": client.open(bytes(tmp_path / "a"), NEW),
        "link": client.open(bytes(tmp_path / "link"), NEW),
    }[by]
    for read, length, write in ((0, 0, 0), (0, 0, 1), (0, 5, 4), (5, 5, 9), (0, 1 << 63, 9)):
        reply = copy(client, handle, read, length, other, write)
        assert reply == sftp.Status(7, sftp.BAD_MESSAGE, "Invalid argument")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert copy(client, handle, 0, 5, other, 5) == sftp.Status(7, sftp.OK, "Success")
    assert copy(client, handle, 0, 0, other, 10) == sftp.Status(7, sftp.OK, "Success")
    assert (tmp_path / "a").read_bytes() == b"0123401234" * 2


def test_what_has_no_end_is_not_copied(client: Client, tmp_path: Path) -> None:
    target = client.open(bytes(tmp_path / "b"), NEW)
    reply = copy(client, client.open(b"/dev/zero"), 0, 0, target, 0)
    assert reply == sftp.Status(7, sftp.BAD_MESSAGE, "Invalid argument")


def test_a_copy_needs_files_that_are_open_for_it(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    reading = client.open(bytes(tmp_path / "a"))
    (tmp_path / "b").write_bytes(b"0123456789")
    writing = client.open(bytes(tmp_path / "b"), sftp.WRITE)
    folder = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    for source, target in (
        (reading, reading), (writing, writing), (writing, reading), (folder, writing),
        (reading, folder), (b"\xff" * 4, writing),
    ):  # fmt: skip
        reply = copy(client, source, 0, 1, target, 20)
        assert isinstance(reply, sftp.Status)
        assert reply.code != sftp.OK
