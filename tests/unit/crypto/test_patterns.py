"""Wildcards, against the standard library's and against time."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto.patterns import matches, matches_list


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_a_pattern_means_what_fnmatch_says(pattern: str, text: str) -> None:
    assert matches(text, pattern) == fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize(
    ("text", "pattern"), [("[a]", "[a]"), ("\\", "?"), ("*x", "*"), ("", "**")]
)
def test_only_the_star_and_the_question_mark_are_special(text: str, pattern: str) -> None:
    assert matches(text, pattern)
    assert not matches("a", "[a]")


@pytest.mark.timeout(5)
def test_a_hostile_pattern_takes_no_exponential_time() -> None:
    assert not matches("a" * 2000, "*a" * 500 + "b")


def test_a_negated_match_outweighs_the_others_wherever_it_stands() -> None:
    assert matches_list("a", "a,b") is True
    assert matches_list("a", "*,!a") is False
    assert matches_list("a", "!a,*") is False
    assert matches_list("a", "!b") is None
    assert matches_list("a", "") is None
