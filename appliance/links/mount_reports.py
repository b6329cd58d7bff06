"""The socket to the supervisor, at the end of the program that it has started for a mount.

    reports = MountReports(descriptor)
    reports.settings()             how to log in: passwords of proxies stand on no command line
    reports.watch(loop, on_gone)   from when the loop runs
    reports.follow(loop, mount)    from when the mount is served
    reports.failed(error)          in place of a message on standard error

Nothing waits for the supervisor: what it has no room for is dropped.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from ..aio.loop import Loop
from ..errors import AuthenticationFailed, CulvertError, HostKeyRejected, UsageError
from ..mount.mount import Mount
from ..wire.codec import Message
from .reports import DATAGRAM, AttemptFailed, MountOrder, MountProgress, PassedLine

# Our own choices
REPORT_SECONDS: Final = 1.0  # between two reports of progress
TEXT_LIMIT: Final = 1000  # characters
# Errors that a new attempt would meet again. What a UsageError names may be there the next time: a
# directory, a mount point.
_FINAL: Final = (AuthenticationFailed, HostKeyRejected)


class MountReports:
    """Owns the program's end of the socket."""

    def __init__(self, descriptor: int) -> None:
        """Raises UsageError for a descriptor that was not inherited."""
        try:
            self._socket = socket.socket(fileno=descriptor)
        except OSError as error:
            raise UsageError(f"--supervised={descriptor}: {error.strerror}") from error
        self._socket.set_inheritable(False)
        self._last = b""

    def settings(self) -> list[tuple[str, str]]:
        """Waits for the settings of ssh_config(5); raises CulvertError."""
        try:
            texts = MountOrder.decode(self._socket.recv(DATAGRAM)).settings
        except OSError as error:
            raise UsageError(f"no settings from the supervisor: {error.strerror}") from error
        words = [os.fsdecode(text) for text in texts]
        return list(zip(words[::2], words[1::2], strict=True))

    def watch(self, loop: Loop, on_gone: Callable[[], None]) -> None:
        """Calls ``on_gone`` when the supervisor has ended."""

        def on_readable() -> None:  # nothing is sent any more
            loop.watch_reader(self._socket.fileno(), None)
            on_gone()

        loop.watch_reader(self._socket.fileno(), on_readable)

    def follow(self, loop: Loop, mount: Mount) -> None:
        """Reports progress, at once and whenever there is some."""
        is_connected, received, sent, round_trip, last_error = mount.figures()
        microseconds = int(round_trip * 1e6)
        text = last_error[:TEXT_LIMIT]
        report = MountProgress(is_connected, received, sent, microseconds, text).encode()
        if report != self._last and self._send(report):
            self._last = report
        loop.call_later(REPORT_SECONDS, self.follow, loop, mount)

    def write(self, level: int, text: bytes) -> None:
        """Passes a line of the log, as ``log.pass_on`` wants it."""
        self._report(PassedLine(level, text))

    def failed(self, error: CulvertError) -> None:
        """Reports why the program ends."""
        self._report(AttemptFailed(isinstance(error, _FINAL), str(error)[:TEXT_LIMIT]))

    def _report(self, message: Message) -> None:
        self._send(message.encode())

    def _send(self, data: bytes) -> bool:
        """Whether the supervisor has got it."""
        with contextlib.suppress(OSError):
            return self._socket.send(data, socket.MSG_DONTWAIT) > 0
        return False
