"""Certificates of hosts in the key exchange: what the client judges, and what it never sees."""

import os

import pytest

from appliance.crypto.certificates import NONCE_BYTES, Certificate, CertType, Terms, issue
from appliance.crypto.keys import PrivateKey, PublicKey, certificate_name, generate
from appliance.errors import KeyExchangeFailed, MalformedMessage, PeerError
from appliance.ssh.connection import Connection
from appliance.ssh.settings import ClientSide, ServerSide, Settings
from tests.protocol.harness import (
    FAST,
    HOST_KEY,
    USER,
    Recorder,
    TestAuthority,
    TestCredentials,
)

AUTHORITY = generate("ssh-ed25519")
OTHER = generate("ssh-ed25519")
PLAIN = "ssh-ed25519"
CERTIFIED = certificate_name(PLAIN)


def certificate(key: PublicKey = HOST_KEY.public) -> Certificate:
    terms = Terms(CertType.HOST, "host", ("host",))
    return issue(AUTHORITY, PLAIN, key, terms, bytes(NONCE_BYTES))


def exchanged(
    algorithm: str, blob: bytes, signer: PrivateKey = HOST_KEY
) -> tuple[PeerError | None, list[PublicKey]]:
    """How the client's key exchange ends with a server that shows ``blob``; what it judged."""
    judged: list[PublicKey] = []
    settings = Settings(FAST._replace(host_key=(algorithm,)))
    server, client = (
        Connection(side, settings, Recorder(), os.urandom, 0.0).transport
        for side in (
            ServerSide(
                {algorithm: blob}, lambda _, data: signer.sign(PLAIN, data), TestAuthority()
            ),
            ClientSide(USER, judged.append, TestCredentials()),
        )
    )
    while client.unsent or server.unsent:
        for one, other in ((client, server), (server, client)):
            data = bytes(one.data_to_send())
            one.sent(len(data))
            other.receive_data(data, 0.0)
    return client.error, judged


def test_a_certificate_under_its_name_is_the_clients_to_judge() -> None:
    made = certificate()
    error, judged = exchanged(CERTIFIED, made.blob)
    assert error is None
    assert judged == [made] and isinstance(judged[0], Certificate)


@pytest.mark.parametrize(
    ("algorithm", "blob", "signer", "expected"),
    [
        (CERTIFIED, certificate(OTHER.public).blob, HOST_KEY, KeyExchangeFailed),
        (CERTIFIED, certificate().blob, OTHER, KeyExchangeFailed),
        (CERTIFIED, certificate().blob, AUTHORITY, KeyExchangeFailed),
        (CERTIFIED, HOST_KEY.public.blob, HOST_KEY, KeyExchangeFailed),
        (PLAIN, certificate().blob, HOST_KEY, MalformedMessage),
        (CERTIFIED, certificate().blob[:-1], HOST_KEY, MalformedMessage),
        (CERTIFIED, certificate().blob + b"\0", HOST_KEY, MalformedMessage),
        (CERTIFIED, b"", HOST_KEY, MalformedMessage),
        (certificate_name("rsa-sha2-512"), certificate().blob, HOST_KEY, KeyExchangeFailed),
    ],
    ids=range(9),
)
def test_what_does_not_fit_together_is_refused_before_anybody_judges_it(
    algorithm: str, blob: bytes, signer: PrivateKey, expected: type[PeerError]
) -> None:
    error, judged = exchanged(algorithm, blob, signer)
    assert type(error) is expected
    assert not judged
