"""Command lines in getopt's grammar, and the help text that comes from the same table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.options import WIDTH, Option, help_text, parse
from appliance.errors import UsageError

SPEC = (
    Option("v", None, "say more", repeatable=True),
    Option("p", "PORT", "where to listen", repeatable=True),
    Option("4", None, "IPv4 only"),
    Option("config", "FILE", "read the settings from FILE, " + "which may be long, " * 10),
    Option("quiet", None, ""),
)


def given_options(*arguments: str) -> list[tuple[str, str]]:
    return list(parse(arguments, SPEC))


def test_letters_may_be_joined_and_an_argument_may_follow_at_once() -> None:
    assert given_options("-v4p22") == [("v", ""), ("4", ""), ("p", "22")]
    assert given_options("-vp", "22", "-p-1") == [("v", ""), ("p", "22"), ("p", "-1")]


def test_long_options_take_their_argument_either_way() -> None:
    assert given_options("--config", "a", "--config=b=c", "--config=", "--quiet") == [
        ("config", "a"),
        ("config", "b=c"),
        ("config", ""),
        ("quiet", ""),
    ]


@pytest.mark.parametrize("end", [["host"], ["-"], ["--", "-v"], [""]])
def test_options_end_at_the_first_operand(end: list[str]) -> None:
    options = parse(["-v", *end, "-p", "1"], SPEC)
    assert list(options) == [("v", "")]
    assert options.operands == [*(word for word in end if word != "--"), "-p", "1"]


def test_the_result_counts_collects_and_takes_the_last() -> None:
    options = parse(["-vv", "-p", "1", "-p", "2", "-v"], SPEC)
    assert options.count("v") == 3
    assert options.values("p") == ["1", "2"]
    assert options.value("p") == "2"
    assert options.value("config") is None
    assert "v" in options
    assert "4" not in options


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-x"], "unknown option -x"),
        (["-vx"], "unknown option -x"),
        (["--nonsense"], "unknown option --nonsense"),
        (["--v"], "unknown option --v"),
        (["--conf", "x"], "unknown option --conf"),
        (["-p"], "option -p needs an argument, PORT"),
        (["--config"], "option --config needs an argument, FILE"),
        (["--quiet=1"], "option --quiet takes no argument"),
        (["-\x1b"], "unknown option -?"),
    ],
)
def test_a_bad_option_is_named_with_the_way_to_the_help(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments, SPEC, "culvert example")
    assert str(caught.value) == f"{text}; try 'culvert example --help'"


def test_help_is_always_known() -> None:
    assert "help" in parse(["--help"], ())


@given(st.lists(st.text("-vp4x=h ", max_size=5), max_size=6))
def test_no_arguments_raise_anything_but_a_usage_error(arguments: list[str]) -> None:
    try:
        options = parse(arguments, SPEC)
    except UsageError:
        return
    assert len(options.operands) <= len(arguments)


def test_the_help_text_shows_every_row_that_has_a_text_and_fits_the_screen() -> None:
    text = help_text("culvert example [-v]\nculvert example HOST", "An example.", SPEC, "the end")
    lines = text.splitlines()
    assert lines[:2] == ["usage: culvert example [-v]", "       culvert example HOST"]
    assert "  -p PORT        where to listen (may be repeated)" in lines
    assert "  --help         show this text" in lines
    assert "quiet" not in text
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1] == "the end"
