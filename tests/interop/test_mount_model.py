"""A mount is compared with a directory of this machine, to which two processes do the same things.

What they do is made up at random, the same in each run; CULVERT_MOUNT_SEQUENCES=1000 tries that
many other sequences of each kind. One that fails is tried again with ever less in it, so that a
short one is told. What a mount cannot do alike stands in the tables, with the reason.
"""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.interop.mount_worker import STAMPS
from tests.interop.mounts import KINDS, Lost, Mounter, Process, give
from tests.mounts import Mount, synchronize
from tests.netns import wait_until
from tests.peers import Account, private_folder

MORE = int(os.environ.get("CULVERT_MOUNT_SEQUENCES", "0"))
SEQUENCES = MORE or 50
LENGTH = 60  # operations of a sequence
SHRINKING = 10  # seconds
# The options of a mount, and the seconds until the server must have what was closed
MODES: dict[str, tuple[Sequence[str], float]] = {
    "safe": ((), 0),
    "write-behind": (("write_behind",), 5),
}
Operation = tuple[int, tuple[Any, ...]]  # which process does it; its name and arguments
Answer = dict[str, Any]

# What some servers cannot: an errno that the mount may answer, upon which the directory stays
# as it is. The reasons stand beside the names.
REFUSALS = {
    "culvert": {},
    "openssh": {
        # there is no request for them
        "setxattr": {"ENOTSUP"},
        "getxattr": {"ENOTSUP"},
        "removexattr": {"ENOTSUP"},
        "listxattr": {"ENOTSUP"},
    },
}
REFUSALS["bare"] = REFUSALS["openssh"] | {
    "link": {"ENOTSUP", "EPERM"},  # it has no hardlink@openssh.com
    "rename": {
        "EEXIST",
        "EPERM",
        "EACCES",
        "EBUSY",
        "EIO",
    },  # nor posix-rename: no directory, not over any
    "utimens": {"ENOTSUP", "EPERM"},  # nor lsetstat: not those of a symlink
}
# Which errors of the operating system arrive as which, for a server's status has no errno:
# OpenSSH has EACCES, ENOENT and EBADMSG for several, and Failure for all others.
ERRORS = [
    ({"EPERM", "EACCES"}, {"EPERM", "EACCES"}),
    ({"ENOENT", "ENOTDIR", "ELOOP", "EBADF"}, {"ENOENT"}),
    ({"EINVAL", "ENAMETOOLONG"}, {"EBADMSG", "EIO", "EINVAL"}),
    (
        {"EEXIST", "ENOTEMPTY", "EISDIR", "ENOTDIR", "EINVAL", "ENXIO", "EXDEV", "ELOOP", "EFBIG"}
        | {"ENAMETOOLONG"},
        {"EPERM", "EIO"},
    ),
]
# What only our own server tells.
UNTOLD = {"links", "has_blocks"}
LEFT_OUT = {
    "culvert": set(),
    "openssh": {"link"},  # nobody tells which names are one file, so their caches differ
    "bare": set(),
}


# What is done


Choice = Callable[[Random], Any]

LONG = os.fsdecode(b"\xff\xfe" + b"n" * 253)
LATIN = os.fsdecode(b"d/caf\xe9")
SLOTS = (0, 1)


def _of(*values: Any) -> Choice:
    return lambda numbers: numbers.choice(values)


def _flags(numbers: Random) -> int:
    """What open(2) is told: mostly what makes a file that can be read and written."""
    if numbers.random() < 0.5:
        return os.O_RDWR | os.O_CREAT
    flags = numbers.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
    more = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_SYNC)
    for flag in numbers.sample(more, numbers.randrange(4)):
        flags |= flag
    return flags | (os.O_DIRECTORY if numbers.random() < 0.05 else 0)


_names = _of(
    *("a", "b", "d/a") * 4,
    *("d", "d/e", "d/e/b", "l", "d/l", LONG, LATIN, f"d/e/{LONG}") * 2,
    *("a/b", "nowhere/a", "x" * 256, "l/a"),
)
_sizes = _of(0, 1, 100, 4095, 4096, 5000, 70_000, 140_000)
_places = _of(0, 0, 1, 99, 4095, 4096, 4097, 65_535, 131_072, 300_000, 1_000_000)
_pages = _of(0, 0, 1, 2, 17, 32)
_seeds = _of(*range(256))
_file_modes = _of(0o600, 0o644, 0o644, 0o666, 0o755, 0o444, 0o200, 0o000, 0o4755)
_folder_modes = _of(0o700, 0o755, 0o755, 0o500, 0o1777)
_stamps = _of(1, 1_000_000_001, 1_234_567_890, STAMPS - 1)
_xattrs = _of("user.one", "user.one", "user.two", "user." + "n" * 250, "other.one")

# An operation's weight, its name, and its arguments; those of the second table have an open file.
ON_NAMES: Sequence[tuple[int, str, Sequence[Choice]]] = (
    (8, "stat", (_names,)),
    (5, "lstat", (_names,)),
    (4, "truncate", (_names, _places)),
    (3, "chmod", (_names, _file_modes)),
    (1, "chmod", (_of("d", "d/e"), _folder_modes)),
    (3, "utimens", (_names, _stamps)),
    (8, "rename", (_names, _names)),
    (5, "unlink", (_names,)),
    (3, "mkdir", (_names, _folder_modes)),
    (3, "rmdir", (_names,)),
    (3, "symlink", (_of("a", "d", "nowhere", "e/b", "l", LONG), _names)),
    (2, "readlink", (_names,)),
    (3, "link", (_names, _names)),
    (5, "listdir", (_of(".", "d", "d/e", "l"),)),
    (1, "statvfs", (_of(".", "a", "d"),)),
    (2, "setxattr", (_names, _xattrs, _of("", "x", "y" * 50), _of(0, 0, 1, 2))),
    (2, "getxattr", (_names, _xattrs)),
    (1, "removexattr", (_names, _xattrs)),
    (1, "listxattr", (_names,)),
)
ON_FILES: Sequence[tuple[int, str, Sequence[Choice]]] = (
    (4, "close", ()),
    (6, "read", (_sizes,)),
    (8, "pread", (_sizes, _places)),
    (6, "write", (_seeds, _sizes)),
    (8, "pwrite", (_seeds, _sizes, _places)),
    (5, "ftruncate", (_places,)),
    (2, "fsync", ()),
    (2, "fchmod", (_file_modes,)),
    (2, "futimens", (_stamps,)),
    (6, "fstat", ()),
    (3, "seek", (_places, _of(os.SEEK_DATA, os.SEEK_HOLE))),
    (3, "copy_range", (_of(*SLOTS), _sizes, _places, _places)),
    (4, "mmap_read", (_pages, _sizes)),
    (3, "mmap_write", (_pages, _sizes, _seeds)),
    (2, "flock", (_of(1, 2, 2, 8),)),  # shared, exclusive, unlock
    (2, "lockf", (_of(0, 1, 1, 2), _of(0, 0, 100))),  # read, write, unlock
)


def sequence(seed: int) -> list[Operation]:
    """Make up what the processes do."""
    numbers = random.Random(seed)
    opened: dict[int, set[int]] = {0: set(), 1: set()}
    operations: list[Operation] = []
    while len(operations) < LENGTH:
        who = numbers.choice((0, 1))
        if len(opened[who]) < numbers.choice((1, 1, 2)) or numbers.random() < 0.1:
            slot = numbers.choice(SLOTS)
            opened[who].add(slot)
            flags, mode = _flags(numbers), _file_modes(numbers)
            operations.append((who, ("open", slot, _names(numbers), flags, mode)))
            continue
        on_files = numbers.random() < 0.5
        table = ON_FILES if on_files else ON_NAMES
        _, name, choices = numbers.choices(table, [weight for weight, *_ in table])[0]
        words = tuple(choice(numbers) for choice in choices)
        if on_files:
            slot = numbers.choice(tuple(opened[who]))
            words = (slot, *words)
            if name == "close":
                opened[who].remove(slot)
        operations.append((who, (name, *words)))
    return operations


_NEW = os.O_RDWR | os.O_CREAT
# What was done when a mount was found to be wrong, in short; always tried
FOUND: Sequence[Sequence[Operation]] = (
    # pages are written where they belong, though the file is open for appending
    [
        (0, ("open", 0, "a", os.O_RDWR | os.O_APPEND, 0o644)),
        (0, ("mmap_write", 0, 1, 5000, 2)),
        (0, ("write", 0, 3, 100)),
        (0, ("mmap_write", 0, 0, 1, 4)),
    ],
    # an open file needs no name, and no permission any more
    [
        (1, ("open", 0, "b", os.O_RDONLY, 0)),
        (0, ("unlink", "b")),
        (1, ("fstat", 0)),
        (1, ("seek", 0, 0, os.SEEK_DATA)),
        (1, ("futimens", 0, 1)),
        (1, ("fsync", 0)),
        (1, ("read", 0, 5000)),
    ],
    [
        (1, ("open", 0, "b", os.O_RDONLY, 0)),
        (0, ("rename", "a", "b")),
        (1, ("fstat", 0)),
        (1, ("mmap_read", 0, 0, 5000)),
    ],
    [
        (0, ("open", 0, "d/a", os.O_RDONLY, 0)),
        (0, ("fchmod", 0, 0)),
        (0, ("read", 0, 100)),
        (1, ("open", 0, "d/a", os.O_RDONLY, 0)),
    ],
    # OpenSSH's server copies no data within a file
    [
        (0, ("open", 0, "a", _NEW, 0o644)),
        (0, ("open", 1, "a", _NEW, 0o644)),
        (0, ("copy_range", 0, 0, 4095, 0, 65_535)),
        (0, ("copy_range", 0, 1, 4096, 4097, 300_000)),
    ],
    # a name is too long, also for a mount that knows all names
    [
        (0, ("listdir", ".")),
        (0, ("lstat", "x" * 256)),
        (0, ("open", 0, "x" * 256, _NEW, 0o644)),
        (0, ("mkdir", "x" * 256, 0o755)),
    ],
    # blocks are counted anew after a write
    [
        (0, ("open", 0, "d/l", _NEW, 0o644)),
        (0, ("ftruncate", 0, 4096)),
        (0, ("fstat", 0)),
        (0, ("pwrite", 0, 39, 1, 99)),
        (0, ("fstat", 0)),
    ],
)


def shrink(
    operations: Sequence[Operation],
    run: Callable[[Sequence[Operation]], None],
    failure: AssertionError,
) -> AssertionError:
    """Leave out what a failure does not need, for as long as there is time; return the last."""
    end = time.monotonic() + SHRINKING
    size = len(operations) // 2
    while size:
        start = 0
        while start < len(operations) and time.monotonic() < end:
            fewer = [*operations[:start], *operations[start + size :]]
            try:
                run(fewer)
                start += size
            except Lost:
                raise
            except AssertionError as error:
                operations, failure = fewer, error
        size //= 2
    return failure


# How it is compared


def _comparable(kind: str, name: str, answer: Answer) -> Answer:
    """An answer without what this kind of server does not tell."""
    if name == "statvfs" and kind == "bare" and "done" in answer:
        return {"done": ...}  # which has no request for it
    if kind != "culvert" and isinstance(answer.get("done"), dict):
        told = {key: value for key, value in answer["done"].items() if key not in UNTOLD}
        return {"done": told}
    return answer


def agrees(kind: str, operation: tuple[Any, ...], wanted: Answer, got: Answer) -> bool:
    """Whether a mount's answer is as good as the directory's."""
    name = operation[0]
    if wanted.get("errno") == "EACCES" and got.get("errno") in ("ENOTDIR", "EISDIR", "EPERM"):
        return True  # the kernel asks for permission first only where that is its own decision
    if kind != "culvert" and any(
        wanted.get("errno") in errors and got.get("errno") in seen for errors, seen in ERRORS
    ):
        return True
    if "other.one" in operation and got == {"errno": "ENOTSUP"}:
        return "errno" in wanted  # which the mount knows without the server
    if kind != "culvert" and name == "seek" and "done" in got:
        return _may_be(operation, wanted, got["done"])
    return _comparable(kind, name, wanted) == _comparable(kind, name, got)


def _may_be(operation: tuple[Any, ...], wanted: Answer, got: int) -> bool:
    """Whether a search for data or holes is right of a server that tells of no holes."""
    _, _, offset, whence = operation
    if "done" not in wanted:
        return bool(whence == os.SEEK_DATA and got == offset)  # in the hole at the end
    found: int = wanted["done"]
    return offset <= got <= found if whence == os.SEEK_DATA else got >= found


def _shown(operation: tuple[Any, ...]) -> str:
    """An operation as text, long names in short."""
    return f"{operation[0]}({', '.join(map(_short, operation[1:]))})"


def _short(word: object) -> str:
    text = repr(word)
    return text if len(text) < 60 else f"{text[:20]}...{text[-2:]}"


def _differences(kind: str, wanted: Answer, found: Answer) -> list[str]:
    """Lines that tell how a tree differs from what it should be."""
    lines = []
    for path in sorted(wanted.keys() | found.keys()):
        want, got = ({"done": side.get(path, {})} for side in (wanted, found))
        if _comparable(kind, "tree", want) != _comparable(kind, "tree", got):
            lines.append(f"  {_short(path)} is {got['done']}, but should be {want['done']}")
    return lines


class Sides:
    """The same directory twice, each with two processes: below a mount, and not."""

    def __init__(
        self, kind: str, mount: Mount, plain: Path, account: Account, patience: float
    ) -> None:
        """``patience``: seconds until what was closed must be at the server."""
        self._kind = kind
        self._patience = patience
        self._mount = mount
        self._plain = plain
        self._number = 0
        with contextlib.ExitStack() as up:
            processes = [up.enter_context(Process(account)) for _ in range(5)]
            self._mounted, self._local = processes[:2], processes[2:4]
            self._behind = processes[4]
            for process in processes:
                process.ask("keep", 0o700 if patience else 0o500)
            self._up = up.pop_all()

    def close(self) -> None:
        self._up.close()

    def run(self, operations: Sequence[Operation]) -> None:
        """Do the operations on both sides, and compare everything."""
        self._number += 1
        folder = str(self._number)
        for process in (*self._mounted, *self._local):
            process.ask("close_all")  # of a sequence that has failed
        for process, top in ((self._mounted[0], self._mount.place), (self._local[0], self._plain)):
            assert process.ask("fill", str(top / folder)) == {"done": None}
        self._settle(folder)
        for processes, top in (
            (self._mounted, self._mount.place),
            (self._local, self._plain),
            ([self._behind], self._mount.behind),
        ):
            for process in processes:
                assert process.ask("enter", str(top / folder)) == {"done": None}
        done: list[str] = []
        try:
            for who, operation in operations:
                if operation[0] not in LEFT_OUT[self._kind]:
                    self._step(who, operation, done)
            for process in (*self._mounted, *self._local):
                if (closed := process.ask("close_all")) != {"done": None}:
                    raise AssertionError("\n".join([*done, f"  then close fails: {closed}"]))
            self._settle(folder)
            self._compare_trees(done)
        except Lost as lost:
            self._mount.kill()  # or nobody could end that process
            raise Lost("\n".join([f"{lost} after", *done])) from None
        for process in (*self._mounted, *self._local, self._behind):
            process.ask("enter", "/")
        for top in (self._mount.behind, self._plain):
            shutil.rmtree(top / folder)

    def _settle(self, folder: str) -> None:
        """Wait until the server has everything, where changes are written behind."""
        synchronize(self._mount.place / folder)

    def _step(self, who: int, operation: tuple[Any, ...], done: list[str]) -> None:
        got = self._mounted[who].ask(*operation)
        shown = f"  process {who}: {_shown(operation)}: {got}"
        if got.get("errno") in REFUSALS[self._kind].get(operation[0], ()):
            done.append(f"{shown} (refused)")
            return
        wanted = self._local[who].ask(*operation)
        done.append(shown)
        if not agrees(self._kind, operation, wanted, got):
            lines = ["the mount answers otherwise:", *done, f"  but a directory: {wanted}"]
            raise AssertionError("\n".join(lines))

    def _compare_trees(self, done: list[str]) -> None:
        wanted = self._local[0].ask("tree")["done"]
        for where, kind, process, patience in (
            ("at the server", "culvert", self._behind, self._patience),
            ("below the mount", self._kind, self._mounted[0], 0),
        ):
            differences: list[str] = []

            def is_alike(
                kind: str = kind, process: Process = process, found: list[str] = differences
            ) -> bool:
                found[:] = _differences(kind, wanted, process.ask("tree")["done"])
                return not found

            if not wait_until(is_alike, patience):
                raise AssertionError("\n".join([*done, f"then {where}:", *differences]))


@contextlib.contextmanager
def _sides(kind: str, mode: str, mounter: Mounter) -> Iterator[Sides]:
    account = mounter.login.account
    options, patience = MODES[mode]
    with private_folder("plain") as plain, mounter.mount(kind, options) as mount:
        give(plain, account)
        sides = Sides(kind, mount, plain, account, patience)
        try:
            yield sides
        finally:
            sides.close()


@pytest.mark.timeout(0 if MORE else 120)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_is_like_a_directory(kind: str, mode: str, mounter: Mounter) -> None:
    with _sides(kind, mode, mounter) as sides:
        for operations in (*FOUND, *(sequence(MORE + seed) for seed in range(SEQUENCES))):
            try:
                sides.run(operations)
            except Lost:
                raise
            except AssertionError as error:
                raise shrink(operations, sides.run, error) from None
