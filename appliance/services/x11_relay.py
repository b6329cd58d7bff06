"""Programs of a forwarded display whose round trips are hidden, at the server's end.

    program -- socket -- Relay -- x11 channel -- client -- display
                           |
               Foreknown -- x11 channel of its own

The first program's channel shows how long a round trip takes. Where that is long, questions are
asked over a channel of their own at once, and the program's requests wait until they are answered.
Nothing of this has a way to fail that a program would see: it goes on without what is not known.
"""

import logging
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from ..aio.driver import Driver
from ..aio.loop import Timer
from ..errors import MalformedMessage
from ..ssh.channels import PACKET, Channel, ChannelHandler
from ..wire.codec import Buffer
from ..wire.forward import X11, X11Open
from ..wire.session import X11Request
from ..wire.x11 import SetUpRequest, read_set_up
from ..x11.foreknown import Foreknown
from ..x11.knowledge import Knowledge
from ..x11.relay import HELD, Relay
from .base import X11_WINDOW
from .forward import Offered

_log = logging.getLogger(__name__)

# Our own choices
LONG: Final = 0.010  # seconds: a round trip that is worth hiding
PATIENCE: Final = 3.0  # seconds that a program waits for what is asked
WAITING: Final = 4096  # bytes of requests that wait; PuTTY's window has 16 KiB
UNREAD: Final = 4 * X11_WINDOW  # bytes of answers that a program does not take


class _State(Enum):
    """What is known of the line, and of the X server behind it."""

    NEW = auto()
    ASKING = auto()
    READY = auto()  # all that could be asked is answered
    OFF = auto()  # programs are passed through


class X11Relays:
    """The relays of one session's programs, which share what is known of their X server."""

    def __init__(self, driver: Driver, request: X11Request, mode: str) -> None:
        """``mode``: auto, on or off."""
        self.driver = driver
        self.knowledge = Knowledge()
        cookie = bytes.fromhex(request.authentication_cookie.decode())  # checked before
        self._authorization = request.authentication_protocol, cookie
        self._state = _State.OFF if mode == "off" or request.single_connection else _State.NEW
        self._is_forced = mode == "on"
        self._asking: _Asking | None = None
        self._patience: Timer | None = None
        self._waiting: list[Callable[[], None]] = []
        self._programs: set[ChannelHandler] = set()
        self._is_over = False  # the session is

    @property
    def is_on(self) -> bool:
        """Whether programs have relays."""
        return self._state in (_State.ASKING, _State.READY) and self.knowledge.is_valid

    def began(self, program: ChannelHandler) -> None:
        """Takes note of a program."""
        self._programs.add(program)

    def ended(self, program: ChannelHandler) -> None:
        """Takes note that a program is gone."""
        self._programs.discard(program)
        self._close_if_over()

    def measured(self, round_trip: float) -> None:
        """Takes the time that the first channel took to be opened, in seconds."""
        if self._state is not _State.NEW:
            return
        if not self._is_forced and round_trip < LONG:
            self._state = _State.OFF
            return
        _log.debug("X11: a round trip takes %.1f ms, and will be hidden", round_trip * 1000)
        self._state = _State.ASKING
        self._asking = _Asking(self, SetUpRequest("<", 11, 0, *self._authorization).encode())
        opening = X11Open("127.0.0.1", 0).encode()
        channel = self.driver.connection.open_channel(X11, opening, self._asking)
        self._asking.channel = channel
        self._patience = self.driver.loop.call_later(PATIENCE, self.ready)

    def when_ready(self, release: Callable[[], None]) -> bool:
        """Returns whether a program must wait; ``release`` is called when it need not any more."""
        if self._state is not _State.ASKING:
            return False
        self._waiting.append(release)
        return True

    def ready(self) -> None:
        """Lets the programs go on that wait."""
        if self._state is _State.ASKING:
            self._state = _State.READY
        if self._patience is not None:
            self._patience.cancel()
        waiting, self._waiting = self._waiting, []
        for release in waiting:
            release()

    def lost(self) -> None:
        """Forgets everything: the X server may be another one from now on."""
        self._asking = None
        self.knowledge.end()
        self.ready()

    def session_over(self) -> None:
        """Ends with the last program from now on."""
        self._is_over = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._is_over and not self._programs and self._asking is not None:
            self._asking.close()


class _Asking(ChannelHandler):
    """The channel of ``Foreknown``."""

    def __init__(self, relays: X11Relays, set_up: bytes) -> None:
        self.channel: Channel | None = None
        self._relays = relays
        self._set_up = set_up
        self._foreknown = Foreknown(relays.knowledge)
        self._unsent = bytearray()

    def opened(self, type_data: bytes) -> None:
        self._send([self._set_up, *self._foreknown.begin()])

    def data(self, view: memoryview) -> None:
        assert self.channel is not None
        try:
            pieces = self._foreknown.from_server(bytes(view))
        except MalformedMessage:
            self.close()
            return
        self.channel.consume(len(view))
        self._send(pieces)
        if self._foreknown.is_ready:
            self._relays.ready()

    def extended_data(self, code: int, view: memoryview) -> None:
        assert self.channel is not None
        self.channel.consume(len(view))

    def _send(self, pieces: list[Buffer]) -> None:
        for piece in pieces:
            self._unsent += piece
        self.resume()

    def resume(self) -> None:
        channel = self.channel
        assert channel is not None
        while self._unsent and (room := channel.sendable()):
            channel.send(bytes(self._unsent[:room]))
            del self._unsent[:room]
        self._relays.driver.flush()

    def eof(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; what is known ends with it."""
        if self.channel is not None:
            self.channel.close()
            self._relays.driver.flush()
        self._relays.lost()

    def closed(self) -> None:
        self._relays.lost()


class X11Program(Offered):
    """A program's connection, which a channel is opened for."""

    def __init__(
        self, sock: socket.socket, driver: Driver, offered: set[ChannelHandler], relays: X11Relays
    ) -> None:
        super().__init__(sock, driver, offered)
        self._transform = self._from_program
        self._relays = relays
        self._relay: Relay | None = None
        self._set_up: bytearray | None = bytearray()
        self._held: bytearray | None = None  # requests that wait
        self._began = driver.loop.time()
        relays.began(self)

    def join(self, channel: Channel) -> None:
        channel.resize(X11_WINDOW, PACKET)
        super().join(channel)
        channel.overhead = WAITING + HELD  # what may be held, and go with later bytes

    def opened(self, type_data: bytes) -> None:
        self._relays.measured(self._relays.driver.loop.time() - self._began)
        super().opened(type_data)

    def _from_program(self, data: bytes) -> bytes:
        if self._set_up is not None:
            return self._greet(data)
        if self._held is None:
            return self._pass_on(data)
        self._held += data
        if len(self._held) > WAITING:
            held, self._held = self._held, None
            return self._pass_on(bytes(held))
        return b""

    def _greet(self, data: bytes) -> bytes:
        """Passes the set-up request on, and decides whether there is a relay behind it."""
        set_up = self._set_up
        assert set_up is not None
        set_up += data
        try:
            found = read_set_up(set_up)
        except MalformedMessage:
            self._set_up = None
            return data
        if found is None:
            return data
        request, size = found
        rest = bytes(set_up[size:])
        self._set_up = None
        first = data[: len(data) - len(rest)]
        if request.byte_order == "<" and self._relays.is_on:
            self._relay = Relay(self._relays.knowledge)
            if self._relays.when_ready(self._go_on):
                self._held = bytearray(rest)
                return first
        return first + self._pass_on(rest)

    def _pass_on(self, data: bytes) -> bytes:
        if self._relay is None or not data:
            return data
        try:
            pieces, answers = self._relay.from_program(data)
        except MalformedMessage as error:
            _log.debug("X11: a program breaks the protocol: %s", error)
            self._source.stop()
            self._broken()
            return b""
        self._to_program(answers, 0)
        return b"".join(bytes(piece) for piece in pieces)

    def _go_on(self) -> None:
        held, self._held = self._held, None
        if held and not self._closed:
            self._channel.send(self._pass_on(bytes(held)))
            self._driver.flush()

    def data(self, view: memoryview) -> None:
        if self._relay is None:
            super().data(view)
        else:
            self._to_program(self._relay.from_server(bytes(view)), len(view))

    def _to_program(self, told: bytes, received: int) -> None:
        """Writes to the program; so many bytes of the channel were received for it."""
        self._channel.consume(received - len(told))  # the sink counts what it has written
        with memoryview(told) as view:
            self._sink.write(view)
        if self._sink.waiting > UNREAD:
            self._source.stop()
            self._broken()

    def _release(self) -> None:
        super()._release()
        if self._relay is not None:
            _log.debug(
                "X11: a program ended: %d requests, %d round trips hidden, %d left, %d mistaken",
                *self._relay.counts,
            )
        self._relays.ended(self)
