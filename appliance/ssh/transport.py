"""The transport of one SSH connection (RFC 4253), without a socket: bytes in, bytes out.

Identification, packets, key exchange and rekeying, and the end of a connection. The messages of
authentication and channels go to the ``UpperLayer``, which sends its own through the transport.

``receive_data`` takes the bytes that arrived, and calls handlers directly; bytes to be sent wait
in ``data_to_send``. Time is an argument (seconds, monotonic), and ``tick`` must be called at
``deadline``. The phases and the messages that each allows are in order.py.

Whatever a peer sends, ``receive_data`` raises nothing but a handler's own exceptions: a
PeerError becomes a DISCONNECT here, is kept in ``error``, and ends the connection.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from .. import __version__
from ..crypto.keys import is_certificate_name, load_public_key
from ..crypto.offered_keys import load_offered_key
from ..crypto.suites import EXT_INFO_CLIENT, STRICT_CLIENT, STRICT_SERVER, Algorithms
from ..errors import KeyExchangeFailed, PeerDisconnected, PeerError, ProtocolError
from ..wire.codec import Buffer, Message
from ..wire.messages import (
    BY_APPLICATION,
    CHANNEL_DATA_HEADER,
    ChannelData,
    ChannelOpen,
    ChannelRequest,
    Debug,
    Disconnect,
    ExtInfo,
    Ignore,
    KexInit,
    KexInitiate,
    KexReply,
    NewKeys,
    Ping,
    Pong,
    Unimplemented,
)
from .handshake import Handshake, Negotiated, Versions, our_kexinit
from .order import Event, Order, Phase, Role, Verdict
from .packets import PACKET_LIMIT, PacketReader, PacketWriter
from .settings import ClientSide, ServerSide, Settings
from .trace import Trace

_log = logging.getLogger(__name__)

# RFC 4253 section 4.2
VERSION_LIMIT: Final = 255  # bytes with the line end

# Our own choices
LINES_LIMIT: Final = 1024  # lines of greeting before a server's identification; OpenSSH's
LINE_SHOWN: Final = 300  # bytes of such a line
REKEY_PACKETS: Final = 1 << 31  # RFC 4344 section 3.1
EXCHANGE_SECONDS: Final = 120.0  # that a peer may take for a key exchange
EARLY_PACKETS: Final = 1000  # that a server takes before the login, IGNORE included
EARLY_BYTES: Final = 1 << 20  # of these packets
EXCHANGES_BEFORE_LOGIN: Final = 2  # the first, and one for a peer that wants new keys early
UNSENT_LIMIT: Final = 128 << 10  # unsent bytes; above it no channel may send bulk data
ANSWERS_LIMIT: Final = 4 << 20  # unsent reply bytes; bulk data is limited by UNSENT_LIMIT
EARLY_ANSWERS_LIMIT: Final = 256 << 10  # the same before the login: some KiB are usual
HELD_LIMIT: Final = 256 << 10  # bytes of answers that wait for the end of a key exchange
HELD_OVERHEAD: Final = 64  # bytes of memory that a message takes besides its content
UNREAD: Final = "the peer does not read the answers to its questions"
SOFTWARE: Final = f"Culvert_{__version__}"
# Prefix of a server's SOFTWARE. OpenSSH's client (compat.c, seen in 9.2) tells a server that its
# reader is gone, without which `ssh host yes | head` never ends, only if the server's software
# begins with OpenSSH. A digit or '_' behind that would look like a version of OpenSSH, and some
# clients work around the mistakes of versions.
OPENSSH_LIKE: Final = "OpenSSH.compatible_"

# Looking up an enum's attribute for each packet would be slow.
_OPEN: Final = Phase.OPEN
_CLOSED: Final = Phase.CLOSED
_CHANNEL_DATA: Final = ChannelData.number
# A channel's opening, data, window and end. No requests: one may only ask if the peer is there.
_ACTIVITY: Final = range(ChannelOpen.number, ChannelRequest.number)


class Handler(NamedTuple):
    """How a message is handled: the record to decode it into, None for its bytes, and a method."""

    kind: type[Message] | None
    method: Callable[[Any, Any], None]

    def call(self, owner: object, payload: bytes) -> None:
        """Calls the method of ``owner`` with the message; raises PeerError."""
        self.method(owner, payload if self.kind is None else self.kind.decode(payload))


class HostBinding(NamedTuple):
    """The server's proof of its key when the connection began; a client tells its agent."""

    host_key: bytes
    session_id: bytes
    signature: bytes  # over the session id


class UpperLayer(Protocol):
    """The layer above, authentication and channels, whose methods a transport calls directly."""

    def keys_agreed(self) -> None:
        """The first keys are agreed upon, so the login may begin."""

    def message(self, payload: bytes) -> None:
        """Takes a message that may come now and is not the transport's own; raises PeerError."""

    def channel_data(self, payload: memoryview) -> None:
        """Takes CHANNEL_DATA, valid until ``received_all`` returns; raises PeerError."""

    def received_all(self) -> None:
        """Everything that arrived together is handled."""

    def closed(self) -> None:
        """The connection is over; ``Transport.error`` says why."""


class Transport:
    """One end of a transport; the owner of the socket moves its bytes."""

    def __init__(
        self,
        side: ServerSide | ClientSide,
        settings: Settings,
        upper: UpperLayer,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self._side = side
        self.role = Role.SERVER if isinstance(side, ServerSide) else Role.CLIENT
        self.order = Order(self.role)
        self._upper = upper
        self._settings = settings
        self._random = random
        self._now = now
        self._reader = PacketReader()
        if self.role is Role.CLIENT:  # a server's banner may be long
            self._reader.limit = PACKET_LIMIT
        self._writer = PacketWriter(random)
        self._trace = Trace() if settings.trace else None
        if self._trace is not None:
            self._reader.trace, self._writer.trace = self._trace.received, self._trace.sent
        self.error: PeerError | None = None
        self.activity = 0  # grows with each message of _ACTIVITY, sent or received
        self._lines = 0
        self._last_line = ""  # the last one before the peer's identification, for error texts
        like = OPENSSH_LIKE if self.role is Role.SERVER else ""
        self._our_version = f"SSH-2.0-{like}{SOFTWARE}".encode()
        self.peer_version = b""
        self.session_id = b""
        self._handshake: Handshake | None = None
        self._negotiated: Negotiated
        self._theirs: KexInit  # the peer's latest one
        self._handshake_started = now
        self._skip_guess = False
        self._answers_limit = EARLY_ANSWERS_LIMIT
        self._held: list[bytes] | None = None  # messages that wait for the end of a key exchange
        self._held_bytes = 0
        self._early_exchanges = self._early_packets = self._early_bytes = 0  # before the login
        self._keys_since = now
        self.host_key = b""  # the server's, once it is proved
        self._host_signature = b""  # of the first key exchange; a client's only
        self._peer_extensions: dict[str, bytes] = {}
        self._peer_takes_extensions = False
        self._writer.raw(self._our_version + b"\r\n")
        self._begin_exchange()

    @property
    def phase(self) -> Phase:
        """What the connection waits for."""
        return self.order.phase

    @property
    def host_key_algorithm(self) -> str:
        """The algorithm of the server's signature, once the first key exchange is over."""
        return self._negotiated.host_key

    @property
    def host_binding(self) -> HostBinding:
        """The server's proof of its key; for a client, after the first key exchange."""
        return HostBinding(self.host_key, self.session_id, self._host_signature)

    # -- for the driver --------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where a socket may put what it receives; then call ``received``."""
        return self._reader.space()

    def received(self, count: int, now: float) -> None:
        """Handles ``count`` bytes that were put into ``receive_buffer()``."""
        if self.order.phase is _CLOSED:
            return  # the buffer is not read any more
        self._now = now
        self._reader.filled(count)
        try:
            self._process()
        except PeerError as error:
            self._fail(error)
        self._upper.received_all()

    def receive_data(self, data: Buffer, now: float) -> None:
        """Handles bytes as ``received`` does, after copying them into the buffer."""
        view = memoryview(data)
        while len(view) and self.order.phase is not _CLOSED:
            space = self.receive_buffer()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self.received(count, now)
            view = view[count:]

    def receive_eof(self) -> None:
        """Ends the connection, because the peer ended the byte stream."""
        if self.order.phase is not _CLOSED:
            said = f", saying: {self._last_line}" if self.order.phase is Phase.VERSION else ""
            self._fail(
                PeerDisconnected(f"the peer closed the connection{said if self._lines else ''}")
            )

    def data_to_send(self) -> memoryview:
        """Unsent bytes, valid until the next call of anything but ``sent``."""
        return self._writer.data_to_send()

    def sent(self, count: int) -> int:
        """Drops ``count`` bytes, which the socket took; returns how many are left."""
        return self._writer.sent(count)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the socket."""
        return self._writer.unsent

    @property
    def deadline(self) -> float:
        """When ``tick`` must be called (seconds, monotonic)."""
        if self._handshake is not None:
            return self._handshake_started + EXCHANGE_SECONDS
        if self.order.phase is not _OPEN:
            return math.inf  # the connection's owner limits the time for a login
        return self._keys_since + self._settings.rekey_seconds

    def tick(self, now: float) -> None:
        """Ends a key exchange that takes too long, or begins one that is due."""
        self._now = now
        if self.order.phase is _CLOSED or now < self.deadline:
            return
        if self._handshake is not None:
            self._fail(KeyExchangeFailed("the peer took too long for the key exchange"))
        else:
            self.rekey()

    @property
    def received_packets(self) -> int:
        """How many packets were received so far."""
        return self._reader.earlier_packets + self._reader.packets

    @property
    def peer_software(self) -> str:
        """The peer's software version and comments, or '' until it is known."""
        software = self.peer_version.decode("latin-1").partition("-")[2].partition("-")[2]
        return software.removeprefix(OPENSSH_LIKE)

    @property
    def peer_takes_end_of_write(self) -> bool:
        """Whether the peer knows eow@openssh.com (OpenSSH PROTOCOL 2.1)."""
        return self.peer_version.startswith(b"SSH-2.0-OpenSSH")

    def peer_speaks(self, extension: str) -> bool:
        """Whether the peer's EXT_INFO names the extension (RFC 8308)."""
        return extension in self._peer_extensions

    def peer_extension(self, name: str) -> bytes | None:
        """The value that the peer's EXT_INFO gives an extension, if it names it."""
        return self._peer_extensions.get(name)

    # -- sending ---------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Sends a message; it waits for the end of a key exchange."""
        self.send_payload(message.encode())

    def send_payload(self, payload: bytes) -> None:
        """Sends an encoded message, as ``send`` does."""
        if self.order.phase is _CLOSED:
            return
        self.activity += payload[0] in _ACTIVITY
        if self._held is None:
            self._writer.packet(payload)
            if self._writer.unsent > self._answers_limit and self.order.phase is _OPEN:
                self._fail(ProtocolError(UNREAD))  # not raised: maybe no handler is running
            self._rekey_when_due()
            return
        self._held_bytes += len(payload) + HELD_OVERHEAD
        if self._held_bytes > HELD_LIMIT:
            self._fail(ProtocolError("too much to answer during a key exchange"))
            return
        self._held.append(payload)

    def send_channel_data(self, recipient: int, pieces: Iterable[Buffer]) -> None:
        """Sends each piece as one CHANNEL_DATA; call it only if ``may_send_data``."""
        if self._held is not None:  # small writes come without asking may_send_data
            for piece in pieces:
                self.send_payload(
                    CHANNEL_DATA_HEADER.pack(ChannelData.number, recipient, len(piece)) + piece
                )
            return
        self.activity += 1
        self._writer.channel_data(recipient, pieces)
        self._rekey_when_due()

    def may_send_data(self) -> bool:
        """Whether bulk data may be sent: no key exchange, and little is unsent."""
        return (
            self._held is None
            and self.order.phase is not _CLOSED
            and self._writer.unsent < UNSENT_LIMIT
        )

    def _rekey_when_due(self) -> None:
        writer = self._writer
        if writer.sent_bytes > self._settings.rekey_bytes or writer.packets > REKEY_PACKETS:
            self.rekey()

    def close(self, description: str = "") -> None:
        """Sends DISCONNECT, and ends the connection."""
        if self.order.phase is not _CLOSED:
            self._writer.packet(Disconnect(BY_APPLICATION, description).encode())
            self._end()

    def _fail(self, error: PeerError) -> None:
        """Ends the connection; the one place where an error becomes a DISCONNECT."""
        if self.order.phase is _CLOSED:
            return
        self.error = error
        if not isinstance(error, PeerDisconnected) and self.order.phase is not Phase.VERSION:
            self._writer.packet(Disconnect(error.reason, str(error)).encode())
        self._end()

    def _end(self) -> None:
        self.order.happened(Event.ENDED)
        self._held = None
        self._upper.closed()

    # -- receiving -------------------------------------------------------------------

    def _process(self) -> None:
        while self.order.phase is Phase.VERSION:
            line = self._reader.line(VERSION_LIMIT if self.role is Role.SERVER else 8192)
            if line is None:
                return
            self._on_line(line)
        reader, order, channel_data = self._reader, self.order, self._upper.channel_data
        while order.phase is not _CLOSED:
            payload = reader.next()
            if payload is None:
                break
            if payload[0] == _CHANNEL_DATA and order.phase is _OPEN:
                self.activity += 1
                channel_data(payload)
            else:
                self._dispatch(bytes(payload))
        if (
            reader.received_bytes > self._settings.rekey_bytes or reader.packets > REKEY_PACKETS
        ) and self.order.phase is _OPEN:
            self.rekey()

    def _on_line(self, line: bytes) -> None:
        if not line.startswith(b"SSH-"):
            self._lines += 1
            self._last_line = line[:LINE_SHOWN].decode(errors="backslashreplace")
            _log.debug("banner line %d: %s", self._lines - 1, self._last_line)
            if self.role is Role.SERVER or self._lines > LINES_LIMIT:
                raise ProtocolError("the peer does not speak SSH")
            return
        if not line.startswith((b"SSH-2.0-", b"SSH-1.99-")):
            raise ProtocolError("the peer speaks another version of SSH")
        if len(line) + 2 > VERSION_LIMIT or not all(32 <= byte < 127 for byte in line):
            raise ProtocolError("the peer's identification string is malformed")
        self.peer_version = line
        # In the words of OpenSSH's ssh -v, from which ssh-copy-id learns where Dropbear keeps keys.
        _log.debug("Remote protocol version 2.0, remote software version %s", self.peer_software)
        self.order.happened(Event.IDENTIFIED)

    def _count_early(self, size: int) -> None:
        """Limits what a client may cost before it has logged in."""
        self._early_packets += 1
        self._early_bytes += size
        too_many = self._early_packets > EARLY_PACKETS or self._early_bytes > EARLY_BYTES
        if too_many and self.role is Role.SERVER:
            raise ProtocolError("too many packets before the login")

    def _dispatch(self, payload: bytes) -> None:
        number, order = payload[0], self.order
        self.activity += number in _ACTIVITY
        if not order.is_logged_in:
            self._count_early(len(payload))
        if self._skip_guess and order.phase is Phase.EXCHANGE and 30 <= number <= 49:
            self._skip_guess = False  # RFC 4253 section 7: a guess that was wrong
            return
        match order.verdict(number):
            case Verdict.HANDLE:
                if number == ExtInfo.number:
                    order.happened(Event.EXT_INFO_RECEIVED)
                elif order.phase is Phase.FRESH:
                    order.happened(Event.FIRST_RECEIVED)
                handler = self._HANDLERS.get(number)
                if handler is None:
                    self._upper.message(payload)
                else:
                    handler.call(self, payload)
                if self._writer.unsent > self._answers_limit:
                    raise ProtocolError(UNREAD)
            case Verdict.SKIP:
                pass
            case Verdict.UNKNOWN:
                sequence = (self._reader.sequence - 1) & 0xFFFFFFFF
                self.send(Unimplemented(sequence))
            case Verdict.REFUSE:
                raise ProtocolError(f"message {number} while waiting for {order.phase.name}")

    def _on_disconnect(self, message: Disconnect) -> None:
        raise PeerDisconnected(message.description or "the peer disconnected")

    def _on_nothing(self, payload: bytes) -> None:
        """Ignores a message that needs no answer; its fields are not read."""

    def _on_debug(self, message: Debug) -> None:
        _log.debug("Remote: %s", message.message)

    def _on_unimplemented(self, message: Unimplemented) -> None:
        if self.order.phase is not _OPEN:
            raise ProtocolError("the peer does not know a message that every peer must know")

    def _on_ping(self, message: Ping) -> None:
        self.send(Pong(message.data))

    # -- key exchange ----------------------------------------------------------------

    def rekey(self) -> None:
        """Begins a key exchange, unless one is under way."""
        if self._handshake is None and self.order.phase is _OPEN:
            self._begin_exchange()

    def use_own_cipher_order(self) -> None:
        """Begins a key exchange if our order of ciphers gives another one than the client's.

        By RFC 4253 section 7.1 the client's order decides. OpenSSH's clients before version 10
        put ChaCha20 first, which takes twice as long as AES where the CPU has instructions
        for AES. Only ciphers that the client offers, too, are considered.
        """
        theirs, agreed = self._theirs, self._negotiated
        offered = {*theirs.encryption_algorithms_client_to_server} & {
            *theirs.encryption_algorithms_server_to_client
        }
        algorithms = self._settings.algorithms
        best = next((name for name in algorithms.cipher if name in offered), None)
        if best is not None and {agreed.to_server.cipher, agreed.to_client.cipher} != {best}:
            self._settings = self._settings._replace(algorithms=algorithms._replace(cipher=(best,)))
            self.rekey()

    def _begin_exchange(self) -> None:
        ours = our_kexinit(self.role, self._algorithms(), self._random(16), not self.session_id)
        self._writer.packet(ours.encode())
        self._held, self._held_bytes = [], 0
        self._handshake = Handshake(self.role, ours)
        self._handshake_started = self._now

    def _algorithms(self) -> Algorithms:
        algorithms = self._settings.algorithms
        if isinstance(self._side, ServerSide):
            have = self._side.host_keys
            algorithms = algorithms._replace(
                host_key=tuple(name for name in algorithms.host_key if name in have)
            )
        return algorithms

    def _on_kexinit(self, payload: bytes) -> None:
        if self._handshake is None:
            self._begin_exchange()
        handshake = self._handshake
        assert handshake is not None
        if self.role is Role.CLIENT:
            versions = Versions(self._our_version, self.peer_version)
        else:
            versions = Versions(self.peer_version, self._our_version)
        theirs = self._theirs = handshake.receive_kexinit(payload, versions)
        order = self.order
        if order.is_first:
            marker = STRICT_SERVER if self.role is Role.CLIENT else STRICT_CLIENT
            order.strict = marker in theirs.kex_algorithms
            self._peer_takes_extensions = EXT_INFO_CLIENT in theirs.kex_algorithms
            if order.strict and self._reader.sequence != 1:
                raise ProtocolError("a strict peer sent something before its KEXINIT")
        order.happened(Event.KEXINIT_RECEIVED)
        if not order.is_logged_in:
            self._early_exchanges += 1
            if self._early_exchanges > EXCHANGES_BEFORE_LOGIN:
                raise ProtocolError("too many key exchanges before the login")
        if self._trace is not None:
            self._trace.key_exchange = handshake.negotiated.key_exchange
        self._skip_guess = handshake.negotiated.wrong_guess
        if self.role is Role.CLIENT:
            self._writer.packet(KexInitiate(handshake.begin()).encode())

    def _on_kex_initiate(self, message: KexInitiate) -> None:
        handshake, side = self._handshake, self._side
        assert handshake is not None and isinstance(side, ServerSide)
        algorithm = handshake.negotiated.host_key
        self.host_key = side.host_keys[algorithm]
        public = handshake.answer(message.client_public, self.host_key)
        signature = side.sign(algorithm, handshake.exchange_hash)
        self._writer.packet(KexReply(self.host_key, public, signature).encode())
        self._send_newkeys(handshake)

    def _on_kex_reply(self, message: KexReply) -> None:
        handshake, side = self._handshake, self._side
        assert handshake is not None and isinstance(side, ClientSide)
        algorithm = handshake.negotiated.host_key
        load = load_offered_key if is_certificate_name(algorithm) else load_public_key
        key = load(message.host_key)
        handshake.finish(message.server_public, message.host_key)
        if not key.verify(algorithm, message.signature, handshake.exchange_hash):
            raise KeyExchangeFailed(
                "the server's signature is wrong: the connection may be intercepted"
            )
        if self.order.is_first:
            side.check_host_key(key)
            self.host_key = message.host_key
            self._host_signature = message.signature
        elif message.host_key != self.host_key:
            raise KeyExchangeFailed("the server changed its host key during the connection")
        self._send_newkeys(handshake)

    def _send_newkeys(self, handshake: Handshake) -> None:
        """Sends NEWKEYS, and all messages that waited for it."""
        if not self.session_id:
            self.session_id = handshake.exchange_hash
        self._writer.packet(NewKeys().encode())
        to_server = self.role is Role.CLIENT
        self._writer.rekey(handshake.keys(self.session_id, to_server), self.order.strict)
        if self.order.is_logged_in:
            self._start_compression(handshake.negotiated)
        held, self._held = self._held or [], None
        if self.order.is_first:
            self._tell_extensions()
            self._upper.keys_agreed()
        for payload in held:
            self._writer.packet(payload)
        self.order.happened(Event.NEWKEYS_SENT)

    def _on_newkeys(self, message: NewKeys) -> None:
        handshake = self._handshake
        assert handshake is not None
        keys = handshake.keys(self.session_id, self.role is Role.SERVER)
        self._reader.rekey(keys, self.order.strict)
        if self.order.is_logged_in:
            self._start_decompression(handshake.negotiated)
        self._negotiated = handshake.negotiated
        self._handshake = None
        self._keys_since = self._now
        self.order.happened(Event.NEWKEYS_RECEIVED)

    def _start_compression(self, agreed: Negotiated) -> None:
        """Begins zlib@openssh.com, if agreed upon: after the login, and anew with new keys."""
        choice = agreed.to_server if self.role is Role.CLIENT else agreed.to_client
        if choice.compression != "none":
            self._writer.start_compression()

    def _start_decompression(self, agreed: Negotiated) -> None:
        choice = agreed.to_client if self.role is Role.CLIENT else agreed.to_server
        if choice.compression != "none":
            self._reader.start_decompression()

    def _tell_extensions(self) -> None:
        """Sends a server's EXT_INFO (RFC 8308): the first message behind the first NEWKEYS."""
        side = self._side
        if not isinstance(side, ServerSide) or not self._peer_takes_extensions:
            return
        # Plain names only: under a certificate the key within signs, by its own algorithm's name.
        signatures = (
            name for name in self._settings.algorithms.user_key if not is_certificate_name(name)
        )
        extensions = (
            ("server-sig-algs", ",".join(signatures).encode()),
            ("publickey-hostbound@openssh.com", b"0"),
            ("ping@openssh.com", b"0"),
            *((name, b"0") for name in side.extensions),
        )
        self._writer.packet(ExtInfo(extensions).encode())

    def _on_ext_info(self, message: ExtInfo) -> None:
        self._peer_extensions.update(message.extensions)

    def authenticated(self) -> None:
        """Allows channels and large packets from now on, and begins the agreed compression."""
        self.order.happened(Event.AUTHENTICATED)
        self._reader.limit = PACKET_LIMIT
        self._answers_limit = ANSWERS_LIMIT
        self._start_compression(self._negotiated)
        self._start_decompression(self._negotiated)

    _HANDLERS: ClassVar[Mapping[int, Handler]] = {
        Disconnect.number: Handler(Disconnect, _on_disconnect),
        Ignore.number: Handler(None, _on_nothing),
        Unimplemented.number: Handler(Unimplemented, _on_unimplemented),
        Debug.number: Handler(Debug, _on_debug),
        ExtInfo.number: Handler(ExtInfo, _on_ext_info),
        KexInit.number: Handler(None, _on_kexinit),  # its bytes enter the exchange hash
        NewKeys.number: Handler(NewKeys, _on_newkeys),
        KexInitiate.number: Handler(KexInitiate, _on_kex_initiate),
        KexReply.number: Handler(KexReply, _on_kex_reply),
        Ping.number: Handler(Ping, _on_ping),
    }
