"""A session on the server: what a client may ask for, in which order, and how it ends."""

import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterator
from functools import partial
from typing import Unpack

import pytest

from appliance.errors import PeerError
from appliance.services import session
from appliance.services.session import (
    ENVIRONMENT_LIMIT,
    VARIABLE_LIMIT,
)
from appliance.wire.codec import write_uint32
from appliance.wire.session import (
    Command,
    EnvironmentVariable,
    ExitSignal,
    PtyRequest,
    SignalRequest,
    WindowChange,
)
from tests.processes import descriptors
from tests.protocol.harness import Limits
from tests.unit.services.harness import SessionTest

Make = Callable[..., SessionTest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SessionTest] = []

    def new(**settings: Unpack[Limits]) -> SessionTest:
        made.append(SessionTest(**settings))
        return made[-1]

    yield new
    for each in made:
        each.close()
        assert each.ended == 1


def exec_(command: str) -> bytes:
    return Command(command.encode()).encode()


def pty_request(term: str = "vt100", modes: bytes = b"\0") -> bytes:
    return PtyRequest(term, 80, 24, 0, 0, modes).encode()


def test_a_commands_output_errors_and_status_arrive(make: Make) -> None:
    it = make()
    assert it.request("exec", exec_("echo out; echo err >&2; exit 7"))
    it.run_until(lambda: it.has("closed"))
    assert (it.output(), it.errors()) == (b"out\n", b"err\n")
    assert it.has("request", "exit-status", write_uint32(7))
    assert it.client.events.index(("request", "exit-status", write_uint32(7))) < (
        it.client.events.index(("eof",))
    )
    assert it.ended == 1


def test_a_signal_that_ended_it_is_named(make: Make) -> None:
    it = make()
    assert it.request("exec", exec_("kill -TERM $$"))
    it.run_until(lambda: it.has("closed"))
    assert it.has("request", "exit-signal", ExitSignal("TERM", False).encode())


def test_input_reaches_the_program_and_so_does_its_end(make: Make) -> None:
    it = make()
    assert it.request("shell")
    it.channel.send(b"hello")
    it.channel.eof()
    it.run_until(lambda: it.has("closed"))
    assert it.output() == b"hello"


def test_input_before_the_program_is_thrown_away_and_costs_no_window(make: Make) -> None:
    it = make(window=40_000)
    for _ in range(10):
        it.channel.send(bytes(20_000))
        it.pair.pump()
    assert it.pair.server.transport.error is None
    assert it.channel.sendable()


@pytest.mark.parametrize("second", ["exec", "shell", "subsystem", "pty-req", "env"])
def test_nothing_starts_twice(make: Make, second: str) -> None:
    it = make()
    assert it.request("exec", exec_("cat"))
    data = {
        "exec": exec_("true"), "shell": b"", "subsystem": exec_("x"), "pty-req": pty_request(),
        "env": EnvironmentVariable(b"LANG", b"C").encode(),
    }[second]  # fmt: skip
    assert not it.request(second, data)
    assert [event[0] for event in it.privileges.asked] == ["spawn"]
    it.channel.eof()
    it.run_until(lambda: it.has("closed"))


@pytest.mark.parametrize("kind", ["exec", "shell", "subsystem", "pty-req"])
def test_what_the_monitor_refuses_fails_and_nothing_else(make: Make, kind: str) -> None:
    it = make()
    it.privileges.refuses = {"spawn", "open_pty"}
    data = {"shell": b"", "pty-req": pty_request()}.get(kind, exec_("x"))
    assert not it.request(kind, data)
    it.privileges.refuses = set()
    assert it.request("exec", exec_("true"))
    it.run_until(lambda: it.has("closed"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("exec", b""), ("exec", exec_("x") + b"\0"), ("shell", b"\0"), ("subsystem", b"\0\0"),
        ("pty-req", b""), ("pty-req", pty_request()[:-1]), ("env", b"\0"), ("signal", b""),
        ("window-change", bytes(15)), ("window-change", bytes(17)),
        ("pty-req", pty_request(modes=b"\1\0")),
    ],
)  # fmt: skip
def test_a_malformed_request_ends_the_connection_as_the_peers_fault(
    make: Make, name: str, data: bytes
) -> None:
    it = make()
    it.channel.request(name, data)
    it.pair.pump()
    assert isinstance(it.pair.server.transport.error, PeerError)
    if it.privileges.slave >= 0:
        assert it.ended == 1


def test_a_terminal_without_a_program_is_given_back_once(make: Make) -> None:
    it = make()
    assert it.request("pty-req", pty_request())
    it.channel.close()
    it.run_until(lambda: it.has("closed"))
    assert [event[0] for event in it.privileges.asked] == ["open_pty", "close_pty"]


def test_a_terminal_with_a_program_is_not_ours_to_give_back(make: Make) -> None:
    it = make()
    assert it.request("pty-req", pty_request())
    assert it.request("exec", exec_("true"))
    it.run_until(lambda: it.has("closed"))
    assert [event[0] for event in it.privileges.asked] == ["open_pty", "spawn"]


@pytest.mark.parametrize(
    "name", ["auth-agent-req", "x11-req@example.org", "__init__", "", "_exec", "request"]
)
def test_an_unknown_request_fails(make: Make, name: str) -> None:
    assert not make().request(name, b"whatever")


def test_a_command_with_a_nul_is_refused(make: Make) -> None:
    it = make()
    assert not it.request("exec", Command(b"true\0; reboot").encode())
    assert it.privileges.asked == []


# The environment


def env(it: SessionTest, name: bytes, value: bytes = b"x") -> bool:
    return it.request("env", EnvironmentVariable(name, value).encode())


def test_only_variables_of_the_list_are_taken(make: Make) -> None:
    it = make()
    assert env(it, b"LANG") and env(it, b"LC_ALL") and env(it, b"LC_")
    for name in (b"PATH", b"LD_PRELOAD", b"", b"lang", b"LANG2", b"XLC_A", b"LC_A=B", b"LC_\xe9",
                 b"LC_\0", b"LC_ A", b"LC_\n"):  # fmt: skip
        assert not env(it, name), name
    assert not env(it, b"LANG", b"a\0b")
    assert it.request("exec", exec_("true"))
    environment = it.privileges.asked[0][3]
    assert environment == ((b"LANG", b"x"), (b"LC_ALL", b"x"), (b"LC_", b"x"))
    it.run_until(lambda: it.has("closed"))


def test_variables_are_limited_in_number_and_length(make: Make) -> None:
    it = make()
    assert not env(it, b"LANG", b"x" * VARIABLE_LIMIT)
    assert [env(it, b"LC_%d" % number) for number in range(ENVIRONMENT_LIMIT + 5)] == (
        [True] * ENVIRONMENT_LIMIT + [False] * 5
    )


def test_a_terminals_name_cannot_hold_a_nul_or_be_endless(make: Make) -> None:
    for term in ("a\0b", "x" * 5000):
        it = make()
        assert not it.request("pty-req", pty_request(term))
        assert it.privileges.asked == []


# Terminals


def size_of(fd: int) -> tuple[int, ...]:
    return struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))


def test_a_terminal_has_the_size_that_was_asked_for_and_follows_changes(make: Make) -> None:
    it = make()
    request = PtyRequest("vt100", 100, 30, 70000, 2, b"\0").encode()
    assert it.request("pty-req", request)
    master = it.session._master
    assert master is not None
    assert size_of(master) == (30, 100, 65535, 2)
    assert not it.request("pty-req", request)
    assert it.request("window-change", WindowChange(0xFFFFFFFF, 5, 0, 0).encode())
    assert size_of(master) == (5, 65535, 0, 0)


def test_a_window_change_without_a_terminal_fails(make: Make) -> None:
    assert not make().request("window-change", WindowChange(1, 1, 1, 1).encode())


def test_a_program_on_a_terminal_ends_with_its_status(make: Make) -> None:
    it = make()
    assert it.request("pty-req", pty_request())
    assert it.request("exec", exec_("tty >/dev/null && echo yes; exit 3"))
    it.run_until(lambda: it.has("closed"))
    assert it.output() == b"yes\r\n"
    assert it.has("request", "exit-status", write_uint32(3))
    assert it.privileges.asked[1][3:] == (((b"TERM", b"vt100"),), True)


def test_the_end_of_a_terminals_output_is_not_lost_behind_a_full_window(make: Make) -> None:
    """The program has ended long ago when the client at last makes room."""
    it = make(window=32_768)
    it.client.consumes = False
    it.channel.receive_window = it.channel.window = 32_768
    assert it.request("pty-req", pty_request())
    assert it.request("exec", exec_("stty -opost; head -c 33000 /dev/zero; echo end"))
    it.run_until(lambda: len(it.output()) == 32_768)
    it.run_until(lambda: it.session._status is not None)
    deadline = it.driver.loop.time() + session.TERMINAL_GRACE * 3
    it.run_until(lambda: it.driver.loop.time() > deadline)
    it.client.consumes = True
    it.channel.consume(32_768)
    it.run_until(lambda: it.has("closed"))
    assert it.output().endswith(b"end\n")


def test_a_program_in_the_background_does_not_hold_a_terminal_open(make: Make) -> None:
    it = make()
    assert it.request("pty-req", pty_request())
    assert it.request("exec", exec_("trap '' HUP; sleep 1 & echo started"))
    it.run_until(lambda: it.has("closed"), 0.9)
    assert it.output() == b"started\r\n"


def test_a_break_is_an_interrupt_and_never_raises(make: Make) -> None:
    it = make()
    assert not it.request("break", write_uint32(1000))
    assert it.request("pty-req", pty_request())
    assert it.request("exec", exec_("trap 'echo interrupted; exit 5' INT; echo on; read line"))
    it.run_until(lambda: b"on" in it.output())
    assert it.request("break", write_uint32(1000))
    it.run_until(lambda: it.has("closed"))
    assert b"interrupted" in it.output()


@pytest.mark.parametrize("state", ["full", "gone"])
def test_a_break_that_the_terminal_does_not_take_never_raises(make: Make, state: str) -> None:
    it = make()
    assert it.request("pty-req", pty_request())
    command = "stty raw; echo on; sleep 100" if state == "full" else "true"
    assert it.request("exec", exec_(command))
    master = it.session._master
    assert master is not None
    if state == "full":
        it.run_until(lambda: b"on" in it.output())
        with pytest.raises(BlockingIOError):
            while True:
                os.write(master, b"x" * 4096)
    else:
        it.privileges.watcher.join()
    it.request("break", write_uint32(1000))
    assert it.pair.server.transport.error is None


# Signals


def test_a_signal_is_passed_on_by_name(make: Make) -> None:
    it = make()
    assert not it.request("signal", SignalRequest("TERM").encode())
    assert it.request("exec", exec_("cat"))
    assert it.request("signal", SignalRequest("TERM").encode())
    for name in ("", "TERM;", "../x", "TE RM"):
        assert not it.request("signal", SignalRequest(name).encode())
    assert it.privileges.asked[1:] == [("signal", "TERM")]
    it.privileges.refuses = {"signal"}
    assert not it.request("signal", SignalRequest("KILL").encode())
    it.channel.eof()
    it.run_until(lambda: it.has("closed"))


# Ends


def test_the_end_of_the_clients_reader_reaches_the_program(make: Make) -> None:
    """eow@openssh.com: an endless program ends when nobody reads it."""
    it = make()
    assert it.request("exec", exec_("yes; exit 9"))
    it.run_until(lambda: it.output())
    it.channel.request("eow@openssh.com")
    it.run_until(lambda: it.has("closed"))
    assert it.has("eof")


def test_a_client_that_hangs_up_leaves_no_descriptor(make: Make) -> None:
    before = set(descriptors())
    it = make()
    opened = set(descriptors())
    assert it.request("exec", exec_("cat"))
    it.channel.close()
    it.run_until(lambda: it.ended)
    it.privileges.watcher.join()
    assert set(descriptors()) == opened
    assert before <= opened


def test_a_status_pipe_that_wakes_up_without_a_status_is_no_end(make: Make) -> None:
    it = make()
    assert it.request("exec", exec_("cat"))
    it.session._on_status()
    assert it.session._status is None
    it.channel.eof()
    it.run_until(lambda: it.has("closed"))
    assert it.has("request", "exit-status", write_uint32(0))


def test_a_status_that_never_comes_counts_as_a_kill(make: Make) -> None:
    it = make()
    it.privileges.loses_status = True
    assert it.request("exec", exec_("true"))
    it.run_until(lambda: it.has("closed"))
    assert it.has("request", "exit-signal", ExitSignal("KILL", False).encode())


def test_a_program_that_closes_its_input_early_is_no_mistake(make: Make) -> None:
    it = make()
    assert it.request("exec", exec_("exec <&-; echo closed; sleep 0.2; exit 4"))
    it.run_until(lambda: it.output())
    it.channel.send(bytes(100_000))
    it.run_until(lambda: it.has("closed"))
    assert it.has("request", "exit-status", write_uint32(4))
    assert it.pair.server.transport.error is None


def test_a_signal_without_a_name_is_told_all_the_same(make: Make) -> None:
    """Real-time signals are not all in Python's table."""
    it = make()
    assert it.request("exec", exec_("kill -40 $$"))
    it.run_until(lambda: it.has("closed"))
    (event,) = [e for e in it.client.events if e[0] == "request" and "exit" in str(e[1])]
    assert event[1] == "exit-signal"


def test_the_agent_is_asked_for_before_the_program_runs(make: Make) -> None:
    it = make()
    assert it.request("auth-agent-req@openssh.com")
    assert it.agents == 1
    it.no_agent = True
    assert not it.request("auth-agent-req@openssh.com")
    it.no_agent = False
    assert it.request("exec", Command(b"true").encode())
    assert not it.request("auth-agent-req@openssh.com")
    assert it.agents == 1


def test_an_upload_by_sftp_has_a_larger_window_and_other_subsystems_have_not(make: Make) -> None:
    for name, factor in ((b"sftp", 4), (b"other", 1)):
        it = make(window=40_000)
        assert it.request("subsystem", Command(name).encode())
        assert it.channel.send_window == 40_000 * factor
        it.channel.eof()
        it.run_until(partial(it.has, "closed"))
