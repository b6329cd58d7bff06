"""A client with a connection of its own: the login, then a session, a tunnel or forwards."""

import os
from typing import TYPE_CHECKING

from ..ssh.channels import Channel
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED
from .greeting import Greeting
from .host_options import HostOptions
from .login import Login
from .prompts import tell

if TYPE_CHECKING:
    from .control_master import ControlSocket
    from .session import ClientSession


class Client(Greeting):
    """Owns one run of the client: its login, its connection and its session."""

    def __init__(self, options: HostOptions, command: str, quiet: bool) -> None:
        super().__init__(options, quiet)
        self._command = command
        self._session: ClientSession | None = None

    def run(self, window: int | None) -> int:
        """Runs the client and returns its exit status; ``window``: bytes of a channel."""
        options = self._options
        tunnel = None
        if options.tunnel != "no":
            from .tunnel import ClientTunnel

            tunnel = ClientTunnel(options)  # before the login: most mistakes are here
        login = Login(options, window)
        try:
            sock = login.dial()
            connection = login.authenticate(sock, self)
            if tunnel is not None and options.tunnel == "no":  # the host's key has changed
                tunnel.close()
                tunnel = None
            self.logged_in(connection)
            control = self._control_socket()
            if control is not None and options.control_persist is not None:
                if os.fork():
                    login.abandon()
                    sock.close()
                    control.socket.close()
                    return self._first_client()
                options = self._become_master()
            from ..services.session_client import CONNECTION_FAILED
            from .session import ClientSession

            self._session = ClientSession(
                options, connection, sock, self._command, self._quiet, tunnel, control
            )
            status = self._session.run()
            if connection.transport.error is not None and status == CONNECTION_FAILED:
                raise login.explained(connection.transport.error)
            return status
        finally:
            login.close()

    def _control_socket(self) -> "ControlSocket | None":
        options = self._options
        if options.control_path is None or options.control_master == "no":
            return None
        from .control_master import ControlSocket

        try:
            return ControlSocket(options.control_path)
        except FileExistsError:
            tell(f"ControlSocket {options.control_path} already exists, disabling multiplexing")
            return None

    def _become_master(self) -> HostOptions:
        """Goes to the background as a master without a session; returns its options."""
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        options = self._options
        options.session_type = "none"
        options.forwards = ()
        options.stdio_forward = None
        options.fork_after_authentication = False
        return options

    def _first_client(self) -> int:
        """Runs the session as a client of the master that has gone to the background."""
        from .control_client import ControlClient

        return ControlClient(self._options).run(self._command, self._quiet, is_first=True)

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        if self._session is None:  # just after the login, before a session was requested
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "not wanted here")
        else:
            self._session.channel_open(channel, type_data)
