"""What /proc says of processes, and what shells of the user that runs the tests do not read."""

import contextlib
import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x20000  # sched.h
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000  # sys/mount.h
SHELL_FILES = (".bashrc", ".bash_profile", ".bash_login", ".profile")


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


def hide_shell_files() -> None:
    """Have all shells below this process find root's own files empty; others see no change.

    Servers of the tests let root in, and tests kill shells at any moment: what a person's files do
    would fail them, as a lock that is left behind and waited for a minute.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None):
        return  # in a container that allows no mounts
    for name in SHELL_FILES:
        path = Path.home() / name
        if path.exists():
            libc.mount(b"/dev/null", os.fsencode(path), None, MS_BIND, None)
