"""Which files of a user let somebody in: none that others could write, or the user not read."""

import logging
import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.server import ServerConfig
from appliance.crypto.keys import generate
from appliance.server import user_files
from tests.peers import Account, private_folder
from tests.unit.server.conftest import STRANGER

CONFIG = ServerConfig()
Log = pytest.LogCaptureFixture
KEY = generate("ssh-ed25519").public


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
    return len(user_files.authorized_keys(user_of(home), config))


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
    assert user_files.authorized_keys(user, config) == []
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, os.getgid(), groups)
    secret.chmod(0o644)
    assert len(user_files.authorized_keys(user, config)) == 1


def test_the_directory_may_be_named_in_each_form(home: Path) -> None:
    for folder in ("~/.ssh", ".ssh", str(home / ".ssh")):
        assert keys(home, replace(CONFIG, authorized_keys_directory=folder)) == 1


def test_a_mistake_in_a_line_is_logged_with_the_files_name(home: Path, caplog: Log) -> None:
    path = home / ".ssh/authorized_keys"
    path.write_text(f"no-such-option {KEY.line()}\n{KEY.line()}\n")
    assert keys(home) == 1
    assert f"{path}: line 1:" in caplog.text
    assert "no-such-option" in caplog.text


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
    found = user_files.authorized_principals(user, config)
    assert [(name, each.pty, each.command) for name, each in found] == [
        ("ops", True, None),
        ("admin", False, "a b"),
        ("deploy", False, None),
    ]
    (home / path).chmod(0o622)
    assert user_files.authorized_principals(user, config) == []


@pytest.mark.parametrize("line", ["nonsense ops", "ops admin", 'command="a ops', "no-pty, ops"])
def test_a_principal_behind_options_that_are_none_is_nobody(
    home: Path, line: str, caplog: Log
) -> None:
    (home / "p").write_text(f"{line}\n")
    (home / "p").chmod(0o600)
    config = ServerConfig(authorized_principals_file="p")
    assert user_files.authorized_principals(user_of(home), config) == []
    assert "line 1" in caplog.text


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", ".hidden"])
def test_a_user_name_leads_to_no_other_file(home: Path, name: str) -> None:
    for path in (home / "x", home / "p/x"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("ops\n")
    user = pwd.struct_passwd([name, *user_of(home)[1:]])
    config = ServerConfig(authorized_principals_file="p/%u")
    assert user_files.authorized_principals(user, config) == []
