"""What Tab does in sftp."""

from pathlib import Path
from typing import Any

import pytest

from appliance.files import wildcards
from appliance.files.copying import CopySettings
from appliance.files.shell.completion import completions, shown_matches
from appliance.files.shell.state import SftpState
from appliance.files.shell.words import split

THERE = {
    b"/home/": [(b"file", False), (b"folder", True), (b"two words", False), (b".hidden", False),
               (b"it's", False), (b"new\nline", False), (b"caf\xe9", False),
               ("esc\x9b".encode(), False), (b"star*", False)],
    b"/home/folder/": [(b"inner", False), (b"deep", True)],
}  # fmt: skip


@pytest.fixture
def state() -> SftpState:
    nothing: Any = None
    return SftpState(nothing, nothing, b"/home", CopySettings(), False, False)


def complete(state: SftpState, line: bytes) -> list[bytes]:
    return completions(state, line, lambda path: THERE[path])


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        (b"mk", [b"mkdir "]),
        (b"lp", [b"lpwd "]),
        (b"get fi", [b"get file "]),
        (b"get fo", [b"get folder/"]),
        (b"get folder/", [b"get folder/deep/", b"get folder/inner "]),
        (b"get folder/i", [b"get folder/inner "]),
        (b"get tw", [b"get two\\ words "]),
        (b"get two\\ w", [b"get two\\ words "]),
        (b"get 'tw", [b"get 'two words' "]),
        (b'get "fo', [b'get "folder/']),
        (b"get it", [b"get it\\'s "]),
        (b"get 'it", [b"get 'it\\'s' "]),
        (b"get st", [b"get star\\* "]),
        (b"get .h", [b"get .hidden "]),
        (b"get new", []),
        (b"get caf", []),
        (b"get esc", []),
        (b"chmod 600 fi", [b"chmod 600 file "]),
        (b"chmod fi", []),
        (b"rename file fo", [b"rename file folder/"]),
        (b"rm -x fi", [b"rm -x file "]),
        (b"LS fi", [b"LS file "]),
        (b"nonesuch fi", []),
        (b"pwd fi", []),
    ],
)
def test_a_line_is_completed(state: SftpState, line: bytes, lines: list[bytes]) -> None:
    assert complete(state, line) == lines


def test_names_here_are_completed(
    state: SftpState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "my file").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(state, b"put m") == [b"put mine/", b"put my\\ file "]
    assert complete(state, b"lcd mi") == [b"lcd mine/"]
    assert complete(state, b"get file m") == [b"get file mine/", b"get file my\\ file "]


def test_what_is_completed_is_read_as_the_name(state: SftpState) -> None:
    for line in complete(state, b"get "):
        name = wildcards.plain(split(line)[1]).rstrip(b"/")
        assert name in dict(THERE[b"/home/"])


def test_the_last_components_are_shown() -> None:
    assert shown_matches([b"get folder/deep/", b"get folder/two\\ words "]) == [
        b"deep/",
        b"two words",
    ]
