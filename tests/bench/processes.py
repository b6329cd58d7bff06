"""What processes take of the machine, from /proc."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5)'s stat from the third on: a name may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants, the process first."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def proportional_set_size(pid: int) -> int:
    """Return the PSS of a process in bytes, 0 when it has ended."""
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        if match := re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE):
            return int(match[1]) * 1024
    return 0


def private_size(pid: int) -> int:
    """Return the bytes of memory that a process shares with no other."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.M)) * 1024


def processor_seconds(programs: Iterable[int]) -> dict[int, float]:
    """Return for each process of these families its seconds on a processor, user and system.

    Those of its children that have ended are among them, so that the sum never shrinks.
    """
    seconds = {}
    for program in programs:
        for member in family(program):
            with contextlib.suppress(OSError):
                seconds[member] = sum(int(ticks) for ticks in _stat(member)[11:15]) * TICK
    return seconds
