"""Programs several hosts away, with Culvert and OpenSSH along the way, look as they do here."""

import contextlib
import itertools
import os
import pwd
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.displays import Screen, running, screen
from tests.interop.conftest import OURS
from tests.netns import wait_until
from tests.peers import (
    CULVERT,
    ROOT,
    SERVERS,
    Account,
    Keyring,
    Missing,
    OpenSshServer,
    Server,
    ServerKind,
    ServerSettings,
    environment,
    find_program,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.xdist_group("x11-hops"),
    pytest.mark.usefixtures("no_cookies_stay"),
]

KINDS = (OURS, "openssh")
# Pictures that stay as they are; xlogo's edges are smooth where it finds RENDER.
PROGRAMS = {
    "xlogo": "xlogo -render -title xlogo",
    "xclock": "xclock -d -strftime 'always the same' -title xclock",
    "xterm": "xterm -T xterm -fa Monospace -e 'tput civis; seq 20; exec sleep 60'",
}
LETTERS = "abc"  # the hops


@dataclass
class Hops:
    """Servers of each kind, as hosts of an ssh_config; and the display, which is here."""

    config: Path  # can be read by the user who logs in
    display: Screen
    inner: dict[str, str]  # a client's command line, to be run on a server

    @staticmethod
    def hosts(kinds: Sequence[str]) -> list[str]:
        """The hosts of a way: each kind of server is there by several names."""
        return [f"{kind}-{letter}" for kind, letter in zip(kinds, LETTERS, strict=False)]

    @property
    def env(self) -> dict[str, str]:
        return environment(self.display.folder) | self.display.variables

    def x11(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run culvert x11 to its end."""
        argv = [*CULVERT, "x11", "-F", str(self.config), *words]
        return subprocess.run(
            argv, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=30, check=False,
        )  # fmt: skip

    def by_culvert(self, kinds: Sequence[str], command: str) -> list[str]:
        return [*CULVERT, "x11", "-F", str(self.config), *self.hosts(kinds), "--", command]

    def by_openssh(self, kinds: Sequence[str], command: str, option: str) -> list[str]:
        *jumps, last = self.hosts(kinds)
        trusted = "yes" if option == "-Y" else "no"  # Debian's takes -X for -Y
        words = ["-J", ",".join(jumps)] if jumps else []
        argv = [
            find_program("ssh"),
            "-F",
            str(self.config),
            option,
            f"-oForwardX11Trusted={trusted}",
            *words,
            last,
            command,
        ]
        return argv

    def assert_same(self, title: str, argv: Sequence[str], picture: Path) -> None:
        """Run a client, whose program's window has to become this picture."""
        shown = picture.with_name(f"{title}-far.png")
        with running(argv, self.env):
            window = self.display.window(title)

            def is_same() -> bool:
                self.display.run("import", "-window", window, str(shown))
                return self.display.differing(picture, shown) == 0

            assert wait_until(is_same, 10), self.display.differing(picture, shown)
        assert wait_until(lambda: not self.display.is_shown(title), 10)


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    with screen(tmp_path_factory.mktemp("display")) as made:
        yield made


@pytest.fixture(scope="module")
def hops(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    user_keys: Keyring,
    account: Account,
    display: Screen,
    tmp_path_factory: pytest.TempPathFactory,
) -> Hops:
    servers = {
        OURS: serve(SERVERS[OURS], ServerSettings([host_keys.key()])),
        "openssh": serve(
            SERVERS["openssh"],
            ServerSettings([host_keys.key()], options=("-oX11Forwarding=yes",)),
        ),
    }
    servers["dropbear"] = serve(SERVERS["dropbear"], ServerSettings([host_keys.key()]))
    folder = account.home / "hops"
    folder.mkdir()
    config = folder / "config"
    write_config(config, servers, account, user_keys, host_keys)
    add_refusing(config, serve, host_keys, tmp_path_factory.mktemp("refusing"))
    options = ["-F", str(config)]
    inner = {
        OURS: f"{program_of(account)} ssh {shlex.join(options)} -X",
        # There is no SECURITY extension behind a filter, nor behind the extension itself.
        "openssh": f"ssh {shlex.join(options)} -Y",
    }
    return Hops(config, display, inner)


def write_config(
    config: Path, servers: dict[str, Server], account: Account, user_keys: Keyring, host: Keyring
) -> None:
    """Write an ssh_config with three names for each server, and the key, for the account."""
    key, known = config.with_name("key"), config.with_name("known")
    shutil.copyfile(user_keys.key(), key)
    known.write_text("* " + " ".join(host.public().split()[:2]) + "\n")
    lines = [
        f"Host {kind}-{letter}\n HostName 127.0.0.1\n Port {server.port}\n"
        for kind, server in servers.items()
        for letter in LETTERS
    ]
    config.write_text(
        f"{''.join(lines)}Host *\n User {account.name}\n IdentityFile {key}\n"
        f" IdentitiesOnly yes\n BatchMode yes\n UserKnownHostsFile {known}\n"
        " GlobalKnownHostsFile /dev/null\n"
    )
    key.chmod(0o600)
    entry = pwd.getpwnam(account.name)
    for path in (config.parent, key, known, config):
        os.chown(path, entry.pw_uid, entry.pw_gid)


class WithoutXauth(OpenSshServer):
    """sshd of OpenSSH, for which there is no program behind the name of xauth."""

    name = "openssh-without-xauth"

    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        nothing = folder / "nothing"
        nothing.touch()
        mount = f"mount --bind {nothing} {find_program('xauth')}"
        server = shlex.join(super().command(settings, port, folder))
        return [find_program("unshare"), "-m", "sh", "-c", f"{mount} && exec {server}"]


def add_refusing(
    config: Path,
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    folder: Path,
) -> None:
    """Add the hosts no-culvert and no-openssh, which forward nothing, and no-xauth."""
    toml = folder / "sshd.toml"
    toml.write_text("disable_forwarding = true\n")
    options = {OURS: ("--config", str(toml)), "openssh": ("-oDisableForwarding=yes",)}
    servers = {
        kind: serve(SERVERS[kind], ServerSettings([host_keys.key()], options=words))
        for kind, words in options.items()
    }
    forwarding = ServerSettings([host_keys.key()], options=("-oX11Forwarding=yes",))
    servers["xauth"] = serve(WithoutXauth(), forwarding)
    text = config.read_text()
    for kind, server in servers.items():
        text = f"Host no-{kind}\n HostName 127.0.0.1\n Port {server.port}\n{text}"
    config.write_text(text)


def program_of(account: Account) -> str:
    """Our program's words for the account, which may be unable to read the interpreter here."""
    packages = f"{ROOT}:{sysconfig.get_path('purelib')}"
    others = ["env", f"PYTHONPATH={packages}", "/usr/bin/python3", "-m", "appliance"]
    for words in (CULVERT, others):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [*words, "--version"], user=account.name, cwd="/", capture_output=True, check=False
            )
            if done.returncode == 0:
                return shlex.join(words)
    raise Missing(f"{account.name} cannot run {CULVERT[0]}")


@pytest.fixture(scope="module")
def local(display: Screen, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pictures of the programs that run here."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = {}
    for title, command in PROGRAMS.items():
        with running(["/bin/sh", "-c", f"exec {command}"], display.env):
            pictures[title] = display.picture(display.window(title), folder / f"{title}.png")
        assert wait_until(lambda: not any(map(display.is_shown, PROGRAMS)), 10)
        assert int(display.run("identify", "-format", "%k", str(pictures[title])).stdout) > 1
    return pictures


@pytest.fixture(scope="module")
def untrusted(
    hops: Hops,
    display: Screen,
    local: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The picture of an xlogo by OpenSSH's own -X, which leaves it no RENDER."""
    argv = hops.by_openssh(["openssh"], f"exec {PROGRAMS['xlogo']}", "-X")
    path = tmp_path_factory.mktemp("untrusted") / "xlogo.png"
    with running(argv, hops.env):
        display.picture(display.window("xlogo"), path)
    assert wait_until(lambda: not display.is_shown("xlogo"), 10)
    assert display.differing(local["xlogo"], path) > 0
    return path


PAIRS = [*itertools.product(KINDS, repeat=2)]
WAYS = [
    *(way for count in (1, 2, 3) for way in itertools.product(KINDS, repeat=count)),
    ("dropbear", OURS),  # Debian's forwards no X11, but TCP
]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_program_looks_the_same_from_end_to_end(
    way: tuple[str, ...], hops: Hops, local: dict[str, Path]
) -> None:
    for title in [*PROGRAMS][: 4 - len(way)]:
        hops.assert_same(title, hops.by_culvert(way, f"exec {PROGRAMS[title]}"), local[title])


@pytest.mark.parametrize("way", [(OURS, OURS), ("openssh", OURS)], ids="-".join)
def test_it_does_so_by_openssh_as_well(
    way: tuple[str, ...], hops: Hops, local: dict[str, Path], untrusted: Path
) -> None:
    command = f"exec {PROGRAMS['xlogo']}"
    hops.assert_same("xlogo", hops.by_openssh(way, command, "-Y"), local["xlogo"])
    hops.assert_same("xlogo", hops.by_openssh(way, command, "-X"), untrusted)


@pytest.mark.parametrize("servers", PAIRS, ids="-".join)
@pytest.mark.parametrize("clients", PAIRS, ids="-".join)
def test_a_program_looks_the_same_through_two_displays(
    clients: tuple[str, str],
    servers: tuple[str, str],
    hops: Hops,
    local: dict[str, Path],
    untrusted: Path,
) -> None:
    """The first server's display is the one that the second client forwards."""
    outer, inner = clients
    there = hops.hosts(servers)[1]
    command = f"exec {hops.inner[inner]} {there} {shlex.quote('exec ' + PROGRAMS['xlogo'])}"
    if outer == "openssh":
        hops.assert_same("xlogo", hops.by_openssh(servers[:1], command, "-X"), untrusted)
    else:
        hops.assert_same("xlogo", hops.by_culvert(servers[:1], command), local["xlogo"])


# -- what stops it -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_ends_the_session_with_a_line_and_without_the_command(
    kind: str, hops: Hops, account: Account
) -> None:
    done = hops.x11(f"no-{kind}", "--", "touch ran; echo in")
    assert (done.returncode, done.stdout) == (255, "")
    assert done.stderr == "the server refuses X11 forwarding; culvert x11 --check says why\n"
    assert not (account.home / "ran").exists()


def test_the_exit_status_is_the_commands(hops: Hops) -> None:
    done = hops.x11(f"{OURS}-a", "openssh-b", "--", "exit", "3")
    assert done.returncode == 3, done.stderr


def test_a_check_finds_nothing_in_the_way(hops: Hops) -> None:
    for way in ([OURS, "openssh"], ["openssh", OURS]):
        done = hops.x11("--check", *hops.hosts(way))
        lines = done.stdout.splitlines()
        assert (done.returncode, {line[:4] for line in lines}) == (0, {"ok  "}), done.stdout
        assert "a program there has reached the display" in lines[-1]


@pytest.mark.parametrize(
    ("kind", "forwarding", "x11"),
    [
        (OURS, "allow_tcp_forwarding", "x11_forwarding = true in its sshd.toml"),
        ("openssh", "AllowTcpForwarding", "X11Forwarding yes"),
    ],
)
def test_a_check_says_what_a_server_refuses(
    kind: str, forwarding: str, x11: str, hops: Hops
) -> None:
    done = hops.x11("--check", f"no-{kind}", f"{OURS}-a")
    assert done.returncode == 1
    *_, refused, mend, behind = done.stdout.splitlines()
    assert refused.startswith(f"FAIL  no-{kind}: it refuses to forward TCP to 127.0.0.1 port ")
    assert forwarding in mend
    assert behind == f"note  no-{kind}: nothing behind it was tried"
    done = hops.x11("--check", f"no-{kind}")
    assert done.returncode == 1
    *_, refused, mend = done.stdout.splitlines()
    assert refused == f"FAIL  no-{kind}: it refuses X11 forwarding"
    assert x11 in mend


def test_a_check_says_that_a_cookie_is_not_there(hops: Hops, account: Account) -> None:
    """A ~/.ssh/rc has to store it itself."""
    script = account.home / ".ssh/rc"
    script.write_text("cat >/dev/null\n")
    try:
        done = hops.x11("--check", f"{OURS}-a")
    finally:
        script.unlink()
    assert done.returncode == 1
    *_, refused, mend = done.stdout.splitlines()
    assert refused.startswith(f"FAIL  {OURS}-a: the cookie of localhost:")
    assert "~/.ssh/rc" in mend


def test_a_check_says_that_xauth_is_missing(hops: Hops) -> None:
    done = hops.x11("--check", "openssh-a", "no-xauth")
    assert done.returncode == 1
    *_, refused, mend = done.stdout.splitlines()
    assert refused.startswith("FAIL  no-xauth: ")
    assert "install xauth there" in mend


def test_a_check_says_that_no_shell_answers(hops: Hops, account: Account) -> None:
    account.change("usermod", "-s", "/bin/false")
    try:
        done = hops.x11("--check", "openssh-a")
    finally:
        account.change("usermod", "-s", "/bin/sh")
    assert done.returncode == 1
    assert "it grants X11 forwarding, but no shell answers there" in done.stdout


def test_a_check_goes_on_without_a_display_here(hops: Hops) -> None:
    argv = [*CULVERT, "x11", "-F", str(hops.config), "--check", f"{OURS}-a"]
    done = subprocess.run(
        argv, env=environment(hops.display.folder), capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  here: DISPLAY is not set\n")
    assert "X11 forwarding is granted" in done.stdout
