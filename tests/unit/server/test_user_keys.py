"""Which keys and certificates a real server takes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from appliance.crypto.certificates import NONCE_BYTES, CertType, Terms, issue
from appliance.crypto.keys import SK_ECDSA, SK_ED25519, PublicKey, generate
from appliance.errors import AuthenticationFailed
from appliance.ssh.auth_client import Identity
from appliance.ssh.order import Phase
from tests.peers import Account
from tests.protocol.harness import TestCredentials
from tests.security_keys import TOUCHED, Token
from tests.unit.server.conftest import Dialler, Serve


class _Shown(TestCredentials):
    """One key or certificate, and how it signs."""

    def __init__(self, key: PublicKey, sign: Callable[[bytes], bytes]) -> None:
        super().__init__(None)
        self._shown = key
        self._sign = sign

    def identities(self) -> list[Identity]:
        algorithms = self._shown.signature_algorithms
        return [
            Identity(self._shown.blob, algorithms, lambda _, data: self._sign(data), True, "a key")
        ]


@pytest.mark.parametrize("key_type", [SK_ED25519, SK_ECDSA])
def test_a_security_key_logs_in_by_its_certificate_when_it_was_touched(
    our_server: Serve,
    dial: Callable[..., Dialler],
    account: Account,
    tmp_path: Path,
    key_type: str,
) -> None:
    authority, token = generate("ssh-ed25519"), Token(key_type)
    path = tmp_path / "authorities"
    path.write_text(authority.public.line())
    server = our_server(f'trusted_user_ca_keys = "{path}"\nper_source_penalties = false\n')
    terms = Terms(CertType.USER, "who", (account.name,))
    made = issue(authority, "ssh-ed25519", token.public, terms, bytes(NONCE_BYTES))
    dial(server, _Shown(made, lambda data: token.sign(data, TOUCHED))).log_in()
    for key, flags in ((made, 0), (token.public, TOUCHED)):
        it = dial(server, _Shown(key, partial(token.sign, flags=flags)))
        assert not it.until(lambda connection: connection.transport.phase is Phase.OPEN)
        assert isinstance(it.connection.transport.error, AuthenticationFailed)
