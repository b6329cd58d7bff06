"""A session of SFTP with a host: over a connection of its own, a shared one, or a program.

The login, and everything that ~/.ssh/config says about it, is that of ``culvert ssh``. What a
copy has no use for is off: forwards, the agent, a terminal, RemoteCommand.

``connect`` does both steps at once. Beside a loop that runs, ``log_in`` waits for the server in a
thread, and ``LoggedIn.session`` goes on by the loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..aio.driver import Driver
from ..aio.keepalive import KeepAlive
from ..aio.loop import Loop
from ..errors import PeerDisconnected, UsageError
from ..files.sftp_client import SftpClient
from ..files.sftp_streams import ChannelStream, SocketStream
from ..process import ourselves
from .greeting import Greeting
from .login import Login
from .prompts import tell
from .ssh_config import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from ..ssh.connection import Connection
    from .control_client import ControlClient
    from .host_options import HostOptions

_log = logging.getLogger(__name__)

Setting = str | tuple[str, str]  # as ssh_config.load takes them

# Settings that come first for every copy, as OpenSSH's scp and sftp give them to ssh.
_SETTINGS: Final[tuple[Setting, ...]] = (
    ("ForwardAgent", "no"),
    ("ClearAllForwardings", "yes"),
    ("RemoteCommand", "none"),
    ("RequestTTY", "no"),
)

# Our own choices
_PIECE: Final = 64 << 10  # bytes from or to a pipe at once
_GRACE: Final = 1.0  # seconds that a program gets to end after its input has ended

_OURSELVES: Final = "from appliance.multicall import main; sys.exit(main())"


class Host(NamedTuple):
    """A host to copy from or to, and how it is reached."""

    name: str  # as the user typed it
    settings: tuple[Setting, ...] = ()  # of options, in front of those of the files
    config_file: str | None = None
    program: tuple[str, ...] = ()  # -S: it is called in place of ``culvert ssh``
    command: str = ""  # is run in place of the subsystem
    subsystem: str = "sftp"

    def load(self) -> HostOptions:
        """Returns all settings for the host; raises UsageError."""
        return load(self.name, (*_SETTINGS, *self.settings), self.config_file)

    def words(self) -> list[str]:
        """Returns the command line of the program that connects to the host."""
        words = [*(self.program or (*ourselves.command(_OURSELVES), "ssh")), "-x"]
        if self.config_file is not None:
            words += ["-F", self.config_file]
        for each in (*_SETTINGS, *self.settings):
            words += ["-o", each if isinstance(each, str) else " ".join(each)]
        if not self.command:
            return [*words, "-s", "--", self.name, self.subsystem]
        return [*words, "--", self.name, self.command]


class SftpSession:
    """One host's SFTP client, and what carries it."""

    def __init__(
        self,
        client: SftpClient,
        login: Login | None = None,
        driver: Driver | None = None,
        process: subprocess.Popen[bytes] | None = None,
        shared: socket.socket | None = None,
    ) -> None:
        self.client = client
        self._login = login
        self._driver = driver
        self._process = process
        self._shared = shared

    async def start(self) -> None:
        """Begins the session; raises CulvertError."""
        try:
            await self.client.start()
        except PeerDisconnected as error:
            cause = self._driver.connection.transport.error if self._driver else None
            if cause is not None and self._login is not None:
                raise self._login.explained(cause) from error
            raise

    def close(self) -> None:
        """Ends the session and its connection."""
        self.client.close()
        if self._driver is not None:
            self._driver.connection.transport.close("disconnected by user")
            self._driver.flush()
        if self._login is not None:
            self._login.close()
        if self._process is not None:
            _end(self._process)
        if self._shared is not None:
            self._shared.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Waits for a program's end, but not for one whose own connection is dead."""
    import subprocess

    for stop in (process.terminate, process.kill):
        try:
            process.wait(_GRACE)
            return
        except subprocess.TimeoutExpired:
            stop()
    process.wait()


class LoggedIn(Protocol):
    """A host that is logged in to, without a loop yet; its owner calls one of both."""

    def session(self, loop: Loop) -> SftpSession:
        """Opens the session, on the loop's thread; the caller starts it."""

    def close(self) -> None:
        """Ends the connection, which gets no session."""


class _Connection:
    """A connection of our own."""

    def __init__(
        self, host: Host, options: HostOptions, login: Login, sock: socket.socket, ours: Connection
    ) -> None:
        self._host = host
        self._options = options
        self._login = login
        self._socket = sock
        self._connection = ours

    def session(self, loop: Loop) -> SftpSession:
        host, options = self._host, self._options
        driver = Driver(loop, self._socket, self._connection, lambda: None)
        stream = ChannelStream(driver, tell, host.command, host.subsystem)
        driver.start()
        if interval := options.server_alive_interval:
            silent = PeerDisconnected(f"Timeout, server {options.host} not responding.")
            count = options.server_alive_count_max
            KeepAlive(driver, interval, count, lambda: stream.client.ended(silent))
        return SftpSession(stream.client, self._login, driver)

    def close(self) -> None:
        self._socket.close()
        self._login.close()


class _Socket:
    """A socket to a program that speaks SFTP, or to a server through another client."""

    def __init__(
        self,
        sock: socket.socket,
        process: subprocess.Popen[bytes] | None = None,
        shared: socket.socket | None = None,
    ) -> None:
        self._socket = sock
        self._process = process
        self._shared = shared

    def session(self, loop: Loop) -> SftpSession:
        client = SocketStream(loop, self._socket).client
        return SftpSession(client, process=self._process, shared=self._shared)

    def close(self) -> None:
        self._socket.close()
        if self._process is not None:
            _end(self._process)
        if self._shared is not None:
            self._shared.close()


def connect(loop: Loop, host: Host, quiet: bool = False) -> SftpSession:
    """Logs in and opens the session, which the caller starts; raises CulvertError."""
    return log_in(host, quiet).session(loop)


def log_in(host: Host, quiet: bool = False) -> LoggedIn:
    """Logs in, in any thread; raises CulvertError."""
    if host.program:
        return _run(host.words())
    options = host.load()
    if options.control_path is not None:
        from .control_client import ControlClient, NoMaster

        try:
            master = ControlClient(options)
        except NoMaster as error:
            _log.debug("%s", error)
            if options.control_master != "no":  # it may stay as master, when we have ended
                return _run(host.words())
        else:
            return _share(master, host)
    login = Login(options)
    greeting = Greeting(options, quiet)
    try:
        sock = login.dial()
        connection = login.authenticate(sock, greeting)
        greeting.logged_in(connection)
    except BaseException:
        login.close()
        raise
    return _Connection(host, options, login, sock, connection)


def run_server(loop: Loop, words: Sequence[str]) -> SftpSession:
    """Runs an SFTP server on this machine (-D), without SSH; raises UsageError."""
    return _run(words).session(loop)


def dial_server(host: str, port: int, timeout: float) -> LoggedIn:
    """Connects to a server that speaks SFTP on a port, without SSH; raises DialFailed."""
    from ..aio.dial import dial

    return _Socket(dial(host, port, timeout=timeout)[0])


def standard_streams() -> LoggedIn:
    """Takes the server that is at standard input and output, as dpipe and socat put it there.

    They may be two pipes; threads make a socket of them.
    """
    import threading

    ours, theirs = socket.socketpair()
    incoming, outgoing = os.dup(0), os.dup(1)

    def receive() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(incoming, _PIECE):
                theirs.sendall(data)
        theirs.shutdown(socket.SHUT_RDWR)  # which ends the other thread's wait as well

    def send() -> None:
        with contextlib.suppress(OSError):
            while data := theirs.recv(_PIECE):
                while data:
                    data = data[os.write(outgoing, data) :]
        os.close(outgoing)
        theirs.close()

    for work in (receive, send):
        threading.Thread(target=work, daemon=True).start()
    return _Socket(ours)


def _run(words: Sequence[str]) -> _Socket:
    """Runs a program that speaks SFTP on its standard input and output.

    It ignores ^C, which reaches it as well: we end the command, and it when we are done. Other
    threads than the main one cannot set that; they connect again, without a terminal.
    """
    import signal
    import subprocess
    import threading

    ours, theirs = socket.socketpair()
    is_main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    with theirs:
        try:
            process = subprocess.Popen(
                words,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=not is_main,
            )
        except OSError as error:
            ours.close()
            raise UsageError(f"{words[0]}: {error.strerror}") from error
        finally:
            if is_main:
                signal.signal(signal.SIGINT, on_interrupt)
    return _Socket(ours, process)


def _share(master: ControlClient, host: Host) -> _Socket:
    """Opens the session over the connection of another client."""
    ours, theirs = socket.socketpair()
    with theirs:
        kind = "exec" if host.command else "subsystem"
        shared = master.open(kind, (host.command or host.subsystem).encode(), theirs.fileno())
    return _Socket(ours, shared=shared)
