"""What the client does once it is logged in: a session, a tunnel, or both."""

import os
import socket

from ..aio.driver import Driver
from ..aio.loop import Loop
from ..services.session_client import CONNECTION_FAILED, SessionClient, Wanted
from ..ssh.connection import Connection
from ..ssh.order import Phase
from . import prompts
from .ssh import environment_to_send
from .ssh_config import HostOptions
from .tunnel import ClientTunnel


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
        self._unanswered = 0
        self._failed = False

    def run(self) -> int:
        """The exit status."""
        try:
            return self._run()
        finally:
            if self._session is not None:
                self._session.restore()
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
        if options.server_alive_interval:
            self._loop.call_later(options.server_alive_interval, self._keep_alive)
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

    def _tunnel_refused(self) -> None:
        if self._session is None:
            self._failed = True
            self._loop.stop()

    def _keep_alive(self) -> None:
        if self._connection.phase is Phase.CLOSED:
            return
        if self._unanswered >= self._options.server_alive_count_max:
            prompts.tell(f"Timeout, server {self._options.host} not responding.")
            self._failed = True
            self._loop.stop()
            return
        self._unanswered += 1
        self._connection.global_request("keepalive@openssh.com", b"", self._answered)
        self._driver.flush()
        self._loop.call_later(self._options.server_alive_interval, self._keep_alive)

    def _answered(self, _: bytes | None) -> None:
        self._unanswered = 0
