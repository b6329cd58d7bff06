"""What a user may run: terminals, commands, variables, signals."""

import grp
import os
import pwd
import signal
import time
from collections.abc import Callable

import pytest

from appliance.server import programs, session_grants
from appliance.server.requests import (
    GRANTED,
    ClosePty,
    EndSessions,
    LearnSettings,
    OpenPty,
    OpenTunnel,
    SendSignal,
    SettingsReply,
    Spawn,
)
from appliance.server.sftp_program import SftpServer, of_command, of_settings
from appliance.wire.codec import Reader
from appliance.wire.tun import POINT_TO_POINT
from tests.peers import Account
from tests.unit.server.office import CONFIG, KEY, ME, Make, Office, for_me


def test_the_grants_follow_the_settings_for_the_user(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    changes = {"permit_tty": False, "force_command": "ours", "accept_env": ("FOO",)}
    it = office(match=for_me(**changes, disable_forwarding=True), permit_tunnel="yes").log_in()
    assert "terminal" in it.denied(OpenPty())
    assert "DisableForwarding" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    assert "variable" in it.denied(Spawn("exec", b"asked", (b"LANG", b"C"), 0))
    it.denied(Spawn("exec", b"asked", (b"FOO", b"x"), 0))
    assert started[-1][1] == b"ours"


def test_a_worker_learns_once_what_holds_for_its_user(office: Make) -> None:
    changes = {"accept_env": ("A", "B*"), "max_sessions": 2, "client_alive_interval": 7}
    changes |= {"client_alive_count_max": 4, "idle_timeout": 9}
    it = office(match=for_me(**changes)).log_in()
    reply = SettingsReply.decode(it.ask(LearnSettings()))
    assert reply == SettingsReply((b"A", b"B*"), 2, 7, 4, 9, "auto")
    assert it.ends(LearnSettings())


@pytest.mark.parametrize("forced", ["forced command", ""])
@pytest.mark.parametrize("kind", ["exec", "shell", "subsystem"])
def test_a_forced_command_runs_whatever_was_asked_for(
    office: Make, started: list[tuple[object, ...]], forced: str, kind: str
) -> None:
    """An empty one, too: it allows nothing."""
    it = office(f'command="{forced}" {KEY.public.line()}').log_in()
    it.denied(Spawn(kind, b"asked", (), 0))
    assert started[-1][1] == forced.encode()
    original = started[-1][2].get(b"SSH_ORIGINAL_COMMAND")  # type: ignore[attr-defined]
    assert original == (None if kind == "shell" else b"asked")


def test_the_servers_forced_command_outweighs_the_keys(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    it = office(f'command="the key\'s" {KEY.public.line()}', force_command="ours").log_in()
    it.denied(Spawn("exec", b"asked", (), 0))
    assert started[-1][1] == b"ours"


@pytest.mark.parametrize(
    ("options", "changes", "kind", "runs"),
    [
        ("", {}, "exec", True),
        ("", {}, "shell", True),
        ("", {}, "subsystem", False),
        ("no-user-rc ", {}, "exec", False),
        ("restrict ", {}, "exec", False),
        ("restrict,user-rc ", {}, "exec", True),
        ('command="x" ', {}, "exec", True),
        ("", {"permit_user_rc": False}, "exec", False),
        ("", {"force_command": "x"}, "exec", False),
    ],
)
def test_the_users_rc_runs_where_nothing_forbids_it(
    office: Make,
    started: list[tuple[object, ...]],
    options: str,
    changes: dict[str, object],
    kind: str,
    runs: bool,
) -> None:
    it = office(options + KEY.public.line(), subsystems={"echo": "cat"}, **changes).log_in()
    it.denied(Spawn(kind, b"echo", (), 0))
    assert started[-1][5] is runs


def test_a_subsystem_is_one_that_the_configuration_names(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    it = office(subsystems={"echo": "/bin/cat"}).log_in()
    it.denied(Spawn("subsystem", b"echo", (), 0))
    assert started[-1][1] == b"/bin/cat"
    for name in (b"sftp-server", b"", b"/bin/sh", b"echo\0", b"\xff"):
        assert "subsystem" in it.denied(Spawn("subsystem", name, (), 0))
    assert len(started) == 1


SFTP = ("-l", "ERROR")


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, SftpServer(SFTP, True)),
        ({"subsystems": {"sftp": "/bin/cat"}}, b"/bin/cat"),
        (
            {"subsystems": {"sftp": "internal-sftp -u 077", "x": "y"}},
            SftpServer((*SFTP, "-u", "077"), False),
        ),
        (
            {
                "sftp_read_only": True,
                "sftp_umask": "027",
                "sftp_start_directory": "%d/in",
                "sftp_log": "info",
                "sftp_ignore_setstat": True,
            },
            SftpServer(("-l", "INFO", "-R", "-u", "027", "-d", "%d/in", "--ignore-setstat"), True),
        ),
    ],
)
def test_the_subsystem_sftp_is_ours_unless_another_one_is_named(
    office: Make,
    started: list[tuple[object, ...]],
    changes: dict[str, object],
    command: object,
) -> None:
    it = office(match=for_me(**changes)).log_in()
    it.denied(Spawn("subsystem", b"sftp", (), 0))
    assert started[-1][1] == command
    assert started[-1][5] is False  # ~/.ssh/rc


def test_there_may_be_no_subsystem_sftp(office: Make, started: list[tuple[object, ...]]) -> None:
    it = office(match=for_me(sftp=False)).log_in()
    assert it.denied(Spawn("subsystem", b"sftp", (), 0)) == "no such subsystem"
    assert not started


@pytest.mark.parametrize("kind", ["exec", "shell", "subsystem"])
@pytest.mark.parametrize("where", ["settings", "key"])
def test_internal_sftp_runs_whatever_was_asked_for(
    office: Make, started: list[tuple[object, ...]], kind: str, where: str
) -> None:
    line, forced = KEY.public.line(), "internal-sftp -R"
    changes: dict[str, object] = {"sftp": False, "sftp_umask": "077"}
    if where == "key":
        it = office(f'command="{forced}" {line}', **changes).log_in()
    else:
        it = office(line, force_command=forced, **changes).log_in()
    it.denied(Spawn(kind, b"rm -rf /", (), 0))
    assert started[-1][1] == SftpServer((*SFTP, "-u", "077", "-R"), False)
    assert started[-1][5] is False


def test_a_word_that_only_begins_like_internal_sftp_is_a_command(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    it = office(force_command="internal-sftpd").log_in()
    it.denied(Spawn("exec", b"x", (), 0))
    assert started[-1][1] == b"internal-sftpd"
    it = office(force_command="internal-sftp '").log_in()
    assert "quotation" in it.denied(Spawn("exec", b"x", (), 0))


@pytest.mark.parametrize(
    "options", ["-d", "--chroot= --identity=0:0:0 --reports=", "-- x", "-l INFO -d"]
)
def test_no_option_takes_the_place_of_what_the_server_decides(options: str) -> None:
    """Options may come from authorized_keys, which its user writes, and the program is root's."""
    server = of_command(f"internal-sftp {options}", CONFIG)
    assert server is not None
    words = server.command(ME, "/jail", True)
    place = words.index("/jail")
    assert words[place + 1].startswith(f"{ME.pw_uid}:{ME.pw_gid}:")
    assert words[place + 2 : place + 5] == ["3", *SFTP]


@pytest.mark.parametrize(
    ("shell", "asked"), [("/bin/bash", False), ("/usr/bin/git-shell", True), ("/bin/false", True)]
)
def test_a_shell_that_may_refuse_is_asked(shell: str, asked: bool) -> None:
    assert of_settings(CONFIG).is_for_shell(shell) is asked
    forced = of_command("internal-sftp", CONFIG)
    assert forced is not None
    assert not forced.is_for_shell(shell)


@pytest.mark.parametrize(
    "name",
    [b"LD_PRELOAD", b"BASH_ENV", b"PATH", b"", b"LC_A=B", b"LC_\xe9", b"LC_\0", b"LANG "],
)
def test_a_variable_that_is_not_accepted_reaches_no_program(
    office: Make, started: list[tuple[object, ...]], name: bytes
) -> None:
    it = office().log_in()
    assert "variable" in it.denied(Spawn("exec", b"env", (name, b"x"), 0))
    assert not started
    it.denied(Spawn("exec", b"env", (b"LANG", b"C", b"LC_ALL", b"C", b"TERM", b"vt100"), 0))
    environment = started[0][2]
    assert environment[b"LC_ALL"] == b"C"  # type: ignore[index]


@pytest.mark.parametrize(
    ("patterns", "reach"),
    [
        ((), set()),
        (("LC_*",), {b"LC_ALL"}),
        (("LANG", "LC_*"), {b"LANG", b"LC_ALL"}),
        (("*", "!LD_*"), {b"LANG", b"LC_ALL"}),
        (("*",), {b"LANG", b"LC_ALL", b"LD_PRELOAD"}),
    ],
)
def test_a_variable_of_a_keys_line_needs_the_servers_permission(
    office: Make,
    started: list[tuple[object, ...]],
    caplog: pytest.LogCaptureFixture,
    patterns: tuple[str, ...],
    reach: set[bytes],
) -> None:
    """Else LD_PRELOAD makes anything of a forced command."""
    names = ("LANG", "LC_ALL", "LD_PRELOAD")
    line = ",".join(f'environment="{name}=x"' for name in names) + f" {KEY.public.line()}"
    caplog.set_level("INFO")
    tables = for_me(permit_user_environment=patterns, force_command="ours")
    it = office(line, match=tables).log_in()
    for _ in range(2):
        it.denied(Spawn("exec", b"asked", (), 0))
    environment = started[-1][2]
    assert isinstance(environment, dict)
    assert reach == {name.encode() for name in names} & environment.keys()
    dropped = [name for name in names if name.encode() not in reach]
    said = [text for text in caplog.messages if "permit_user_environment" in text]
    assert said == [f"permit_user_environment drops the key's {', '.join(dropped)}"] * bool(dropped)


def test_a_key_without_a_terminal_gets_none(office: Make) -> None:
    it = office(f"no-pty {KEY.public.line()}").log_in()
    assert "terminal" in it.denied(OpenPty())
    assert "no terminal" in it.denied(Spawn("shell", b"", (), 1))


def test_the_terminals_without_a_program_are_as_many_as_the_sessions(office: Make) -> None:
    it = office(max_sessions=2).log_in()

    def open_terminal() -> int:
        answer = it.raw(OpenPty().encode())
        assert answer is not None and answer[0][:1] == GRANTED, answer
        os.close(answer[1][0])
        return Reader(answer[0][1:]).uint32()

    first, second = open_terminal(), open_terminal()
    assert "too many" in it.denied(OpenPty())
    terminal = it.sessions._terminals[first]
    it.ask(ClosePty(first))
    for fd in (terminal.master, terminal.slave):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for number in (first, 0, 77):
        assert "no terminal" in it.denied(ClosePty(number))
    assert "no terminal" in it.denied(Spawn("shell", b"", (), first))
    for number in (second, open_terminal()):
        it.ask(ClosePty(number))


def run(it: Office, command: bytes, kind: str = "exec") -> tuple[int, list[int]]:
    answer = it.raw(Spawn(kind, command, (), 0).encode())
    assert answer is not None and answer[0][:1] == GRANTED, answer
    return Reader(answer[0][1:]).uint32(), answer[1]


def test_a_program_runs_and_its_end_is_told(office: Make) -> None:
    it = office().log_in()
    pid, (stdin, stdout, stderr, status) = run(it, b"cat; echo err >&2; exit 7")
    os.write(stdin, b"hello")
    os.close(stdin)
    assert os.read(stdout, 100) == b"hello"
    assert os.read(stderr, 100) == b"err\n"
    assert os.read(stdout, 100) == b""
    wait_for(lambda: not programs_of(it))
    assert os.waitstatus_to_exitcode(int.from_bytes(os.read(status, 4), "big")) == 7
    assert os.read(status, 1) == b""
    assert pid > 0
    for fd in (stdout, stderr, status):
        os.close(fd)


def programs_of(it: Office) -> int:
    """How many the monitor still knows, once it has looked whether they have ended."""
    it.monitor._reap()
    assert it.sessions is not None
    return len(it.sessions._programs)


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_monitor_counts_the_sessions_itself(office: Make, limit: int) -> None:
    """What a worker that was taken over asks for; 0 leaves forwards, and no shell."""
    it = office(max_sessions=limit).log_in()
    opened: list[list[int]] = []
    pids = []
    for _ in range(limit):
        pid, fds = run(it, b"exec cat")
        pids.append(pid)
        opened.append(fds)
    for kind in ("shell", "exec", "subsystem"):
        assert it.denied(Spawn(kind, b"true", (), 0)) == "too many sessions"
    assert it.denied(OpenPty()) == "too many sessions"
    if limit:
        os.close(opened[0].pop(0))  # its input, by which it ends
        wait_for(lambda: programs_of(it) < limit)
        answer = it.raw(OpenPty().encode())
        assert answer is not None and answer[0][:1] == GRANTED
        opened.append(answer[1])
        assert it.denied(OpenPty()) == it.denied(Spawn("exec", b"true", (), 0))
        number = Reader(answer[0][1:]).uint32()
        answer = it.raw(Spawn("exec", b"true", (), number).encode())
        assert answer is not None and answer[0][:1] == GRANTED
        opened.append(answer[1])
    for fd in (fd for fds in opened for fd in fds):
        os.close(fd)
    wait_for(lambda: not programs_of(it))


@pytest.mark.parametrize("running", [0, 1])
def test_after_no_more_sessions_only_those_that_are_open_begin_a_program(
    office: Make, running: int
) -> None:
    """Which a worker that is taken over later cannot take back."""
    it = office().log_in()
    opened = [run(it, b"exec cat")[1] for _ in range(running)]
    it.ask(EndSessions(running + 1))
    assert it.denied(Spawn("subsystem", b"none", (), 0)) == "no such subsystem"
    opened.append(run(it, b"exec cat")[1])
    for kind in ("shell", "exec"):
        assert it.denied(Spawn(kind, b"true", (), 0)) == "no more sessions were wanted"
    assert it.denied(OpenPty()) == "no more sessions were wanted"
    for fd in (fd for fds in opened for fd in fds):
        os.close(fd)
    wait_for(lambda: not programs_of(it))
    assert it.ends(EndSessions(5))


@pytest.mark.root
@pytest.mark.parametrize(("group", "mode"), [(True, 0o620), (False, 0o600)])
def test_a_terminal_is_its_users_and_those_may_write_who_are_allowed_to_with_every_terminal(
    account: Account, monkeypatch: pytest.MonkeyPatch, group: bool, mode: int
) -> None:
    """The group tty, that is; a user's own group has other members than the user."""
    if not group:
        monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    terminal = programs.open_terminal(pwd.getpwnam(account.name))
    try:
        found = os.fstat(terminal.slave)
        assert found.st_mode & 0o777 == mode
        assert found.st_uid == pwd.getpwnam(account.name).pw_uid
    finally:
        terminal.close()


def test_a_program_has_no_descriptor_but_its_three(office: Make) -> None:
    it = office().log_in()
    secret, _write = os.pipe()
    os.set_inheritable(secret, True)
    _, fds = run(it, b"ls /proc/self/fd")
    try:
        assert os.read(fds[1], 1000).split() == [b"0", b"1", b"2", b"3"]  # ls reads with the last
        wait_for(lambda: not programs_of(it))
    finally:
        for fd in (*fds, secret, _write):
            os.close(fd)


def test_a_signal_goes_to_a_program_of_this_connection_only(office: Make) -> None:
    it = office().log_in()
    for process, name in ((os.getpid(), "TERM"), (1, "TERM"), (0, "TERM"), (0xFFFFFFFF, "TERM")):
        assert "no such" in it.denied(SendSignal(process, name))
    pid, fds = run(it, b"echo runs; exec sleep 100")
    assert os.read(fds[1], 100) == b"runs\n"
    for name in ("", "9", "SIGTERM", "RTMIN", "CLD", "TERM "):
        assert "no such" in it.denied(SendSignal(pid, name))
    it.ask(SendSignal(pid, "KILL"))
    wait_for(lambda: not programs_of(it))
    assert int.from_bytes(os.read(fds[3], 4), "big") == signal.SIGKILL
    assert "no such" in it.denied(SendSignal(pid, "KILL"))
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "changes", "kind"),
    [
        ('command="exec sleep 100" ', {}, "exec"),
        ('command="exec sleep 100" ', {}, "shell"),
        ("", {"force_command": "exec sleep 100"}, "exec"),
        ("", {"subsystems": {"wait": "exec sleep 100"}}, "subsystem"),
    ],
)
def test_what_the_client_did_not_choose_gets_no_signal(
    office: Make, options: str, changes: dict[str, object], kind: str
) -> None:
    """As with OpenSSH: who may only start a backup may not break it off halfway."""
    it = office(options + KEY.public.line(), **changes).log_in()
    pid, fds = run(it, b"wait", kind)
    for name in ("KILL", "TERM", "STOP"):
        assert "get no signals" in it.denied(SendSignal(pid, name))
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    it.sessions._kill(ME, pid, signal.SIGKILL)
    wait_for(lambda: not programs_of(it))
    for fd in fds:
        os.close(fd)


@pytest.mark.root
def test_a_signal_is_sent_as_the_user_not_as_root(
    office: Make, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have become another user's, as sudo does."""
    it = office().log_in()
    user = it.become(account.name)
    it.sessions._programs[4711] = session_grants._Running(-1, True)
    seen: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda *_: seen.append(os.geteuid()))
    it.ask(SendSignal(4711, "TERM"))
    assert seen == [user.pw_uid]
    it.sessions._programs.clear()


@pytest.mark.root
def test_a_program_is_nobody_but_the_user(office: Make, account: Account) -> None:
    it = office().log_in()
    user = it.become(account.name)
    _, fds = run(it, b"grep -E '^(Uid|Gid|Groups)' /proc/self/status; pwd; umask")
    wait_for(lambda: not programs_of(it))
    lines = os.read(fds[1], 1000).decode().split("\n")
    assert lines[0].split()[1:] == [str(user.pw_uid)] * 4
    assert lines[1].split()[1:] == [str(user.pw_gid)] * 4
    assert set(lines[2].split()[1:]) == {str(user.pw_gid)}
    assert lines[3] == user.pw_dir
    for fd in fds:
        os.close(fd)
