"""Declared tunnels: whose they are, and how a key takes its device back."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appliance.config.server import Tunnel
from appliance.crypto.keys import PublicKey, generate
from appliance.errors import UsageError
from appliance.server import tunnels
from appliance.server.tunnels import (
    Claim,
    Declared,
    Lock,
    candidates,
    check_keys,
    is_declared,
    is_for,
)
from appliance.services.tunnel.kernel import reconcile_apart
from appliance.services.tunnel.network import Change
from appliance.wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT

KEY, OTHER = (generate("ssh-ed25519").public for _ in range(2))
ROOTS = Tunnel(device="tun0")
USERS = Tunnel(device="tun1", user="anna")
KEYS = Tunnel(device="tun2", key=KEY.line())
FINGERPRINTS = Tunnel(device="tun3", key=KEY.fingerprint(), user="anna")
TAP = Tunnel(device="tap0", mode="ethernet")
ALL = (ROOTS, USERS, KEYS, FINGERPRINTS, TAP)


@pytest.mark.parametrize(
    ("tunnel", "user", "key", "allowed"),
    [
        (ROOTS, "root", None, True),
        (ROOTS, "root", OTHER, True),
        (ROOTS, "anna", None, False),
        (ROOTS, "anna", KEY, False),
        (KEYS, "anna", KEY, True),
        (USERS, "anna", None, True),
        (USERS, "root", KEY, False),
        (KEYS, "root", KEY, True),
        (KEYS, "root", OTHER, False),
        (KEYS, "root", None, False),
        (FINGERPRINTS, "anna", KEY, True),
        (FINGERPRINTS, "root", KEY, False),
        (FINGERPRINTS, "anna", OTHER, False),
        (FINGERPRINTS, "anna", None, False),
    ],
)
def test_a_tunnel_is_for_its_user_and_its_key(
    tunnel: Tunnel, user: str, key: object, allowed: bool
) -> None:
    assert is_for(tunnel, named(user), key) is allowed  # type: ignore[arg-type]


def named(name: str) -> pwd.struct_passwd:
    """A user of this name; root alone has the number 0."""
    uid = 0 if name == "root" else 1000
    return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/sh"))


def test_any_device_means_the_ones_for_the_key_first() -> None:
    anna, root = named("anna"), named("root")
    found = candidates(ALL, POINT_TO_POINT, ANY_UNIT, anna, KEY)
    assert found == [KEYS, FINGERPRINTS, USERS]
    assert candidates(ALL, POINT_TO_POINT, ANY_UNIT, root, OTHER) == [ROOTS]
    assert candidates(ALL, POINT_TO_POINT, ANY_UNIT, root, KEY) == [KEYS, ROOTS]
    assert candidates(ALL, ETHERNET, ANY_UNIT, root, None) == [TAP]
    assert candidates(ALL, ETHERNET, ANY_UNIT, anna, None) == []


def test_a_device_that_is_asked_for_is_that_one_or_none() -> None:
    assert candidates(ALL, POINT_TO_POINT, 2, named("root"), KEY) == [KEYS]
    assert candidates(ALL, POINT_TO_POINT, 2, named("root"), OTHER) == []
    assert is_declared(ALL, POINT_TO_POINT, 2)
    assert not is_declared(ALL, POINT_TO_POINT, 7)
    assert not is_declared(ALL, POINT_TO_POINT, ANY_UNIT)
    assert is_declared(ALL, ETHERNET, 0)


def test_a_key_that_is_none_is_named_with_its_tunnel() -> None:
    check_keys(ALL)
    with pytest.raises(UsageError, match="tunnel 'tun9': key: "):
        check_keys([Tunnel(device="tun9", key="ssh-ed25519 AAAA")])


HOLDER = """
import os, signal, sys, time
from appliance.crypto.key_files import load_public_line
from appliance.server.tunnels import QUESTION, Claim, Lock
if sys.argv[1] == "claim":
    claim = Claim("tun7")
    claim.register(load_public_line(sys.argv[2])[0] if sys.argv[2] else None)
    does = {"answers": lambda *_: claim.tell_client_answers(), "is silent": lambda *_: None}
    signal.signal(QUESTION, does.get(sys.argv[3], lambda *_: sys.exit(0)))
else:
    lock = Lock("tun7.server")
    lock.take()
    if not os.fork():
        lock.close()
        os._exit(0)
    os.wait()
print("held", flush=True)
time.sleep(60)
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(runtime: Path) -> Iterator[Hold]:
    """Starts a process that has claimed tun7 with a key, or has it declared.

    When it is asked for its client, it does what it is told: 'answers', 'is silent', or 'ends'.
    """
    started: list[subprocess.Popen[str]] = []

    def start(what: str, key: str = "", does: str = "is silent") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, what, key, does], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def end_predecessor(key: PublicKey) -> bool:
    claim = Claim("tun7")
    try:
        return claim.end_predecessor(key)
    finally:
        claim.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client has a short time to answer in, and then its connection to end in."""
    monkeypatch.setattr(tunnels, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(tunnels, "END_SECONDS", 0.5)


def test_the_same_key_takes_over_from_a_client_that_does_not_answer(holder: Hold) -> None:
    before = holder("claim", KEY.line(), "ends")
    assert end_predecessor(KEY)
    assert before.wait(5) == 0


@pytest.mark.usefixtures("soon")
def test_a_monitor_that_does_not_even_say_so_is_ended(holder: Hold) -> None:
    before = holder("claim", KEY.line(), "is silent")
    assert end_predecessor(KEY)
    assert before.wait(5) == -signal.SIGTERM


def test_a_client_that_answers_keeps_its_device_and_is_named(holder: Hold) -> None:
    before = holder("claim", KEY.line(), "answers")
    for _ in range(3):
        with pytest.raises(UsageError, match=r"^tun7 .* with this key, and its client is alive$"):
            end_predecessor(KEY)
    assert before.poll() is None


def test_another_key_ends_nobody(holder: Hold) -> None:
    before = holder("claim", KEY.line())
    assert not end_predecessor(OTHER)
    assert before.poll() is None


def test_a_connection_without_a_key_is_ended_by_no_key_but_by_its_server(holder: Hold) -> None:
    before = holder("claim", "")
    assert not end_predecessor(KEY)
    claim = Claim("tun7")
    assert claim.end_holder("the server stops")
    claim.wait_until_free()
    claim.close()
    assert before.wait(5) == -signal.SIGTERM


def test_what_stands_in_a_file_that_nobody_locks_ends_nobody(runtime: Path) -> None:
    (runtime / "tunnels").mkdir()
    (runtime / "tunnels/tun7").write_text(f"{os.getppid()} {KEY.fingerprint()} 0")
    assert not end_predecessor(KEY)


def test_what_an_earlier_holder_wrote_ends_nobody(holder: Hold, runtime: Path) -> None:
    """A new one has the lock already, and has not written yet."""
    before = holder("claim", KEY.line())
    bystander = holder("claim", "")
    for text in (f"{bystander.pid} {KEY.fingerprint()} 0", f"{before.pid}", "", "x y 0"):
        (runtime / "tunnels/tun7").write_text(text)
        assert not end_predecessor(KEY)
    assert before.poll() is bystander.poll() is None


def test_a_connection_that_ends_meanwhile_is_not_killed(
    holder: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another process's by then, which is what is opened here."""
    before = holder("claim", KEY.line())
    holders = iter([before.pid, None, None])
    monkeypatch.setattr(Claim, "holder", lambda self: next(holders))
    assert not end_predecessor(KEY)
    assert before.poll() is None


@pytest.mark.parametrize("function", ["os.pidfd_open", "signal.pidfd_send_signal"])
def test_a_connection_that_has_just_ended_disturbs_nobody(
    holder: Hold, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    holder("claim", KEY.line())

    def vanished(*_: object) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(function, vanished)
    assert not end_predecessor(KEY)


@pytest.mark.usefixtures("soon")
def test_who_did_not_get_the_lock_writes_nothing_about_its_holder(
    holder: Hold, runtime: Path
) -> None:
    holder("claim", KEY.line())
    claim = Claim("tun7")
    said = claim._read()
    claim.register(OTHER)
    claim.tell_client_answers()
    assert claim._read() == said
    claim.close()


def test_nobody_ends_themselves(runtime: Path) -> None:
    claim = Claim("tun7")
    claim.register(KEY)
    assert not claim.end_predecessor(KEY)
    claim.close()
    mode = (runtime / "tunnels/tun7").stat().st_mode & 0o777
    assert mode == 0o600


# What a server has declared

SEVEN, EIGHT = Tunnel(device="tun7"), Tunnel(device="tun8")


@pytest.fixture
def reconciled(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The records that are reconciled, and whether anything is wanted of them."""
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        tunnels,
        "reconcile_apart",
        lambda path, wanted: seen.append((path.name, bool(wanted))),
    )
    (runtime / "network").mkdir()
    for name in ("sshd-tun7.json", "sshd-tun9.json", "office.json"):
        (runtime / "network" / name).touch()
    return seen


def test_what_a_server_left_that_runs_no_more_is_undone(
    reconciled: list[tuple[str, bool]],
) -> None:
    declared = Declared([EIGHT])
    declared.set_up()
    undone = {("sshd-tun7.json", False), ("sshd-tun9.json", False)}
    assert set(reconciled[:2]) == undone
    assert reconciled[2:] == [("sshd-tun8.json", True)]
    declared.take_down()
    assert reconciled[3:] == [("sshd-tun8.json", False)]


def test_what_another_server_has_declared_is_left_alone(
    holder: Hold, reconciled: list[tuple[str, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    other = holder("server")
    second = Declared([EIGHT])
    second.set_up()
    assert ("sshd-tun7.json", False) not in reconciled
    second.close()
    reconciled.clear()
    third = Declared([EIGHT, SEVEN])
    third.set_up()
    assert [each for each in reconciled if each[1]] == [("sshd-tun8.json", True)]
    assert ("sshd-tun7.json", False) not in reconciled
    assert caplog.messages[-1] == (
        "tunnel tun7 cannot be used, and is tried again: it is declared by another server that runs"
    )
    assert third.patience is not None
    other.kill()
    other.wait()
    third.keep()
    assert reconciled[-1] == ("sshd-tun7.json", True)
    assert third.patience is None
    third.close()


def test_a_folder_that_cannot_be_made_is_named_and_keeps_no_server_from_serving(
    reconciled: list[tuple[str, bool]], runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (runtime / "tunnels").touch()
    declared = Declared([SEVEN])
    declared.set_up()
    assert f"tried again: {runtime}/tunnels" in caplog.messages[-1]
    (runtime / "tunnels").unlink()
    reconciled.clear()
    declared.keep()
    assert reconciled == [("sshd-tun7.json", True)]
    declared.close()


def test_a_server_that_stops_ends_the_connections_of_its_devices_first(
    holder: Hold, reconciled: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = holder("claim", KEY.line())
    declared = Declared([SEVEN, EIGHT])
    declared.set_up()
    alive: list[bool] = []

    def seen(path: Path, wanted: Sequence[Change]) -> None:
        lock = Lock("tun7")
        alive.append(lock.holder() is not None)
        lock.close()
        reconcile_apart(path, wanted)

    monkeypatch.setattr(tunnels, "reconcile_apart", seen)
    declared.take_down()
    assert alive == [False, False]
    assert connection.wait(5) == -signal.SIGTERM
