"""rsync over our client and to our server: trees are the same afterwards, in both directions."""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, pair_of, words_of
from tests.peers import ClientKind, Login, Server, environment, find_program

SMALL_FILES = 400
BIG = 24 << 20  # bytes: many windows of a channel

pairs = pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)


def make_tree(folder: Path) -> None:
    """Many small files, a big one, an empty folder, a link, and names that a shell would cut."""
    for number in range(SMALL_FILES):
        path = folder / f"{number % 7}" / f"file {number}; 'x' $HOME"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(number))
    (folder / "big").write_bytes(os.urandom(BIG))
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("big")


def change_tree(folder: Path) -> None:
    """Something goes, something comes, and a little in the big file is different."""
    for number in range(0, SMALL_FILES, 3):
        (folder / f"{number % 7}" / f"file {number}; 'x' $HOME").unlink()
    (folder / "empty").rmdir()
    (folder / "new").write_text("new")
    with open(folder / "big", "r+b") as file:
        file.seek(BIG // 2)
        file.write(b"other bytes")
    os.utime(folder / "big", (1_000_000_000, 1_000_000_000))  # rsync looks at whole seconds


def content(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


@pairs
def test_a_tree_goes_there_and_comes_back(
    client: ClientKind, server: Server, login: Login, there: Path, tmp_path: Path
) -> None:
    shell = shlex.join(words_of(client, server, login))

    def rsync(source: str, target: str, *options: str) -> str:
        argv = [find_program("rsync"), "-a", "--no-owner", "--no-group", *options, "-e", shell]
        done = subprocess.run(
            [*argv, source, target], env=environment(tmp_path), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    here, back = tmp_path / "here", tmp_path / "back"
    here.mkdir()
    back.mkdir()
    make_tree(here)
    far = f"{server.address}:{there}/copy/"
    rsync(f"{here}/", far)
    assert content(there / "copy") == content(here)

    change_tree(here)
    (back / "too much").write_text("goes")
    sent = rsync(f"{here}/", far, "--delete", "--stats", "--no-whole-file")
    assert content(there / "copy") == content(here)
    (bytes_sent,) = (line for line in sent.splitlines() if line.startswith("Total bytes sent"))
    assert int(bytes_sent.partition(":")[2].replace(",", "")) < BIG // 4  # what changed, no more

    rsync(far, f"{back}/", "--delete", "-z")
    assert content(back) == content(here)


@pairs
def test_a_folder_that_is_not_there_is_told_with_rsync_s_status(
    client: ClientKind, server: Server, login: Login, there: Path, tmp_path: Path
) -> None:
    shell = shlex.join(words_of(client, server, login))
    argv = [find_program("rsync"), "-a", "-e", shell, f"{server.address}:{there}/none", "."]
    done = subprocess.run(
        argv, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 23  # a partial transfer
    assert "No such file or directory" in done.stderr
