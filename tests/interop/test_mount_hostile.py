"""A mount of a hostile server: errors are errors, and the program goes on.

Each oddity is one of odd_sftp_server.py; what the mount answers is not said here, only that it
answers, that nothing outside of the mount is reached, and that other requests go on.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import odd_sftp_server
from tests.interop.mounts import Mounter
from tests.mounts import Mount
from tests.peers import private_folder
from tests.processes import status

MEMORY = 160 << 10  # KiB that the program may have at most

ODDITIES = (
    "out-of-order", "short-reads", "shortest-reads", "no-setstat", "no-attributes", "no-messages",
    "one-name", "clock", "climbs", "setuid", "endless", "other-tree", "bad-names", "other-types",
    "same-handle", "huge-sizes", "odd-times", "nobody", "cut-replies", "leads-out",
    "wrong-type-later", "empty-reads",
)  # fmt: skip


@contextlib.contextmanager
def hostile(mounter: Mounter, *oddities: str) -> Iterator[Mount]:
    with private_folder("odd") as folder:
        words = [sys.executable, odd_sftp_server.__file__, *oddities]
        ssh = folder / "ssh"
        path = shlex.quote(str(Path(__file__).parents[2]))
        ssh.write_text(f"#!/bin/sh\nPYTHONPATH={path} exec {shlex.join(words)}\n")
        ssh.chmod(0o755)
        with mounter.mount("openssh", [f"ssh_command={ssh}", "timeout=1"]) as mount:
            yield mount


def _try_everything(here: Path) -> None:
    """Do what a user does; any of it may fail."""
    for name in ("file", "folder", "link", "new", "endless", "..", "../climbed"):
        path = here / name
        for act in (
            lambda path=path: path.stat(),
            lambda path=path: os.listdir(path),
            lambda path=path: _scan(path),
            lambda path=path: _read(path),
            lambda path=path: os.readlink(path),
            lambda path=path: path.write_bytes(b"text" * 20_000),
            lambda path=path: os.truncate(path, 10),
            lambda path=path: os.utime(path, (1, 1)),
            lambda path=path: os.link(path, here / "another"),
            lambda path=path: os.rename(path, here / "moved"),
            lambda path=path: os.rename(here / "moved", path),
            lambda path=path: os.statvfs(path),
            lambda path=path: (path / "below").mkdir(),
        ):
            if ".." not in name:
                with contextlib.suppress(OSError, ValueError):
                    act()


def _scan(path: Path) -> None:
    with os.scandir(path) as entries:
        for each in entries:
            with contextlib.suppress(OSError):
                each.stat(follow_symlinks=False)


def _read(path: Path) -> None:
    with open(path, "rb") as file:
        file.read(1 << 20)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("oddity", ODDITIES)
def test_a_hostile_server_harms_nobody(oddity: str, mounter: Mounter) -> None:
    with hostile(mounter, oddity) as mount:
        outside = mount.behind.parent / f"{mount.behind.name}-outside"
        (mount.behind / "folder").mkdir()
        (mount.behind / "file").write_bytes(b"content" * 10_000)
        (mount.behind / "link").symlink_to(outside)
        _try_everything(mount.place)
        assert not outside.exists()
        assert os.path.ismount(mount.place)
        assert mount.process.poll() is None, mount.log.read_text()
        assert int(status(mount.process.pid)["VmRSS"][0]) < MEMORY
        os.statvfs(mount.place)
        assert "Traceback" not in mount.log.read_text()


def test_a_link_that_leads_out_is_not_followed(mounter: Mounter) -> None:
    with hostile(mounter, "leads-out") as mount:
        (mount.behind / "link").symlink_to("file")
        with pytest.raises(PermissionError):
            os.readlink(mount.place / "link")


def test_a_listing_that_never_ends_is_an_error(mounter: Mounter) -> None:
    with hostile(mounter, "same-name") as mount:
        with pytest.raises(OSError):
            os.listdir(mount.place)
        assert mount.process.poll() is None
