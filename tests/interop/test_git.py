"""git over our client and to our server."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import BESIDE_OPENSSH, OURS, logins, pair_of, words_of
from tests.netns import wait_until
from tests.peers import ClientKind, Login, Server, environment, find_program

BIG = 12 << 20  # bytes of a file that does not compress
COMMITS = 20

Git = Callable[..., str]

pairs = pytest.mark.parametrize(
    ("client", "server"), [pair_of(*names) for names in BESIDE_OPENSSH], indirect=True
)


def git_with(shell: list[str], home: Path) -> Git:
    """Return a function that runs git with this in place of ssh."""
    env = environment(home, {"GIT_SSH_COMMAND": shlex.join(shell), "GIT_TERMINAL_PROMPT": "0"})
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "Anna", f"GIT_{role}_EMAIL": "anna@example.org"}

    def git(*words: str) -> str:
        done = subprocess.run(
            [find_program("git"), "-c", "init.defaultBranch=main", *words],
            env=env, cwd=home, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return git


def push_clone_and_fetch(git: Git, url: str, home: Path) -> None:
    """A repository goes there, comes back in another place, and both follow each other."""
    first, second = home / "first", home / "second"
    git("init", "-q", str(first))
    (first / "big").write_bytes(os.urandom(BIG))
    for number in range(COMMITS):
        (first / f"file {number}").write_text(f"{number}\n")
        git("-C", str(first), "add", ".")
        git("-C", str(first), "commit", "-q", "-m", f"number {number}")
    git("-C", str(first), "push", "-q", url, "main")
    git("clone", "-q", url, str(second))
    assert (second / "big").read_bytes() == (first / "big").read_bytes()
    head = git("-C", str(first), "rev-parse", "HEAD")
    assert git("-C", str(second), "rev-parse", "HEAD") == head

    git("-C", str(first), "commit", "-q", "--allow-empty", "-m", "one more")
    git("-C", str(first), "tag", "v1")
    git("-C", str(first), "push", "-q", url, "main", "v1")
    git("-C", str(second), "fetch", "-q", "--tags")
    head = git("-C", str(first), "rev-parse", "HEAD")
    assert git("-C", str(second), "rev-parse", "origin/main", "v1").split() == [head, head]
    assert head in git("ls-remote", url, "refs/heads/main")
    git("-C", str(second), "fsck", "--strict")


@pytest.fixture
def url(server: Server, login: Login, there: Path) -> str:
    """The address of an empty repository at the far end."""
    path = there / "project.git"
    owner = there.stat()
    subprocess.run(
        [find_program("git"), "init", "-q", "--bare", "-b", "main", str(path)],
        env=environment(there), user=owner.st_uid, group=owner.st_gid, cwd=there, check=True,
    )  # fmt: skip
    return f"ssh://{login.user}@{server.address}:{server.port}{path}"


@pairs
def test_push_clone_and_fetch(
    client: ClientKind, server: Server, login: Login, url: str, tmp_path: Path
) -> None:
    git = git_with(words_of(client, server, login), tmp_path)
    push_clone_and_fetch(git, url, tmp_path)


@pytest.mark.parametrize(
    ("client", "server"), [pair_of(OURS, "openssh"), pair_of(OURS, OURS)], indirect=True
)
def test_push_clone_and_fetch_by_one_connection(
    client: ClientKind, server: Server, login: Login, url: str, there: Path, tmp_path: Path
) -> None:
    path = there / "shared"
    shared = [f"-oControlPath={path}", "-oControlMaster=auto", "-oControlPersist=60"]

    before = logins(server)
    try:
        push_clone_and_fetch(
            git_with(words_of(client, server, login, shared), tmp_path), url, tmp_path
        )
    finally:
        client.run(server, login, None, options=[*shared, "-O", "exit"])
    assert wait_until(lambda: not path.exists())
    assert logins(server) == before + 1
