"""What the client does once it is logged in: a session, a tunnel, or both; or -W."""

import os
import socket
from typing import TYPE_CHECKING

from ..aio.driver import Driver
from ..aio.keepalive import KeepAlive
from ..aio.loop import Loop
from ..services.session_client import CONNECTION_FAILED, SessionClient, Wanted
from ..ssh.connection import Connection
from ..ssh.order import Phase
from . import prompts
from .ssh import environment_to_send
from .ssh_config import HostOptions
from .tunnel import ClientTunnel

if TYPE_CHECKING:
    from ..services.forward_client import StdioForward


class ClientSession:
    """Runs the event loop until there is nothing left to do."""

    def __init__(
        self,
        options: HostOptions,
        connection: Connection,
        sock: socket.socket,
        command: str,
        quiet: bool,
        tunnel: ClientTunnel | None,
    ) -> None:
        self._options = options
        self._connection = connection
        self._sock = sock
        self._command = command
        self._quiet = quiet
        self._tunnel = tunnel
        self._session: SessionClient | None = None
        self._forward: StdioForward | None = None
        self._failed = False

    def run(self) -> int:
        """The exit status."""
        try:
            return self._run()
        finally:
            if self._session is not None:
                self._session.restore()
            if self._forward is not None:
                self._forward.restore()
            if self._tunnel is not None:
                self._tunnel.close()

    def _run(self) -> int:
        options, connection = self._options, self._connection
        self._loop = Loop()
        self._driver = Driver(self._loop, self._sock, connection, self._loop.stop)
        if self._tunnel is not None:
            self._tunnel.start(self._driver, self._tunnel_refused)
        if options.session_type != "none":
            self._start_session()
        if options.stdio_forward is not None:
            self._start_forward(options.stdio_forward)
        if options.server_alive_interval:
            interval, count = options.server_alive_interval, options.server_alive_count_max
            KeepAlive(self._driver, interval, count, self._silent)
        self._driver.start()
        self._loop.run()
        if connection.phase is not Phase.CLOSED:
            connection.close("disconnected by user")
            self._driver.flush()
        self._loop.close()
        if self._failed or self._session is None:
            return CONNECTION_FAILED if self._failed or connection.error else 0
        return self._session.status

    def _start_session(self) -> None:
        options, connection = self._options, self._connection
        kind = "shell"
        if options.session_type == "subsystem":
            kind = "subsystem"
        elif self._command:
            kind = "exec"
        terminal = options.request_tty == "force" or (
            os.isatty(0)
            and (
                options.request_tty == "yes"
                or (options.request_tty == "auto" and kind == "shell" and not options.stdin_null)
            )
        )
        wanted = Wanted(
            kind,
            os.fsencode(self._command),
            environment_to_send(options),
            terminal,
            not options.stdin_null and not options.fork_after_authentication,
            (options.escape_char or "").encode("latin-1"),
        )
        session = SessionClient(wanted, self._driver, self._session_ended, prompts.tell)
        self._session = session
        session.start(connection.open_channel("session", b"", session))

    def _session_ended(self) -> None:
        session = self._session
        assert session is not None
        if session.on_terminal and not self._quiet:
            prompts.tell(f"Connection to {self._options.host} closed.")
        self._loop.stop()

    def _start_forward(self, place: tuple[str, int]) -> None:
        from ..services.forward_client import StdioForward

        stdin = not self._options.stdin_null
        self._forward = StdioForward(place, stdin, self._driver, self._forward_ended, prompts.tell)
        self._forward.start()

    def _forward_ended(self) -> None:
        assert self._forward is not None
        self._failed = self._failed or self._forward.failed
        self._loop.stop()

    def _tunnel_refused(self) -> None:
        if self._session is None:
            self._failed = True
            self._loop.stop()

    def _silent(self) -> None:
        prompts.tell(f"Timeout, server {self._options.host} not responding.")
        self._failed = True
        self._loop.stop()
