"""The command line of scp's far end, and what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.scp_far_end import is_far_end, main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["-t", "x"], True),
        (["-r", "-p", "-f", "--", "x"], True),
        (["-vrpt", "x"], True),
        (["-r", "x", "-t"], False),
        (["--", "-t"], False),
        (["-", "-t"], False),
        (["-oPort=22", "a", "host:b"], False),
        (["--temporary-name", "a", "host:b"], False),
        (["-F", "t", "-t"], False),
        ([], False),
    ],
)
def test_t_and_f_among_the_options_call_for_the_far_end(words: list[str], is_one: bool) -> None:
    assert is_far_end(words) == is_one


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["-t"], "a path is missing"),
        (["-t", "-f", "x"], "one of -t and -f is needed"),
        (["-t", "-z", "x"], "unknown option -z beside -t or -f"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    words: list[str], mistake: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0] == f"scp: {mistake}"
    assert told.err.splitlines()[1].startswith("usage: scp -t|-f ")


def far_end(*words: str, sent: bytes) -> subprocess.CompletedProcess[bytes]:
    code = "from appliance.cli.scp_far_end import main; import sys; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        input=sent, capture_output=True, timeout=30, check=False, cwd=ROOT,
    )  # fmt: skip


def test_files_go_both_ways(tmp_path: Path) -> None:
    done = far_end("-v", "-t", str(tmp_path), sent=b"C0644 2 f\nhi\0")
    assert (done.returncode, done.stdout) == (0, b"\0\0\0")
    assert done.stderr == b"Sink: C0644 2 f\n"
    done = far_end("-f", str(tmp_path / "f"), sent=b"\0\0\0")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"C0644 2 f\nhi\0", b"")


def test_a_failure_is_the_exit_status(tmp_path: Path) -> None:
    done = far_end("-f", f"{tmp_path}/none", sent=b"\0")
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout == f"\1scp: {tmp_path}/none: No such file or directory\n".encode()
    done = far_end("-t", "a", "b", sent=b"")
    assert (done.returncode, done.stdout) == (1, b"\1scp: ambiguous target\n")


def test_it_imports_next_to_nothing(tmp_path: Path) -> None:
    """A session waits for its start."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); "
        "from appliance.cli.scp_far_end import main; main(sys.argv[1:]); "
        "os.write(2, ' '.join(set(sys.modules) - before).encode())"
    )
    for words, sent in ((["-t", str(tmp_path)], b"C0644 2 f\nhi\0"), (["-f", "f"], b"\0\0\0")):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *words],
            input=sent, capture_output=True, timeout=30, check=True, cwd=tmp_path,
        )  # fmt: skip
        modules = {name for name in done.stderr.decode().split() if "appliance" not in name}
        assert modules <= {"__future__", "errno"}
