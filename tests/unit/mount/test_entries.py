"""Listings that are read at once, held against those that are read field by field."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.mount.attributes import AttributeMap
from appliance.mount.entries import EntriesReader
from appliance.mount.settings import IdMap, MountSettings
from appliance.wire import fuse, sftp
from appliance.wire.sftp import Attributes, FileIdentity, NamedFile

WORDS = st.integers(0, 2**32 - 1)
TYPES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, 0, 0o170000])
IDENTITIES = st.builds(
    FileIdentity,
    WORDS,
    WORDS,
    WORDS,
    WORDS,
    *[st.integers(0, 999_999_999)] * 2,
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 999_999_999)),
)
ATTRIBUTES = st.builds(
    Attributes,
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | st.tuples(WORDS, WORDS),
    st.none() | st.builds(int.__or__, TYPES, st.integers(0, 0o7777)),
    st.none() | st.tuples(WORDS, WORDS),
    st.none(),
    st.none() | IDENTITIES,
)
ENTRIES = st.lists(
    st.builds(
        NamedFile,
        st.binary(max_size=12).filter(lambda name: name not in (b".", b"..")),
        st.sampled_from([b"", b"drwxr-xr-x", b"-rw-r--r--", b"?"]),
        ATTRIBUTES,
    ),
    max_size=5,
)
SETTINGS = st.sampled_from(
    [
        MountSettings(),
        MountSettings(uid=5, gid=6),
        MountSettings(umask=0o22),
        MountSettings(users=IdMap(to_local={1: 2}, is_strict=True)),
    ]
)


def payload(entries: list[NamedFile]) -> memoryview:
    return memoryview(sftp.Names(7, tuple(entries)).encode())


@given(ENTRIES, SETTINGS)
def test_entries_are_those_that_the_record_has(
    entries: list[NamedFile], settings: MountSettings
) -> None:
    attributes = AttributeMap(settings)
    read = EntriesReader(attributes, follows_symlinks=False).decode(payload(entries))
    wanted = []
    for entry in entries:
        name = entry.filename
        if name and b"/" not in name and b"\0" not in name:
            is_known = entry.attributes.times is not None
            packed = attributes.pack_or_nothing(entry.attributes, entry.longname[:1])
            wanted.append((name, packed if is_known else b""))
    assert list(read.entries) == wanted
    assert read.is_empty == (not entries)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_entries_or_malformed(data: bytes) -> None:
    reader = EntriesReader(AttributeMap(MountSettings()), follows_symlinks=True)
    head = bytes([sftp.Names.number]) + bytes(4)
    for each in (data, head + data, head + (1).to_bytes(4, "big") + data):
        try:
            read = reader.decode(memoryview(each))
        except MalformedMessage:
            continue
        assert all(name and b"/" not in name for name, _ in read.entries)


def test_names_that_no_file_has_are_left_out_and_the_others_are_there() -> None:
    plain = Attributes(1, (0, 0), stat.S_IFREG | 0o644, (1, 2))
    names = [b".", b"..", b"", b"a/b", b"/", b"x\0y", b"n" * 1025, b"n" * 1024, b"...", b"\xff"]
    entries = [NamedFile(name, b"", plain) for name in names]
    reader = EntriesReader(AttributeMap(MountSettings()), follows_symlinks=False)
    read = reader.decode(payload(entries))
    assert [name for name, _ in read.entries] == [b"n" * 1024, b"...", b"\xff"]


def test_a_listing_that_is_cut_or_too_long_is_malformed() -> None:
    plain = Attributes(1, (0, 0), stat.S_IFREG | 0o644, (1, 2))
    whole = bytes(payload([NamedFile(b"name", b"long", plain)] * 2))
    reader = EntriesReader(AttributeMap(MountSettings()), follows_symlinks=False)
    for length in range(5, len(whole)):
        with pytest.raises(MalformedMessage):
            reader.decode(memoryview(whole[:length]))
    with pytest.raises(MalformedMessage):
        reader.decode(memoryview(whole + b"x"))


def test_links_are_not_known_where_the_server_is_to_follow_them() -> None:
    link = Attributes(1, (0, 0), stat.S_IFLNK | 0o777, (1, 2))
    packed = payload([NamedFile(b"link", b"", link)])
    for follows in (False, True):
        reader = EntriesReader(AttributeMap(MountSettings()), follows)
        ((name, found),) = reader.decode(packed).entries
        assert name == b"link"
        assert (found == b"") is follows
        assert follows or stat.S_ISLNK(fuse.mode_in(found))
