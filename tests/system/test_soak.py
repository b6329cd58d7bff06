"""A server after hundreds of connections, many of them disturbed, is the server that it was.

`make soak` is the same for as long as one likes.
"""

from collections import Counter
from dataclasses import replace

import pytest

from tests.soak import MEMORY_BOUND, State, left_of, run

SECONDS = 15


@pytest.mark.timeout(180)
def test_nothing_is_left_of_many_connections() -> None:
    report = run(SECONDS)
    assert report.clean, str(report)
    assert report.done.total() > SECONDS  # more than one a second, on the slowest machine


def test_whatever_is_left_is_named() -> None:
    before = State({1}, Counter(pipe=2), 1000, 2000, {"/a"}, {"lo"}, {"7 sh"})
    assert not [*left_of(before, before)]
    for after, what in (
        (replace(before, children={1, 5}), "children: 5"),
        (replace(before, descriptors=Counter(pipe=3)), "descriptors: "),
        (replace(before, private=1001 + MEMORY_BOUND), "private memory: "),
        (replace(before, resident=2001 + MEMORY_BOUND), "resident memory: "),
        (replace(before, files={"/a", "/b"}), "files: /b"),
        (replace(before, devices={"lo", "tun0"}), "devices: tun0"),
        (replace(before, programs={"7 sh", "8 sleep"}), "programs: 8 sleep"),
    ):
        (line,) = left_of(before, after)
        assert line.startswith(what)
