"""Measure Culvert beside OpenSSH and Dropbear, and print one table.

    python -m tests.bench [--rows login,memory] [--runs 5] [--subject openssh]

Every figure is the median of the runs, in which the programs took turns. The ratio is Culvert's
figure divided by OpenSSH's. It needs root: for the tunnels, and for a user who logs in.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.bench.works import DROPBEAR, OPENSSH, WORKS, Bench, Contender, Line, Work
from tests.netns import CommandFailed
from tests.peers import Keyring, Missing, find_program, private_folder, temporary_account
from tests.tunnels import NoTunnel

HEADER = """
| work | Culvert | OpenSSH | ratio | to reach | Dropbear's ratio |
|---|--:|--:|--:|--:|--:|"""


def measure(work: Work, bench: Bench, runs: int) -> dict[Contender, float]:
    """Return the median of each contender, who take turns `runs` times after one to warm up."""
    samples: dict[Contender, list[float]] = {}
    with ExitStack() as up:
        measures = {
            contender: up.enter_context(work.setup(bench, contender))
            for contender in dict.fromkeys(work.contenders())
        }
        for turn in range(runs + 1):
            for contender, once in measures.items():
                value = once()
                if turn > 0:
                    samples.setdefault(contender, []).append(value)
            _progress(f"\r  {work.name}: {turn}/{runs} ")
    _progress("\r\033[K")
    return {contender: statistics.median(values) for contender, values in samples.items()}


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def format_line(work: Work, line: Line, medians: dict[Contender, float]) -> str:
    """Return a line of the table."""
    base = medians[OPENSSH]
    ratio = medians[line.contender] / base
    reached = ratio >= line.target if work.more_is_better else ratio <= line.target
    sign = "≥" if work.more_is_better else "≤"
    dropbear = f"{medians[DROPBEAR] / base:.2f}" if work.dropbear else ""
    cells = (
        line.what,
        f"{_figure(medians[line.contender])} {work.unit}",
        f"{_figure(base)} {work.unit}",
        f"**{ratio:.2f}**" if reached else f"{ratio:.2f} (not reached)",
        f"{sign} {line.target:.1f}",
        dropbear,
    )
    return f"| {' | '.join(cells)} |"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    """Return one line that names the machine and the programs."""
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = found[1] if found else platform.machine()
    ssh = _version("ssh")
    versions = f"{ssh.partition(' ')[0].rstrip(',')}, {_version('dropbear')}"
    python = platform.python_version()
    kernel = f"Linux {platform.release().partition('-')[0]}"
    return f"{cpu}, {os.cpu_count()} cores, {kernel}, Python {python}, {versions}"


def _version(program: str) -> str:
    argv = [find_program(program), "-V"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stderr.strip()


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    names = ", ".join(work.name for work in WORKS)
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rows", help=f"some of: {names} (with commas; default all)")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument(
        "--subject", default="culvert", help="what stands where Culvert does, to try the bench"
    )
    chosen = parser.parse_args()
    known = {work.name: work for work in WORKS}
    wanted = chosen.rows.split(",") if chosen.rows else list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no row is called {', '.join(unknown)}; there are {names}")
    chosen.works = [stand_in(known[name], chosen.subject) for name in wanted]
    return chosen


def stand_in(work: Work, subject: str) -> Work:
    """Return the work with `subject` wherever Culvert stood."""

    def exchange(name: str) -> str:
        return subject if name == "culvert" else name

    lines = [
        replace(
            line,
            contender=Contender(exchange(line.contender.client), exchange(line.contender.server)),
        )
        for line in work.lines
    ]
    return replace(work, lines=lines)


def run(works: Sequence[Work], runs: int) -> int:
    """Measure and print; return the exit status."""
    failures = 0
    with (
        private_folder("bench") as folder,
        temporary_account("culvert-bench") as account,
    ):
        bench = Bench(folder, account, Keyring(folder / "user"), Keyring(folder / "host"))
        account.authorize([bench.user_keys.public()])
        print(f"Medians of {runs} runs each, in turns, on: {machine()}")
        print(HEADER, flush=True)
        for work in works:
            try:
                medians = measure(work, bench, runs)
            except (CommandFailed, Missing, NoTunnel, OSError, RuntimeError) as error:
                failures += 1
                print(f"\n{work.name} could not be measured: {error}", file=sys.stderr)
                continue
            for line in work.lines:
                print(format_line(work, line, medians), flush=True)
    return 1 if failures else 0


def main() -> int:
    """Run the benchmark; return its exit status."""
    chosen = arguments()
    if os.geteuid() != 0:
        print("The benchmark needs root: sudo make bench", file=sys.stderr)
        return 1
    return run(chosen.works, chosen.runs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
