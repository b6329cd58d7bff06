"""A line of the log is one line, and nothing in it steers a terminal."""

import logging
from collections.abc import Iterator

import pytest

from appliance import log

HOSTILE = "a\x1b]0;title\x07\nb\r\tc\x9b\u202e\x7f"


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leaves the handlers as they were."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = before
    logger.setLevel(level)


def test_a_peers_text_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    logging.getLogger("peer").debug("it says %s", HOSTILE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("it says a\\x1b]0;title\\x07\\nb\\x0d\tc\\x9b\\x202e\\x7f")


def test_a_traceback_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("culvert", logging.DEBUG, to_stderr=True)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("peer").exception("it failed")
    said = capsys.readouterr().err
    first, *others = said.splitlines()
    assert first.endswith("it failed") and others
    assert all(line.startswith("  ") for line in others)
    assert "\x1b" not in said
