"""The client whose connection others share (ControlMaster of ssh_config(5))."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..aio.driver import Driver
from ..aio.listening import ListeningSocket, LocalListener, peer_of
from ..config.forwards import forward
from ..errors import MalformedMessage, UsageError
from ..services.forward_client import ForwardClient
from ..services.session_client import CONNECTION_FAILED, SessionClient, Streams, Wanted
from ..services.stdio_forward import StdioForward
from ..wire.codec import Message
from ..wire.session import PtyRequest
from . import prompts
from .control_messages import (
    PACKET,
    AddForward,
    CancelForward,
    Check,
    Cooked,
    Done,
    Ended,
    Exit,
    NewSession,
    NewStdioForward,
    Raw,
    Running,
    Say,
    Stop,
    Suspend,
    WindowSize,
)

if TYPE_CHECKING:
    from ..services.x11_client import X11Session

_log = logging.getLogger(__name__)

# Returns the right to the display that a session gets; the function is told what the user is told.
X11ForSession = Callable[[Wanted, Callable[[str], None]], "X11Session | None"]


class ControlSocket:
    """The socket at ControlPath; it listens before it gets that name."""

    def __init__(self, path: str) -> None:
        """Listens at ``path``; raises UsageError, or FileExistsError if another master is there."""
        place = os.fsencode(path)
        beside = place + b"." + secrets.token_hex(8).encode()
        try:
            self._file = LocalListener(beside, kind=socket.SOCK_SEQPACKET)
            try:
                os.link(beside, place)
            except OSError:
                self._file.socket.close()
                raise
            finally:
                os.unlink(beside)
        except FileExistsError:
            raise
        except OSError as error:
            raise UsageError(f"ControlPath {path}: {error.strerror}") from error
        self._file.path = place

    @property
    def socket(self) -> socket.socket:
        """The listening socket, to which clients connect."""
        return self._file.socket

    def remove(self) -> None:
        """Removes the socket's file, so that no client finds it any more."""
        self._file.remove()


class ControlMaster:
    """Serves other clients; ``changed`` is called whenever one of them is done."""

    def __init__(
        self,
        control: ControlSocket,
        driver: Driver,
        forwards: Callable[[], ForwardClient],
        x11: X11ForSession,
        host: str,
        ask: bool,
        changed: Callable[[], None],
        leave: Callable[[], None],
    ) -> None:
        """``ask``: ask the user before each session; ``leave`` ends the connection."""
        self._control = control
        self._host = host
        self._ask = ask
        self.driver = driver
        self.forwards = forwards
        self.x11 = x11
        self.leave = leave
        self._changed = changed
        self._clients: set[_Client] = set()
        self._stopped = False
        self._listener = ListeningSocket(driver.loop, [control.socket], self._accepted)

    @property
    def sessions(self) -> int:
        """The number of clients that have a session or a -W forward now."""
        return sum(client.has_session for client in self._clients)

    @property
    def is_left(self) -> bool:
        """Whether no client is connected, even one without a request, and no more will come."""
        return self._stopped and not self._clients

    def _accepted(self, sock: socket.socket) -> None:
        uid = peer_of(sock).uid
        if uid not in (0, os.getuid()):
            _log.warning("refused: another user (uid %d) wants to share the connection", uid)
            sock.close()
            return
        self._clients.add(_Client(self, sock))

    def allows(self) -> bool:
        """Whether the user allows a session; asks only if ``ask`` was set."""
        if not self._ask:
            return True
        answer = prompts.line(f"Allow shared connection to {self._host}? ")
        return answer is not None and answer.lower() in ("y", "yes", "")

    def ended(self, client: "_Client") -> None:
        """Forgets a client that is done."""
        self._clients.discard(client)
        self._changed()

    def stop(self) -> None:
        """Takes no more clients."""
        self._stopped = True
        self._listener.close()
        self._control.remove()

    def close(self) -> None:
        """Stops, and closes the connections of all clients."""
        self.stop()
        for client in tuple(self._clients):
            client.close()


class _Client:
    """One client of the master.

    It acts as the terminal of its SessionClient; the real one is at the other end of the socket.
    """

    def __init__(self, master: ControlMaster, sock: socket.socket) -> None:
        self._master = master
        self._sock = sock
        self._session: SessionClient | None = None
        self._stdio_forward: StdioForward | None = None
        self._descriptors: list[int] = []
        self._closed = False
        master.driver.loop.watch_reader(sock.fileno(), self._on_readable)

    @property
    def has_session(self) -> bool:
        """Whether the client has a session or a -W forward."""
        return self._session is not None or self._stdio_forward is not None

    def _on_readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, PACKET, 3)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if self._descriptors:  # it has its descriptors, and gets no more
            for fd in fds:
                os.close(fd)
        else:
            self._descriptors += fds
        row = _REQUESTS.get(data[0]) if data else None
        if row is None:
            self.close()
            return
        kind, handle = row
        try:
            handle(self, kind.decode(data))
        except MalformedMessage as error:
            _log.warning("a client that shares the connection: %s", error)
            self.close()
        self._master.driver.flush()

    def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the client may be gone; the next read shows that
            self._sock.send(message.encode(), socket.MSG_DONTWAIT)

    def _check(self, request: Check) -> None:
        self._send(Running(os.getpid()))

    def _exit(self, request: Exit) -> None:
        self._send(Done())
        self._master.leave()

    def _stop(self, request: Stop) -> None:
        self._master.stop()
        self._send(Done())

    def _add_forward(self, request: AddForward) -> None:
        self._forward(request, self._master.forwards().add)

    def _cancel_forward(self, request: CancelForward) -> None:
        self._forward(request, self._master.forwards().cancel)

    def _forward(self, request: AddForward | CancelForward, do: Callable[..., None]) -> None:
        if request.direction not in ("L", "R", "D"):
            raise MalformedMessage("a forward in no direction")
        try:
            wanted = forward(request.direction, request.text)
        except ValueError as error:
            self._send(Done(str(error)))
            return
        do(wanted, lambda why, port: self._send(Done(why, port)))

    def _new_session(self, request: NewSession) -> None:
        if self.has_session or len(self._descriptors) != 3:
            raise MalformedMessage("a session without its descriptors")
        if not self._master.allows():
            self._end(CONNECTION_FAILED)
            return
        names, values = request.environment[::2], request.environment[1::2]
        wanted = Wanted(
            request.kind,
            request.command,
            tuple(zip(names, values, strict=False)),
            PtyRequest.decode(request.pty_request) if request.pty_request else None,
            request.stdin,
            request.escape,
            request.agent,
            request.x11,
            request.x11_refused,
        )
        for place in (1, 2):
            self._unblock(place)
        driver = self._master.driver
        session = SessionClient(
            wanted,
            Streams(*self._descriptors),
            self if request.is_terminal else None,
            driver,
            self._session_ended,
            self._say,
            x11=self._master.x11(wanted, self._say),
        )
        self._session = session
        session.start(driver.connection.open_channel("session", b"", session))

    def _unblock(self, place: int) -> None:
        """Makes a terminal non-blocking, so that ^S on it stops only its own session.

        The terminal is opened once more, as O_NONBLOCK on the client's descriptor would affect the
        client, too.
        """
        fd = self._descriptors[place]
        if os.isatty(fd):
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._descriptors[place] = os.open(f"/proc/self/fd/{fd}", flags)
                os.close(fd)

    def _session_ended(self) -> None:
        session = self._session
        assert session is not None
        session.restore()
        self._end(session.status, session.on_terminal)

    def _end(self, status: int, on_terminal: bool = False) -> None:
        self._send(Ended(status, on_terminal))
        self.close()

    def _new_stdio_forward(self, request: NewStdioForward) -> None:
        if self.has_session or len(self._descriptors) != 2:
            raise MalformedMessage("a forward without its descriptors")
        if not self._master.allows():
            self._end(CONNECTION_FAILED)
            return
        stdin, stdout = self._descriptors
        self._stdio_forward = StdioForward(
            (request.host, request.port),
            stdin if request.stdin else None,
            stdout,
            self._master.driver,
            self._stdio_forward_ended,
            self._say,
        )
        self._stdio_forward.start()

    def _stdio_forward_ended(self) -> None:
        assert self._stdio_forward is not None
        self._stdio_forward.restore()
        self._end(CONNECTION_FAILED if self._stdio_forward.failed else 0)

    def _window_size(self, request: WindowSize) -> None:
        if self._session is not None:
            self._session.resized(request.columns, request.rows, request.width, request.height)

    def _say(self, text: str) -> None:
        self._send(Say(text))

    def enter(self) -> None:
        """Tells the client to set its terminal to raw mode."""
        self._send(Raw())

    def restore(self) -> None:
        """Tells the client to restore its terminal's mode."""
        self._send(Cooked())

    def suspend(self) -> None:
        """Tells the client to suspend itself."""
        self._send(Suspend())

    def close(self) -> None:
        """Ends what the client uses, and closes its socket and descriptors."""
        if self._closed:
            return
        self._closed = True
        self._master.driver.loop.watch_reader(self._sock.fileno(), None)
        self._sock.close()
        for user in (self._session, self._stdio_forward):
            if user is not None:
                user.abandon()
        self._master.driver.flush()
        for fd in self._descriptors:
            os.close(fd)
        self._master.ended(self)


_REQUESTS: Final[dict[int, tuple[type[Message], Callable[[_Client, Any], None]]]] = {
    kind.number: (kind, handle)
    for kind, handle in (
        (Check, _Client._check),
        (Exit, _Client._exit),
        (Stop, _Client._stop),
        (AddForward, _Client._add_forward),
        (CancelForward, _Client._cancel_forward),
        (NewSession, _Client._new_session),
        (NewStdioForward, _Client._new_stdio_forward),
        (WindowSize, _Client._window_size),
    )
}
