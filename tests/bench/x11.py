"""How long a graphical program takes to show itself, when its display is far away.

The time begins when the program does, in a session that is open, and ends with the first change of
the screen. Every measurement has a session of its own, so that nothing is known of the display.
"""

import contextlib
import time
from collections.abc import Iterator

from tests.bench.contest import (
    CULVERT,
    OPENSSH,
    Bench,
    Contender,
    Line,
    Measure,
    Rival,
    Sample,
    Setup,
    Work,
)
from tests.bench.files import FROM_OPENSSH, line
from tests.displays import Screen, running, screen
from tests.netns import CommandFailed, wait_until
from tests.peers import CULVERT as PROGRAM
from tests.peers import environment, find_program, write_ssh_config

CLIENTS = {"openssh": ["ssh"], "culvert": [*PROGRAM, "ssh"]}

FAR = 100  # ms
PATIENCE = 120  # seconds; OpenSSH's xterm takes 30
STEP = 32  # of so many pixels one is looked at
# Programs, and the seconds that each may take 100 ms away
PROGRAMS = {
    "xclock": ("xclock", 1.0),
    "xterm": ("xterm -e sleep 100", 1.0),
    "zenity": ("zenity --info --text=hello", 2.0),
    "featherpad": ("featherpad", 2.0),
    "mousepad": ("mousepad", 3.0),
}
NEAR_TARGET = 1.1  # times OpenSSH's time, where the display is near


def _pixels(shown: Screen) -> bytes:
    return shown.run("xwd", "-root", "-silent").stdout[:: 4 * STEP + 1]


def first_paint(command: str, milliseconds: int) -> Setup:
    """Measure the seconds until a program has painted something."""

    @contextlib.contextmanager
    def setup(bench: Bench, contender: Contender) -> Iterator[Measure]:
        options = ("-oX11Forwarding=yes",) if contender.server == "openssh" else ()
        find_program(command.split()[0])
        with (
            bench.serve(contender.server, options) as server,
            line(server.address, server.port, milliseconds) as port,
            screen(bench.new_folder("screen")) as shown,
        ):
            config = write_ssh_config(bench.new_folder("config"), server, bench.login(), port)
            argv = [*CLIENTS[contender.client], "-F", str(config), "-X", "there"]
            argv.append(f"date +%s.%N; exec {command}")
            yield lambda: Sample(_paint(argv, shown))

    return setup


def _paint(argv: list[str], shown: Screen) -> float:
    before = _pixels(shown)
    with running(argv, environment(shown.folder, shown.env)) as client:
        assert client.stdout is not None
        began = float(client.stdout.readline() or "nan")
        while _pixels(shown) == before:
            if client.poll() is not None or time.time() - began > PATIENCE:
                raise CommandFailed(f"{argv[-1]}: nothing is shown")
            time.sleep(0.01)
        took = time.time() - began
    if not wait_until(lambda: _pixels(shown) == before, PATIENCE):
        raise CommandFailed(f"{argv[-1]} goes on")
    return took


def _far(name: str, command: str, target: float) -> Work:
    rivals = (Rival("ssh -X", OPENSSH), Rival("ssh -X to Culvert's server", FROM_OPENSSH))
    return Work(
        f"x11-{name}-{FAR}ms",
        "s",
        False,
        first_paint(command, FAR),
        [Line(f"{name}: first paint, {FAR} ms away", CULVERT, target, rivals)],
        base=None,
    )


def _near(name: str, command: str) -> Work:
    return Work(
        f"x11-{name}-0ms",
        "s",
        False,
        first_paint(command, 0),
        [Line(f"{name}: first paint", CULVERT, NEAR_TARGET)],
    )


X11_WORKS = (
    *(_far(name, command, target) for name, (command, target) in PROGRAMS.items()),
    *(_near(name, command) for name, (command, _) in PROGRAMS.items()),
)
