"""A kill switch through everything that ever opened one, in any order.

`make soak` is the same for as long as one likes.
"""

import pytest

from tests.links_soak import run

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.timeout(600)
def test_nothing_leaves_and_nothing_is_left() -> None:
    report = run(0)  # each act once
    assert not report.wrong, str(report)
