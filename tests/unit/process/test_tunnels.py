"""Declared tunnels: whose they are, and how a key takes its device back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.server import Tunnel
from appliance.crypto.keys import generate
from appliance.errors import UsageError
from appliance.process.tunnels import Claim, candidates, check_keys, is_declared, is_for
from appliance.wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT

KEY, OTHER = (generate("ssh-ed25519").public for _ in range(2))
ANYBODYS = Tunnel(device="tun0")
USERS = Tunnel(device="tun1", user="anna")
KEYS = Tunnel(device="tun2", key=KEY.line())
FINGERPRINTS = Tunnel(device="tun3", key=KEY.fingerprint(), user="anna")
TAP = Tunnel(device="tap0", mode="ethernet")
ALL = (ANYBODYS, USERS, KEYS, FINGERPRINTS, TAP)


@pytest.mark.parametrize(
    ("tunnel", "user", "key", "allowed"),
    [
        (ANYBODYS, "root", None, True),
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
    assert is_for(tunnel, user, key) is allowed  # type: ignore[arg-type]


def test_any_device_means_the_ones_for_the_key_first() -> None:
    found = candidates(ALL, POINT_TO_POINT, ANY_UNIT, "anna", KEY)
    assert found == [KEYS, FINGERPRINTS, ANYBODYS, USERS]
    assert candidates(ALL, POINT_TO_POINT, ANY_UNIT, "root", OTHER) == [ANYBODYS]
    assert candidates(ALL, ETHERNET, ANY_UNIT, "root", None) == [TAP]


def test_a_device_that_is_asked_for_is_that_one_or_none() -> None:
    assert candidates(ALL, POINT_TO_POINT, 2, "root", KEY) == [KEYS]
    assert candidates(ALL, POINT_TO_POINT, 2, "root", OTHER) == []
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
from appliance.process.tunnels import Claim
claim = Claim("tun7")
claim.take(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Starts a process that has claimed tun7 under a fingerprint."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    started: list[subprocess.Popen[str]] = []

    def start(fingerprint: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, fingerprint], stdout=subprocess.PIPE, text=True
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


def end_predecessor(fingerprint: str) -> bool:
    claim = Claim("tun7")
    try:
        return claim.end_predecessor(fingerprint)
    finally:
        claim.drop()


def test_the_same_key_ends_the_connection_before_it(holder: object) -> None:
    before = holder(KEY.fingerprint())  # type: ignore[operator]
    assert end_predecessor(KEY.fingerprint())
    assert before.wait(5) == -signal.SIGTERM


def test_another_key_ends_nobody(holder: object) -> None:
    before = holder(KEY.fingerprint())  # type: ignore[operator]
    assert not end_predecessor(OTHER.fingerprint())
    assert before.poll() is None


def test_what_stands_in_a_file_that_nobody_locks_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    (tmp_path / "tunnels").mkdir()
    (tmp_path / "tunnels/tun7").write_text(f"{os.getppid()} {KEY.fingerprint()}")
    assert not end_predecessor(KEY.fingerprint())


def test_nobody_ends_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    claim = Claim("tun7")
    claim.take(KEY.fingerprint())
    assert not end_predecessor(KEY.fingerprint())
    claim.drop()
    mode = (tmp_path / "tunnels/tun7").stat().st_mode & 0o777
    assert mode == 0o600
