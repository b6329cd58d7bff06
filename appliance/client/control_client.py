"""A client that uses the connection of another client (ControlPath of ssh_config(5)), and -O."""

import contextlib
import os
import secrets
import signal
import socket
import stat
from collections.abc import Sequence
from types import FrameType
from typing import Final

from ..aio.listening import identity, peer_of
from ..config.forwards import Forward, TcpPlace
from ..errors import CulvertError, MalformedMessage, UsageError
from ..services.session_client import CONNECTION_FAILED
from ..services.terminal import get_size
from ..wire.codec import Message
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
from .host_options import HostOptions
from .raw_terminal import RawTerminal
from .session_request import session_request

COMMANDS: Final = ("check", "exit", "stop", "forward", "cancel")

_ANSWERS: Final = {kind.number: kind for kind in (Running, Done, Say, Raw, Cooked, Suspend, Ended)}


class NoMaster(CulvertError):
    """No master is listening at the control socket; the caller may connect directly."""


class MasterGone(CulvertError):
    """The master ended after it got a request, which it may have carried out."""


class ControlClient:
    """One connection to a master."""

    def __init__(self, options: HostOptions) -> None:
        """Connects to the master at ControlPath; raises NoMaster."""
        path = options.control_path
        assert path is not None
        self._options = options
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            found = identity(os.fsencode(path))
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            if isinstance(error, ConnectionRefusedError):  # of a master that was killed
                _remove_dead(path, found)
            why = error.strerror or str(error)
            raise NoMaster(f"Control socket connect({path}): {why}") from error
        if why := _distrust(path, self._socket):
            self._socket.close()
            prompts.tell(f"culvert: control socket {path} is not used: {why}")
            raise NoMaster(f"control socket {path}: {why}")

    def command(self, name: str) -> int:
        """Carries out the command of -O; returns the exit status."""
        if name == "check":
            self._send(Check())
            answer = self._receive()
            if not isinstance(answer, Running):
                return CONNECTION_FAILED
            prompts.tell(f"Master running (pid={answer.process})")
            return 0
        if name in ("forward", "cancel"):
            failures = [
                why
                for each in self._options.forwards
                if (why := self._forward(each, AddForward if name == "forward" else CancelForward))
            ]
            for why in failures:
                prompts.tell(f"culvert: {why}")
            return CONNECTION_FAILED if failures else 0
        self._send(Exit() if name == "exit" else Stop())
        answer = self._receive()
        if not isinstance(answer, Done):
            return CONNECTION_FAILED
        prompts.tell("Exit request sent." if name == "exit" else "Stop listening request sent.")
        return 0

    def _forward(self, wanted: Forward, kind: type[AddForward] | type[CancelForward]) -> str:
        """Has the master add or cancel a forward; returns why that failed, or ''."""
        listen = wanted.listen
        if self._options.gateway_ports and isinstance(listen, TcpPlace) and listen.host is None:
            wanted = wanted._replace(listen=TcpPlace("*", listen.port))
        self._send(kind(wanted.direction, str(wanted)))
        while not isinstance(answer := self._receive(), Done):
            if isinstance(answer, Say):
                prompts.tell(answer.text)
            else:
                return "the master ended"
        if answer.port:
            print(answer.port)
        return answer.why

    def run(self, command: str, quiet: bool, is_first: bool = False) -> int:
        """Adds forwards, and runs a session or -W; returns the exit status.

        ``is_first``: the master was started for this client, and exits on a forward's failure.
        """
        options = self._options
        for each in options.forwards:
            if why := self._forward(each, AddForward):
                prompts.tell(f"Warning: {why}")
                if options.exit_on_forward_failure:
                    if is_first:
                        self._send(Exit())
                    return CONNECTION_FAILED
        if options.stdio_forward is not None:
            host, port = options.stdio_forward
            self._send(NewStdioForward(host, port, not options.stdin_null), (0, 1))
        elif options.session_type != "none":
            wanted = session_request(options, command)
            self._send(
                NewSession(
                    wanted.kind,
                    wanted.command,
                    tuple(part for pair in wanted.environment for part in pair),
                    b"" if wanted.terminal is None else wanted.terminal.encode(),
                    os.isatty(0),
                    wanted.stdin,
                    wanted.escape,
                    wanted.agent,
                    wanted.x11,
                    wanted.x11_refused,
                ),
                (0, 1, 2),
            )
        if options.fork_after_authentication and os.fork():
            os._exit(0)
        ended = self._serve_terminal()
        if ended is None:
            prompts.tell("Control socket closed: the connection is gone.")
            return CONNECTION_FAILED
        if ended.on_terminal and not quiet:
            prompts.tell(f"Shared connection to {options.host} closed.")
        return ended.status

    def _serve_terminal(self) -> Ended | None:
        """Sets our terminal's mode as the master says, until the session ends.

        Returns None if the master has ended.
        """
        terminal = RawTerminal() if os.isatty(0) else None

        def resized(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(MasterGone):  # the next receive notices it as well
                self._send(WindowSize(*get_size(0)))

        def killed(number: int, frame: FrameType | None) -> None:
            raise SystemExit(CONNECTION_FAILED)

        if terminal is not None:
            signal.signal(signal.SIGWINCH, resized)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, killed)
        try:
            while True:
                message = self._receive()
                if isinstance(message, Say):
                    prompts.tell(message.text)
                elif message is None or isinstance(message, Ended):
                    return message
                elif terminal is None:
                    continue
                elif isinstance(message, Raw):
                    terminal.enter()
                elif isinstance(message, Cooked):
                    terminal.restore()
                elif isinstance(message, Suspend):
                    terminal.suspend()
        finally:
            if terminal is not None:
                terminal.restore()

    def open(self, kind: str, command: bytes, fd: int) -> socket.socket:
        """Connects ``fd`` with a program at the server, without a terminal.

        ``kind`` is exec or subsystem. The caller keeps the returned socket open as long as the
        program is to run.
        """
        self._send(NewSession(kind, command, (), b"", False, True, b"", False), (fd, fd, 2))
        return self._socket

    def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        data = message.encode()
        if len(data) > PACKET:
            raise UsageError("the command and its environment are too long to share a connection")
        try:
            socket.send_fds(self._socket, [data], descriptors)
        except OSError as error:
            raise MasterGone(f"the master of the connection: {error.strerror}") from error

    def _receive(self) -> Message | None:
        """Returns the next message; None if the master is gone, or sent an invalid one."""
        try:
            data = self._socket.recv(PACKET)
        except OSError:
            return None
        kind = _ANSWERS.get(data[0]) if data else None
        try:
            return None if kind is None else kind.decode(data)
        except MalformedMessage:
            return None


def _distrust(path: str, sock: socket.socket) -> str:
    """Returns why the listener at ``path`` may not get our commands and descriptors, or ''.

    Another user who can write to the directory can put a socket there, or a link to a socket of
    ours that leads to another host.
    """
    mine = (0, os.getuid())
    try:
        status = os.lstat(path)
        uid = peer_of(sock).uid
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISSOCK(status.st_mode):
        return "it is a link"
    if status.st_uid not in mine:
        uid = status.st_uid
    return "" if uid in mine else f"it belongs to somebody else (uid {uid})"


def _remove_dead(path: str, found: tuple[int, int, int]) -> None:
    """Removes the dead socket ``found``, but not a new one that has taken its place."""
    aside = f"{path}.{secrets.token_hex(8)}"
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        if identity(os.fsencode(aside)) != found:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)
