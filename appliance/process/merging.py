"""One copy of what connections hold in common: the kernel's samepage merging (KSM).

The two processes of a connection hold 8 MiB, nearly all of it pages that the listener has, too, and
that were copied because Python counts references in them. Once a login is over, most counts are
what they were. The kernel's ksmd finds such pages, in its own time, and keeps one of each.

How long it takes to write to a page tells whether another process had an equal one. Who can fill
a page, and guess all that stands in somebody else's, could so find out whether the guess is right.
Therefore this is for who asks for it (``merge_memory``); a connection has no part in it before it
is logged in, and neither have users' programs.
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
    """Why no page would be merged; '' if nothing speaks against it."""
    if _libc.prctl(_PR_GET_MEMORY_MERGE, 0, 0, 0, 0) < 0:
        return "the kernel cannot do it for a process (Linux 6.4 can, with CONFIG_KSM)"
    with contextlib.suppress(OSError), open(_SWITCH, encoding="ascii") as file:
        if file.read().strip() == "1":
            return ""
    return f"ksmd does not run: echo 1 > {_SWITCH}"


def begin() -> None:
    """Merge this process's pages, if the kernel can."""
    _libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0)


def end() -> None:
    """Have all pages to oneself again: a program that is executed would inherit it, too."""
    _libc.prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
