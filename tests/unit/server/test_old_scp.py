"""Which commands run our far end of the old scp protocol."""

import shlex
import subprocess
from pathlib import Path

import pytest

from appliance.server.old_scp import with_our_scp


@pytest.mark.parametrize(
    "command", [b"scp -t path", b"scp -r -p -f path", b"scp -pt path", b"scp -d -t -- -x"]
)
def test_a_far_end_of_scp_is_ours_where_there_is_no_scp(command: bytes, tmp_path: Path) -> None:
    ours = with_our_scp(command, bytes(tmp_path))
    assert ours != command
    words = shlex.split(ours.decode())
    assert words[-len(command.split()) + 1 :] == command.decode().split()[1:]


@pytest.mark.parametrize(
    "command",
    [
        b"scp a host:b",
        b"scp -r a host:b -t",
        b"scp -- -t",
        b"scp -oPort=22 a host:b",
        b"scp --to x",
        b"scpx -t path",
        b"/usr/bin/scp -t path",
        b"cd x; scp -t path",
        b"",
        b"scp",
        b"\xff",
    ],
)
def test_other_commands_stay(command: bytes, tmp_path: Path) -> None:
    assert with_our_scp(command, bytes(tmp_path)) == command


def test_an_scp_in_path_is_used(tmp_path: Path) -> None:
    program = tmp_path / "scp"
    program.touch()
    path = b"/nonexistent::" + bytes(tmp_path)
    assert with_our_scp(b"scp -t x", path) != b"scp -t x"  # it cannot be run
    program.chmod(0o755)
    assert with_our_scp(b"scp -t x", path) == b"scp -t x"


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
def test_a_shell_expands_the_rest_of_the_command(shell: str, tmp_path: Path) -> None:
    for name in ("a 1", "a 2"):
        (tmp_path / name).write_text(name)
    command = with_our_scp(b'scp -f a*"" $X', b"").decode()
    words = [shell, *(["sh"] if shell == "busybox" else []), "-c", command]
    done = subprocess.run(
        words, input=b"\0" * 20, capture_output=True, cwd=tmp_path, env={"X": "a?1"}, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"C0644 3 a 1\na 1\0") == 2
    assert done.stdout.count(b"C0644 3 a 2\na 2\0") == 1
