"""Everything here needs root, namespaces and /dev/net/tun, and one worker has it all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import Sites
from tests.peers import private_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that nobody else may write, as servers want it for keys."""
    with private_folder("test") as path:
        yield path


@pytest.fixture
def sites() -> Iterator[Sites]:
    """Two fresh sites; what still runs inside after the test is its mistake."""
    with Sites() as fresh:
        yield fresh
        left = fresh.end_processes()
    assert not left, f"still running in the sites: {left}"
