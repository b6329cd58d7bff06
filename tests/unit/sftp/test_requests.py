"""The draft's requests, with OpenSSH's meaning, on real files."""

import errno
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.wire import sftp
from appliance.wire.codec import Message, write_string
from tests.unit.sftp.conftest import Client, Make

NOTHING = sftp.Attributes()
NEW = sftp.WRITE | sftp.CREATE


def test_a_file_is_written_and_read_at_any_offset(client: Client, tmp_path: Path) -> None:
    path = bytes(tmp_path / "file")
    handle = client.open(path, NEW | sftp.READ)
    assert client.code(sftp.Write(1, handle, 3, b"def")) == sftp.OK
    assert client.code(sftp.Write(1, handle, 0, b"abc")) == sftp.OK
    assert client.ask(sftp.Read(1, handle, 1, 4)) == sftp.Data(1, b"bcde")
    assert client.ask(sftp.Read(1, handle, 5, 100)) == sftp.Data(1, b"f")
    assert client.code(sftp.Read(1, handle, 6, 100)) == sftp.EOF
    assert client.attributes(sftp.FStat(1, handle)).size == 6


@pytest.mark.parametrize(
    ("pflags", "before", "after"),
    [
        (sftp.WRITE, b"old", b"NEW"),
        (sftp.WRITE | sftp.APPEND, b"old", b"oldNEW"),
        (sftp.WRITE | sftp.TRUNCATE, b"older", b"NEW"),
        (sftp.WRITE | sftp.CREATE, None, b"NEW"),
        (sftp.WRITE | sftp.CREATE | sftp.EXCLUSIVE, None, b"NEW"),
    ],
)
def test_the_flags_of_open(
    client: Client, tmp_path: Path, pflags: int, before: bytes | None, after: bytes
) -> None:
    if before is not None:
        (tmp_path / "file").write_bytes(before)
    handle = client.open(bytes(tmp_path / "file"), pflags)
    assert client.code(sftp.Write(1, handle, 0, b"NEW")) == sftp.OK
    assert (tmp_path / "file").read_bytes() == after


def test_an_open_that_fails_says_why(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    cases = [
        ("none", sftp.READ, sftp.NO_SUCH_FILE, errno.ENOENT),
        ("file", NEW | sftp.EXCLUSIVE, sftp.FAILURE, errno.EEXIST),
        ("file/x", sftp.READ, sftp.NO_SUCH_FILE, errno.ENOTDIR),
        ("loop", sftp.READ, sftp.NO_SUCH_FILE, errno.ELOOP),
        (".", sftp.WRITE, sftp.FAILURE, errno.EISDIR),
        ("x" * 256, sftp.READ, sftp.BAD_MESSAGE, errno.ENAMETOOLONG),
    ]
    for name, pflags, code, number in cases:
        reply = client.ask(sftp.Open(1, bytes(tmp_path) + b"/" + name.encode(), pflags, NOTHING))
        assert reply == sftp.Status(1, code, os.strerror(number))


def test_what_would_wait_for_somebody_is_opened_at_once(client: Client, tmp_path: Path) -> None:
    """A FIFO without a far end would hold up every other request."""
    os.mkfifo(tmp_path / "fifo")
    path = bytes(tmp_path / "fifo")
    assert client.ask(sftp.Open(1, path, sftp.WRITE, NOTHING)) == sftp.Status(
        1, sftp.FAILURE, os.strerror(errno.ENXIO)
    )
    handle = client.open(path, sftp.READ)
    assert client.code(sftp.Read(1, handle, 0, 10)) == sftp.FAILURE
    both = client.open(path, sftp.READ | sftp.WRITE)
    assert client.code(sftp.Write(1, both, 0, b"x")) == sftp.FAILURE
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        reply = client.ask(sftp.Open(1, bytes(tmp_path / "socket"), sftp.READ, NOTHING))
        assert isinstance(reply, sftp.Status)
    zero = client.open(b"/dev/zero")
    assert client.ask(sftp.Read(1, zero, 0, 3)) == sftp.Data(1, b"\0\0\0")


@pytest.mark.parametrize("length", [0xFFFFFFFF, sftp.DATA_LIMIT + 1, 1 << 31])
def test_a_read_of_four_gibibytes_gets_what_a_reply_holds(client: Client, length: int) -> None:
    reply = client.ask(sftp.Read(1, client.open(b"/dev/zero"), 0, length))
    assert isinstance(reply, sftp.Data)
    assert len(reply.data) == sftp.DATA_LIMIT


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_an_offset_that_no_file_has_is_refused(client: Client, tmp_path: Path, offset: int) -> None:
    handle = client.open(bytes(tmp_path / "file"), NEW | sftp.READ)
    for request in (
        sftp.Read(1, handle, offset, 1),
        sftp.Write(1, handle, offset, b"x"),
        sftp.FSetStat(1, handle, sftp.Attributes(size=offset)),
    ):
        assert client.code(request) in (sftp.FAILURE, sftp.BAD_MESSAGE)


def test_the_limit_of_handles_is_a_limit(make: Make, tmp_path: Path) -> None:
    client = make()
    client.session.files._limit = 3
    path = bytes(tmp_path)
    handles = [client.handle(sftp.OpenDir(1, path)) for _ in range(3)]
    for request in (sftp.OpenDir(1, path), sftp.Open(1, path, sftp.READ, NOTHING)):
        assert client.ask(request) == sftp.Status(1, sftp.FAILURE, os.strerror(errno.EMFILE))
    assert client.code(sftp.Close(1, handles[1])) == sftp.OK
    assert client.handle(sftp.OpenDir(1, path)) not in handles


def test_neither_a_chain_of_links_nor_a_long_path_ends_the_server(
    client: Client, tmp_path: Path
) -> None:
    for number in range(1200):
        (tmp_path / f"link{number}").symlink_to(f"link{number + 1}")
    reply = client.ask(sftp.RealPath(1, bytes(tmp_path / "link0")))
    assert reply == sftp.Status(1, sftp.NO_SUCH_FILE, os.strerror(errno.ELOOP))
    begin = time.monotonic()
    assert client.code(sftp.RealPath(1, b"a/" * 100_000)) == sftp.BAD_MESSAGE
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/thread-self/mem", "/proc/{}/mem"])
def test_the_memory_of_a_process_is_not_written(client: Client, tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to(path.format(os.getpid()))
    request = sftp.Open(1, bytes(tmp_path / "link"), sftp.READ | sftp.WRITE, NOTHING)
    assert client.code(request) == sftp.PERMISSION_DENIED
    (tmp_path / "mem").touch()  # any other file of the name
    client.open(bytes(tmp_path / "mem"), sftp.WRITE)


def test_a_directory_is_no_file_and_the_other_way_round(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    assert client.ask(sftp.Read(1, folder, 0, 1)) == sftp.Status(
        1, sftp.FAILURE, os.strerror(errno.EISDIR)
    )
    file = client.open(bytes(tmp_path / "file"))
    assert client.code(sftp.ReadDir(1, file)) == sftp.FAILURE
    assert client.code(sftp.OpenDir(1, bytes(tmp_path / "file"))) == sftp.NO_SUCH_FILE
    opened = client.open(bytes(tmp_path))  # as OpenSSH: open(2) allows it
    assert client.code(sftp.Read(1, opened, 0, 1)) == sftp.FAILURE


def test_attributes_are_those_of_stat(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    os.utime(tmp_path / "file", (5, 6))
    status = (tmp_path / "file").stat()
    wanted = sftp.Attributes(4, (status.st_uid, status.st_gid), status.st_mode, (5, 6))
    assert client.attributes(sftp.Stat(1, bytes(tmp_path / "link"))) == wanted
    link = client.attributes(sftp.LStat(1, bytes(tmp_path / "link")))
    assert link.permissions is not None
    assert stat.S_ISLNK(link.permissions)
    folder = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    assert client.attributes(sftp.FStat(1, folder)).permissions == tmp_path.stat().st_mode


def test_setstat_sets_each_part_and_goes_on_after_a_failure(client: Client, tmp_path: Path) -> None:
    path = bytes(tmp_path / "file")
    (tmp_path / "file").write_text("text")
    attributes = sftp.Attributes(2, (12345, 0xFFFFFFFF), 0o170640, (7, 8), (9, 10))
    if os.geteuid():
        attributes.owner = None
    assert client.code(sftp.SetStat(1, path, attributes)) == sftp.OK
    status = (tmp_path / "file").stat()
    assert (status.st_size, status.st_mode) == (2, 0o100640)
    assert (status.st_atime_ns, status.st_mtime_ns) == (7_000_000_009, 8_000_000_010)
    if not os.geteuid():
        assert (status.st_uid, status.st_gid) == (12345, os.getegid())
    folder = bytes(tmp_path)  # has no size
    reply = client.ask(sftp.SetStat(1, folder, sftp.Attributes(size=1, permissions=0o750)))
    assert reply == sftp.Status(1, sftp.FAILURE, os.strerror(errno.EISDIR))
    assert tmp_path.stat().st_mode & 0o7777 == 0o750


def test_setstat_may_do_nothing(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    client = make(ignores_setstat=True)
    path, gone = bytes(tmp_path / "file"), sftp.Attributes(size=0, permissions=0)
    handle = client.open(path)
    assert client.code(sftp.SetStat(1, path, gone)) == sftp.OK
    assert client.code(sftp.FSetStat(1, handle, gone)) == sftp.OK
    reply = client.extended(sftp.LSETSTAT, sftp.PathAttributes(path, gone))
    assert isinstance(reply, sftp.Status)
    assert reply.code == sftp.OK
    assert (tmp_path / "file").read_text() == "text"


def test_rename_never_replaces_a_file(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")

    def rename(old: str, new: str) -> Message:
        return client.ask(sftp.Rename(1, bytes(tmp_path / old), bytes(tmp_path / new)))

    taken = sftp.Status(1, sftp.FAILURE, os.strerror(errno.EEXIST))
    for old, new in (("a", "b"), ("a", "dangling"), ("a", "folder"), ("folder", "a")):
        assert rename(old, new) == taken
    assert rename("folder", "dangling") == taken
    assert rename("a", "c") == rename("folder", "other") == sftp.Status(1, sftp.OK, "Success")
    assert rename("dangling", "d") == sftp.Status(1, sftp.OK, "Success")
    assert {path.name for path in tmp_path.iterdir()} == {"b", "c", "other", "d"}
    assert (tmp_path / "b").read_text() == "b"


def test_rename_without_hard_links_still_replaces_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "FAT has no links")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert client.code(sftp.Rename(1, bytes(tmp_path / "a"), bytes(tmp_path / "b"))) == sftp.FAILURE
    assert client.code(sftp.Rename(1, bytes(tmp_path / "a"), bytes(tmp_path / "c"))) == sftp.OK
    assert (tmp_path / "c").read_text() == "a"


def test_directories_and_links(client: Client, tmp_path: Path) -> None:
    folder, link = bytes(tmp_path / "folder"), bytes(tmp_path / "link")
    assert client.code(sftp.MkDir(1, folder, sftp.Attributes(permissions=0o40700))) == sftp.OK
    assert (tmp_path / "folder").stat().st_mode == 0o40700
    assert client.code(sftp.SymLink(1, b"target", link)) == sftp.OK
    assert os.readlink(tmp_path / "link") == "target"
    assert client.names(sftp.ReadLink(1, link)) == [b"target"]
    assert client.code(sftp.ReadLink(1, folder)) == sftp.BAD_MESSAGE
    assert client.code(sftp.Remove(1, folder)) == sftp.FAILURE
    assert client.code(sftp.Remove(1, link)) == sftp.OK
    (tmp_path / "folder/full").touch()
    reply = client.ask(sftp.RmDir(1, folder))
    assert reply == sftp.Status(1, sftp.FAILURE, os.strerror(errno.ENOTEMPTY))
    (tmp_path / "folder/full").unlink()
    assert client.code(sftp.RmDir(1, folder)) == sftp.OK


def test_realpath_of_what_is_there_and_of_what_is_not_yet(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("folder/new")
    (tmp_path / "loop").symlink_to("loop")
    for path, wanted in (
        ("", ""),
        (".", ""),
        ("folder/../link/x", "/folder/x"),
        ("dangling", "/folder/new"),
        ("new", "/new"),
        ("/../..//", None),
    ):
        found = client.names(sftp.RealPath(1, path.encode()))
        assert found == [b"/" if wanted is None else bytes(tmp_path) + wanted.encode()]
    for path in ("none/new", "file/new", "loop", "loop/x"):
        assert client.code(sftp.RealPath(1, path.encode())) == sftp.NO_SUCH_FILE


def test_a_file_that_vanishes_or_grows_while_it_is_read(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    handle = client.open(bytes(path))
    assert client.ask(sftp.Read(1, handle, 0, 9)) == sftp.Data(1, b"a")
    path.write_text("abc")
    assert client.ask(sftp.Read(1, handle, 1, 9)) == sftp.Data(1, b"bc")
    path.unlink()
    assert client.ask(sftp.Read(1, handle, 0, 1)) == sftp.Data(1, b"a")
    folder = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    tmp_path.joinpath("x").touch()
    assert client.ask(sftp.ReadDir(1, folder))


def test_many_requests_of_one_read_are_answered_in_their_order(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(200)))
    handle = client.open(bytes(tmp_path / "file"))
    client.writes = 0
    requests = [sftp.Read(number, handle, number, 1) for number in range(200)]
    replies = client.raw(b"".join(write_string(request.encode()) for request in requests))
    assert replies == [sftp.Data(number, bytes((number,))) for number in range(200)]
    assert client.writes == 1


# File systems with something the matter


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a tmpfs with these options."""
    places: list[Path] = []

    def run(options: str) -> Path:
        place = tmp_path / f"mount-{len(places)}"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        places.append(place)
        return place

    yield run
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.root
def test_a_full_disk_says_so_and_takes_nothing_away(
    make: Make, mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    client, place = make(), mounted("size=64k")
    (place / "old").write_bytes(b"old")
    no_space = os.strerror(errno.ENOSPC)
    handle = client.open(bytes(place / "big"), NEW)
    reply = client.ask(sftp.Write(1, handle, 0, bytes(200_000)))
    assert reply == sftp.Status(1, sftp.FAILURE, no_space)
    for name in ("old", "new"):
        request = sftp.WriteFile(bytes(place / name), NEW, NOTHING, bytes(200_000), NOTHING)
        assert client.refusal(sftp.WRITE_FILE, request) == no_space
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    source = client.open(bytes(tmp_path / "source"))
    reply = client.extended(sftp.COPY_DATA, sftp.CopyData(source, 0, 1 << 20, handle, 0))
    assert reply == sftp.Status(7, sftp.FAILURE, no_space)
    assert {path.name for path in place.iterdir()} == {"old", "big"}
    assert client.code(sftp.Remove(1, bytes(place / "big"))) == sftp.OK


@pytest.mark.root
def test_a_file_system_that_cannot_be_written_says_so(
    make: Make, mounted: Callable[[str], Path]
) -> None:
    client, place = make(), mounted("ro")
    for request in (
        sftp.Open(1, bytes(place / "new"), NEW, NOTHING),
        sftp.MkDir(1, bytes(place / "new"), NOTHING),
        sftp.SetStat(1, bytes(place), sftp.Attributes(permissions=0o700)),
    ):
        reply = client.ask(request)
        assert reply == sftp.Status(1, sftp.FAILURE, os.strerror(errno.EROFS))
    found = client.reply(sftp.FileSystem, sftp.STATVFS, sftp.OnePath(bytes(place)))
    assert found.f_flag & 1


@pytest.mark.root
def test_nothing_is_renamed_or_linked_across_file_systems(
    make: Make, mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    client, place = make(), mounted("size=64k")
    (tmp_path / "file").touch()
    pair = bytes(tmp_path / "file"), bytes(place / "file")
    across = os.strerror(errno.EXDEV)
    assert client.ask(sftp.Rename(1, *pair)) == sftp.Status(1, sftp.FAILURE, across)
    assert client.refusal(sftp.POSIX_RENAME, sftp.TwoPaths(*pair)) == across
    assert client.refusal(sftp.HARDLINK, sftp.TwoPaths(*pair)) == across
    assert (tmp_path / "file").exists()


def test_a_file_of_five_gibibytes_has_its_end(client: Client, tmp_path: Path) -> None:
    handle = client.open(bytes(tmp_path / "file"), NEW | sftp.READ)
    end = 5 << 30
    assert client.code(sftp.Write(1, handle, end - 1, b"x")) == sftp.OK
    assert client.ask(sftp.Read(1, handle, end - 1, 10)) == sftp.Data(1, b"x")
    assert client.code(sftp.Read(1, handle, end, 10)) == sftp.EOF
    assert client.attributes(sftp.FStat(1, handle)).size == end
    assert (tmp_path / "file").stat().st_blocks < 1000
