"""Which tunnel devices a user may have, and who else has them."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.server import Tunnel
from appliance.crypto.permissions import TUNNEL_ANY, Permissions
from appliance.errors import UsageError
from appliance.server import tunnel_grants, tunnels
from appliance.server.requests import GRANTED, TUNNELS_LIMIT, ClientAnswers, CloseTunnel, OpenTunnel
from appliance.wire.codec import Reader
from appliance.wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT
from tests.peers import Account
from tests.unit.server.office import (
    KEY,
    USER,
    Make,
    Office,
    password,
)

UNITS = [0, 5, ANY_UNIT, 0xFFFFFFFF]


@pytest.mark.parametrize("permit", ["no", "point-to-point", "ethernet", "yes"])
@pytest.mark.parametrize(
    "options",
    [
        "", "restrict", "no-port-forwarding", 'tunnel="5"', 'restrict,tunnel="5"', 'tunnel="any"',
        'no-port-forwarding,tunnel="5"', "restrict,port-forwarding",
    ],
)  # fmt: skip
def test_a_tunnel_needs_the_servers_and_the_keys_permission(
    office: Make, monkeypatch: pytest.MonkeyPatch, permit: str, options: str
) -> None:
    opened: list[tuple[int, int]] = []

    def open_device(mode: int, unit: int) -> tuple[int, str]:
        opened.append((mode, unit))
        raise UsageError("enough")

    monkeypatch.setattr(tunnel_grants, "open_device", open_device)
    it = office(f"{options} {KEY.public.line()}".strip(), permit_tunnel=permit).log_in()
    modes = {
        "no": set(), "point-to-point": {POINT_TO_POINT}, "ethernet": {ETHERNET},
        "yes": {POINT_TO_POINT, ETHERNET},
    }[permit]  # fmt: skip
    closed = options in ("restrict", "no-port-forwarding", "restrict,port-forwarding")
    for mode, unit in itertools.product((0, 1, 2, 3, 0xFFFFFFFF), UNITS):
        opened.clear()
        it.denied(OpenTunnel(mode, unit))
        expected = [(mode, unit)] if mode in modes and not closed else []
        if '"5"' in options and expected:
            expected = [(mode, 5)] if unit in (5, ANY_UNIT) else []
        if '"any"' in options and expected:
            expected = [(mode, TUNNEL_ANY)] if unit == ANY_UNIT else []
        assert opened == expected, (mode, unit)


@pytest.mark.parametrize("options", ["", 'tunnel="0"', 'restrict,tunnel="any"'])
def test_disable_forwarding_outweighs_everything(
    office: Make, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.setattr(tunnel_grants, "open_device", pytest.fail)
    it = office(
        f"{options} {KEY.public.line()}".strip(),
        permit_tunnel="yes",
        tunnel=(Tunnel(device="tun0"),),
        disable_forwarding=True,
    ).log_in()
    for mode, unit in itertools.product((POINT_TO_POINT, ETHERNET), (0, 5, ANY_UNIT)):
        assert "DisableForwarding" in it.denied(OpenTunnel(mode, unit))


class Devices:
    """The machine's tunnel devices, and who opened them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *existing: str) -> None:
        self.existing = set(existing)
        self.busy: set[str] = set()
        self.opened: list[tuple[str, int]] = []
        monkeypatch.setattr(tunnel_grants, "open_device", self._open)
        monkeypatch.setattr(tunnel_grants, "exists", lambda name: name in self.existing)

    def _open(self, mode: int, unit: int) -> tuple[int, str]:
        name = f"tun{0 if unit == ANY_UNIT else unit}"
        if name in self.busy:
            cause = OSError(errno.EBUSY, "busy")
            raise UsageError(f"{name} is busy") from cause
        self.busy.add(name)
        self.opened.append((name, os.geteuid()))
        return os.open("/dev/null", os.O_RDONLY), name


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the claims lie."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(tunnels, "END_SECONDS", 0.1)
    return tmp_path / "tunnels"


def open_tunnel(it: Office, unit: int) -> str:
    """The name of the device that is opened; the descriptor is closed again."""
    answer = it.raw(OpenTunnel(POINT_TO_POINT, unit).encode())
    assert answer is not None and answer[0][:1] == GRANTED, answer
    os.close(answer[1][0])
    return Reader(answer[0][1:]).text()


DECLARED = tuple(Tunnel(device=f"tun{number}", user=USER) for number in range(2))
MINE = Tunnel(device="tun0", user=USER)
KEYS = Tunnel(device="tun0", key=KEY.public.line())


@pytest.mark.parametrize(
    ("options", "tunnel", "allowed"),
    [
        ("", MINE, True),
        ("", KEYS, True),
        ("restrict", MINE, False),
        ("restrict", KEYS, False),
        ("restrict,port-forwarding", MINE, False),
        ("no-port-forwarding", KEYS, False),
        ('restrict,tunnel="0"', MINE, True),
        ('restrict,tunnel="0"', KEYS, True),
        ('restrict,tunnel="1"', MINE, False),
        ('tunnel="1"', KEYS, False),
        ('command="true"', MINE, False),
        ('command="true"', KEYS, True),
        ('command="true",tunnel="0"', MINE, True),
        ('restrict,command="true"', KEYS, False),
        ('restrict,command="true",tunnel="0"', MINE, True),
    ],
)
def test_what_restricts_a_key_counts_for_a_declared_tunnel_too(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path, options: str, tunnel: Tunnel,
    allowed: bool,
) -> None:  # fmt: skip
    devices = Devices(monkeypatch, "tun0", "tun1")
    it = office(f"{options} {KEY.public.line()}".strip(), tunnel=(tunnel,))
    it.log_in()
    if allowed:
        assert open_tunnel(it, 0) == "tun0"
    else:
        it.denied(OpenTunnel(POINT_TO_POINT, 0))
        it.denied(OpenTunnel(POINT_TO_POINT, ANY_UNIT))
        assert devices.opened == []


@pytest.mark.parametrize(
    ("granted", "allowed"),
    [
        (Permissions(), True),
        (Permissions(command="true"), False),
        (Permissions(port_forwarding=False, tunnel_allowed=False), False),
    ],
    ids=["everything", "force-command", "without permit-port-forwarding"],
)
def test_what_a_certificate_restricts_counts_for_a_declared_tunnel_too(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path, granted: Permissions, allowed: bool
) -> None:
    devices = Devices(monkeypatch, "tun0")
    it = office(tunnel=(MINE,)).log_in()
    it.tunnels._login = it.tunnels._login._replace(permissions=granted)
    if allowed:
        assert open_tunnel(it, 0) == "tun0"
    else:
        it.denied(OpenTunnel(POINT_TO_POINT, 0))
        assert devices.opened == []


@pytest.mark.root
def test_a_device_that_names_nobody_is_roots(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path, account: Account
) -> None:
    devices = Devices(monkeypatch, "tun0")
    it = office(tunnel=(Tunnel(device="tun0"),)).log_in()
    it.become(account.name)
    assert "somebody else" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    assert "PermitTunnel" in it.denied(OpenTunnel(POINT_TO_POINT, ANY_UNIT))
    assert devices.opened == []
    it.become("root")
    assert open_tunnel(it, 0) == "tun0"


def test_a_declared_device_that_does_not_exist_is_not_made(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(monkeypatch)
    it = office(tunnel=DECLARED).log_in()
    for unit in (0, 1, ANY_UNIT):
        assert "now: a server makes it when it starts" in it.denied(OpenTunnel(1, unit))
    assert devices.opened == []


def test_any_device_is_never_a_declared_one_that_was_removed(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    Devices(monkeypatch)
    foreign = Tunnel(device="tun0", user="somebody-else")
    it = office(tunnel=(foreign,), permit_tunnel="yes").log_in()
    assert "tun0 is declared, but was removed" in it.denied(OpenTunnel(1, ANY_UNIT))


def test_nobody_is_thrown_out_while_another_declared_device_is_free(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    devices = Devices(monkeypatch, "tun0", "tun1")
    devices.busy.add("tun0")
    ended: list[str] = []

    def end_predecessor(claim: tunnels.Claim, key: object) -> bool:
        ended.append(claim._device)
        devices.busy.discard(claim._device)
        return True

    monkeypatch.setattr(tunnels.Claim, "end_predecessor", end_predecessor)
    first = office(tunnel=DECLARED).log_in()
    assert open_tunnel(first, ANY_UNIT) == "tun1"
    assert ended == []
    second = office(tunnel=DECLARED).log_in()
    assert open_tunnel(second, ANY_UNIT) == "tun0"
    assert ended == ["tun0"]


def test_who_comes_with_the_key_of_a_living_client_is_told_why_there_is_no_device(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    devices = Devices(monkeypatch, "tun0")
    devices.busy.add("tun0")

    def end_predecessor(claim: tunnels.Claim, key: object) -> bool:
        raise UsageError("its client is alive")

    monkeypatch.setattr(tunnels.Claim, "end_predecessor", end_predecessor)
    it = office(tunnel=DECLARED[:1]).log_in()
    for unit in (0, ANY_UNIT):
        assert it.denied(OpenTunnel(POINT_TO_POINT, unit)) == "its client is alive"


def test_a_client_that_answers_is_noted_with_its_devices(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch, "tun0", "tun1")
    it = office(tunnel=DECLARED).log_in()
    for unit in (0, 1):
        open_tunnel(it, unit)
    it.ask(ClientAnswers())
    for name in ("tun0", "tun1"):
        assert claimed_by(claims / name) == f"{os.getpid()} {KEY.public.fingerprint()} 1"


def test_whoever_has_a_device_can_be_found_until_it_is_closed(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).log_in()
    open_tunnel(it, 0)
    assert is_locked(claims / "tun0")
    assert claimed_by(claims / "tun0") == f"{os.getpid()} {KEY.public.fingerprint()} 0"
    it.ask(CloseTunnel("tun0"))
    assert not is_locked(claims / "tun0")
    assert "no such tunnel" in it.denied(CloseTunnel("tun0"))


def test_whoever_has_a_device_without_a_key_can_be_found_too(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).start()
    assert it.outcome(password()).success
    open_tunnel(it, 0)
    assert is_locked(claims / "tun0")
    assert claimed_by(claims / "tun0") == f"{os.getpid()} - 0"


def is_locked(path: Path) -> bool:
    return "EAGAIN" in seen_from_outside(
        path, "fcntl.lockf(open(path, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )


def claimed_by(path: Path) -> str:
    return seen_from_outside(path, "print(open(path).read(), end='')")


def seen_from_outside(path: Path, code: str) -> str:
    """What another process says of a file that we have locked: closing it here would unlock it."""
    lines = ("import errno, fcntl", f"path = {str(path)!r}", f"try: {code}",
             "except OSError as error: print(errno.errorcode[error.errno])")  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    ).stdout


def test_the_tunnels_of_a_connection_are_limited(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch)
    it = office(permit_tunnel="yes").log_in()
    for unit in range(TUNNELS_LIMIT):
        open_tunnel(it, unit)
    assert "too many" in it.denied(OpenTunnel(POINT_TO_POINT, 99))
    it.ask(CloseTunnel("tun3"))
    assert open_tunnel(it, 99) == "tun99"


def test_a_device_is_opened_once_by_a_connection(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    devices = Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).log_in()
    open_tunnel(it, 0)
    assert "busy" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    assert is_locked(claims / "tun0")
    devices.busy.clear()  # it was removed, and made anew
    assert "has yet to close it" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    it.ask(CloseTunnel("tun0"))
    devices.busy.clear()
    assert open_tunnel(it, 0) == "tun0"


@pytest.mark.root
def test_what_is_not_declared_is_opened_as_the_user(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path, account: Account
) -> None:
    devices = Devices(monkeypatch, "tun0")
    declared = (Tunnel(device="tun0", user=account.name),)
    it = office(tunnel=declared, permit_tunnel="yes").log_in()
    user = it.become(account.name)
    open_tunnel(it, 5)
    open_tunnel(it, 0)
    assert devices.opened == [("tun5", user.pw_uid), ("tun0", 0)]
