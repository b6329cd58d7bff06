"""A user's days on a mount whose link is cut, whose server stands still, whose program is killed.

    python -m tests.mount_soak [--seconds 600] [--server culvert] [--behind] [--seed 1]

Users do one *task* after another at random, each in a directory of the user's own: copies,
archives, git, a database, an editor's saves, logs, renames, searches. Each task is done in a
directory of this machine as well. Meanwhile something is disturbed every few seconds. A task may
fail only if the mounter was killed while it ran; then it is done once more. At the end the server's
tree must equal the one of this machine.
"""

import argparse
import contextlib
import filecmp
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.line import Line
from tests.mounts import Mount, mounted, synchronize, unmount
from tests.netns import wait_until
from tests.peers import (
    SERVERS,
    Account,
    Keyring,
    Login,
    Missing,
    Server,
    ServerSettings,
    environment,
    find_program,
    private_folder,
    start,
)
from tests.processes import family, hide_shell_files, lives

USERS = 3
PATIENCE = 110  # seconds that a task may take; it hangs if it takes longer
PAUSE = (1.0, 5.0)  # seconds between two disturbances
LENGTH = (0.2, 4.0)  # seconds of one; the mount's timeout is far above
AGAIN = "again"  # of a task that failed since the mounter was killed
SETTLED = 15  # seconds until the server has everything, once the mount has ended

# Each gets its directory as $1 and a number as $2, and does the same whenever it is done again.
TASKS = {
    "copy": """
        rm -rf "$1/in" "$1/out"; mkdir "$1/in"
        for i in $(seq 40); do seq $((i * $2 % 997)) > "$1/in/$i"; done
        cp -r "$1/in" "$1/out"
        diff -r "$1/in" "$1/out"
    """,
    "archive": """
        rm -rf "$1/packed" "$1/unpacked"; mkdir -p "$1/packed/a/b" "$1/unpacked"
        for i in $(seq 30); do echo "$2 $i" > "$1/packed/a/b/$i"; done
        ln -sf a/b "$1/packed/link"; chmod 640 "$1/packed/a/b/7"
        sync "$1/packed"  # until then the times of directories change
        tar -C "$1/packed" -cf "$1/archive.tar" --sort=name --mtime=@1600000000 .
        tar -C "$1/unpacked" -xf "$1/archive.tar"
        diff -r "$1/packed" "$1/unpacked"
    """,
    "edit": """
        for i in $(seq 15); do
            seq $((i * 10 + $2 % 100)) > "$1/.text.new"
            sync "$1/.text.new"
            mv "$1/.text.new" "$1/text"
            tail -n 1 "$1/text" | grep -qx $((i * 10 + $2 % 100))
        done
    """,
    "log": """
        : > "$1/log"
        for i in $(seq 60); do echo "$2: line $i" >> "$1/log"; done
        test "$(wc -l < "$1/log")" = 60
    """,
    "database": """
        rm -f "$1"/base*
        python3 -c '
import sqlite3, sys
base = sqlite3.connect(sys.argv[1] + "/base", timeout=60)
base.execute("create table numbers (value integer, text text)")
for first in range(0, 100, 10):
    with base:
        rows = [(n, str(n) * 50) for n in range(first, first + 10)]
        base.executemany("insert into numbers values (?, ?)", rows)
assert base.execute("pragma integrity_check").fetchone() == ("ok",)
assert base.execute("select count(*) from numbers").fetchone() == (100,)
base.close()' "$1"
    """,
    "git": """
        rm -rf "$1/work"; git init -q -b main "$1/work"; cd "$1/work"
        for i in 1 2 3; do
            for j in $(seq 10); do echo "$2 $i $j" > "file $j"; done
            git add -A; git commit -qm "$i"
        done
        git gc -q; git fsck --no-progress; git status --porcelain | wc -l | grep -qx 0
        git log --format=%H > "$1/hashes"; cd /; rm -rf "$1/work/.git"
    """,
    "names": """
        rm -rf "$1/old" "$1/new"; mkdir -p "$1/old/deep/er"
        for i in $(seq 25); do echo "$i" > "$1/old/deep/$i"; done
        mv "$1/old/deep/3" "$1/old/deep/er/3"; ln "$1/old/deep/5" "$1/old/deep/er/5"
        mv "$1/old" "$1/new"; rm "$1/new/deep/9"; rmdir "$1/new/deep/er" 2>/dev/null || true
        test "$(cat "$1/new/deep/er/5")" = 5; truncate -s 1 "$1/new/deep/11"
        touch -d @1500000000 "$1/new/deep/12"; chmod 600 "$1/new/deep/12"
    """,
    "large": """
        head -c 6000000 /dev/zero | openssl enc -aes-128-ctr -K 00 -iv $(printf %032d $2) > "$1/big"
        cmp "$1/big" <(head -c 6000000 /dev/zero | openssl enc -aes-128-ctr -K 00 \
            -iv $(printf %032d $2))
        dd if="$1/big" of="$1/big" bs=1000 seek=3000 count=100 conv=notrunc status=none
    """,
    "search": """
        grep -rc nothing "$1" > /dev/null || true
        find "$1" -type f | wc -l > /dev/null; du -s "$1" > /dev/null; ls -lR "$1" > /dev/null
    """,
    "synchronize": """
        rm -rf "$1/mirror"; mkdir -p "$1/mirror"
        mkdir -p "$1/site"; for i in $(seq 30); do echo "$2 $i" > "$1/site/$i"; done
        rsync -a --delete "$1/site/" "$1/mirror/"; echo more >> "$1/site/3"; rm "$1/site/4"
        rsync -ac --delete "$1/site/" "$1/mirror/"; diff -r "$1/site" "$1/mirror"
    """,
}


@dataclass(slots=True)
class Report:
    """How a soak went."""

    seed: int
    seconds: float = 0
    done: Counter[str] = field(default_factory=Counter)
    again: int = 0  # tasks that were done again, since the mounter was killed
    disturbed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        lines = [f"{self.done.total()} tasks in {self.seconds:.0f} s (seed {self.seed})"]
        lines += [f"  {count:6d}  {name}" for name, count in sorted(self.done.items())]
        lines.append(f"{self.disturbed.total()} disturbances; {self.again} tasks done again")
        lines += [f"  {count:6d}  {name}" for name, count in sorted(self.disturbed.items())]
        lines += [f"FAILED: {text}" for text in self.failures[:20]]
        return "\n".join(lines)


class Soak:
    """A server, the line to it, a mount of it that is mounted again, and the users."""

    def __init__(
        self, server: Server, line: Line, folder: Path, options: tuple[str, ...], report: Report
    ) -> None:
        """``folder`` is for the mounts; the directory that they show is in it."""
        self._server = server
        self._line = line
        self._folder = folder
        self._options = options
        self._report = report
        self.behind, self.plain = folder / "behind", folder / "plain"
        self.behind.mkdir()
        self.plain.mkdir()
        self._mount: Mount | None = None
        self._stack = ExitStack()
        self._mounts = 0  # how often it was mounted, or was to be
        self._is_mounted = threading.Condition()
        self._is_over = threading.Event()
        self.disturbances: dict[str, Callable[[float], None]] = {
            "line cut": lambda _: self._line.cut(),
            "line reset": lambda _: self._line.cut(reset=True),
            "line down": self._down,
            "line stands still": self._still,
            "server stopped": self._stop_server,
            "session killed": lambda _: _signal(self._sessions(), signal.SIGKILL),
            "mounter killed": lambda _: self._kill_mounter(),
        }

    # -- the mount ---------------------------------------------------------------------

    def mount(self, login: Login) -> None:
        """Mount it, for the first time or again."""
        for _ in range(10):  # the line may be cut just now
            self._mounts += 1
            folder = self._folder / str(self._mounts)
            folder.mkdir()
            with contextlib.suppress(RuntimeError):
                self._mount = self._stack.enter_context(
                    mounted(
                        "culvert", self._server, login, self.behind, folder, self._options,
                        self._line.port,
                    )
                )  # fmt: skip
                break
        else:
            raise RuntimeError("cannot be mounted again")
        self._login = login
        with self._is_mounted:
            self._is_mounted.notify_all()

    def _kill_mounter(self) -> None:
        mount, self._mount = self._mount, None
        assert mount is not None
        mount.kill()
        mistake = unmount(mount)
        if "Traceback" in mistake:
            self._report.failures.append(mistake)
        self._stack.pop_all()  # which has nothing to undo any more
        self.mount(self._login)

    def _now(self) -> Mount:
        with self._is_mounted:
            self._is_mounted.wait_for(lambda: self._mount is not None)
            assert self._mount is not None
            return self._mount

    def unmount(self) -> None:
        """Unmount it, upon which the server has everything."""
        mount = self._mount
        assert mount is not None
        if words := unmount(mount):
            self._report.failures.append(f"unmounting: {words}")
        self._stack.pop_all()

    # -- disturbances ------------------------------------------------------------------

    def _down(self, seconds: float) -> None:
        self._line.go_down()
        time.sleep(seconds)
        self._line.go_on()

    def _still(self, seconds: float) -> None:
        self._line.stand_still()
        time.sleep(seconds)
        self._line.go_on()

    def _sessions(self) -> list[int]:
        return family(self._server.process.pid)[1:]

    def _stop_server(self, seconds: float) -> None:
        sessions = self._sessions()
        _signal(sessions, signal.SIGSTOP)
        time.sleep(seconds)
        _signal(sessions, signal.SIGCONT)

    def disturb(self, chance: random.Random) -> None:
        """Disturb until `end`."""
        while not self._is_over.wait(chance.uniform(*PAUSE)):
            name = chance.choice([*self.disturbances])
            self.disturbances[name](chance.uniform(*LENGTH))
            self._report.disturbed[name] += 1

    def end(self) -> None:
        """Disturb no more."""
        self._is_over.set()

    # -- users -------------------------------------------------------------------------

    def work(self, name: str, chance: random.Random, until: float) -> None:
        """Do tasks in the directory of a name."""
        (self.plain / name).mkdir()
        (self.behind / name).mkdir()
        while time.monotonic() < until and not self._report.failures:
            task, number = chance.choice([*TASKS]), chance.randrange(1, 10**6)
            failure = self._run(task, self.plain / name, number)
            assert not failure, failure
            while failure := self._run_there(task, name, number):
                if failure == AGAIN:
                    self._report.again += 1
                    continue
                self._report.failures.append(f"{name}, {task} {number}: {failure}")
                return
            with self._report.lock:
                self._report.done[task] += 1

    def _run_there(self, task: str, name: str, number: int) -> str:
        mount = self._now()
        failure = self._run(task, mount.place / name, number)
        if not failure and "write_behind" in self._options:
            try:
                synchronize(mount.place / name)
            except OSError as error:
                failure = str(error)
        if failure and not lives(mount.process.pid):  # it was killed a moment ago
            wait_until(lambda: self._mount is not mount, 30)
        return AGAIN if failure and self._mount is not mount else failure

    def _run(self, task: str, folder: Path, number: int) -> str:
        """Returns '' if the task was done."""
        env = {f"GIT_{who}_NAME": "Anna" for who in ("AUTHOR", "COMMITTER")}
        env |= {f"GIT_{who}_EMAIL": "anna@example.org" for who in ("AUTHOR", "COMMITTER")}
        env |= {f"GIT_{who}_DATE": "@1600000000 +0000" for who in ("AUTHOR", "COMMITTER")}
        words = [find_program("bash"), "-euo", "pipefail", "-c", TASKS[task]]
        process = subprocess.Popen(
            [*words, "task", str(folder), str(number)],
            env=environment(self._folder, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return f"hangs: {output}"
        return f"status {process.returncode}: {output}" if process.returncode else ""


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def differences(one: Path, other: Path) -> Iterator[str]:
    """Name what two trees differ in: names, types, permissions, sizes, contents, targets."""
    trees = [
        {path.relative_to(top): path for path in sorted(top.rglob("*"))} for top in (one, other)
    ]
    for name in sorted(trees[0].keys() | trees[1].keys()):
        if name not in trees[0] or name not in trees[1]:
            yield f"{name} is only in {one if name in trees[0] else other}"
            continue
        ours, theirs = (tree[name] for tree in trees)
        first, second = ours.lstat(), theirs.lstat()
        if first.st_mode != second.st_mode:
            yield f"{name}: modes {first.st_mode:o} and {second.st_mode:o}"
        elif stat.S_ISLNK(first.st_mode):
            if ours.readlink() != theirs.readlink():
                yield f"{name}: another target"
        elif stat.S_ISREG(first.st_mode) and not filecmp.cmp(ours, theirs, shallow=False):
            yield f"{name}: {first.st_size} and {second.st_size} bytes differ"


# A run


def run(seconds: float, kind: str, behind: bool = False, seed: int | None = None) -> Report:
    """Work and disturb for so many seconds. Raises Missing for a program that is not here."""
    seed = random.randrange(2**32) if seed is None else seed
    report = Report(seed)
    with ExitStack() as undo:
        folder = undo.enter_context(private_folder("mount-soak"))
        keys, host_keys = Keyring(folder / "keys"), Keyring(folder / "host-keys")
        authorized = folder / "authorized_keys"
        authorized.write_text(f"{keys.public()}\n")
        authorized.chmod(0o644)
        account = Account.current()
        settings = ServerSettings(
            host_keys=[host_keys.key()], authorized_keys=authorized, accounts=[account]
        )
        server = undo.enter_context(start(SERVERS[kind], settings, folder / "server"))
        line = undo.enter_context(Line(server.port))
        options = ("write_behind",) if behind else ()
        soak = Soak(server, line, folder, options, report)
        soak.mount(Login(account, keys.key()))
        began = time.monotonic()
        until = began + seconds

        def use(number: int) -> None:
            try:
                soak.work(f"user {number}", random.Random(f"{seed} {number}"), until)
            except BaseException as error:
                report.failures.append(repr(error))
                raise

        users = [threading.Thread(target=use, args=(number,)) for number in range(USERS)]
        disturbing = threading.Thread(target=soak.disturb, args=(random.Random(seed),))
        for thread in [disturbing, *users]:
            thread.start()
        for thread in users:
            thread.join()
        report.seconds = time.monotonic() - began
        soak.end()
        disturbing.join()
        soak.unmount()

        def is_alike() -> bool:
            return not [*differences(soak.behind, soak.plain)]

        if not wait_until(is_alike, SETTLED):
            report.failures += differences(soak.behind, soak.plain)
    return report


def main() -> int:
    """Run as long as the command line says, and print what there was."""
    hide_shell_files()
    parser = argparse.ArgumentParser(prog="python -m tests.mount_soak")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--server", choices=("culvert", "openssh"), default="culvert")
    parser.add_argument("--behind", action="store_true", help="with write_behind")
    parser.add_argument("--seed", type=int, help="for the same choices once more")
    chosen = parser.parse_args()
    try:
        report = run(chosen.seconds, chosen.server, chosen.behind, chosen.seed)
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
