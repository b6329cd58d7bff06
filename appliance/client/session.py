"""The client after its login: a session, a tunnel and forwards, or -W."""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..aio.driver import Driver
from ..aio.keepalive import KeepAlive
from ..aio.loop import Loop
from ..config.forwards import Forward
from ..services.session_client import CONNECTION_FAILED, SessionClient, Streams, Wanted
from ..services.terminal import get_size
from ..ssh.channels import Channel
from ..ssh.connection import Connection
from ..ssh.order import Phase
from ..wire.forward import X11
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED
from . import prompts
from .host_options import HostOptions
from .raw_terminal import RawTerminal
from .session_request import session_request
from .tunnel import ClientTunnel

if TYPE_CHECKING:
    from ..aio.loop import Timer
    from ..services.forward_client import ForwardClient
    from ..services.stdio_forward import StdioForward
    from ..services.x11_client import X11Client, X11Session
    from .control_master import ControlMaster, ControlSocket

_log = logging.getLogger(__name__)

# Our own choice
X11_SECONDS: Final = 10.0  # for X11 programs to end after the session of a script

_IMPOSTOR: Final = "Port forwarding is disabled to avoid man-in-the-middle attacks"


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
        control: "ControlSocket | None",
    ) -> None:
        self._options = options
        self._connection = connection
        self._command = command
        self._quiet = quiet
        self._tunnel = tunnel
        self._loop = Loop()
        self._driver = Driver(self._loop, sock, connection, self._loop.stop)
        self._session: SessionClient | None = None
        self._session_over = False
        self._stdio_forward: StdioForward | None = None
        self._forwards: ForwardClient | None = None
        self._forwards_to_come = 0
        self._x11: X11Client | None = None
        self._waits_for_programs = False  # that use X11, as nothing else uses the connection
        self._failed = False
        self._master: ControlMaster | None = None
        self._patience: Timer | None = None  # ControlPersist of an unused master
        if control is not None:
            self._share(control)

    def run(self) -> int:
        """Runs the event loop and returns the exit status."""
        try:
            return self._run()
        finally:
            if self._session is not None:
                self._session.restore()
            if self._stdio_forward is not None:
                self._stdio_forward.restore()
            if self._master is not None:
                self._master.close()
            if self._forwards is not None:
                self._forwards.close()
            if self._x11 is not None:
                self._x11.close()
            if self._tunnel is not None:
                self._tunnel.close()
            self._loop.close()

    def _run(self) -> int:
        options, connection = self._options, self._connection
        if self._tunnel is not None:
            self._tunnel.start(self._driver, self._tunnel_refused)
        if options.stdio_forward is not None:
            self._start_stdio_forward(options.stdio_forward)
        else:
            self._start_forwards(options.forwards)
        if options.session_type != "none" and not self._failed:
            self._start_session()
        if options.server_alive_interval:
            interval, count = options.server_alive_interval, options.server_alive_count_max
            KeepAlive(self._driver, interval, count, self._silent)
        if options.idle_timeout:
            from ..aio.idle import IdleTimeout

            IdleTimeout(self._driver, options.idle_timeout, self._idle)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._loop.on_signal(number, partial(self._end_by, number))
        self._driver.start()
        began = self._loop.time()
        self._loop.run()
        totals = self._driver.sent, self._driver.received, self._loop.time() - began
        _log.info("Transferred: sent %d, received %d bytes, in %.1f seconds", *totals)
        if connection.transport.phase is not Phase.CLOSED:
            connection.transport.close("disconnected by user")
            self._driver.flush()
        if self._failed or self._session is None:
            return CONNECTION_FAILED if self._failed or connection.transport.error else 0
        return self._session.status

    # -- forwards ----------------------------------------------------------------------

    def _start_forwards(self, forwards: tuple[Forward, ...]) -> None:
        """Starts forwards; with -f, goes to the background once all have started or failed."""
        self._forwards_to_come = 1 + len(forwards)
        for forward in forwards:
            self._client().add(forward, partial(self._forward_started, forward))
        self._forward_known()

    def _forward_started(self, forward: Forward, why: str, port: int) -> None:
        if not why:
            _log.debug("forwarding: %s", forward)
        if why:
            failing = self._options.exit_on_forward_failure
            prompts.tell(f"{'Error' if failing else 'Warning'}: {why}")
            if failing:
                self._failed = True
                self._loop.stop()
                return
        if port:
            target = forward.target or "SOCKS"
            self._tell(f"Allocated port {port} for remote forward to {target}")
        self._forward_known()

    def _forward_known(self) -> None:
        self._forwards_to_come -= 1
        if not self._forwards_to_come and self._options.fork_after_authentication:
            _go_to_background()

    def _client(self) -> "ForwardClient":
        """Returns the forwards; made when first used, as most sessions have none."""
        if self._forwards is None:
            from ..services.forward_client import ForwardClient, ForwardSettings

            options = self._options
            settings = ForwardSettings(
                options.gateway_ports,
                options.stream_local_bind_mask,
                options.stream_local_bind_unlink,
                options.forward_agent,
                options.permit_remote_open,
                _IMPOSTOR if options.is_impostor else "",
            )
            self._forwards = ForwardClient(
                settings, self._driver, self._tell, self._leave_when_over
            )
        return self._forwards

    def _tell(self, text: str) -> None:
        """Tells the user something that -q suppresses."""
        if not self._quiet:
            prompts.tell(text)

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        """Handles a channel that the server opens."""
        if channel.channel_type == X11 and self._x11 is not None:
            self._x11.channel_open(channel, type_data)
        elif self._forwards is None and not self._options.forward_agent:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "not wanted here")
        else:
            self._client().channel_open(channel, type_data)

    def _start_stdio_forward(self, place: tuple[str, int]) -> None:
        from ..services.stdio_forward import StdioForward

        stdin = None if self._options.stdin_null else 0
        self._stdio_forward = StdioForward(
            place, stdin, 1, self._driver, self._stdio_forward_ended, prompts.tell
        )
        self._stdio_forward.start()

    def _stdio_forward_ended(self) -> None:
        assert self._stdio_forward is not None
        self._failed = self._failed or self._stdio_forward.failed
        self._loop.stop()

    def _tunnel_refused(self) -> None:
        if self._session is None:
            self._failed = True
            self._loop.stop()

    def _x11_session(self, wanted: Wanted, say: Callable[[str], None]) -> "X11Session | None":
        """Returns the right to the display that a session gets, None for none.

        A session whose configuration alone asks for it is told nothing.
        """
        options = self._options
        if wanted.x11 == "no" or not options.forward_x11:
            if wanted.x11_refused == "fail":
                say("X11 is not forwarded over this connection")
            return None
        if self._x11 is None:
            from ..services.x11_client import X11Client, X11Settings
            from .x11_display import NoDisplay, local_display

            try:
                display, authorization = local_display()
            except NoDisplay as error:
                _log.debug("X11 is not forwarded: %s", error)
                if wanted.x11_refused != "ignore":
                    say(f"Warning: X11 is not forwarded: {error}")
                return None
            settings = X11Settings(
                display,
                authorization,
                options.forward_x11_trusted,
                options.forward_x11_timeout,
                options.x11_clipboard,
            )
            self._x11 = X11Client(settings, self._driver, self._leave_when_over)
        return self._x11.session(wanted.x11 == "trusted")

    # -- the session -------------------------------------------------------------------

    def _start_session(self) -> None:
        options, connection = self._options, self._connection
        wanted = session_request(options, self._command)
        terminal = RawTerminal() if os.isatty(0) else None
        command_line = self._escape_command if options.enable_escape_commandline else None
        session = SessionClient(
            wanted,
            Streams(0, 1, 2),
            terminal,
            self._driver,
            self._session_ended,
            prompts.tell,
            command_line,
            self._x11_session(wanted, prompts.tell),
        )
        self._session = session
        if terminal is not None and wanted.terminal is not None:
            self._loop.on_signal(signal.SIGWINCH, lambda: session.resized(*get_size(0)))
        _log.debug("Requesting a session: %s", wanted.kind)
        session.start(connection.open_channel("session", b"", session))

    def _escape_command(self, text: str, done: Callable[[str], None]) -> None:
        """Carries out a command line of ~C."""
        from .escape_command import carry_out

        carry_out(text, self._client(), done)

    def _session_ended(self) -> None:
        session = self._session
        assert session is not None
        self._session_over = True
        if session.on_terminal and not self._quiet:
            prompts.tell(f"Connection to {self._options.host} closed.")
        if session.disconnected:
            self._loop.stop()
        self._leave_when_over()

    def _leave_when_over(self) -> None:
        """Ends the loop once nothing uses the connection, or after ControlPersist.

        Forwarded connections and other clients may outlive the session.
        """
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._in_use:
            if self._session_over and not self._is_shared:
                self._wait_for_programs()
            return
        persist = self._options.control_persist
        if self._session_over or self._has_no_use:
            self._loop.stop()
        elif self._master is not None and persist:
            self._patience = self._loop.call_later(persist, self._leave_if_unused)

    def _leave_if_unused(self) -> None:
        if not self._in_use:
            self._loop.stop()

    def _wait_for_programs(self) -> None:
        """Tells a person what is waited for after the session; a script waits for a while only.

        The X11 programs may be such that nobody sees, as the desktop's helpers start them.
        """
        if self._waits_for_programs:
            return
        self._waits_for_programs = True
        if os.isatty(0):
            self._tell("Waiting for X11 programs of the session to end; ^C ends them.")
        elif not self._options.fork_after_authentication:
            self._loop.call_later(X11_SECONDS, self._leave_programs)

    def _leave_programs(self) -> None:
        if not self._is_shared:
            _log.debug("X11 programs of the session are left")
            self._loop.stop()

    @property
    def _in_use(self) -> bool:
        """Whether X11 programs, forwarded connections or other clients need the connection."""
        return bool(self._is_shared or (self._x11 is not None and self._x11.programs))

    @property
    def _is_shared(self) -> bool:
        """Whether forwarded connections or other clients still need the connection."""
        return bool(
            (self._forwards is not None and self._forwards.connections)
            or (self._master is not None and self._master.sessions)
        )

    @property
    def _has_no_use(self) -> bool:
        """Whether a master without a use of its own has no clients, and takes no more (-O stop)."""
        own = self._session or self._stdio_forward or self._tunnel
        return not own and self._master is not None and self._master.is_left

    def _share(self, control: "ControlSocket") -> None:
        """Lets other clients use the connection."""
        from .control_master import ControlMaster

        options = self._options
        self._master = ControlMaster(
            control,
            self._driver,
            self._client,
            self._x11_session,
            options.host,
            options.control_master in ("ask", "autoask"),
            self._leave_when_over,
            self._loop.stop,
        )
        self._leave_when_over()

    def _idle(self) -> None:
        prompts.tell(f"Idle for {self._options.idle_timeout} s.")
        self._failed = True
        self._loop.stop()

    def _end_by(self, number: int) -> None:
        _log.info("killed by signal %d", number)
        self._failed = True
        self._loop.stop()

    def _silent(self) -> None:
        prompts.tell(f"Timeout, server {self._options.host} not responding.")
        self._failed = True
        self._loop.stop()


def _go_to_background() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
