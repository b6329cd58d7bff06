"""What the fuzzer has found once is tried by every run of the tests."""

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_was_found_breaks_it(name: str) -> None:
    inputs = corpus.inputs(name)
    assert inputs
    for data in inputs:
        TARGETS[name](data)


def test_every_file_of_the_corpus_is_a_targets() -> None:
    assert {path.name for path in corpus.FOLDER.iterdir()} <= set(TARGETS)
