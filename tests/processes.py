"""What /proc says of processes."""

import contextlib
import os
from pathlib import Path


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """What a process has open: its descriptors, and what each leads to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # in our own, that by which this folder was read
            found[int(entry.name)] = os.readlink(entry)
    return found


def family(pid: int) -> list[int]:
    """The process and all below it that live, parents first."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            found += [int(child) for child in children if lives(int(child))]
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry in a table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def status(pid: int) -> dict[str, list[str]]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
