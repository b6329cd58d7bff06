"""Who may log in at all, and how a process is a user for a while."""

import logging
import os
import pwd
import signal
from dataclasses import replace

import pytest

from appliance.config.server import ServerConfig
from appliance.server import accounts, shadow
from tests.peers import Account
from tests.unit.server.conftest import HERE, STRANGER, days_ago

CONFIG = ServerConfig()
Log = pytest.LogCaptureFixture


@pytest.mark.parametrize("name", ["", "no one", "a\0b", "../root", "-x", "\udcff", "x" * 5000])
def test_a_name_that_is_no_users_is_nobody(name: str) -> None:
    assert accounts.find(name, CONFIG, HERE) is None


@pytest.mark.root
def test_root_may_be_kept_out(account: Account) -> None:
    assert accounts.find("root", CONFIG, HERE) is not None
    assert (
        accounts.find("root", replace(CONFIG, permit_root_login="prohibit-password"), HERE)
        is not None
    )
    assert accounts.find("root", replace(CONFIG, permit_root_login="no"), HERE) is None
    assert accounts.find(account.name, replace(CONFIG, permit_root_login="no"), HERE) is not None


@pytest.mark.root
def test_only_members_of_the_group_may_log_in(account: Account) -> None:
    own = replace(CONFIG, allow_groups=(account.name,))
    assert accounts.find(account.name, own, HERE) is not None
    assert accounts.find("root", own, HERE) is None
    nobodys = replace(CONFIG, allow_groups=("no such group",))
    assert accounts.find(account.name, nobodys, HERE) is None


@pytest.mark.parametrize(
    ("days", "expired"), [("", False), ("0", True), ("1", True), ("99999", False), ("x", False)]
)
def test_an_account_that_has_expired_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, days: str, expired: bool
) -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    fields = [name, "*", "19000", "0", "99999", "7", "", days, ""]
    monkeypatch.setattr(shadow, "entry", lambda _: fields)
    assert (accounts.find(name, CONFIG, HERE) is None) == expired


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("chage", "-d", days_ago(41), "-M", "30", "-I", "10"), "the account is inactive"),
        (("chage", "-E", days_ago(1)), "the account has expired"),
        (("usermod", "-s", "/no/such/shell"), "shell /no/such/shell does not exist"),
        (("usermod", "-s", "/etc/passwd"), "shell /etc/passwd is not executable"),
        (("usermod", "-s", "/tmp"), "shell /tmp is not executable"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_account_that_the_system_has_closed_is_nobodys_and_the_log_says_why(
    changeable: Account, change: tuple[str, ...], why: str, caplog: Log
) -> None:
    changeable.change(*change)
    caplog.set_level(logging.INFO)
    assert accounts.find(changeable.name, CONFIG, HERE) is None
    (line,) = caplog.messages
    assert line.startswith(f"user {changeable.name} refused: ") and why in line


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    [
        ("chage", "-d", days_ago(29), "-M", "30", "-I", "10"),
        ("chage", "-d", days_ago(1000), "-M", "-1", "-I", "10"),
        ("chage", "-d", "-1", "-M", "30"),
        ("chage", "-d", days_ago(-10), "-M", "1"),  # a clock that went back
        ("usermod", "-s", ""),
        ("usermod", "-s", "/bin/true"),  # which is not in /etc/shells
    ],
    ids=lambda words: " ".join(word for word in words if not word.isdigit()),
)
def test_an_account_that_the_system_has_not_closed_may_log_in(
    changeable: Account, change: tuple[str, ...]
) -> None:
    changeable.change(*change)
    assert accounts.find(changeable.name, CONFIG, HERE) is not None


def test_an_ordinary_users_server_lets_in_that_user_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert accounts.find("root", CONFIG, HERE) is None


@pytest.mark.root
def test_a_signal_waits_until_we_are_ourselves_again(account: Account) -> None:
    """The monitor's worker belongs to another user, whom this one may not kill."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(os.geteuid()))
    try:
        with accounts.as_user(pwd.getpwnam(account.name)):
            signal.raise_signal(signal.SIGTERM)
            assert os.geteuid() != 0
        assert seen == [0]
    finally:
        signal.signal(signal.SIGTERM, before)
