"""A mount whose link is cut, or whose server stands still, at every kind of request.

What a program does must come out as in a directory of this machine, which two processes show as in
test_mount_model.py: the link is cut before the server gets a request, or before its answer is back.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.mounts import Link, Mounter, Process, lossy
from tests.mounts import Mount, mount_line, synchronize
from tests.netns import wait_until
from tests.peers import find_program, private_folder

KINDS = ("culvert", "openssh")
MODES = {"safe": (), "write-behind": ("write_behind",)}
WHENS = ("before", "after")
NAMES = 600  # of a long directory
PATIENCE = 5  # seconds until the server has what was written behind

_NEW, _MADE = os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL
_LOG = os.O_WRONLY | os.O_APPEND
_OPEN_A = ("open", 0, "a", os.O_RDWR, 0)
_READ_A = ("open", 0, "a", os.O_RDONLY, 0)
_RENAME = ("posix-rename", "rename")
Operation = tuple[Any, ...]


@dataclass(slots=True)
class Act:
    """Operations, and the requests of the server's at one of which the link is cut."""

    requests: tuple[str, ...]
    operations: list[Operation]
    cut_at: int = 0  # the operation before which that begins
    only_culvert: bool = False


ACTS = {
    "lookup": Act(("lstat", "opendir"), [("lstat", "a")]),
    "lookup of nothing": Act(("lstat", "opendir"), [("lstat", "none")]),
    "listing": Act(("readdir",), [("listdir", "many")]),
    "listing begins": Act(("opendir",), [("listdir", "many")]),
    "open to read": Act(
        ("open", "read-file"), [("open", 0, "a", os.O_RDONLY, 0), ("read", 0, 100)]
    ),
    "open to write": Act(("open",), [_OPEN_A, ("read", 0, 100)]),
    "truncating open": Act(("open",), [("open", 0, "a", os.O_RDWR | os.O_TRUNC, 0), ("fstat", 0)]),
    "create": Act(("open",), [("open", 0, "new", _NEW, 0o640), ("write", 0, 1, 5000)]),
    "exclusive create": Act(("open",), [("open", 0, "new", _MADE, 0o640), ("write", 0, 1, 5000)]),
    "read": Act(("read",), [("open", 0, "long", os.O_RDONLY, 0), ("pread", 0, 70_000, 700_000)], 1),
    "read on": Act(("read",), [("open", 0, "long", os.O_RDWR, 0), *[("read", 0, 70_000)] * 10], 1),
    "write": Act(
        ("write",),
        [_OPEN_A, *(("write", 0, n, 70_000) for n in range(5))],
        2,
    ),
    "writes after which it is read": Act(
        ("write",),
        [
            _OPEN_A,
            ("pwrite", 0, 1, 70_000, 5),
            ("pread", 0, 70_000, 0),
            ("fstat", 0),
        ],
        1,
    ),
    "append": Act(
        ("write",),
        [("open", 0, "log", _LOG, 0), *(("write", 0, n, 50) for n in range(9)), ("fsync", 0)],
        4,
    ),
    "append much": Act(
        ("write",),
        [("open", 0, "log", _LOG, 0), *(("write", 0, n, 140_000) for n in range(5)), ("fsync", 0)],
        1,
    ),
    "flush": Act(
        ("fstat", "lstat"), [_OPEN_A, ("write", 0, 1, 140_000), ("close", 0), ("lstat", "a")], 2
    ),
    "fsync": Act(("fsync",), [_OPEN_A, ("write", 0, 1, 50), ("fsync", 0)], 2),
    "release": Act(
        ("close",), [("open", 0, "long", os.O_RDWR, 0), ("close", 0), ("lstat", "a")], 1
    ),
    "rename": Act(_RENAME, [("rename", "a", "new")]),
    "rename over": Act(_RENAME, [("rename", "a", "b"), ("lstat", "b")]),
    "rename of what is open": Act(
        _RENAME,
        [
            _OPEN_A,
            ("write", 0, 1, 9),
            ("rename", "a", "b"),
            ("write", 0, 2, 9),
        ],
        2,
    ),
    "unlink": Act(("remove",), [("unlink", "a")]),
    "mkdir": Act(("mkdir",), [("mkdir", "new", 0o750), ("listdir", "new")]),
    "rmdir": Act(("rmdir",), [("rmdir", "d/e")]),
    "symlink": Act(("symlink",), [("symlink", "a", "new"), ("readlink", "new")]),
    "readlink": Act(("readlink",), [("readlink", "l")]),
    "link": Act(("hardlink",), [("link", "a", "new")]),
    "chmod": Act(("setstat",), [("chmod", "a", 0o600), ("lstat", "a")]),
    "utimens": Act(("setstat",), [("utimens", "a", 1_234_567_890), ("lstat", "a")]),
    "truncate": Act(("setstat",), [("truncate", "a", 99), ("lstat", "a")]),
    "ftruncate": Act(
        ("fsetstat",),
        [
            _OPEN_A,
            ("write", 0, 1, 70_000),
            ("ftruncate", 0, 99),
            ("write", 0, 2, 9),
        ],
        2,
    ),
    "change of a new file": Act(
        ("fsetstat",),
        [
            ("open", 0, "new", _NEW, 0o640),
            ("write", 0, 1, 5000),
            ("fchmod", 0, 0o600),
            ("futimens", 0, 1_234_567_890),
        ],
        2,
    ),
    "change of a new file, written after": Act(
        ("write",),
        [
            ("open", 0, "new", _NEW, 0o640),
            ("write", 0, 1, 5000),
            ("fchmod", 0, 0o600),
            ("futimens", 0, 1_234_567_890),
        ],
        1,
    ),
    "copy": Act(
        ("copy-data",),
        [
            ("open", 0, "long", os.O_RDONLY, 0),
            ("open", 1, "new", _NEW, 0o644),
            ("copy_range", 0, 1, 1_000_000, 0, 0),
        ],
        2,
    ),
    "statfs": Act(("statvfs",), [("statvfs", ".")]),
    "xattr is set": Act(
        ("set-xattr",),
        [("setxattr", "a", "user.one", "x", 0), ("getxattr", "a", "user.one")],
        0,
        True,
    ),
    "xattr is made": Act(("set-xattr",), [("setxattr", "a", "user.one", "x", 1)], 0, True),
    "xattr is read": Act(("get-xattr",), [("getxattr", "a", "user.one")], 0, True),
    "xattrs are listed": Act(("list-xattrs",), [("listxattr", "a")], 0, True),
    "xattr is removed": Act(
        ("remove-xattr",),
        [("setxattr", "a", "user.one", "x", 0), ("removexattr", "a", "user.one")],
        1,
        True,
    ),
    "lock": Act(("lock",), [_OPEN_A, ("lockf", 0, 1, 0), ("write", 0, 1, 9)], 1, True),
    "unlock": Act(("lock",), [_OPEN_A, ("lockf", 0, 1, 0), ("lockf", 0, 2, 0)], 2, True),
    "hole": Act(("extents",), [("open", 0, "b", os.O_RDWR, 0), ("seek", 0, 0, 4)], 1, True),
}


# What is done behind the programs' backs with write_behind, once a file was made there.
_SEQUENCE: list[Operation] = [
    ("mkdir", "n", 0o755),
    ("open", 0, "n/one", _NEW, 0o644),
    ("close", 0),
    ("open", 0, "n/two", _MADE, 0o640),
    ("write", 0, 1, 5000),
    ("write", 0, 2, 140_000),
    ("fchmod", 0, 0o600),
    ("close", 0),
    ("mkdir", "n/sub", 0o750),
    ("symlink", "two", "n/link"),
    ("open", 0, "n/sub/file", _NEW, 0o644),
    ("write", 0, 3, 100),
    ("utimens", "n/sub/file", 1_234_567_890),
    ("close", 0),
    ("chmod", "n/two", 0o644),
    ("rename", "n/two", "n/three"),
    ("rename", "n/sub", "n/below"),
    ("unlink", "n/one"),
    ("open", 0, "n/one", _NEW, 0o644),
    ("close", 0),
]
_SEQUENCE_REQUESTS: tuple[str, ...] = (
    "open",
    "write",
    "fsetstat",
    "mkdir",
    "symlink",
    "setstat",
    "fstat",
    "close",
)
_SEQUENCE_REQUESTS += ("lstat", "rename", "posix-rename", "remove")
SEQUENCES = {f"sequence to {name}": Act((name,), _SEQUENCE, 3) for name in _SEQUENCE_REQUESTS}
ALL = ACTS | SEQUENCES
# The others are the same with write_behind.
WRITE_BEHIND: tuple[str, ...] = (
    "create",
    "exclusive create",
    "write",
    "append much",
    "flush",
    "fsync",
    "rename over",
)
WRITE_BEHIND += ("unlink", "chmod", "utimens", "ftruncate", "change of a new file", "copy")


def _names(kind: str, mode: str) -> list[str]:
    """The acts that are tried with a server of this kind."""
    return [
        name
        for name, act in ALL.items()
        if (name in ACTS if mode == "safe" else name in WRITE_BEHIND or name in SEQUENCES)
        and (kind == "culvert" or not act.only_culvert)
    ]


def _cuts() -> Iterator[Any]:
    for pair in ((kind, mode) for kind in KINDS for mode in MODES):
        group = pytest.mark.xdist_group("-".join(("lost", *pair)))
        for name in _names(*pair):
            for when in WHENS if pair[0] == "culvert" else WHENS[1:]:
                yield pytest.param(pair, name, when, id="-".join((*pair, name, when)), marks=group)


class Pair:
    """A mount over a link, a directory, and a process in each."""

    def __init__(
        self, mount: Mount, link: Link, plain: Path, processes: tuple[Process, Process, Process]
    ) -> None:
        self.mount = mount
        self.link = link
        self._plain = plain
        self.mounted, self._local, self.behind = processes

    def fill(self, names: list[str]) -> None:
        """Make directories on both sides, before the mount has seen any."""
        for process, top in ((self._local, self._plain), (self.behind, self.mount.behind)):
            for name in names:
                folder = top / name
                process.ask("fill", str(folder))
                (folder / "log").write_bytes(b"begin\n")
                (folder / "long").write_bytes(bytes(range(256)) * 3000)
                (folder / "many").mkdir()
                for number in range(NAMES if "listing" in name else 0):
                    (folder / "many" / str(number)).touch()
                for path in (folder / "log", folder / "long", folder / "many"):
                    os.chmod(path, 0o777)

    def enter(self, name: str) -> None:
        """Have the processes in a directory."""
        for process, top in (
            (self._local, self._plain),
            (self.behind, self.mount.behind),
            (self.mounted, self.mount.place),
        ):
            assert process.ask("enter", str(top / name)) == {"done": None}

    def step(self, operation: Operation) -> None:
        got, wanted = self.mounted.ask(*operation), self._local.ask(*operation)
        for answer in (got, wanted):
            if isinstance(answer.get("done"), dict):  # what only our server tells
                answer["done"].pop("links", None)
                answer["done"].pop("has_blocks", None)
        assert got == wanted, operation

    def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = self.behind.ask("tree")["done"]
        return found

    def settled(self, name: str) -> None:
        """Close everything, and compare the trees."""
        self.step(("close_all",))
        synchronize(self.mount.place / name)
        wanted = self._local.ask("tree")["done"]
        found: dict[str, Any] = {}

        def is_alike() -> bool:
            nonlocal found
            found = self.tree()
            return bool(found == wanted)

        if not wait_until(is_alike, PATIENCE):
            different = {path for path in wanted | found if wanted.get(path) != found.get(path)}
            assert {path: found.get(path) for path in different} == {
                path: wanted.get(path) for path in different
            }

    def leave(self) -> None:
        """Have them elsewhere."""
        for process in (self.mounted, self._local, self.behind):
            process.ask("close_all")
            process.ask("enter", "/")


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, mounter: Mounter) -> Iterator[Pair]:
    kind, mode = request.param
    with _pair(kind, mode, mounter) as pair:
        yield pair


@contextlib.contextmanager
def _pair(kind: str, mode: str, mounter: Mounter) -> Iterator[Pair]:
    account = mounter.login.account
    with (
        private_folder("plain") as plain,
        lossy(mounter, kind, MODES[mode]) as (mount, link),
        Process(account) as mounted,
        Process(account) as local,
        Process(account) as behind,
    ):
        os.chmod(plain, 0o777)
        for process in (mounted, local, behind):
            process.ask("keep", 0o700)
        pair = Pair(mount, link, plain, (mounted, local, behind))
        pair.fill([f"{name} {when}" for name in _names(kind, mode) for when in WHENS])
        yield pair


@pytest.mark.parametrize(("pair", "name", "when"), [*_cuts()], indirect=["pair"], scope="module")
def test_a_cut_is_not_noticed(pair: Pair, name: str, when: str) -> None:
    act = ALL[name]
    folder = f"{name} {when}"
    pair.enter(folder)
    try:
        for number, operation in enumerate(act.operations):
            if number == act.cut_at:
                pair.link.rule(when, *act.requests)
            pair.step(operation)
        pair.settled(folder)
        assert name in SEQUENCES or wait_until(lambda: pair.link.has_happened)
    finally:
        pair.link.go_on()
        pair.leave()


# A server that stands still

TIMEOUT = 2  # seconds, of the mounts below
BLOCKED: dict[str, tuple[str, str]] = {  # what is done before the server stands still, and then
    "lookup": ("", "os.lstat('none')"),
    "listing": ("", "os.listdir('d')"),
    "open": ("", "os.open('b', os.O_RDWR)"),
    "create": ("", "os.open('new', os.O_RDWR | os.O_CREAT)"),
    "read": ("f = os.open('long', os.O_RDWR)", "os.pread(f, 100, 700_000)"),
    "fsync": ("f = os.open('a', os.O_RDWR)", "os.write(f, b'x'); os.fsync(f)"),
    "close": ("f = os.open('a', os.O_RDWR)", "os.write(f, b'x'); os.close(f)"),
    "written": ("f = os.open('a', os.O_RDWR)", "os.write(f, b'x'); time.sleep(60)"),
    "write": ("f = os.open('a', os.O_RDWR)", "[os.write(f, bytes(1 << 20)) for _ in range(99)]"),
    "rename": ("", "os.rename('a', 'c')"),
    "unlink": ("", "os.unlink('a')"),
    "chmod": ("", "os.chmod('a', 0o600)"),
    "truncate": ("", "os.truncate('a', 5)"),
    "mkdir": ("", "os.mkdir('new')"),
    "lock": ("f = os.open('a', os.O_RDWR)", "fcntl.lockf(f, fcntl.LOCK_EX)"),
}
_SCRIPT = """
import fcntl, os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
{}
print(flush=True)
input()
{}
"""


@pytest.fixture
def still(mounter: Mounter) -> Iterator[tuple[Mount, Link]]:
    with lossy(mounter, "culvert", [f"timeout={TIMEOUT}", "dcache_timeout=1"]) as (mount, link):
        _fill(mount)
        yield mount, link


def _fill(mount: Mount) -> None:
    """Make files, and the same in a directory for each of the processes.

    The kernel lets one at a time change a directory.
    """
    mount.behind.chmod(0o777)
    for folder in (mount.behind, *(mount.behind / name for name in BLOCKED)):
        folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            (folder / name).write_bytes(b"content")
        (folder / "long").write_bytes(bytes(1 << 20))
        (folder / "d").mkdir()
    for path in mount.behind.rglob("*"):
        path.chmod(0o777)


def _comes_back(mount: Mount) -> bool:
    def answers() -> bool:
        with contextlib.suppress(OSError):
            return (mount.place / "b").read_bytes() == b"content"
        return False

    return wait_until(answers, 20)


@contextlib.contextmanager
def _blocked(mount: Mount, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does the second thing of a table's row once it reads a line."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _SCRIPT.format(*BLOCKED[name])],
        cwd=mount.place / name,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def _go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_whoever_waits_for_a_server_that_stands_still_can_be_ended(
    number: signal.Signals, still: tuple[Mount, Link]
) -> None:
    mount, link = still
    with contextlib.ExitStack() as up:
        processes = {name: up.enter_context(_blocked(mount, name)) for name in BLOCKED}
        link.stand_still()
        for process in processes.values():
            _go(process)
        time.sleep(0.3)
        for process in processes.values():
            process.send_signal(number)
        wait_until(lambda: all(each.poll() is not None for each in processes.values()), 1)
        left = [name for name, process in processes.items() if process.poll() is None]
        link.go_on()
        assert not left


def test_what_a_server_does_not_answer_fails_in_time(still: tuple[Mount, Link]) -> None:
    """But for what is known, and the size of the file system."""
    mount, link = still
    size = os.statvfs(mount.place).f_blocks
    with contextlib.ExitStack() as up:
        processes = {
            name: up.enter_context(_blocked(mount, name))
            for name in BLOCKED
            if name not in ("written", "lock")
        }
        link.stand_still()
        for process in processes.values():
            _go(process)
        began = time.monotonic()
        assert os.statvfs(mount.place).f_blocks == size
        assert time.monotonic() - began < 2
        wait_until(lambda: all(each.poll() is not None for each in processes.values()), 4 * TIMEOUT)
        assert {name: each.poll() for name, each in processes.items()} == dict.fromkeys(
            processes, 1
        )
        link.go_on()
    assert _comes_back(mount)


@pytest.mark.parametrize("way", ["fusermount3 -uz", "umount -l", "SIGTERM"])
def test_unmounting_works_while_a_server_stands_still(way: str, still: tuple[Mount, Link]) -> None:
    mount, link = still
    link.stand_still()
    began = time.monotonic()
    if way == "SIGTERM":
        mount.process.terminate()
    else:
        program, option = way.split()
        subprocess.run([find_program(program), option, mount.place], check=True, timeout=5)
    assert wait_until(lambda: not mount_line(mount.place), 2)
    assert wait_until(lambda: not mount.processes(), 3)
    assert time.monotonic() - began < 4


def test_what_is_known_is_told_while_the_link_is_down(still: tuple[Mount, Link]) -> None:
    mount, link = still
    size = os.statvfs(mount.place).f_blocks
    assert sorted(os.listdir(mount.place)) == sorted(["a", "b", "d", "long", *BLOCKED])
    os.stat(mount.place / "a")
    link.cut(stays_down=True)
    time.sleep(1.2)  # what the kernel knows is too old
    began = time.monotonic()
    assert os.stat(mount.place / "a").st_size == 7
    assert os.statvfs(mount.place).f_blocks == size
    assert time.monotonic() - began < 0.5
    with pytest.raises(TimeoutError):
        os.listxattr(mount.place / "a")
    link.go_on()
    assert _comes_back(mount)


def test_a_lock_of_a_file_that_is_closed_while_the_link_is_down(still: tuple[Mount, Link]) -> None:
    mount, link = still
    with open(mount.place / "a", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        link.cut(stays_down=True)
        time.sleep(0.1)
    time.sleep(TIMEOUT + 0.5)
    link.go_on()
    assert _comes_back(mount)


# What is another file by then


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_file_that_was_replaced_is_stale(kind: str, mounter: Mounter) -> None:
    with lossy(mounter, kind, [f"timeout={TIMEOUT}"]) as (mount, link):
        _fill(mount)
        with (
            open(mount.place / "a", "r+b", buffering=0) as replaced,
            open(mount.place / "long", "r+b", buffering=0) as same,
        ):
            link.cut(stays_down=True)
            (mount.behind / "new").write_bytes(b"another, longer one")
            (mount.behind / "new").chmod(0o777)
            (mount.behind / "new").rename(mount.behind / "a")
            link.go_on()
            with pytest.raises(OSError, match="Stale"):
                replaced.read()
            assert same.read(10) == bytes(10)
            assert same.write(b"more") == 4
        assert (mount.behind / "long").read_bytes()[10:14] == b"more"
        assert (mount.behind / "a").read_bytes() == b"another, longer one"
        assert (mount.place / "a").read_bytes() == b"another, longer one"


def test_what_a_server_told_does_not_hold_in_the_next_session(still: tuple[Mount, Link]) -> None:
    mount, link = still
    for _ in range(2):  # from the second time on, the server tells of changes
        os.listdir(mount.place)
        time.sleep(1.1)
    os.listdir(mount.place)
    assert os.stat(mount.place / "a").st_size == 7
    link.cut(stays_down=True)
    (mount.behind / "a").write_bytes(b"longer content")
    link.go_on()
    assert wait_until(lambda: os.stat(mount.place / "a").st_size == 14, 5)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_made_behind_a_cut_keeps_its_times(
    kind: str, when: str, mounter: Mounter
) -> None:
    with lossy(mounter, kind, ["write_behind"]) as (mount, link):
        link.rule(when, "fstat")
        path = mount.place / "file"
        path.write_text("text")
        shown = path.stat()
        assert wait_until(lambda: link.has_happened, PATIENCE)
        synchronize(mount.place)
        time.sleep(1.2)  # what the kernel knows is too old
        found, there = path.stat(), (mount.behind / "file").stat()
        assert (found.st_mtime_ns, found.st_ctime_ns) == (shown.st_mtime_ns, shown.st_ctime_ns)
        assert there.st_mtime_ns // 10**9 == shown.st_mtime_ns // 10**9


# A full disk


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_is_told(kind: str, mode: str, mounter: Mounter) -> None:
    with lossy(mounter, kind, MODES[mode]) as (mount, _):
        disk = mount.behind / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "none", disk], check=True)
        try:
            here = mount.place / "disk"
            (here / "first").touch()
            with pytest.raises(OSError, match="No space"):  # noqa: SIM117
                with open(here / "file", "wb") as file:
                    for _ in range(5):
                        file.write(bytes(1 << 20))
                        file.flush()
                    os.fsync(file.fileno())
            with pytest.raises(OSError, match="No space"):
                (here / "first").write_bytes(bytes(1 << 20))
                os.close(os.open(here / "first", os.O_RDWR))
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
