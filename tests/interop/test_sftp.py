"""culvert sftp beside OpenSSH's, line by line, at OpenSSH's SFTP server; and at a terminal."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hard_names import HARD_NAMES, NEWLINE, content, make_tree
from tests.interop.conftest import pair_of, words_of, write_program
from tests.peers import (
    ROOT,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    find_program,
)

SERVER = "/usr/lib/openssh/sftp-server"
OURS = [sys.executable, "-m", "appliance", "sftp"]
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "TZ": "UTC"}


def sftp(
    program: list[str], folder: Path, *options: str, lines: str | bytes = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run lines in a folder that holds `there` and `here`."""
    text = lines if isinstance(lines, bytes) else lines.encode()
    return subprocess.run(
        [*program, "-D", SERVER, *options],
        input=text,
        capture_output=True,
        timeout=60,
        cwd=folder,
        env=ENVIRONMENT | {"HOME": str(folder)},
        check=False,
    )


def openssh() -> list[str]:
    return [find_program("sftp")]


@pytest.fixture
def places(tmp_path: Path) -> Callable[[], Path]:
    """A function that makes the same files in the same place as often as it is called."""
    folder = tmp_path / "place"

    def make() -> Path:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        there = folder / "there"
        (there / "sub/inner").mkdir(parents=True)
        (there / "empty").mkdir()
        (folder / "here").mkdir()
        (there / "file").write_text("hello\n")
        (there / "big").write_text("x" * 3000)
        (there / "two words").write_text("two")
        (there / "star*").write_text("star")
        (there / ".hidden").write_text("")
        (there / "sub/a").write_text("a")
        (there / "sub/b.txt").write_text("bb")
        (there / "link").symlink_to("file")
        (there / "sub/link").symlink_to("./a")
        (there / "sub/up").symlink_to("../..")
        (there / "dirlink").symlink_to("sub")
        (there / "dangling").symlink_to("nowhere")
        (folder / "here/local").write_text("local\n")
        (folder / "here/other").write_text("other\n")
        (folder / "here/link").symlink_to("local")
        for number, path in enumerate(sorted(there.rglob("*"))):
            os.utime(path, (0, 1_600_000_000 + number * 1000), follow_symlinks=False)
        return folder

    return make


# The same words from both


@pytest.mark.parametrize(
    "lines",
    [
        "pwd\nlpwd\ncd there\npwd\ncd\npwd\nlcd here\nlpwd\ncd there/dirlink\npwd",
        "ls\nls there\ncd there\nls\nls -1\nls -a\nls -1a\nls -r\nls -1t\nls -1rt\n"
        "ls -1S sub\nls -1rS sub",
        "cd there\nls -l\nls -la\nls -lh\nls -l sub\nls -l file\nls sub\nls -1 sub/*",
        "cd there\nls s*\nls -1 [fb]*\nls 'star*'\nls star\\*\n"
        "ls \"two words\"\nls two\\ words",
        "ls -1 there/*\nls -l there/*.none\nls there/dirlink\n"
        "ls -l there/dirlink\nls -l there/link",
        "ls there/none\ncd there/none\ncd there/file\nls -Z\nls -1 /dev/null",
        "version\nlumask 027\nlumask\nlumask 9\nlumask 1777\nprogress\nprogress",
        "help\n?\nHELP",
        "cd there\nget file\nget big other\nget 'two words' ../here\nget s* ../here\nget none",
        "get there/file there/none/x\nget there/sub\nget there/link\nget there/dangling",
        "get -r there/sub\nget -r there/empty got\nget there/* none\nget -z x\nget",
        "lcd here\nput local\nput local ../there\nput * ../there\nput none\nput local /none/x",
        "put -r here copied\nput here\nput here/* none\nput",
        "cd there\nmkdir new\nmkdir new\nmkdir a b\nmkdir\nrmdir new\nrmdir none\nrmdir sub\nrmdir",
        "cd there\nrename file moved\nrename moved big\nls -1\nrename none x\nrename x\nrename",
        "cd there\nln file hard\nln -s file soft\nsymlink sub soft2\nln none x\nln file\nls -1",
        "cd there\nrm file\nrm none\nrm s*\nrm 'star*'\nrm *\nrm\nls -1a\nls -1 sub",
        "cd there\nchmod 600 file\nchmod 750 s*\nchmod\nchmod 9 file\nchmod 600\nchmod 600 none\n"
        "ls -l file",
        "cd there\nchown 12 file\nchgrp 34 file\nchown x file\nchown 1 none\nls -l file\nchown 1",
        "cd there\nchmod -h 600 link\nchown -h 1 link\nchgrp -h 2 link\nls -l",
        "cd there\ncopy file copied\ncp big copied\nls -l copied\ncopy sub x\ncopy none x\ncp x",
        "lls here\nlls -1 here\nlls none\nlmkdir here/new\n"
        "lmkdir here/new\nlcd none\nlcd here\nlls",
        "!echo shell\n!exit 3\n!kill -9 $$\nlls 'here'",
        "foo\nFOO bar\n'unterminated\n\"x\nls 'a\" b'\n\\",
        "# a comment\n\n   \npwd # behind\npwd#\n  pwd\nPwD\n@pwd\n-pwd\n"
        "-@ls there\n@-rm none\n- pwd",
        "bye\npwd",
        "quit",
        "pwd\nexit\npwd",
    ],
)  # fmt: skip
def test_every_command_says_and_does_what_openssh_s_does(
    places: Callable[[], Path], lines: str
) -> None:
    outcomes = []
    for program in (openssh(), OURS):
        folder = places()
        done = sftp(program, folder, lines=lines + "\n")
        words = shown(done.stdout), told(done.stderr)
        outcomes.append((done.returncode, words, state_of(folder)))
    assert outcomes[1] == outcomes[0]


def told(stderr: bytes) -> list[bytes]:
    """The reasons that were told: ours names the file in more of its messages."""
    plain = re.sub(rb'(?m)^local ".*?" is (not a regular)', rb"\1", stderr)
    return [line.rpartition(b": ")[2] for line in plain.splitlines()]


def shown(stdout: bytes) -> list[bytes]:
    """What was shown, but for the directories within a tree."""
    return [line for line in stdout.splitlines() if not re.match(rb"(Retrieving|Entering) ", line)]


def state_of(folder: Path) -> list[tuple[str, int, bytes | str]]:
    """All files with their modes and content, links with their targets."""
    found: list[tuple[str, int, bytes | str]] = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        what: bytes | str = b""
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = path.read_bytes()
        found.append((str(path.relative_to(folder)), mode, what))
    return found


def test_numbers_are_shown_in_place_of_names(places: Callable[[], Path]) -> None:
    done = sftp(OURS, places(), lines="ls -l there/file\nls -n there/file\n")
    user, group = os.geteuid(), os.getegid()
    assert re.search(rb"\n-rw-r--r--    \? %-8d %-8d        6 " % (user, group), done.stdout)


# Batches


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("pwd\nls there\n", 0),
        ("rm none\nmkdir made\n", 1),
        ("-rm none\nmkdir made\n", 0),
        ("@-rm none\n@mkdir made\n", 0),
        ("foo\nmkdir made\n", 1),
        ("-foo\nmkdir made\n", 0),
        ("get there/none\nmkdir made\n", 1),
        ("get there/s*\nmkdir made\n", 1),
        ("put there/sub x\nmkdir made\n", 1),
        ("get there/file\nput here/local there\nmkdir made\n", 0),
        ("chmod 600 there/none\nmkdir made\n", 1),
        ("lcd none\nmkdir made\n", 1),
        ("!false\nmkdir made\n", 0),
        ("# comment\n\nquit\nmkdir made\n", 0),
    ],
)
@pytest.mark.parametrize("options", [("-b", "-"), ("-b", "batch"), ("-b", "batch", "-N")])
def test_a_batch_ends_at_its_first_failure(
    places: Callable[[], Path], options: tuple[str, ...], lines: str, status: int
) -> None:
    outcomes = []
    for program in (openssh(), OURS):
        folder = places()
        (folder / "batch").write_text(lines)
        done = sftp(program, folder, *options, lines=lines if "-" in options else "")
        assert done.returncode == status, done.stderr
        outcomes.append((shown(done.stdout), state_of(folder)))
    assert outcomes[1] == outcomes[0]


def test_a_batch_that_is_not_there_is_told(places: Callable[[], Path]) -> None:
    done = sftp(OURS, places(), "-b", "none")
    assert done.returncode == 1
    assert done.stderr == b"culvert sftp: -b none: No such file or directory\n"


def test_what_is_partly_there_is_continued(places: Callable[[], Path]) -> None:
    folder = places()
    (folder / "here/big").write_text("y" * 1000)
    (folder / "there/local").write_text("LOC")
    done = sftp(OURS, folder, lines="reget there/big here/big\nreput here/local there/local\n")
    assert done.returncode == 0, done.stderr
    assert (folder / "here/big").read_text() == "y" * 1000 + "x" * 2000
    assert (folder / "there/local").read_text() == "LOCal\n"
    assert b"Resuming " in done.stdout


def test_a_copy_onto_itself_leaves_the_file(places: Callable[[], Path]) -> None:
    folder = places()
    done = sftp(OURS, folder, lines="copy there/file there/file\ncopy there/file there/link")
    assert done.stderr.count(b"are the same file") == 2
    assert (folder / "there/file").read_text() == "hello\n"


def test_times_and_modes_are_kept_with_p(places: Callable[[], Path]) -> None:
    folder = places()
    (folder / "there/file").chmod(0o751)
    for words in ("get -p there/file", "get there/file here/kept"):
        done = sftp(OURS, folder, *(["-p"] if "kept" in words else []), lines=words + "\n")
        assert done.returncode == 0
        copied = folder / ("here/kept" if "kept" in words else "file")
        assert copied.stat().st_mode & 0o777 == 0o751
        assert copied.stat().st_mtime == (folder / "there/file").stat().st_mtime


# Hard names


def test_hard_names_go_by_batch_there_and_back(tmp_path: Path) -> None:
    for folder in ("here", "there", "back", "tree"):
        (tmp_path / folder).mkdir()
    make_tree(tmp_path / "tree", [*HARD_NAMES, NEWLINE])
    done = sftp(OURS, tmp_path, "-b", "-", lines="put -r tree there\nget -r there/tree back\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert content(tmp_path / "back/tree") == content(tmp_path / "tree")
    gets = [b"cd there/tree/files"]
    for number, name in enumerate(HARD_NAMES):
        quoted = b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        gets.append(b"get -- " + quoted + b" here/%d" % number)
    done = sftp(OURS, tmp_path, "-b", "-", lines=b"\n".join(gets) + b"\n")
    assert (done.returncode, done.stderr) == (0, b"")
    for number, name in enumerate(HARD_NAMES):
        copied = tmp_path / "here" / str(number)
        assert copied.read_bytes() == content(tmp_path / "tree")[b"files/" + name]


def test_no_name_of_a_server_s_acts_on_the_terminal(tmp_path: Path) -> None:
    make_tree(tmp_path, [*HARD_NAMES, NEWLINE])
    lines = "cd files\nls\nls -l\nls -1f\nls -n *\nmkdir x\nrm *\nrm -- *\nls -1\n"
    done = sftp(OURS, tmp_path, lines=lines)
    for said in (done.stdout, done.stderr):
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", said.replace(b"\r", b""))


@pytest.mark.parametrize("options", [(), ("-b", "-")])
def test_a_reader_that_goes_away_ends_the_program(
    places: Callable[[], Path], options: tuple[str, ...]
) -> None:
    words = shlex.join([*OURS, "-D", SERVER, *options])
    lines = "ls -1 there\n" * 5000
    done = subprocess.run(
        ["sh", "-c", f"{words} | head -1"],
        input=lines.encode(), capture_output=True, timeout=60, cwd=places(), check=False,
        env=ENVIRONMENT | {"HOME": "/"},
    )  # fmt: skip
    assert done.stdout == b"sftp> ls -1 there\n"
    assert done.stderr in (b"", b"Attached to %b.\n" % SERVER.encode())


def test_a_locale_without_a_name_s_characters_shows_it_escaped(places: Callable[[], Path]) -> None:
    folder = places()
    (folder / "there/日本").touch()
    done = subprocess.run(
        [*OURS, "-D", SERVER],
        input=b"ls -1 there\n", capture_output=True, timeout=60, cwd=folder, check=False,
        env=ENVIRONMENT | {"HOME": "/", "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert b"there/\\u65e5\\u672c\n" in done.stdout


# Servers of the field, and hostile ones


def odd(*oddities: str) -> list[str]:
    """The words for a server with oddities: see odd_sftp_server.py."""
    server = [sys.executable, "-m", "tests.interop.odd_sftp_server", *oddities]
    return ["-D", shlex.join(server)]


def at_odd(folder: Path, *oddities: str, lines: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*OURS, *odd(*oddities), "-b", "-"],
        input=lines.encode(), capture_output=True, timeout=60, cwd=folder, check=False,
        env=ENVIRONMENT | {"HOME": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "oddity",
    ["", "out-of-order", "short-reads", "cuts-writes", "no-messages", "one-name", "clock",
     "no-attributes"],
)  # fmt: skip
def test_commands_work_at_servers_of_the_field(places: Callable[[], Path], oddity: str) -> None:
    folder = places()
    (folder / "there/dangling").unlink()
    (folder / "there/sub/up").unlink()
    lines = "cd there\ncd ..\nls -1 there\nls -l there\nget there/big got\n"
    lines += "get there/st* here\nput got there/put\n"
    lines += "mkdir there/made\nrename there/put there/made/moved\nput here/* there/made\n"
    lines += "rm there/made/local\ncopy there/file there/copied\n"
    done = at_odd(folder, *filter(None, [oddity]), lines=lines)
    assert done.returncode == 0, done.stderr
    assert b"\ntwo words\n" in done.stdout.replace(b"there/", b"")
    assert (folder / "there/made/moved").read_bytes() == (folder / "there/big").read_bytes()
    assert (folder / "there/copied").read_text() == "hello\n"
    assert (folder / "here/star*").read_text() == "star"
    assert sorted(os.listdir(folder / "there/made")) == ["link", "moved", "other", "star*"]


@pytest.mark.parametrize("oddity", ["climbs", "no-names", "huge-packet", "wrong-type", "other-id"])
def test_a_hostile_server_reaches_nothing(places: Callable[[], Path], oddity: str) -> None:
    folder = places()
    before = state_of(folder)
    for lines in ("ls there\n", "ls -l there/*\n", "get there/* here/none/x\n", "cd there\n"):
        done = at_odd(folder, oddity, lines=lines)
        assert done.returncode in (0, 1, 255)
        assert b"Traceback" not in done.stderr
    done = at_odd(folder, oddity, lines="get -r there here/got\n")
    assert b"Traceback" not in done.stderr
    after = [each for each in state_of(folder) if not each[0].startswith("here/got")]
    assert after == before


# Connections


@pytest.fixture
def ssh_program(client: ClientKind, server: Server, login: Login, tmp_path: Path) -> Path:
    return write_program(tmp_path / "ssh", words_of(client, server, login))


@pytest.mark.parametrize(
    ("client", "server"), [pair_of("culvert", "openssh"), pair_of("openssh", "openssh")],
    indirect=True,
)  # fmt: skip
def test_a_destination_s_path_is_gone_to_or_fetched(
    ssh_program: Path, server: Server, there: Path, tmp_path: Path
) -> None:
    (there / "file").write_text("content")
    subsystem = ["-s", SERVER]

    def run(*words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*OURS, "-S", str(ssh_program), *subsystem, *words],
            input=lines, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
            env=ENVIRONMENT | {"HOME": str(tmp_path)},
        )  # fmt: skip

    done = run(f"{server.address}:{there}", lines="pwd\n")
    assert done.returncode == 0, done.stderr
    assert f"Changing to: {there}\n" in done.stdout
    assert f"Remote working directory: {there}\n" in done.stdout
    assert f"Connected to {server.address}." in done.stderr
    done = run(f"sftp://{server.address}/{there}/file")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "content"
    done = run(f"{server.address}:{there}/file", "other")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other").read_text() == "content"
    assert run(f"{server.address}:{there}/none").returncode == 1


@pytest.mark.parametrize("server", ["openssh", "culvert"], indirect=True)
def test_a_connection_of_its_own_serves_a_batch(
    server: Server, login: Login, there: Path, tmp_path: Path
) -> None:
    (there / "file").write_text("content")
    subsystem = ["-s", SERVER] if server.kind.name == "openssh" else []
    done = subprocess.run(
        [*OURS, "-F", "none", "-b", "-", "-P", str(server.port), "-i", str(login.key),
         f"-oUserKnownHostsFile={server.known_hosts}", f"-oUser={login.user}", *subsystem,
         f"{server.address}:{there}"],
        input="ls -1\nget file\n-get none\n-get /etc/shadow\n-rm /etc/hostname\nmkdir made\n",
        text=True, capture_output=True,
        timeout=60, cwd=tmp_path, env=ENVIRONMENT | {"HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sftp> ls -1\nfile\n" in done.stdout
    assert (tmp_path / "file").read_text() == "content"
    assert (there / "made").is_dir()
    assert "/etc/shadow: Permission denied\n" in done.stderr
    assert "/etc/hostname: Permission denied\n" in done.stderr


def test_a_connection_lives_while_its_user_thinks(
    serve: Callable[[ServerKind, ServerSettings], Server], host_keys: Keyring, login: Login,
    account: Account, tmp_path: Path,
) -> None:  # fmt: skip
    """The server asks every second, and gives up after the second question without an answer."""
    options = ["-o", "ClientAliveInterval=1", "-o", "ClientAliveCountMax=1"]
    settings = ServerSettings(host_keys.keys(["ssh-ed25519"]), accounts=[account], options=options)
    server = serve(SERVERS["openssh"], settings)
    terminal = Terminal(
        [*OURS, "-F", "none", "-P", str(server.port), "-i", str(login.key),
         f"-oUserKnownHostsFile={server.known_hosts}", f"-oUser={login.user}", "-s", SERVER,
         server.address],
        tmp_path,
    )  # fmt: skip
    terminal.wait_for(b"sftp> ")
    time.sleep(5)
    terminal.type(b"pwd\n")
    terminal.wait_for(b"Remote working directory: ")
    terminal.type(b"bye\n")
    assert terminal.close() == 0


def test_a_host_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [*OURS, "-F", "none", "-P", "1", "127.0.0.1"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env=ENVIRONMENT | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 255
    assert "Connection refused" in done.stderr


# At a terminal


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, words: list[str], folder: Path, columns: int = 80) -> None:
        self.pid, self.master = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execve(words[0], words, ENVIRONMENT | {"HOME": str(folder), "TERM": "dumb"})
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait_for(self, text: bytes, timeout: float = 20) -> bytes:
        """Read up to `text`; return what came before, and forget both."""
        end = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> int:
        """End it if it runs; return its exit status."""
        status = 0
        for patience in range(100):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if patience == 50:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.1)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(places: Callable[[], Path]) -> Iterator[Terminal]:
    terminal = Terminal([*OURS, "-D", SERVER], places(), 60)
    try:
        terminal.wait_for(b"sftp> ")
        yield terminal
        terminal.type(b"\x03\nbye\n")
    finally:
        assert terminal.close() in (0, 1)


def test_lines_are_edited_and_remembered(terminal: Terminal) -> None:
    terminal.type(b"pwx\x08d\n")
    assert b"Remote working directory: " in terminal.wait_for(b"sftp> ")
    terminal.type(b"foo\n")
    assert b"Invalid command." in terminal.wait_for(b"sftp> ")
    terminal.type(b"\x10\x10\n")  # the line before the last one
    assert b"Remote working directory: " in terminal.wait_for(b"sftp> ")


def test_names_are_completed(terminal: Terminal) -> None:
    terminal.type(b"cd th\t\n")
    terminal.wait_for(b"sftp> ")
    terminal.type(b"ls tw\t\n")
    assert b"two words" in terminal.wait_for(b"sftp> ").split(b"\n", 1)[1]
    terminal.type(b"ls s\t\t")
    assert b"star*" in terminal.wait_for(b"sftp> ls s")
    terminal.type(b"u\t\n")
    assert b"sub/b.txt" in terminal.wait_for(b"sftp> ")
    terminal.type(b"lcd he\t\nlpwd\n")
    terminal.wait_for(b"Local working directory: ")
    assert terminal.wait_for(b"sftp> ").strip().endswith(b"/here")


def test_an_interrupt_clears_the_line(terminal: Terminal) -> None:
    terminal.type(b"mkdir never")
    terminal.wait_for(b"mkdir never")
    time.sleep(0.2)  # a signal while readline handles a character is noticed with the next one
    terminal.type(b"\x03")
    terminal.wait_for(b"sftp> ")
    terminal.type(b"\nls never\n")
    terminal.wait_for(b"Can't ls: \"")


def test_an_interrupt_ends_the_command_and_not_the_program(
    terminal: Terminal, tmp_path: Path
) -> None:
    with open(tmp_path / "place/there/sparse", "wb") as file:
        file.truncate(1 << 40)
    terminal.type(b"get there/sparse /dev/null\n")
    terminal.wait_for(b"Fetching ")
    terminal.wait_for(b"%")
    terminal.type(b"\x03")
    terminal.wait_for(b"Interrupt")
    terminal.wait_for(b"sftp> ")
    terminal.type(b"pwd\n")
    terminal.wait_for(b"Remote working directory: ")
    terminal.wait_for(b"sftp> ")
    terminal.type(b"!sleep 100\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.wait_for(b"sftp> ")


def test_columns_follow_the_terminal_and_wide_characters(
    terminal: Terminal, tmp_path: Path
) -> None:
    folder = tmp_path / "place/wide"
    folder.mkdir()
    for name in ("日本語", "abcdef", "éé"):
        (folder / name).touch()
    terminal.type(b"ls wide\n")
    told = terminal.wait_for(b"sftp> ").decode().splitlines()
    # 11 columns for "wide/" and 6 more: 60 // 13 in a row
    assert told[1] == "wide/abcdef    wide/éé        wide/日本語    "


def test_the_end_of_the_input_ends_the_program(places: Callable[[], Path]) -> None:
    terminal = Terminal([*OURS, "-D", SERVER], places())
    terminal.wait_for(b"sftp> ")
    terminal.type(b"\x04")
    assert terminal.close() == 0


def test_a_failed_server_ends_the_program(places: Callable[[], Path]) -> None:
    folder = places()
    done = subprocess.run(
        [*OURS, "-D", shlex.join([sys.executable, "-c", "pass"])],
        input=b"pwd\n", capture_output=True, timeout=60, cwd=folder, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 255
    assert b"the SFTP server has ended" in done.stderr
