"""Displays that the monitor grants: who may have one, which number it has, and what ends it."""

import contextlib
import os
import pwd
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appliance.aio.listening import EVERYWHERE, LOOPBACK, listen
from appliance.server import x11_grants
from appliance.server.requests import CloseX11, ListenX11, Spawn
from appliance.wire.codec import Reader
from appliance.wire.session import Command, X11Request
from appliance.wire.x11 import xauthority_entries
from tests.netns import wait_until
from tests.peers import Account
from tests.processes import descriptors, status
from tests.unit.server.conftest import Dial, Serve, worker_of
from tests.unit.server.office import KEY, Make, Office
from tests.unit.server.test_programs import Terminal

COOKIE = b"00112233445566778899aabbccddeeff"
HAS_IPV6 = Path("/proc/net/if_inet6").exists()


def ask(
    cookie: bytes = COOKIE, screen: int = 0, protocol: bytes = b"MIT-MAGIC-COOKIE-1"
) -> ListenX11:
    return ListenX11(protocol, cookie, screen)


class Displays:
    """An office whose displays have numbers that nobody else uses, and a home of their own."""

    def __init__(self, office: Make, home: Path, lines: str = "", **settings: object) -> None:
        self.first = random.randrange(1000, 8000)  # ports below those that free_port gives
        settings = {"x11_display_offset": self.first} | settings
        self.office: Office = office(lines=lines, **settings).log_in()
        self.home = home
        user = self.office.sessions._login.user
        self.user = pwd.struct_passwd((*user[:5], str(home), user[6]))
        grants = self.office.monitor._displays
        assert grants is not None
        self.grants = grants
        for each in (self.office.sessions, grants):
            each._login = each._login._replace(user=self.user)

    def listen(self, request: ListenX11 | None = None) -> tuple[int, int, list[socket.socket]]:
        """The answer's number, its display number, and the sockets of the worker."""
        answer = self.office.raw((request or ask()).encode())
        assert answer is not None and answer[0][:1] == b"\0", answer
        reader = Reader(answer[0][1:])
        number, port = reader.uint32(), reader.uint32()
        return number, port - 6000, [socket.socket(fileno=fd) for fd in answer[1]]

    def end(self, number: int, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            sock.close()
        assert self.office.ask(CloseX11(number)) == b""


@pytest.fixture
def displays(office: Make, tmp_path: Path) -> Callable[..., Displays]:
    return lambda *lines, **settings: Displays(office, tmp_path, *lines, **settings)


Open = Callable[..., Displays]


def addresses(sockets: Sequence[socket.socket]) -> set[str]:
    return {sock.getsockname()[0] for sock in sockets}


def is_free(port: int) -> bool:
    try:
        for sock in listen(LOOPBACK, port):
            sock.close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def taken(address: str, port: int) -> Iterator[None]:
    for sock in listen([address], port):
        with sock:
            yield


def test_a_display_listens_on_the_loopback_only_and_its_port_goes_with_it(displays: Open) -> None:
    it = displays()
    number, shown, sockets = it.listen()
    assert shown == it.first
    assert addresses(sockets) <= set(LOOPBACK)
    assert len(sockets) == 1 + HAS_IPV6
    assert {sock.getsockname()[1] for sock in sockets} == {6000 + it.first}
    assert it.grants.of_session(number).display.name == b"localhost:%d.0" % it.first  # type: ignore[union-attr]
    it.end(number, sockets)
    assert is_free(6000 + it.first)


def test_every_address_is_listened_on_if_the_server_says_so(displays: Open) -> None:
    it = displays(x11_use_localhost=False)
    number, _, sockets = it.listen(ask(screen=2))
    assert addresses(sockets) <= set(EVERYWHERE)
    name = it.grants.of_session(number).display.name  # type: ignore[union-attr]
    assert name == f"{socket.gethostname()}:{it.first}.2".encode()
    it.end(number, sockets)


@pytest.mark.parametrize("address", [*LOOPBACK, *EVERYWHERE])
def test_a_number_whose_port_is_taken_in_either_family_is_skipped(
    displays: Open, address: str
) -> None:
    if ":" in address and not HAS_IPV6:
        pytest.skip("this machine has no IPv6")
    it = displays()
    with taken(address, 6000 + it.first), taken(address, 6001 + it.first):
        number, shown, sockets = it.listen()
        assert shown == it.first + 2
        it.end(number, sockets)


def test_the_number_of_an_x_server_on_this_machine_is_skipped(
    displays: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may listen on its socket's file alone, and its cookie is found by the same name."""
    monkeypatch.setattr(x11_grants, "LOCAL_SOCKET", f"{tmp_path}/X%d")
    it = displays()
    (tmp_path / f"X{it.first}").touch()
    number, shown, sockets = it.listen()
    assert shown == it.first + 1
    it.end(number, sockets)


def test_where_all_displays_are_taken_there_is_none(
    displays: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.server.display_numbers.COUNT", 2)
    it = displays()
    with taken("127.0.0.1", 6000 + it.first), taken("127.0.0.1", 6001 + it.first):
        assert it.office.denied(ask()) == "all displays are taken"
    number, _, sockets = it.listen()
    it.end(number, sockets)


def test_the_next_session_gets_the_same_number_when_it_is_free(displays: Open) -> None:
    it = displays()
    with taken("127.0.0.1", 6000 + it.first):
        number, shown, sockets = it.listen()
        assert shown == it.first + 1
        it.end(number, sockets)
    number, shown, sockets = it.listen()
    assert shown == it.first + 1
    other, third, more = it.listen()
    assert third == it.first
    it.end(number, sockets)
    it.end(other, more)


REFUSED = "X11 forwarding is not allowed"


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("no-x11-forwarding", {}),
        ("restrict", {}),
        ("restrict,port-forwarding,agent-forwarding,pty", {}),
        ("", {"x11_forwarding": False}),
        ("", {"disable_forwarding": True}),
        ("", {"profile": "hardened"}),
        ("", {"chroot_directory": "/"}),
        ("no-x11-forwarding", {"x11_forwarding": True}),
    ],
)
def test_who_may_not_forward_x11_gets_no_display(
    displays: Open, options: str, settings: dict[str, object]
) -> None:
    it = displays(f"{options} {KEY.public.line()}".lstrip(), **settings)
    assert it.office.denied(ask()) == REFUSED
    assert is_free(6000 + it.first)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("restrict,x11-forwarding", {}),
        ("no-port-forwarding", {}),
        ("", {"profile": "hardened", "x11_forwarding": True}),
        ("", {"allow_tcp_forwarding": "no"}),
    ],
)
def test_who_may_does(displays: Open, options: str, settings: dict[str, object]) -> None:
    it = displays(f"{options} {KEY.public.line()}".lstrip(), **settings)
    number, _, sockets = it.listen()
    it.end(number, sockets)


@pytest.mark.parametrize(
    "request_",
    [
        ask(b""), ask(b"0"), ask(b"xx"), ask(COOKIE + b"\n"), ask(COOKIE + b";"), ask(b"00" * 2000),
        ask(protocol=b""), ask(protocol=b"a b"), ask(protocol=b"a\nadd x"), ask(protocol=b"\0"),
        ask(protocol=b"$(id)"), ask(screen=401), ask(screen=0xFFFFFFFF),
    ],
)  # fmt: skip
def test_the_monitor_checks_the_words_itself(displays: Open, request_: ListenX11) -> None:
    it = displays()
    it.office.denied(request_)
    assert is_free(6000 + it.first)
    number, _, sockets = it.listen()
    it.end(number, sockets)


def test_there_are_as_many_displays_as_sessions(displays: Open) -> None:
    it = displays(max_sessions=2)
    given = [it.listen() for _ in range(2)]
    assert it.office.denied(ask()) == "too many displays"
    it.end(given[0][0], given[0][2])
    again = it.listen()
    for number, _, sockets in (given[1], again):
        it.end(number, sockets)


@pytest.mark.parametrize("number", [1, 7, 0xFFFFFFFF])
def test_a_display_that_was_not_given_is_none(displays: Open, number: int) -> None:
    it = displays()
    assert it.office.denied(CloseX11(number)) == "no such display"
    assert it.office.denied(Spawn("exec", b"true", (), 0, number)) == "no such display"


def test_a_worker_that_keeps_its_sockets_hears_no_more(displays: Open) -> None:
    it = displays()
    number, _, sockets = it.listen()
    assert it.office.ask(CloseX11(number)) == b""
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", 6000 + it.first)) != 0
    for each in sockets:
        each.close()


def run(it: Displays, number: int, command: bytes) -> bytes:
    """The output of a session's program that has a display."""
    answer = it.office.raw(Spawn("exec", command, (), 0, number).encode(), 4)
    assert answer is not None and answer[0][:1] == b"\0", answer
    stdin, stdout, stderr, status = answer[1]
    os.close(stdin)
    output = b""
    while data := os.read(stdout, 65536):
        output += data
    wait(it)
    for fd in (stdout, stderr, status):
        os.close(fd)
    return output


def wait(it: Displays) -> None:
    """Wait until the monitor knows that all programs have ended."""

    def is_over() -> bool:
        it.office.monitor._reap()
        return not it.office.sessions._programs

    assert wait_until(is_over, 10)


def test_a_program_finds_its_display_and_the_cookie_until_the_session_ends(displays: Open) -> None:
    it = displays()
    number, shown, sockets = it.listen()
    output = run(it, number, b"echo $DISPLAY $XAUTHORITY; cat /proc/$$/environ /proc/$$/cmdline")
    file = it.home / ".Xauthority"
    assert output.startswith(f"localhost:{shown}.0 {file}\n".encode())
    assert COOKIE not in output
    assert bytes.fromhex(COOKIE.decode()) not in output
    (entry,) = xauthority_entries(file.read_bytes())
    assert entry.data.hex().encode() == COOKIE
    assert entry.number == b"%d" % shown
    it.end(number, sockets)
    assert wait_until(lambda: not file.exists(), 5)


@pytest.mark.parametrize("rc", ["", "ls /proc/$$/fd >fds-of-rc; true"])
def test_a_program_has_its_standard_descriptors_and_no_others(displays: Open, rc: str) -> None:
    it = displays()
    (it.home / ".ssh").mkdir()
    if rc:
        (it.home / ".ssh/rc").write_text(rc)
    number, _, sockets = it.listen()
    assert run(it, number, b"ls /proc/$$/fd; true").split() == [b"0", b"1", b"2"]
    if rc:  # a shell moves its own above 9
        assert not {*"3456789"} & {*(it.home / "fds-of-rc").read_text().split()}
    it.end(number, sockets)


def test_xauth_and_the_program_agree(displays: Open) -> None:
    it = displays()
    number, shown, sockets = it.listen()
    listed = run(it, number, b"xauth list $DISPLAY").split()
    assert listed[0].endswith(b"/unix:%d" % shown)
    assert listed[2] == COOKIE
    it.end(number, sockets)


def test_the_end_of_the_connection_ends_what_is_left(displays: Open) -> None:
    it = displays()
    _, _, sockets = it.listen()
    number, _, more = it.listen()
    assert run(it, number, b"echo $DISPLAY")
    for sock in (*sockets, *more):
        sock.close()
    it.grants.close()
    assert is_free(6000 + it.first) and is_free(6001 + it.first)
    assert wait_until(lambda: not list(it.home.iterdir()), 5)


def test_a_cookie_that_comes_late_is_removed_all_the_same(displays: Open) -> None:
    """A lock holds the program up, and its session ends meanwhile."""
    it = displays()
    locks = [it.home / name for name in (".Xauthority-c", ".Xauthority-l")]
    for lock in locks:
        lock.touch()
    number, _, sockets = it.listen()
    answer = it.office.raw(Spawn("exec", b"true", (), 0, number).encode(), 4)
    assert answer is not None
    it.end(number, sockets)
    for lock in locks:
        lock.unlink()
    wait(it)
    for fd in answer[1]:
        os.close(fd)
    assert wait_until(lambda: not list(it.home.iterdir()), 10)


def test_the_rc_gets_the_cookie_on_its_input_and_then_stores_it_itself(displays: Open) -> None:
    it = displays()
    (it.home / ".ssh").mkdir()
    (it.home / ".ssh/rc").write_text('read line; echo "rc: $line"; echo more: $(cat)\n')
    number, shown, sockets = it.listen()
    output = run(it, number, b"echo $DISPLAY $XAUTHORITY")
    assert output.decode().splitlines() == [
        f"rc: MIT-MAGIC-COOKIE-1 {COOKIE.decode()}",
        "more:",
        f"localhost:{shown}.0 {it.home}/.Xauthority",
    ]
    assert not (it.home / ".Xauthority").exists()
    it.end(number, sockets)


# sshd(8), SSHRC
EXAMPLE = """
if read proto cookie && [ -n "$DISPLAY" ]; then
    if [ `echo $DISPLAY | cut -c1-10` = 'localhost:' ]; then
        # X11UseLocalhost=yes
        echo add unix:`echo $DISPLAY |
            cut -c11-` $proto $cookie
    else
        # X11UseLocalhost=no
        echo add $DISPLAY $proto $cookie
    fi | xauth -q -
fi
"""


@pytest.mark.parametrize("is_local", [True, False])
def test_the_rc_of_the_manual_does_what_we_do(displays: Open, is_local: bool) -> None:
    it = displays(x11_use_localhost=is_local)
    (it.home / ".ssh").mkdir()
    (it.home / ".ssh/rc").write_text(EXAMPLE)
    number, _, sockets = it.listen()
    assert COOKIE in run(it, number, b"xauth list $DISPLAY")
    it.end(number, sockets)


@pytest.mark.parametrize("has_own", [False, True])
def test_the_systems_rc_runs_where_the_user_has_none(
    displays: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_own: bool
) -> None:
    system = tmp_path / "sshrc"
    system.write_text('echo "system: $(cat)"\n')
    monkeypatch.setattr("appliance.server.programs.SYSTEM_RC", str(system))
    it = displays()
    if has_own:
        (it.home / ".ssh").mkdir()
        (it.home / ".ssh/rc").write_text("echo own\n")
    number, _, sockets = it.listen()
    said = "own" if has_own else f"system: MIT-MAGIC-COOKIE-1 {COOKIE.decode()}"
    assert run(it, number, b"true").decode() == f"{said}\n"
    assert run(it, 0, b"true").decode() == ("own\n" if has_own else "system: \n")
    it.end(number, sockets)


def test_where_no_file_can_be_written_the_program_runs_without_a_display(
    displays: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.server.xauthority_files.add", fails)
    it = displays()
    number, _, sockets = it.listen()
    output = run(it, number, b"echo ${DISPLAY-none} ${XAUTHORITY-none}")
    assert output == b"none none\n"
    it.end(number, sockets)


def test_an_sftp_server_gets_no_cookie(displays: Open) -> None:
    it = displays()
    number, _, sockets = it.listen()
    answer = it.office.raw(Spawn("subsystem", b"sftp", (), 0, number).encode(), 4)
    assert answer is not None and answer[0][:1] == b"\0"
    for fd in answer[1]:
        os.close(fd)
    it.end(number, sockets)
    assert not list(it.home.iterdir())
    wait(it)


def test_a_worker_does_not_see_who_had_which_display(our_server: Serve, dial: Dial) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    monitor = int(status(worker)["PPid"][0])
    held = [
        [target for target in descriptors(pid).values() if "display numbers" in target]
        for pid in (server.process.pid, monitor, worker)
    ]
    assert [len(each) for each in held] == [1, 1, 0]


def hostile(word: bytes) -> Iterator[bytes]:
    """Requests with this word in place of the protocol, the cookie, and within them."""
    protocol = b"MIT-MAGIC-COOKIE-1"
    for name, cookie in (
        (word, COOKIE), (protocol, word), (protocol + word, COOKIE), (protocol, COOKIE + word)
    ):  # fmt: skip
        yield X11Request(False, name, cookie, 0).encode()


@pytest.mark.root
def test_a_hostile_request_is_refused_and_its_session_goes_on(
    our_server: Serve, dial: Dial, account: Account
) -> None:
    rc = account.home / ".ssh/rc"
    rc.write_text('echo "rc: $(cat)"\n')
    first = random.randrange(1000, 8000)
    client = dial(our_server(f"x11_display_offset = {first}\n")).log_in()
    words = (b"\n", b"\nadd x . 00", b";", b"\0", b" ", b"\xff", b"$(id)", b"`id`", b"0" * 200_001)
    try:
        session = Terminal(client)
        for word in words:
            for request in hostile(word):
                assert not session.ask("x11-req", request)
        good = X11Request(False, b"MIT-MAGIC-COOKIE-1", COOKIE, 401).encode()
        assert not session.ask("x11-req", good)
        assert not session.ask("x11-req", X11Request(False, b"", b"", 0).encode())
        assert session.ask("exec", Command(b"echo ${DISPLAY-none} ${XAUTHORITY-none}").encode())
        assert client.until(lambda _: session.is_closed)
        assert session.output == b"rc: \nnone none\n"
        # and what was refused does not stand in the way of a good one, in this session or another
        session = Terminal(client)
        assert not session.ask("x11-req", next(hostile(b";")))
        good = X11Request(False, b"MIT-MAGIC-COOKIE-1", COOKIE, 0).encode()
        assert session.ask("x11-req", good)
        assert not session.ask("x11-req", good)
        assert session.ask("exec", Command(b"echo $DISPLAY").encode())
        assert client.until(lambda _: session.is_closed)
        shown = f"localhost:{first}.0"
        assert session.output.decode() == f"rc: MIT-MAGIC-COOKIE-1 {COOKIE.decode()}\n{shown}\n"
    finally:
        rc.unlink()


@pytest.mark.root
def test_a_request_longer_than_a_packet_ends_its_connection_alone(
    our_server: Serve, dial: Dial
) -> None:
    """A megabyte is no packet that anybody takes (RFC 4253 section 6.1)."""
    server = our_server()
    client, other = dial(server).log_in(), dial(server).log_in()
    session = Terminal(client)
    long = X11Request(False, b"MIT-MAGIC-COOKIE-1", b"0" * (1 << 20), 0).encode()
    session.channel.request("x11-req", long, lambda answer: None)
    assert client.until(lambda _: session.is_closed)
    survivor = Terminal(other)
    assert survivor.ask("exec", Command(b"echo on").encode())
    assert other.until(lambda _: survivor.is_closed)
    assert survivor.output == b"on\n"


def test_a_program_that_cannot_start_leaves_its_display_as_it_was(
    displays: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = displays()
    number, _, sockets = it.listen()

    def fails(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as failing:
        failing.setattr("appliance.server.programs.start", fails)
        assert "no process" in it.office.denied(Spawn("exec", b"true", (), 0, number))
    assert run(it, number, b"echo $DISPLAY")
    it.end(number, sockets)
    assert wait_until(lambda: not list(it.home.iterdir()), 5)
