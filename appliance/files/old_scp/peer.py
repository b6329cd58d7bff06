"""The other end of a copy by the old scp protocol, over two blocking descriptors."""

from __future__ import annotations

import os

from ...errors import MalformedMessage, PeerDisconnected, PeerError
from .protocol import LINE_LIMIT, OK, Failure, UnexpectedName

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..copying import Meter

# Our own choices
READ = 256 << 10  # bytes in one system call, and in a pipe of our server


class PeerStopped(PeerError):
    """The other end has sent the message that ends the copy."""


class ScpPeer:
    """The other end: its records and answers, our answers to it, and what went wrong so far.

    ``tell`` gets the bytes of each message for this end's user. The far end has no user: what
    it says goes to the near end, which shows it.
    """

    __slots__ = ("_at", "_buffer", "_read_fd", "_tell", "_write_fd", "errors")

    def __init__(self, read_fd: int, write_fd: int, tell: Callable[[bytes], None]) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._tell = tell
        self._buffer = b""
        self._at = 0  # how much of the buffer was taken
        self.errors = 0

    def run(self, work: Callable[[], None]) -> bool:
        """Does ``work`` and tells why it ended early; returns whether nothing has failed."""
        try:
            work()
        except UnexpectedName as error:
            self._fail(b"error: unexpected filename: " + error.name)
        except MalformedMessage as error:
            self._fail(f"protocol error: {error}".encode())
        except (PeerDisconnected, BrokenPipeError, ConnectionResetError):
            self.errors += 1
            self._tell(self._last_words() or b"lost connection")
        except PeerStopped:
            pass
        return not self.errors

    def _last_words(self) -> bytes:
        """The message that the other end has sent before it was gone; empty if there is none."""
        try:
            failure = self.answer()
        except (PeerError, OSError):
            return b""
        return b"" if failure is None else failure.text

    def _fail(self, text: bytes) -> None:
        try:  # noqa: SIM105  importing contextlib takes as long as starting Python
            self.report(text)
        except OSError:  # the other end is gone; this one was told
            pass

    # -- what we say -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._write_fd, view) :]

    def accept(self) -> None:
        """Answers that all is well.

        If the other end is gone, its last message is still to be read, and then its end.
        """
        try:  # noqa: SIM105  importing contextlib takes as long as starting Python
            self.write(OK)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def report(self, text: bytes) -> None:
        """Reports a failure to the users of both ends; the copy goes on."""
        self.errors += 1
        text = b"scp: " + text
        self._tell(text)
        self.write(Failure(text).encode())

    # -- what the other end says -------------------------------------------------------

    def accepted(self) -> bool:
        """Waits for an answer; returns whether all is well, and tells why it is not."""
        failure = self.answer()
        if failure is not None:
            self.told(failure)
        return failure is None

    def answer(self) -> Failure | None:
        """Waits for an answer: None if all is well."""
        if self.take(1) == OK:
            return None
        self._at -= 1
        line = self.line()
        if line is None:
            raise PeerDisconnected("lost connection")
        # what is no message comes from another program, such as a shell
        is_message = line[:1] in (b"\1", b"\2")
        return Failure(line[1:], line[:1] == b"\2") if is_message else Failure(line, ends=True)

    def told(self, failure: Failure) -> None:
        """Tells a message of the other end; raises PeerStopped if it is the last one."""
        self.errors += 1
        self._tell(failure.text)
        if failure.ends:
            raise PeerStopped("the other end has stopped")

    def line(self) -> bytes | None:
        """The next line without its newline; None at the end."""
        searched = self._at
        while (end := self._buffer.find(b"\n", searched, self._at + LINE_LIMIT)) < 0:
            searched = len(self._buffer)
            if searched - self._at >= LINE_LIMIT:
                raise MalformedMessage("line too long")
            data = os.read(self._read_fd, READ)
            if not data:
                if searched > self._at:
                    raise PeerDisconnected("lost connection")
                return None
            searched -= self._at
            self._buffer = self._buffer[self._at :] + data
            self._at = 0
        line = self._buffer[self._at : end]
        self._at = end + 1
        return line

    def take(self, most: int) -> bytes:
        """The next bytes, at least one and ``most`` at most."""
        if self._at == len(self._buffer):
            self._buffer = os.read(self._read_fd, READ)
            self._at = 0
            if not self._buffer:
                raise PeerDisconnected("lost connection")
        begin, end = self._at, self._at + most
        self._at = min(end, len(self._buffer))
        if not begin and end >= len(self._buffer):
            return self._buffer
        return self._buffer[begin:end]


class ScpSettings:
    """How files are copied, at either end."""

    __slots__ = ("begin", "pace", "preserve", "recursive", "trace")

    def __init__(
        self,
        recursive: bool = False,
        preserve: bool = False,
        trace: Callable[[bytes], None] | None = None,
        begin: Callable[[bytes, int], Meter] | None = None,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        """``trace`` gets each record (-v); ``begin`` a file's name and size, and gives its meter.

        ``pace`` is called with the number of bytes after each piece, and waits as long as needed.
        """
        self.recursive = recursive
        self.preserve = preserve
        self.trace = trace
        self.begin = begin
        self.pace = pace
