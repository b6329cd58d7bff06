"""The attributes that the kernel is told."""

import stat

import pytest

from appliance.mount.attributes import AttributeMap
from appliance.mount.settings import IdMap, MountSettings
from appliance.wire import fuse
from appliance.wire.sftp import Attributes, FileIdentity

FILE = Attributes(1000, (1001, 1002), stat.S_IFREG | 0o4754, (10, 20))


def packed(settings: MountSettings, attributes: Attributes = FILE) -> fuse.Attributes:
    return fuse.Attributes.decode(AttributeMap(settings).pack(attributes))


def test_a_plain_server_tells_blocks_by_the_size_and_no_inode() -> None:
    times = (10, 0), (20, 0), (20, 0)
    wanted = fuse.Attributes(0, 1000, 2, *times, stat.S_IFREG | 0o4754, 1, 1001, 1002)
    assert packed(MountSettings()) == wanted


def test_our_own_server_tells_everything() -> None:
    identity = FileIdentity(8, 99, 3, 16, 5, 6, (7, 8))
    attributes = Attributes(1000, (1, 2), stat.S_IFREG | 0o600, (10, 20), None, identity)
    assert packed(MountSettings(), attributes) == fuse.Attributes(
        99, 1000, 16, (10, 5), (20, 6), (7, 8), stat.S_IFREG | 0o600, 3, 1, 2
    )


def test_inodes_of_other_devices_are_others() -> None:
    attributes = AttributeMap(MountSettings())
    on = {
        device: Attributes(
            0, (0, 0), stat.S_IFREG, (0, 0), None, FileIdentity(device, 99, 1, 0, 0, 0, (0, 0))
        )
        for device in (1, 2, 3)
    }
    attributes.found_root(on[1])
    inodes = {fuse.inode_in(attributes.pack(each)) for each in on.values()}
    assert len(inodes) == 3
    assert 99 in inodes


def test_uid_gid_and_umask_are_shown_for_all() -> None:
    shown = packed(MountSettings(uid=7, gid=8, umask=0o027))
    assert (shown.uid, shown.gid, shown.mode) == (7, 8, stat.S_IFREG | 0o750)


def test_owners_are_mapped_and_mapped_back() -> None:
    settings = MountSettings(users=IdMap(to_local={1001: 5}), groups=IdMap(to_local={1002: 6}))
    shown = packed(settings)
    assert (shown.uid, shown.gid) == (5, 6)
    attributes = AttributeMap(settings)
    assert attributes.owner_there(5, 6) == (1001, 1002)
    assert attributes.owner_there(50, 60) == (50, 60)


def test_a_strict_map_refuses_others() -> None:
    attributes = AttributeMap(MountSettings(users=IdMap(to_local={1: 5}, is_strict=True)))
    with pytest.raises(PermissionError):
        attributes.pack(FILE)
    with pytest.raises(PermissionError):
        attributes.owner_there(1001, 0)
    assert attributes.pack_or_nothing(FILE, b"") == b""


def test_the_type_comes_from_the_longname_if_need_be() -> None:
    attributes = AttributeMap(MountSettings())
    bare = Attributes(size=3, times=(1, 2))
    assert attributes.pack(bare) == b""
    assert stat.S_ISDIR(fuse.mode_in(attributes.pack(bare, b"drwxr-x---")))
    untyped = Attributes(permissions=0o640, times=(1, 2))
    assert fuse.mode_in(attributes.pack(untyped, b"-rw-r-----")) == stat.S_IFREG | 0o640
