"""A program two hops away is shown on a display here, and looks as if it ran here.

Three machines in a row: the desk, which has the display, reaches the first server only, and that
one the second. `culvert x11` runs a terminal on the second. The picture of its window is kept, and
compared with that of the same terminal which has the display without any SSH.
"""

import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.demo.stage import expect, say
from tests.displays import Screen, running, screen
from tests.netns import Namespace, connect, wait_until
from tests.peers import (
    CULVERT,
    SERVERS,
    Account,
    Keyring,
    Server,
    ServerSettings,
    environment,
    find_program,
    private_folder,
    start,
)

PORT = 2222
FIRST, SECOND = "198.51.100.1", "203.0.113.2"
DISPLAY_OFFSET = 700  # far from the displays that the user of this machine may have

PICTURE = """
  A program two hops away (culvert x11 first second -- xterm; {server} sshd)

       desk ------------------ first ------------------ second
     Xvfb {display:<6}   {first}     203.0.113.1   {second}
"""
SCRIPT = """
tput civis
echo; echo "  This terminal runs on the second server, with these addresses:"; echo
ip -4 -brief address; echo
echo "  It knows no way to the desk, which its display is at:"; echo
ip -4 route
exec sleep 60
"""
TERMINAL = ["xterm", "-T", "two hops away", "-geometry", "66x12", "-fa", "Monospace", "-fs", "11"]
COLOURS = ["-bg", "#10242e", "-fg", "#e8f0f2"]


@dataclass
class Row:
    """The three machines."""

    desk: Namespace
    first: Namespace
    second: Namespace

    def processes(self) -> list[int]:
        """Return what still runs inside."""
        return [pid for each in (self.desk, self.first, self.second) for pid in each.processes()]


@contextmanager
def row() -> Iterator[Row]:
    """Build the machines; nothing is forwarded between the links."""
    with ExitStack() as undo:
        made = Row(*(Namespace(name) for name in ("desk", "first", "second")))
        for each in (made.desk, made.first, made.second):
            undo.callback(each.close)
        connect(made.desk, made.first, "left", ["198.51.100.9/24"], [f"{FIRST}/24"])
        connect(made.first, made.second, "right", ["203.0.113.1/24"], [f"{SECOND}/24"])
        yield made


@contextmanager
def servers(machines: Row, folder: Path, kind: str) -> Iterator[list[Server]]:
    """Start a server at both hops, and write `folder`/config, in which they are first, second."""
    keygen = [*CULVERT, "keygen"] if kind == "culvert" else ["ssh-keygen"]
    host, user = (Keyring(folder / name, keygen) for name in ("host", "user"))
    authorized = folder / "authorized" / "authorized_keys"
    authorized.parent.mkdir(mode=0o700)
    authorized.write_text(f"{user.public()}\n")
    authorized.chmod(0o600)
    toml = folder / "sshd.toml"
    toml.write_text(f"x11_display_offset = {DISPLAY_OFFSET}\n")
    words: dict[str, tuple[str, ...]] = {
        "culvert": ("--config", str(toml)),
        # OpenSSH's server leaves its cookies in their file.
        "openssh": (
            "-oX11Forwarding=yes",
            f"-oX11DisplayOffset={DISPLAY_OFFSET}",
            f"-oSetEnv=XAUTHORITY={folder}/cookies",
        ),
    }
    places = {"first": (machines.first, FIRST), "second": (machines.second, SECOND)}
    with ExitStack() as up:
        running = []
        for name, (space, address) in places.items():
            (folder / name).mkdir()
            settings = ServerSettings(
                [host.key()], address, authorized, namespace=space, options=words[kind]
            )
            running.append(start(SERVERS[kind], settings, folder / name, PORT))
            up.callback(running[-1].stop)
        known = folder / "known"
        known.write_text(f"* {' '.join(host.public().split()[:2])}\n")
        hosts = (f"Host {name}\n HostName {place[1]}\n" for name, place in places.items())
        (folder / "config").write_text(
            f"{''.join(hosts)}Host *\n Port {PORT}\n User {Account.current().name}\n"
            f" IdentityFile {user.key()}\n BatchMode yes\n UserKnownHostsFile {known}\n"
        )
        yield running


def demonstrate(server_kind: str, picture: Path) -> None:
    """Build the machines, show everything, take it all down. Raises Failed."""
    with private_folder("demo") as folder, screen(folder / "screen") as display, row() as machines:
        places = {"first": FIRST, "second": SECOND, "display": display.name}
        print(PICTURE.format(server=server_kind, **places), flush=True)
        expect(machines.desk.ping(FIRST), "the desk does not reach the first server")
        expect(not machines.desk.ping(SECOND, seconds=0.3), "the desk reaches the second server")
        say("the way", "the desk reaches the first server only, and that one the second")
        with servers(machines, folder, server_kind) as (first, second):
            env = environment(display.folder) | display.variables
            client = [*CULVERT, "x11", "-F", str(folder / "config")]
            check(machines, client, env)
            show(machines, client, env, display, picture)
            if server_kind == "culvert":
                expect("x11 localhost:" in second.log, "the second server had no display")
                expect("x11 localhost:" not in first.log, "the first server had a display")
            say("first", "passes on what it cannot read; it has no display, no cookie and no xauth")
        expect(not machines.processes(), "something still runs on a machine")
    say("taken down", "no process, display, namespace or file is left")


def check(machines: Row, client: list[str], env: dict[str, str]) -> None:
    """Show that --check finds nothing in the way."""
    argv = machines.desk.command([*client, "--check", "first", "second"])
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    expect(done.returncode == 0, f"culvert x11 --check:\n{done.stdout}{done.stderr}")
    say("--check", f"{len(done.stdout.splitlines())} things tried, nothing is in the way")


def show(
    machines: Row, client: list[str], env: dict[str, str], display: Screen, picture: Path
) -> None:
    """Show the terminal with and without SSH, and keep its picture."""
    title = TERMINAL[2]
    terminal = [find_program("xterm"), *TERMINAL[1:], *COLOURS, "-e", SCRIPT]
    began = time.monotonic()
    command = shlex.join(["exec", *terminal])
    with running(machines.desk.command([*client, "first", "second", "--", command]), env):
        shown = wait_until(lambda: display.is_shown(title), 20)
        expect(shown, "the terminal did not come to the display")
        window = display.window(title)
        took = time.monotonic() - began
        picture.parent.mkdir(parents=True, exist_ok=True)
        display.picture(window, picture)
    say("xterm", f"of the second server, on the display after {took:.1f} s: {picture}")
    with running(machines.second.command(terminal), display.env):
        local = display.picture(display.window(title), display.folder / "local.png")
    differing = display.differing(local, picture)
    expect(differing == 0, f"{differing} pixels differ from the picture without SSH")
    say("picture", "0 pixels differ from the same terminal without SSH")
