"""A session channel on the server (RFC 4254 section 6): shell, command or subsystem.

NEW --shell, exec, subsystem--> RUNNING --status and end of output--> ENDED
"""

import contextlib
import fnmatch
import logging
import os
import select
import signal
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from ..aio.driver import Driver
from ..aio.relay import Sink, Source
from ..ssh.channels import Channel, ChannelHandler
from ..wire.codec import write_uint32
from ..wire.forward import AUTH_AGENT_REQUEST
from ..wire.messages import EXTENDED_DATA_STDERR
from ..wire.session import (
    X11_REQUEST,
    Command,
    EnvironmentVariable,
    ExitSignal,
    Nothing,
    PtyRequest,
    SignalRequest,
    WindowChange,
    X11Request,
)
from .base import Process, Refused, SessionPrivileges
from .terminal import apply_modes, set_size
from .x11_server import X11Display

_log = logging.getLogger(__name__)

# Our own choices
ENVIRONMENT_LIMIT: Final = 100  # variables from the client
VARIABLE_LIMIT: Final = 4096  # bytes of one variable
TERMINAL_GRACE: Final = 0.2  # seconds that a terminal's output may come after the exit
STATUS_GRACE: Final = 0.2  # seconds that the exit may come after the output's end
BULK: Final = 4  # times the usual window, for uploads by SFTP: 8 MiB are 450 Mbit/s over 140 ms


class _SessionState(Enum):
    NEW = auto()
    RUNNING = auto()
    ENDED = auto()


class Session(ChannelHandler):
    """One session; owns the descriptors of its process."""

    def __init__(
        self,
        channel: Channel,
        privileges: SessionPrivileges,
        driver: Driver,
        accept_environment: tuple[str, ...],
        forward_agent: Callable[[], None],
        forward_x11: Callable[[X11Request], X11Display],
        ended: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._loop = driver.loop
        self._channel = channel
        self._privileges = privileges
        self._accept_environment = accept_environment
        self._forward_agent = forward_agent
        self._forward_x11 = forward_x11
        self._ended = ended
        self._environment: list[tuple[bytes, bytes]] = []
        self._master: int | None = None
        self._display: X11Display | None = None
        self._process: Process | None = None
        self._state = _SessionState.NEW
        self._stdin: Sink | None = None
        self._output: Source | None = None
        self._sources: set[Source] = set()  # those that have not reached their end
        self._descriptors: set[int] = set()  # those that this session must close
        self._status: int | None = None

    def request(self, request_type: str, request_data: bytes) -> bool:
        handle = _REQUESTS.get(request_type)
        if handle is None:
            return False
        try:
            return handle(self, request_data)
        except Refused as refusal:
            _log.info("%s refused: %s", request_type, refusal)
            return False

    # -- before it runs --------------------------------------------------------------

    def _auth_agent_req(self, data: bytes) -> bool:
        Nothing.decode(data)
        if self._state is not _SessionState.NEW:
            return False
        self._forward_agent()
        return True

    def _pty_req(self, data: bytes) -> bool:
        request = PtyRequest.decode(data)
        if self._state is not _SessionState.NEW or self._master is not None:
            return False
        if "\0" in request.term or len(request.term) > VARIABLE_LIMIT:
            return False
        self._master = self._privileges.open_pty()
        self._descriptors.add(self._master)
        set_size(self._master, request.columns, request.rows, request.width, request.height)
        apply_modes(self._master, request.modes)
        self._environment.append((b"TERM", request.term.encode()))
        return True

    def _x11_req(self, data: bytes) -> bool:
        request = X11Request.decode(data)
        if self._state is not _SessionState.NEW or self._display is not None:
            return False
        self._display = self._forward_x11(request)
        return True

    def _env(self, data: bytes) -> bool:
        request = EnvironmentVariable.decode(data)
        name = request.variable.decode("latin-1")
        if (
            self._state is not _SessionState.NEW
            or len(self._environment) >= ENVIRONMENT_LIMIT
            or len(data) > VARIABLE_LIMIT
            or b"\0" in request.value
            or not (name.isascii() and name.replace("_", "a").isalnum())
            or not any(fnmatch.fnmatchcase(name, p) for p in self._accept_environment)
        ):
            return False
        self._environment.append((request.variable, request.value))
        return True

    # -- running ---------------------------------------------------------------------

    def _shell(self, data: bytes) -> bool:
        Nothing.decode(data)
        return self._run("shell", b"")

    def _exec(self, data: bytes) -> bool:
        return self._run("exec", Command.decode(data).command)

    def _subsystem(self, data: bytes) -> bool:
        name = Command.decode(data).command
        is_running = self._run("subsystem", name)
        if is_running and name == b"sftp":
            self._channel.widen(BULK)
        return is_running

    def _run(self, kind: str, command: bytes) -> bool:
        if self._state is not _SessionState.NEW or b"\0" in command:
            return False
        display = 0 if self._display is None else self._display.number
        process = self._privileges.spawn(
            kind, command, tuple(self._environment), self._master, display
        )
        self._state = _SessionState.RUNNING
        self._process = process
        for fd in (process.stdin, process.stdout, process.stderr, process.status):
            if fd is not None:
                os.set_blocking(fd, False)
                self._descriptors.add(fd)
        channel, driver = self._channel, self._driver
        self._stdin = Sink(process.stdin, channel, driver, self._close_stdin)
        self._output = self._source(process.stdout)
        if process.stderr is not None:
            self._source(process.stderr, EXTENDED_DATA_STDERR)
        self._loop.watch_reader(process.status, self._on_status)
        self._loop.call_soon(self.resume)  # so that the answer to this request is sent first
        return True

    def _source(self, fd: int, extended: int | None = None) -> Source:
        source = Source(
            fd, self._channel, self._driver, lambda: self._output_ended(source), extended
        )
        self._sources.add(source)
        return source

    def data(self, view: memoryview) -> None:
        if self._stdin is None:
            self._channel.consume(len(view))  # no program runs yet: the data is dropped
        else:
            self._stdin.write(view)

    def eof(self) -> None:
        if self._stdin is not None and self._master is None:
            self._stdin.when_drained(self._close_stdin)

    def _close_stdin(self) -> None:
        if self._process is not None and self._stdin is not None and self._master is None:
            self._stdin.stop()
            self._close(self._process.stdin)

    def _close(self, fd: int) -> None:
        if fd in self._descriptors:
            self._descriptors.remove(fd)
            os.close(fd)

    def resume(self) -> None:
        for source in self._sources:
            source.start()

    def _window_change(self, data: bytes) -> bool:
        change = WindowChange.decode(data)
        if self._master is None or self._state is _SessionState.ENDED:
            return False
        set_size(self._master, change.columns, change.rows, change.width, change.height)
        return True

    def _signal(self, data: bytes) -> bool:
        name = SignalRequest.decode(data).signal
        if self._process is None or self._state is not _SessionState.RUNNING or not name.isalnum():
            return False
        self._privileges.signal(self._process.number, name)
        return True

    def _break(self, data: bytes) -> bool:
        if self._master is None or self._state is not _SessionState.RUNNING:
            return False
        with contextlib.suppress(OSError):  # the terminal is full, or has no program
            os.write(self._master, b"\x03")
        return True

    def _end_of_write(self, data: bytes) -> bool:
        """Closes the program's output: eow@openssh.com says that the client's reader is gone.

        OpenSSH PROTOCOL 2.1.
        """
        if self._process is not None and self._output is not None and self._master is None:
            self._output.stop()
            self._close(self._process.stdout)
            self._output_ended(self._output)
        return True

    # -- the end ---------------------------------------------------------------------

    def _on_status(self) -> None:
        assert self._process is not None
        try:
            data = os.read(self._process.status, 4)
        except BlockingIOError:  # the event was for a closed descriptor of the same number
            return
        self._loop.watch_reader(self._process.status, None)
        self._status = int.from_bytes(data, "big") if len(data) == 4 else signal.SIGKILL
        if self._sources and self._master is not None:
            # A process in the background may hold the terminal open.
            self._loop.call_later(TERMINAL_GRACE, self._finish_terminal)
        elif not self._sources:
            self._finish()

    def _finish_terminal(self) -> None:
        """Ends the session once the terminal's output is sent; waits while the client is slow."""
        if self._state is not _SessionState.RUNNING or self._master is None:
            return
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if any(events & select.POLLIN for _, events in poll.poll(0)):
            self._loop.call_later(TERMINAL_GRACE, self._finish_terminal)
        else:
            self._finish()

    def _output_ended(self, source: Source) -> None:
        self._sources.discard(source)
        if not self._sources:
            if self._status is not None:
                self._finish()
            else:  # dbclient and plink hang up at the end of file, without the status
                self._loop.call_later(STATUS_GRACE, self._end_of_output)

    def _end_of_output(self) -> None:
        self._channel.eof()
        self._driver.flush()

    def _finish(self) -> None:
        if self._state is not _SessionState.RUNNING or self._status is None:
            return
        self._state = _SessionState.ENDED
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            try:
                name = signal.Signals(number).name.removeprefix("SIG")
            except ValueError:  # a real-time signal
                name = f"{number}@culvert.example"
            details = ExitSignal(name, os.WCOREDUMP(self._status)).encode()
            self._channel.request("exit-signal", details)
        else:
            self._channel.request("exit-status", write_uint32(os.WEXITSTATUS(self._status)))
        self._channel.eof()
        self._channel.close()
        self._driver.flush()

    def closed(self) -> None:
        self._state = _SessionState.ENDED
        for source in self._sources:
            source.stop()
        if self._stdin is not None:
            self._stdin.stop()
        if self._process is not None:
            self._loop.watch_reader(self._process.status, None)
        elif self._master is not None:
            self._privileges.close_pty(self._master)
        for fd in tuple(self._descriptors):
            self._close(fd)
        if self._display is not None:
            self._display.close()
        self._ended()


_REQUESTS: Final[dict[str, Callable[[Session, bytes], bool]]] = {
    "pty-req": Session._pty_req,
    "env": Session._env,
    "shell": Session._shell,
    "exec": Session._exec,
    "subsystem": Session._subsystem,
    "window-change": Session._window_change,
    "signal": Session._signal,
    "break": Session._break,
    AUTH_AGENT_REQUEST: Session._auth_agent_req,
    X11_REQUEST: Session._x11_req,
    "eow@openssh.com": Session._end_of_write,
}
