"""The key exchange methods: each turns two public values into one shared secret.

All of them have the same steps: the client sends a string, the server answers with a string,
and both compute K, which enters the exchange hash in an encoding that the method prescribes.
For the finite-field methods the strings hold an mpint's bytes.
"""

import hashlib
import secrets
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from ..errors import KeyExchangeFailed, MalformedMessage
from ..wire.codec import Reader, write_mpint, write_string


class Exchange(Protocol):
    """One side's secret in one exchange; raises KeyExchangeFailed for a bad peer value."""

    def client_public(self) -> bytes:
        """The client's public value."""
        ...

    def server_answer(self, client_public: bytes) -> tuple[bytes, bytes]:
        """The server's public value, and K encoded for the hash."""
        ...

    def client_finish(self, server_public: bytes) -> bytes:
        """K encoded for the hash."""
        ...


def _mpint_of(secret: bytes) -> bytes:
    return write_mpint(int.from_bytes(secret, "big"))


class _DiffieHellman:
    """Methods in which both sides do the same: make a pair of keys, and agree on a secret."""

    def _public(self) -> bytes:
        raise NotImplementedError

    def _agree(self, peer_public: bytes) -> bytes:
        raise NotImplementedError

    def client_public(self) -> bytes:
        return self._public()

    def server_answer(self, client_public: bytes) -> tuple[bytes, bytes]:
        return self._public(), self.client_finish(client_public)

    def client_finish(self, server_public: bytes) -> bytes:
        return _mpint_of(self._agree(server_public))


class Curve25519(_DiffieHellman):
    """curve25519-sha256 (RFC 8731)."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import x25519

        self._private = x25519.X25519PrivateKey.generate()
        self._load = x25519.X25519PublicKey.from_public_bytes

    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    def _agree(self, peer_public: bytes) -> bytes:
        try:
            return self._private.exchange(self._load(peer_public))
        except ValueError as error:  # a wrong length, or a result of only zeros
            raise KeyExchangeFailed("the peer's X25519 value is invalid") from error


class NistEcdh(_DiffieHellman):
    """ecdh-sha2-nistp256, -384 and -521 (RFC 5656 section 4)."""

    def __init__(self, bits: int) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._ec = ec
        self._curve: ec.EllipticCurve = {
            256: ec.SECP256R1(),
            384: ec.SECP384R1(),
            521: ec.SECP521R1(),
        }[bits]
        self._private = ec.generate_private_key(self._curve)

    def _public(self) -> bytes:
        numbers = self._private.public_key().public_numbers()
        size = (self._curve.key_size + 7) // 8
        return b"\4" + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")

    def _agree(self, peer_public: bytes) -> bytes:
        try:
            if peer_public[:1] != b"\4":
                raise ValueError("not an uncompressed point")
            key = self._ec.EllipticCurvePublicKey.from_encoded_point(self._curve, peer_public)
            return self._private.exchange(self._ec.ECDH(), key)
        except ValueError as error:
            raise KeyExchangeFailed("the peer's point is not on the curve") from error


class FiniteField(_DiffieHellman):
    """diffie-hellman-group14-sha256 and -group16-sha512 (RFC 8268).

    It uses Python's own integers, since `cryptography` gives up finite fields. The time of
    ``pow`` depends on the exponent, but each exponent is used only once, and only for peers
    that know none of the other methods.
    """

    EXPONENT_BITS: Final = 512  # twice the strength of the strongest cipher

    def __init__(self, bits: int) -> None:
        self._prime = _modp_prime(bits)
        self._secret = secrets.randbits(self.EXPONENT_BITS) | 1 << (self.EXPONENT_BITS - 1)

    def _public(self) -> bytes:
        return write_mpint(pow(2, self._secret, self._prime))[4:]

    def _agree(self, peer_public: bytes) -> bytes:
        try:
            value = Reader(write_string(peer_public)).mpint()
        except MalformedMessage as error:
            raise KeyExchangeFailed("the peer's Diffie-Hellman value is malformed") from error
        if not 1 < value < self._prime - 1:  # RFC 8268 section 4
            raise KeyExchangeFailed("the peer's Diffie-Hellman value is out of range")
        secret = pow(value, self._secret, self._prime)
        return secret.to_bytes(self._prime.bit_length() // 8, "big")


class MlKem768X25519:
    """mlkem768x25519-sha256 (draft-ietf-sshm-mlkem-hybrid-kex): safe if either half is safe.

    C_INIT is ML-KEM's encapsulation key (1184 bytes) and X25519's public key (32),
    S_REPLY its ciphertext (1088) and X25519's public key; K is the SHA-256 of both
    secrets and enters the hash as a string.
    """

    KEY_LENGTH: Final = 1184
    CIPHERTEXT_LENGTH: Final = 1088

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import mlkem

        self._mlkem: Any = mlkem
        self._curve = Curve25519()
        self._decapsulate: Callable[[bytes], bytes] | None = None

    def client_public(self) -> bytes:
        private = self._mlkem.MLKEM768PrivateKey.generate()
        self._decapsulate = private.decapsulate
        key: bytes = private.public_key().public_bytes_raw()
        return key + self._curve.client_public()

    def server_answer(self, client_public: bytes) -> tuple[bytes, bytes]:
        key, point = self._split(client_public, self.KEY_LENGTH)
        try:
            public = self._mlkem.MLKEM768PublicKey.from_public_bytes(key)
            secret, ciphertext = public.encapsulate()
        except ValueError as error:
            raise KeyExchangeFailed("the peer's ML-KEM key is invalid") from error
        return ciphertext + self._curve.client_public(), self._combine(secret, point)

    def client_finish(self, server_public: bytes) -> bytes:
        ciphertext, point = self._split(server_public, self.CIPHERTEXT_LENGTH)
        assert self._decapsulate is not None
        try:
            secret = self._decapsulate(ciphertext)
        except ValueError as error:
            raise KeyExchangeFailed("the peer's ML-KEM ciphertext is invalid") from error
        return self._combine(secret, point)

    @staticmethod
    def _split(value: bytes, first: int) -> tuple[bytes, bytes]:
        if len(value) != first + 32:
            raise KeyExchangeFailed("the peer's hybrid value has the wrong length")
        return value[:first], value[first:]

    def _combine(self, secret: bytes, point: bytes) -> bytes:
        return write_string(hashlib.sha256(secret + self._curve._agree(point)).digest())


class Method(NamedTuple):
    """A key exchange method: its hash, and the function that begins an Exchange."""

    digest: str
    begin: Callable[[], Exchange]


METHODS: Final[dict[str, Method]] = {
    "mlkem768x25519-sha256": Method("sha256", MlKem768X25519),
    "curve25519-sha256": Method("sha256", Curve25519),
    "curve25519-sha256@libssh.org": Method("sha256", Curve25519),
    "ecdh-sha2-nistp256": Method("sha256", lambda: NistEcdh(256)),
    "ecdh-sha2-nistp384": Method("sha384", lambda: NistEcdh(384)),
    "ecdh-sha2-nistp521": Method("sha512", lambda: NistEcdh(521)),
    "diffie-hellman-group16-sha512": Method("sha512", lambda: FiniteField(4096)),
    "diffie-hellman-group14-sha256": Method("sha256", lambda: FiniteField(2048)),
}


# A client can make a server compute these without computing anything itself (D(HE)at,
# CVE-2002-20001), 10 times as long as any other method: a server offers them only if configured.
FINITE_FIELD: Final = ("diffie-hellman-group16-sha512", "diffie-hellman-group14-sha256")


def derive(
    digest: str, shared: bytes, exchange_hash: bytes, letter: bytes, session_id: bytes, length: int
) -> bytes:
    """A key of ``length`` bytes (RFC 4253 section 7.2)."""
    key = hashlib.new(digest, shared + exchange_hash + letter + session_id).digest()
    while len(key) < length:
        key += hashlib.new(digest, shared + exchange_hash + key).digest()
    return key[:length]


def _modp_prime(bits: int) -> int:
    """The safe primes of RFC 3526: 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) pi) + k)."""
    k = {2048: 124476, 4096: 240904}[bits]
    return (1 << bits) - (1 << (bits - 64)) - 1 + ((_pi(bits - 130) + k) << 64)


def _pi(bits: int) -> int:
    """floor(2^bits * pi), by Machin's formula with 64 bits to spare."""
    one = 1 << (bits + 64)

    def arctan_inverse(x: int) -> int:
        power = total = one // x
        n, sign = 3, -1
        while power:
            power //= x * x
            total += sign * (power // n)
            n, sign = n + 2, -sign
        return total

    return (16 * arctan_inverse(5) - 4 * arctan_inverse(239)) >> 64
