"""Users' work on a mount comes out as in a directory of this machine, whatever is disturbed.

`make soak` is the same for as long as one likes.
"""

import os
from pathlib import Path

import pytest

from tests.mount_soak import differences, run

SECONDS = 15


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "behind"), [("culvert", True), ("openssh", False)], ids=["culvert-behind", "openssh"]
)
def test_nothing_is_lost_whatever_is_disturbed(kind: str, behind: bool) -> None:
    report = run(SECONDS, kind, behind)
    assert not report.failures, str(report)
    assert report.done and report.disturbed, str(report)


def test_whatever_differs_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for top in (one, other):
        (top / "same").mkdir(parents=True)
        (top / "same/file").write_text("text")
        (top / "link").symlink_to(top.name)
        (top / "file").write_text(top.name)
        (top / "mode").touch(0o600 if top is one else 0o640)
        os.mkfifo(top / "pipe")
    assert not [*differences(one, one)]
    (one / "more").touch()
    (other / "less").touch()
    said = [*differences(one, other)]
    assert [line.split()[0].rstrip(":") for line in said] == [
        "file", "less", "link", "mode", "more",
    ]  # fmt: skip
