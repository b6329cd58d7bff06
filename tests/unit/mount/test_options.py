"""What the options of sshfs's -o mean."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.mount.mounting import (
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    KernelOptions,
)
from appliance.mount.options import MountLine, read, split
from appliance.mount.settings import MountSettings


def test_options_are_separated_by_commas_that_no_backslash_hides() -> None:
    assert list(split("ro,IdentityFile=/a\\,b,x=\\\\,y=\\054z\\x")) == [
        "ro",
        "IdentityFile=/a,b",
        "x=\\",
        "y=,zx",
    ]


def test_octal_numbers_are_bytes() -> None:
    (word,) = split("fsname=\\303\\251\\054")
    assert os.fsencode(word) == "fsname=é,".encode()
    with pytest.raises(UsageError, match="a NUL byte"):
        read(["fsname=a\\000b"])


@given(st.text())
def test_splitting_takes_any_text(text: str) -> None:
    assert len(list(split(text))) >= 1
    assert list(split(text.replace("\\", "\\\\").replace(",", "\\,"))) == [text]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("direct_io,kernel_cache,sshfs_sync,no_readahead", {
            "direct_io": True, "kernel_cache": True, "sync_writes": True, "read_ahead": False}),
        ("kernel_cache,auto_cache", {"kernel_cache": False}),
        ("write_behind", {"write_behind": True}),
        ("write_behind=yes,write_behind=no", {"write_behind": False}),
        ("dir_cache=no", {"caches": False}),
        ("cache=no", {"caches": False}),
        ("dcache_timeout=20", {
            "attributes_timeout": 20.0, "links_timeout": 20.0, "names_timeout": 20.0}),
        ("cache_timeout=20,cache_stat_timeout=1.5,dcache_link_timeout=2,dcache_dir_timeout=4", {
            "attributes_timeout": 1.5, "links_timeout": 2.0, "names_timeout": 4.0}),
        ("timeout=90,cache_size=16", {"timeout": 90.0, "memory": 16 << 20}),
        ("entry_timeout=1,attr_timeout=2,negative_timeout=0.5", {
            "entry_timeout": 1.0, "attr_timeout": 2.0, "negative_timeout": 0.5}),
        ("uid=1000,gid=0,umask=077", {"uid": 1000, "gid": 0, "umask": 0o77}),
        ("max_read=4096,max_write=65536", {"max_read": 4096, "max_write": 65536}),
        ("follow_symlinks,transform_symlinks,no_contain_symlinks,disable_hardlink", {
            "follow_symlinks": True, "transform_symlinks": True, "contain_symlinks": False,
            "hard_links": False}),
        ("workaround=rename:renamexdev:createmode:buflimit:nofstat", {
            "rename_over": True, "rename_exdev": True, "create_mode": False}),
        ("workaround=none", {}),
        ("idmap=user", {"maps_own_user": True}),
    ],
)  # fmt: skip
def test_options_set_how_the_mount_behaves(text: str, fields: dict[str, Any]) -> None:
    assert read([text]) == replace(MountLine(), mount=MountSettings(**fields))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("ro", {"flags": MS_RDONLY | MS_NOSUID | MS_NODEV}),
        ("ro,rw", {}),
        ("suid,dev,noexec,noatime", {"flags": MS_NOEXEC | MS_NOATIME}),
        ("dev,nodev", {}),
        ("subtype=x,auto_unmount", {"subtype": "x", "auto_unmount": True}),
        ("allow_other,default_permissions,allow_other", {
            "words": ("allow_other", "default_permissions")}),
        ("context=system_u:object_r:x:s0", {"words": ("context=system_u:object_r:x:s0",)}),
    ],
)  # fmt: skip
def test_options_set_what_the_kernel_is_told(text: str, fields: dict[str, Any]) -> None:
    assert read([text]) == replace(MountLine(), kernel=KernelOptions(**fields))


def test_options_say_how_the_server_is_reached() -> None:
    line = read(
        [
            "port=2222,identityfile=/k\\,ey,COMPRESSION=yes",
            "ssh_command=ssh -v,sftp_server=/usr/lib/sftp-server,directport=5",
            "passive,password_stdin,fsname=here,setuid=joe",
            "debug,sshfs_verbose",
        ]
    )
    assert line.ssh == ("port=2222", "identityfile=/k,ey", "COMPRESSION=yes")
    assert (line.ssh_command, line.sftp_server) == ("ssh -v", "/usr/lib/sftp-server")
    assert (line.direct_port, line.source, line.become) == (5, "here", "joe")
    assert line.passive
    assert line.password_stdin
    assert line.debug
    assert line.verbose


def test_what_concerns_others_is_ignored() -> None:
    assert (
        read(
            [
                "auto,noauto,user,user=joe,nouser,users,_netdev,nofail,defaults,rw,comment=a",
                "x-systemd.automount,x-gvfs-name=a,writeback_cache=no,workaround=buflimit",
                "reconnect,delay_connect,no_check_root,sync_readdir,max_conns=4,ssh_protocol=2,dcache_max_size=1",
                "dcache_clean_interval=1,cache_min_clean_interval=1,nonempty,big_writes,,",
            ]
        )
        == MountLine()
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bogus", "unknown option(s): `-o bogus'"),
        ("ro,bogus=1,nothing,reconnect=1", "unknown option(s): `-o bogus=1,nothing,reconnect=1'"),
        ("uid=joe", "invalid parameter in option `uid=joe': expected a number from 0 to"),
        ("uid=-1", "invalid parameter"),
        ("uid=4294967295", "invalid parameter"),
        ("umask=8", "invalid parameter in option `umask=8': expected a number from 0 to 777"),
        ("timeout=0", "invalid parameter in option `timeout=0': expected at least 1 second"),
        ("attr_timeout=nan", "expected seconds"),
        ("attr_timeout=x", "invalid parameter in option `attr_timeout=x': expected seconds"),
        ("dir_cache=maybe", "expected yes or no"),
        ("idmap=all", "expected none, user or file"),
        ("idmap=file", "idmap=file needs a uidfile or a gidfile"),
        ("nomap=all", "expected ignore or error"),
        ("max_conns=0", "invalid parameter in option `max_conns=0'"),
        ("ssh_protocol=1", "invalid parameter in option `ssh_protocol=1'"),
        ("workaround=rename:bla", "unknown workaround: 'bla'"),
        ("allow_root", "allow_root is not supported"),
        ("modules=subdir", "modules is not supported"),
    ],
)
def test_mistakes_are_named(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read([text])
    assert told in str(caught.value)


def test_mount_may_be_told_to_ignore_what_is_unknown() -> None:
    assert read(["bogus,ro"], is_sloppy=True) == read(["ro"])
    with pytest.raises(UsageError):
        read(["uid=joe"], is_sloppy=True)


def test_maps_of_users_and_groups_are_read(tmp_path: Path) -> None:
    users, groups = tmp_path / "users", tmp_path / "groups"
    users.write_text("root:1000\n")
    groups.write_text("root:100\n")
    line = read([f"uidfile={users},idmap=file,gidfile={groups},nomap=ignore"])
    assert (line.mount.users.to_local, line.mount.users.is_strict) == ({1000: 0}, False)
    assert line.mount.groups.to_local == {100: 0}
    line = read([f"uidfile={users},idmap=file"])
    assert (line.mount.users.is_strict, line.mount.groups.is_strict) == (True, False)
    assert read([f"uidfile={users}"]) == MountLine()
