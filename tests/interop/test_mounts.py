"""Programs that people use, on a mount: databases, git, editors, copies, and tests of disks."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hard_names import make_tree
from tests.interop.mounts import Mounter, give, ids
from tests.mounts import Mount, command, mount_line
from tests.netns import wait_until
from tests.peers import Account, environment, find_program, write_ssh_config

TIMEOUT = 60  # seconds that a program may take
NAMES = 5000  # in one directory
BIG = 5 << 30  # bytes of a sparse file
MEBIBYTE = 1 << 20
_numbers = itertools.count()


@dataclass(slots=True)
class Place:
    """A directory of the mount's that only one test uses, and programs that run there."""

    mount: Mount
    account: Account
    here: Path
    behind: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str | Path, as_root: bool = False) -> subprocess.Popen[str]:
        """Start a program of the user's in the directory; this interpreter may be root's only."""
        user, group = (None, None) if as_root or os.geteuid() else ids(self.account)
        names = ("AUTHOR", "COMMITTER")
        env = {f"GIT_{name}_NAME": "Anna" for name in names}
        env |= {f"GIT_{name}_EMAIL": "anna@example.org" for name in names}
        process = subprocess.Popen(
            [find_program(str(words[0])), *map(str, words[1:])],
            env=environment(self.account.home, env),
            cwd=self.here,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait for a program, which must succeed; return its output."""
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.mount.kill()  # or the program cannot be ended, either
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"{process.args!r} hangs: {output}") from None
        assert process.returncode == 0, f"{process.args!r}: {process.returncode} {output}"
        return output

    def run(self, *words: str | Path) -> str:
        """Run a program to its end."""
        return self.finish(self.start(*words))

    def appears(self, name: str) -> None:
        """Wait until a file that was made at the server is seen."""
        give(self.behind / name, self.account)
        assert wait_until(lambda: name in self.run("ls").splitlines())

    def python(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Start a script of Python's."""
        return self.start(sys.executable, "-c", script, *words, as_root=True)


@pytest.fixture(scope="module", params=["culvert", "openssh"])
def mount(request: pytest.FixtureRequest, mounter: Mounter) -> Iterator[Mount]:
    with mounter.mount(request.param) as mount:
        yield mount


@pytest.fixture
def place(mount: Mount, account: Account, request: pytest.FixtureRequest) -> Iterator[Place]:
    name = f"{request.node.originalname}-{next(_numbers)}"
    (mount.place / name).mkdir()
    place = Place(mount, account, mount.place / name, mount.behind / name)
    yield place
    for process in place.started:
        with process:  # which closes its pipe and waits
            process.kill()
    shutil.rmtree(mount.behind / name)


# Databases

SQLITE = """
import sqlite3, sys
path, first = sys.argv[1:]
for begin in range(0, 100, 5):
    db = sqlite3.connect(path, timeout=30)
    for number in range(begin, begin + 5):
        with db:
            db.execute("insert into numbers values (?, randomblob(1000))", (int(first) + number,))
    db.close()
db = sqlite3.connect(path, timeout=30)
db.execute("begin")
db.execute("delete from numbers")
db.rollback()
db.close()
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_two_processes_write_to_one_sqlite_database(place: Place, mode: str) -> None:
    """Each comes and goes, inserts rows in transactions, and takes a deletion back."""
    path = str(place.here / "database")
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute(f"pragma journal_mode={sys.argv[2]}").fetchone()[0] == sys.argv[2]
db.execute("create table numbers (value integer, text blob)")
"""
    place.finish(place.python(script, path, mode))
    writers = [place.python(SQLITE, path, first) for first in ("0", "100")]
    for writer in writers:
        place.finish(writer)
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(*db.execute("pragma integrity_check").fetchone())
print(*db.execute("select count(*), count(distinct value) from numbers").fetchone())
"""
    assert place.finish(place.python(script, path)) == "ok\n200 200\n"


# Programmers


def test_git_clones_commits_and_packs(place: Place) -> None:
    first, second = place.here / "first", place.here / "second"
    place.run("git", "init", "-q", "-b", "main", first)
    for number in range(5):
        script = f'for i in 0 1 2 3 4 5; do seq $i {number + 1} 300 >"file $i"; done'
        place.run("sh", "-c", f"cd first; {script}")
        place.run("git", "-C", first, "add", ".")
        place.run("git", "-C", first, "commit", "-q", "-m", f"number {number}")
    place.run("git", "clone", "-q", "--no-local", first, second)
    place.run("git", "-C", second, "checkout", "-q", "-b", "side", "HEAD~2")
    place.run("sh", "-c", f"echo more >'{second}/other'")
    place.run("git", "-C", second, "add", "-A")
    place.run("git", "-C", second, "commit", "-q", "-m", "other")
    place.run("git", "-C", second, "merge", "-q", "-X", "ours", "-m", "both", "main")
    place.run("git", "-C", second, "gc", "-q", "--prune=now")
    place.run("git", "-C", second, "fsck", "--strict")
    assert place.run("git", "-C", second, "status", "--porcelain") == ""
    assert len(list((place.behind / "second/.git/objects/pack").glob("*.pack"))) == 1


def test_a_program_on_the_mount_runs(place: Place) -> None:
    place.run("cp", find_program("env"), "program")
    assert "HOME=" in place.run(str(place.here / "program"))


# Editors

SAVES = {
    "rename": """
    with open(path + ".new", "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
""",
    "backup": """
    os.rename(path, path + "~")
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path, 0o640)
    os.unlink(path + "~")
""",
    "in place": """
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(data)
""",
}


@pytest.mark.parametrize("way", SAVES)
def test_an_editor_saves(place: Place, way: str) -> None:
    """After each save the server has what was saved, and nothing else is there."""
    script = "import os, sys\npath, behind = sys.argv[1:]\nopen(path, 'wb').close()\n"
    script += "for number in range(30):\n    data = os.urandom(5000 - 100 * number)"
    script += SAVES[way]
    script += "    for name in (path, behind):\n"
    script += "        assert open(name, 'rb').read() == data, (name, number)\n"
    place.finish(place.python(script, str(place.here / "text"), str(place.behind / "text")))
    assert os.listdir(place.behind) == ["text"]
    assert os.listdir(place.here) == ["text"]


READER = """
import sys
seen = set()
while b"end" not in seen:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    assert len(set(data.split())) == 1, data[:80]
    seen.add(data.split()[0])
"""
WRITER = """
import os, sys
for text in [*(b"%d" % number for number in range(1, 200)), b"end"]:
    with open(sys.argv[1] + ".new", "wb") as file:
        file.write((text + b" ") * (1000 if text != b"7" else 10))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


def test_who_reads_while_files_are_exchanged_sees_whole_ones(place: Place) -> None:
    place.run("sh", "-c", "yes 0 | head -n 1000 >file")
    path = str(place.here / "file")
    processes = [place.python(READER, path), place.python(WRITER, path)]
    for process in processes:
        place.finish(process)


# Copies


def _tree(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """What cp -a copies of all that is below a folder."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        data = b""
        if path.is_symlink():
            data = os.fsencode(os.readlink(path))
        elif path.is_file():
            data = path.read_bytes()
        found[path.relative_to(folder)] = (status.st_mode, int(status.st_mtime), data)
    return found


@pytest.fixture
def tree(place: Place) -> Iterator[Path]:
    """A tree of hard names, modes and times, outside of the mount."""
    top = Path(place.account.home, f"tree-{os.getpid()}")
    top.mkdir()
    make_tree(top)
    (top / "link").symlink_to("files")
    (top / "dangling").symlink_to("nowhere")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        if not path.is_symlink():
            path.chmod(0o750 if path.is_dir() else (0o640, 0o755, 0o400)[number % 3])
        times = (1_000_000_000 + number, 1_100_000_000 + number)
        os.utime(path, times, follow_symlinks=False)
    for path in (top, *top.rglob("*")):
        give(path, place.account)
    yield top
    shutil.rmtree(top)


def test_copies_arrive_and_come_back(place: Place, tree: Path) -> None:
    place.run("cp", "-a", tree, "copy")
    assert _tree(place.behind / "copy") == _tree(tree)
    place.run("cp", "-a", "copy", "second")
    assert _tree(place.behind / "second") == _tree(tree)
    back = tree.with_name(f"back-{os.getpid()}")
    try:
        place.run("cp", "-a", "second", back)
        assert _tree(back) == _tree(tree)
    finally:
        shutil.rmtree(back)
    place.run("rm", "-r", "second")
    assert os.listdir(place.behind) == ["copy"]


def test_rsync_finds_nothing_to_do_the_second_time(place: Place, tree: Path) -> None:
    place.run("rsync", "-a", f"{tree}/", "copy/")
    assert _tree(place.behind / "copy") == _tree(tree)
    assert place.run("rsync", "-ai", f"{tree}/", "copy/") == ""
    (tree / "files/two words").write_bytes(b"changed\n")
    (tree / "files/star*").unlink()
    changed = place.run("rsync", "-ai", "--delete", f"{tree}/", "copy/").splitlines()
    assert len(changed) == 3, changed  # the directory, too
    assert _tree(place.behind / "copy") == _tree(tree)


def test_tar_packs_and_unpacks(place: Place, tree: Path) -> None:
    place.run("tar", "-C", tree.parent, "-cf", "first.tar", tree.name)
    place.run("tar", "-xpf", "first.tar")
    assert _tree(place.behind / tree.name) == _tree(tree)
    place.run("tar", "-cf", "second.tar", tree.name)
    place.run("tar", "-df", "second.tar")
    place.run("tar", "-C", tree.parent, "-df", "second.tar")


def test_dd_writes_where_it_is_told(place: Place) -> None:
    data = os.urandom(MEBIBYTE)
    source = Path(place.account.home, f"source-{os.getpid()}")
    source.write_bytes(data)
    try:
        place.run("dd", f"if={source}", "of=file", "bs=1000", "conv=fsync")
        place.run("dd", f"if={source}", "of=file", "bs=777", "count=9", "seek=3", "conv=notrunc")
        place.run("dd", f"if={source}", "of=file", "bs=1k", "oflag=append", "conv=notrunc")
        place.run("dd", "if=file", "of=again", "bs=64k", "iflag=direct")
    finally:
        source.unlink()
    wanted = bytearray(data)
    wanted[3 * 777 : 12 * 777] = data[: 9 * 777]
    for name in ("file", "again"):
        assert (place.behind / name).read_bytes() == wanted + data


# Tests of disks


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio"])
def test_fio_reads_what_it_wrote(place: Place, engine: str) -> None:
    options = ["--direct=1", "--iodepth=16"] if engine == "libaio" else []
    place.run(
        "fio", "--name=test", f"--ioengine={engine}", "--rw=randwrite", "--size=4m",
        "--bsrange=4k-64k", "--blockalign=4k", "--numjobs=2", "--verify=crc32c", "--do_verify=1",
        "--verify_fatal=1", "--fsync_on_close=1", "--group_reporting", "--fallocate=none",
        *options,
    )  # fmt: skip


def test_large_files_have_their_size(place: Place) -> None:
    """A file beyond 4 GiB, of which nearly all is a hole."""
    file = place.here / "file"
    place.run("truncate", "-s", str(BIG), file)
    for where in (0, (4 << 30) - 3, BIG - 10):
        script = f"printf 0123456789 | dd of='{file}' bs=1 seek={where} conv=notrunc"
        place.run("sh", "-c", script)
        read = place.run("dd", f"if={file}", "bs=1", "count=10", f"skip={where}", "status=none")
        assert read == "0123456789"
    for path in (place.here / "file", place.behind / "file"):
        assert path.stat().st_size == BIG
    with open(place.behind / "file", "rb") as behind:
        behind.seek((4 << 30) - 3)
        assert behind.read(10) == b"0123456789"
    assert (place.behind / "file").stat().st_blocks * 512 < MEBIBYTE


def test_a_large_directory(place: Place) -> None:
    (place.behind / "many").mkdir()
    wanted = {f"name {number:05} {'x' * (number % 100)}" for number in range(NAMES)}
    for name in wanted:
        os.mknod(place.behind / "many" / name)
    place.appears("many")
    for words in (("ls", "-U"), ("ls", "-l")):
        lines = place.run(*words, "many").splitlines()
        found = [line[line.index("name ") :] for line in lines if "name " in line]
        assert len(found) == NAMES
        assert set(found) == wanted
    assert len(place.run("find", "many", "-type", "f", "-empty").splitlines()) == NAMES
    place.run("rm", "-r", "many")  # which reads and removes in turns
    assert os.listdir(place.behind) == []


def test_df_and_du(place: Place) -> None:
    place.run("dd", "if=/dev/urandom", "of=file", "bs=1M", "count=3")
    there = os.statvfs(place.behind)
    here = int(place.run("df", "--output=size", "-B1", ".").split()[-1])
    assert here == there.f_blocks * there.f_frsize
    assert 3000 <= int(place.run("du", "-sk", "file").split()[0]) <= 3200


# Several at once

EXCLUSIVE = """
import os, sys
won = 0
for number in range(200):
    try:
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        won += 1
    except FileExistsError:
        pass
print(won)
"""


def test_one_of_two_makes_an_exclusive_file(place: Place) -> None:
    rivals = [place.python(EXCLUSIVE, str(place.here)) for _ in range(2)]
    assert sum(int(place.finish(rival)) for rival in rivals) == 200
    assert len(os.listdir(place.behind)) == 200


APPEND = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
for number in range(200):
    os.write(file, f"{sys.argv[2]} {number} {'x' * (number % 50)}\\n".encode())
os.close(file)
"""


def test_two_append_to_a_file_and_no_line_is_lost(place: Place) -> None:
    path = str(place.here / "log")
    for writer in [place.python(APPEND, path, name) for name in ("one", "two")]:
        place.finish(writer)
    lines = (place.behind / "log").read_text().splitlines()
    wanted = {f"{who} {n} {'x' * (n % 50)}" for who in ("one", "two") for n in range(200)}
    assert len(lines) == 400
    assert set(lines) == wanted


MAPPED = """
import mmap, os, sys
path, which = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_RDWR)
with mmap.mmap(file, 1 << 20) as memory:
    for page in range(which, 256, 2):
        memory[page * 4096 : (page + 1) * 4096] = bytes([page]) * 4096
        if page % 16 == which:
            memory.flush()
os.close(file)
"""


def test_two_write_to_the_same_file_by_mmap(place: Place) -> None:
    place.run("truncate", "-s", str(MEBIBYTE), "file")
    for writer in [place.python(MAPPED, str(place.here / "file"), which) for which in "01"]:
        place.finish(writer)
    wanted = b"".join(bytes([page]) * 4096 for page in range(256))
    assert (place.here / "file").read_bytes() == wanted
    assert (place.behind / "file").read_bytes() == wanted


def test_a_lock_keeps_the_other_waiting(place: Place) -> None:
    script = "flock lock sh -c 'echo begin >>log; sleep 0.2; echo end >>log'"
    for holder in [place.start("sh", "-c", script) for _ in range(3)]:
        place.finish(holder)
    assert (place.behind / "log").read_text() == "begin\nend\n" * 3


# Links and files that are open


def test_a_hard_link_is_the_same_file(place: Place) -> None:
    place.run("sh", "-c", "echo first >one; ln one two; echo second >>two")
    assert (place.behind / "one").samefile(place.behind / "two")
    assert place.run("cat", "one") == "first\nsecond\n"
    assert place.run("stat", "-c", "%h", "one") in ("2\n", "1\n")  # as OpenSSH has no word for it


UNLINKED = """
import os, sys
os.chdir(sys.argv[1])
with open("file", "w+b") as file, open("other", "wb") as other:
    other.write(b"other")
    file.write(b"before ")
    file.flush()
    os.unlink("file")
    assert os.listdir(".") == ["other"], os.listdir(".")
    file.write(b"after")
    file.flush()
    assert os.fstat(file.fileno()).st_size == 12
    file.seek(0)
    assert file.read() == b"before after"
    with open("file", "xb") as new:
        new.write(b"new")
    file.seek(0)
    assert file.read() == b"before after"
"""


def test_a_file_without_a_name_is_used_until_it_is_closed(place: Place) -> None:
    place.finish(place.python(UNLINKED, str(place.here)))
    assert sorted(os.listdir(place.behind)) == ["file", "other"]
    assert (place.behind / "file").read_bytes() == b"new"


# What changes at the server


def test_what_was_changed_at_the_server_is_seen(place: Place) -> None:
    """After seconds at the latest, and never a mix of old and new."""
    place.run("sh", "-c", "yes old | head -n 100000 >file; echo >gone")
    old = place.run("sha256sum", "file").split()[0]
    assert old == hashlib.sha256(b"old\n" * 100_000).hexdigest()
    (place.behind / "file").write_bytes(b"newer\n" * 50_000)
    (place.behind / "gone").unlink()
    (place.behind / "more").touch()
    new = hashlib.sha256(b"newer\n" * 50_000).hexdigest()

    def seen() -> bool:
        now = place.run("sha256sum", "file").split()[0]
        assert now in (old, new)
        return now == new

    assert wait_until(seen)
    assert wait_until(lambda: place.run("ls") == "file\nmore\n")


# The program itself


@pytest.mark.parametrize("kind", ["culvert", "openssh"])
def test_it_mounts_in_the_background(
    kind: str, mounter: Mounter, tmp_path: Path, account: Account
) -> None:
    """It says nothing, is mounted once it has ended, and ends with the mount."""
    place, behind = tmp_path / "mount", tmp_path / "behind"
    place.mkdir()
    (behind / "folder").mkdir(parents=True)
    tmp_path.chmod(0o755)
    server = mounter.server(kind)
    config = write_ssh_config(tmp_path, server, mounter.login)
    process = subprocess.run(
        command(mounter.program, config, account.home, place, []),
        env=environment(tmp_path),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    try:
        assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
        fields = mount_line(place).split(" - ")[1].split()
        assert fields[:2] == ["fuse.sshfs", f"there:{account.home}"]
        assert place.stat().st_mode == account.home.stat().st_mode
    finally:
        done = subprocess.run([find_program("fusermount3"), "-u", str(place)], check=False)
    assert done.returncode == 0
    assert wait_until(lambda: not mount_line(place))


def test_what_cannot_be_mounted_is_said_in_one_line(mounter: Mounter, tmp_path: Path) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    config = write_ssh_config(tmp_path, mounter.server("openssh"), mounter.login)
    process = subprocess.run(
        command(mounter.program, config, Path("/there is/none"), place, []),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert process.returncode != 0
    assert len(process.stderr.splitlines()) == 1, process.stderr
    assert "No such file" in process.stderr
    assert not mount_line(place)
