"""One SSH connection, as client or server: a transport, with a meaning for the messages of
authentication and channels (RFC 4252, RFC 4254).

Handlers are called in place: the ConnectionHandler for what concerns all of it, and a
ChannelHandler for each channel.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

from ..crypto.keys import plain_name
from ..errors import MalformedMessage, PeerError, ProtocolError
from ..wire.codec import Buffer
from ..wire.messages import (
    CHANNEL_DATA_HEADER,
    CONNECT_FAILED,
    RESOURCE_SHORTAGE,
    ChannelClose,
    ChannelData,
    ChannelEof,
    ChannelExtendedData,
    ChannelFailure,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelOpenFailure,
    ChannelRequest,
    ChannelSuccess,
    ChannelWindowAdjust,
    GlobalRequest,
    RequestFailure,
    RequestSuccess,
    ServiceAccept,
    ServiceRequest,
    UserauthBanner,
    UserauthFailure,
    UserauthInfoResponse,
    UserauthPkOk,
    UserauthRequest,
    UserauthSuccess,
)
from .auth_client import AuthClient
from .auth_server import AuthServer
from .channels import PACKET, Channel, ChannelHandler, Flow
from .order import Event, Phase
from .packets import PACKET_LIMIT
from .transport import (
    ANSWERS_LIMIT,
    AUTHENTICATION,
    TRANSPORT_HANDLERS,
    ClientSide,
    Handler,
    ServerSide,
    Settings,
    Transport,
)

# Our own choices
UNSENT_LIMIT: Final = 128 << 10  # bytes; above it no source is read
CHANNELS_LIMIT: Final = 5000  # of one connection; a browser's forwards are hundreds

# An enum's attribute is slow to look up, for once a packet.
_CLOSED: Final = Phase.CLOSED
_FLOW_CLOSED: Final = Flow.CLOSED
_DATA_AT: Final = CHANNEL_DATA_HEADER.size
_unpack_header: Final = CHANNEL_DATA_HEADER.unpack_from


class ConnectionHandler:
    """What a connection calls, in place."""

    def authenticated(self) -> None:
        """Channels may be opened from now on."""

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        """The peer opens a channel: accept or reject it, now or later."""
        channel.reject(CONNECT_FAILED, "not wanted here")

    def global_request(self, name: str, data: bytes) -> bytes | None:
        """The answer to a global request, or None for failure."""
        return None

    def banner(self, text: str) -> None:
        """The server says something before authentication."""

    def closed(self, error: PeerError | None) -> None:
        """The connection is over; ``error`` unless we ended it."""


class Connection(Transport):
    """A transport with authentication and channels: the protocol's whole state."""

    def __init__(
        self,
        side: ServerSide | ClientSide,
        settings: Settings,
        handler: ConnectionHandler,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        super().__init__(side, settings, random, now)
        self._handler = handler
        self._auth_server: AuthServer | None = None
        self._auth_client: AuthClient | None = None
        self._channels: dict[int, Channel] = {}
        self._next_channel = 0
        self._global_replies: list[Callable[[bytes | None], None]] = []
        self.blocked: set[Channel] = set()  # that wait until they may send
        self.receiving: set[Channel] = set()  # that want to know when a receive is handled

    def _handled(self) -> None:
        while self.receiving:
            self.receiving.pop().handler.data_ended()
        self.wake()

    def _closed(self) -> None:
        for channel in list(self._channels.values()):
            channel.inbound = channel.outbound = Flow.CLOSED
            self.forget(channel)
        self._handler.closed(self.error)

    def wake(self) -> None:
        """Tell sources that may send again; call it after ``sent``."""
        if not self.blocked or not self.may_send_data():
            return
        ready = [c for c in self.blocked if c.send_window > c.overhead]
        self.blocked.difference_update(ready)
        for channel in ready:
            channel.handler.resume()

    # -- for services ----------------------------------------------------------------

    def channel_data(self, recipient: int, pieces: Iterable[Buffer]) -> None:
        """CHANNEL_DATA, one message a piece; only when ``may_send_data``."""
        if self._held is not None:  # small writes that nobody asked permission for
            for piece in pieces:
                self.send_payload(
                    CHANNEL_DATA_HEADER.pack(ChannelData.number, recipient, len(piece)) + piece
                )
            return
        self.activity += 1
        self._writer.channel_data(recipient, pieces)
        self._rekey_when_due()

    def may_send_data(self) -> bool:
        """Whether bulk data would leave soon."""
        return (
            self._held is None and self.phase is not _CLOSED and self._writer.unsent < UNSENT_LIMIT
        )

    def open_channel(
        self,
        channel_type: str,
        type_data: bytes,
        handler: ChannelHandler,
        window: int | None = None,
        packet: int = PACKET,
    ) -> Channel:
        """Ask for a channel; the handler learns the outcome."""
        channel = self._new_channel(channel_type, window or self._settings.window)
        channel.handler = handler
        channel.packet = packet
        self.send(ChannelOpen(channel_type, channel.number, channel.window, packet, type_data))
        return channel

    def _new_channel(self, channel_type: str, window: int) -> Channel:
        number = self._next_channel
        self._next_channel += 1
        channel = self._channels[number] = Channel(self, number, channel_type, window)
        return channel

    def open_channels(self) -> tuple[Channel, ...]:
        """Those that are there, or about to be."""
        return tuple(self._channels.values())

    def forget(self, channel: Channel) -> None:
        """A channel is closed in both directions."""
        if self._channels.pop(channel.number, None) is not None:
            self.blocked.discard(channel)
            self.receiving.discard(channel)
            channel.handler.closed()

    def global_request(
        self, name: str, data: bytes = b"", reply: Callable[[bytes | None], None] | None = None
    ) -> None:
        """A global request; ``reply`` gets the response data, or None for failure."""
        if reply is not None:
            self._global_replies.append(reply)
        self.send(GlobalRequest(name, reply is not None, data))

    def _on_channel_data(self, payload: memoryview) -> None:
        try:
            _, number, size = _unpack_header(payload)
        except struct.error as error:
            raise MalformedMessage("channel data without its header") from error
        channel = self._channels.get(number)
        if channel is None or size != len(payload) - _DATA_AT:
            raise ProtocolError("channel data of a wrong length, or for no channel")
        channel.received(size)
        if channel.outbound is not _FLOW_CLOSED:
            channel.handler.data(payload[_DATA_AT:])

    # -- authentication --------------------------------------------------------------

    def _on_service_request(self, message: ServiceRequest) -> None:
        side = self._side
        assert isinstance(side, ServerSide)
        if message.service_name != AUTHENTICATION:
            raise ProtocolError("a service that does not exist")
        self.send(ServiceAccept(AUTHENTICATION))
        if self._auth_server is None:  # Paramiko asks again before each attempt
            self._auth_server = AuthServer(
                side.authority, self._settings.algorithms.user_key, self._host_key, side.banner
            )
        self._order.happened(Event.SERVICE_ACCEPTED)

    def _on_service_accept(self, message: ServiceAccept) -> None:
        side = self._side
        assert isinstance(side, ClientSide)
        if message.service_name != AUTHENTICATION:
            raise ProtocolError("a service that was not asked for")
        known = self._peer_extensions.get("server-sig-algs")
        algorithms = self._settings.algorithms.user_key
        if known is not None:
            names = known.decode("latin-1").split(",")
            algorithms = tuple(name for name in algorithms if plain_name(name) in names)
        bound = (
            self._host_key if "publickey-hostbound@openssh.com" in self._peer_extensions else b""
        )
        self._auth_client = AuthClient(
            side.user, side.credentials, side.methods, algorithms, self.session_id, bound
        )
        self._order.happened(Event.SERVICE_ACCEPTED)
        self._request_login(self._auth_client.begin())

    def _request_login(self, payload: bytes) -> None:
        self.login_requests += 1
        self.send_payload(payload)

    def _on_userauth_request(self, message: UserauthRequest) -> None:
        assert self._auth_server is not None
        self._answer_auth(self._auth_server, self._auth_server.request(message))

    def _on_userauth_info_response(self, message: UserauthInfoResponse) -> None:
        assert self._auth_server is not None
        self._answer_auth(self._auth_server, self._auth_server.info_response(message))

    def _answer_auth(self, auth: AuthServer, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.send_payload(payload)
        if auth.is_done:
            self._on_authenticated()
        else:
            opened = auth.in_dialogue
            self._order.happened(Event.DIALOGUE_OPENED if opened else Event.ATTEMPT_ANSWERED)

    def _on_userauth_failure(self, message: UserauthFailure) -> None:
        assert self._auth_client is not None
        self._request_login(self._auth_client.failure(message))

    def _on_userauth_60(self, payload: bytes) -> None:
        """A number with a meaning for each method: decoded there."""
        assert self._auth_client is not None
        self._request_login(self._auth_client.answer60(payload))

    def _on_userauth_banner(self, message: UserauthBanner) -> None:
        self._handler.banner(message.message)

    def _on_userauth_success(self, message: UserauthSuccess) -> None:
        self._on_authenticated()

    @property
    def login_method(self) -> str:
        """By which a client was let in, once it is."""
        return self._auth_client.method if self._auth_client is not None else "none"

    def _on_authenticated(self) -> None:
        self._order.happened(Event.AUTHENTICATED)
        self._reader.limit = PACKET_LIMIT
        self._answers_limit = ANSWERS_LIMIT
        self._start_compression(self._negotiated)
        self._start_decompression(self._negotiated)
        self._handler.authenticated()

    # -- the connection protocol -----------------------------------------------------

    def _on_global_request(self, message: GlobalRequest) -> None:
        answer = self._handler.global_request(message.request_name, message.request_data)
        if message.want_reply:
            self.send(RequestFailure() if answer is None else RequestSuccess(answer))

    def _on_request_success(self, message: RequestSuccess) -> None:
        self._global_reply(message.response_data)

    def _on_request_failure(self, message: RequestFailure) -> None:
        self._global_reply(None)

    def _global_reply(self, data: bytes | None) -> None:
        if not self._global_replies:
            raise ProtocolError("an answer to a global request that was not made")
        self._global_replies.pop(0)(data)

    def _on_channel_open(self, message: ChannelOpen) -> None:
        peer = message.sender_channel
        if len(self._channels) >= CHANNELS_LIMIT or not message.maximum_packet_size:
            self.send(ChannelOpenFailure(peer, RESOURCE_SHORTAGE, "no more channels like this"))
            return
        channel = self._new_channel(message.channel_type, self._settings.window)
        channel.peer_limits(peer, message.initial_window_size, message.maximum_packet_size)
        self._handler.channel_open(channel, message.type_data)

    def _channel(self, number: int) -> Channel:
        channel = self._channels.get(number)
        if channel is None:
            raise ProtocolError("a message for a channel that is not there")
        return channel

    def _on_channel_open_confirmation(self, message: ChannelOpenConfirmation) -> None:
        self._channel(message.recipient_channel).confirmed(message)

    def _on_channel_open_failure(self, message: ChannelOpenFailure) -> None:
        channel = self._channel(message.recipient_channel)
        if channel.outbound is not Flow.OPENING or channel.send_packet:  # or the peer opened it
            raise ProtocolError("a channel was refused that is not being opened")
        channel.inbound = channel.outbound = Flow.CLOSED
        channel.handler.open_failed(message.reason_code, message.description)
        self.forget(channel)

    def _on_channel_window_adjust(self, message: ChannelWindowAdjust) -> None:
        number = message.recipient_channel
        if number in self._channels or number >= self._next_channel:
            self._channel(number).adjusted(message.bytes_to_add)
        # Else the channel is closed, and the peer credits what it read of it late, as to OpenSSH.

    def _on_channel_extended_data(self, message: ChannelExtendedData) -> None:
        channel = self._channel(message.recipient_channel)
        channel.received(len(message.data))
        if channel.outbound is not Flow.CLOSED:
            channel.handler.extended_data(message.data_type_code, memoryview(message.data))

    def _on_channel_eof(self, message: ChannelEof) -> None:
        self._channel(message.recipient_channel).received_eof()

    def _on_channel_close(self, message: ChannelClose) -> None:
        self._channel(message.recipient_channel).received_close()

    def _on_channel_request(self, message: ChannelRequest) -> None:
        channel = self._channel(message.recipient_channel)
        if channel.inbound in (Flow.OPENING, Flow.CLOSED):
            raise ProtocolError("a request on a channel that is not open")
        success = channel.outbound is not Flow.CLOSED and channel.handler.request(
            message.request_type, message.request_data
        )
        if message.want_reply and channel.outbound is not Flow.CLOSED:
            answer = ChannelSuccess if success else ChannelFailure
            self.send(answer(channel.recipient))

    def _on_channel_success(self, message: ChannelSuccess) -> None:
        self._channel(message.recipient_channel).answered(True)

    def _on_channel_failure(self, message: ChannelFailure) -> None:
        self._channel(message.recipient_channel).answered(False)


Connection._handlers = TRANSPORT_HANDLERS | {
    ServiceRequest.number: Handler(ServiceRequest, Connection._on_service_request),
    ServiceAccept.number: Handler(ServiceAccept, Connection._on_service_accept),
    UserauthRequest.number: Handler(UserauthRequest, Connection._on_userauth_request),
    UserauthFailure.number: Handler(UserauthFailure, Connection._on_userauth_failure),
    UserauthSuccess.number: Handler(UserauthSuccess, Connection._on_userauth_success),
    UserauthBanner.number: Handler(UserauthBanner, Connection._on_userauth_banner),
    UserauthPkOk.number: Handler(None, Connection._on_userauth_60),
    UserauthInfoResponse.number: Handler(
        UserauthInfoResponse, Connection._on_userauth_info_response
    ),
    GlobalRequest.number: Handler(GlobalRequest, Connection._on_global_request),
    RequestSuccess.number: Handler(RequestSuccess, Connection._on_request_success),
    RequestFailure.number: Handler(RequestFailure, Connection._on_request_failure),
    ChannelOpen.number: Handler(ChannelOpen, Connection._on_channel_open),
    ChannelOpenConfirmation.number: Handler(
        ChannelOpenConfirmation, Connection._on_channel_open_confirmation
    ),
    ChannelOpenFailure.number: Handler(ChannelOpenFailure, Connection._on_channel_open_failure),
    ChannelWindowAdjust.number: Handler(ChannelWindowAdjust, Connection._on_channel_window_adjust),
    ChannelExtendedData.number: Handler(ChannelExtendedData, Connection._on_channel_extended_data),
    ChannelEof.number: Handler(ChannelEof, Connection._on_channel_eof),
    ChannelClose.number: Handler(ChannelClose, Connection._on_channel_close),
    ChannelRequest.number: Handler(ChannelRequest, Connection._on_channel_request),
    ChannelSuccess.number: Handler(ChannelSuccess, Connection._on_channel_success),
    ChannelFailure.number: Handler(ChannelFailure, Connection._on_channel_failure),
}
