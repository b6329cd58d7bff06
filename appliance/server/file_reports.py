"""The changes of files that SFTP servers report, for the audit.

An SFTP server runs as the user, who may stop it, make it report what did not happen, or change
files by other programs. So a report is a line about this user and this connection, marked as
reported, and nothing more: it is checked strictly, and bounded in length. However many there are,
the monitor reads a batch and then looks at its other work; meanwhile the program waits.
"""

import contextlib
import logging
import os
import select
import socket
from typing import Final

from ..errors import MalformedMessage
from ..wire.sftp_report import DATAGRAM, OPERATIONS, FileChange
from . import audit

_log = logging.getLogger(__name__)

# Our own choices
BATCH: Final = 64  # reports that are read at once
LAST: Final = 1000  # reports that are read when a program has ended; more do not fit its socket


class FileReports:
    """The sockets on which the programs of one connection report."""

    def __init__(self) -> None:
        self._poll: select.poll | None = None
        self._sockets: dict[int, socket.socket] = {}  # by descriptor
        self._programs: dict[int, int] = {}  # process id -> descriptor

    def watch(self, poll: select.poll) -> None:
        """Has ``poll`` say when there are reports; ``read`` reads them then."""
        self._poll = poll

    def add(self, pid: int, sock: socket.socket) -> None:
        """Takes over the socket of a program."""
        sock.setblocking(False)
        self._sockets[sock.fileno()] = sock
        self._programs[pid] = sock.fileno()
        if self._poll is not None:
            self._poll.register(sock, select.POLLIN)

    def read(self, ready: dict[int, int]) -> None:
        """Reads a batch from each socket that is ready."""
        for descriptor in self._sockets.keys() & ready.keys():
            self._read(descriptor, BATCH)

    def ended(self, pid: int) -> None:
        """Reads the last reports of a program; somebody who has its descriptor adds none."""
        descriptor = self._programs.pop(pid, None)
        if descriptor is not None and descriptor in self._sockets:
            with contextlib.suppress(OSError):
                self._sockets[descriptor].shutdown(socket.SHUT_RD)
            self._read(descriptor, LAST)
            self._close(descriptor)

    def close(self) -> None:
        """Reads the last reports of all programs."""
        for pid in tuple(self._programs):
            self.ended(pid)

    def _read(self, descriptor: int, limit: int) -> None:
        for _ in range(limit):
            try:
                data = self._sockets[descriptor].recv(DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or not _tell(data):
                self._close(descriptor)
                return

    def _close(self, descriptor: int) -> None:
        sock = self._sockets.pop(descriptor, None)
        if sock is not None:
            if self._poll is not None:
                self._poll.unregister(sock)
            sock.close()


def _tell(data: bytes) -> bool:
    """Writes a report to the audit; returns False if it is not one."""
    try:
        change = FileChange.decode(data)
    except MalformedMessage:
        change = None
    if change is None or change.operation not in OPERATIONS or len(data) > DATAGRAM:
        _log.warning("the sftp-server's reports end: it sent what is none")
        return False
    audit.write(
        audit.File(
            operation=change.operation,
            path=_text(change.path),
            target=_text(change.target) if change.target else None,
            reason=os.strerror(change.error) if change.error else None,
            source="sftp-server",
        )
    )
    return True


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
