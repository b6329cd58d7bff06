"""The server's forwards: connections that the client asks for, and ports that it asks us to
listen on (RFC 4254 section 7, OpenSSH PROTOCOL 2.4).

Permissions are not decided here: the privileged side refuses, or returns a socket that it made as
the user.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Final

from ..aio.connecting import Attempt
from ..aio.driver import Driver
from ..aio.listening import ListeningSocket
from ..log import harmless
from ..ssh.channels import Channel, ChannelHandler
from ..wire.forward import (
    AUTH_AGENT,
    CANCEL_STREAMLOCAL_FORWARD,
    CANCEL_TCPIP_FORWARD,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
    STREAMLOCAL_FORWARD,
    TCPIP_FORWARD,
    X11,
    BoundPort,
    DirectStreamlocal,
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
    StreamlocalForward,
    TcpipForward,
    X11Open,
)
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED, CONNECT_FAILED
from ..wire.session import X11Request
from .base import ForwardPrivileges, Listening, Refused
from .forward import Arriving, Offered, originator
from .x11_relay import X11Program, X11Relays
from .x11_server import X11Display

_log = logging.getLogger(__name__)

# Our own choice
OFFERED_LIMIT: Final = 200  # unanswered channels; further connections are closed at once

_Key = tuple[str, int] | bytes  # the requested address and the port, or a path


class ForwardServer:
    """The forwards of one connection; owns its listeners and their sockets."""

    def __init__(self, driver: Driver, privileges: ForwardPrivileges) -> None:
        self._driver = driver
        self._privileges = privileges
        self._listeners: dict[_Key, tuple[int, ListeningSocket]] = {}
        self._agent: ListeningSocket | None = None
        self._agent_refusal: Refused | None = None  # kept: listen_agent is called only once
        self._offered: set[ChannelHandler] = set()  # channels that the client has not answered
        self.x11_relay = "auto"  # whether the round trips of X11 programs are hidden

    # -- the client asks us to connect -------------------------------------------------

    def open_tcpip(self, channel: Channel, type_data: bytes) -> None:
        """Connects to a TCP port for a direct-tcpip channel."""
        wanted = DirectTcpip.decode(type_data)
        place = f"{harmless(wanted.host)}:{wanted.port}"
        self._open(channel, place, lambda: self._privileges.connect(wanted.host, wanted.port))

    def open_streamlocal(self, channel: Channel, type_data: bytes) -> None:
        """Connects to a Unix-domain socket for a direct-streamlocal channel."""
        path = DirectStreamlocal.decode(type_data).path
        place = harmless(path.decode(errors="replace"))
        self._open(channel, place, lambda: self._privileges.connect_local(path))

    def _open(self, channel: Channel, place: str, connect: Callable[[], Attempt]) -> None:
        try:
            attempt = connect()
        except Refused as refusal:
            _log.debug("forward to %s refused: %s", place, refusal)
            channel.reject(ADMINISTRATIVELY_PROHIBITED, str(refusal))
            return
        except OSError as error:
            channel.reject(CONNECT_FAILED, str(error.strerror))
            return

        def say(why: str) -> None:
            _log.debug("forward to %s %s", place, f"failed: {why}" if why else "opened")

        Arriving(channel, self._driver, attempt, _forgotten, say)

    # -- the client asks us to listen --------------------------------------------------

    def global_request(self, name: str, data: bytes) -> bytes | None:
        """Returns the answer to one of REQUESTS; None refuses it."""
        try:
            return _REQUESTS[name](self, data)
        except Refused as refusal:
            _log.debug("%s refused: %s", name, refusal)
            return None

    def _forward_tcpip(self, data: bytes) -> bytes:
        wanted = TcpipForward.decode(data)
        key = (wanted.address, wanted.port)
        if wanted.port and key in self._listeners:
            raise Refused("this is listened on already")
        listening = self._privileges.listen(wanted.address, wanted.port)
        port = listening.port

        def accepted(sock: socket.socket) -> None:
            opening = ForwardedTcpip(wanted.address, port, *originator(sock))
            self._accepted(sock, FORWARDED_TCPIP, opening.encode())

        self._listen((wanted.address, port), listening, accepted)
        return b"" if wanted.port else BoundPort(port).encode()

    def _forward_streamlocal(self, data: bytes) -> bytes:
        path = StreamlocalForward.decode(data).path
        if path in self._listeners:
            raise Refused("this is listened on already")

        def accepted(sock: socket.socket) -> None:
            self._accepted(sock, FORWARDED_STREAMLOCAL, ForwardedStreamlocal(path).encode())

        self._listen(path, self._privileges.listen_local(path), accepted)
        return b""

    def _listen(
        self, key: _Key, listening: Listening, accepted: Callable[[socket.socket], None]
    ) -> None:
        listener = ListeningSocket(self._driver.loop, listening.sockets, accepted)
        self._listeners[key] = (listening.number, listener)

    def forward_agent(self) -> None:
        """Lets programs of later sessions reach the client's agent; raises Refused."""
        if self._agent_refusal is not None:
            raise self._agent_refusal
        if self._agent is None:

            def accepted(sock: socket.socket) -> None:
                self._accepted(sock, AUTH_AGENT, b"")

            try:
                sock = self._privileges.listen_agent()
            except Refused as refusal:
                self._agent_refusal = refusal
                raise
            self._agent = ListeningSocket(self._driver.loop, [sock], accepted)

    def forward_x11(self, request: X11Request) -> X11Display:
        """Makes a display for a session; raises Refused."""
        listening = self._privileges.listen_x11(request)
        relays = X11Relays(self._driver, request, self.x11_relay)

        def program(
            sock: socket.socket, driver: Driver, offered: set[ChannelHandler]
        ) -> X11Program:
            return X11Program(sock, driver, offered, relays)

        def accepted(sock: socket.socket) -> None:
            self._accepted(sock, X11, X11Open(*originator(sock)).encode(), program)

        def over(number: int) -> None:
            self._privileges.close_x11(number)
            relays.session_over()

        return X11Display(self._driver.loop, listening, request.single_connection, accepted, over)

    def _accepted(
        self,
        sock: socket.socket,
        channel_type: str,
        opening: bytes,
        splice_of: Callable[[socket.socket, Driver, set[ChannelHandler]], Offered] = Offered,
    ) -> None:
        if len(self._offered) >= OFFERED_LIMIT:
            sock.close()
            return
        splice = splice_of(sock, self._driver, self._offered)
        splice.join(self._driver.connection.open_channel(channel_type, opening, splice))
        self._driver.flush()

    def _cancel_tcpip(self, data: bytes) -> bytes:
        wanted = TcpipForward.decode(data)
        return self._cancel((wanted.address, wanted.port))

    def _cancel_streamlocal(self, data: bytes) -> bytes:
        return self._cancel(StreamlocalForward.decode(data).path)

    def _cancel(self, key: _Key) -> bytes:
        if key not in self._listeners:
            raise Refused("this is not listened on")
        number, listener = self._listeners.pop(key)
        listener.close()
        self._privileges.stop_listening(number)
        return b""


def _forgotten(handler: ChannelHandler) -> None:
    """Does nothing when a connection ends: only the limit of channels counts connections."""


_REQUESTS: Final[Mapping[str, Callable[[ForwardServer, bytes], bytes]]] = {
    TCPIP_FORWARD: ForwardServer._forward_tcpip,
    CANCEL_TCPIP_FORWARD: ForwardServer._cancel_tcpip,
    STREAMLOCAL_FORWARD: ForwardServer._forward_streamlocal,
    CANCEL_STREAMLOCAL_FORWARD: ForwardServer._cancel_streamlocal,
}
REQUESTS: Final = frozenset(_REQUESTS)
