"""Servers whose directories are mounted, the mounts, and processes that work on them."""

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.interop import lossy_sftp, mount_worker
from tests.mounts import Mount, mounted
from tests.peers import (
    SERVERS,
    SFTP_SERVER,
    Account,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    private_folder,
)

PATIENCE = 15  # seconds that anything done to a mount may take

KINDS = ("culvert", "openssh", "bare")  # the last is odd_sftp_server.py, without extensions

# Becomes the user of these numbers, and is that server; what ssh is told is of no use to it.
_BARE = """
import os, sys
from tests.interop import odd_sftp_server
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[1]))
os.umask(0o022)
odd_sftp_server.Server(set()).run()
"""


class Mounter:
    """Mounts directories of this machine through any kind of server, as the tests' user."""

    def __init__(
        self,
        serve: Callable[[ServerKind, ServerSettings], Server],
        host_keys: Keyring,
        authorized_keys: Path,
        login: Login,
        program: str,
    ) -> None:
        """``program`` is one of tests.mounts."""
        self._serve = serve
        self._host_keys = host_keys
        self._authorized_keys = authorized_keys
        self.login = login
        self.program = program

    def server(self, kind: str) -> Server:
        """The running server of a kind."""
        name = "openssh" if kind == "bare" else kind
        account = self.login.account
        settings = ServerSettings(
            host_keys=[self._host_keys.key()],
            authorized_keys=None if account.password else self._authorized_keys,
            accounts=[account],
        )
        return self._serve(SERVERS[name], settings)

    @contextlib.contextmanager
    def mount(self, kind: str, options: Sequence[str] = ()) -> Iterator[Mount]:
        """Mount a new directory of the user's, which both the user and root may use."""
        with private_folder("behind") as behind:
            give(behind, self.login.account)
            with self.mount_of(behind, kind, options) as mount:
                yield mount

    @contextlib.contextmanager
    def mount_of(self, behind: Path, kind: str, options: Sequence[str] = ()) -> Iterator[Mount]:
        """Mount a directory; it may be mounted several times."""
        if os.geteuid() == 0:
            options = ["allow_other", *options]
        with private_folder("mount") as folder:
            folder.chmod(0o755)
            server = self.server(kind)
            if kind == "bare":
                words = [sys.executable, "-c", _BARE, *map(str, ids(self.login.account))]
                ssh = folder / "ssh"
                ssh.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
                ssh.chmod(0o755)
                options = [f"ssh_command={ssh}", *options]
            with mounted(self.program, server, self.login, behind, folder, options) as mount:
                yield mount


def give(path: Path, account: Account) -> None:
    """Make a file or directory of this process's the account's."""
    if os.geteuid() == 0:
        os.chown(path, *ids(account), follow_symlinks=False)


def ids(account: Account) -> tuple[int, int]:
    """The numbers of the user and of the user's group."""
    status = account.home.stat()
    return status.st_uid, status.st_gid


class Lost(AssertionError):
    """A process that works on a mount hangs, or was killed by what it did."""


class Process:
    """A process of the account's, mount_worker.py, that works on a directory."""

    def __init__(self, account: Account) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", mount_worker.__file__, *map(str, ids(account))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, name: str, *arguments: object) -> dict[str, Any]:
        """Have an operation done; return what became of it. Raises Lost."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            raise Lost(f"{name}{arguments} hangs")
        line = process.stdout.readline()
        if not line:
            raise Lost(f"{name}{arguments} ended the process with {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.kill()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait for a mount
            process.wait(PATIENCE)


# Links that are cut

# Becomes the user of these numbers, and is that server. What is imported may be root's only.
_BECOME = """
import ctypes, fcntl, os, select, sys
import appliance.cli.sftp_server
from appliance.multicall import main
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[1]))
"""
_LOSSY = {
    "culvert": f"{_BECOME}sys.argv = ['culvert', 'sftp-server']\nmain()",
    "openssh": f"{_BECOME}os.execv('{SFTP_SERVER}', ['sftp-server'])",
}


class Link:
    """The link of one mount, which lossy_sftp.py carries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def script(self, kind: str, account: Account) -> Path:
        """Write the program that connects, for ssh_command."""
        words = [sys.executable, "-c", _LOSSY[kind], *map(str, ids(account))]
        proxy = [sys.executable, "-I", "-S", lossy_sftp.__file__, str(self.folder)]
        ssh = self.folder / "ssh"
        ssh.write_text(f"#!/bin/sh\nexec {shlex.join([*proxy, *words])}\n")
        ssh.chmod(0o755)
        return ssh

    def rule(self, when: str, *requests: str) -> None:
        """Have something happen at the next of these requests: 'before', 'after' or 'still'."""
        new = self.folder / "new"
        new.write_text(" ".join([when, *requests]))
        new.rename(self.folder / "rule")

    @property
    def has_happened(self) -> bool:
        """Whether such a request has come."""
        return not (self.folder / "rule").exists()

    def stand_still(self) -> None:
        """Let nothing pass."""
        (self.folder / "still").touch()

    def go_on(self) -> None:
        """Let everything pass again, in this session or the next one."""
        for name in ("rule", "down", "still"):
            (self.folder / name).unlink(missing_ok=True)

    def cut(self, stays_down: bool = False) -> None:
        """End the session; with ``stays_down`` nobody can connect until ``go_on``."""
        if stays_down:
            (self.folder / "down").touch()
        os.kill(int((self.folder / "pids").read_text().split()[-1]), signal.SIGKILL)


@contextlib.contextmanager
def lossy(mounter: Mounter, kind: str, options: Sequence[str] = ()) -> Iterator[tuple[Mount, Link]]:
    """Mount a new directory of the user's over a link that can be cut."""
    with private_folder("link") as folder:
        link = Link(folder)
        command = f"ssh_command={link.script(kind, mounter.login.account)}"
        with mounter.mount("openssh", [command, *options]) as mount:
            try:
                yield mount, link
            finally:
                link.go_on()
