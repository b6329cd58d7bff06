"""A process that gives root up for good, with or without a directory that it cannot leave."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.sftp import identity

pytestmark = pytest.mark.root

UID, GID = 12345, 12399


def in_a_child(check: Callable[[], None]) -> None:
    """Run this in a process of its own; its assertions count."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def assert_nothing_is_left_of_root() -> None:
    assert os.getresuid() == (UID,) * 3
    assert os.getresgid() == (GID,) * 3
    assert sorted(os.getgroups()) == [777, GID]
    for number in (0, UID + 1):
        for become in (os.setuid, os.seteuid, os.setgid):
            with pytest.raises(PermissionError):
                become(number)
    with pytest.raises(PermissionError):
        os.setgroups([0])
    with pytest.raises(PermissionError):
        os.chroot("/")


def test_the_user_is_taken_on_for_good() -> None:
    def check() -> None:
        identity.become("", UID, GID, [GID, 777])
        assert_nothing_is_left_of_root()
        assert os.path.exists("/etc/passwd")

    in_a_child(check)


def test_a_chroot_has_no_way_out_and_needs_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tmp_path.chmod(0o755)

    def check() -> None:
        sys.modules.pop("grp", None)
        identity.become(str(tmp_path), UID, GID, [GID, 777])
        assert_nothing_is_left_of_root()
        assert os.getcwd() == "/"
        assert os.listdir("/../..") == ["file"]
        for name in ("fcntl", "grp", "pwd", "select", "syslog", "appliance.sftp.watches"):
            assert name in sys.modules

    in_a_child(check)


def test_root_s_own_session_is_root(tmp_path: Path) -> None:
    def check() -> None:
        identity.become(str(tmp_path), 0, 0, [0])
        assert os.getresuid() == (0, 0, 0)

    in_a_child(check)


def test_a_directory_that_is_not_there_ends_it(tmp_path: Path) -> None:
    def check() -> None:
        with pytest.raises(FileNotFoundError):
            identity.become(str(tmp_path / "none"), UID, GID, [])

    in_a_child(check)


def test_a_user_who_may_not_read_the_library_gets_it_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "os.py"
    secret.touch(0o600)

    def check() -> None:
        monkeypatch.setattr(os, "__file__", str(secret))
        assert not identity._may_import(UID)
        assert identity._may_import(0)
        assert os.geteuid() == 0

    in_a_child(check)
