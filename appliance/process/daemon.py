"""Detaches a process from the terminal and from its caller."""

from __future__ import annotations

import contextlib
import os
import select
import signal
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
    _leave()


def _leave() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")


class Starting:
    """A process that begins in the foreground, where it may ask the user, and goes on without.

    It is a child from the beginning, so that what it starts stays its own. The program that was
    called waits, and ends with status 0 once ``detach`` is called, or else as the child does.

    The child and what it starts never have the caller's standard error, which a caller may read
    up to its end, but a pipe to the program that waits; it is ``messages`` after ``detach``. It is
    made before anything is opened, since it closes all other descriptors.
    """

    def __init__(self) -> None:
        """Returns in the child."""
        sys.stdout.flush()
        sys.stderr.flush()
        started, self._started = os.pipe2(os.O_CLOEXEC)
        self.messages, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.messages, False)
        child = os.fork()
        if child:
            os.close(self._started)
            _wait(child, started, self.messages)
        os.dup2(theirs, 2)
        _close_all_but(self._started, self.messages)

    def detach(self) -> None:
        """Leaves the terminal and the caller; raises BrokenPipeError if that has gone already."""
        os.setsid()
        _leave()
        try:
            os.write(self._started, b"\0")
        finally:
            os.close(self._started)


def _close_all_but(*kept: int) -> None:
    """Closes what was inherited: a lock of the caller's, or a pipe that they read to its end."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that by which the names were read
                os.close(fd)


def _wait(child: int, started: int, messages: int) -> None:
    """Ends this process when the child has started its work, or as the child has ended."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    for number in (signal.SIGINT, signal.SIGQUIT):  # a terminal sends it to the child as well
        signal.signal(number, signal.SIG_IGN)
    poll = select.poll()
    for fd in (started, messages):
        poll.register(fd, select.POLLIN)
    while started not in dict(poll.poll()):
        _show(messages)
    code = 0
    if not os.read(started, 1):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _show(messages)
    os._exit(code if code >= 0 else 128 - code)


def _show(messages: int) -> None:
    with contextlib.suppress(OSError):  # there is no more now, or nobody reads it
        while data := os.read(messages, 4096):
            os.write(2, data)
