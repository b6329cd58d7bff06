"""Which names a request may bring."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.files.old_scp.request import wanted


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (b"file", [b"file"]),
        (b"dir/file", [b"file"]),
        (b"/dir/sub/", [b"sub"]),
        (b"*", [b"file", b"a b"]),
        (b"d/*.tar.gz", [b"x.tar.gz", b".tar.gz"][:1]),
        (b".*", [b".bashrc"]),
        (b"?b", [b"ab"]),
        (b"[ab]c", [b"ac", b"bc"]),
        (b"[!a]c", [b"bc"]),
        (b"[^a]c", [b"bc"]),
        (b"[a-c]x", [b"bx"]),
        (b"[]x]y", [b"]y", b"xy"]),
        (b"{a,b}", [b"a", b"b"]),
        (b"x{1,{2,3}}y", [b"x1y", b"x2y", b"x3y"]),
        (b"dir/{a/b,c}", [b"b", b"c"]),
        (b"{a,}b", [b"ab", b"b"]),
        (b"{a}", [b"{a}"]),
        (b"{a", [b"{a"]),
        (b"a b", [b"a", b"b"]),
        (b"'a b'", [b"a b"]),
        (b'"a b"', [b"a b"]),
        (b"a\\ b", [b"a b"]),
        (b"\\*", [b"*"]),
        (b"'*'", [b"*"]),
        (b'"\\$x"', [b"$x"]),
        (b'"a\\b"', [b"a\\b"]),
        (b"it\\'s", [b"it's"]),
        (b"'[x]'", [b"[x]"]),
        (b"caf\xe9", [b"caf\xe9"]),
        (b"[", [b"["]),
        (b"$HOME/x", [b"x"]),
    ],
)
def test_what_was_asked_for_is_wanted(request_: bytes, names: list[bytes]) -> None:
    is_wanted = wanted(request_)
    for name in names:
        assert is_wanted(name), name


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (b"file", [b"fil", b"file2", b".bashrc", b"xfile"]),
        (b"dir/file", [b"dir", b"dir/file"]),
        (b"*", [b".bashrc", b".ssh"]),
        (b"?bashrc", [b".bashrc"]),
        (b"[.]bashrc", [b".bashrc"]),
        (b"*.gz", [b"x.gz.sh"]),
        (b"[!a]c", [b"ac"]),
        (b"[z-a]", [b"b", b"z"]),
        (b"{a,b}", [b"{a,b}", b"c"]),
        (b"'*'", [b"x"]),
        (b"\\*", [b"x"]),
        (b"a.c", [b"abc"]),
        (b"a$", [b"a"]),
        (b"file", [b"file\n"]),
        (b"", [b"x"]),
        (b"/", [b"x"]),
        (b"~", [b"root", b".ssh"]),
        (b"$X", [b"x"]),
    ],
)
def test_what_was_not_asked_for_is_not(request_: bytes, names: list[bytes]) -> None:
    is_wanted = wanted(request_)
    for name in names:
        assert not is_wanted(name), name


@given(st.binary(max_size=12), st.binary(max_size=6))
def test_any_request_can_be_read(request_: bytes, name: bytes) -> None:
    wanted(request_)(name)


@given(st.text("ab{},[]!-*?\\'\" ", max_size=14), st.text("ab[]{}", max_size=4))
def test_any_request_of_special_characters_can_be_read(request_: str, name: str) -> None:
    wanted(request_.encode())(name.encode())
