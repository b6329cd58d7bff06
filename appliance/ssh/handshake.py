"""One key exchange: from two KEXINIT messages to the keys of both directions.

RFC 4253 sections 7 and 8, RFC 8308 section 2.1, OpenSSH PROTOCOL 1.10 (strict). An object
lives for one exchange; the connection begins another one to rekey.
"""

import hashlib
import logging
from typing import Final, NamedTuple

from ..crypto.ciphers import Cipher, suite
from ..crypto.key_exchange import METHODS, derive
from ..crypto.suites import (
    EXT_INFO_CLIENT,
    EXT_INFO_SERVER,
    STRICT_CLIENT,
    STRICT_SERVER,
    Algorithms,
    Choice,
    choose,
    choose_mac,
)
from ..wire.codec import write_string
from ..wire.messages import KexInit
from .order import Role

_log = logging.getLogger(__name__)

_MARKERS: Final = (EXT_INFO_CLIENT, EXT_INFO_SERVER, STRICT_CLIENT, STRICT_SERVER)


def our_kexinit(role: Role, algorithms: Algorithms, cookie: bytes, first: bool) -> KexInit:
    """The KEXINIT that we send; its markers stand in the first exchange only."""
    markers: tuple[str, ...] = ()
    if first and role is Role.CLIENT:
        markers = (EXT_INFO_CLIENT, STRICT_CLIENT)
    elif first:
        markers = (EXT_INFO_SERVER, STRICT_SERVER)
    cipher, mac, compression = algorithms.cipher, algorithms.mac, algorithms.compression
    return KexInit(
        cookie,
        algorithms.key_exchange + markers,
        algorithms.host_key,
        cipher,
        cipher,
        mac,
        mac,
        compression,
        compression,
    )


class Negotiated(NamedTuple):
    """The algorithms that two KEXINIT messages agree on."""

    key_exchange: str
    host_key: str
    to_server: Choice
    to_client: Choice
    wrong_guess: bool  # the peer's next packet is a key exchange message to be skipped


def negotiate(role: Role, ours: KexInit, theirs: KexInit) -> Negotiated:
    """Chooses the algorithms (RFC 4253 section 7.1).

    Raises KeyExchangeFailed if both sides have none in common.
    """
    client, server = (ours, theirs) if role is Role.CLIENT else (theirs, ours)
    method = choose(
        "key exchange method",
        tuple(name for name in client.kex_algorithms if name not in _MARKERS),
        tuple(name for name in server.kex_algorithms if name not in _MARKERS),
    )
    host_key = choose(
        "host key algorithm", client.server_host_key_algorithms, server.server_host_key_algorithms
    )
    to_server = choose(
        "cipher",
        client.encryption_algorithms_client_to_server,
        server.encryption_algorithms_client_to_server,
    )
    to_client = choose(
        "cipher",
        client.encryption_algorithms_server_to_client,
        server.encryption_algorithms_server_to_client,
    )
    guessed_right = (
        theirs.kex_algorithms[:1] == ours.kex_algorithms[:1]
        and theirs.server_host_key_algorithms[:1] == ours.server_host_key_algorithms[:1]
    )
    return Negotiated(
        method,
        host_key,
        Choice(
            to_server,
            choose_mac(
                to_server,
                client.mac_algorithms_client_to_server,
                server.mac_algorithms_client_to_server,
            ),
            choose(
                "compression",
                client.compression_algorithms_client_to_server,
                server.compression_algorithms_client_to_server,
            ),
        ),
        Choice(
            to_client,
            choose_mac(
                to_client,
                client.mac_algorithms_server_to_client,
                server.mac_algorithms_server_to_client,
            ),
            choose(
                "compression",
                client.compression_algorithms_server_to_client,
                server.compression_algorithms_server_to_client,
            ),
        ),
        theirs.first_kex_packet_follows and not guessed_right,
    )


def _tell_offer(theirs: KexInit) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        for what, names in (
            ("KEX algorithms", theirs.kex_algorithms),
            ("host key algorithms", theirs.server_host_key_algorithms),
            ("ciphers", theirs.encryption_algorithms_server_to_client),
            ("MACs", theirs.mac_algorithms_server_to_client),
            ("compression", theirs.compression_algorithms_server_to_client),
        ):
            _log.debug("peer offers %s: %s", what, ",".join(names))


def _tell_choice(agreed: Negotiated) -> None:
    _log.debug("kex: algorithm: %s", agreed.key_exchange)
    _log.debug("kex: host key algorithm: %s", agreed.host_key)
    for way, choice in (("server->client", agreed.to_client), ("client->server", agreed.to_server)):
        words = choice.cipher, choice.mac or "<implicit>", choice.compression
        _log.debug("kex: %s cipher: %s MAC: %s compression: %s", way, *words)


class Versions(NamedTuple):
    """Both identification strings, without line ends."""

    client: bytes
    server: bytes


class Handshake:
    """One key exchange.

    ``ours`` is sent already. After ``receive_kexinit`` the client calls ``begin`` and
    ``finish``, the server ``answer``; both then find the result in ``exchange_hash``, and get
    the ciphers from ``keys``.
    """

    def __init__(self, role: Role, ours: KexInit) -> None:
        self._role = role
        self._ours = ours
        self._theirs = b""
        self.exchange_hash = b""
        self._shared = b""
        self.negotiated: Negotiated

    def receive_kexinit(self, payload: bytes, versions: Versions) -> KexInit:
        """Reads the peer's KEXINIT, and negotiates; raises KeyExchangeFailed, MalformedMessage."""
        theirs = KexInit.decode(payload)
        _tell_offer(theirs)
        self._theirs = payload
        self._versions = versions
        self.negotiated = negotiate(self._role, self._ours, theirs)
        _tell_choice(self.negotiated)
        self._method = METHODS[self.negotiated.key_exchange]
        self._exchange = self._method.begin()
        return theirs

    def begin(self) -> bytes:
        """The client's public value."""
        self._client_public = self._exchange.client_public()
        return self._client_public

    def answer(self, client_public: bytes, host_key: bytes) -> bytes:
        """The server's public value; raises KeyExchangeFailed."""
        server_public, self._shared = self._exchange.server_answer(client_public)
        self._hash(client_public, server_public, host_key)
        return server_public

    def finish(self, server_public: bytes, host_key: bytes) -> None:
        """Completes the client's exchange; raises KeyExchangeFailed."""
        self._shared = self._exchange.client_finish(server_public)
        self._hash(self._client_public, server_public, host_key)

    def _hash(self, client_public: bytes, server_public: bytes, host_key: bytes) -> None:
        ours, theirs = self._ours.encode(), self._theirs
        client, server = (ours, theirs) if self._role is Role.CLIENT else (theirs, ours)
        values = (
            self._versions.client,
            self._versions.server,
            client,
            server,
            host_key,
            client_public,
            server_public,
        )
        data = b"".join(map(write_string, values)) + self._shared
        self.exchange_hash = hashlib.new(self._method.digest, data).digest()

    def keys(self, session_id: bytes, to_server: bool) -> Cipher:
        """The cipher of one direction (RFC 4253 section 7.2)."""
        choice = self.negotiated.to_server if to_server else self.negotiated.to_client
        kind = suite(choice.cipher, choice.mac)

        def part(letters: bytes, length: int) -> bytes:
            letter = letters[:1] if to_server else letters[1:]
            return derive(
                self._method.digest, self._shared, self.exchange_hash, letter, session_id, length
            )

        return kind.make(
            part(b"CD", kind.key_length),
            part(b"AB", kind.iv_length),
            part(b"EF", kind.mac_key_length),
        )
