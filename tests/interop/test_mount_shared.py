"""A directory that changes at the server, or by other clients, while a program works with it."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.interop.mounts import Mounter, give
from tests.mounts import Mount, synchronize
from tests.netns import wait_until
from tests.peers import find_program, private_folder

KINDS = ("culvert", "openssh")
PATIENCE = 10  # seconds until a line of a log is seen


@pytest.fixture(scope="module", params=KINDS)
def clients(request: pytest.FixtureRequest, mounter: Mounter) -> Iterator[tuple[Mount, Mount]]:
    """Two mounts of one directory."""
    with private_folder("behind") as behind:
        give(behind, mounter.login.account)
        one = mounter.mount_of(behind, request.param)
        with one as here, mounter.mount_of(behind, request.param) as there:
            yield here, there


def test_a_client_sees_what_another_one_does(clients: tuple[Mount, Mount]) -> None:
    here, there = (mount.place for mount in clients)
    assert os.listdir(here) == os.listdir(there) == []  # both have a listing to be wrong about
    (here / "made").write_text("one")
    assert wait_until(lambda: os.listdir(there) == ["made"])
    assert (there / "made").read_text() == "one"
    (there / "made").rename(there / "moved")
    (there / "moved").write_text("longer")
    assert wait_until(lambda: os.listdir(here) == ["moved"])
    assert wait_until(lambda: (here / "moved").read_text() == "longer")
    (here / "moved").unlink()
    assert wait_until(lambda: not (there / "moved").exists())


def test_a_file_that_another_client_replaces_is_the_old_or_the_new_one(
    clients: tuple[Mount, Mount],
) -> None:
    here, there = (mount.place for mount in clients)
    old, new = b"old " * 100_000, b"newer " * 90_000
    (here / "file").write_bytes(old)
    assert wait_until((there / "file").exists)
    with open(there / "file", "rb") as opened:
        assert opened.read(5) == old[:5]
        (here / "next").write_bytes(new)
        (here / "next").rename(here / "file")
        assert opened.read() == old[5:]

    def is_new() -> bool:
        found = (there / "file").read_bytes()
        assert found in (old, new)
        return found == new

    assert wait_until(is_new)
    (here / "file").unlink()


COUNT = """
import fcntl, sys
for _ in range(40):
    with open(sys.argv[1], "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
        file.flush()
"""


@pytest.mark.parametrize("options", [(), ("write_behind",)], ids=["safe", "write-behind"])
def test_clients_count_together_under_a_lock(options: tuple[str, ...], mounter: Mounter) -> None:
    """Only with our own server: OpenSSH's knows no locks."""
    with private_folder("behind") as behind:
        give(behind, mounter.login.account)
        (behind / "number").write_text("0")
        give(behind / "number", mounter.login.account)
        first = mounter.mount_of(behind, "culvert", options)
        with first as one, mounter.mount_of(behind, "culvert", options) as two:
            counting = [
                subprocess.Popen([sys.executable, "-c", COUNT, mount.place / "number"])
                for mount in (one, two, one)
            ]
            assert [process.wait(60) for process in counting] == [0, 0, 0]
        assert (behind / "number").read_text() == "120"


@pytest.mark.parametrize("options", [(), ("write_behind",)], ids=["safe", "write-behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_tail_follows_a_log_that_grows_at_the_server(
    kind: str, options: tuple[str, ...], mounter: Mounter
) -> None:
    with mounter.mount(kind, options) as mount:
        log = mount.behind / "log"
        log.write_text("first\n")
        give(log, mounter.login.account)
        with subprocess.Popen(
            [find_program("tail"), "-f", mount.place / "log"], stdout=subprocess.PIPE
        ) as tail:
            try:
                for line in (b"first\n", *(b"line %d\n" % n for n in range(3)), b"x" * 9000):
                    if line != b"first\n":
                        with log.open("ab") as file:
                            file.write(line)
                    assert _read(tail, len(line)) == line
            finally:
                tail.kill()


def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    found = b""
    while len(found) < size and select.select([process.stdout], [], [], PATIENCE)[0]:
        data = os.read(process.stdout.fileno(), size - len(found))
        if not data:
            break
        found += data
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_of_a_change_stays_when_the_server_has_made_it(
    kind: str, mounter: Mounter
) -> None:
    """With write_behind it is shown before; tar and git would take another one for a change."""
    with mounter.mount(kind, ["write_behind", "dcache_timeout=1"]) as mount:
        paths = [mount.place / name for name in ("file", "folder", "link")]
        paths[0].write_text("text")
        paths[0].chmod(0o640)
        paths[1].mkdir()
        paths[2].symlink_to("file")
        shown = [path.lstat().st_ctime_ns for path in paths]
        synchronize(mount.place)
        assert (mount.behind / "file").read_text() == "text"
        time.sleep(1.2)  # the server may show seconds only, and the kernel asks again
        assert [path.lstat().st_ctime_ns for path in paths] == shown
        (mount.behind / "file").write_text("more text")  # which is another change
        assert wait_until(lambda: paths[0].lstat().st_ctime_ns != shown[0])


def test_the_times_of_a_directory_are_those_of_the_last_change_in_it(mounter: Mounter) -> None:
    with mounter.mount("culvert", ["write_behind"]) as mount:
        for number in range(300):
            (mount.place / str(number)).write_text("text")
            if number % 50 == 0:
                mount.place.stat()  # before the server has made them all
        synchronize(mount.place)
        assert mount.place.stat().st_ctime_ns == mount.behind.stat().st_ctime_ns
