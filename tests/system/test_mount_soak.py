"""The comparison by which `make soak` judges a mount."""

import os
from pathlib import Path

from tests.mount_soak import differences


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
