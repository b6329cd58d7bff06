"""Patterns of file names."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.files import wildcards


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (b"a*", b"abc", True),
        (b"a*", b"ba", False),
        (b"*", b".hidden", False),
        (b".*", b".hidden", True),
        (b"?b", b"ab", True),
        (b"[a-c]x", b"bx", True),
        (b"[!a-c]x", b"bx", False),
        (b"[^a]", b"b", True),
        (b"[]]", b"]", True),
        (b"[a", b"[a", True),
        (b"[c-a]", b"b", False),
        (b"[?--?]", b"-", False),
        (b"[+--]", b",", True),
        (b"[a-c-e]", b"-", True),
        (b"[a-c-e]", b"d", False),
        (b"\\*", b"*", True),
        (b"\\*", b"x", False),
        (b"a\\", b"a\\", True),
        (b"a.c", b"abc", False),
        (b"*", b"new\nline", True),
    ],
)
def test_a_pattern_matches_as_a_shell_s(pattern: bytes, name: bytes, matches: bool) -> None:
    assert bool(wildcards.compiled(pattern).fullmatch(name)) == matches


@given(st.binary(max_size=20))
def test_a_quoted_name_matches_itself_alone(name: bytes) -> None:
    pattern = wildcards.quoted(name)
    assert not wildcards.is_pattern(pattern)
    assert wildcards.plain(pattern) == name
    assert wildcards.compiled(pattern).fullmatch(name)
    assert not wildcards.compiled(pattern).fullmatch(name + b"x")


@given(st.text("ab*?[]!-", max_size=8), st.text("ab]-", max_size=6))
def test_patterns_without_quotes_are_those_of_fnmatch(pattern: str, name: str) -> None:
    expected = fnmatch.fnmatchcase(name, pattern)
    found = bool(wildcards.compiled(pattern.encode()).fullmatch(name.encode()))
    if "[" not in pattern:  # fnmatch reads some broken brackets in another way
        assert found == expected
