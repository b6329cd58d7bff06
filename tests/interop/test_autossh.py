"""autossh keeps our client running, and asks through its forwards whether it still works."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, pair_of, words_of, write_program
from tests.interop.test_forwards import Echo, assert_echoes
from tests.netns import wait_until
from tests.peers import (
    ClientKind,
    Login,
    Server,
    end,
    environment,
    find_program,
    free_port,
)

pairs = pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    found = children(pid)
    for child in found:
        found += children(child)
    return found


class Autossh:
    """One running autossh, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def ssh(self) -> int | None:
        """Return the process id of the client that was started last."""
        started = re.findall(r"ssh child pid is (\d+)", self.log.read_text())
        return int(started[-1]) if started else None

    def another_ssh(self, than: int) -> int:
        """Wait for the next client, and return its process id."""
        assert wait_until(lambda: self.ssh() not in (None, than), 20), self.log.read_text()
        pid = self.ssh()
        assert pid is not None
        return pid

    def works_again(self) -> None:
        """Wait until autossh has once more seen its own question come back."""
        before = self.log.read_text().count("connection ok")
        assert wait_until(lambda: self.log.read_text().count("connection ok") > before, 20), (
            self.log.read_text()
        )


Start = Callable[..., Autossh]


@pytest.fixture
def autossh(client: ClientKind, server: Server, login: Login, tmp_path: Path) -> Iterator[Start]:
    """A function that starts autossh with our words, and the client as its ssh."""
    running: list[subprocess.Popen[bytes]] = []
    words = words_of(client, server, login, ["-oExitOnForwardFailure=yes"])
    program = write_program(tmp_path / "ssh", words)

    def start(*words: str) -> Autossh:
        log = tmp_path / "autossh.log"
        env = {
            "AUTOSSH_PATH": str(program),
            "AUTOSSH_GATETIME": "0",  # a first failure is no reason to give up
            "AUTOSSH_FIRST_POLL": "1",
            "AUTOSSH_POLL": "2",
            "AUTOSSH_LOGFILE": str(log),
            "AUTOSSH_LOGLEVEL": "7",
        }
        argv = [find_program("autossh"), *words, "-N", server.address]
        log.touch()
        running.append(
            subprocess.Popen(
                argv, env=environment(tmp_path, env), stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )
        )  # fmt: skip
        return Autossh(running[-1], log)

    yield start
    for process in running:
        end(process)


@contextmanager
def echoing() -> Iterator[int]:
    """The port of a program that answers with what it hears."""
    echo = Echo()
    try:
        yield echo.port
    finally:
        echo.close()


@pairs
def test_a_client_that_is_killed_is_started_again(autossh: Start) -> None:
    port = free_port()
    with echoing() as target:
        running = autossh("-M", "0", "-L", f"{port}:127.0.0.1:{target}")
        pid = 0
        for _ in range(3):
            pid = running.another_ssh(pid)
            assert_echoes(port)
            os.kill(pid, signal.SIGKILL)
        running.another_ssh(pid)
        # Between fork and exec a client has autossh's handlers, and would miss its end.
        assert_echoes(port)


@pairs
def test_a_connection_that_stands_still_is_found_by_the_monitoring_port(
    autossh: Start, server: Server
) -> None:
    with echoing() as target:  # the form with two ports: this machine is both ends
        running = autossh("-M", f"{free_port()}:{target}")
        running.works_again()
        pid = running.another_ssh(0)
        serving = descendants(server.process.pid)
        for process in serving:
            os.kill(process, signal.SIGSTOP)
        try:
            running.another_ssh(pid)
            running.works_again()
        finally:
            for process in serving:
                os.kill(process, signal.SIGCONT)
