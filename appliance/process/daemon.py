"""Detaches a process from the terminal and from its caller."""

import os
import sys


def daemonize() -> None:
    """Leaves the terminal and the caller; standard descriptors lead to /dev/null."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.chdir("/")
