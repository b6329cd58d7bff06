"""The files of idmap=file."""

from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.mount.id_map import read_groups, read_users
from appliance.mount.settings import IdMap


def test_lines_are_names_or_those_of_passwd(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(
        "# comment\n\nroot:1000\n500:1001\nnobody:x:1002:1002:Joe,,,:/home/joe:/bin/sh\n"
    )
    assert read_users(str(path), True) == IdMap(
        to_local={1000: 0, 1001: 500, 1002: 65534}, is_strict=True
    )
    path.write_text("root:0\nnogroup:x:99:joe,jane")
    assert read_groups(str(path), False) == IdMap(to_local={0: 0, 99: 65534})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("root:0\nnobody-here:1", ":2: there is no local user nobody-here"),
        ("root", ":1: expected user name:number"),
        ("root:", ":1: expected user name:number"),
        (":1", ":1: expected user name:number"),
        ("root:x", ":1: expected user name:number"),
        ("root:-1", ":1: expected user name:number"),
        ("root:4294967296", ":1: expected user name:number"),
        ("root:99999999999999999999", ":1: expected user name:number"),
        ("root:x:y", ":1: expected user name:number"),
        ("root:1\n#\n5:1", ":3: user 1 of the server has stood in another line"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_users(str(path), True)
    assert str(caught.value) == f"{path}{told}"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"failed to open '.*/none': No such file or directory"):
        read_groups(str(tmp_path / "none"), True)
