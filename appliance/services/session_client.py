"""A session channel on the client: connects three descriptors with a program at the server.

The descriptors are our own, or those of another client that shares our connection. escapes.py
takes the typed commands for the client itself.
"""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..aio.driver import Driver
from ..aio.relay import Sink, Source, wants_nonblocking
from ..errors import MalformedMessage
from ..log import harmless
from ..ssh.channels import Channel, ChannelHandler
from ..wire.codec import Reader
from ..wire.forward import AUTH_AGENT_REQUEST
from ..wire.messages import EXTENDED_DATA_STDERR
from ..wire.session import (
    X11_REQUEST,
    Command,
    EnvironmentVariable,
    ExitSignal,
    PtyRequest,
    WindowChange,
)
from .escapes import CommandLine, Escapes, Terminal

if TYPE_CHECKING:
    from .x11_client import X11Session

CONNECTION_FAILED: Final = 255  # ssh(1), EXIT STATUS


class Wanted(NamedTuple):
    """The session that the user asks for."""

    kind: str  # shell, exec, subsystem
    command: bytes
    environment: tuple[tuple[bytes, bytes], ...]
    terminal: PtyRequest | None  # None: the program gets no terminal
    stdin: bool  # whether our standard input is read
    escape: bytes  # the escape character, or b"" for none
    agent: bool  # whether the program may use our agent
    x11: str = "no"  # whether it may use our display: no, untrusted, trusted
    x11_refused: str = "ignore"  # what a session without X11 does: ignore, warn, fail


class Streams(NamedTuple):
    """The descriptors of a session at the client."""

    stdin: int
    stdout: int
    stderr: int


class SessionClient(ChannelHandler):
    """One session; ``ended`` is called once its output is written."""

    def __init__(
        self,
        wanted: Wanted,
        streams: Streams,
        terminal: Terminal | None,
        driver: Driver,
        ended: Callable[[], None],
        say: Callable[[str], None],
        command_line: CommandLine | None = None,
        x11: "X11Session | None" = None,
    ) -> None:
        """``command_line`` carries out the line that the user types after ~C.

        ``x11`` is the right to the display, which is requested and ends with the session.
        """
        self._wanted = wanted
        self._streams = streams
        self._terminal = terminal
        self._driver = driver
        self._ended = ended
        self._say = say
        self._command_line = command_line
        self._x11 = x11
        self.status = CONNECTION_FAILED
        self.disconnected = False  # by ~.
        self._channel: Channel
        self._source: Source | None = None
        self._stdout: Sink
        self._stderr: Sink
        self._is_raw = False
        self._made_nonblocking: list[int] = []
        self._is_broken = False  # whether the reader of our output is gone
        self._finished = False

    @property
    def on_terminal(self) -> bool:
        """Whether the user's terminal is in raw mode for this session."""
        return self._is_raw

    def start(self, channel: Channel) -> None:
        """Prepares the descriptors, while the channel is being opened."""
        self._channel = channel
        _, stdout, stderr = self._streams
        for fd in (stdout, stderr):
            if wants_nonblocking(fd) and os.get_blocking(fd):
                os.set_blocking(fd, False)
                self._made_nonblocking.append(fd)
        self._stdout = Sink(stdout, channel, self._driver, self._output_broken)
        self._stderr = Sink(stderr, channel, self._driver, lambda: None)

    def opened(self, type_data: bytes) -> None:
        wanted, channel = self._wanted, self._channel
        if self._x11 is None and wanted.x11_refused == "fail":
            channel.close()
            return
        if wanted.terminal is not None:
            channel.request("pty-req", wanted.terminal.encode(), self._pty_answered)
        if self._x11 is not None:
            channel.request(X11_REQUEST, self._x11.request, self._x11_answered)
        if wanted.x11_refused != "fail":  # else after the answer, as a refused session runs nothing
            self._request_program()

    def _request_program(self) -> None:
        wanted, channel = self._wanted, self._channel
        if wanted.agent:
            channel.request(AUTH_AGENT_REQUEST)
        for name, value in wanted.environment:
            channel.request("env", EnvironmentVariable(name, value).encode())
        data = b"" if wanted.kind == "shell" else Command(wanted.command).encode()
        channel.request(wanted.kind, data, self._started)

    def open_failed(self, reason_code: int, description: str) -> None:
        self._say(f"the server refuses a session: {harmless(description)}")

    def _pty_answered(self, success: bool) -> None:
        if not success:
            self._say("PTY allocation request failed on channel 0")
        elif self._terminal is not None and self._wanted.stdin:
            self._terminal.enter()
            self._is_raw = True

    def _x11_answered(self, success: bool) -> None:
        assert self._x11 is not None
        if success:
            self._x11.granted()
            if self._wanted.x11_refused == "fail":
                self._request_program()
        elif self._wanted.x11_refused == "warn":
            self._say("X11 forwarding request failed on channel 0")
        elif self._wanted.x11_refused == "fail":
            self._say("the server refuses X11 forwarding; culvert x11 --check says why")
            self._channel.close()

    def _started(self, success: bool) -> None:
        if not success:
            self._say(f"{self._wanted.kind} request failed on channel 0")
            self._channel.close()
            return
        if not self._wanted.stdin:
            self._channel.eof()
            return
        escapes = self._escapes()
        transform = escapes.for_program if escapes is not None else None
        self._source = Source(
            self._streams.stdin, self._channel, self._driver, self._channel.eof, transform=transform
        )
        self._source.start()

    def _escapes(self) -> Escapes | None:
        if self._terminal is None or not self._is_raw or not self._wanted.escape:
            return None
        return Escapes(
            self._wanted.escape,
            self._streams.stdin,
            self._streams.stderr,
            self._terminal,
            self._channel,
            self._driver,
            self._disconnect,
            self._command_line,
        )

    # -- data ------------------------------------------------------------------------

    def data(self, view: memoryview) -> None:
        self._stdout.write(view)

    def extended_data(self, code: int, view: memoryview) -> None:
        if code == EXTENDED_DATA_STDERR:
            self._stderr.write(view)
        else:
            self._channel.consume(len(view))

    def resume(self) -> None:
        if self._source is not None:
            self._source.start()

    def _output_broken(self) -> None:
        """Tells the program that the reader of its output is gone, as a pipe would.

        OpenSSH PROTOCOL 2.1.
        """
        self._is_broken = True
        if self._driver.connection.transport.peer_takes_end_of_write:
            self._channel.request("eow@openssh.com")
        else:
            self._channel.ask_data_ended()  # the program's exit status may have arrived already

    def data_ended(self) -> None:
        """Closes the channel, which is the only way to tell the program that nobody reads it."""
        self._channel.close()
        self.closed()

    def resized(self, columns: int, rows: int, width: int, height: int) -> None:
        """Tells the server the window's new size: in characters, and in pixels."""
        size = WindowChange(columns, rows, width, height)
        self._channel.request("window-change", size.encode())
        self._driver.flush()

    # -- the end ---------------------------------------------------------------------

    def request(self, request_type: str, request_data: bytes) -> bool:
        if request_type == "exit-status":
            reader = Reader(request_data)
            self.status = reader.uint32() & 0xFF
            reader.end()
            return True
        if request_type == "exit-signal":
            try:
                name = harmless(ExitSignal.decode(request_data).signal)
            except MalformedMessage:  # some servers leave the last fields out
                name = "?"
            if not (self._is_broken and name == "PIPE"):  # SIGPIPE is expected then
                self._say(f"the program was ended by signal {name}")
            return True
        return False

    def _disconnect(self) -> None:
        self.disconnected = True
        self._finish()

    def eof(self) -> None:
        """Does nothing: the exit status may still come."""

    def abandon(self) -> None:
        """Closes the session, as the client that owns the descriptors is gone."""
        if self._source is not None:
            self._source.stop()
        for sink in (self._stdout, self._stderr):
            sink.stop()
        self._finished = True
        self.restore()
        self._channel.close()

    def closed(self) -> None:
        if self._x11 is not None:
            self._x11.end()
        if self._source is not None:
            self._source.stop()
        self._stdout.when_drained(lambda: self._stderr.when_drained(self._finish))

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self.restore()
            self._ended()

    def restore(self) -> None:
        """Restores the former modes of the terminal and the descriptors."""
        if self._is_raw and self._terminal is not None:
            self._terminal.restore()
        for fd in self._made_nonblocking:
            with contextlib.suppress(OSError):
                os.set_blocking(fd, True)
