"""X11 forwarding at the display's end (RFC 4254 section 6.3).

Each session that asks for it gets a fake cookie, which goes to the server; a program there shows
the cookie in the first bytes of its x11 channel, and so tells which session it belongs to and what
it may do. A channel is connected to the display only after that.

    x11 channel -> set-up request read -> display connected -> filtered both ways
                -> turned away with an answer that toolkits print
"""

import logging
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from ..aio.connecting import Attempt, Connecting, connect_address, connect_local
from ..aio.driver import Driver
from ..aio.loop import Timer
from ..aio.name_connector import NameConnector
from ..aio.process_name import be_called_ssh
from ..errors import MalformedMessage
from ..ssh.channels import PACKET, Channel, ChannelHandler
from ..wire.codec import Buffer
from ..wire.forward import X11, X11Open
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED, UNKNOWN_CHANNEL_TYPE
from ..wire.session import X11Request
from ..wire.x11 import COOKIE_PROTOCOL
from ..x11.display import Display
from ..x11.filter import EARLY_LIMIT, HELD_LIMIT, Filter
from ..x11.set_up import COOKIE_LENGTH, Authorization, SetUp, SetUpState, authorized
from .base import X11_WINDOW
from .forward import SocketSplice

_log = logging.getLogger(__name__)

# Our own choices
SET_UP_SECONDS: Final = 30.0  # for a program's set-up request
PROGRAMS_LIMIT: Final = 256  # of one connection at a time: X servers take as many
CONNECT_SECONDS: Final = 10.0  # for a display of another host to answer


class X11Settings(NamedTuple):
    """The display of a connection, and what its sessions' programs may do there."""

    display: Display
    authorization: Authorization
    trusted: bool  # whether a session may ask for more than the filter allows
    timeout: int  # seconds in which programs of an untrusted session may connect; 0: no limit
    clipboard: str  # none, out, in, both: for programs of an untrusted session


class X11Session:
    """One session's right to the display; made by ``X11Client.session`` only."""

    def __init__(self, client: "X11Client", trusted: bool) -> None:
        self._client = client
        self.trusted = trusted
        length = len(client.settings.authorization.data) or COOKIE_LENGTH
        self.cookie = os.urandom(length)
        self._expires = float("inf")

    @property
    def request(self) -> bytes:
        """The data of the session's x11-req."""
        screen = self._client.settings.display.screen
        cookie = self.cookie.hex().encode()
        return X11Request(False, COOKIE_PROTOCOL, cookie, screen).encode()

    def granted(self) -> None:
        """Lets the session's programs connect, as the server has granted the request."""
        self._client.sessions[self.cookie] = self
        timeout = self._client.settings.timeout
        if timeout and not self.trusted:
            self._expires = self._client.driver.loop.time() + timeout

    def end(self) -> None:
        """Refuses programs that connect later; those that are connected go on."""
        self._client.sessions.pop(self.cookie, None)

    @property
    def is_expired(self) -> bool:
        """Whether ForwardX11Timeout has passed."""
        return self._client.driver.loop.time() >= self._expires


class X11Client:
    """The display as the programs at the server reach it, over one connection."""

    def __init__(self, settings: X11Settings, driver: Driver, idle: Callable[[], None]) -> None:
        """``idle`` is called when the last program is gone."""
        self.settings = settings
        self.driver = driver
        self.sessions: dict[bytes, X11Session] = {}  # by their fake cookies
        self._idle = idle
        self._programs: set[ChannelHandler] = set()
        self._let_in: set[ChannelHandler] = set()  # those that have shown a cookie
        self._by_name = NameConnector(lambda: None)
        self._is_named = False

    @property
    def programs(self) -> int:
        """Returns how many programs are connected, or being so."""
        return len(self._programs)

    def session(self, trusted: bool) -> X11Session:
        """Returns a session's right to the display, to be requested from the server."""
        return X11Session(self, trusted and self.settings.trusted)

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        """Takes an x11 channel if a session has asked for it; rejects others."""
        if channel.channel_type != X11:
            channel.reject(UNKNOWN_CHANNEL_TYPE, "not wanted here")
            return
        opening = X11Open.decode(type_data)
        if not self.sessions:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "this was not asked for")
            return
        _log.debug("X11: a program, %s", opening)
        self._programs.add(_Arriving(channel, self))

    def let_in(self, handler: ChannelHandler) -> bool:
        """Notes a program that has shown a cookie; returns whether there is room for it."""
        if len(self._let_in) >= PROGRAMS_LIMIT:
            return False
        self._let_in.add(handler)
        return True

    def connect(self) -> Attempt:
        """Begins to connect to the display; raises OSError."""
        if not self._is_named:  # before the X server looks at us
            be_called_ssh()
            self._is_named = True
        display = self.settings.display
        *earlier, last = display.paths or (b"",)
        for path in earlier:
            try:
                return connect_local(path)
            except OSError as error:
                _log.debug("X11: %r: %s", path, error.strerror)
        if last:
            return connect_local(last)
        attempt = connect_address(display.host, display.port)
        return attempt or self._by_name.connect(display.host, display.port)

    def over(self, handler: ChannelHandler) -> None:
        """Forgets a program that is gone."""
        self._programs.discard(handler)
        self._let_in.discard(handler)
        if not self._programs:
            self._idle()

    def close(self) -> None:
        """Ends what helps to connect; programs that are connected go on."""
        self._by_name.close()


class _Arriving(ChannelHandler):
    """A program's channel, until the program is connected to the display."""

    def __init__(self, channel: Channel, client: X11Client) -> None:
        self._channel = channel
        self._client = client
        self._set_up: SetUp[X11Session] = SetUp(client.sessions)
        self._connecting: Connecting | None = None
        self._early = bytearray()  # that came behind the request
        self._input_over = False
        self._patience: Timer = client.driver.loop.call_later(
            SET_UP_SECONDS, self._turn_away, "it did not say who it is in time"
        )
        channel.resize(X11_WINDOW, PACKET)
        channel.accept(self)

    def data(self, view: memoryview) -> None:
        if self._set_up.state is not SetUpState.READING:
            self._early += view
            if len(self._early) > EARLY_LIMIT:
                self._turn_away("it sends requests before the display has answered")
            return
        state = self._set_up.receive(view)
        if state is SetUpState.REFUSED:
            self._turn_away(f"{self._set_up.why}; log in again with -X, and not by su or sudo")
        elif state is SetUpState.PASSED:
            self._channel.consume(len(view) - len(self._set_up.rest))
            self._early += self._set_up.rest
            self._let_in()
        else:
            self._channel.consume(len(view))

    def _let_in(self) -> None:
        session = self._set_up.grant
        assert session is not None
        if session.is_expired:
            self._turn_away("ForwardX11Timeout has passed; log in again to start programs")
            return
        if not self._client.let_in(self):
            self._turn_away("there are too many X11 programs already")
            return
        self._patience.cancel()
        loop = self._client.driver.loop
        self._patience = loop.call_later(CONNECT_SECONDS, self._failed, "it does not answer")
        try:
            attempt = self._client.connect()
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        self._connecting = Connecting(loop, attempt, self._connected, self._failed)

    def _connected(self, sock: socket.socket) -> None:
        self._patience.cancel()
        session, client = self._set_up.grant, self._client
        assert session is not None
        request = self._set_up.request
        first = authorized(request, client.settings.authorization)
        try:
            sock.sendall(first)  # a new socket has room for it
        except OSError as error:
            sock.close()
            self._failed(error.strerror or str(error))
            return
        filtered = Filter(request.byte_order, client.settings.clipboard, session.trusted)
        splice = _Program(sock, client.driver, lambda _: client.over(self), filtered)
        splice.join(self._channel)
        self._channel.handler = splice
        splice.opened(b"")
        with memoryview(self._early) as early:
            splice.data(early)
        if self._input_over:
            splice.eof()
        client.driver.flush()

    def _failed(self, why: str) -> None:
        self._turn_away(f"the display cannot be reached: {why}")

    def _turn_away(self, why: str) -> None:
        """Answers the program, and closes its channel."""
        self._stop()
        _log.debug("X11: a program was turned away: %s", why)
        answer = self._set_up.failed(f"culvert: {why}")[: self._channel.sendable()]
        if answer:
            self._channel.send(answer)
        self._channel.handler = _TurnedAway()
        self._channel.eof()
        self._channel.close()
        self._client.driver.flush()
        self._client.over(self)

    def _stop(self) -> None:
        self._patience.cancel()
        if self._connecting is not None:
            self._connecting.cancel()

    def eof(self) -> None:
        self._input_over = True
        if self._set_up.state is SetUpState.READING:
            self._turn_away("its first bytes are no request")

    def closed(self) -> None:
        self._stop()
        self._client.over(self)


class _TurnedAway(ChannelHandler):
    """A channel that is closed, and whose program may not know it yet."""


class _Program(SocketSplice):
    """A program that is connected to the display; the filter sees all that both say."""

    def __init__(
        self,
        sock: socket.socket,
        driver: Driver,
        ended: Callable[[ChannelHandler], None],
        filtered: Filter,
    ) -> None:
        super().__init__(sock, driver, ended)
        self._filter = filtered
        self._transform = self._from_server

    def join(self, channel: Channel) -> None:
        super().join(channel)
        channel.overhead = HELD_LIMIT  # what the filter may hold, and return with later bytes

    def data(self, view: memoryview) -> None:
        self._pass_on(self._filter.from_client, view)

    def _from_server(self, data: bytes) -> bytes:
        passed = self._filter.from_server(data)
        if self._filter.has_early:
            self._pass_on(lambda _: self._filter.early(), b"")
        return passed

    def _pass_on(self, filtered: Callable[[Buffer], list[Buffer]], data: Buffer) -> None:
        before = self._filter.inserted
        try:
            pieces = filtered(data)
        except MalformedMessage as error:
            _log.debug("X11: a program breaks the protocol: %s", error)
            self._source.stop()
            self._broken()
            return
        for piece in pieces:
            self._sink.write(memoryview(piece))
        self._channel.consume(before - self._filter.inserted)  # the peer did not send these bytes
