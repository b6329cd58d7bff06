"""A connection of the server with itself, in memory: whatever it needs is then loaded.

Modules that are imported late, and OpenSSL's tables, are all touched once in
the listener; the forked workers share them, and need no file of the root that they lost.
"""

import os

from ..crypto.key_exchange import METHODS
from ..crypto.keys import PrivateKey, PublicKey, generate, load_public_key
from ..crypto.suites import Algorithms
from ..ssh.auth_client import Identity
from ..ssh.auth_server import Offer, Outcome
from ..ssh.connection import ClientSide, Connection, ConnectionHandler, ServerSide, Settings


class _Everybody:
    """An authority that accepts any signature, and credentials that hold one key."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    def begin(self, user: str) -> Outcome:
        return Outcome(False, ("publickey",))

    def refuse(self, user: str, method: str) -> Outcome:
        return Outcome(False)

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        load_public_key(offer.blob)
        return None

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        return Outcome(True)

    def password(self, user: str = "", method: str = "", password: bytes = b"") -> Outcome:
        return Outcome(False)

    def identities(self) -> list[Identity]:
        public = self._key.public
        return [Identity(public.blob, public.signature_algorithms, self._key.sign, True, "")]


class _Credentials(_Everybody):
    def password(self) -> None:  # type: ignore[override]
        return None

    def answers(self, name: str, instruction: str, prompts: object) -> None:
        return None


def rehearse(algorithms: Algorithms) -> None:
    """Run through every key exchange and cipher once."""
    key = generate("ssh-ed25519")
    for cipher, mac in zip(algorithms.cipher, algorithms.mac * 2, strict=False):
        _connect(key, algorithms._replace(cipher=(cipher,), mac=(mac,)))
    for method in algorithms.key_exchange:
        exchange = METHODS[method].begin()
        exchange.server_answer(METHODS[method].begin().client_public())


def _connect(key: PrivateKey, algorithms: Algorithms) -> None:
    settings = Settings(algorithms._replace(host_key=("ssh-ed25519",)))

    def trust(_: PublicKey) -> None:
        """Ourselves."""

    server = Connection(
        ServerSide({"ssh-ed25519": key.public.blob}, key.sign, _Everybody(key)),
        settings, ConnectionHandler(), os.urandom, 0.0,
    )
    client = Connection(
        ClientSide("root", trust, _Credentials(key)),
        settings, ConnectionHandler(), os.urandom, 0.0,
    )
    while client.unsent or server.unsent:
        for one, other in ((client, server), (server, client)):
            data = bytes(one.data_to_send())
            one.sent(len(data))
            other.receive_data(data, 0.0)
