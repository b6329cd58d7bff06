"""A connection's two ends in memory, and an end that a test plays by itself.

`Pair` joins two real connections and moves bytes and time between them. `Script` is a peer of one
real connection that sends whatever it is told: it owns keys and sequence numbers, so that what it
says arrives intact, however wrong it is.
"""

import os
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

from appliance.crypto.keys import PrivateKey, PublicKey, generate
from appliance.crypto.suites import Algorithms, default_algorithms
from appliance.errors import PeerError
from appliance.ssh.auth_client import Credentials, Identity
from appliance.ssh.auth_server import SERVICE, Authority, Offer, Outcome, signed_data
from appliance.ssh.channels import Channel, ChannelHandler
from appliance.ssh.connection import Connection, ConnectionHandler
from appliance.ssh.handshake import Handshake, Versions, our_kexinit
from appliance.ssh.order import Role
from appliance.ssh.packets import PACKET_LIMIT, PacketReader, PacketWriter
from appliance.ssh.settings import ClientSide, ServerSide, Settings
from appliance.wire.codec import Message, write_boolean, write_text
from appliance.wire.messages import (
    ChannelOpen,
    ChannelOpenConfirmation,
    Disconnect,
    KexInitiate,
    KexReply,
    NewKeys,
    ServiceAccept,
    ServiceRequest,
    UserauthRequest,
    UserauthSuccess,
)

HOST_KEY = generate("ssh-ed25519")
USER_KEY = generate("ssh-ed25519")
OTHER_KEY = generate("ssh-ed25519")
USER = "somebody"
PASSWORD = b"right"
METHODS = ("publickey", "password", "keyboard-interactive")

ALL = default_algorithms(True)
FAST = ALL._replace(
    key_exchange=("curve25519-sha256",), host_key=("ssh-ed25519",), compression=("none",)
)

Event = tuple[Any, ...]  # a name, and what belongs to it


class Limits(TypedDict, total=False):
    """What a test may set of a connection's Settings."""

    rekey_bytes: int
    rekey_seconds: float
    window: int
    trace: bool


class TestAuthority(Authority):
    """Accepts USER_KEY and PASSWORD, and remembers what it was asked."""

    __test__ = False

    def __init__(self) -> None:
        self.session_id: Callable[[], bytes] = bytes
        self.asked: list[Event] = []

    def begin(self, user: str) -> Outcome:
        self.asked.append(("none", user))
        return Outcome(False, METHODS)

    def refuse(self, user: str, method: str) -> Outcome:
        self.asked.append(("refuse", user, method))
        return Outcome(False, METHODS)

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        self.asked.append(("show", offer.user))
        return None if offer.blob == USER_KEY.public.blob else Outcome(False, METHODS)

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        self.asked.append(("key", offer.user))
        data = signed_data(self.session_id(), offer)
        good = offer.blob == USER_KEY.public.blob and USER_KEY.public.verify(
            offer.algorithm, signature, data
        )
        return Outcome(good, METHODS)

    def prompt(self, user: str) -> str:
        return "Password: "

    def password(self, user: str, method: str, password: bytes) -> Outcome:
        self.asked.append((method, user))
        return Outcome(password == PASSWORD, METHODS)


class TestCredentials(Credentials):
    """One key, shown before it is used, and one password."""

    __test__ = False

    def __init__(
        self, key: PrivateKey | None = USER_KEY, password: str | None = PASSWORD.decode()
    ) -> None:
        self._key = key
        self._password = password

    def identities(self) -> list[Identity]:
        if self._key is None:
            return []
        public = self._key.public
        return [Identity(public.blob, public.signature_algorithms, self._key.sign, True, "a key")]

    def password(self) -> str | None:
        return self._password

    def answers(
        self, name: str, instruction: str, prompts: tuple[tuple[str, bool], ...]
    ) -> tuple[str, ...] | None:
        return None if self._password is None else (self._password,) * len(prompts)


class Recording(ChannelHandler):
    """Writes down what happens on a channel, and gives the window back at once."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.channel: Channel
        self.consumes = True

    def opened(self, type_data: bytes) -> None:
        self.events.append(("opened", type_data))

    def open_failed(self, reason_code: int, description: str) -> None:
        self.events.append(("open_failed", reason_code))

    def data(self, view: memoryview) -> None:
        self.events.append(("data", bytes(view)))
        if self.consumes:
            self.channel.consume(len(view))

    def extended_data(self, code: int, view: memoryview) -> None:
        self.events.append(("extended_data", code, bytes(view)))
        if self.consumes:
            self.channel.consume(len(view))

    def eof(self) -> None:
        self.events.append(("eof",))

    def request(self, request_type: str, request_data: bytes) -> bool:
        self.events.append(("request", request_type, request_data))
        return request_type != "no"

    def resume(self) -> None:
        self.events.append(("resume",))

    def closed(self) -> None:
        self.events.append(("closed",))


class Recorder(ConnectionHandler):
    """Accepts every channel, and writes down what happens on the connection."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.channels: list[Channel] = []
        self.handler: Callable[[list[Event]], Recording] = Recording

    def authenticated(self) -> None:
        self.events.append(("authenticated",))

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        self.events.append(("channel_open", channel.channel_type, type_data))
        handler = self.handler(self.events)
        handler.channel = channel
        self.channels.append(channel)
        channel.accept(handler)

    def global_request(self, name: str, data: bytes) -> bytes | None:
        self.events.append(("global_request", name, data))
        return b"" if name == "yes" else None

    def banner(self, text: str) -> None:
        self.events.append(("banner", text))

    def closed(self, error: PeerError | None) -> None:
        self.events.append(("connection closed",))


def trust(key: PublicKey) -> None:
    """A host key check that succeeds."""
    assert key.blob == HOST_KEY.public.blob


def make_server(
    recorder: ConnectionHandler,
    algorithms: Algorithms = FAST,
    authority: TestAuthority | None = None,
    banner: str = "",
    **settings: Unpack[Limits],
) -> Connection:
    """A server with HOST_KEY."""
    authority = authority or TestAuthority()
    connection = Connection(
        ServerSide({"ssh-ed25519": HOST_KEY.public.blob}, HOST_KEY.sign, authority, banner),
        Settings(algorithms, **settings),
        recorder,
        os.urandom,
        0.0,
    )
    authority.session_id = lambda: connection.transport.session_id
    return connection


def make_client(
    recorder: ConnectionHandler,
    algorithms: Algorithms = FAST,
    credentials: Credentials | None = None,
    check: Callable[[PublicKey], None] = trust,
    methods: tuple[str, ...] = METHODS,
    **settings: Unpack[Limits],
) -> Connection:
    """A client that has USER_KEY and PASSWORD."""
    return Connection(
        ClientSide(USER, check, credentials or TestCredentials(), methods),
        Settings(algorithms, **settings),
        recorder,
        os.urandom,
        0.0,
    )


class Pair:
    """A client and a server with nothing between them."""

    def __init__(
        self,
        algorithms: Algorithms = FAST,
        client_algorithms: Algorithms | None = None,
        credentials: Credentials | None = None,
        methods: tuple[str, ...] = METHODS,
        banner: str = "",
        **settings: Unpack[Limits],
    ) -> None:
        self.now = 0.0
        self.authority = TestAuthority()
        self.at_server, self.at_client = Recorder(), Recorder()
        self.server = make_server(self.at_server, algorithms, self.authority, banner, **settings)
        self.client = make_client(
            self.at_client, client_algorithms or algorithms, credentials, trust, methods, **settings
        )

    def pump(self, size: int = 1 << 20) -> None:
        """Move bytes, at most `size` at once, until nobody has anything to say."""
        ends = ((self.client, self.server), (self.server, self.client))
        while self.client.transport.unsent or self.server.transport.unsent:
            for sender, receiver in ends:
                self.move(sender, receiver, size)

    def move(self, sender: Connection, receiver: Connection, size: int = 1 << 20) -> bytes:
        """Take what `sender` has to say to `receiver`, and return it."""
        data = bytes(sender.transport.data_to_send())
        sender.transport.sent(len(data))
        for at in range(0, len(data), size):
            receiver.transport.receive_data(data[at : at + size], self.now)
        sender.wake()
        return data

    def open(self, channel_type: str = "session") -> tuple[Channel, Channel]:
        """A channel that the client opens, as each side has it."""
        handler = Recording(self.at_client.events)
        channel = self.client.open_channel(channel_type, b"", handler)
        handler.channel = channel
        self.pump()
        return channel, self.at_server.channels[-1]

    def log_in(self) -> "Pair":
        """Up to a user who is authenticated."""
        self.pump()
        assert self.client.transport.error is None and self.server.transport.error is None
        assert ("authenticated",) in self.at_client.events
        return self


class Script:
    """A peer of `peer` that follows no rule but its test's.

    It keeps the keys of both directions, and finishes the half of a key exchange that needs no
    message of its own; everything else is said by the test.
    """

    def __init__(
        self, peer: Connection, *, markers: bool = True, algorithms: Algorithms = FAST
    ) -> None:
        self.peer = peer
        self.role = Role.CLIENT if peer.transport.role is Role.SERVER else Role.SERVER
        self.now = 0.0
        self.markers = markers
        self.algorithms = algorithms
        self.writer, self.reader = PacketWriter(os.urandom), PacketReader()
        self.reader.limit = PACKET_LIMIT
        self.version = b"SSH-2.0-OpenSSH_Script"
        self.peer_version = b""
        self.session_id = b""
        self.handshake: Handshake | None = None
        self.their_kexinit = b""
        self.public = b""

    # -- saying ----------------------------------------------------------------------

    def raw(self, data: bytes) -> "Script":
        """Bytes that are no packet."""
        self.writer.raw(data)
        return self.flush()

    def queue(self, *messages: Message | bytes) -> "Script":
        """Packets, to be sent with what comes later."""
        for message in messages:
            self.writer.packet(message if isinstance(message, bytes) else message.encode())
        return self

    def send(self, *messages: Message | bytes) -> "Script":
        """Packets, now."""
        return self.queue(*messages).flush()

    def flush(self) -> "Script":
        """Have the peer read."""
        data = bytes(self.writer.data_to_send())
        self.writer.sent(len(data))
        self.peer.transport.receive_data(data, self.now)
        return self

    # -- hearing ---------------------------------------------------------------------

    def take(self) -> bytes | None:
        """The next message of the peer's."""
        payload = self._next()
        if payload is None:
            self._pull()
            payload = self._next()
        if payload is not None:
            self._follow(payload)
        return payload

    def _pull(self) -> None:
        data = bytes(self.peer.transport.data_to_send())
        self.peer.transport.sent(len(data))
        view = memoryview(data)
        while len(view):
            space = self.reader.space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self.reader.filled(count)
            view = view[count:]

    def _next(self) -> bytes | None:
        if not self.peer_version:
            self.peer_version = self.reader.line(255) or b""
            if not self.peer_version:
                return None
        found = self.reader.next()
        return None if found is None else bytes(found)

    def _follow(self, payload: bytes) -> None:
        handshake = self.handshake
        if payload[0] == 20:
            self.their_kexinit = payload
            if handshake is not None:
                handshake.receive_kexinit(payload, self._versions())
        elif payload[0] == 30 and handshake is not None:
            public = KexInitiate.decode(payload).client_public
            self.public = handshake.answer(public, HOST_KEY.public.blob)
        elif payload[0] == 31 and handshake is not None:
            reply = KexReply.decode(payload)
            handshake.finish(reply.server_public, reply.host_key)
        elif payload[0] == 21 and handshake is not None:
            self.session_id = self.session_id or handshake.exchange_hash
            keys = handshake.keys(self.session_id, self.role is Role.SERVER)
            self.reader.rekey(keys, self.markers)

    def _versions(self) -> Versions:
        if self.role is Role.CLIENT:
            return Versions(self.version, self.peer_version)
        return Versions(self.peer_version, self.version)

    def receive(self) -> list[bytes]:
        """All messages that the peer has for us."""
        return list(iter(self.take, None))

    def numbers(self) -> list[int]:
        """Their numbers."""
        return [payload[0] for payload in self.receive()]

    def expect(self, number: int) -> bytes:
        """The next message, which must be this one; IGNORE and EXT_INFO are passed over."""
        while (payload := self.take()) is not None:
            if payload[0] == number:
                return payload
            assert payload[0] in (2, 7), (number, payload, self.peer.transport.error)
        raise AssertionError(f"no message {number}: {self.peer.transport.error!r}")

    # -- a key exchange, step by step ------------------------------------------------

    def begin(self) -> "Script":
        """The identification string."""
        return self.raw(self.version + b"\r\n")

    def kexinit(self, **changes: object) -> "Script":
        """Our KEXINIT, with some fields exchanged."""
        first = self.markers and not self.session_id
        ours = our_kexinit(self.role, self.algorithms, os.urandom(16), first)
        for name, value in changes.items():
            setattr(ours, name, value)
        if not changes.get("kex_algorithms") and not self.markers and not self.session_id:
            ours.kex_algorithms += ("ext-info-c",) if self.role is Role.CLIENT else ("ext-info-s",)
        self.handshake = Handshake(self.role, ours)
        self.send(ours)
        if not self.their_kexinit:
            self.expect(20)
        else:
            self.handshake.receive_kexinit(self.their_kexinit, self._versions())
        self.their_kexinit = b""
        return self

    def initiate(self) -> "Script":
        """The client's public value."""
        assert self.handshake is not None
        return self.send(KexInitiate(self.handshake.begin()))

    def reply(self, key: object = HOST_KEY, signature: bytes | None = None) -> "Script":
        """The server's answer to the client's public value."""
        assert self.handshake is not None
        self.expect(30)
        if signature is None:
            signature = HOST_KEY.sign("ssh-ed25519", self.handshake.exchange_hash)
        return self.send(KexReply(key.public.blob, self.public, signature))  # type: ignore[attr-defined]

    def newkeys(self) -> "Script":
        """NEWKEYS, and new keys in both directions."""
        assert self.handshake is not None
        self.expect(21)
        self.send(NewKeys())
        self.switch()
        self.handshake = None
        return self

    def switch(self) -> None:
        """Send with the new keys from now on."""
        assert self.handshake is not None
        self.session_id = self.session_id or self.handshake.exchange_hash
        keys = self.handshake.keys(self.session_id, self.role is Role.CLIENT)
        self.writer.rekey(keys, self.markers)

    def exchange(self) -> "Script":
        """A whole key exchange."""
        self.kexinit()
        if self.role is Role.CLIENT:
            self.initiate()
            self.expect(31)
        else:
            self.reply()
        return self.newkeys()

    # -- further on ------------------------------------------------------------------

    def connect(self) -> "Script":
        """Up to the first keys."""
        return self.begin().exchange()

    def serve(self) -> "Script":
        """Up to the first authentication request, asked or answered."""
        self.connect()
        if self.role is Role.CLIENT:
            self.send(ServiceRequest("ssh-userauth"))
            self.expect(6)
        else:
            self.expect(5)
            self.send(ServiceAccept("ssh-userauth"))
            self.expect(50)
        return self

    def log_in(self) -> "Script":
        """Up to a user who is authenticated."""
        self.serve()
        if self.role is Role.CLIENT:
            self.send(password_request())
            self.expect(52)
        else:
            self.send(UserauthSuccess())
        return self

    def open(self, window: int = 1 << 20, packet: int = 1 << 15) -> int:
        """Open a session as the client, with channel 7 on our side; the peer's number."""
        self.send(ChannelOpen("session", 7, window, packet))
        return ChannelOpenConfirmation.decode(self.expect(91)).sender_channel

    @property
    def ended(self) -> bool:
        """Whether the peer said DISCONNECT and nothing but that, and closed."""
        numbers = self.numbers()
        return self.peer.transport.error is not None and numbers == [Disconnect.number]


def password_request(user: str = USER, password: bytes = PASSWORD) -> UserauthRequest:
    """A request that is right unless it is told otherwise."""
    fields = write_boolean(False) + write_text(password.decode())
    return UserauthRequest(user, SERVICE, "password", fields)
