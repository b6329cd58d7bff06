"""Measure Culvert beside OpenSSH, Dropbear and wireguard-go, and print one table.

    python -m tests.bench [--rows login,memory] [--runs 5] [--subject openssh]

Every figure is the median of the runs, in which the programs took turns. The ratio is Culvert's
figure divided by OpenSSH's, in the last column by the other program's; one that reached its mark
is bold. It needs root: for the tunnels, and for a user who logs in.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import wireguard
from tests.bench.contest import WIREGUARD, Bench, Contender, Line, Rival, Sample, Work
from tests.bench.works import WORKS
from tests.netns import CommandFailed
from tests.peers import Keyring, Missing, find_program, private_folder, temporary_account
from tests.tunnels import NoTunnel

HEADER = """
| work | Culvert | OpenSSH | ratio | to reach | others, and Culvert's ratio to them |
|---|--:|--:|--:|--:|---|"""
FULL = 0.95  # of a core; OpenSSH's one thread never quite gets all of it where others run as well
UNMEASURABLE = (CommandFailed, Missing, NoTunnel, OSError, RuntimeError)


@dataclass(slots=True)
class Result:
    """The median of each contender of a work, and why those without one could not be set up."""

    medians: dict[Contender, Sample]
    missing: dict[Contender, str]


def measure(work: Work, bench: Bench, runs: int) -> Result:
    """Measure all contenders, who take turns `runs` times after one to warm up."""
    samples: dict[Contender, list[Sample]] = {}
    missing: dict[Contender, str] = {}
    with ExitStack() as up:
        measures = {
            contender: up.enter_context(work.setup(bench, contender))
            for contender in work.contenders()
        }
        for rival in work.rivals():
            try:
                measures[rival] = up.enter_context(work.setup(bench, rival))
            except UNMEASURABLE as error:
                missing[rival] = str(error)
        for turn in range(runs + 1):
            for contender, once in measures.items():
                value = once()
                if turn > 0:
                    samples.setdefault(contender, []).append(value)
            _progress(f"\r  {work.name}: {turn}/{runs} ")
    _progress("\r\033[K")
    return Result({contender: _median(values) for contender, values in samples.items()}, missing)


def _median(samples: Sequence[Sample]) -> Sample:
    shares = [sample.openssh for sample in samples if sample.openssh is not None]
    return Sample(
        statistics.median(sample.figure for sample in samples),
        statistics.median(shares) if shares else None,
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def format_line(work: Work, line: Line, result: Result) -> str:
    """Return a line of the table."""
    own = result.medians[line.contender]
    base = result.medians[work.base].figure if work.base is not None else None
    note = f" ({work.base_note})" if work.base_note else ""
    cells = (
        line.what,
        f"{_figure(own.figure)} {work.unit}",
        f"{_figure(base)} {work.unit}{note}" if base is not None else "",
        _ratio(work, line, own, base) if base is not None else "",
        _mark(work, line.target),
        "; ".join(_beside(work, own, rival, result) for rival in line.rivals),
    )
    return f"| {' | '.join(cells)} |"


def _reaches(work: Work, ratio: float, target: float) -> bool:
    return ratio >= target if work.more_is_better else ratio <= target


def _mark(work: Work, target: float | None) -> str:
    return "" if target is None else f"{'≥' if work.more_is_better else '≤'} {target:.1f}"


def _ratio(work: Work, line: Line, own: Sample, base: float) -> str:
    """Return the ratio: bold when it is reached, or cannot be as OpenSSH's end has no more."""
    ratio = own.figure / base
    if line.target is None or _reaches(work, ratio, line.target):
        return f"**{ratio:.2f}**"
    if own.openssh is None:
        return f"{ratio:.2f} (not reached)"
    program = "ssh" if line.contender.client == "openssh" else "sshd"
    if own.openssh >= FULL:
        return f"**{ratio:.2f}** ({program} fills its core: {own.openssh * 100:.0f} %)"
    return f"{ratio:.2f} (not reached; {program} takes {own.openssh * 100:.0f} % of a core)"


def _beside(work: Work, own: Sample, rival: Rival, result: Result) -> str:
    if rival.contender in result.missing:
        return f"{rival.name} could not be measured"
    theirs = result.medians[rival.contender].figure
    ratio = f"{own.figure / theirs:.2f}"
    if rival.target is not None:
        reached = _reaches(work, own.figure / theirs, rival.target)
        ratio = f"**{ratio}**" if reached else f"{ratio} (not reached)"
        ratio += f", to reach {_mark(work, rival.target)}"
    return f"{rival.name} {_figure(theirs)} {work.unit}: {ratio}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine(works: Sequence[Work]) -> str:
    """Return one line that names the machine and the programs."""
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = found[1] if found else platform.machine()
    ssh = _version("ssh")
    versions = f"{ssh.partition(' ')[0].rstrip(',')}, {_version('dropbear')}"
    if any(WIREGUARD in work.rivals() for work in works):
        with suppress(Missing):  # its rows will say so
            versions += f", {wireguard.version()}"
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

    def stand(contender: Contender) -> Contender:
        client, server = exchange(contender.client), exchange(contender.server)
        return replace(contender, client=client, server=server)

    lines = [replace(line, contender=stand(line.contender)) for line in work.lines]
    return replace(work, lines=lines, base=work.base and stand(work.base))


def run(works: Sequence[Work], runs: int) -> int:
    """Measure and print; return the exit status."""
    failures = 0
    with (
        private_folder("bench") as folder,
        temporary_account("culvert-bench") as account,
    ):
        bench = Bench(folder, account, Keyring(folder / "user"), Keyring(folder / "host"))
        account.authorize([bench.user_keys.public()])
        print(f"Medians of {runs} runs each, in turns, on: {machine(works)}")
        print(HEADER, flush=True)
        for work in works:
            try:
                result = measure(work, bench, runs)
            except UNMEASURABLE as error:
                failures += 1
                print(f"\n{work.name} could not be measured: {error}", file=sys.stderr)
                continue
            for contender, reason in result.missing.items():
                failures += 1
                print(f"\n{work.name} without {contender.client}: {reason}", file=sys.stderr)
            for line in work.lines:
                print(format_line(work, line, result), flush=True)
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
