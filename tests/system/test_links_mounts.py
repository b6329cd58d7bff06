"""Mounts that links.toml declares, while networks, programs and their supervisor come and go."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import mount_line
from tests.netns import wait_until
from tests.sites import LinkedSite, Routed, pause

pytestmark = [pytest.mark.root, pytest.mark.netns]

EAGER = "server_alive_interval = 1\nserver_alive_count_max = 2\nconnect_timeout = 5\n"


class Mounts:
    """West with mounts of east's directories; each has a place of its own on either side."""

    def __init__(self, sites: Routed, folder: Path) -> None:
        self.sites = sites
        self.west, self.east = sites["west"], sites["east"]
        self.folder = folder
        self._declared: dict[str, str] = {}

    def declare(self, name: str, more: str = "", host: str = "", key: str = "") -> None:
        for place in (self.here(name), self.there(name)):
            place.mkdir(parents=True, exist_ok=True)
        text = self.sites.link("east", name=name)
        if key:
            text = text.replace(" ".join(self.sites.host_keys.public().split()[:2]), key)
        if host:
            text = text.replace(self.east.outer, host)
        self._declared[name] = (
            f'[[mount]]\n{text}directory = "{self.there(name)}"\n'
            f'mountpoint = "{self.here(name)}"\n{EAGER}{more}\n'
        )
        self._write()

    def forget(self, name: str) -> None:
        del self._declared[name]
        self._write()

    def _write(self) -> None:
        self.west.links.write_text("\n".join(self._declared.values()))

    def here(self, name: str) -> Path:
        return self.folder / "here" / name

    def there(self, name: str) -> Path:
        return self.folder / "there" / name

    def up(self, *names: str, status: int | None = 0) -> str:
        return self.west.culvert("up", "-c", str(self.west.links), *names, status=status)

    def status(self, name: str) -> dict[str, Any]:
        mounts = json.loads(self.west.culvert("status", "--json", status=None))["mounts"]
        return next(mount for mount in mounts if mount["name"] == name)

    def is_up(self, name: str) -> bool:
        return bool(self.status(name)["state"] == "up")

    def works(self, name: str) -> bool:
        """Whether a file of the server's is there; stale mounts have none."""
        with contextlib.suppress(OSError):
            return bool(mount_line(self.here(name)) and (self.here(name) / "file").read_text())
        return False

    def program(self, name: str) -> int:
        """The process that serves a mount."""
        (pid,) = (pid for pid in programs(self.west) if str(self.here(name)) in words_of(pid))
        return pid


def words_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


def programs(site: LinkedSite) -> list[int]:
    """The programs of a site's mounts."""
    return [pid for pid in site.space.processes() if "--supervised" in words_of(pid)]


def supervisor(site: LinkedSite) -> int:
    (pid,) = (pid for pid in site.space.processes() if "up" in words_of(pid))
    return pid


def connections(site: LinkedSite) -> int:
    """How many connections to a site's server there are."""
    return site.space.run("ss", "-Htn", "state", "established", "sport", "= 2222").count("\n")


def is_stale(place: Path) -> bool:
    """Whether a mount has lost its program: Transport endpoint is not connected."""
    try:
        place.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    with Routed(folder) as made:
        yield made
        for site in made.sites.values():
            site.culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


@pytest.fixture
def mounts(sites: Routed, folder: Path) -> Iterator[Mounts]:
    """West and east with a server, and 'photos' declared in the west."""
    sites.serve("east")
    made = Mounts(sites, folder)
    made.declare("photos")
    (made.there("photos") / "file").write_text("of the server")
    yield made
    sites["west"].culvert("down", status=None)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [line.split()[4] for line in lines if str(folder) in line]
    for place in left:
        subprocess.run(["umount", "-l", place], check=False)
    assert not left


def nothing_is_left(mounts: Mounts) -> bool:
    records = list((mounts.west.folder / "run" / "mounts").glob("*"))
    return mounts.west.is_quiet() and not records and not mount_line(mounts.here("photos"))


def cut(mounts: Mounts) -> None:
    mounts.sites.router.ip("link", "set", "east", "down")


def mend(mounts: Mounts) -> None:
    mounts.sites.router.ip("link", "set", "east", "up")


def test_a_mount_comes_up_is_shown_and_goes_without_a_trace(mounts: Mounts) -> None:
    west, here = mounts.west, mounts.here("photos")
    file = str(west.links)
    assert "0 links, 1 mounts, nothing wrong" in west.culvert("up", "--check", "-c", file)
    source = f"root@{mounts.east.outer}:{mounts.there('photos')}"
    assert f"culvert sshfs {source} {here}\n" in west.culvert("up", "--dry-run", "-c", file)
    assert mounts.up() == f"photos: up, {here} to {mounts.east.outer}\n"
    assert " fuse.sshfs root@" in mount_line(here)
    assert (here / "file").read_text() == "of the server"
    (here / "new").write_bytes(bytes(1 << 20))
    assert (mounts.there("photos") / "new").stat().st_size == 1 << 20
    head, row = west.culvert("status").splitlines()
    assert head.split()[:4] == ["LINK", "STATE", "FOR", "DEVICE"]
    assert row.split()[:2] + row.split()[3:5] == ["photos", "up", str(here), mounts.east.outer]
    assert wait_until(lambda: mounts.status("photos")["sent_bytes"] > 1 << 20)
    assert wait_until(lambda: mounts.status("photos")["received_bytes"] > 0)
    assert mounts.status("photos")["round_trip"] > 0
    metrics = west.space.run(
        "curl", "-s", "--unix-socket", f"{west.folder}/run/links.sock", "http://links/metrics"
    )
    assert f'culvert_mount_up{{mount="photos",host="{mounts.east.outer}"}} 1' in metrics
    west.culvert("down")
    assert nothing_is_left(mounts)
    assert not list(here.iterdir())


def test_a_rate_is_that_of_the_data(mounts: Mounts) -> None:
    mounts.up()
    with (mounts.here("photos") / "new").open("wb", buffering=0) as file:

        def writes() -> bool:
            file.write(bytes(1 << 20))
            return bool(mounts.status("photos")["sent_rate"] > 100_000)

        assert wait_until(writes, 15)


def test_a_cut_line_is_told_and_the_mount_goes_on_after_it(mounts: Mounts) -> None:
    mounts.up()
    program = mounts.program("photos")
    with (mounts.here("photos") / "file").open() as file:
        cut(mounts)
        assert wait_until(lambda: not mounts.is_up("photos"), 20)
        status = mounts.status("photos")
        assert (status["state"], bool(status["last_error"])) == ("dialling", True)
        assert status["last_error"] in mounts.west.culvert("status", status=1)
        mend(mounts)
        assert wait_until(lambda: mounts.is_up("photos"), 30)
        assert file.read() == "of the server"
    assert mounts.status("photos")["reconnects"] == 1
    assert mounts.program("photos") == program


def test_a_program_that_was_killed_is_started_again(mounts: Mounts) -> None:
    mounts.up()
    program = mounts.program("photos")
    os.kill(program, signal.SIGKILL)
    assert wait_until(lambda: mounts.status("photos")["reconnects"] == 1, 20)
    assert mounts.works("photos")
    assert mounts.program("photos") != program


def test_what_somebody_unmounts_is_mounted_again(mounts: Mounts) -> None:
    mounts.up()
    subprocess.run(["umount", str(mounts.here("photos"))], check=True)
    assert wait_until(lambda: mounts.status("photos")["reconnects"] == 1, 20)
    assert mounts.works("photos")


def test_a_mount_outlives_its_supervisor_by_no_more_than_its_writes(mounts: Mounts) -> None:
    mounts.up()
    os.kill(supervisor(mounts.west), signal.SIGKILL)
    assert wait_until(lambda: not programs(mounts.west))
    assert not mount_line(mounts.here("photos"))
    mounts.up()
    assert mounts.works("photos")


@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_mount_without_a_program_is_found(mounts: Mounts, verb: str) -> None:
    mounts.up()
    mounts.sites.kill_all("west")
    assert wait_until(lambda: is_stale(mounts.here("photos")))
    if verb == "up":
        mounts.up()
        assert mounts.works("photos")
        mounts.west.culvert("down")
    else:
        mounts.west.culvert("down", "photos")
    assert nothing_is_left(mounts)


def test_a_program_that_stands_still_is_ended_by_the_next_supervisor(mounts: Mounts) -> None:
    mounts.up()
    old = mounts.program("photos")
    os.kill(old, signal.SIGSTOP)
    os.kill(supervisor(mounts.west), signal.SIGKILL)
    mounts.up()
    assert mounts.works("photos")
    assert mounts.program("photos") != old


def test_a_mount_of_others_is_left_alone(mounts: Mounts) -> None:
    """A supervisor that was killed has left a record, but another mount is there since."""
    mounts.up()
    here = mounts.here("photos")
    mounts.sites.kill_all("west")
    # unless the program was faster, which unmounts as well
    subprocess.run(["umount", str(here)], stderr=subprocess.DEVNULL, check=False)
    assert not mount_line(here)
    subprocess.run(["mount", "-t", "tmpfs", "others", here], check=True)
    try:
        mounts.west.culvert("down")
        assert " tmpfs others " in mount_line(here)
    finally:
        subprocess.run(["umount", str(here)], check=True)


def test_a_reload_changes_what_differs(mounts: Mounts) -> None:
    mounts.declare("music")
    mounts.up()
    photos, music = mounts.program("photos"), mounts.program("music")
    mounts.declare("music", 'options = ["ro"]')
    mounts.up()
    assert mounts.program("photos") == photos
    assert mounts.program("music") != music
    assert " ro," in mount_line(mounts.here("music"))
    mounts.forget("music")
    mounts.up()
    assert programs(mounts.west) == [photos]
    assert not mount_line(mounts.here("music"))


def test_mounts_may_change_places(mounts: Mounts) -> None:
    mounts.declare("music")
    (mounts.there("music") / "file").write_text("music")
    mounts.up()
    text = mounts.west.links.read_text()
    places = {"/here/photos": "/here/music", "/here/music": "/here/photos"}
    swapped = re.sub("|".join(places), lambda match: places[match[0]], text)
    mounts.west.links.write_text(swapped)
    mounts.up()
    assert (mounts.here("photos") / "file").read_text() == "music"
    assert (mounts.here("music") / "file").read_text() == "of the server"


def test_one_of_several_comes_and_goes_by_its_name(mounts: Mounts) -> None:
    mounts.declare("music")
    mounts.up("music")
    assert not mount_line(mounts.here("photos"))
    mounts.up("photos")
    assert mounts.works("photos")
    mounts.west.culvert("down", "music")
    assert not mount_line(mounts.here("music"))
    assert mounts.works("photos")
    assert "there are photos, music" in mounts.up("pictures", status=1)
    mounts.west.culvert("down", "photos")
    assert wait_until(lambda: nothing_is_left(mounts))


def test_a_wrong_host_key_stops_a_mount(mounts: Mounts) -> None:
    keygen = ("keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(mounts.folder / "other"))
    mounts.west.culvert(*keygen)
    other = " ".join((mounts.folder / "other.pub").read_text().split()[:2])
    mounts.declare("photos", key=other)
    text = mounts.up(status=1)
    assert text.startswith("photos: stopped: ")
    assert "somebody may be listening in" in text
    mounts.declare("photos")
    mounts.up()
    assert mounts.works("photos")


def test_what_is_missing_is_told_and_looked_for_again(mounts: Mounts) -> None:
    mounts.there("photos").rename(mounts.folder / "elsewhere")
    assert "No such file or directory; it is tried again" in mounts.up(status=1)
    (mounts.folder / "elsewhere").rename(mounts.there("photos"))
    assert wait_until(lambda: mounts.works("photos"), 20)


def test_down_waits_for_what_was_written_but_not_for_ever(mounts: Mounts) -> None:
    mounts.declare("photos", 'options = ["write_behind"]')
    mounts.up()
    for number in range(200):
        (mounts.here("photos") / f"{number}").write_text("x")
    mounts.west.culvert("down")
    assert len(list(mounts.there("photos").iterdir())) == 201
    mounts.up()
    late = os.open(mounts.here("photos") / "late", os.O_WRONLY | os.O_CREAT)
    cut(mounts)
    os.write(late, b"x")
    text = mounts.west.culvert("down", status=1)
    with pytest.raises(OSError, match="connect"):
        os.close(late)
    assert "not all that was written there has reached the server" in text
    assert wait_until(lambda: nothing_is_left(mounts))
    mounts.sites.kill_all("east")  # which has not heard of it


def test_a_service_manager_that_ends_all_processes_at_once_loses_nothing(mounts: Mounts) -> None:
    """As systemd does: the program gets SIGTERM, and its supervisor, which ends it as well."""
    mounts.up()
    new = os.open(mounts.here("photos") / "new", os.O_WRONLY | os.O_CREAT)
    server = mounts.east.space.processes()
    for pid in server:
        os.kill(pid, signal.SIGSTOP)
    os.write(new, bytes(8 << 20))
    for pid in mounts.west.space.processes():
        os.kill(pid, signal.SIGTERM)
    pause(1)
    for pid in server:
        os.kill(pid, signal.SIGCONT)
    assert wait_until(lambda: nothing_is_left(mounts), 20)
    assert (mounts.there("photos") / "new").stat().st_size == 8 << 20
    with contextlib.suppress(OSError):
        os.close(new)


def test_no_password_stands_on_a_command_line(mounts: Mounts) -> None:
    mounts.declare("photos", 'proxy = "http://me:secret@192.0.2.99:1"')
    mounts.up(status=1)
    assert wait_until(lambda: bool(programs(mounts.west)))
    assert "secret" not in " ".join(words_of(programs(mounts.west)[0]))


IS_INSTALLED_FOR_ALL = all(
    path.stat().st_mode & 0o001 for path in Path(sys.base_prefix).resolve().parents
)


@pytest.mark.parametrize("is_master", [True, False])
def test_mounts_share_a_connection(mounts: Mounts, is_master: bool) -> None:
    path = mounts.folder / "control"
    master = None
    if is_master:  # somebody else's; otherwise the first mount's
        key, known = mounts.sites.user_keys.key(), mounts.folder / "known_hosts"
        host_key = " ".join(mounts.sites.host_keys.public().split()[:2])
        known.write_text(f"[{mounts.east.outer}]:2222 {host_key}\n")
        master = mounts.west.start(
            "ssh", "-M", "-N", "-S", str(path), "-p", "2222", "-i", str(key),
            "-o", f"UserKnownHostsFile={known}", f"root@{mounts.east.outer}",
        )  # fmt: skip
        assert wait_until(path.exists)
    more = "" if is_master else ', "ControlMaster=auto"'
    options = f'options = ["ControlPath={path}"{more}]'
    mounts.declare("photos", options)
    mounts.up()
    mounts.declare("music", options)
    mounts.up()
    assert mounts.works("photos")
    (mounts.here("music") / "file").write_text("x")
    assert connections(mounts.east) == 1
    os.kill(mounts.program("photos"), signal.SIGKILL)
    assert wait_until(lambda: mounts.status("photos")["reconnects"] == 1, 20)
    assert wait_until(lambda: mounts.is_up("music"), 20)
    assert mounts.works("photos") and mounts.works("music")
    assert connections(mounts.east) == 1
    mounts.west.culvert("down")
    if master is not None:
        master.terminate()
        master.wait(10)


@pytest.mark.skipif(not IS_INSTALLED_FOR_ALL, reason="only root can run this Python")
def test_the_program_of_a_mount_may_run_as_a_user(mounts: Mounts) -> None:
    """With setuid, what reads from the network is not root."""
    shutil.chown(mounts.here("photos"), "nobody")
    key = mounts.sites.user_keys.key()
    mounts.declare("photos", 'options = ["setuid=nobody"]')
    text = mounts.west.links.read_text().replace(str(key), str(mounts.folder / "key"))
    shutil.copy(key, mounts.folder / "key")
    shutil.chown(mounts.folder / "key", "nobody")
    for path in (mounts.folder, mounts.folder / "here"):
        path.chmod(0o711)
    mounts.west.links.write_text(text)
    mounts.up()
    status = Path(f"/proc/{mounts.program('photos')}/status").read_text()
    assert "\nUid:\t65534\t65534\t" in status
    assert "user_id=65534" in mount_line(mounts.here("photos"))
