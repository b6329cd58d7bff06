"""Programs of OpenSSH's server on a display here: as they look locally, and what they cannot do."""

import contextlib
import os
import pty
import re
import shlex
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import MalformedMessage
from appliance.wire.x11 import COOKIE_PROTOCOL, SetUpRequest
from appliance.x11.filter import Filter
from tests.displays import Screen, running, screen
from tests.interop.conftest import OURS
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    find_program,
)

pytestmark = [pytest.mark.xdist_group("x11"), pytest.mark.usefixtures("no_cookies_stay")]

BOTH = pytest.mark.parametrize("option", ["-X", "-Y"])
STAY = "while echo; do sleep 0.2; done"  # until nobody reads it
QUIET = "export NO_AT_BRIDGE=1 GTK_A11Y=none;"  # no accessibility bus for zenity


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    """A display of this machine with a cookie."""
    with screen(tmp_path_factory.mktemp("display")) as made:
        yield made


@pytest.fixture
def there(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    account: Account,
    request: pytest.FixtureRequest,
) -> Server:
    """OpenSSH's server, which forwards X11."""
    keys = None if account.password else request.getfixturevalue("authorized_keys")
    settings = ServerSettings(
        host_keys=host_keys.keys(), authorized_keys=keys, accounts=[account],
        options=("-oX11Forwarding=yes",),
    )  # fmt: skip
    return serve(SERVERS["openssh"], settings)


class Line:
    """Command lines of our client that lead to a server, from a display."""

    def __init__(self, server: Server, login: Login, env: dict[str, str]) -> None:
        self.server = server
        self.login = login
        self.env = env

    def _call(self, command: str, *options: str) -> tuple[list[str], dict[str, str]]:
        client = CLIENTS[OURS]
        call = client.invocation(self.server, self.login, QUIET + command, options=options)
        return call.argv, call.env | self.env

    def run(
        self, command: str, *options: str, seconds: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        argv, env = self._call(command, *options)
        return subprocess.run(
            argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=seconds, check=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def program(self, command: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command there until the end of the block."""
        argv, env = self._call(f"exec {command}", *options)
        with running(argv, env) as process:
            yield process


@pytest.fixture
def line(there: Server, login: Login, display: Screen) -> Line:
    return Line(there, login, display.variables)


# -- programs ----------------------------------------------------------------------------


PROGRAMS = {
    "xclock": "xclock -analog -update 10000 -title xclock",
    "xterm": "xterm -T xterm -e 'tput civis; seq 20; exec sleep 60'",
    "zenity": "zenity --info --title=zenity --text=hello",
    "xlogo": "xlogo -render -title xlogo",
    "xeyes": "xlogo -shape -title xeyes",
    "bitmap": "xmessage -title bitmap -buttons yes,no something",
}


@BOTH
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_looks_as_it_does_locally(
    name: str, option: str, line: Line, display: Screen, tmp_path: Path
) -> None:
    command = PROGRAMS[name]
    with running(["/bin/sh", "-c", f"exec {command}"], display.env):
        local = display.picture(display.window(name), tmp_path / "local.png")
    assert wait_until(lambda: not display.is_shown(name), 10)
    with line.program(command, option):
        picture = display.picture(display.window(name), tmp_path / "forwarded.png")
    assert display.differing(local, picture) == 0
    assert wait_until(lambda: not display.is_shown(name), 10)


@BOTH
def test_a_program_can_be_used(option: str, line: Line, display: Screen, tmp_path: Path) -> None:
    """Keys and the pointer reach it, a menu opens, and the bell rings."""
    typed = tmp_path / "typed"
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    command = f"xterm -T used -e 'printf \"\\a\"; read x; echo $x >{typed}'"
    with line.program(command, option) as process:
        window = display.window("used")
        display.run("xdotool", "mousemove", "--window", window, "50", "50")
        display.run("xdotool", "windowfocus", "--sync", window)
        display.run("xdotool", "type", "hello")
        display.run("xdotool", "key", "Return")
        assert wait_until(typed.exists, 10)
        assert wait_until(lambda: typed.read_text() == "hello\n", 5)
        assert process.wait(10) == 0


@BOTH
def test_extensions_of_this_machines_programs_are_hidden(option: str, line: Line) -> None:
    shown = line.run("xdpyinfo -queryExtensions", option).stdout
    assert "RENDER" in shown and "XKEYBOARD" in shown and "BIG-REQUESTS" in shown
    assert "MIT-SHM" not in shown and "DRI" not in shown
    assert ("XTEST" in shown) is (option == "-Y")
    assert ("RECORD" in shown) is (option == "-Y")


@BOTH
def test_the_x_server_takes_the_client_for_ssh(option: str, line: Line, display: Screen) -> None:
    with line.program("xclock -title named", option) as process:
        display.window("named")
        name = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert name.startswith(b"ssh: culvert ")


@BOTH
def test_gl_is_software_at_the_programs_end(option: str, line: Line, display: Screen) -> None:
    here = display.run("glxinfo", "-B").stdout.decode().splitlines()
    there = line.run("glxinfo -B", option).stdout.splitlines()
    assert "direct rendering: Yes" in there
    assert [each for each in there if "renderer string" in each] == [
        each for each in here if "renderer string" in each
    ]


# -- attackers ---------------------------------------------------------------------------


@pytest.fixture
def victim(display: Screen) -> Iterator[str]:
    """The window of a program of this machine, in which somebody types."""
    log = display.folder / "victim"
    log.unlink(missing_ok=True)
    with display.program("xterm", "-T", "victim", "-e", f"read x; echo $x >{log}; sleep 60"):
        yield display.window("victim")


@BOTH
def test_a_picture_of_the_screen(option: str, line: Line, victim: str) -> None:
    for window in ("root", victim):
        done = line.run(f"import -window {window} png:- | wc -c", option)
        assert (int(done.stdout) > 200) is (option == "-Y"), done.stderr
        done = line.run(
            f"xwd -silent -{'root' if window == 'root' else 'id ' + window} | wc -c", option
        )
        assert (int(done.stdout) > 200) is (option == "-Y"), done.stderr


@BOTH
@pytest.mark.parametrize("way", ["background", "above", "root"])
def test_what_others_have_drawn(option: str, way: str, line: Line, display: Screen) -> None:
    """Through a window that paints nothing, one that is covered, and the root.

    The picture of a covered window has nothing of those above it, by the server itself.
    """
    red = ("xmessage", "-title", "red", "-bg", "red", "-geometry", "200x200+0+0", "x")
    with display.program(*red):
        display.window("red")
        script = PEEK.replace("WAY", way)
        done = line.run(f"/usr/bin/python3 -c {shlex.quote(script)}", option)
    assert done.stdout in ("seen\n", "nothing\n"), done.stderr
    assert (done.stdout == "seen\n") is (option == "-Y" and way != "above"), done.stderr


PEEK = """
from Xlib import X, error
from Xlib.display import Display
display = Display()
display.set_error_handler(lambda *_: None)
screen = display.screen()
root = screen.root
values = {} if 'WAY' == 'background' else {'background_pixel': 0}
window = root.create_window(0, 0, 150, 150, 0, 24, override_redirect=1, **values)
pixmap = window.create_pixmap(150, 150, 24)
gc = pixmap.create_gc(foreground=0)
pixmap.fill_rectangle(gc, 0, 0, 150, 150)
window.configure(stack_mode=X.Above if 'WAY' == 'background' else X.Below)
window.map()
display.sync()
source = root if 'WAY' == 'root' else window
if 'WAY' in ('background', 'root'):
    gc = pixmap.create_gc(foreground=0, subwindow_mode=X.IncludeInferiors)
    pixmap.copy_area(gc, source, 0, 0, 150, 150, 0, 0)
    source = pixmap
display.sync()
try:
    data = source.get_image(0, 0, 150, 150, X.ZPixmap, 0xffffffff).data
except error.XError:
    data = b''
print('seen' if bytes((0, 0, 255)) in data else 'nothing')
"""


@BOTH
def test_keys_typed_elsewhere(option: str, line: Line, victim: str, display: Screen) -> None:
    """Raw events of XInput 2 on the root, which xinput test-xi2 prints."""
    command = "stdbuf -oL timeout 6 xinput test-xi2 --root"
    argv, env = line._call(command, option)
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as spy:
        time.sleep(2)
        display.run("xdotool", "windowfocus", "--sync", victim)
        display.run("xdotool", "type", "secret")
        out, _ = spy.communicate(timeout=30)
    assert (b"RawKeyPress" in out) is (option == "-Y"), out
    assert b"KeyPress" not in out or option == "-Y"


@BOTH
def test_the_keys_that_are_down(option: str, line: Line, display: Screen, victim: str) -> None:
    display.run("xdotool", "keydown", "a")
    try:
        done = line.run(f"{KEYMAP}", option)
    finally:
        display.run("xdotool", "keyup", "a")
    assert (done.stdout.strip() != "0" * 64) is (option == "-Y"), (done.stdout, done.stderr)


KEYMAP = (
    "/usr/bin/python3 -c 'from Xlib.display import Display;"
    'print("".join("%02x" % b for b in Display().query_keymap()))\''
)


@BOTH
def test_typing_for_the_user(option: str, line: Line, victim: str, display: Screen) -> None:
    display.run("xdotool", "windowfocus", "--sync", victim)
    line.run(f"xdotool type evil; xdotool key --window {victim} Return Return", option)
    line.run("xdotool key Return", option)
    log = display.folder / "victim"
    if option == "-Y":
        assert wait_until(log.exists, 5)
    else:
        time.sleep(1)
        assert not log.exists()


def test_properties_selections_and_windows_of_others(
    line: Line, victim: str, display: Screen
) -> None:
    for command in (
        f"xprop -id {victim} -f SPY 8s -set SPY x", f"xprop -id {victim} -remove WM_NAME",
        "xprop -root -f SPY 8s -set SPY x", "xset r rate 1 1", "xset -r",
        f"xdotool windowunmap {victim}", f"xdotool windowmove {victim} 300 300",
        f"xkill -id {victim}", "xdotool mousemove 700 500", "xset fp= /nowhere",
    ):  # fmt: skip
        line.run(command, "-X")
    seen = display.run("xprop", "-id", victim).stdout + display.run("xprop", "-root").stdout
    assert b"SPY" not in seen
    assert b'WM_NAME(STRING) = "victim"' in seen
    state = display.run("xwininfo", "-id", victim).stdout
    assert b"IsViewable" in state and b"Absolute upper-left X:  300" not in state
    assert b"x:700" not in display.run("xdotool", "getmouselocation").stdout
    assert "victim" not in line.run(f"xprop -id {victim} WM_NAME", "-X").stdout


def test_access_control_stays_as_it_is(line: Line, display: Screen) -> None:
    line.run("xhost +", "-X")
    assert b"access control enabled" in display.run("xhost").stdout


# -- the clipboard -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "offers", "reads"),
    [
        (("-X",), True, False),
        (("-X", "-oX11Clipboard=none"), False, False),
        (("-X", "-oX11Clipboard=in"), False, True),
        (("-X", "-oX11Clipboard=both"), True, True),
        (("-Y",), True, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_the_clipboard_is_by_policy(
    options: tuple[str, ...], offers: bool, reads: bool, line: Line, display: Screen
) -> None:
    for selection in ("clipboard", "primary"):
        for size in (5, 2_000_000):  # what is longer than a request goes in pieces
            text = os.urandom(size).hex()
            with own(display, selection, text):
                done = line.run(f"timeout 5 xclip -o -selection {selection}", *options)
                assert (done.stdout == text) is reads, done.stderr
                assert reads or not done.stdout
        count = 100_000
        script = f"seq {count} | xclip -quiet -loops 2 -selection {selection}"
        with line.program(f"/bin/sh -c {shlex.quote(script)}", *options):
            time.sleep(1.5)
            done_here = display.run("xclip", "-o", "-selection", selection, timeout=10)
            wanted = "".join(f"{number}\n" for number in range(1, count + 1)).encode()
            assert (done_here.stdout == wanted) is offers
            assert offers or not done_here.stdout


@contextlib.contextmanager
def own(display: Screen, selection: str, text: str) -> Iterator[None]:
    """Have a program of this machine offer a text."""
    argv = [find_program("xclip"), "-quiet", "-selection", selection]
    with subprocess.Popen(
        argv, env=display.env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        time.sleep(0.5)
        try:
            yield
        finally:
            process.terminate()


# -- several hops ------------------------------------------------------------------------


@BOTH
def test_a_display_that_is_forwarded_itself(
    option: str, line: Line, display: Screen, account: Account, there: Server, login: Login
) -> None:
    """By OpenSSH's client, as -X and -Y from board to board: localhost:N at a TCP port."""
    call = CLIENTS["openssh"].invocation(there, login, f"echo $DISPLAY; {STAY}", options=["-Y"])
    with running(call.argv, call.env | line.env) as outer:
        assert outer.stdout is not None
        name = outer.stdout.readline().decode().strip()
        assert name.startswith("localhost:")
        env = {"DISPLAY": name, "XAUTHORITY": str(account.home / ".Xauthority")}
        with Line(there, login, env).program("xclock -title nested", option):
            display.window("nested")


# -- what is said ------------------------------------------------------------------------


def test_no_cookie_stands_in_what_the_client_says_of_itself(line: Line, display: Screen) -> None:
    done = line.run("xauth list | tail -n 1; xdpyinfo >&2", "-X", "-vvv")
    real = display.run("xauth", "list", display.name).stdout.split()[-1].decode()
    fake = done.stdout.split()[2]
    assert len(fake) == len(real) == 32 and fake != real
    assert "X11: " in done.stderr
    for cookie in (fake, real):
        assert cookie not in done.stderr
        assert repr(bytes.fromhex(cookie))[2:-1] not in done.stderr


def test_a_program_without_the_cookie_is_told_why(line: Line) -> None:
    done = line.run("XAUTHORITY=/dev/null xclock", "-X")
    assert "culvert: no cookie" in done.stderr


@pytest.mark.parametrize("name", [":999", "localhost:999", "127.0.0.2:999", "/nowhere/x:0"])
def test_a_dead_display_fails_a_program_and_no_shell(
    name: str, there: Server, login: Login
) -> None:
    line = Line(there, login, {"DISPLAY": name})
    began = time.monotonic()
    done = line.run("xclock; echo still here", "-X")
    assert done.stdout == "still here\n"
    assert "culvert: the display cannot be reached" in done.stderr
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["", "$(touch /tmp/culvert-x11-evil)", "none"])
def test_no_display_is_a_warning_for_who_asked(name: str, there: Server, login: Login) -> None:
    line = Line(there, login, {"DISPLAY": name})
    done = line.run("echo ${DISPLAY:-none}", "-X")
    assert (done.returncode, done.stdout) == (0, "none\n")
    assert done.stderr.startswith("Warning: X11 is not forwarded: DISPLAY")
    assert not Path("/tmp/culvert-x11-evil").exists()
    done = line.run("echo ${DISPLAY:-none}", "-oForwardX11=yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", "")


@pytest.mark.parametrize(
    ("option", "said"),
    [("-X", "X11 forwarding request failed on channel 0\n"), ("-oForwardX11=yes", "")],
)
@pytest.mark.parametrize("server", ["openssh", "dropbear"], indirect=True)
def test_a_server_that_forwards_none_is_a_warning_for_who_asked(
    option: str, said: str, server: Server, login: Login, display: Screen
) -> None:
    """Debian's Dropbear is built without."""
    line = Line(server, login, display.variables)
    done = line.run("echo ${DISPLAY:-none}", option)
    assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", said)


def test_after_the_timeout_programs_stay_and_no_new_ones_start(line: Line, display: Screen) -> None:
    options = ("-X", "-oForwardX11Timeout=3")
    command = f"/bin/sh -c 'xclock -title early & sleep 4; xclock -title late; echo $?; {STAY}'"
    argv, env = line._call(command, *options)
    with running(argv, env) as process:
        display.window("early")
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        assert display.is_shown("early") and not display.is_shown("late")


def test_a_display_without_access_control_needs_no_cookie(
    there: Server, login: Login, tmp_path: Path
) -> None:
    with screen(tmp_path / "open", access_control=False) as display:
        line = Line(there, login, {"DISPLAY": display.name, "XAUTHORITY": "/nowhere"})
        with line.program("xclock -title free", "-X"):
            display.window("free")
        assert line.run("echo", "-X").stderr == ""


def test_a_display_that_stands_still_leaves_the_shell_alive(line: Line, display: Screen) -> None:
    argv, env = line._call("xclock -title still & read x; echo got $x; kill $!", "-X")
    with subprocess.Popen(
        argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        display.window("still")
        display.stand_still()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"word\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got word\n"
        finally:
            display.go_on()
        process.communicate(timeout=20)


def test_a_script_does_not_wait_for_programs_that_stay(line: Line, display: Screen) -> None:
    began = time.monotonic()
    done = line.run("xclock -title stays >/dev/null 2>&1 & sleep 1; echo done", "-X")
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
    assert 9 < time.monotonic() - began < 20
    assert wait_until(lambda: not display.is_shown("stays"), 5)


def test_a_person_is_told_once_what_is_waited_for(line: Line, display: Screen) -> None:
    argv, env = line._call("xclock -title waits >/dev/null 2>&1 & sleep 1; echo done", "-X")
    status, out = on_terminal(argv, env, lambda: display.window("waits"))
    assert out.count(b"Waiting for X11 programs") == 1
    assert status == 130
    assert wait_until(lambda: not display.is_shown("waits"), 5)


def on_terminal(
    argv: list[str], env: dict[str, str], is_up: Callable[[], object]
) -> tuple[int, bytes]:
    """Run a client on a terminal of its own; ^C once it waits."""
    pid, fd = pty.fork()
    if not pid:
        os.execve(argv[0], argv, env)
    out = b""
    try:
        is_up()
        end = time.monotonic() + 20
        while time.monotonic() < end and b"Waiting" not in out:
            out += os.read(fd, 1000)
        time.sleep(3)
        os.write(fd, b"\x03")
        with contextlib.suppress(OSError):
            while more := os.read(fd, 1000):
                out += more
    finally:
        os.close(fd)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), out


# -- shared connections ------------------------------------------------------------------


def test_sessions_that_share_a_connection_are_trusted_as_they_asked(
    line: Line, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        for master, wanted, trusted in (
            ("-Y", "-X", False),
            ("-Y", "-Y", True),
            ("-X", "-Y", False),
        ):
            path = tmp_path / f"m{master}{wanted}"
            argv, env = line._call(STAY, master, "-M", "-S", str(path))
            stack.enter_context(running(argv, env))
            assert wait_until(path.exists, 10)
            shown = line.run("xdpyinfo -queryExtensions", wanted, "-S", str(path)).stdout
            assert "RENDER" in shown
            assert ("XTEST" in shown) is trusted
            quiet = line.run("echo ${DISPLAY:-none}", "-S", str(path))
            assert quiet.stdout == "none\n"


# -- the filter and an X server, without SSH ---------------------------------------------


class Direct:
    """A program's connection to the display, with only the filter between."""

    def __init__(self, display: Screen, trusted: bool) -> None:
        cookie = display.run("xauth", "list", display.name).stdout.split()[-1].decode()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(f"/tmp/.X11-unix/X{display.number}")
        self.filter = Filter("<", "out", trusted)
        self.sock.sendall(SetUpRequest("<", 11, 0, COOKIE_PROTOCOL, bytes.fromhex(cookie)).encode())
        self._seen = b""
        head = self._take(8)
        reply = self._take(4 * int.from_bytes(head[6:], "little"))
        self.base = int.from_bytes(reply[4:8], "little")
        vendor, formats = int.from_bytes(reply[16:18], "little"), reply[21]
        place = 32 + (vendor + 3 & ~3) + 8 * formats
        self.root = int.from_bytes(reply[place : place + 4], "little")

    def _take(self, count: int) -> bytes:
        while len(self._seen) < count:
            data = self.sock.recv(1 << 20)
            assert data
            self._seen += self.filter.from_server(data)
        taken, self._seen = self._seen[:count], self._seen[count:]
        return taken

    def send(self, opcode: int, minor: int, layout: str, *fields: int | bytes) -> None:
        body = struct.pack("<" + layout, *fields)
        data = struct.pack("<BBH", opcode, minor, 1 + len(body) // 4) + body
        for piece in self.filter.from_client(data):
            self.sock.sendall(piece)

    def extension(self, name: bytes) -> int:
        self.send(98, 0, f"Hxx{len(name)}s{-len(name) % 4}x", len(name), name)
        return self.answer()[9]

    def window(self, number: int, mask: int, *values: int) -> None:
        """Ask for a window that no window manager cares for, with more attributes than that."""
        layout = "IIhhHHHHI" + "I" * (len(values) + 3)
        place = (0, 0, 99, 99, 0, 1, 0)
        self.send(1, 0, layout, number, self.root, *place, mask | 0x202, 0, 1, *values)

    def sees(self, drawable: int, color: bytes) -> bool:
        """Whether the color is in the picture of a drawable, after errors that do not matter."""
        self.send(43, 0, "")
        while not self.answer():
            pass
        self.send(73, 2, "IhhHHI", drawable, 0, 0, 99, 99, 0xFFFFFFFF)
        return color in self.answer()

    def answer(self) -> bytes:
        """The next reply or error; b'' for an error."""
        while True:
            head = self._take(32)
            if head[0] == 0:
                return b""
            if head[0] == 1:
                return head + self._take(4 * int.from_bytes(head[4:8], "little"))


@pytest.mark.parametrize("trusted", [False, True])
def test_render_reads_no_window_and_so_nothing_above_it(display: Screen, trusted: bool) -> None:
    """The server leaves out of GetImage what is above a window, but not here."""
    formats = display.run("xdpyinfo", "-ext", "RENDER").stdout.decode()
    picture_format = int(formats.partition("pict format id:")[2].split()[0], 16)
    red = ("xmessage", "-title", "red", "-bg", "red", "-geometry", "200x200+0+0", "x")
    with display.program(*red):
        display.window("red")
        it = Direct(display, trusted)
        window, pixmap, source, target = (it.base + number for number in range(1, 5))
        with it.sock:
            it.send(98, 0, "Hxx6sxx", 6, b"RENDER")
            render = it.answer()[9]
            it.send(1, 0, "IIhhHHHHIIII", window, it.root, 0, 0, 99, 99, 0, 1, 0, 0x202, 0, 1)
            it.send(12, 0, "III", window, 0x40, 1)  # below all others
            it.send(8, 0, "I", window)
            it.send(53, 24, "IIHH", pixmap, it.root, 99, 99)
            it.send(render, 4, "IIII", source, window, picture_format, 0)
            it.send(render, 4, "IIII", target, pixmap, picture_format, 0)
            it.send(render, 8, "BxxxIIIhhhhhhHH", 1, source, 0, target, 0, 0, 0, 0, 0, 0, 99, 99)
            it.send(43, 0, "")
            assert bool(it.answer()) is trusted
            if trusted:
                it.send(73, 2, "IhhHHI", pixmap, 0, 0, 99, 99, 0xFFFFFFFF)
                assert bytes((0, 0, 255)) in it.answer()


@pytest.mark.parametrize("trusted", [False, True])
def test_a_wrong_enabling_of_big_requests_hides_no_request(display: Screen, trusted: bool) -> None:
    """For the server the rest of such a request would be a request of its own: QueryKeymap here."""
    it = Direct(display, trusted)
    with it.sock:
        it.send(98, 0, "Hxx12s", 12, b"BIG-REQUESTS")
        it.send(it.answer()[9], 0, "I", 0)
        assert not it.answer()
        with pytest.raises(MalformedMessage):
            it.filter.from_client(struct.pack("<BBHI", 127, 0, 0, 44 | 1 << 16))


def test_an_answer_is_not_taken_for_another_with_the_same_number(display: Screen) -> None:
    """The keys that are down, in a reply that the filter would take for another one."""
    it = Direct(display, trusted=False)
    with it.sock:
        early = struct.pack("<BBH", 43, 0, 1) + struct.pack("<BBH", 127, 0, 1) * 65_535
        with pytest.raises(MalformedMessage):
            it.filter.from_client(early + struct.pack("<BBH", 44, 0, 1))


def test_a_program_that_draws_for_long_without_an_answer_goes_on(display: Screen) -> None:
    """As Xlib does it: one request in 65535 has a reply, which nobody waits for."""
    it = Direct(display, trusted=False)
    requests = struct.pack("<BBH", 127, 0, 1) * 65_534 + struct.pack("<BBH", 43, 0, 1)
    with it.sock:
        for _ in range(3):
            for piece in it.filter.from_client(requests):
                it.sock.sendall(piece)
        it.send(44, 0, "")
        for number in (65_535, 131_070, 196_605, 196_606):
            assert it.answer()[2:4] == struct.pack("<H", number & 0xFFFF)


RED = bytes((0, 0, 255))


@pytest.fixture
def red(display: Screen) -> Iterator[None]:
    """A red window of another program, at the screen's upper left corner."""
    argv = ("xmessage", "-title", "red", "-bg", "red", "-geometry", "200x200+0+0", "x")
    with display.program(*argv):
        display.window("red")
        yield


@pytest.mark.usefixtures("red")
@pytest.mark.parametrize("trusted", [False, True])
def test_the_pixmap_of_a_window_without_a_shape(display: Screen, trusted: bool) -> None:
    """Composite makes it with all that is on the screen at the window's place."""
    it = Direct(display, trusted)
    window, pixmap = it.base + 1, it.base + 2
    with it.sock:
        composite, shape = it.extension(b"Composite"), it.extension(b"SHAPE")
        it.window(window, 0)
        it.send(shape, 1, "BBBxIhh", 0, 0, 0, window, 0, 0)
        it.send(composite, 1, "IBxxx", window, 1)
        it.send(8, 0, "I", window)
        assert not it.sees(window, RED)
        it.send(composite, 6, "II", window, pixmap)
        assert it.sees(pixmap, RED) is trusted


@pytest.mark.usefixtures("red")
@pytest.mark.parametrize("trusted", [False, True])
def test_a_covered_window_that_gets_a_pixmap_of_its_own(display: Screen, trusted: bool) -> None:
    it = Direct(display, trusted)
    windows = it.base + 1, it.base + 2
    with it.sock:
        composite = it.extension(b"Composite")
        for window in windows:
            it.window(window, 0)
            it.send(12, 0, "III", window, 0x40, 1)  # below all others
            it.send(8, 0, "I", window)
        it.send(composite, 1, "IBxxx", windows[0], 0)
        it.send(2, 0, "III", windows[1], 0x40, 2)  # backing-store: Always
        assert not it.sees(windows[0], RED)
        assert not it.sees(windows[1], RED)


@pytest.mark.parametrize("trusted", [False, True])
def test_the_keys_that_are_down_as_a_window_comes_under_the_pointer(
    display: Screen, trusted: bool
) -> None:
    display.run("xdotool", "mousemove", "50", "50")
    display.run("xdotool", "keydown", "a")
    try:
        it = Direct(display, trusted)
        with it.sock:
            it.window(it.base + 1, 0x800, 0x4010)
            it.send(8, 0, "I", it.base + 1)
            it.send(43, 0, "")
            event = b""
            while event[:1] != b"\13":
                event = it._take(32)
    finally:
        display.run("xdotool", "keyup", "a")
    assert any(event[1:]) is trusted


@pytest.mark.usefixtures("red")
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("way", ["not destroyed", "in a frame"])
def test_a_window_shows_what_was_there_by_no_way(display: Screen, way: str, trusted: bool) -> None:
    """A window that the filter takes for destroyed, and one in a window manager's frame."""
    it = Direct(display, trusted)
    window = it.base + 1
    manager = Direct(display, trusted=True)
    with it.sock, manager.sock:
        it.window(window, 0)
        if way == "in a frame":
            it.send(2, 0, "III", window, 1, 1)  # background: that of the parent
            it.sees(window, RED)
            frame = manager.base + 1
            manager.window(frame, 0)
            manager.send(2, 0, "III", frame, 1, 0)  # background: none
            manager.send(7, 0, "IIhh", window, frame, 0, 0)
            manager.send(8, 0, "I", frame)
            manager.sees(frame, RED)
        else:
            it.send(4, 0, "II", window, 0)
            it.send(1, 0, "IIhhHHHHII", window, it.root, 0, 0, 99, 99, 0, 2, 0, 0)
            it.send(2, 0, "III", window, 1, 0)
        it.send(8, 0, "I", window)
        assert it.sees(window, RED) is trusted


@pytest.mark.parametrize("trusted", [False, True])
def test_a_property_of_an_input_device_is_read_and_stays(tmp_path: Path, trusted: bool) -> None:
    device = "Virtual core XTEST keyboard"
    with screen(tmp_path / "display") as display:
        number = int(display.run("xinput", "list", "--id-only", device).stdout)
        before = display.run("xinput", "list-props", device).stdout.decode()
        atom = int(before.partition("XTEST Device (")[2].partition(")")[0])
        it = Direct(display, trusted)
        with it.sock:
            xinput = it.extension(b"XInputExtension")
            it.send(xinput, 47, "HH", 2, 0)
            assert it.answer()
            it.send(xinput, 59, "HBxIIII", number, 1, atom, 0, 0, 100)
            assert it.answer()[32] == 1
        after = display.run("xinput", "list-props", device).stdout.decode()
        assert ("XTEST Device" in after) is not trusted


@pytest.mark.parametrize("trusted", [False, True])
def test_the_letters_that_others_show(display: Screen, trusted: bool) -> None:
    """Drawn from another program's glyph set, into a pixmap of one's own."""
    formats = display.run("xdpyinfo", "-ext", "RENDER").stdout.decode()
    of_screen = int(formats.partition("pict format id:")[2].split()[0], 16)
    found = re.search(r"format id: *(\w+)\n\s*type: *Direct\n\s*depth: *8\n", formats)
    assert found is not None
    alpha = int(found[1], 16)
    it, other = Direct(display, trusted), Direct(display, trusted=True)
    with it.sock, other.sock:
        render, glyphs = other.extension(b"RENDER"), other.base + 1
        other.send(render, 17, "II", glyphs, alpha)
        other.send(render, 20, "IIIHHhhhh64s", glyphs, 1, 65, 8, 8, 0, 0, 8, 0, b"\xff" * 64)
        other.send(43, 0, "")
        assert other.answer()
        it.extension(b"RENDER")
        own, pixmap, target, ink, gc = (it.base + number for number in range(1, 6))
        it.send(render, 17, "II", own, alpha)
        it.send(53, 24, "IIHH", pixmap, it.root, 99, 99)
        it.send(55, 0, "IIII", gc, pixmap, 4, 0)
        it.send(70, 0, "IIhhHH", pixmap, gc, 0, 0, 99, 99)
        it.send(render, 4, "IIII", target, pixmap, of_screen, 0)
        it.send(render, 33, "IHHHH", ink, 0xFFFF, 0, 0, 0xFFFF)
        it.send(
            render, 23, "BxxxIIIIhhBxxxhhIBxxxhhBxxx", 3, ink, target, 0, own, 0, 0, 255, 0, 0,
            glyphs, 1, 10, 10, 65,
        )  # fmt: skip
        assert it.sees(pixmap, RED) is trusted
