"""What a user may reach and listen on: the settings, the key's line, and the user's own rights."""

import contextlib
import errno
import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.aio.listening import LocalListener
from appliance.config.server import ServerConfig
from appliance.crypto.authorized_keys import parse
from appliance.crypto.keys import generate
from appliance.crypto.permissions import Permissions
from appliance.server import forward_grants
from appliance.server.authentication import LoggedIn
from appliance.server.forward_grants import LISTENERS_LIMIT, ForwardGrants
from appliance.server.requests import (
    Connect,
    ConnectLocal,
    Deny,
    Failed,
    Listen,
    ListenAgent,
    ListenLocal,
    Reply,
    StopListening,
)
from appliance.wire.codec import Reader
from tests.netns import wait_until
from tests.peers import Account
from tests.processes import descriptors

KEY = generate("ssh-ed25519").public.line()
ME = pwd.getpwuid(os.geteuid())


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the loopback that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


_made: list[ForwardGrants] = []


@pytest.fixture(autouse=True)
def made() -> Iterator[None]:
    """Closes what a test was given, as the end of its connection does."""
    yield
    while _made:
        _made.pop().close()


def grants(
    options: str = "", user: pwd.struct_passwd = ME, permissions: Permissions | None = None,
    **settings: object,
) -> ForwardGrants:  # fmt: skip
    """What somebody gets whose key has these options."""
    if permissions is None:
        (entry,) = parse(f"{options} {KEY}".strip().encode(), pytest.fail)
        permissions = entry.options
    config = replace(ServerConfig(), **settings)  # type: ignore[arg-type]
    _made.append(ForwardGrants(LoggedIn(user, permissions, None, config)))
    return _made[-1]


def close(reply: Reply) -> None:
    for fd in reply[1]:
        os.close(fd)


def may(what: ForwardGrants, request: Connect | ConnectLocal | Listen | ListenLocal) -> bool:
    try:
        close(what.handlers()[type(request)](request))
    except Deny:
        return False
    return True


@contextlib.contextmanager
def listening(path: Path) -> Iterator[bytes]:
    """A Unix-domain socket that takes connections."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield bytes(path)


@pytest.mark.parametrize(
    ("setting", "connects", "listens"),
    [("yes", True, True), ("no", False, False), ("local", True, False), ("remote", False, True)],
)
def test_each_direction_is_allowed_on_its_own(
    port: int, tmp_path: Path, setting: str, connects: bool, listens: bool
) -> None:
    it = grants(allow_tcp_forwarding=setting, allow_stream_local_forwarding="no")
    assert may(it, Connect("127.0.0.1", port)) == connects
    assert may(it, Listen("localhost", 0)) == listens
    with listening(tmp_path / "there") as path:
        assert not may(it, ConnectLocal(path))
        it = grants(allow_stream_local_forwarding=setting, allow_tcp_forwarding="no")
        assert may(it, ConnectLocal(path)) == connects
    assert may(it, ListenLocal(str(tmp_path / "here").encode())) == listens
    assert not may(it, Connect("127.0.0.1", port))


def test_a_chroot_has_no_sockets_outside(port: int, tmp_path: Path) -> None:
    """Their paths would be those of files that the user may not reach."""
    it = grants(chroot_directory="/srv")
    with listening(tmp_path / "there") as path:
        assert not may(it, ConnectLocal(path))
    assert not may(it, ListenLocal(str(tmp_path / "here").encode()))
    with pytest.raises(Deny, match="agent"):
        it.listen_agent(ListenAgent())
    assert may(it, Connect("127.0.0.1", port))


@pytest.mark.parametrize(
    "options",
    ["no-port-forwarding", "restrict", 'restrict,command="true"', 'command="x",no-port-forwarding'],
)
def test_a_key_without_port_forwarding_has_no_sockets_either(
    port: int, tmp_path: Path, options: str
) -> None:
    """CVE-2025-14282: a forced command that forbids forwarding forbids stream-local sockets."""
    it = grants(options)
    assert not may(it, Connect("127.0.0.1", port))
    assert not may(it, Listen("localhost", 0))
    assert not may(it, ListenLocal(str(tmp_path / "here").encode()))
    with listening(tmp_path / "there") as path:
        assert not may(it, ConnectLocal(path))
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_disable_forwarding_outweighs_everything(port: int, tmp_path: Path) -> None:
    it = grants("restrict,port-forwarding", disable_forwarding=True)
    assert not may(it, Connect("127.0.0.1", port))
    assert not may(it, Listen("localhost", 0))
    assert not may(it, ListenLocal(str(tmp_path / "here").encode()))
    with listening(tmp_path / "there") as path:
        assert not may(it, ConnectLocal(path))


def test_permitopen_names_what_may_be_reached(port: int, tmp_path: Path) -> None:
    it = grants(f'permitopen="127.0.0.1:{port}",permitopen="localhost:*"')
    assert may(it, Connect("127.0.0.1", port))
    assert may(it, Connect("localhost", port))
    assert not may(it, Connect("127.0.0.1", port + 1))
    assert not may(it, Connect("::1", port))
    with listening(tmp_path / "there") as path:
        assert not may(it, ConnectLocal(path))  # which is none of these places
        it = grants(permit_open=(f"*:{port}",))
        assert not may(it, ConnectLocal(path))
    assert may(it, Connect("127.0.0.1", port))
    assert not may(it, Connect("127.0.0.1", port + 1))


def test_the_settings_and_the_key_must_both_permit(port: int) -> None:
    it = grants(f'permitopen="127.0.0.1:{port}"', permit_open=("localhost:*",))
    assert not may(it, Connect("127.0.0.1", port))
    assert not may(it, Connect("localhost", port))


def test_permitlisten_names_where_may_be_listened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free = sock.getsockname()[1]
    it = grants(f'permitlisten="localhost:{free}"')
    assert may(it, Listen("localhost", free))
    assert not may(it, Listen("", free))
    assert not may(it, Listen("localhost", 0))
    assert not may(it, ListenLocal(b"/tmp/somewhere"))
    it.close()
    assert may(grants(f'permitlisten="{free}"'), Listen("", free))


@pytest.mark.parametrize("port", [0, 65536, 0xFFFFFFFF])
def test_a_port_that_is_none_is_refused_before_anything_is_made(port: int) -> None:
    it = grants()
    assert not may(it, Connect("127.0.0.1", port))
    if port:
        assert not may(it, Listen("localhost", port))


@pytest.mark.parametrize("value", ["", "no", "65536", "0xffffffff", "-1", "0"])
def test_a_rule_with_a_bad_port_lets_nobody_in(value: str) -> None:
    for option in (f'permitopen="host:{value}"', f'permitlisten="{value}"'):
        told: list[str] = []
        assert not list(parse(f"{option} {KEY}".encode(), told.append))
        assert "so this key is refused" in told[0]


@pytest.mark.parametrize(
    ("gateway_ports", "asked", "bound"),
    [
        ("no", "localhost", {"127.0.0.1", "::1"}),
        ("no", "", {"127.0.0.1", "::1"}),
        ("no", "0.0.0.0", {"127.0.0.1", "::1"}),
        ("no", "::1", {"::1"}),
        ("yes", "localhost", {"0.0.0.0", "::"}),
        ("clientspecified", "", {"0.0.0.0", "::"}),
        ("clientspecified", "*", {"0.0.0.0", "::"}),
        ("clientspecified", "localhost", {"127.0.0.1", "::1"}),
        ("clientspecified", "127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_gateway_ports(gateway_ports: str, asked: str, bound: set[str]) -> None:
    answer, fds = grants(gateway_ports=gateway_ports).listen(Listen(asked, 0))
    sockets = [socket.socket(fileno=fd) for fd in fds]
    assert {sock.getsockname()[0] for sock in sockets} == bound
    ports = {sock.getsockname()[1] for sock in sockets}
    assert ports == {int.from_bytes(answer[4:8], "big")}
    for sock in sockets:
        sock.close()


def test_a_name_is_no_address_to_listen_on() -> None:
    with pytest.raises(Deny, match="'example' is not an address"):
        grants(gateway_ports="clientspecified").listen(Listen("example", 0))


@pytest.mark.root
def test_a_socket_is_the_users(account: Account, port: int) -> None:
    user = pwd.getpwnam(account.name)
    it = grants(user=user)
    path = Path(user.pw_dir, "s")
    _, fds = it.listen_local(ListenLocal(b"s"))  # in the home, when it is not said
    status = path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (user.pw_uid, 0o600)
    for reply in ((b"", fds), it.connect(Connect("127.0.0.1", port))):
        (fd,) = reply[1]
        assert os.fstat(fd).st_uid == user.pw_uid
        os.close(fd)
    assert not may(it, Listen("localhost", 999))  # only root has such ports
    assert not may(it, ListenLocal(b"/root/s"))
    it.close()
    assert not path.exists()


@pytest.mark.root
def test_a_socket_of_roots_is_not_reached_by_a_user(account: Account) -> None:
    """CVE-2025-14282: it is opened with the user's rights, not with the monitor's."""
    it = grants(user=pwd.getpwnam(account.name))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with listening(folder / "s") as path:
            (folder / "s").chmod(0o600)
            assert not may(it, ConnectLocal(path))
            assert may(grants(), ConnectLocal(path))
            (folder / "s").chmod(0o666)
            assert may(it, ConnectLocal(path))
            folder.chmod(0o700)
            assert not may(it, ConnectLocal(path))


@pytest.mark.root
def test_a_sockets_file_is_removed_as_the_user(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the folder may put another file in its place at any moment."""
    user = pwd.getpwnam(account.name)
    it = grants(user=user)
    for name in (b"a", b"b"):
        close(it.listen_local(ListenLocal(name)))
    close(it.listen_agent(ListenAgent()))
    removed_by = []
    remove = LocalListener.remove

    def seen(listener: LocalListener) -> None:
        removed_by.append(os.geteuid())
        remove(listener)

    monkeypatch.setattr(LocalListener, "remove", seen)
    it.stop_listening(StopListening(1))
    it.close()
    assert removed_by == [user.pw_uid] * 3


@pytest.mark.root
def test_who_connects_to_names_is_the_user_and_reaches_no_key_holder(account: Account) -> None:
    """Its memory was the monitor's: neither the user nor what it runs may look into it."""
    user = pwd.getpwnam(account.name)
    before = children()
    requests, holder = socket.socketpair()  # as the monitor has one for signatures
    with requests, holder:
        it = grants(user=user)
        try:
            _, (fd,) = it.connect(Connect("127.1", 1))
            with socket.socket(fileno=fd) as attempt:
                attempt.settimeout(10)
                attempt.recv(100)  # it has answered
            (child,) = children() - before
            status = Path(f"/proc/{child}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines())
            assert set(fields["Uid"].split()) == {str(user.pw_uid)}
            assert fields["NoNewPrivs"] == "1"
            assert Path(f"/proc/{child}/mem").stat().st_uid == 0  # as of who may not be traced
            # the one on which it is asked; until it is closed, also that of the answer
            assert wait_until(lambda: count_sockets(child) == 1)
        finally:
            it.close()


def count_sockets(pid: int) -> int:
    return sum(target.startswith("socket:") for target in descriptors(pid).values())


def children() -> set[int]:
    """The processes that this thread has started."""
    return set(map(int, Path("/proc/thread-self/children").read_text().split()))


def test_a_sockets_file_goes_with_its_forward_but_nobody_elses(tmp_path: Path) -> None:
    it = grants()
    path = tmp_path / "s"
    close(it.listen_local(ListenLocal(bytes(path))))
    assert not may(it, ListenLocal(bytes(path)))  # it is there
    it.stop_listening(StopListening(1))
    assert not path.exists()
    close(it.listen_local(ListenLocal(bytes(path))))
    path.unlink()
    path.write_text("somebody else's")
    it.close()
    assert path.exists()


def test_an_agents_folder_goes_when_there_is_no_socket_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix, dir: make(prefix=prefix, dir=tmp_path))
    monkeypatch.setattr(forward_grants, "LocalListener", none_left)
    with pytest.raises(Deny, match="Too many open files"):
        grants().listen_agent(ListenAgent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [b"", b"\0abstract", b"a\0b", b"/tmp/" + b"x" * 200])
def test_a_path_that_is_none_is_refused(path: bytes) -> None:
    it = grants()
    assert not may(it, ConnectLocal(path))
    assert not may(it, ListenLocal(path))


def test_a_connection_listens_on_so_many_ports_and_no_more() -> None:
    it = grants()
    for _ in range(LISTENERS_LIMIT):
        close(it.listen(Listen("127.0.0.1", 0)))
    with pytest.raises(Deny, match="too many"):
        it.listen(Listen("127.0.0.1", 0))
    it.stop_listening(StopListening(7))
    close(it.listen(Listen("127.0.0.1", 0)))
    with pytest.raises(Deny):
        it.stop_listening(StopListening(7))


def test_what_the_system_refuses_is_told_apart_from_what_may_not_be(tmp_path: Path) -> None:
    it = grants('permitlisten="1"')
    for request in (Connect("192.0.2.1", 0), ConnectLocal(bytes(tmp_path / "nothing"))):
        handler = it.handlers()[type(request)]
        with pytest.raises(Deny) as caught:
            handler(request)
        assert isinstance(caught.value, Failed) == isinstance(request, ConnectLocal)


@pytest.mark.parametrize("kind", ["port", "file"])
def test_a_forward_ends_though_a_worker_that_was_taken_over_keeps_its_socket(
    tmp_path: Path, kind: str
) -> None:
    """Or the limit of forwards would be no limit."""
    it = grants()
    if kind == "port":
        reply, descriptors = it.listen(Listen("127.0.0.1", 0))
    else:
        reply, descriptors = it.listen_local(ListenLocal(bytes(tmp_path / "s")))
    number = Reader(reply).uint32()
    kept = [socket.socket(fileno=fd) for fd in descriptors]
    place = kept[0].getsockname()
    with contextlib.ExitStack() as undo:
        for sock in kept:
            undo.enter_context(sock)
        it.stop_listening(StopListening(number))
        with socket.socket(kept[0].family) as client:
            assert client.connect_ex(place) in (errno.ECONNREFUSED, errno.ENOENT)
        with pytest.raises(OSError, match="Invalid argument"):
            kept[0].accept()


@pytest.mark.parametrize("kind", ["port", "ports", "file"])
def test_a_forward_for_which_there_is_no_descriptor_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    it = grants(gateway_ports="yes" if kind == "ports" else "no")
    path = tmp_path / "s"

    def no_more(sock: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "dup", no_more)
    with pytest.raises(Deny, match="Too many open files"):
        it.listen_local(ListenLocal(bytes(path))) if kind == "file" else it.listen(Listen("", 0))
    assert not path.exists()
    assert not it._listeners
