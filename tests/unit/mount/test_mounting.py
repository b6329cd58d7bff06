"""Mounting and unmounting, by root and by a user, beside the real sshfs."""

import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.mount.mounting import (
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_SYNCHRONOUS,
    KernelOptions,
    Mounted,
    check_mountpoint,
    mount,
    unmount_left,
)
from tests.peers import private_folder
from tests.unit.mount.nothing import Nothing

REPOSITORY = Path(__file__).resolve().parents[3]
NOBODY = 65534
DIRECTORY = stat.S_IFDIR | 0o755
Mount = Callable[..., Mounted]


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that everybody can reach, and nobody owns."""
    with private_folder("mounting") as folder:
        folder.chmod(0o755)
        os.chown(folder, NOBODY, NOBODY)
        target = folder / "m"
        target.mkdir()
        os.chown(target, NOBODY, NOBODY)
        yield target
        while subprocess.run(["umount", "-l", target], stderr=subprocess.DEVNULL).returncode == 0:
            pass


@pytest.fixture
def mounted(place: Path) -> Iterator[Mount]:
    """Mounts an empty file system, which is unmounted at the end."""
    made: list[tuple[Mounted, Nothing]] = []

    def begin(source: str = "joe@host:/srv", **options: object) -> Mounted:
        ours = mount(str(place), source, KernelOptions(**options), DIRECTORY)  # type: ignore[arg-type]
        made.append((ours, Nothing(ours.fd)))
        return ours

    yield begin
    for ours, files in made:
        ours.unmount()
        ours.close()
        files.join()


def lines_of(path: Path) -> list[str]:
    """What mountinfo says of a path, without the numbers."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" ", 3)[3] for line in lines if line.split()[4] == str(path)]


def sshfs_line(path: Path, source: str, *options: str, user: int = 0) -> str:
    """What mountinfo says of a mount of the real sshfs."""
    program = path.parent / "ssh"
    program.write_text("#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n")
    program.chmod(0o755)
    words = ["-o", f"ssh_command={program}", "-o", "no_check_root"]
    command = ["sshfs", source, str(path), *words, *options]
    subprocess.run(command, check=True, user=user, group=user, extra_groups=[])
    try:
        (line,) = lines_of(path)
    finally:
        subprocess.run(["umount", path], check=True)
    return line


STANDARD = MS_NOSUID | MS_NODEV


@pytest.mark.root
@pytest.mark.parametrize(
    ("sshfs", "flags", "words"),
    [
        ("rw", STANDARD, ()),
        ("ro,noexec,noatime", STANDARD | MS_RDONLY | MS_NOEXEC | MS_NOATIME, ()),
        ("sync,dirsync", STANDARD | MS_SYNCHRONOUS | MS_DIRSYNC, ()),
        ("dev,suid,exec", 0, ()),
        ("allow_other,default_permissions", STANDARD, ("allow_other", "default_permissions")),
    ],
)
def test_root_mounts_as_sshfs_does(
    place: Path, mounted: Mount, sshfs: str, flags: int, words: tuple[str, ...]
) -> None:
    expected = sshfs_line(place, "joe@host:/a,b\\c d", "-o", sshfs)
    mounted("joe@host:/a,b\\c d", flags=flags, words=words)
    assert lines_of(place) == [expected]
    assert list(place.iterdir()) == []


@pytest.mark.root
def test_the_subtype_may_be_another(place: Path, mounted: Mount) -> None:
    mounted(subtype="culvert")
    assert " - fuse.culvert joe@host:/srv " in lines_of(place)[0]


BEGIN = """
import os, shutil, signal, stat, subprocess, sys
from pathlib import Path
from appliance.errors import UsageError
from appliance.mount.mounting import *
from tests.unit.mount.nothing import Nothing
place = sys.argv[1]
"""
BECOME_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"


def run(place: Path, body: str, become: str = BECOME_NOBODY) -> "subprocess.Popen[str]":
    """Runs statements in another process, by default as nobody, who may not read the modules."""
    script = BEGIN + become + textwrap.dedent(body)
    words = [sys.executable, "-c", script, str(place)]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


BY_USER = """
    ours = mount(check_mountpoint(place), "joe@host:/a,b\\\\c d", KernelOptions({}), stat.S_IFDIR)
    files = Nothing(ours.fd)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == place:
            print(line.split(" ", 3)[3])
    print(os.listdir(place), os.get_blocking(ours.fd), os.get_inheritable(ours.fd))
"""


@pytest.mark.root
def test_a_user_mounts_by_fusermount_as_sshfs_does(place: Path) -> None:
    expected = sshfs_line(place, "joe@host:/a,b\\c d", "-o", "ro,noatime", user=NOBODY)
    flags = "flags=MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME"
    process = run(place, BY_USER.format(flags) + "\n    ours.unmount(); ours.close(); files.join()")
    assert process.communicate()[0].splitlines() == [expected, "[] False False"]
    assert process.returncode == 0
    assert lines_of(place) == []


@pytest.mark.root
def test_auto_unmount_outlives_a_kill(place: Path) -> None:
    """For a user without allow_other it does not: fusermount3 may not look at the mount."""
    body = BY_USER.format("auto_unmount=True") + "\n    print('up', flush=True); signal.pause()"
    process = run(place, body, become="")
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "up\n":
        assert line
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while lines_of(place) and time.monotonic() < end:
        time.sleep(0.01)
    assert lines_of(place) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("words=('allow_other',)", "option allow_other only allowed if 'user_allow_other' is set"),
        ("words=('context=x',)", "context=x"),
    ],
)
def test_what_fusermount_refuses_is_one_line(place: Path, options: str, told: str) -> None:
    process = run(
        place,
        f"""
        try:
            mount(place, "h:", KernelOptions({options}), stat.S_IFDIR)
        except UsageError as error:
            print(error)
        """,
    )
    text = process.communicate()[0]
    assert told in text
    assert text.count("\n") == 1
    assert "fusermount3:" not in text


@pytest.mark.root
def test_a_mount_point_may_have_any_name(place: Path) -> None:
    target = place / os.fsdecode(b"a \\040\n\t#,\xff\xc3")
    target.mkdir()
    path = check_mountpoint(str(target))
    ours = mount(path, "h:", KernelOptions(), DIRECTORY)
    ours.unmount()
    ours.close()
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_unmounting_works_while_files_are_open(place: Path, mounted: Mount) -> None:
    ours = mounted()
    fd = os.open(place, os.O_RDONLY)
    ours.unmount()
    assert lines_of(place) == []
    assert os.listdir(fd) == []
    os.close(fd)


@pytest.mark.root
def test_what_others_have_mounted_stays(place: Path, mounted: Mount) -> None:
    ours = mounted()
    subprocess.run(["mount", "-t", "tmpfs", "above", place], check=True)
    ours.unmount()
    assert [line.split(" - ")[1].split()[1] for line in lines_of(place)] == [
        "joe@host:/srv",
        "above",
    ]
    subprocess.run(["umount", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_a_mount_is_found_under_another_name_of_its_directory(place: Path) -> None:
    ours = mount(str(place), "h:", KernelOptions(), DIRECTORY)
    moved = place.parent.with_name(place.parent.name + "-moved")
    place.parent.rename(moved)
    try:
        assert lines_of(moved / "m")
        ours.unmount()
        assert not lines_of(moved / "m")
    finally:
        moved.rename(place.parent)
        ours.close()


@pytest.mark.root
def test_a_mount_that_took_our_place_stays(place: Path, mounted: Mount) -> None:
    ours = mounted()
    subprocess.run(["umount", place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "instead", place], check=True)
    ours.unmount()
    assert "tmpfs instead" in lines_of(place)[0]


@pytest.mark.root
def test_a_directory_that_was_exchanged_is_not_mounted_on(place: Path, tmp_path: Path) -> None:
    target = check_mountpoint(str(place))
    for above in (place, place.parent):
        victim = tmp_path / "victim"
        (victim / "m").mkdir(parents=True, exist_ok=True)
        aside = above.with_name(above.name + "-aside")
        above.rename(aside)
        above.symlink_to(victim)
        before = Path("/proc/self/mountinfo").read_text()
        try:
            with pytest.raises(UsageError, match="/m: "):
                mount(target, "h:", KernelOptions(), DIRECTORY)
        finally:
            above.unlink()
            aside.rename(above)
        assert Path("/proc/self/mountinfo").read_text() == before


def test_mount_points_are_checked(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("full")
    assert check_mountpoint(str(tmp_path / "link")) == str(tmp_path / "full")
    for name, told in (
        ("none", "bad mount point `.*/none': No such file or directory"),
        ("full/file", "bad mount point `.*/full/file': Not a directory"),
        ("link/file/x", "bad mount point `.*': Not a directory"),
    ):
        with pytest.raises(UsageError, match=told):
            check_mountpoint(str(tmp_path / name))


@pytest.mark.root
def test_a_user_cannot_mount_where_they_cannot_write(place: Path) -> None:
    os.chown(place, 0, 0)
    process = run(
        place,
        """
        try:
            check_mountpoint(place)
        except UsageError as error:
            print(error)
        """,
    )
    text = process.communicate()[0]
    assert text == f"bad mount point `{place}': you have no write access to it\n"


@pytest.mark.root
def test_a_stale_mount_is_named_with_its_remedy(place: Path) -> None:
    ours = mount(str(place), "h:", KernelOptions(), DIRECTORY)
    os.close(ours.fd)  # as if its program had been killed
    with pytest.raises(UsageError, match=r"not connected; an old mount .*: fusermount3 -u .*/m"):
        check_mountpoint(str(place))


@pytest.mark.root
def test_unmounting_after_the_end_is_no_error(place: Path, mounted: Mount) -> None:
    ours = mounted()
    subprocess.run(["umount", place], check=True)
    ours.unmount()
    assert lines_of(place) == []


@pytest.mark.root
def test_what_a_program_left_is_unmounted_and_nothing_else(mounted: Mount, place: Path) -> None:
    mounted("joe@host:/a b")
    mounted("other@host:")
    unmount_left(str(place), "joe@host:/a b")
    assert len(lines_of(place)) == 2, "another one lies on top of it"
    unmount_left(str(place), "other@host:")
    assert len(lines_of(place)) == 1
    unmount_left(str(place.parent), "joe@host:/a b")
    unmount_left(str(place), "joe@host:")
    assert len(lines_of(place)) == 1
    unmount_left(str(place), "joe@host:/a b")
    assert not lines_of(place)


@pytest.mark.root
def test_what_is_no_fuse_is_left(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "joe@host:", place], check=True)
    unmount_left(str(place), "joe@host:")
    assert len(lines_of(place)) == 1
