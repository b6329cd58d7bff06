"""Connects the server with itself, in memory, to load everything that a connection needs.

The listener loads late imports and OpenSSL's tables once. The forked workers share them, and need
no files, which they can no longer open.
"""

import os

from ..crypto.key_exchange import METHODS
from ..crypto.keys import PrivateKey, PublicKey, generate, load_public_key
from ..crypto.suites import Algorithms
from ..ssh.auth_client import Identity
from ..ssh.auth_server import Offer, Outcome
from ..ssh.connection import Connection, ConnectionHandler
from ..ssh.settings import ClientSide, ServerSide, Settings


class _Authority:
    """Accepts every user with a key."""

    def begin(self, user: str) -> Outcome:
        return Outcome(False, ("publickey",))

    def refuse(self, user: str, method: str) -> Outcome:
        return Outcome(False)

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        load_public_key(offer.blob)
        return None

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        return Outcome(True)

    def prompt(self, user: str) -> str:
        return ""

    def password(self, user: str, method: str, password: bytes) -> Outcome:
        return Outcome(False)


class _Credentials:
    """The client's credentials: one key."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    def identities(self) -> list[Identity]:
        public = self._key.public
        return [Identity(public.blob, public.signature_algorithms, self._key.sign, True, "")]

    def password(self) -> str | None:
        return None

    def answers(
        self, name: str, instruction: str, prompts: tuple[tuple[str, bool], ...]
    ) -> tuple[str, ...] | None:
        return None


def rehearse(algorithms: Algorithms) -> None:
    """Runs every cipher, MAC and key exchange once."""
    key = generate("ssh-ed25519")
    macs = algorithms.mac * len(algorithms.cipher)
    for cipher, mac in zip(algorithms.cipher, macs, strict=False):
        _connect(key, algorithms._replace(cipher=(cipher,), mac=(mac,)))
    for method in algorithms.key_exchange:
        exchange = METHODS[method].begin()
        exchange.server_answer(METHODS[method].begin().client_public())


def _connect(key: PrivateKey, algorithms: Algorithms) -> None:
    settings = Settings(algorithms._replace(host_key=("ssh-ed25519",)))

    def trust(_: PublicKey) -> None:
        """Accepts any host key: the server is this process."""

    host_keys = {"ssh-ed25519": key.public.blob}
    sides = (
        ServerSide(host_keys, key.sign, _Authority()),
        ClientSide("root", trust, _Credentials(key)),
    )
    server, client = (
        Connection(side, settings, ConnectionHandler(), os.urandom, 0.0).transport for side in sides
    )
    while client.unsent or server.unsent:
        for one, other in ((client, server), (server, client)):
            data = bytes(one.data_to_send())
            one.sent(len(data))
            other.receive_data(data, 0.0)
