"""One SSH connection, as client or server: authentication and channels over a transport
(RFC 4252, RFC 4254).

Handlers are called directly, while a message is handled: the ConnectionHandler for the connection
itself, and a ChannelHandler for each channel.
"""

import struct
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from ..crypto.keys import plain_name
from ..errors import MalformedMessage, PeerError, ProtocolError
from ..wire.messages import (
    CHANNEL_DATA_HEADER,
    CONNECT_FAILED,
    RESOURCE_SHORTAGE,
    ChannelClose,
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
from .channels import PACKET, Channel, ChannelHandler, Channels, Flow
from .order import Event
from .settings import ClientSide, ServerSide, Settings
from .transport import Handler, Transport

AUTHENTICATION: Final = "ssh-userauth"  # RFC 4252: the only service there is

# Our own choice
CHANNELS_LIMIT: Final = 5000  # of one connection; a browser's forwards are hundreds

_FLOW_CLOSED: Final = Flow.CLOSED  # looking up an enum's attribute for each packet would be slow
_DATA_AT: Final = CHANNEL_DATA_HEADER.size
_unpack_header: Final = CHANNEL_DATA_HEADER.unpack_from


class ConnectionHandler:
    """The methods that a connection calls directly."""

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
        """The connection is over; ``error`` says why, or is None if we ended it."""


class Connection:
    """One end of a connection: the login over a transport, then channels and global requests."""

    def __init__(
        self,
        side: ServerSide | ClientSide,
        settings: Settings,
        handler: ConnectionHandler,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self.transport = Transport(side, settings, self, random, now)
        self.login_requests = 0  # that a client has sent so far, the service request included
        self._side = side
        self._user_key_algorithms = settings.algorithms.user_key
        self._handler = handler
        self._auth_server: AuthServer | None = None
        self._auth_client: AuthClient | None = None
        self._channels = Channels(self.transport, settings.window)
        self._global_replies: list[Callable[[bytes | None], None]] = []

    # -- for the driver --------------------------------------------------------------

    def wake(self) -> None:
        """Resumes channels that may send again; call it after ``transport.sent``."""
        self._channels.wake()

    # -- for services ----------------------------------------------------------------

    def open_channel(
        self,
        channel_type: str,
        type_data: bytes,
        handler: ChannelHandler,
        window: int | None = None,
        packet: int = PACKET,
    ) -> Channel:
        """Asks for a channel; calls ``opened`` or ``open_failed`` of the handler later."""
        return self._channels.open(channel_type, type_data, handler, window, packet)

    def open_channels(self) -> tuple[Channel, ...]:
        """All channels, those that are being opened included."""
        return tuple(self._channels.values())

    def global_request(
        self, name: str, data: bytes = b"", reply: Callable[[bytes | None], None] | None = None
    ) -> None:
        """Sends a global request; ``reply`` is called with the response data, None for failure."""
        if reply is not None:
            self._global_replies.append(reply)
        self.transport.send(GlobalRequest(name, reply is not None, data))

    # -- for the transport -----------------------------------------------------------

    def keys_agreed(self) -> None:
        """Sends a client's request for the authentication service."""
        if isinstance(self._side, ClientSide):
            self._request_login(ServiceRequest(AUTHENTICATION).encode())

    def message(self, payload: bytes) -> None:
        """Handles a message of authentication or of the connection protocol; raises PeerError."""
        self._HANDLERS[payload[0]].call(self, payload)

    def channel_data(self, payload: memoryview) -> None:
        """Handles CHANNEL_DATA, the one message that is not decoded into a record."""
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
        else:
            channel.handler.late_data(payload[_DATA_AT:])

    def received_all(self) -> None:
        """Tells the channels that all that arrived together is handled."""
        self._channels.received_all()

    def closed(self) -> None:
        """Closes the channels and tells the handler, because the connection is over."""
        self._channels.close()
        self._handler.closed(self.transport.error)

    # -- authentication --------------------------------------------------------------

    def _on_service_request(self, message: ServiceRequest) -> None:
        side = self._side
        assert isinstance(side, ServerSide)
        if message.service_name != AUTHENTICATION:
            raise ProtocolError("a service that does not exist")
        self.transport.send(ServiceAccept(AUTHENTICATION))
        if self._auth_server is None:  # Paramiko asks again before each attempt
            self._auth_server = AuthServer(
                side.authority, self._user_key_algorithms, self.transport.host_key, side.banner
            )
        self.transport.order.happened(Event.SERVICE_ACCEPTED)

    def _on_service_accept(self, message: ServiceAccept) -> None:
        side = self._side
        assert isinstance(side, ClientSide)
        if message.service_name != AUTHENTICATION:
            raise ProtocolError("a service that was not asked for")
        transport = self.transport
        algorithms = self._user_key_algorithms
        known = transport.peer_extension("server-sig-algs")
        if known is not None:
            names = known.decode("latin-1").split(",")
            algorithms = tuple(name for name in algorithms if plain_name(name) in names)
        is_bound = transport.peer_speaks("publickey-hostbound@openssh.com")
        self._auth_client = AuthClient(
            side.user,
            side.credentials,
            side.methods,
            algorithms,
            transport.session_id,
            transport.host_key if is_bound else b"",
        )
        transport.order.happened(Event.SERVICE_ACCEPTED)
        self._request_login(self._auth_client.begin())

    def _request_login(self, payload: bytes) -> None:
        self.login_requests += 1
        self.transport.send_payload(payload)

    def _on_userauth_request(self, message: UserauthRequest) -> None:
        assert self._auth_server is not None
        self._answer_auth(self._auth_server, self._auth_server.request(message))

    def _on_userauth_info_response(self, message: UserauthInfoResponse) -> None:
        assert self._auth_server is not None
        self._answer_auth(self._auth_server, self._auth_server.info_response(message))

    def _answer_auth(self, auth: AuthServer, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.transport.send_payload(payload)
        if auth.is_done:
            self._on_authenticated()
        else:
            answer = Event.DIALOGUE_OPENED if auth.in_dialogue else Event.ATTEMPT_ANSWERED
            self.transport.order.happened(answer)

    def _on_userauth_failure(self, message: UserauthFailure) -> None:
        assert self._auth_client is not None
        self._request_login(self._auth_client.failure(message))

    def _on_userauth_60(self, payload: bytes) -> None:
        """Handles message 60, whose meaning depends on the method: AuthClient decodes it."""
        assert self._auth_client is not None
        self._request_login(self._auth_client.answer60(payload))

    def _on_userauth_banner(self, message: UserauthBanner) -> None:
        self._handler.banner(message.message)

    def _on_userauth_success(self, message: UserauthSuccess) -> None:
        self._on_authenticated()

    @property
    def login_method(self) -> str:
        """The method by which a client was authenticated, or that it tried last."""
        return self._auth_client.method if self._auth_client is not None else "none"

    def _on_authenticated(self) -> None:
        self.transport.authenticated()
        self._handler.authenticated()

    # -- the connection protocol -----------------------------------------------------

    def _on_global_request(self, message: GlobalRequest) -> None:
        answer = self._handler.global_request(message.request_name, message.request_data)
        if message.want_reply:
            self.transport.send(RequestFailure() if answer is None else RequestSuccess(answer))

    def _on_request_success(self, message: RequestSuccess) -> None:
        self._global_reply(message.response_data)

    def _on_request_failure(self, message: RequestFailure) -> None:
        self._global_reply(None)

    def _global_reply(self, data: bytes | None) -> None:
        if not self._global_replies:
            raise ProtocolError("an answer to a global request that was not made")
        self._global_replies.pop(0)(data)

    def _on_channel_open(self, message: ChannelOpen) -> None:
        if len(self._channels) >= CHANNELS_LIMIT or not message.maximum_packet_size:
            self.transport.send(
                ChannelOpenFailure(
                    message.sender_channel, RESOURCE_SHORTAGE, "no more channels like this"
                )
            )
            return
        self._handler.channel_open(self._channels.asked_for(message), message.type_data)

    def _channel(self, number: int) -> Channel:
        channel = self._channels.get(number)
        if channel is None:
            raise ProtocolError("a message for a channel that is not there")
        return channel

    def _on_channel_open_confirmation(self, message: ChannelOpenConfirmation) -> None:
        self._channel(message.recipient_channel).confirmed(message)

    def _on_channel_open_failure(self, message: ChannelOpenFailure) -> None:
        channel = self._channel(message.recipient_channel)
        if channel.outbound is not Flow.OPENING or channel.send_packet:  # set if the peer opened it
            raise ProtocolError("a channel was refused that is not being opened")
        channel.inbound = channel.outbound = Flow.CLOSED
        channel.handler.open_failed(message.reason_code, message.description)
        self._channels.forget(channel)

    def _on_channel_window_adjust(self, message: ChannelWindowAdjust) -> None:
        number = message.recipient_channel
        if number in self._channels or number >= self._channels.opened:
            self._channel(number).adjusted(message.bytes_to_add)
        # A window for a closed channel is ignored, as by OpenSSH: a peer may credit its data late.

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
            self.transport.send(answer(channel.recipient))

    def _on_channel_success(self, message: ChannelSuccess) -> None:
        self._channel(message.recipient_channel).answered(True)

    def _on_channel_failure(self, message: ChannelFailure) -> None:
        self._channel(message.recipient_channel).answered(False)

    _HANDLERS: ClassVar[Mapping[int, Handler]] = {
        ServiceRequest.number: Handler(ServiceRequest, _on_service_request),
        ServiceAccept.number: Handler(ServiceAccept, _on_service_accept),
        UserauthRequest.number: Handler(UserauthRequest, _on_userauth_request),
        UserauthFailure.number: Handler(UserauthFailure, _on_userauth_failure),
        UserauthSuccess.number: Handler(UserauthSuccess, _on_userauth_success),
        UserauthBanner.number: Handler(UserauthBanner, _on_userauth_banner),
        UserauthPkOk.number: Handler(None, _on_userauth_60),
        UserauthInfoResponse.number: Handler(UserauthInfoResponse, _on_userauth_info_response),
        GlobalRequest.number: Handler(GlobalRequest, _on_global_request),
        RequestSuccess.number: Handler(RequestSuccess, _on_request_success),
        RequestFailure.number: Handler(RequestFailure, _on_request_failure),
        ChannelOpen.number: Handler(ChannelOpen, _on_channel_open),
        ChannelOpenConfirmation.number: Handler(
            ChannelOpenConfirmation, _on_channel_open_confirmation
        ),
        ChannelOpenFailure.number: Handler(ChannelOpenFailure, _on_channel_open_failure),
        ChannelWindowAdjust.number: Handler(ChannelWindowAdjust, _on_channel_window_adjust),
        ChannelExtendedData.number: Handler(ChannelExtendedData, _on_channel_extended_data),
        ChannelEof.number: Handler(ChannelEof, _on_channel_eof),
        ChannelClose.number: Handler(ChannelClose, _on_channel_close),
        ChannelRequest.number: Handler(ChannelRequest, _on_channel_request),
        ChannelSuccess.number: Handler(ChannelSuccess, _on_channel_success),
        ChannelFailure.number: Handler(ChannelFailure, _on_channel_failure),
    }
