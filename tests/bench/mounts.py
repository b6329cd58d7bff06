"""What a mount is measured by: sshfs and Culvert's own, on this machine and 20 ms away.

The files lie in memory (/dev/shm), so that no disk is measured. Every measurement has a mount of
its own, which knows nothing yet: all figures are those of a cold mount. They are rates, so that a
ratio of 2 is twice as fast.
"""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.contest import (
    CULVERT,
    OPENSSH,
    Bench,
    Contender,
    Line,
    Measure,
    Rival,
    Sample,
    Work,
)
from tests.bench.files import FROM_OPENSSH, NEAR, TO_OPENSSH, line, memory_folder
from tests.bench.processes import private_size
from tests.mounts import Mount, mounted
from tests.netns import CommandFailed

MEBIBYTE = 1 << 20
PAGE = 4096
SMALL = 4096  # bytes of a small file
THREADS = 16
STATS = 50  # of the files beside a bulk read, and of those while there is none
WRITE_BEHIND = "write_behind"
FEW, SOME, ALL = 15, 36, 150  # directories of the source tree, by what sshfs needs for them
LITTLE_MEMORY = ("cache_size=4",)


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is of each source; over a long line sshfs would take minutes for it all."""

    file: int  # MiB
    pages: int  # that are read at random
    files: int  # small ones, in one directory
    created: int
    folders: int  # of the source tree, of ten files each
    names: int  # empty files in one directory
    copied: int  # files of a tree that rsync knows, a hundred in a directory

    @property
    def tree(self) -> int:
        """The files of the source tree."""
        return 10 * self.folders


AMOUNTS = {
    0: Amount(512, 4000, 2000, 1000, ALL, 100_000, 12_000),
    NEAR: Amount(64, 100, 200, 150, FEW, 100_000, 600),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A fresh mount of a folder, how much is in it, and an empty directory for what a job makes."""

    mount: Mount
    amount: Amount
    new: str = "new"

    def path(self, name: str) -> str:
        """The path of a source in the mount."""
        return str(self.mount.place / name)


Source = Callable[[Path, Amount], None]
Job = Callable[[Place], float]  # returns the figure


# Sources: what lies at the server


def _words(lines: int, seed: int) -> str:
    """Text like that of a program's source."""
    numbers = random.Random(seed)
    return "".join(f"word{numbers.randrange(1000)} = {numbers.random()}\n" for _ in range(lines))


def big_file(folder: Path, amount: Amount) -> None:
    content = random.Random(1).randbytes(MEBIBYTE)
    with open(folder / "file", "wb") as file:
        for _ in range(amount.file):
            file.write(content)


def small_files(folder: Path, amount: Amount) -> None:
    (folder / "files").mkdir()
    for index in range(amount.files):
        (folder / "files" / f"file-{index}").write_bytes(os.urandom(SMALL))


def source_tree(folder: Path, amount: Amount) -> None:
    """A tree of directories within directories, with texts of 1 to 9 KiB."""
    places = [folder / "tree"]
    for index in range(amount.folders):
        place = places[index // 5] / f"part{index}"
        place.mkdir(parents=True)
        places.append(place)
        for number in range(10):
            seed = 10 * index + number
            (place / f"module{number}.py").write_text(_words(30 + seed % 11 * 25, seed))


def repository(folder: Path, amount: Amount) -> None:
    source_tree(folder, amount)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        _run(["git", "-C", str(folder / "tree"), *words])


def archive(folder: Path, amount: Amount) -> None:
    source_tree(folder, amount)
    _run(["tar", "-C", str(folder), "-cf", str(folder / "tree.tar"), "tree"])


def many_names(folder: Path, amount: Amount) -> None:
    (folder / "names").mkdir()
    for index in range(amount.names):
        os.mknod(folder / "names" / f"name-{index}")


def twice(folder: Path, amount: Amount) -> None:
    """A tree and its copy, as rsync -a leaves it."""
    for index in range(amount.copied):
        place = folder / "original" / f"part{index // 100}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file-{index}").write_bytes(b"%d" % index)
    _run(["cp", "-a", str(folder / "original"), str(folder / "copy")])


def beside(folder: Path, amount: Amount) -> None:
    """A file that nobody reads to its end, and files each in a directory of its own."""
    with open(folder / "file", "wb") as file:
        file.truncate(16 << 30)
    for index in range(2 * STATS):
        (folder / "deep" / str(index)).mkdir(parents=True)
        (folder / "deep" / str(index) / "file").write_bytes(b"x")


def everything(folder: Path, amount: Amount) -> None:
    for source in (big_file, small_files, many_names, twice):
        source(folder, amount)
    repository(folder, amount)
    _run(["tar", "-C", str(folder), "-cf", str(folder / "tree.tar"), "--exclude=.git", "tree"])


# Jobs: what is done to the mount

# git as root takes nobody else's repository, and writes to none that it only looks at
_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


def _run(argv: Sequence[str], statuses: Sequence[int] = (0,)) -> float:
    """Run a program; return its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        argv,
        env={**os.environ, **_GIT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in statuses:
        raise CommandFailed(f"{' '.join(argv)}: {done.stderr}")
    return time.perf_counter() - began


def read(place: Place) -> float:
    return place.amount.file / _run(["dd", f"if={place.path('file')}", "of=/dev/null", "bs=1M"])


def write(place: Place) -> float:
    """Write a file four times as long as the one that is read, to its end on the server."""
    size = 4 * place.amount.file if place.amount.file < 512 else 512
    words = [f"of={place.path(f'{place.new}/file')}", "bs=1M", f"count={size}", "conv=fsync"]
    return size / _run(["dd", "if=/dev/zero", *words])


def random_reads(threads: int) -> Job:
    def job(place: Place) -> float:
        count = place.amount.pages * (4 if threads > 1 else 1)
        pages = random.Random(2).sample(range(place.amount.file * MEBIBYTE // PAGE), count)
        file = os.open(place.path("file"), os.O_RDONLY)
        try:
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                for _ in pool.map(lambda page: os.pread(file, PAGE, page * PAGE), pages):
                    pass
                return count / (time.perf_counter() - began)
        finally:
            os.close(file)

    return job


def stat(place: Place) -> float:
    began = time.perf_counter()
    for index in range(place.amount.files):
        os.lstat(place.path(f"files/file-{index}"))
    return place.amount.files / (time.perf_counter() - began)


def find(place: Place) -> float:
    return place.amount.tree / _run(["find", place.path("tree"), "-size", "+1M"])


def ls(place: Place) -> float:
    return place.amount.files / _run(["ls", "-l", place.path("files")])


def create(place: Place) -> float:
    content = os.urandom(1024)
    began = time.perf_counter()
    for index in range(place.amount.created):
        with open(place.path(f"{place.new}/file-{index}"), "xb", buffering=0) as file:
            file.write(content)
    return place.amount.created / (time.perf_counter() - began)


def untar(place: Place) -> float:
    words = ["--no-same-owner", "-C", place.path(place.new)]
    return place.amount.tree / _run(["tar", "-xf", str(place.mount.behind / "tree.tar"), *words])


def read_small_files(place: Place) -> float:
    began = time.perf_counter()
    for name in os.listdir(place.path("files")):
        if len(Path(place.path("files"), name).read_bytes()) != SMALL:
            raise CommandFailed(f"{name} is not whole")
    return place.amount.files / (time.perf_counter() - began)


def git_status(place: Place) -> float:
    return place.amount.tree / _run(["git", "-C", place.path("tree"), "status"])


def grep(place: Place) -> float:
    return place.amount.tree / _run(["grep", "-r", "not to be found", place.path("tree")], [1])


def tar(place: Place) -> float:
    script = 'tar -C "$0" -cf - tree | cat >/dev/null'  # to /dev/null itself it reads nothing
    return place.amount.tree / _run(["sh", "-c", script, str(place.mount.place)])


def rsync(place: Place) -> float:
    here = f"{place.mount.behind}/original/"
    return place.amount.copied / _run(["rsync", "-a", here, place.path("copy/")])


def names(place: Place) -> float:
    return place.amount.names / _run(["ls", "-U", place.path("names")])


def copy(place: Place) -> float:
    return place.amount.file / _run(["cp", place.path("file"), place.path(f"{place.new}/file")])


def stat_beside_read(place: Place) -> float:
    """Return how many times its idle time an lstat takes beside dd, in the median."""

    def median(first: int) -> float:
        times = []
        for index in range(first, first + STATS):
            began = time.perf_counter()
            os.lstat(place.path(f"deep/{index}/file"))
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    idle = median(0)
    words = [f"if={place.path('file')}", "of=/dev/null", "bs=1M"]
    with subprocess.Popen(["dd", *words], stderr=subprocess.DEVNULL) as dd:
        try:
            time.sleep(0.1)  # until it is in full swing
            busy = median(STATS)
            if dd.poll() is not None:
                raise CommandFailed("dd ended before the last stat")
        finally:
            dd.kill()
    return busy / idle


JOBS: Sequence[Job] = (
    read, write, random_reads(1), random_reads(THREADS), stat, find, ls, create, untar,
    read_small_files, git_status, grep, tar, rsync, names, copy,
)  # fmt: skip


def memory(place: Place) -> float:
    """Return the private MiB of the mount's processes after all jobs."""
    for index, job in enumerate(JOBS):
        new = f"{place.new}/{index}"
        os.mkdir(place.path(new))
        job(replace(place, new=new))
    return sum(map(private_size, place.mount.processes())) / MEBIBYTE


# Works

# how many files are at the server after a job, also where it was not asked to wait for them
MADE: dict[Job, Callable[[Amount], int]] = {
    create: lambda amount: amount.created,
    untar: lambda amount: amount.tree,
}


def _files(folder: Path) -> int:
    return sum(path.is_file() and path.stat().st_size > 0 for path in folder.rglob("*"))


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def job_on_mount(
    source: Source | None,
    job: Job,
    milliseconds: int,
    amount: Amount,
    options: Sequence[str] = (),
) -> Callable[[Bench, Contender], contextlib.AbstractContextManager[Measure]]:
    """Measure a job on a fresh mount; the options are for Culvert only."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        with contextlib.ExitStack() as up:
            folder = up.enter_context(memory_folder())
            server = up.enter_context(bench.serve(contender.server))
            if source is not None:
                source(folder, amount)
            new = folder / "new"
            new.mkdir()
            _run(["chown", "-R", f"{bench.account.name}:", str(folder)])
            port = server.port
            if milliseconds:
                port = up.enter_context(line(server.address, port, milliseconds))
            words = options if contender.client == "culvert" else ()

            def measure() -> Sample:
                _empty(new)
                place = bench.new_folder("mount")
                with mounted(
                    contender.client, server, bench.login(), folder, place, words, port
                ) as mount:
                    os.lstat(mount.place)  # which the server has answered
                    figure = job(Place(mount, amount))
                if job in MADE and _files(new) != MADE[job](amount):
                    raise CommandFailed("not everything is at the server after the unmount")
                return Sample(figure)

            yield measure

    return setup


BESIDE_SSHFS = (Rival("sshfs with Culvert's server", FROM_OPENSSH),)


def _works(
    name: str,
    what: str,
    unit: str,
    source: Source | None,
    job: Job,
    targets: tuple[float, float],
    with_ours: float = 0,
    options: Sequence[str] = (),
    folders: int = FEW,
) -> list[Work]:
    """Return the work at 0 and at 20 ms.

    ``with_ours``: the target there with our own server; ``folders``: those of the tree there.
    """
    works = []
    for milliseconds, target in zip(AMOUNTS, targets, strict=True):
        ours = with_ours if milliseconds and with_ours else target
        far = f", {milliseconds} ms away" if milliseconds else ""
        rivals = BESIDE_SSHFS if with_ours else ()
        lines = [
            Line(f"mount: {what}{far}", CULVERT, ours, rivals),
            Line("the same, OpenSSH's server", TO_OPENSSH, target),
        ]
        amount = AMOUNTS[milliseconds]
        if milliseconds:
            amount = replace(amount, folders=folders)
        setup = job_on_mount(source, job, milliseconds, amount, options)
        works.append(
            Work(f"mount-{name}-{milliseconds}ms", unit, True, setup, lines, base_note="sshfs")
        )
    return works


def _stat_beside_read(milliseconds: int) -> Work:
    rivals = (Rival("sshfs", OPENSSH),)
    far = f", {milliseconds} ms away" if milliseconds else ""
    return Work(
        f"mount-stat-beside-{milliseconds}ms",
        "times",
        False,
        job_on_mount(beside, stat_beside_read, milliseconds, AMOUNTS[milliseconds]),
        [
            Line(f"mount: stat beside a bulk read, to idle{far}", CULVERT, 3.0, rivals),
            Line("the same, OpenSSH's server", TO_OPENSSH, 3.0),
        ],
        base=None,
    )


def _memory(name: str, what: str, target: float, options: Sequence[str] = ()) -> Work:
    return Work(
        name,
        "MiB",
        False,
        job_on_mount(everything, memory, 0, AMOUNTS[0], options),
        [Line(what, CULVERT, target, (Rival("sshfs", OPENSSH),))],
        base=None,
    )


BEHIND = (WRITE_BEHIND,)
MOUNT_WORKS = (
    *_works("read", "read of a file", "MiB/s", big_file, read, (1.0, 6.0)),
    *_works("write", "write of a file", "MiB/s", None, write, (1.0, 1.0)),
    *_works("random", "random reads of 4 KiB", "/s", big_file, random_reads(1), (0.7, 1.0)),
    *_works(
        "random16",
        f"the same, {THREADS} at once",
        "/s",
        big_file,
        random_reads(THREADS),
        (0.7, 1.4),
    ),
    *_works("stat", "stat", "/s", small_files, stat, (1.5, 20.0)),
    *_works(
        "find", "find in a source tree", "files/s", source_tree, find, (1.5, 15.0), folders=ALL
    ),
    *_works("ls", "ls -l", "files/s", small_files, ls, (1.5, 0.9)),
    *_works("create", "files of 1 KiB made", "files/s", None, create, (1.0, 2.0), 4.0),
    *_works("untar", "tar -x of a source tree", "files/s", archive, untar, (1.0, 2.0), 4.0),
    *_works(
        "create-behind",
        "files of 1 KiB made, write_behind",
        "files/s",
        None,
        create,
        (1.0, 50.0),
        options=BEHIND,
    ),
    *_works(
        "untar-behind",
        "tar -x of a source tree, write_behind",
        "files/s",
        archive,
        untar,
        (1.0, 50.0),
        options=BEHIND,
    ),
    *_works(
        "smallfiles",
        "files of 4 KiB read",
        "files/s",
        small_files,
        read_small_files,
        (1.5, 4.0),
        10.0,
    ),
    *_works("git", "git status", "files/s", repository, git_status, (1.5, 4.0)),
    *_works("grep", "grep -r", "files/s", source_tree, grep, (1.5, 8.0), folders=SOME),
    *_works(
        "tar", "tar -c of a source tree", "files/s", source_tree, tar, (1.5, 20.0), folders=SOME
    ),
    *_works("rsync", "rsync -a of what is there", "files/s", twice, rsync, (1.5, 10.0)),
    *_works("names", "ls -U", "names/s", many_names, names, (1.5, 10.0)),
    *_works("cp", "cp within the mount", "MiB/s", big_file, copy, (5.0, 10.0)),
    *map(_stat_beside_read, AMOUNTS),
    _memory("mount-memory", "private memory of a mount after all of it", 96.0),
    _memory("mount-memory-little", "the same with cache_size=4", 48.0, LITTLE_MEMORY),
)
