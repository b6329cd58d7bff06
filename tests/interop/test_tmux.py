"""tmux at the far end: what runs there outlives the connection, and is found again by the next."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, pair_of
from tests.netns import wait_until
from tests.peers import ClientKind, Invocation, Login, Server, Terminal, environment, find_program


@pytest.fixture
def tmux(there: Path) -> Iterator[str]:
    """The beginning of a tmux command for the far end, with a server of its own that is ended."""
    argv = [find_program("tmux"), "-f", "/dev/null", "-S", str(there / "tmux")]
    yield " ".join(["LC_ALL=C.UTF-8", *argv])
    subprocess.run([*argv, "kill-server"], env=environment(there), capture_output=True, check=False)


def attached(terminal: Terminal) -> None:
    """Wait until the shell in the session answers: `terminal` has seen its prompt and more."""
    terminal.write(b"echo $((600*7))-and-more\r")
    terminal.read_until(b"4200-and-more")


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)
def test_a_session_outlives_its_connection(
    client: ClientKind, server: Server, login: Login, tmux: str
) -> None:
    command = f"{tmux} new-session -A -s work"
    call = client.invocation(server, login, command, options=["-tt"])
    on_terminal = Invocation(call.argv, call.env | {"TERM": "xterm-256color"})
    with Terminal(on_terminal, rows=30, columns=100) as terminal:
        attached(terminal)
        terminal.write(b"stty size; answer=$((6*7)); echo $$ is the shell\r")
        terminal.read_until(b"29 100")  # the last line is tmux's own
        terminal.read_until(b"is the shell")
        os.kill(terminal.pid, signal.SIGKILL)  # as if the cable were pulled
        assert terminal.wait() == -signal.SIGKILL

    clients = f"{tmux} list-clients"
    assert wait_until(lambda: not client.run(server, login, clients).stdout)
    with Terminal(on_terminal, rows=40, columns=120) as terminal:
        terminal.read_until(b"is the shell")  # the old screen is drawn again
        attached(terminal)
        terminal.write(b"stty size; echo it was $answer\r")
        terminal.read_until(b"39 120")
        terminal.read_until(b"it was 42")
        terminal.resize(20, 70)
        assert wait_until(
            lambda: client.run(
                server, login, f"{tmux} display-message -p '#{{window_width}}'"
            ).stdout == b"70\n"
        )  # fmt: skip
        terminal.write(b"\x02d")  # detach
        terminal.read_until(b"[detached (from session work)]")
        assert terminal.wait() == 0
    with Terminal(on_terminal) as terminal:
        attached(terminal)
        terminal.write(b"exit\r")
        terminal.read_until(b"[exited]")
        assert terminal.wait() == 0
