"""Keeps equal memory pages of connections only once: the kernel's samepage merging (KSM).

The two processes of a connection hold 8 MiB. The listener has nearly all of these pages, too; they
were copied because Python counts references in them. After a login, most counts have their old
values again. The kernel's ksmd finds equal pages, in its own time, and keeps one of each.

The time that a write to a page takes tells whether another process had an equal page. An attacker
who fills a page with a guess of another process's page could learn whether the guess is right.
Therefore merging is off unless ``merge_memory`` is set. A connection takes no part in it before
its login, and users' programs never do.
"""

import contextlib
import ctypes
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h
PR_SET_MEMORY_MERGE: Final = 67
_PR_GET_MEMORY_MERGE: Final = 68

_SWITCH: Final = "/sys/kernel/mm/ksm/run"


def obstacle() -> str:
    """Returns why no page would be merged; '' if pages would be."""
    if _libc.prctl(_PR_GET_MEMORY_MERGE, 0, 0, 0, 0) < 0:
        return "the kernel cannot do it for a process (Linux 6.4 can, with CONFIG_KSM)"
    with contextlib.suppress(OSError), open(_SWITCH, encoding="ascii") as file:
        if file.read().strip() == "1":
            return ""
    return f"ksmd does not run: echo 1 > {_SWITCH}"


def begin() -> None:
    """Starts to merge this process's pages, if the kernel can."""
    _libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0)


def end() -> None:
    """Stops merging this process's pages: an executed program would inherit the merging."""
    _libc.prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
