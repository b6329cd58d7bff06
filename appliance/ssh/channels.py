"""Channels (RFC 4254 section 5): two flows, a window each, and whoever handles the data.

A flow goes OPEN -> EOF -> CLOSED, or at once to CLOSED; the channel is gone when both
flows are closed.
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
PACKET: Final = 32 << 10  # bytes; what OpenSSH gives and every peer can do

WINDOW_LIMIT: Final = 0xFFFFFFFF  # RFC 4254 section 5.2


class Flow(Enum):
    """One direction of a channel."""

    OPENING = auto()
    OPEN = auto()
    EOF = auto()
    CLOSED = auto()


_OPEN: Final = Flow.OPEN  # an enum's attribute is slow to look up, for once a packet


class ChannelHandler:
    """What a channel calls, in place; a service overrides what it cares for."""

    def opened(self, type_data: bytes) -> None:
        """The peer confirmed a channel that we opened."""

    def open_failed(self, reason_code: int, description: str) -> None:
        """The peer refused a channel that we opened."""

    def data(self, view: memoryview) -> None:
        """Bytes from the peer; ``channel.consume`` them sometime.

        They are valid during the call, and on to ``data_ended`` for who asked for it.
        """

    def late_data(self, view: memoryview) -> None:
        """Bytes that the peer sent before it learned of ``channel.close``: nobody reads them."""

    def data_ended(self) -> None:
        """All that arrived together is handled: called if ``channel.ask_data_ended`` was."""

    def extended_data(self, code: int, view: memoryview) -> None:
        """The same, for another stream (RFC 4254 section 5.2)."""

    def eof(self) -> None:
        """The peer will send no more data."""

    def request(self, request_type: str, request_data: bytes) -> bool:
        """A request of the peer's; the result is whether it succeeded.

        ``request_data`` may be anything: decode it with a Record, which raises what the
        connection expects.
        """
        return False

    def resume(self) -> None:
        """``channel.sendable`` was 0 and is no longer."""

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
        self.window = window  # what we keep open for the peer
        self.receive_window = window
        self.packet = PACKET  # the largest message in either direction
        self.send_window = 0
        self.send_packet = 0
        self._peer_packet = 0
        self.overhead = 0  # bytes a message that the peer's window is debited on top
        self._credit = 0
        self._waiting: list[Callable[[bool], None]] = []

    # -- opening ---------------------------------------------------------------------

    def resize(self, window: int, packet: int) -> None:
        """Have another window and other messages than usual; before the channel is open."""
        assert self.outbound is Flow.OPENING
        self.window = self.receive_window = window
        self.packet = packet
        self.send_packet = min(self._peer_packet, packet)

    def accept(self, handler: ChannelHandler, type_data: bytes = b"") -> None:
        """Confirm a channel that the peer opened."""
        assert self.outbound is Flow.OPENING
        self.handler = handler
        self.inbound = self.outbound = Flow.OPEN
        self._transport.send(
            ChannelOpenConfirmation(
                self.recipient, self.number, self.window, self.packet, type_data
            )
        )

    def reject(self, reason_code: int, description: str) -> None:
        """Refuse a channel that the peer opened."""
        self.inbound = self.outbound = Flow.CLOSED
        self._transport.send(ChannelOpenFailure(self.recipient, reason_code, description))
        self._channels.forget(self)

    def confirmed(self, message: ChannelOpenConfirmation) -> None:
        """The peer accepted our channel."""
        if self.outbound is not Flow.OPENING or self.send_packet:  # or the peer opened it
            raise ProtocolError("a channel was confirmed that is not being opened")
        self.peer_limits(
            message.sender_channel, message.initial_window_size, message.maximum_packet_size
        )
        self.inbound = self.outbound = Flow.OPEN
        self.handler.opened(message.type_data)

    def peer_limits(self, recipient: int, window: int, packet: int) -> None:
        """What the peer said when the channel was opened or confirmed."""
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
        """Have ``handler.data_ended`` called once what has arrived is handled."""
        self._channels.receiving.add(self)

    def send(self, data: Buffer) -> None:
        """Bytes, at most ``sendable()`` of them, in as many messages as they need."""
        size, packet = len(data), self.send_packet
        self.send_window -= size
        if size <= packet:
            self._transport.send_channel_data(self.recipient, (data,))
            return
        view = memoryview(data)
        pieces = [view[at : at + packet] for at in range(0, size, packet)]
        self._transport.send_channel_data(self.recipient, pieces)

    def send_batch(self, pieces: Sequence[Buffer]) -> int:
        """Each piece as one message of its own; what does not fit the window is dropped.

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
        """As ``send``, for another stream; at most ``send_packet`` bytes at once."""
        self.send_window -= len(data)
        head = CHANNEL_EXTENDED_DATA_HEADER.pack(
            ChannelExtendedData.number, self.recipient, code, len(data)
        )
        self._transport.send_payload(head + data)

    def eof(self) -> None:
        """Promise to send no more data."""
        if self.outbound is Flow.OPEN:
            self.outbound = Flow.EOF
            self._transport.send(ChannelEof(self.recipient))

    def close(self) -> None:
        """End the channel; once the peer agrees, the handler's ``closed`` is called."""
        if self.outbound in (Flow.OPEN, Flow.EOF):
            self.outbound = Flow.CLOSED
            self._transport.send(ChannelClose(self.recipient))
            if self.inbound is Flow.CLOSED:
                self._channels.forget(self)

    def request(
        self, request_type: str, data: bytes = b"", reply: Callable[[bool], None] | None = None
    ) -> None:
        """A channel request; ``reply`` gets its outcome (RFC 4254 section 5.4)."""
        if self.outbound not in (Flow.OPEN, Flow.EOF):
            return
        if reply is not None:
            self._waiting.append(reply)
        self._transport.send(ChannelRequest(self.recipient, request_type, reply is not None, data))

    # -- receiving -------------------------------------------------------------------

    def received(self, size: int) -> None:
        """Check and debit data of the peer's."""
        if self.inbound is not _OPEN:
            raise ProtocolError("data for a channel that is not open")
        if size > self.receive_window:
            raise ProtocolError("more data than the channel's window allows")
        self.receive_window -= size

    def consume(self, size: int) -> None:
        """The handler is done with ``size`` bytes, so the peer may send as many more."""
        self._credit += size
        if self._credit * 4 >= self.window and self.inbound is Flow.OPEN:
            credit, self._credit = self._credit, 0
            self.receive_window += credit
            if self.outbound is not Flow.CLOSED:
                self._transport.send(ChannelWindowAdjust(self.recipient, credit))

    def adjusted(self, count: int) -> None:
        """The peer opened its window."""
        if self.outbound is Flow.OPENING:
            raise ProtocolError("a window for a channel that is not open")
        # A peer that credits more than it got must not end a tunnel: OpenSSH does so.
        self.send_window = min(self.send_window + count, WINDOW_LIMIT)

    def answered(self, success: bool) -> None:
        """The peer answered our oldest request."""
        if not self._waiting:
            raise ProtocolError("an answer to a channel request that was not made")
        self._waiting.pop(0)(success)

    def received_eof(self) -> None:
        """The peer's EOF."""
        if self.inbound is not Flow.OPEN:
            raise ProtocolError("a second end of file on a channel")
        self.inbound = Flow.EOF
        self.handler.eof()

    def received_close(self) -> None:
        """The peer's CLOSE; answers it."""
        if self.inbound not in (Flow.OPEN, Flow.EOF):
            raise ProtocolError("a close for a channel that is not open")
        self.inbound = Flow.CLOSED
        if self.outbound is Flow.CLOSED:
            self._channels.forget(self)
        else:
            self.close()


class Channels(dict[int, Channel]):
    """The channels of one connection, those that are being opened included, by our number."""

    def __init__(self, transport: Transport, window: int) -> None:
        super().__init__()
        self.transport = transport
        self.blocked: set[Channel] = set()  # that wait until they may send
        self.receiving: set[Channel] = set()  # that want to know when a receive is handled
        self._window = window
        self.opened = 0  # so far, which is the next number

    def open(
        self,
        channel_type: str,
        type_data: bytes,
        handler: ChannelHandler,
        window: int | None,
        packet: int,
    ) -> Channel:
        """Ask the peer for a channel; the handler learns the outcome."""
        channel = self._add(channel_type, window or self._window)
        channel.handler = handler
        channel.packet = packet
        self.transport.send(
            ChannelOpen(channel_type, channel.number, channel.window, packet, type_data)
        )
        return channel

    def asked_for(self, message: ChannelOpen) -> Channel:
        """Return the channel that the peer asks for, to be accepted or rejected."""
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
        """Tell blocked channels that may send again."""
        if not self.blocked or not self.transport.may_send_data():
            return
        ready = [c for c in self.blocked if c.send_window > c.overhead]
        self.blocked.difference_update(ready)
        for channel in ready:
            channel.handler.resume()

    def received_all(self) -> None:
        """All that arrived together is handled."""
        while self.receiving:
            self.receiving.pop().handler.data_ended()
        self.wake()

    def forget(self, channel: Channel) -> None:
        """A channel is closed in both directions."""
        if self.pop(channel.number, None) is not None:
            self.blocked.discard(channel)
            self.receiving.discard(channel)
            channel.handler.closed()

    def close(self) -> None:
        """The connection is over, and each channel with it."""
        for channel in list(self.values()):
            channel.inbound = channel.outbound = Flow.CLOSED
            self.forget(channel)
