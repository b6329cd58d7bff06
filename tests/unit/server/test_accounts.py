"""Who may log in, by which keys and which password, from files that others could write."""

import logging
import os
import pwd
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from nacl import pwhash

from appliance.config.server import ServerConfig
from appliance.crypto.keys import generate
from appliance.server import accounts
from tests.peers import Account, private_folder, temporary_account

KEY = generate("ssh-ed25519").public
CONFIG = ServerConfig()
HERE = "127.0.0.1"
STRANGER = 12345  # a uid that is neither root's nor the user's

Log = pytest.LogCaptureFixture


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with private_folder("home") as folder:
        (folder / ".ssh").mkdir(mode=0o700)
        (folder / ".ssh/authorized_keys").write_text(KEY.line() + "\n")
        (folder / ".ssh/authorized_keys").chmod(0o600)
        yield folder


def user_of(home: Path) -> pwd.struct_passwd:
    """The user who runs the test, with another home."""
    fields = list(pwd.getpwuid(os.geteuid()))
    fields[5] = str(home)
    return pwd.struct_passwd(fields)


def keys(home: Path, config: ServerConfig = CONFIG) -> int:
    return len(accounts.authorized_keys(user_of(home), config))


def test_a_file_that_is_its_users_alone_is_read(home: Path) -> None:
    assert keys(home) == 1


@pytest.mark.parametrize("item", ["", ".ssh", ".ssh/authorized_keys"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_is_refused_and_named_in_the_log(
    home: Path, item: str, mode: int, caplog: Log
) -> None:
    path = home / item
    path.chmod(path.stat().st_mode & 0o777 | mode)
    assert keys(home) == 0
    assert f"{path} may be written by others" in caplog.text


@pytest.mark.root
@pytest.mark.parametrize("item", ["", ".ssh", ".ssh/authorized_keys"])
def test_what_belongs_to_somebody_else_is_refused_and_named_in_the_log(
    home: Path, item: str, caplog: Log
) -> None:
    os.chown(home / item, STRANGER, STRANGER)
    assert keys(home) == 0
    assert f"{home / item} belongs to somebody else (uid {STRANGER})" in caplog.text


def test_a_sticky_directory_of_roots_is_as_good_as_its_own(home: Path) -> None:
    if os.geteuid():
        pytest.skip("only root owns such a directory")
    home.chmod(0o1777)
    assert keys(home) == 1


def test_a_link_counts_as_what_it_leads_to(home: Path, caplog: Log) -> None:
    real = home / "shared" / "keys"
    real.parent.mkdir(mode=0o700)
    (home / ".ssh/authorized_keys").rename(real)
    (home / ".ssh/authorized_keys").symlink_to(real)
    assert keys(home) == 1
    real.parent.chmod(0o777)
    assert keys(home) == 0
    assert f"{real.parent} may be written by others" in caplog.text


def test_a_link_to_nowhere_or_in_a_circle_lets_nobody_in(home: Path) -> None:
    path = home / ".ssh/authorized_keys"
    for target in ("nowhere", "authorized_keys"):
        path.unlink()
        path.symlink_to(target)
        assert keys(home) == 0


def test_what_is_no_file_is_refused_at_once(home: Path, caplog: Log) -> None:
    path = home / ".ssh/authorized_keys"
    makers: list[Callable[[], None]] = [lambda: os.mkfifo(path, 0o600), lambda: path.mkdir(0o700)]
    for make in makers:
        path.unlink()
        make()
        caplog.clear()
        assert keys(home) == 0
        assert f"{path} is not a regular file" in caplog.text
        if path.is_dir():
            path.rmdir()
            path.touch()


def test_a_device_is_refused(home: Path, caplog: Log) -> None:
    path = home / ".ssh/authorized_keys"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert keys(home) == 0
    assert "is not a regular file" in caplog.text


def test_a_huge_file_is_refused_and_not_read_to_its_end(home: Path, caplog: Log) -> None:
    path = home / ".ssh/authorized_keys"
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse
    assert keys(home) == 0
    assert f"{path} is longer than" in caplog.text


def test_a_file_that_is_missing_is_no_mistake(home: Path, caplog: Log) -> None:
    (home / ".ssh/authorized_keys").unlink()
    caplog.set_level(logging.DEBUG)
    assert keys(home) == 0
    assert not caplog.text


@pytest.mark.root
def test_files_are_read_with_the_users_eyes(home: Path, account: Account) -> None:
    """What the user cannot read, root does not read for them."""
    folder = home / "keys"
    folder.mkdir(mode=0o755)
    home.chmod(0o755)
    secret = folder / "authorized_keys"
    secret.write_text(KEY.line() + "\n")
    secret.chmod(0o600)
    config = replace(CONFIG, authorized_keys_directory=str(folder))
    user = pwd.getpwnam(account.name)
    groups = os.getgroups()
    assert accounts.authorized_keys(user, config) == []
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, os.getgid(), groups)
    secret.chmod(0o644)
    assert len(accounts.authorized_keys(user, config)) == 1


def test_the_directory_may_be_named_in_each_form(home: Path) -> None:
    for folder in ("~/.ssh", ".ssh", str(home / ".ssh")):
        assert keys(home, replace(CONFIG, authorized_keys_directory=folder)) == 1


def test_a_mistake_in_a_line_is_logged_with_the_files_name(home: Path, caplog: Log) -> None:
    path = home / ".ssh/authorized_keys"
    path.write_text(f"no-such-option {KEY.line()}\n{KEY.line()}\n")
    assert keys(home) == 1
    assert f"{path}: line 1:" in caplog.text
    assert "no-such-option" in caplog.text


# Users


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
    monkeypatch.setattr(accounts, "_shadow", lambda _: fields)
    assert (accounts.find(name, CONFIG, HERE) is None) == expired


@pytest.fixture
def changeable(worker: str) -> Iterator[Account]:
    """An account whose password and shell a test may change."""
    with temporary_account(f"culvert-{worker}-change") as account:
        assert accounts.find(account.name, CONFIG, HERE) is not None
        yield account


CRYPTED = "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"  # 'secret'


def days_ago(days: int) -> str:
    """As chage takes it."""
    return str(int(time.time()) // accounts.DAY - days)


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
def test_a_password_that_is_too_old_is_not_taken_but_a_key_is(
    changeable: Account, caplog: Log
) -> None:
    caplog.set_level(logging.INFO)
    user = pwd.getpwnam(changeable.name)
    password = changeable.password.encode()
    assert accounts.password_is_right(user, password, CONFIG)
    changeable.change("chage", "-d", days_ago(31), "-M", "30")
    assert not accounts.password_is_right(user, b"wrong", CONFIG)
    assert not caplog.messages
    assert not accounts.password_is_right(user, password, CONFIG)
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
    assert accounts.password_is_right(user, changeable.password.encode(), CONFIG)
    assert not accounts.password_is_right(user, b"wrong", CONFIG)
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
    monkeypatch.setattr(accounts, "_shadow_lines", lambda: lines)
    assert accounts.password_is_right(user, b"secret", CONFIG)
    assert not accounts.password_is_right(user, b"wrong", CONFIG)
    assert accounts.find(user.pw_name, CONFIG, HERE) is not None
    monkeypatch.setattr(accounts, "_shadow_lines", lambda: [f"{user.pw_name}:!{rest}"])
    assert not accounts.password_is_right(user, b"", CONFIG)


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


# Passwords


def stored(monkeypatch: pytest.MonkeyPatch, value: str) -> pwd.struct_passwd:
    """A user whose field in /etc/shadow is `value`."""
    user = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(accounts, "_shadow", lambda _: [user.pw_name, value, *[""] * 7])
    return user


RIGHT = "$5$rounds=1000$saltsalt$"


@pytest.fixture
def hashed() -> str:
    import ctypes

    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    result: bytes = library.crypt(b"right", RIGHT.encode())
    return result.decode()


def test_the_right_password_and_no_other_is_right(
    monkeypatch: pytest.MonkeyPatch, hashed: str
) -> None:
    user = stored(monkeypatch, hashed)
    assert accounts.password_is_right(user, b"right", CONFIG)
    for wrong in (b"", b"wrong", b"right\0", b"right\0more", b"\0", b"righ", hashed.encode()):
        assert not accounts.password_is_right(user, wrong, CONFIG)
    assert not accounts.password_is_right(None, b"right", CONFIG)


@pytest.mark.parametrize("prefix", ["!", "*", "!!", "*LK*", "!*"])
def test_a_locked_account_has_no_right_password(
    monkeypatch: pytest.MonkeyPatch, hashed: str, prefix: str
) -> None:
    for value in (prefix, prefix + hashed):
        user = stored(monkeypatch, value)
        for password in (b"right", b"", prefix.encode(), b"*0"):
            assert not accounts.password_is_right(user, password, CONFIG)


@pytest.mark.parametrize("value", ["x", "$9$nothing$", "$y$", "ab", "$6$", "\xff\xff\xff\xff"])
def test_a_hash_that_is_none_matches_nothing(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    user = stored(monkeypatch, value)
    for password in (b"x", value.encode("latin-1"), b"*0", b"*1", b"*", b""):
        assert not accounts.password_is_right(user, password, CONFIG)


def test_an_empty_password_needs_a_permission_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    permitted = replace(CONFIG, permit_empty_passwords=True)
    user = stored(monkeypatch, "")
    assert accounts.has_no_password(user)
    assert not accounts.password_is_right(user, b"", CONFIG)
    assert accounts.password_is_right(user, b"", permitted)
    assert not accounts.password_is_right(user, b"x", permitted)
    assert not accounts.has_no_password(None)
    assert not accounts.password_is_right(None, b"", permitted)


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
    assert accounts.password_is_right(user, b"right", config)
    for wrong in (b"", b"others", b"right\0", b"wrong"):
        assert not accounts.password_is_right(user, wrong, config)
    for password in (b"right", b"others", b"", b"nobody"):
        assert not accounts.password_is_right(None, password, config)


def test_an_empty_password_in_an_argon2id_file_needs_the_permission(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.geteuid())
    path = tmp_path / "passwords"
    path.write_bytes(user.pw_name.encode() + b":" + pwhash.argon2id.str(b"", 1, 8192) + b"\n")
    config = replace(CONFIG, password_file=str(path))
    assert not accounts.password_is_right(user, b"", config)
    assert accounts.password_is_right(user, b"", replace(config, permit_empty_passwords=True))


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
        assert not accounts.password_is_right(user, password, config)
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
        work_of(partial(accounts.password_is_right, user, b"wrong", config))
        for user in (known, None, nobody)
    ]
    assert max(times) < 2 * min(times), times
    assert min(times) > 0.001


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


# Principals


@pytest.mark.parametrize("name", ["principals", "%h/principals", ".ssh/%u", "%U-100%%", "{home}/p"])
def test_the_principals_of_a_user_stand_where_the_configuration_says(home: Path, name: str) -> None:
    user = user_of(home)
    tokens = {"%h": str(home), "%u": user.pw_name, "%U": str(user.pw_uid), "%%": "%"}
    path = name.format(home=home)
    config = ServerConfig(authorized_principals_file=path)
    for token, value in tokens.items():
        path = path.replace(token, value)
    (home / path).write_text('# who\nops\n  restrict,command="a b" admin \nno-pty deploy\n\n')
    (home / path).chmod(0o600)
    found = accounts.authorized_principals(user, config)
    assert [(name, each.pty, each.command) for name, each in found] == [
        ("ops", True, None),
        ("admin", False, "a b"),
        ("deploy", False, None),
    ]
    (home / path).chmod(0o622)
    assert accounts.authorized_principals(user, config) == []


@pytest.mark.parametrize("line", ["nonsense ops", "ops admin", 'command="a ops', "no-pty, ops"])
def test_a_principal_behind_options_that_are_none_is_nobody(
    home: Path, line: str, caplog: Log
) -> None:
    (home / "p").write_text(f"{line}\n")
    (home / "p").chmod(0o600)
    config = ServerConfig(authorized_principals_file="p")
    assert accounts.authorized_principals(user_of(home), config) == []
    assert "line 1" in caplog.text


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", ".hidden"])
def test_a_user_name_leads_to_no_other_file(home: Path, name: str) -> None:
    for path in (home / "x", home / "p/x"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("ops\n")
    user = pwd.struct_passwd([name, *user_of(home)[1:]])
    config = ServerConfig(authorized_principals_file="p/%u")
    assert accounts.authorized_principals(user, config) == []
