"""A session of SFTP with a host: over a connection of its own, a shared one, or a program.

The login, and everything that ~/.ssh/config says about it, is that of ``culvert ssh``. What a
copy has no use for is off: forwards, the agent, a terminal, RemoteCommand.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

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
            self._process.wait()
        if self._shared is not None:
            self._shared.close()


def connect(loop: Loop, host: Host, quiet: bool = False) -> SftpSession:
    """Logs in and opens the session, which the caller starts; raises CulvertError."""
    if host.program:
        return _run(loop, host.words())
    options = host.load()
    if options.control_path is not None:
        from .control_client import ControlClient, NoMaster

        try:
            master = ControlClient(options)
        except NoMaster as error:
            _log.debug("%s", error)
            if options.control_master != "no":  # it may stay as master, when we have ended
                return _run(loop, host.words())
        else:
            return _share(loop, master, host)
    login = Login(options)
    greeting = Greeting(options, quiet)
    try:
        sock = login.dial()
        connection = login.authenticate(sock, greeting)
        greeting.logged_in(connection)
    except BaseException:
        login.close()
        raise
    driver = Driver(loop, sock, connection, lambda: None)
    stream = ChannelStream(driver, tell, host.command, host.subsystem)
    driver.start()
    if interval := options.server_alive_interval:
        silent = PeerDisconnected(f"Timeout, server {options.host} not responding.")
        KeepAlive(
            driver, interval, options.server_alive_count_max, lambda: stream.client.ended(silent)
        )
    return SftpSession(stream.client, login, driver)


def run_server(loop: Loop, words: Sequence[str]) -> SftpSession:
    """Runs an SFTP server on this machine (-D), without SSH; raises UsageError."""
    return _run(loop, words)


def _run(loop: Loop, words: Sequence[str]) -> SftpSession:
    """Runs a program that speaks SFTP on its standard input and output.

    It ignores ^C, which reaches it as well: we end the command, and it when we are done.
    """
    import signal
    import subprocess

    ours, theirs = socket.socketpair()
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with theirs:
        try:
            process = subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno())
        except OSError as error:
            ours.close()
            raise UsageError(f"{words[0]}: {error.strerror}") from error
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
    return SftpSession(SocketStream(loop, ours).client, process=process)


def _share(loop: Loop, master: ControlClient, host: Host) -> SftpSession:
    """Opens the session over the connection of another client."""
    ours, theirs = socket.socketpair()
    with theirs:
        kind = "exec" if host.command else "subsystem"
        shared = master.open(kind, (host.command or host.subsystem).encode(), theirs.fileno())
    return SftpSession(SocketStream(loop, ours).client, shared=shared)
