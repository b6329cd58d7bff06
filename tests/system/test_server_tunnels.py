"""The server's half of declared tunnels: while servers come and go, and who may have what."""

import json
import os
import pwd
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from appliance.ssh.channels import Channel, ChannelHandler
from appliance.ssh.order import Phase
from appliance.wire.messages import ADMINISTRATIVELY_PROHIBITED, RESOURCE_SHORTAGE
from appliance.wire.tun import ANY_UNIT, CHANNEL_TYPE, POINT_TO_POINT
from tests.netns import wait_until
from tests.peers import CULVERT, Account, end, temporary_account
from tests.sites import PORT, LinkedSite, Routed, pause
from tests.unit.server.conftest import Dialler

pytestmark = [pytest.mark.root, pytest.mark.netns]

EAGER = "server_alive_interval = 1\nserver_alive_count_max = 2\n"
SERVER = """
[[tunnel]]
device = "tun0"
addresses = ["10.255.0.2/30", "fd00:255::2/64"]
peer = ["10.255.0.1", "fd00:255::1"]
routes = ["10.1.0.0/24"]
forward = ["10.2.0.0/24"]
"""
CLIENT = """
device = "tun0"
remote_device = "tun0"
addresses = ["10.255.0.1/30", "fd00:255::1/64"]
peer = ["10.255.0.2", "fd00:255::2"]
routes = ["10.2.0.0/24"]
"""
HANDED_OUT = "".join(
    f"""
[[tunnel]]
device = "tun{number}"
addresses = ["10.255.{number}.2/30"]
peer = ["10.255.{number}.1"]
[tunnel.client]
addresses = ["10.255.{number}.1/30"]
routes = ["10.2.0.0/24"]
"""
    for number in (0, 1)
)
FROM_SERVER = 'from_server = true\ndevice = "tun0"\n'


@pytest.fixture
def sites(folder: Path) -> Iterator[Routed]:
    """West, east and north; what still runs there after the test is its mistake."""
    with Routed(folder, ("west", "east", "north")) as made:
        yield made
        for site in made.sites.values():
            site.culvert("down", status=None)
        left = made.close()
    assert not left, f"still running in the sites: {left}"


def state_of(site: LinkedSite) -> str:
    links = json.loads(site.culvert("status", "--json", status=None))["links"]
    return str(links[0]["state"])


def connected(sites: Routed, name: str = "west", more: str = CLIENT) -> LinkedSite:
    site = sites[name]
    sites.declare(name, sites.link("east", more + EAGER))
    assert "east: up, tun0" in site.culvert("up", "-c", str(site.links))
    assert site.reaches(sites["east"].inner)
    return site


def stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    assert server.wait(10) == 0


def of_tun0(site: LinkedSite) -> str:
    """The device as the server made it, and nobody's doing."""
    (device,) = json.loads(site.space.ip("-j", "-d", "address", "show", "dev", "tun0"))
    routes = site.space.ip("-j", "route", "show", "dev", "tun0")
    addresses = [each["local"] for each in device["addr_info"] if each["scope"] == "global"]
    found = [device["linkinfo"]["info_data"]["persist"], sorted(addresses)]
    return f"{found} {sorted(each['dst'] for each in json.loads(routes))}"


def second_server(sites: Routed, tunnels: str = "") -> "subprocess.Popen[bytes]":
    """Another one at the same site, at another port."""
    east = sites["east"]
    first = (east.folder / "sshd.toml").read_text().partition("[[tunnel]]")[0]
    config = east.folder / "second.toml"
    config.write_text(first.replace(f'"{PORT}"', f'"{PORT + 1}"') + tunnels)
    return east.start("sshd", "-F", "-E", "--config", str(config))


# -- servers come and go ----------------------------------------------------------------------


def test_a_second_server_leaves_the_devices_of_the_first_alone(sites: Routed) -> None:
    sites.serve("east", SERVER)
    west, east = connected(sites), sites["east"]
    before = of_tun0(east)
    other = SERVER.replace("tun0", "tun1").replace("255", "254").replace("10.1.0.0", "10.7.0.0")
    for tunnels in ("", other):
        second = second_server(sites, tunnels)
        assert wait_until(lambda: f"port {PORT + 1}" in east.said().rpartition("stopped")[2])
        assert of_tun0(east) == before
        assert west.reaches(east.inner)
        stop(second)
        assert of_tun0(east) == before
        assert west.reaches(east.inner)
    assert east.space.devices() == {"lo", "outer", "inner", "tun0"}
    assert state_of(west) == "up"


def test_a_tunnel_is_not_idle_because_nothing_goes_through_it(sites: Routed) -> None:
    sites.serve("east", "idle_timeout = 2\n" + SERVER)
    west, east = connected(sites), sites["east"]
    before = east.said()
    pause(5)
    assert west.reaches(east.inner)
    assert east.said() == before


def test_a_device_of_another_server_is_left_to_it_and_taken_when_that_ends(sites: Routed) -> None:
    """No mistake in a tunnel keeps a server from serving."""
    first = sites.serve("east", SERVER)
    east = sites["east"]
    before = east.snapshot()
    second = second_server(sites, SERVER)
    assert wait_until(lambda: f"port {PORT + 1}" in east.said())
    reason = "it is declared by another server that runs"
    assert f"tunnel tun0 cannot be used, and is tried again: {reason}\n" in east.said()
    assert east.snapshot() == before
    first.kill()
    first.wait()
    assert wait_until(lambda: "tunnel tun0 can be used now" in east.said(), 20)
    stop(second)
    assert "tun0" not in east.space.devices()


def test_a_server_that_is_restarted_twice_gets_its_client_and_its_device_back(
    sites: Routed,
) -> None:
    server = sites.serve("east", SERVER)
    before = of_tun0(sites["east"])
    west, east = connected(sites), sites["east"]
    whole = of_tun0(east)

    def are_gone(processes: set[int]) -> bool:
        return processes.isdisjoint(east.space.processes())

    for count in (1, 2):
        old = set(east.space.processes())
        stop(server)
        assert "tun0" not in east.space.devices()
        assert wait_until(partial(are_gone, old), 1)
        server = sites.serve("east", SERVER)
        assert of_tun0(east) == before == whole
        assert wait_until(lambda: west.reaches(east.inner), 15), west.culvert("status")
        for _ in range(8):  # longer than an old connection can go unnoticed
            assert west.reaches(east.inner)
            pause(0.5)
        assert of_tun0(east) == whole
        assert east.said().count("tunnel device tun0 opened") == count + 1
    assert state_of(west) == "up"


def test_a_server_that_stops_lets_other_connections_live_on(
    sites: Routed, dial: Callable[..., Dialler]
) -> None:
    server = sites.serve("east", SERVER)
    connected(sites)
    other = dial()
    stop(server)
    other.connection.global_request("x", b"", lambda _: None)
    assert other.until(lambda _: True)
    assert Answers().ask(other, 0).refused is not None  # and so it was heard
    assert other.connection.transport.phase is Phase.OPEN


def test_a_connection_never_makes_a_declared_device(
    sites: Routed, dial: Callable[..., Dialler]
) -> None:
    """One that the server's end has left behind, and one of inetd mode."""
    server = sites.serve("east", SERVER)
    east = sites["east"]
    old = dial()
    stop(server)
    ours, theirs = socket.socketpair()
    with theirs:
        config = str(east.folder / "sshd.toml")
        with east.log.open("ab") as log:
            inetd = east.space.popen(
                [*CULVERT, "sshd", "-i", "-E", "--config", config],
                env=east.env, stdin=theirs, stdout=theirs, stderr=log,
            )  # fmt: skip
    try:
        for client in (old, dial(ours)):
            for unit in (0, ANY_UNIT):
                reason, text = Answers().ask(client, unit).refused or (0, "")
                assert reason == ADMINISTRATIVELY_PROHIBITED
                assert "there is no tun0 now: a server makes it when it starts" in text
        assert "tun0" not in east.space.devices()
        server = sites.serve("east", SERVER)
        assert Answers().ask(old, 0).refused is None
    finally:
        ours.close()
        end(inetd)


# -- who may have what ------------------------------------------------------------------------


def test_two_clients_with_one_key_share_the_devices_and_leave_each_other_alone(
    sites: Routed,
) -> None:
    sites.serve("east", HANDED_OUT)
    west, north = (connected(sites, name, FROM_SERVER) for name in ("west", "north"))
    for _ in range(6):
        pause(0.5)
        assert state_of(west) == state_of(north) == "up"
    said = sites["east"].said()
    assert [said.count(f"tunnel device tun{number} opened") for number in (0, 1)] == [1, 1]


class Answers(ChannelHandler):
    """What a server says to one tunnel."""

    def __init__(self) -> None:
        self.channel: Channel
        self.answered = False
        self.over = False
        self.refused: tuple[int, str] | None = None

    def ask(self, client: Dialler, unit: int) -> "Answers":
        data = struct.pack(">II", POINT_TO_POINT, unit)
        self.channel = client.connection.open_channel(CHANNEL_TYPE, data, self)
        assert client.until(lambda _: self.answered), client.connection.transport.error
        return self

    def close(self, client: Dialler) -> None:
        self.channel.close()
        assert client.until(lambda _: self.over)

    def opened(self, type_data: bytes) -> None:
        self.answered = True

    def open_failed(self, reason_code: int, description: str) -> None:
        self.answered, self.refused = True, (reason_code, description)

    def data(self, view: memoryview) -> None:
        self.channel.consume(len(view))

    def closed(self) -> None:
        self.over = True


@pytest.fixture
def somebody(worker: str) -> Iterator[Account]:
    """An ordinary user of this file's own, whose authorized_keys no other test needs."""
    with temporary_account(f"culvert-{worker}-tun") as made:
        yield made


@pytest.fixture
def dial(sites: Routed) -> Iterator[Callable[..., Dialler]]:
    """A function that logs in at east, through a socket if one is given."""
    made: list[Dialler] = []
    east = sites["east"]

    def connect(sock: socket.socket | None = None, account: Account | None = None) -> Dialler:
        who = account or Account.current()
        client = east.space.inside(
            lambda: Dialler(sock or (east.outer, PORT), who, sites.user_keys.key())
        )
        made.append(client)
        return client.log_in()

    yield connect
    for each in made:
        each.close()


def test_the_tunnels_of_a_connection_are_limited_and_it_lives_on(
    sites: Routed, dial: Callable[..., Dialler]
) -> None:
    sites.serve("east", 'permit_tunnel = "yes"')
    client, east = dial(), sites["east"]
    devices = {"lo", "outer", "inner"}
    opened = [Answers().ask(client, ANY_UNIT) for _ in range(10)]
    assert not any(each.refused for each in opened)
    assert east.space.devices() == devices | {f"tun{number}" for number in range(10)}
    for _ in range(3):
        assert Answers().ask(client, ANY_UNIT).refused == (RESOURCE_SHORTAGE, "too many tunnels")
    opened[4].close(client)
    assert wait_until(lambda: "tun4" not in east.space.devices())
    assert Answers().ask(client, ANY_UNIT).refused is None
    client.close()
    assert wait_until(lambda: east.space.devices() == devices)


def test_a_device_that_was_closed_is_the_next_ones_and_can_be_taken_over(
    sites: Routed, dial: Callable[..., Dialler]
) -> None:
    sites.serve("east", SERVER)
    claim = sites["east"].folder / "run/tunnels/tun0"
    first, second, third = dial(), dial(), dial()
    Answers().ask(first, 0).close(first)
    assert Answers().ask(second, 0).refused is None
    holder = claim.read_text().split()[0]
    assert Answers().ask(third, 0).refused is None
    assert claim.read_text().split()[0] != holder
    assert not second.until(lambda _: False)  # it was ended
    assert first.connection.transport.phase is Phase.OPEN
    assert Answers().ask(first, ANY_UNIT).refused is None


def test_a_second_client_with_the_same_key_leaves_a_living_first_one_alone(
    sites: Routed, dial: Callable[..., Dialler]
) -> None:
    """As 'ssh -w 7:6' behind 'ssh -w 6:6'."""
    sites.serve("east", SERVER)
    west, east = connected(sites), sites["east"]
    second = dial()
    for unit in (0, ANY_UNIT):
        said = "tun0 is in use by another connection with this key, and its client is alive"
        assert Answers().ask(second, unit).refused == (ADMINISTRATIVELY_PROHIBITED, said)
        assert west.reaches(east.inner)
    assert state_of(west) == "up"
    assert east.said().count("tunnel device tun0 opened") == 1


# As udev makes it; a container may have another. It stays in the server's own mount namespace.
OPEN_TO_ALL = """
mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun &&
exec "$@"
"""


def of_root(sites: Routed) -> str:
    """Settings by which root logs in with the key of the sites, and others with their own."""
    folder = sites["east"].folder / "authorized"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "authorized_keys").write_text(f"{sites.user_keys.public()}\n")
    (folder / "authorized_keys").chmod(0o600)
    return f'[[match]]\nuser = "root"\nauthorized_keys_directory = "{folder}"\n'


def test_an_ordinary_user_gets_only_devices_that_were_made_for_them(
    sites: Routed, dial: Callable[..., Dialler], somebody: Account
) -> None:
    east = sites["east"]
    somebody.authorize([sites.user_keys.public()])
    config = east.folder / "sshd.toml"
    config.write_text(
        f'listen = ["{PORT}"]\nhost_keys = ["{sites.host_keys.key()}"]\npid_file = ""\n'
        f'permit_tunnel = "yes"\n{of_root(sites)}{SERVER}'
    )
    with east.log.open("ab") as log:
        server = east.space.popen(
            ["unshare", "--mount", "sh", "-c", OPEN_TO_ALL, str(somebody.home),
             *CULVERT, "sshd", "-F", "-E", "--config", str(config)],
            env=east.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        assert wait_until(lambda: "listening on 0.0.0.0" in east.said()), east.said()
        other = next(user.pw_name for user in pwd.getpwall() if user.pw_uid not in (0,))
        for number, name in ((5, somebody.name), (6, other)):
            east.space.ip("tuntap", "add", f"tun{number}", "mode", "tun", "user", name)
        client = dial(account=somebody)
        assert Answers().ask(client, 5).refused is None
        for unit in (0, 6, 7, ANY_UNIT):
            reason, text = Answers().ask(client, unit).refused or (0, "")
            assert reason == ADMINISTRATIVELY_PROHIBITED
            if unit == 0:  # is root's, as it names nobody
                assert text == "tun0 is declared for somebody else"
            else:
                assert "a tunnel needs root, or a device made by 'ip tuntap add" in text
        west = connected(sites)  # root, whom nobody keeps out
        assert state_of(west) == "up"
        assert east.space.devices() == {"lo", "outer", "inner", "tun0", "tun5", "tun6"}
    finally:
        end(server)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("", (1, 2)),
        ('command="true" ', (2,)),
        ("restrict ", ()),
        ('restrict,tunnel="1" ', (1,)),
        ('command="true",tunnel="1" ', (1,)),
    ],
)
def test_a_device_is_its_users_or_its_keys_as_far_as_the_keys_line_allows(
    sites: Routed,
    dial: Callable[..., Dialler],
    somebody: Account,
    options: str,
    allowed: tuple[int, ...],
) -> None:
    """Device 0 names nobody, 1 this user, 2 the key, 3 another user with the same key."""
    line = sites.user_keys.public()
    somebody.authorize([options + line])
    text = "".join(
        f"[[tunnel]]\ndevice = 'tun{number}'\nany_source = true\n{whose}\n"
        for number, whose in enumerate(
            ("", f"user = '{somebody.name}'", f"key = '{line}'", f"user = 'root'\nkey = '{line}'")
        )
    )
    match = f"[[match]]\nuser = '{somebody.name}'\nauthorized_keys_directory = '~/.ssh'\n"
    sites.serve("east", match + text)
    client = dial(account=somebody)
    opened = [unit for unit in range(4) if Answers().ask(client, unit).refused is None]
    assert tuple(opened) == allowed


def test_an_ordinary_users_server_refuses_to_declare_tunnels(
    sites: Routed, somebody: Account
) -> None:
    east = sites["east"]
    user = pwd.getpwnam(somebody.name)
    folder = somebody.home / "server"
    folder.mkdir()
    (folder / "sshd.toml").write_text(
        f'listen = ["{PORT}"]\nhost_keys = ["{folder}/key"]\nmake_host_keys = true\n{SERVER}'
    )
    os.chown(folder, user.pw_uid, user.pw_gid)
    done = subprocess.run(
        east.space.command(
            ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
             *CULVERT, "sshd", "-F", "-E", "--config", str(folder / "sshd.toml")]
        ),
        env=east.env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"culvert sshd: [[tunnel]] makes devices and needs root: this server runs as uid "
        f"{user.pw_uid}"
    ]
