"""Channels (RFC 4254 section 5): two flows, a window each, and a handler for the data.

A flow goes OPENING -> OPEN -> EOF -> CLOSED, or at once to CLOSED; the channel is gone
when both flows are closed.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final

from ..errors import ProtocolError
from ..wire.codec import Buffer
from ..wire.messages import (
    CHANNEL_EXTENDED_DATA_HEADER,
    ChannelClose,
    ChannelEof,
    ChannelExtendedData,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelOpenFailure,
    ChannelRequest,
    ChannelWindowAdjust,
)
from .transport import Transport

# Our own choices
PACKET: Final = 32 << 10  # bytes; as OpenSSH, and every peer can handle it

WINDOW_LIMIT: Final = 0xFFFFFFFF  # RFC 4254 section 5.2


class Flow(Enum):
    """One direction of a channel."""

    OPENING = auto()
    OPEN = auto()
    EOF = auto()
    CLOSED = auto()


_OPEN: Final = Flow.OPEN  # looking up an enum's attribute for each packet would be slow


class ChannelHandler:
    """The methods that a channel calls directly; a service overrides those that it needs."""

    def opened(self, type_data: bytes) -> None:
        """The peer confirmed a channel that we opened."""

    def open_failed(self, reason_code: int, description: str) -> None:
        """The peer refused a channel that we opened."""

    def data(self, view: memoryview) -> None:
        """Takes bytes from the peer; call ``channel.consume`` when they are handled.

        ``view`` is valid during the call, or until ``data_ended`` if ``channel.ask_data_ended``
        was called.
        """

    def late_data(self, view: memoryview) -> None:
        """Bytes that the peer sent before it learned of ``channel.close``: nobody reads them."""

    def data_ended(self) -> None:
        """Everything that arrived together is handled; called only after ``ask_data_ended``."""

    def extended_data(self, code: int, view: memoryview) -> None:
        """Takes bytes of another stream, as ``data`` does (RFC 4254 section 5.2)."""

    def eof(self) -> None:
        """The peer will send no more data."""

    def request(self, request_type: str, request_data: bytes) -> bool:
        """Handles a request of the peer; returns whether it succeeded.

        ``request_data`` is unchecked: decode it with a Record, whose MalformedMessage ends the
        connection.
        """
        return False

    def resume(self) -> None:
        """The channel may send again: ``channel.sendable`` was 0, and is so no longer."""

    def closed(self) -> None:
        """The channel is gone, or the connection is; called once."""


class Channel:
    """One channel of one connection; made by ``Channels`` only."""

    __slots__ = (
        "_channels",
        "_credit",
        "_peer_packet",
        "_transport",
        "_waiting",
        "channel_type",
        "handler",
        "inbound",
        "number",
        "outbound",
        "overhead",
        "packet",
        "receive_window",
        "recipient",
        "send_packet",
        "send_window",
        "window",
    )

    def __init__(self, channels: "Channels", number: int, channel_type: str, window: int) -> None:
        self._channels = channels
        self._transport = channels.transport
        self.number = number
        self.channel_type = channel_type
        self.handler = ChannelHandler()
        self.recipient = 0
        self.inbound = self.outbound = Flow.OPENING
        self.window = window  # bytes that we let the peer send before they are consumed
        self.receive_window = window
        self.packet = PACKET  # the largest message in either direction
        self.send_window = 0
        self.send_packet = 0
        self._peer_packet = 0
        self.overhead = 0  # bytes of the peer's window that a message takes besides its data
        self._credit = 0
        self._waiting: list[Callable[[bool], None]] = []

    # -- opening ---------------------------------------------------------------------

    def resize(self, window: int, packet: int) -> None:
        """Sets our window and largest message, in bytes; call it before the channel is open."""
        assert self.outbound is Flow.OPENING
        self.window = self.receive_window = window
        self.packet = packet
        self.send_packet = min(self._peer_packet, packet)

    def widen(self, factor: int) -> None:
        """Enlarges the window of an open channel, for bulk data over a long line."""
        more = self.window * (factor - 1)
        self.window += more
        self.receive_window += more
        self._transport.send(ChannelWindowAdjust(self.recipient, more))

    def accept(self, handler: ChannelHandler, type_data: bytes = b"") -> None:
        """Confirms a channel that the peer opened."""
        assert self.outbound is Flow.OPENING
        self.handler = handler
        self.inbound = self.outbound = Flow.OPEN
        self._transport.send(
            ChannelOpenConfirmation(
                self.recipient, self.number, self.window, self.packet, type_data
            )
        )

    def reject(self, reason_code: int, description: str) -> None:
        """Refuses a channel that the peer opened."""
        self.inbound = self.outbound = Flow.CLOSED
        self._transport.send(ChannelOpenFailure(self.recipient, reason_code, description))
        self._channels.forget(self)

    def confirmed(self, message: ChannelOpenConfirmation) -> None:
        """Handles the peer's confirmation of a channel that we opened."""
        if self.outbound is not Flow.OPENING or self.send_packet:  # set if the peer opened it
            raise ProtocolError("a channel was confirmed that is not being opened")
        self.peer_limits(
            message.sender_channel, message.initial_window_size, message.maximum_packet_size
        )
        self.inbound = self.outbound = Flow.OPEN
        self.handler.opened(message.type_data)

    def peer_limits(self, recipient: int, window: int, packet: int) -> None:
        """Keeps the number and the limits that the peer gave in its open or confirmation."""
        if packet == 0:
            raise ProtocolError("a channel with a maximum packet size of 0")
        self.recipient, self.send_window, self._peer_packet = recipient, window, packet
        self.send_packet = min(packet, self.packet)

    # -- sending ---------------------------------------------------------------------

    def sendable(self) -> int:
        """How many bytes may be sent now; at 0, ``handler.resume`` is called later."""
        if self.outbound is not _OPEN:
            return 0
        if self.send_window > self.overhead and self._transport.may_send_data():
            return self.send_window - self.overhead
        self._channels.blocked.add(self)
        return 0

    def ask_data_ended(self) -> None:
        """Requests one call of ``handler.data_ended``, after all that arrived together."""
        self._channels.receiving.add(self)

    def send(self, data: Buffer) -> None:
        """Sends at most ``sendable()`` bytes, in as many messages as they need."""
        size, packet = len(data), self.send_packet
        self.send_window -= size
        if size <= packet:
            self._transport.send_channel_data(self.recipient, (data,))
            return
        view = memoryview(data)
        pieces = [view[at : at + packet] for at in range(0, size, packet)]
        self._transport.send_channel_data(self.recipient, pieces)

    def send_batch(self, pieces: Sequence[Buffer]) -> int:
        """Sends each piece as a message of its own; drops pieces that do not fit the window.

        Returns how many were sent. For datagrams: a tunnel's packets.
        """
        window, overhead, packet = self.send_window, self.overhead, self.send_packet
        fitting = []
        for piece in pieces:
            cost = len(piece) + overhead
            if cost <= window and len(piece) <= packet:
                window -= cost
                fitting.append(piece)
        self.send_window = window
        self._transport.send_channel_data(self.recipient, fitting)
        return len(fitting)

    def send_extended(self, code: int, data: Buffer) -> None:
        """Sends at most ``send_packet`` bytes of another stream, as one message."""
        self.send_window -= len(data)
        head = CHANNEL_EXTENDED_DATA_HEADER.pack(
            ChannelExtendedData.number, self.recipient, code, len(data)
        )
        self._transport.send_payload(head + data)

    def eof(self) -> None:
        """Tells the peer that no more data will be sent."""
        if self.outbound is Flow.OPEN:
            self.outbound = Flow.EOF
            self._transport.send(ChannelEof(self.recipient))

    def close(self) -> None:
        """Closes the channel; once the peer has closed it, too, ``handler.closed`` is called."""
        if self.outbound in (Flow.OPEN, Flow.EOF):
            self.outbound = Flow.CLOSED
            self._transport.send(ChannelClose(self.recipient))
            if self.inbound is Flow.CLOSED:
                self._channels.forget(self)

    def request(
        self, request_type: str, data: bytes = b"", reply: Callable[[bool], None] | None = None
    ) -> None:
        """Sends a channel request; ``reply`` is called with its success (RFC 4254 section 5.4)."""
        if self.outbound not in (Flow.OPEN, Flow.EOF):
            return
        if reply is not None:
            self._waiting.append(reply)
        self._transport.send(ChannelRequest(self.recipient, request_type, reply is not None, data))

    # -- receiving -------------------------------------------------------------------

    def received(self, size: int) -> None:
        """Checks that the peer may send ``size`` bytes of data, and debits its window."""
        if self.inbound is not _OPEN:
            raise ProtocolError("data for a channel that is not open")
        if size > self.receive_window:
            raise ProtocolError("more data than the channel's window allows")
        self.receive_window -= size

    def consume(self, size: int) -> None:
        """Lets the peer send ``size`` bytes more, because the handler is done with as many."""
        self._credit += size
        if self._credit * 4 >= self.window and self.inbound is Flow.OPEN:
            credit, self._credit = self._credit, 0
            self.receive_window += credit
            if self.outbound is not Flow.CLOSED:
                self._transport.send(ChannelWindowAdjust(self.recipient, credit))

    def adjusted(self, count: int) -> None:
        """The peer enlarged its window by ``count`` bytes."""
        if self.outbound is Flow.OPENING:
            raise ProtocolError("a window for a channel that is not open")
        # OpenSSH credits a tunnel with more bytes than it got, which must not end the tunnel.
        self.send_window = min(self.send_window + count, WINDOW_LIMIT)

    def answered(self, success: bool) -> None:
        """The peer answered our oldest request."""
        if not self._waiting:
            raise ProtocolError("an answer to a channel request that was not made")
        self._waiting.pop(0)(success)

    def received_eof(self) -> None:
        """Handles the peer's EOF."""
        if self.inbound is not Flow.OPEN:
            raise ProtocolError("a second end of file on a channel")
        self.inbound = Flow.EOF
        self.handler.eof()

    def received_close(self) -> None:
        """Handles the peer's CLOSE, and answers it."""
        if self.inbound not in (Flow.OPEN, Flow.EOF):
            raise ProtocolError("a close for a channel that is not open")
        self.inbound = Flow.CLOSED
        if self.outbound is Flow.CLOSED:
            self._channels.forget(self)
        else:
            self.close()


class Channels(dict[int, Channel]):
    """The channels of one connection by our number, those that are being opened included."""

    def __init__(self, transport: Transport, window: int) -> None:
        super().__init__()
        self.transport = transport
        self.blocked: set[Channel] = set()  # that wait until they may send
        self.receiving: set[Channel] = set()  # that called ask_data_ended
        self._window = window
        self.opened = 0  # channels so far, so the next one's number

    def open(
        self,
        channel_type: str,
        type_data: bytes,
        handler: ChannelHandler,
        window: int | None,
        packet: int,
    ) -> Channel:
        """Asks the peer for a channel; calls ``opened`` or ``open_failed`` of the handler later."""
        channel = self._add(channel_type, window or self._window)
        channel.handler = handler
        channel.packet = packet
        self.transport.send(
            ChannelOpen(channel_type, channel.number, channel.window, packet, type_data)
        )
        return channel

    def asked_for(self, message: ChannelOpen) -> Channel:
        """Returns the channel that the peer asks for, to be accepted or rejected."""
        channel = self._add(message.channel_type, self._window)
        channel.peer_limits(
            message.sender_channel, message.initial_window_size, message.maximum_packet_size
        )
        return channel

    def _add(self, channel_type: str, window: int) -> Channel:
        number = self.opened
        self.opened += 1
        channel = self[number] = Channel(self, number, channel_type, window)
        return channel

    def wake(self) -> None:
        """Calls ``resume`` of each blocked channel that may send again."""
        if not self.blocked or not self.transport.may_send_data():
            return
        ready = [c for c in self.blocked if c.send_window > c.overhead]
        self.blocked.difference_update(ready)
        for channel in ready:
            channel.handler.resume()

    def received_all(self) -> None:
        """Calls ``data_ended`` where it was asked for: all that arrived together is handled."""
        while self.receiving:
            self.receiving.pop().handler.data_ended()
        self.wake()

    def forget(self, channel: Channel) -> None:
        """Drops a channel that is closed in both directions."""
        if self.pop(channel.number, None) is not None:
            self.blocked.discard(channel)
            self.receiving.discard(channel)
            channel.handler.closed()

    def close(self) -> None:
        """Closes every channel, because the connection is over."""
        for channel in list(self.values()):
            channel.inbound = channel.outbound = Flow.CLOSED
            self.forget(channel)
