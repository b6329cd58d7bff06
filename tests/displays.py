"""A display of its own for each test: Xvfb with a cookie, and what can be seen on it."""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.netns import wait_until
from tests.peers import PATH, end, find_program


@dataclass
class Screen:
    """A running Xvfb; `env` is what a program of this machine needs to be shown on it."""

    number: int
    authority: Path
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f":{self.number}"

    @property
    def variables(self) -> dict[str, str]:
        """What a program finds the display by."""
        return {"DISPLAY": self.name, "XAUTHORITY": str(self.authority)}

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": PATH, "HOME": str(self.folder), "LANG": "C.UTF-8",
            "NO_AT_BRIDGE": "1", "GTK_A11Y": "none", **self.variables,
        }  # fmt: skip

    def run(self, *argv: str, timeout: float = 20) -> subprocess.CompletedProcess[bytes]:
        """Run a program of this machine on the display, to its end."""
        return subprocess.run(
            [find_program(argv[0]), *argv[1:]], env=self.env, capture_output=True, timeout=timeout,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @contextlib.contextmanager
    def program(self, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program of this machine on the display until the end of the block."""
        with running([find_program(argv[0]), *argv[1:]], self.env) as process:
            yield process

    def window(self, title: str, seconds: float = 20) -> str:
        """The number of the window with this title, once it can be seen."""
        found = ""

        def is_there() -> bool:
            nonlocal found
            for line in self.run("xwininfo", "-root", "-tree").stdout.decode().splitlines():
                if f'"{title}"' in line:
                    found = line.split()[0]
                    shown = self.run("xwininfo", "-id", found).stdout
                    return b"IsViewable" in shown
            return False

        assert wait_until(is_there, seconds), self.run("xwininfo", "-root", "-tree").stdout
        return found

    def picture(self, window: str, path: Path) -> Path:
        """Write the window's picture to `path`, once two in a row are the same."""
        before = b""
        for _ in range(40):
            done = self.run("import", "-window", window, str(path))
            assert done.returncode == 0, done.stderr
            pixels = self.run("convert", str(path), "rgba:-").stdout
            if pixels == before:
                return path
            before = pixels
            time.sleep(0.25)
        raise AssertionError("the window keeps changing")

    def is_shown(self, title: str) -> bool:
        """Whether there is a window with this title."""
        return f'"{title}"'.encode() in self.run("xwininfo", "-root", "-tree").stdout

    def differing(self, one: Path, other: Path) -> int:
        """How many pixels of two pictures differ."""
        done = self.run("compare", "-metric", "AE", str(one), str(other), "null:")
        assert done.returncode in (0, 1), done.stderr
        return int(done.stderr)

    def stand_still(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block."""
    process = subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        end(process)
        process.communicate()


@contextlib.contextmanager
def screen(folder: Path, *options: str, access_control: bool = True) -> Iterator[Screen]:
    """Start Xvfb with a number that is free, and end it afterwards."""
    folder.mkdir(exist_ok=True, parents=True)
    authority = folder / "Xauthority"
    authority.touch(mode=0o600)
    read, write = os.pipe()
    argv = [find_program("Xvfb"), "-displayfd", str(write), "-screen", "0", "800x600x24"]
    argv += ["-nolisten", "tcp", "-noreset", *options]
    if access_control:
        cookie = secrets.token_hex(16)
        # The number is not known yet: the server reads the cookies of all entries.
        _xauth(authority, f"add :0 . {cookie}")
        argv += ["-auth", str(authority)]
    else:
        argv.append("-ac")
    process = subprocess.Popen(
        argv, pass_fds=[write], env={"PATH": PATH}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    try:
        with open(read, "rb") as file:
            number = int(file.readline())
        if access_control:
            own = folder / "Xauthority.own"
            own.touch(mode=0o600)
            _xauth(own, f"add :{number} . {cookie}")
            authority = own
        yield Screen(number, authority, folder, process)
    finally:
        process.send_signal(signal.SIGCONT)
        end(process)


def _xauth(file: Path, line: str) -> None:
    subprocess.run(
        [find_program("xauth"), "-q", "-f", str(file)], input=f"{line}\n".encode(), check=True,
        env={"PATH": PATH}, capture_output=True,
    )  # fmt: skip
