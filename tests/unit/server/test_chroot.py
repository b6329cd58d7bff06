"""Which directories are fit to be the root of a user's programs."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.server.chroot import Unsafe, directory
from tests.peers import private_folder

USER = pwd.getpwuid(os.geteuid())

pytestmark = pytest.mark.root


@pytest.fixture
def place() -> Iterator[Path]:
    with private_folder("chroot") as folder:
        folder.chmod(0o755)
        yield folder


def test_the_tokens_are_sshds(place: Path) -> None:
    for token, value in (("%u", USER.pw_name), ("%U", str(USER.pw_uid)), ("%%", "%")):
        (place / value).mkdir(exist_ok=True)
        assert directory(f"{place}/{token}", USER) == f"{place}/{value}"
    home = USER.__class__((*USER[:5], str(place), USER[6]))
    assert directory("%h", home) == str(place)
    assert directory("", USER) == ""


def test_a_directory_that_others_may_change_is_refused(place: Path) -> None:
    (place / "a/b").mkdir(parents=True)
    assert directory(f"{place}/a/b", USER)
    for mode in (0o775, 0o757, 0o1777):
        (place / "a").chmod(mode)
        with pytest.raises(Unsafe, match="must belong to root"):
            directory(f"{place}/a/b", USER)
    (place / "a").chmod(0o755)
    os.chown(place / "a", 12345, 0)
    with pytest.raises(Unsafe, match=f"{place}/a must belong"):
        directory(f"{place}/a/b", USER)


def test_what_is_no_directory_is_refused(place: Path) -> None:
    (place / "file").touch()
    for path, why in (("none", "No such file"), ("file", "not a directory")):
        with pytest.raises(Unsafe, match=why):
            directory(f"{place}/{path}", USER)


@pytest.mark.parametrize("name", ["../etc", "a/b", ".hidden"])
def test_a_name_that_is_a_path_is_refused(place: Path, name: str) -> None:
    with pytest.raises(Unsafe, match="part of a path"):
        directory(f"{place}/%u", USER.__class__((name, *USER[1:])))
