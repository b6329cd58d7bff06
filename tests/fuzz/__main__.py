"""Fuzz all targets, or those that are named, for so many seconds together.

    python -m tests.fuzz --seconds 60 [target ...]

What is found on the way is kept in build/fuzz; an input that breaks a target becomes a line of
tests/fuzz/corpus, which every run of the tests tries from then on. `--keep` adds some of the inputs
that reached new code.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / "build/fuzz"
LONGEST = 4096  # bytes of an input
KEPT = 40  # of a target, by one run
SLOW = 20  # seconds, after which an input counts as a hang


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target; whether nothing was found."""
    known, scratch = _folders(name)
    done = _run(
        name,
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={SLOW}",
        f"-artifact_prefix={SCRATCH}/{name}/found-",
        str(scratch),
        str(known),
    )
    corpus.add(name, _take((SCRATCH / name).glob("found-*")))
    found = re.findall(r"^#(\d+)\s+\w+\s+cov: (\d+)", done.stderr, re.MULTILINE)
    runs, coverage = found[-1] if found else ("0", "0")
    good = done.returncode == 0
    outcome = "" if good else "  FAILED"
    print(f"{name:16} {runs:>9} inputs, {coverage:>5} places{outcome}", flush=True)
    if not good:
        print(done.stderr[-3000:])
    return good


def keep(name: str) -> None:
    """Add to the corpus what reached new code, the shortest inputs first."""
    _, scratch = _folders(name)
    found = sorted((path.read_bytes() for path in scratch.iterdir()), key=len)
    corpus.add(name, found[:KEPT])


def _folders(name: str) -> tuple[Path, Path]:
    """What is known to reach something, as libFuzzer wants it, and what it has found since."""
    known, scratch = SCRATCH / name / "known", SCRATCH / name / "new"
    for folder in (known, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus.inputs(name)):
        (known / str(number)).write_bytes(data)
    return known, scratch


def _take(paths: Iterable[Path]) -> list[bytes]:
    taken = []
    for path in sorted(paths):
        taken.append(path.read_bytes())
        path.unlink()
    return taken


def _run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", name, *words],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip


def main() -> int:
    """Return the exit status: 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", help=f"some of: {', '.join(TARGETS)} (default all)")
    parser.add_argument("--seconds", type=int, default=60, help="for all together (default 60)")
    parser.add_argument("--keep", action="store_true", help="let the corpus grow")
    chosen = parser.parse_args()
    names = chosen.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target is called {', '.join(unknown)}")
    each = max(1, chosen.seconds // len(names))
    results = [fuzz(name, each) for name in names]
    if chosen.keep:
        for name in names:
            keep(name)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
