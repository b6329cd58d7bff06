"""Which password is right, by the system's hashes and by a file of our own."""

import ctypes
import logging
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from nacl import pwhash

from appliance.config.server import ServerConfig
from appliance.server import accounts, passwords, shadow
from tests.peers import Account
from tests.unit.server.conftest import HERE, days_ago

CONFIG = ServerConfig()
Log = pytest.LogCaptureFixture
CRYPTED = "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"  # 'secret'


def stored(monkeypatch: pytest.MonkeyPatch, value: str) -> pwd.struct_passwd:
    """A user whose field in /etc/shadow is `value`."""
    user = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(shadow, "entry", lambda _: [user.pw_name, value, *[""] * 7])
    return user


RIGHT = "$5$rounds=1000$saltsalt$"


@pytest.fixture
def hashed() -> str:

    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    result: bytes = library.crypt(b"right", RIGHT.encode())
    return result.decode()


def test_the_right_password_and_no_other_is_right(
    monkeypatch: pytest.MonkeyPatch, hashed: str
) -> None:
    user = stored(monkeypatch, hashed)
    assert passwords.is_right(user, b"right", CONFIG)
    for wrong in (b"", b"wrong", b"right\0", b"right\0more", b"\0", b"righ", hashed.encode()):
        assert not passwords.is_right(user, wrong, CONFIG)
    assert not passwords.is_right(None, b"right", CONFIG)


@pytest.mark.parametrize("prefix", ["!", "*", "!!", "*LK*", "!*"])
def test_a_locked_account_has_no_right_password(
    monkeypatch: pytest.MonkeyPatch, hashed: str, prefix: str
) -> None:
    for value in (prefix, prefix + hashed):
        user = stored(monkeypatch, value)
        for password in (b"right", b"", prefix.encode(), b"*0"):
            assert not passwords.is_right(user, password, CONFIG)


@pytest.mark.parametrize("value", ["x", "$9$nothing$", "$y$", "ab", "$6$", "\xff\xff\xff\xff"])
def test_a_hash_that_is_none_matches_nothing(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    user = stored(monkeypatch, value)
    for password in (b"x", value.encode("latin-1"), b"*0", b"*1", b"*", b""):
        assert not passwords.is_right(user, password, CONFIG)


def test_an_empty_password_needs_a_permission_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    permitted = replace(CONFIG, permit_empty_passwords=True)
    user = stored(monkeypatch, "")
    assert passwords.has_no_password(user)
    assert not passwords.is_right(user, b"", CONFIG)
    assert passwords.is_right(user, b"", permitted)
    assert not passwords.is_right(user, b"x", permitted)
    assert not passwords.has_no_password(None)
    assert not passwords.is_right(None, b"", permitted)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    name = pwd.getpwuid(os.geteuid()).pw_name
    path = tmp_path / "passwords"

    def line(user: str, password: bytes) -> bytes:
        made = pwhash.argon2id.str(
            password, pwhash.argon2id.OPSLIMIT_INTERACTIVE, pwhash.argon2id.MEMLIMIT_INTERACTIVE
        )
        return user.encode() + b":" + made + b"\n"

    path.write_bytes(
        line("other", b"others") + line(name, b"right") + line("", b"nobody") + b"empty:\n:\n"
    )
    return path


def test_an_argon2id_file_takes_the_place_of_the_systems_hashes(password_file: Path) -> None:
    config = replace(CONFIG, password_file=str(password_file))
    user = pwd.getpwuid(os.geteuid())
    assert passwords.is_right(user, b"right", config)
    for wrong in (b"", b"others", b"right\0", b"wrong"):
        assert not passwords.is_right(user, wrong, config)
    for password in (b"right", b"others", b"", b"nobody"):
        assert not passwords.is_right(None, password, config)


def test_an_empty_password_in_an_argon2id_file_needs_the_permission(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.geteuid())
    path = tmp_path / "passwords"
    path.write_bytes(user.pw_name.encode() + b":" + pwhash.argon2id.str(b"", 1, 8192) + b"\n")
    config = replace(CONFIG, password_file=str(path))
    assert not passwords.is_right(user, b"", config)
    assert passwords.is_right(user, b"", replace(config, permit_empty_passwords=True))


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff:\xff\n"])
def test_an_argon2id_file_that_is_missing_or_broken_lets_nobody_in(
    tmp_path: Path, content: bytes | None, caplog: Log
) -> None:
    path = tmp_path / "passwords"
    if content is not None:
        path.write_bytes(content)
    config = replace(CONFIG, password_file=str(path), permit_empty_passwords=True)
    user = pwd.getpwuid(os.geteuid())
    for password in (b"", b"x", b"garbage"):
        assert not passwords.is_right(user, password, config)
    assert (str(path) in caplog.text) == (content is None)


def work_of(check: Callable[[], object], times: int = 5) -> float:
    """The processor's seconds, which a busy machine does not change much."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        check()
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.root
@pytest.mark.parametrize("source", ["system", "file"])
def test_unknown_users_and_wrong_passwords_take_alike(
    account: Account, password_file: Path, source: str
) -> None:
    config = replace(CONFIG, password_file=str(password_file) if source == "file" else "")
    name = account.name if source == "system" else "root"
    known = pwd.getpwnam(name)
    nobody = pwd.getpwnam("nobody")  # whose account is locked
    times = [
        work_of(partial(passwords.is_right, user, b"wrong", config))
        for user in (known, None, nobody)
    ]
    assert max(times) < 2 * min(times), times
    assert min(times) > 0.001


@pytest.mark.root
def test_a_password_that_is_too_old_is_not_taken_but_a_key_is(
    changeable: Account, caplog: Log
) -> None:
    caplog.set_level(logging.INFO)
    user = pwd.getpwnam(changeable.name)
    password = changeable.password.encode()
    assert passwords.is_right(user, password, CONFIG)
    changeable.change("chage", "-d", days_ago(31), "-M", "30")
    assert not passwords.is_right(user, b"wrong", CONFIG)
    assert not caplog.messages
    assert not passwords.is_right(user, password, CONFIG)
    (line,) = caplog.messages
    assert "the password has expired" in line
    assert accounts.find(changeable.name, CONFIG, HERE) is not None


@pytest.mark.root
@pytest.mark.parametrize("longest", ["30", "99999", "-1"])
def test_a_password_that_was_set_on_a_board_without_a_clock_is_taken(
    changeable: Account, longest: str
) -> None:
    changeable.change("chage", "-d", "0", "-M", longest, "-I", "10")
    user = pwd.getpwnam(changeable.name)
    assert passwords.is_right(user, changeable.password.encode(), CONFIG)
    assert not passwords.is_right(user, b"wrong", CONFIG)
    assert accounts.find(changeable.name, CONFIG, HERE) is not None


@pytest.mark.parametrize(
    "rest",
    ["", ":", "::", ":0:0:99999", ":19000:0:99999:7", ":0:0:99999:7::", "::::::", ":::::::",
     ":0:0:99999:7:::", ":0:0:99999:7:::0:more"],
)  # fmt: skip
def test_a_line_of_shadow_with_fewer_fields_counts(
    monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    user = pwd.getpwuid(os.geteuid())
    lines = ["other:*:19000::::::", f"{user.pw_name}:{CRYPTED}{rest}"]
    monkeypatch.setattr(shadow, "lines", lambda: lines)
    assert passwords.is_right(user, b"secret", CONFIG)
    assert not passwords.is_right(user, b"wrong", CONFIG)
    assert accounts.find(user.pw_name, CONFIG, HERE) is not None
    monkeypatch.setattr(shadow, "lines", lambda: [f"{user.pw_name}:!{rest}"])
    assert not passwords.is_right(user, b"", CONFIG)
