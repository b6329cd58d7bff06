"""Listings: all names, the lines of ``ls -l``, full replies."""

import os
import re
import time
from pathlib import Path

import pytest

from appliance.sftp import listing
from appliance.wire import sftp
from tests.unit.sftp.conftest import Client


def listed(client: Client, path: Path) -> list[list[sftp.NamedFile]]:
    """The entries of each reply."""
    handle = client.handle(sftp.OpenDir(1, bytes(path)))
    replies = []
    while isinstance(reply := client.ask(sftp.ReadDir(1, handle)), sftp.Names):
        replies.append([*reply.entries])
    assert reply == sftp.Status(1, sftp.EOF, "End of file")
    assert client.code(sftp.ReadDir(1, handle)) == sftp.EOF
    assert client.code(sftp.Close(1, handle)) == sftp.OK
    return replies


def test_an_empty_directory_has_itself_and_the_one_above(client: Client, tmp_path: Path) -> None:
    ((here, above),) = listed(client, tmp_path)
    assert (here.filename, above.filename) == (b".", b"..")
    assert here.attributes == client.attributes(sftp.Stat(1, bytes(tmp_path)))
    assert above.attributes == client.attributes(sftp.Stat(1, bytes(tmp_path.parent)))


def test_an_entry_has_its_attributes_and_openssh_s_line(client: Client, tmp_path: Path) -> None:
    names = [b"file", b"latin-\xe9", b"-x", b"new\nline"]
    for name in names:
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:
            file.truncate(5)
    os.chmod(tmp_path / "file", 0o4751)
    os.utime(tmp_path / "file", (1_000_000_000, 1_000_000_000))
    (entries,) = listed(client, tmp_path)
    found = {entry.filename: entry for entry in entries}
    assert found.keys() == {*names, b".", b".."}
    entry = found[b"file"]
    assert entry.attributes == client.attributes(sftp.Stat(1, bytes(tmp_path / "file")))
    when = time.strftime("%b %e  %Y", time.localtime(1_000_000_000)).encode()
    assert re.fullmatch(rb"-rwsr-x--x    1 \S+ +\S+ +       5 " + when + b" file", entry.longname)
    recent = found[b"new\nline"].longname
    assert re.search(rb" \w{3} [ \d]\d \d\d:\d\d new\nline$", recent)


def test_the_first_replies_are_short_and_then_they_are_as_full_as_sshfs_takes(
    client: Client, tmp_path: Path
) -> None:
    wanted = {b"%06d" % number for number in range(10_000)}
    for name in wanted:
        os.close(os.open(bytes(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    replies = listed(client, tmp_path)
    names = [entry.filename for reply in replies for entry in reply]
    assert len(names) == len(wanted) + 2
    assert {*names} == {*wanted, b".", b".."}
    rooms = [16 << 10, 64 << 10, *[96 << 10] * len(replies)]  # sshfs takes 128 KiB
    for room, reply in zip(rooms, replies[:-1], strict=False):
        size = sum(len(entry.encode()) for entry in reply)
        assert room - 1000 < size <= room + 1024


def test_names_of_255_bytes_fit(client: Client, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:x<255}").touch()
    replies = listed(client, tmp_path)
    assert sum(map(len, replies)) == 1002
    assert len(replies) == 8


def test_one_entry_that_cannot_be_looked_at_does_not_end_a_listing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    handle = client.handle(sftp.OpenDir(1, bytes(tmp_path)))
    (tmp_path / "file").unlink()
    reply = client.ask(sftp.ReadDir(1, handle))
    assert isinstance(reply, sftp.Names)
    for entry in reply.entries[2:]:  # if the directory was read before
        assert entry == sftp.NamedFile(b"file", b"file", sftp.Attributes())


# Trees


def tree(
    client: Client, path: Path, depth: int = 9, entries: int = 100_000
) -> dict[bytes, tuple[bool, list[bytes]]]:
    request = sftp.LookupTree(bytes(path), depth, entries)
    found = client.reply(sftp.Tree, sftp.LOOKUP_TREE, request)
    return {
        each.path: (each.is_complete, sorted(entry.filename for entry in each.entries))
        for each in found.listings
    }


def test_a_tree_comes_level_by_level(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    (tmp_path / "z").mkdir()
    assert tree(client, tmp_path) == {
        b"": (True, [b"a", b"z"]),
        b"a": (True, [b"b", b"file"]),
        b"z": (True, []),
        b"a/b": (True, [b"c"]),
        b"a/b/c": (True, []),
    }
    assert [*tree(client, tmp_path, depth=1)] == [b""]
    assert {*tree(client, tmp_path, depth=2)} == {b"", b"a", b"z"}


def test_a_tree_follows_no_link(client: Client, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert {*tree(client, tmp_path)} == {b"", b"real"}


def test_a_directory_that_becomes_a_link_is_left_out(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").touch()
    (tmp_path / "top/a").mkdir(parents=True)
    opened = listing._open

    def swap(folder: bytes, identity: tuple[int, int] | None) -> listing._Entries:
        if folder.endswith(b"/a"):
            (tmp_path / "top/a").rmdir()
            (tmp_path / "top/a").symlink_to(tmp_path / "secret")
        return opened(folder, identity)

    monkeypatch.setattr(listing, "_open", swap)
    assert [*tree(client, tmp_path / "top")] == [b""]


def test_a_tree_ends_with_its_budget(client: Client, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(10):
            (tmp_path / folder / str(number)).touch()
    assert len(tree(client, tmp_path, entries=2)) == 1
    found = tree(client, tmp_path, entries=5)
    assert len(found) == 2
    assert sum(len(names) for _, names in found.values()) == 5
    assert [complete for complete, _ in found.values()] == [True, False]
    assert tree(client, tmp_path, entries=0) == {b"": (False, [])}


def test_a_tree_ends_with_the_packet(client: Client, tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:x<200}").touch()
    reply = client.extended(sftp.LOOKUP_TREE, sftp.LookupTree(bytes(tmp_path), 1, 100_000))
    assert isinstance(reply, sftp.ExtendedReply)
    assert sftp.DATA_LIMIT - 300 < len(reply.data) < sftp.PACKET_LIMIT - 9
    ((complete, names),) = tree(client, tmp_path).values()
    assert not complete
    assert len(names) > 900


def test_a_tree_of_what_is_no_directory_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    request = sftp.LookupTree(bytes(tmp_path / "file"), 1, 10)
    assert client.refusal(sftp.LOOKUP_TREE, request) == "Not a directory"


def test_a_client_that_gets_all_attributes_gets_no_lines_of_ls(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert all(entry.longname for reply in listed(client, tmp_path) for entry in reply)
    client.extended(sftp.ATTRIBUTES)
    entries = [entry for reply in listed(client, tmp_path) for entry in reply]
    assert len(entries) == 3
    assert all(entry.attributes.identity and not entry.longname for entry in entries)
