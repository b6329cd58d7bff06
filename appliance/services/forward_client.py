"""The client's forwards (RFC 4254 section 7, OpenSSH PROTOCOL 2.4).

The client listens, and the server connects to the destination (-L, -D); or the server listens,
and the client connects (-R).
"""

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from ..aio.addresses import is_address, look_up
from ..aio.connecting import Attempt, Connecting, connect_address, connect_local
from ..aio.driver import Driver
from ..aio.listening import ListeningSocket, LocalListener, bind_addresses, listen
from ..aio.loop import Loop
from ..aio.name_connector import NameConnector
from ..config.forwards import REMOTE, Forward, Place, TcpPlace
from ..errors import MalformedMessage
from ..log import harmless
from ..ssh.channels import Channel, ChannelHandler
from ..wire.codec import Record
from ..wire.forward import (
    AUTH_AGENT,
    CANCEL_STREAMLOCAL_FORWARD,
    CANCEL_TCPIP_FORWARD,
    DIRECT_STREAMLOCAL,
    DIRECT_TCPIP,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
    STREAMLOCAL_FORWARD,
    TCPIP_FORWARD,
    BoundPort,
    DirectStreamlocal,
    DirectTcpip,
    ForwardedStreamlocal,
    ForwardedTcpip,
    StreamlocalForward,
    TcpipForward,
)
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED, CONNECT_FAILED
from ..wire.socks import Dialogue
from .forward import Arriving, SocketSplice, originator
from .forwarded_agent import ArrivingAgent

_log = logging.getLogger(__name__)

# Our own choices
SOCKS_SECONDS: Final = 60  # for a SOCKS client to name its destination
_SOCKS_READ: Final = 4096  # bytes
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close with a reset instead of an end

Done = Callable[[str, int], None]  # gets '' or why it failed, and the allocated port or 0


class ForwardSettings(NamedTuple):
    """The settings of ssh_config(5) that concern all forwards."""

    gateway_ports: bool = False
    stream_local_bind_mask: int = 0o177
    stream_local_bind_unlink: bool = False
    agent: str = ""  # path of the agent that programs at the server may use; '': none
    permit_remote_open: tuple[tuple[str, int], ...] | None = None  # None: any place
    refusal: str = ""  # why all forwards are refused; '': they are not


class ForwardClient:
    """The forwards of one connection; owns the listening sockets and their files."""

    def __init__(
        self,
        settings: ForwardSettings,
        driver: Driver,
        say: Callable[[str], None],
        idle: Callable[[], None],
    ) -> None:
        """``idle`` is called when the last forwarded connection is over."""
        self._settings = settings
        self._driver = driver
        self._say = say
        self._idle = idle
        self._listeners: dict[Place, tuple[ListeningSocket, LocalListener | None]] = {}
        self._remote: dict[TcpPlace | bytes, Forward] = {}  # as the server names them
        self._connections: set[ChannelHandler] = set()
        self._by_name = NameConnector(lambda: None)

    @property
    def connections(self) -> int:
        """Returns how many forwarded connections are open or being opened."""
        return len(self._connections)

    def add(self, forward: Forward, done: Done) -> None:
        """Begins to forward."""
        if self._settings.refusal:
            done(self._settings.refusal, 0)
            return
        if forward.direction == REMOTE:
            self._add_remote(forward, done)
            return
        try:
            self._add_local(forward)
        except OSError as error:
            done(f"cannot listen on {forward.listen}: {error.strerror}", 0)
        else:
            done("", 0)

    def cancel(self, forward: Forward, done: Done) -> None:
        """Stops forwarding new connections; the target of ``forward`` does not matter."""
        if forward.direction == REMOTE:
            self._cancel_remote(forward, done)
        elif forward.listen in self._listeners:
            self._close(*self._listeners.pop(forward.listen))
            done("", 0)
        else:
            done(f"nothing listens on {forward.listen}", 0)

    def close(self) -> None:
        """Stops listening; connections that exist go on."""
        self._by_name.close()
        for listener, file in self._listeners.values():
            self._close(listener, file)
        self._listeners.clear()

    @staticmethod
    def _close(listener: ListeningSocket, file: LocalListener | None) -> None:
        listener.close()
        if file is not None:
            file.remove()

    # -- the client listens ------------------------------------------------------------

    def _add_local(self, forward: Forward) -> None:
        if forward.listen in self._listeners:
            raise OSError(0, "it is forwarded already")
        settings = self._settings
        file = None
        if isinstance(forward.listen, str):
            mask, unlink = settings.stream_local_bind_mask, settings.stream_local_bind_unlink
            file = LocalListener(os.fsencode(forward.listen), mask, unlink)
            sockets = [file.socket]
        else:
            host, port = forward.listen
            gateway = "yes" if settings.gateway_ports and host is None else "clientspecified"
            addresses = bind_addresses("localhost" if host is None else host, gateway)
            sockets = listen([_address(each) for each in addresses], port)

        def accepted(sock: socket.socket) -> None:
            if forward.target is None:
                _SocksClient(sock, self._driver.loop, self._connect)
            else:
                self._connect(sock, forward.target)

        self._listeners[forward.listen] = (
            ListeningSocket(self._driver.loop, sockets, accepted),
            file,
        )

    def _connect(self, sock: socket.socket, target: Place, first: bytes = b"") -> None:
        """Asks the server to connect to ``target`` for the program at ``sock``.

        ``first`` is sent before the bytes that are read from ``sock``.
        """
        opening: Record
        if isinstance(target, str):
            kind, opening = DIRECT_STREAMLOCAL, DirectStreamlocal(os.fsencode(target))
        else:
            assert target.host is not None
            kind = DIRECT_TCPIP
            opening = DirectTcpip(target.host, target.port, *originator(sock))
        leaving = _Leaving(sock, self._driver, self._over, self._say, first)
        self._connections.add(leaving)
        leaving.join(self._driver.connection.open_channel(kind, opening.encode(), leaving))
        self._driver.flush()

    def _over(self, handler: ChannelHandler) -> None:
        self._connections.discard(handler)
        if not self._connections:
            self._idle()

    # -- the server listens ------------------------------------------------------------

    def _add_remote(self, forward: Forward, done: Done) -> None:
        listen = forward.listen

        def answered(data: bytes | None) -> None:
            if data is None:
                where = f"path {listen}" if isinstance(listen, str) else f"port {listen.port}"
                done(f"remote port forwarding failed for listen {where}", 0)
                return
            allocated = 0
            if isinstance(listen, str):
                self._remote[os.fsencode(listen)] = forward
            else:
                allocated = 0 if listen.port else BoundPort.decode(data).port
                self._remote[TcpPlace(_asked_for(listen), allocated or listen.port)] = forward
            done("", allocated)

        if isinstance(listen, str):
            name, wanted = STREAMLOCAL_FORWARD, StreamlocalForward(os.fsencode(listen)).encode()
        else:
            name = TCPIP_FORWARD
            wanted = TcpipForward(_asked_for(listen), listen.port).encode()
        self._driver.connection.global_request(name, wanted, answered)
        self._driver.flush()

    def _cancel_remote(self, forward: Forward, done: Done) -> None:
        listen = forward.listen
        key: TcpPlace | bytes
        if isinstance(listen, str):
            key = os.fsencode(listen)
            name, wanted = CANCEL_STREAMLOCAL_FORWARD, StreamlocalForward(key).encode()
        else:
            key = TcpPlace(_asked_for(listen), listen.port)
            name = CANCEL_TCPIP_FORWARD
            wanted = TcpipForward(_asked_for(listen), listen.port).encode()
        if self._remote.pop(key, None) is None:
            done(f"nothing listens on {listen} of the server", 0)
            return

        def answered(data: bytes | None) -> None:
            done("the server refuses to cancel it" if data is None else "", 0)

        self._driver.connection.global_request(name, wanted, answered)
        self._driver.flush()

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        """Takes a channel that the server opens, if we asked for its forward; rejects others."""
        if channel.channel_type == AUTH_AGENT and self._settings.agent:
            self._reach(self._settings.agent, channel, ArrivingAgent)
            return
        if channel.channel_type == FORWARDED_TCPIP:
            opening = ForwardedTcpip.decode(type_data)
            forward = self._forward_to(opening.address, opening.port)
        elif channel.channel_type == FORWARDED_STREAMLOCAL:
            forward = self._remote.get(ForwardedStreamlocal.decode(type_data).path)
        else:
            forward = None
        if forward is None:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "this was not asked for")
        elif forward.target is None:
            self._connections.add(
                _RemoteSocks(
                    channel, self._driver, self._permitted, self._attempt, self._over, self._say
                )
            )
        else:
            self._reach(forward.target, channel)

    def _forward_to(self, address: str, port: int) -> Forward | None:
        """Returns the forward of this address and port.

        If the server writes the address differently, the only forward of this port counts.
        """
        exactly = self._remote.get(TcpPlace(address, port))
        if exactly is not None:
            return exactly
        found = [
            forward
            for place, forward in self._remote.items()
            if isinstance(place, TcpPlace) and place.port == port
        ]
        return found[0] if len(found) == 1 else None

    def _reach(self, target: Place, channel: Channel, arriving: type[Arriving] = Arriving) -> None:
        """Connects to a place that we reach, for a channel that the server opens."""
        try:
            attempt = self._attempt(target)
        except OSError as error:
            self._say(f"connect to {target} failed: {error.strerror}")
            channel.reject(CONNECT_FAILED, str(error.strerror))
            return

        def say(why: str) -> None:
            if why:
                self._say(f"connect to {target} failed: {why}")

        self._connections.add(arriving(channel, self._driver, attempt, self._over, say))

    def _attempt(self, target: Place) -> Attempt:
        """Begins to connect to a place that we reach; raises OSError."""
        if isinstance(target, str):
            return connect_local(os.fsencode(target))
        assert target.host is not None
        attempt = connect_address(target.host, target.port)
        return attempt or self._by_name.connect(target.host, target.port)

    def _permitted(self, place: TcpPlace) -> bool:
        """Whether the server may choose this place (ssh_config(5), PermitRemoteOpen)."""
        rules = self._settings.permit_remote_open
        return rules is None or any(
            host in ("*", place.host) and port in (0, place.port) for host, port in rules
        )


class _Leaving(SocketSplice):
    """A connection that the client accepted, which the server passes on to its target."""

    def __init__(
        self,
        sock: socket.socket,
        driver: Driver,
        ended: Callable[[ChannelHandler], None],
        say: Callable[[str], None],
        first: bytes,
    ) -> None:
        super().__init__(sock, driver, ended)
        self._say = say
        self._first = first

    def opened(self, type_data: bytes) -> None:
        self.resume()

    def resume(self) -> None:
        while self._first and (room := self._channel.sendable()):  # the window may be small
            self._channel.send(self._first[:room])
            self._first = self._first[room:]
        if not self._first:
            super().resume()

    def open_failed(self, reason_code: int, description: str) -> None:
        self._say(f"channel {self._channel.number}: open failed: {harmless(description)}")
        # The program here believes that it is connected: a reset tells it of the failure, which
        # a normal close would not.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class _SocksClient:
    """A connection to a port of -D, until the SOCKS client names its destination.

    The client is told at once that it is connected, as OpenSSH does: it then sends its first
    data a round trip earlier. If the server cannot connect, the client's connection is reset.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        wanted: Callable[[socket.socket, Place, bytes], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._wanted = wanted
        self._dialogue = Dialogue()
        self._patience = loop.call_later(SOCKS_SECONDS, self._close)
        loop.watch_reader(sock.fileno(), self._on_readable)
        loop.call_soon(self._on_readable)  # the client has usually sent its request by now

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_SOCKS_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        try:
            self._dialogue.receive(data)
        except MalformedMessage as error:
            _log.debug("SOCKS: %s", error)
            _tell(self._sock, self._dialogue.reply)
            self._close()
            return
        if self._dialogue.place is None:
            _tell(self._sock, self._dialogue.reply)
            return
        self._patience.cancel()
        self._loop.watch_reader(self._sock.fileno(), None)
        self._wanted(self._sock, TcpPlace(*self._dialogue.place), self._dialogue.rest)
        _tell(self._sock, self._dialogue.reply + self._dialogue.answer(True))

    def _close(self) -> None:
        self._patience.cancel()
        self._loop.watch_reader(self._sock.fileno(), None)
        self._sock.close()


class _RemoteSocks(ChannelHandler):
    """A connection to a port of -R without a target, until we have connected to the destination.

    The destination is named in SOCKS by the program at the server.
    """

    def __init__(
        self,
        channel: Channel,
        driver: Driver,
        permitted: Callable[[TcpPlace], bool],
        attempt: Callable[[TcpPlace], Attempt],
        ended: Callable[[ChannelHandler], None],
        say: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._driver = driver
        self._permitted = permitted
        self._attempt = attempt
        self._ended = ended
        self._say = say
        self._dialogue = Dialogue()
        self._connecting: Connecting | None = None
        self._early = bytearray()  # data that came while we connect
        self._patience = driver.loop.call_later(SOCKS_SECONDS, self._give_up)
        channel.accept(self)

    def _give_up(self) -> None:
        self._channel.close()
        self._driver.flush()

    def data(self, view: memoryview) -> None:
        if self._connecting is not None:
            self._early += view  # at most a window: SocketSplice gives the window back later
            return
        try:
            self._dialogue.receive(view)
        except MalformedMessage as error:
            _log.debug("SOCKS: %s", error)
            self._answer(self._dialogue.reply)
            self._channel.close()
            return
        self._channel.consume(len(view) - len(self._dialogue.rest))
        self._answer(self._dialogue.reply)
        if self._dialogue.place is not None:
            self._connect(TcpPlace(*self._dialogue.place))

    def _answer(self, data: bytes) -> None:
        if data and self._channel.sendable() >= len(data):
            self._channel.send(data)

    def _connect(self, place: TcpPlace) -> None:
        if not self._permitted(place):
            self._failed(f"{place} is not permitted (PermitRemoteOpen)")
            return
        try:
            attempt = self._attempt(place)
        except OSError as error:
            self._failed(f"connect to {place} failed: {error.strerror}")
            return

        def failed(why: str) -> None:
            self._failed(f"connect to {place} failed: {why}")

        self._connecting = Connecting(self._driver.loop, attempt, self._connected, failed)

    def _connected(self, sock: socket.socket) -> None:
        self._patience.cancel()
        self._answer(self._dialogue.answer(True))
        splice = SocketSplice(sock, self._driver, lambda _: self._ended(self))
        splice.join(self._channel)
        self._channel.handler = splice
        splice.opened(b"")
        with memoryview(self._dialogue.rest + self._early) as early:
            splice.data(early)
        self._driver.flush()

    def _failed(self, why: str) -> None:
        self._say(why)
        self._answer(self._dialogue.answer(False))
        self._channel.close()
        self._driver.flush()

    def eof(self) -> None:
        """Closes the channel: the program gave up before it was connected."""
        self._give_up()

    def closed(self) -> None:
        self._patience.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._ended(self)


def _asked_for(place: TcpPlace) -> str:
    """Returns the listen address to ask the server for; the default is localhost (ssh(1), -R)."""
    if place.host is None:
        return "localhost"
    return "" if place.host == "*" else place.host


def _address(host: str) -> str:
    """Returns the IP address of a name of this machine; raises OSError."""
    if is_address(host):
        return host
    return str(look_up(host, 0)[0][1][0])


def _tell(sock: socket.socket, data: bytes) -> None:
    """Sends a few bytes, for which a new socket has room; the client may be gone."""
    with contextlib.suppress(OSError):
        sock.send(data)
