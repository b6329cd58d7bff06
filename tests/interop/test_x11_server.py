"""X11 forwarding by our server: clients of every kind show its programs on a real X server."""

import asyncio
import contextlib
import os
import pwd
import random
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

from tests.displays import Screen, screen
from tests.interop.conftest import OURS
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Keyring,
    Login,
    Server,
    ServerSettings,
    end,
    find_program,
    start,
)
from tests.processes import family, status

pytestmark = pytest.mark.root

LOOK = "echo $DISPLAY; xauth list $DISPLAY | wc -l; xdpyinfo | grep -c '^vendor string'"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Screen]:
    """The display that everything is shown on."""
    with screen(tmp_path / "screen") as it:
        yield it


Serve = Callable[..., Server]


@pytest.fixture
def serve_ours(
    host_keys: Keyring, user_keys: Keyring, account: Account, tmp_path: Path
) -> Iterator[Serve]:
    """A function that starts our server with these settings, and options before the user's keys."""
    running: list[Server] = []
    keys = account.home / ".ssh/authorized_keys"
    before = keys.read_text()

    def run(options: str = "", settings: str = "") -> Server:
        first = random.randrange(1000, 8000)  # ports below those that free_port gives
        config = tmp_path / f"sshd-{len(running)}.toml"
        config.write_text(f"x11_display_offset = {first}\n{settings}")
        kinds = ("ssh-ed25519", "ecdsa-sha2-nistp256")
        account.authorize([f"{options} {user_keys.public(kind)}" for kind in kinds])
        server = ServerSettings([host_keys.key()], options=("--config", str(config), "-v"))
        running.append(start(SERVERS[OURS], server, tmp_path / f"ours-{len(running)}"))
        return running[-1]

    yield run
    for server in running:
        server.stop()
    keys.write_text(before)
    assert wait_until(lambda: not (account.home / ".Xauthority").exists(), 5)


def first_of(server: Server) -> int:
    config = Path(server.settings.options[1]).read_text()
    return int(config.split()[2])


def listens(number: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", 6000 + number)) == 0


def by_program(
    name: str, option: str, server: Server, login: Login, command: str, here: Screen
) -> subprocess.CompletedProcess[str]:
    call = CLIENTS[name].invocation(server, login, command, options=(option,))
    env = call.env | here.variables
    return subprocess.run(
        call.argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        check=False, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option"),
    [("openssh", "-X"), ("openssh", "-Y"), ("plink", "-X"), (OURS, "-X"), (OURS, "-Y")],
)
def test_programs_show_themselves_by_clients_that_people_use(
    serve_ours: Serve, login: Login, here: Screen, name: str, option: str
) -> None:
    server = serve_ours()
    done = by_program(name, option, server, login, LOOK, here)
    first = first_of(server)
    assert done.stdout.split() == [f"localhost:{first}.0", "1", "1"], done.stderr
    assert wait_until(lambda: not listens(first), 5)
    assert f"x11 localhost:{first}.0 opened" in server.log
    assert wait_until(lambda: f"x11 localhost:{first}.0 closed" in server.log, 5)


def test_programs_show_themselves_by_asyncssh(
    serve_ours: Serve, login: Login, here: Screen
) -> None:
    server = serve_ours()

    async def look() -> str:
        async with asyncssh.connect(
            server.address, server.port, username=login.user, client_keys=[str(login.key)],
            known_hosts=None, config=None,
        ) as connection:  # fmt: skip
            done = await connection.run(
                LOOK, x11_forwarding=True, x11_display=here.name, x11_auth_path=str(here.authority)
            )
            return str(done.stdout)

    assert asyncio.run(look()).split() == [f"localhost:{first_of(server)}.0", "1", "1"]


@contextlib.contextmanager
def by_paramiko(server: Server, login: Login) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport(socket.create_connection((server.address, server.port)))
    try:
        transport.start_client(timeout=20)
        transport.auth_publickey(login.user, paramiko.PKey.from_path(str(login.key)))
        yield transport
    finally:
        transport.close()
        transport.join()


def cookie_of(here: Screen) -> str:
    done = here.run("xauth", "-f", str(here.authority), "list", here.name)
    return done.stdout.decode().split()[2]


def relay(channel: paramiko.Channel, here: Screen) -> None:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.closing(channel):
        sock.connect(f"/tmp/.X11-unix/X{here.number}")
        while True:
            for each in select.select([channel, sock], [], [])[0]:
                data = each.recv(65536)
                if not data:
                    return
                (sock if each is channel else channel).sendall(data)


@pytest.mark.parametrize("single", [False, True])
def test_programs_show_themselves_by_paramiko(
    serve_ours: Serve, login: Login, here: Screen, single: bool
) -> None:
    """It passes the display's own cookie on, and may ask for one connection only."""
    server = serve_ours()
    relays: list[threading.Thread] = []

    def arrived(channel: paramiko.Channel, _: tuple[str, int]) -> None:
        relays.append(threading.Thread(target=relay, args=(channel, here)))
        relays[-1].start()

    with by_paramiko(server, login) as transport:
        session = transport.open_session()
        session.request_x11(auth_cookie=cookie_of(here), single_connection=single, handler=arrived)
        session.exec_command(f"{LOOK}; xdpyinfo | grep -c '^vendor string'")
        output = session.makefile("rb").read().decode()
        session.close()
    for each in relays:
        each.join()
    assert output.split()[1:] == ["1", "1", "0" if single else "1"]
    assert len(relays) == (1 if single else 2)


WINDOWS = [
    ("xlogo", "xlogo -geometry 200x200+10+10"),
    ("there", "xterm -title there -fn fixed -e 'seq 1 20; exec sleep 60'"),
    ("asked", "zenity --info --title=asked --text=Well?"),
]


@pytest.mark.parametrize("relay", ["off", "on"])
@pytest.mark.parametrize(("title", "command"), WINDOWS)
def test_a_window_looks_as_it_does_when_the_program_runs_here(
    serve_ours: Serve,
    login: Login,
    here: Screen,
    tmp_path: Path,
    title: str,
    command: str,
    relay: str,
) -> None:
    """With the round trips hidden as well, of which each program has a few dozen."""
    local, far = tmp_path / "local.png", tmp_path / "far.png"
    with here.program("sh", "-c", f"exec {command}"):
        here.picture(here.window(title), local)
    assert wait_until(lambda: not here.is_shown(title))
    server = serve_ours(settings=f'x11_relay = "{relay}"\n')
    call = CLIENTS["openssh"].invocation(server, login, f"exec {command}", options=("-Y",))
    env = call.env | here.variables
    client = subprocess.Popen(call.argv, env=env, stdin=subprocess.DEVNULL)
    try:
        here.picture(here.window(title), far)
    finally:
        end(client)

    def counts() -> list[tuple[int, ...]]:
        found = re.findall(r"(\d+) round trips hidden, (\d+) left, (\d+) mistaken", server.log)
        return [tuple(map(int, each)) for each in found]

    if relay == "on":
        assert wait_until(lambda: any(hidden > 3 * left for hidden, left, _ in counts()), 5)
        assert not any(mistaken for *_, mistaken in counts())
    else:
        assert not counts()
    assert here.differing(local, far) == 0
    colours = here.run("identify", "-format", "%k", str(far)).stdout
    assert int(colours) > 1


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("no-x11-forwarding", ""),
        ("restrict", ""),
        ("", "x11_forwarding = false\n"),
        ("", "disable_forwarding = true\n"),
        ("", "x11_forwarding = true\n[[match]]\nuser = '*'\nx11_forwarding = false\n"),
    ],
)
def test_who_may_not_has_a_session_all_the_same(
    serve_ours: Serve, login: Login, here: Screen, options: str, settings: str
) -> None:
    server = serve_ours(options, settings)
    done = by_program("openssh", "-Y", server, login, "echo in ${DISPLAY-none}", here)
    assert (done.returncode, done.stdout) == (0, "in none\n"), done.stderr
    assert "X11 forwarding request failed" in done.stderr
    assert "x11 display refused: X11 forwarding is not allowed" in server.log


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("restrict,x11-forwarding", ""),
        ("", "x11_forwarding = false\n[[match]]\nuser = '*'\nx11_forwarding = true\n"),
        ("command=\"xdpyinfo | grep -c '^vendor'\"", ""),
    ],
)
def test_who_may_is_shown(
    serve_ours: Serve, login: Login, here: Screen, options: str, settings: str
) -> None:
    server = serve_ours(options, settings)
    done = by_program("openssh", "-Y", server, login, "xdpyinfo | grep -c '^vendor'", here)
    assert int(done.stdout) > 0, done.stderr


def test_every_address_may_be_listened_on_and_the_cookie_is_found_by_name(
    serve_ours: Serve, login: Login, here: Screen
) -> None:
    server = serve_ours("", "x11_use_localhost = false\n")
    done = by_program("openssh", "-Y", server, login, LOOK, here)
    shown, cookies, vendors = done.stdout.split()
    assert shown == f"{socket.gethostname()}:{first_of(server)}.0"
    assert int(cookies) >= 1 and vendors == "1", done.stderr


class Session:
    """A session by OpenSSH that stays open, and what its program says first."""

    def __init__(self, server: Server, login: Login, here: Screen, *options: str) -> None:
        command = "echo $DISPLAY $XAUTHORITY; exec cat"
        call = CLIENTS["openssh"].invocation(server, login, command, options=("-Y", *options))
        env = call.env | here.variables
        self.process = subprocess.Popen(
            call.argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        self.number = int(re.sub(r".*:|\..*", "", words[0]))
        self.file = Path(words[1])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert wait_until(lambda: not listens(self.number), 5)


def test_a_session_that_comes_back_finds_its_display_again(
    serve_ours: Serve, login: Login, here: Screen, user_keys: Keyring, account: Account
) -> None:
    """Shells in tmux have the old DISPLAY; and another key's display does not take its place."""
    server = serve_ours()
    first = first_of(server)
    other = Login(account, user_keys.key("ecdsa-sha2-nistp256"))
    one, two = Session(server, login, here), Session(server, other, here)
    assert (one.number, two.number) == (first, first + 1)
    one.end()
    two.end()
    os.kill(server.process.pid, signal.SIGHUP)  # it reads its settings again
    assert wait_until(lambda: "the settings are read again" in server.log, 20)
    for who, number in ((other, first + 1), (login, first), (login, first)):
        again = Session(server, who, here)
        assert again.number == number
        again.end()


def test_yesterdays_shell_in_tmux_shows_programs_again(
    serve_ours: Serve, login: Login, here: Screen, account: Account
) -> None:
    server = serve_ours()
    tmux = "tmux -L x11"

    def run(command: str) -> str:
        done = by_program("openssh", "-Y", server, login, command, here)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(f"{tmux} new-session -d -s yesterday /bin/sh")
    try:
        answer = account.home / "answer"
        look = 'xdpyinfo 2>&1 | grep -c "^vendor string" >answer.new; mv answer.new answer'
        keys = f"{tmux} send-keys -t yesterday '{look}' Enter"
        run(f"{keys}; while ! [ -e answer ]; do sleep 0.1; done")
        assert answer.read_text() == "1\n"
        answer.unlink()
    finally:
        run(f"{tmux} kill-server")


def test_sessions_of_one_connection_have_a_display_each(
    serve_ours: Serve, login: Login, here: Screen, tmp_path: Path, account: Account
) -> None:
    server = serve_ours()
    first = first_of(server)
    shared = ("-oControlMaster=auto", f"-oControlPath={tmp_path}/control")
    one, two = (Session(server, login, here, *shared) for _ in range(2))
    assert [one.number, two.number] == [first, first + 1]
    listed = subprocess.run(
        [find_program("xauth"), "-f", one.file, "list"], capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 2
    done = by_program("openssh", shared[1], server, login, "echo ${DISPLAY-none}", here)
    assert done.stdout == "none\n"
    two.end()
    assert listens(first)
    one.end()
    assert wait_until(lambda: not (account.home / ".Xauthority").exists(), 5)


def test_the_cookie_stands_in_no_argument_environment_or_log(
    serve_ours: Serve, login: Login, here: Screen
) -> None:
    server = serve_ours("", "trace = true\naudit_commands = true\n")
    session = Session(server, login, here)
    listed = subprocess.run(
        [find_program("xauth"), "-f", session.file, "list"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    cookie = listed.stdout.split()[2]
    for pid in family(server.process.pid):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert cookie.encode() not in content
                assert bytes.fromhex(cookie) not in content
    session.end()
    assert "x11-req" in server.log
    assert cookie not in server.log


def test_an_x11_channel_has_a_window_that_a_long_line_does_not_empty(
    serve_ours: Serve, login: Login, here: Screen
) -> None:
    call = CLIENTS["openssh"].invocation(
        serve_ours(), login, "xdpyinfo >/dev/null", options=("-Y", "-v")
    )
    env = call.env | here.variables
    done = subprocess.run(call.argv, env=env, capture_output=True, text=True, check=True)
    opened = re.search(r"ctype x11 rchan \d+ win (\d+) max (\d+)", done.stderr)
    assert opened is not None, done.stderr
    assert int(opened[1]) == 2 << 20


FLOOD = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
cookie = bytes.fromhex(sys.argv[2])
sock.sendall(b"l\\0\\x0b\\0\\0\\0\\x12\\0\\x10\\0\\0\\0MIT-MAGIC-COOKIE-1\\0\\0" + cookie)
sock.settimeout(5)
try:
    for _ in range(4000):
        sock.sendall(b"\\x7f\\0\\1\\0" * 16384)
except TimeoutError:
    print("it waits")
"""


def test_a_flood_towards_a_display_that_stands_still_costs_no_memory_and_no_shell(
    serve_ours: Serve, login: Login, here: Screen, tmp_path: Path
) -> None:
    server = serve_ours()
    session = Session(server, login, here)
    listed = subprocess.run(
        [find_program("xauth"), "-f", session.file, "list"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    processes = [pid for pid in family(server.process.pid) if pid != server.process.pid]
    before = {pid: int(status(pid)["VmRSS"][0]) for pid in processes if "VmRSS" in status(pid)}
    here.stand_still()
    words = ["python3", "-c", FLOOD, str(6000 + session.number), listed.stdout.split()[2]]
    flood = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert flood.communicate(timeout=60)[0] == b"it waits\n"
        assert session.process.stdin is not None and session.process.stdout is not None
        session.process.stdin.write(b"alive\n")
        assert select.select([session.process.stdout], [], [], 5)[0]
        assert session.process.stdout.readline() == b"alive\n"
        after = {pid: int(status(pid)["VmRSS"][0]) for pid in before}
        assert all(after[pid] - before[pid] < 16 << 10 for pid in before), (before, after)
    finally:
        here.go_on()
        end(flood)
        session.end()


def test_two_hundred_programs_that_are_killed_leave_nothing_behind(
    serve_ours: Serve, login: Login, here: Screen, account: Account
) -> None:
    """Twenty sessions, some of whose clients and some of whose programs are killed."""
    server = serve_ours()
    first = first_of(server)
    clock = time.monotonic()
    for turn in range(20):
        call = CLIENTS["openssh"].invocation(
            server, login, "for i in 1 2 3 4 5 6 7 8 9 10; do xdpyinfo >/dev/null & done; wait",
            options=("-Y",),
        )  # fmt: skip
        env = call.env | here.variables
        client = subprocess.Popen(
            call.argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if turn % 2:
            time.sleep(random.random() * 0.5)
            client.kill()
        client.wait(30)
    assert time.monotonic() - clock < 100
    assert wait_until(lambda: family(server.process.pid)[1:] == [], 10)
    assert not any(listens(first + number) for number in range(20))
    home = account.home
    assert wait_until(lambda: not list(home.glob(".Xauthority*")), 10), list(home.iterdir())
    assert not list(Path("/tmp").glob("culvert-xauthority-*"))
    uid = pwd.getpwnam(account.name).pw_uid
    assert not os.path.exists(f"/run/user/{uid}") or not list(
        Path(f"/run/user/{uid}").glob("culvert-*")
    )
