"""Symbolic links at the server, as the options of a mount have them."""

import errno
import os
from pathlib import Path

import pytest

from tests.interop.mounts import Mounter, give
from tests.peers import Account

SERVERS = ("culvert", "openssh")


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(behind: Path, account: Account) -> None:
    (behind / "folder").mkdir()
    (behind / "folder/file").write_bytes(b"there\n")
    (behind / "near").symlink_to("folder/file")
    (behind / "absolute").symlink_to(behind / "folder/file")
    (behind / "up").symlink_to("../etc/passwd")
    (behind / "out").symlink_to("/etc/passwd")
    (behind / "nowhere").symlink_to("none")
    for path in (behind / "folder", behind / "folder/file"):
        give(path, account)


def test_links_that_lead_out_are_refused(kind: str, mounter: Mounter) -> None:
    with mounter.mount(kind) as mount:
        make(mount.behind, mounter.login.account)
        assert (mount.place / "near").read_bytes() == b"there\n"
        assert os.readlink(mount.place / "nowhere") == "none"
        for name in ("absolute", "up", "out"):
            with pytest.raises(OSError) as caught:
                os.readlink(mount.place / name)
            assert caught.value.errno == errno.EPERM


def test_links_are_shown_as_they_are_if_that_is_asked_for(kind: str, mounter: Mounter) -> None:
    with mounter.mount(kind, ["no_contain_symlinks"]) as mount:
        make(mount.behind, mounter.login.account)
        assert os.readlink(mount.place / "out") == "/etc/passwd"
        assert os.readlink(mount.place / "up") == "../etc/passwd"


def test_absolute_links_are_made_relative(kind: str, mounter: Mounter) -> None:
    with mounter.mount(kind, ["transform_symlinks"]) as mount:
        make(mount.behind, mounter.login.account)
        assert os.readlink(mount.place / "absolute") == "folder/file"
        assert (mount.place / "absolute").read_bytes() == b"there\n"


def test_the_server_follows_its_links(kind: str, mounter: Mounter) -> None:
    with mounter.mount(kind, ["follow_symlinks"]) as mount:
        make(mount.behind, mounter.login.account)
        for name in ("near", "absolute"):
            assert not (mount.place / name).is_symlink()
            assert (mount.place / name).read_bytes() == b"there\n"
        with (mount.place / "near").open("ab") as file:
            file.write(b"more\n")
        assert (mount.behind / "folder/file").read_bytes() == b"there\nmore\n"
        (mount.place / "near").chmod(0o600)
        assert (mount.behind / "folder/file").stat().st_mode & 0o777 == 0o600
        assert (mount.place / "nowhere").is_symlink()
        assert sorted(os.listdir(mount.place)) == sorted(os.listdir(mount.behind))
