"""The words of a line of sftp."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.files import wildcards
from appliance.files.shell.words import split


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  \t ", []),
        (b"get a b", [b"get", b"a", b"b"]),
        (b"  get\ta  ", [b"get", b"a"]),
        (b"get 'a b'", [b"get", b"a b"]),
        (b'get "a b"c', [b"get", b"a bc"]),
        (b"get a\\ b", [b"get", b"a b"]),
        (b"get ''", [b"get", b""]),
        (b'get "it\'s"', [b"get", b"it's"]),
        (b"get 'it\\'s'", [b"get", b"it's"]),
        (b'get "a\\"b"', [b"get", b'a"b']),
        (b"get # comment", [b"get"]),
        (b"get a#b", [b"get", b"a"]),
        (b"get 'a#b' \\#c", [b"get", b"a#b", b"#c"]),
        (b"# all of it", []),
        (b"get \\-a", [b"get", b"-a"]),
        (b"get caf\xe9", [b"get", b"caf\xe9"]),
        (b"get \\\\", [b"get", b"\\"]),
        (b'get "back\\slash"', [b"get", b"back\\slash"]),
        (b'get "back\\\\slash"', [b"get", b"back\\slash"]),
        (b"get a\\", [b"get", b"a"]),
    ],
)
def test_words_are_parted_as_openssh_parts_them(line: bytes, words: list[bytes]) -> None:
    assert [wildcards.plain(word) for word in split(line)] == words


@pytest.mark.parametrize("line", [b"get '", b'get "a', b"get 'a\\'", b"get 'a\"", b'"'])
def test_a_quote_has_an_end(line: bytes) -> None:
    with pytest.raises(UsageError, match="Unterminated quoted argument"):
        split(line)


@pytest.mark.parametrize("word", [b"'*'", b'"a?"', b"\\*", b"a\\[b", b"'[x]'", b'"\\*"'])
def test_what_was_quoted_is_no_pattern(word: bytes) -> None:
    assert not wildcards.is_pattern(split(word)[0])


@pytest.mark.parametrize("word", [b"*", b"a?", b"[x]", b"'a b'*"])
def test_what_was_not_quoted_is_a_pattern(word: bytes) -> None:
    assert wildcards.is_pattern(split(word)[0])


@given(st.binary(max_size=30).filter(lambda name: b"\0" not in name))
def test_any_name_can_be_quoted(name: bytes) -> None:
    for quote in (b"'", b'"'):
        typed = quote + name.replace(b"\\", b"\\\\").replace(quote, b"\\" + quote) + quote
        (word,) = split(typed)
        assert wildcards.plain(word) == name
        if b"/" not in name:
            assert wildcards.compiled(word).fullmatch(name)


@given(st.binary(max_size=40))
def test_any_line_is_words_or_a_mistake(line: bytes) -> None:
    try:
        words = split(line)
    except UsageError:
        return
    for word in words:
        wildcards.compiled(word).fullmatch(b"name")
