"""The file that has a display's cookie: the user's own with what it holds, or one of the session's.

Whoever wants to break it is the user, a crashed xauth, a full disk, or twenty sessions at once.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.server import programs, xauthority_files
from appliance.server.xauthority_files import LOCK_SECONDS, STALE_SECONDS, TEMPORARY, Display
from appliance.wire.x11 import (
    COOKIE_PROTOCOL,
    FAMILY_INTERNET,
    FAMILY_LOCAL,
    XauthorityEntry,
    xauthority_entries,
)
from tests.netns import wait_until
from tests.peers import ROOT, Account, find_program

pytestmark = pytest.mark.xdist_group("xauthority")  # they look for what is left in /tmp

OTHERS = XauthorityEntry(FAMILY_LOCAL, b"board", b"0", COOKIE_PROTOCOL, b"o" * 16).encode()


def display(number: int = 10, *, is_local: bool = True, host: bytes = b"board") -> Display:
    cookie = secrets.token_hex(16).encode()
    token = secrets.token_hex(8).encode()
    return Display(number, 0, host, is_local, COOKIE_PROTOCOL, cookie, token)


class Home:
    """A user's home, and a runtime directory beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.runtime = folder / "run"
        self.path.mkdir()
        self.runtime.mkdir(mode=0o700)
        self.file = self.path / ".Xauthority"
        self.environment = {b"HOME": bytes(self.path), b"XDG_RUNTIME_DIR": bytes(self.runtime)}

    def add(self, what: Display) -> Path:
        return Path(os.fsdecode(xauthority_files.add(what, self.environment)))

    def remove(self, what: Display) -> None:
        xauthority_files.remove(what, self.environment)

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    yield Home(tmp_path)
    assert not list(Path("/tmp").glob("culvert-xauthority-*")), "a folder stays behind"


def encoded(what: Display) -> bytes:
    return b"".join(entry.encode() for entry in what.entries())


def own_file(home: Home, what: Display) -> Path:
    return home.runtime / f"culvert-xauthority-{what.number}"


# The user's file


def test_a_file_is_made_for_the_user_alone_and_goes_with_its_last_cookie(home: Home) -> None:
    one, two = display(10), display(11)
    assert home.add(one) == home.file
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    home.add(two)
    home.remove(one)
    assert home.file.read_bytes() == encoded(two)
    home.remove(two)
    assert home.names == []


def test_what_the_file_held_is_there_as_it_was(home: Home) -> None:
    odd = XauthorityEntry(4711, b"\xff\n", b"x", b"", b"").encode()
    home.file.write_bytes(OTHERS + odd)
    one = display()
    home.add(one)
    assert home.file.read_bytes() == encoded(one) + OTHERS + odd
    home.remove(one)
    assert home.file.read_bytes() == OTHERS + odd
    assert home.names == [".Xauthority"]


def test_xauth_finds_the_cookie_for_the_display(home: Home) -> None:
    one = display(host=os.fsencode(os.uname().nodename))
    home.add(one)
    done = subprocess.run(
        [find_program("xauth"), "-f", home.file, "list", "localhost:10"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[2] == one.cookie.decode(), done
    assert one.name == b"localhost:10.0"


def test_a_display_for_every_address_is_found_by_this_machines_name(home: Home) -> None:
    one = display(is_local=False, host=b"localhost")
    home.add(one)
    entries = xauthority_entries(home.file.read_bytes())
    assert one.name == b"localhost:10.0"
    assert (entries[0].family, entries[0].address) == (FAMILY_LOCAL, b"localhost")
    assert (FAMILY_INTERNET, bytes([127, 0, 0, 1])) in {(e.family, e.address) for e in entries}


def test_a_name_that_nobody_knows_has_an_entry_all_the_same() -> None:
    assert len(display(is_local=False, host=b"no such name.invalid").entries()) == 1


def test_xauthority_names_the_file_and_a_relative_name_is_one_of_the_home(home: Home) -> None:
    for given, path in ((b"other", home.path / "other"), (bytes(home.path / "a/b"), None)):
        home.environment[b"XAUTHORITY"] = given
        one = display()
        if path is None:
            (home.path / "a").mkdir()
            path = home.path / "a/b"
        assert home.add(one) == path
        home.remove(one)
        assert not path.exists()


def test_a_later_sessions_cookie_of_the_same_display_is_kept(home: Home) -> None:
    old, new = display(), display()
    home.add(old)
    home.add(new)
    home.remove(old)
    assert home.file.read_bytes() == encoded(new)


# Files that are no plain ones


def test_a_symbolic_link_stays_one(home: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere/authority"
    target.write_bytes(OTHERS)
    home.file.symlink_to(target)
    one = display()
    assert home.add(one) == home.file
    assert home.file.is_symlink()
    assert target.read_bytes() == encoded(one) + OTHERS
    home.remove(one)
    assert target.read_bytes() == OTHERS
    assert os.listdir(target.parent) == ["authority"]


def test_what_stands_under_another_name_as_well_is_not_written_to(home: Home) -> None:
    """A hard link may lead to a file that is not the user's."""
    other = home.path / "other"
    other.write_bytes(OTHERS)
    os.link(other, home.file)
    home.add(one := display())
    assert other.read_bytes() == OTHERS
    assert home.file.read_bytes() == encoded(one) + OTHERS


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 30)


def make_broken(path: Path) -> None:
    path.write_bytes(OTHERS + b"\0")


@pytest.mark.parametrize(
    "make", [make_fifo, make_folder, make_loop, make_device, make_large, make_broken]
)
def test_a_file_that_is_no_xauthority_stays_and_the_session_has_its_own(
    home: Home, make: Callable[[Path], None]
) -> None:
    make(home.file)
    before = os.lstat(home.file)
    one = display()
    begun = time.monotonic()
    path = home.add(one)
    assert time.monotonic() - begun < LOCK_SECONDS
    assert path == own_file(home, one)
    assert path.read_bytes() == encoded(one)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    home.remove(one)
    assert os.lstat(home.file) == before
    assert home.names == [".Xauthority"]
    assert not list(home.runtime.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_an_xauth_left_half_written_is_not_in_the_way(home: Home, kind: str) -> None:
    new, victim = home.path / ".Xauthority-n", home.path / "victim"
    victim.write_text("precious")
    if kind == "file":
        new.write_text("half")
    elif kind == "link":
        new.symlink_to(victim)
    else:
        new.mkdir()
    one = display()
    path = home.add(one)
    assert (path == home.file) == (kind != "folder")
    assert victim.read_text() == "precious"
    home.remove(one)


# Places that are no use


def test_a_runtime_directory_that_others_may_read_or_own_is_not_used(home: Home) -> None:
    make_broken(home.file)
    for spoil in (
        lambda: home.runtime.chmod(0o750),
        lambda: home.environment.update({b"XDG_RUNTIME_DIR": b"/tmp"}),
        lambda: home.environment.update({b"XDG_RUNTIME_DIR": b"run"}),
        lambda: home.environment.pop(b"XDG_RUNTIME_DIR"),
    ):
        spoil()
        one = display()
        path = home.add(one)
        if path.parent.parent != Path("/tmp"):
            assert path.parent == Path(f"/run/user/{os.geteuid()}")
        else:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.read_bytes() == encoded(one)
        home.remove(one)
        assert not path.exists()


@pytest.fixture
def in_tmp(home: Home) -> Home:
    """A home whose session's own files are in /tmp."""
    if os.path.isdir(f"/run/user/{os.geteuid()}"):
        pytest.skip("this user has a runtime directory")
    make_broken(home.file)
    home.environment.pop(b"XDG_RUNTIME_DIR")
    return home


def temporary(name: bytes) -> Path:
    return Path(os.fsdecode(TEMPORARY + name))


def test_the_next_session_of_the_display_has_the_same_file(in_tmp: Home) -> None:
    """Shells that go on have its name; and what goes late does not take the new one along."""
    old, new = display(), display()
    path = in_tmp.add(old)
    assert path == temporary(b"%d" % os.geteuid()) / "culvert-xauthority-10"
    assert in_tmp.add(new) == path
    in_tmp.remove(old)
    assert path.read_bytes() == encoded(new)
    other = display(11)
    assert in_tmp.add(other).parent == path.parent
    in_tmp.remove(new)
    in_tmp.remove(other)
    assert not path.parent.exists()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["theirs", "open to others", "link", "file"])
def test_a_name_in_tmp_that_somebody_else_took_is_not_used(
    in_tmp: Home, account: Account, tmp_path: Path, kind: str
) -> None:
    taken, one = temporary(b"%d" % os.geteuid()), display()
    if kind == "link":
        (tmp_path / "private").mkdir(mode=0o700)
        taken.symlink_to(tmp_path / "private")
    elif kind == "file":
        taken.touch()
    else:
        taken.mkdir(mode=0o700 if kind == "theirs" else 0o755)
        if kind == "theirs":
            shutil.chown(taken, account.name)
    try:
        path = in_tmp.add(one)
        assert path.parent == temporary(one.token)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        in_tmp.remove(one)
        assert not path.parent.exists()
    finally:
        if kind in ("link", "file"):
            taken.unlink()
        else:
            taken.rmdir()


def test_where_nothing_can_be_written_the_reason_is_told(
    in_tmp: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: bytes, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(xauthority_files, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        in_tmp.add(display())


AS_USER = """
import os, sys
from appliance.server import xauthority_files
from appliance.server.xauthority_files import Display
what = Display(10, 0, b"board", True, b"MIT-MAGIC-COOKIE-1", b"00" * 16, b"token")
environment = {b"HOME": sys.argv[1].encode(), b"XDG_RUNTIME_DIR": sys.argv[2].encode()}
path = xauthority_files.add(what, environment)
print(path.decode(), len(open(path, "rb").read()))
xauthority_files.remove(what, environment)
try:
    print(*sorted(os.listdir(sys.argv[1])), sep=",")
except OSError:
    print("none")
print(*os.listdir(sys.argv[2]), sep=",")
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("prepare", "left"),
    [
        ("chmod 500 $H", ""),
        ("chown 0:0 $H", "none"),
        ("rmdir $H", "none"),
        ("mount -t tmpfs -o ro,mode=777 none $H", ""),
        # two pages: the directory's names take none, the file that fills it both
        ("mount -t tmpfs -o size=8k,mode=777 none $H; cat /dev/zero >$H/full 2>/dev/null", "full"),
        ("touch $H/.Xauthority; chmod 600 $H/.Xauthority", ".Xauthority"),
        ("touch $H/.Xauthority-c $H/.Xauthority-l", ".Xauthority-c,.Xauthority-l"),
    ],
    ids=["no-writing", "not-mine", "missing", "read-only", "full", "roots-file", "locked"],
)
def test_a_home_that_takes_no_file_does_not_stop_the_display(
    account: Account, prepare: str, left: str
) -> None:
    """In a mount namespace of its own, as the user."""
    place = Path("/run") / f"culvert-{secrets.token_hex(4)}"
    home, runtime = place / "home", place / "run"
    place.mkdir(mode=0o755)
    with contextlib.ExitStack() as stack:
        for folder in (home, runtime):
            folder.mkdir(mode=0o700)
            subprocess.run(["chown", account.name, folder], check=True)
        stack.callback(shutil.rmtree, place)
        script = f'H={home}; {prepare}; exec setpriv --reuid "$1" --regid 65534 --clear-groups "$@"'
        script = script.replace('"$@"', f'{sys.executable} -c "$2" {home} {runtime}')
        begun = time.monotonic()
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", account.name, AS_USER],
            capture_output=True, text=True, cwd=ROOT, timeout=30, check=False,
        )  # fmt: skip
        assert time.monotonic() - begun < 2 * LOCK_SECONDS + 5
        lines = done.stdout.split("\n")
        assert lines[0].split() == [f"{runtime}/culvert-xauthority-10", "51"], done.stderr
        assert lines[2] == ""
        assert lines[1] == left


# Locks


def test_a_lock_that_is_held_is_waited_for_and_not_longer_than_two_seconds(home: Home) -> None:
    for name in ("-c", "-l"):
        Path(f"{home.file}{name}").touch()
    one = display()
    begun = time.monotonic()
    path = home.add(one)
    assert LOCK_SECONDS <= time.monotonic() - begun < LOCK_SECONDS + 1
    assert path == own_file(home, one)
    assert home.names == [".Xauthority-c", ".Xauthority-l"]
    home.remove(one)


def test_a_lock_that_is_given_up_meanwhile_is_taken(home: Home) -> None:
    names = [Path(f"{home.file}{name}") for name in ("-c", "-l")]
    names[0].touch()
    os.link(*names)

    def release() -> None:
        for name in names:  # xauth's order
            name.unlink()

    timer = threading.Timer(0.5, release)
    timer.start()
    assert home.add(display()) == home.file
    timer.join()
    assert home.names == [".Xauthority"]


@pytest.mark.parametrize("left", [("-c", "-l"), ("-c",), ("-l",)])
def test_the_lock_of_an_xauth_that_died_is_broken(
    home: Home, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    for name in left:
        Path(f"{home.file}{name}").touch()
    later = time.time() + STALE_SECONDS + 5
    # what this process makes now would be old as well, but is under lock for a moment only
    monkeypatch.setattr(time, "time", lambda: later)
    assert home.add(display()) == home.file
    assert home.names == [".Xauthority"]


@pytest.mark.parametrize("elsewhere", ["is breaking it", "has broken and taken it"])
def test_a_stale_lock_that_somebody_else_breaks_is_left_to_them(
    home: Home, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    """A second one would remove the lock that the first has taken by then."""
    lock = Path(f"{home.file}-c")
    lock.touch()
    later = time.time() + STALE_SECONDS + 5
    monkeypatch.setattr(time, "time", lambda: later)
    if elsewhere == "is breaking it":
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            xauthority_files._remove_stale(bytes(lock))
            assert lock.exists()
        xauthority_files._remove_stale(bytes(lock))
        assert not lock.exists()
        return

    def others_turn(*_: object) -> None:
        lock.unlink()
        lock.write_text("theirs")

    monkeypatch.setattr(fcntl, "flock", others_turn)
    xauthority_files._remove_stale(bytes(lock))
    assert lock.read_text() == "theirs"


def test_a_file_system_without_hard_links_leaves_no_half_lock(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # link(2), on vfat

    monkeypatch.setattr(os, "link", refuses)
    one = display()
    assert home.add(one) == own_file(home, one)
    assert home.names == []


def test_a_client_that_hangs_up_leaves_no_half_lock(home: Home) -> None:
    """Its terminal's end is a SIGHUP for the process that is waiting for the lock."""
    Path(f"{home.file}-l").touch()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            programs._store_cookie(display(), home.environment)
        finally:
            os._exit(0)
    assert wait_until(Path(f"{home.file}-c").exists, 5)
    os.kill(pid, signal.SIGHUP)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    assert home.names == [".Xauthority-l"]


def run_at_once(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in so many processes, which begin together."""
    gate_read, gate_write = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(gate_write)
                os.read(gate_read, 1)
                work(number)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(gate_read)
    os.close(gate_write)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


@pytest.mark.parametrize("stale", [False, True])
def test_twenty_writers_at_once_lose_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    monkeypatch.setattr(xauthority_files, "LOCK_SECONDS", 30.0)  # on a slow machine, too
    home.file.write_bytes(OTHERS)
    if stale:
        for name in ("-c", "-l"):
            Path(f"{home.file}{name}").touch()
        # by this clock the lock is stale, and those of the next two seconds are not
        ahead = STALE_SECONDS + 0.5 - 2.5
        time.sleep(2.5)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + ahead)
    displays = [display(10 + number) for number in range(20)]
    run_at_once(20, lambda number: _add(home, displays[number]))
    found = xauthority_entries(home.file.read_bytes())
    assert {entry.encode() for entry in found} == {OTHERS, *map(encoded, displays)}
    run_at_once(20, lambda number: home.remove(displays[number]))
    assert home.file.read_bytes() == OTHERS
    assert home.names == [".Xauthority"]


def _add(home: Home, what: Display) -> None:
    assert home.add(what) == home.file


def test_xauth_itself_may_write_meanwhile(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xauthority_files, "LOCK_SECONDS", 30.0)

    def add(number: int) -> None:
        if number % 4:
            _add(home, display(number))
            return
        subprocess.run(
            [find_program("xauth"), "-q", "-f", home.file],
            input=f"add board/unix:{number} . 00\n",
            text=True,
            check=True,
            capture_output=True,
        )

    run_at_once(12, add)
    numbers = {entry.number for entry in xauthority_entries(home.file.read_bytes())}
    assert numbers == {b"%d" % number for number in range(12)}


def test_readers_never_see_half_a_file(home: Home) -> None:
    home.file.write_bytes(OTHERS)
    over = threading.Event()
    seen: set[int] = set()

    def look() -> None:
        while not over.is_set():
            seen.add(len(xauthority_entries(home.file.read_bytes())))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(50):
        one = display()
        home.add(one)
        home.remove(one)
    over.set()
    reader.join()
    assert seen <= {1, 2}
