"""Public and private keys: their wire form, their signatures, their fingerprints.

A public key is known by its blob, the bytes of RFC 4253 section 6.6 that name its type and hold
its numbers. Readers are strict, so one key has one blob: comparing blobs compares keys. A key's
type and the name of a signature's algorithm are different things only for RSA, whose type is
still called ssh-rsa while its signatures are rsa-sha2-512 and rsa-sha2-256 (RFC 8332); SHA-1
is neither made nor accepted. A security key (sk-...) signs a digest of the data with two more
facts: whether somebody touched the device, and a counter (OpenSSH's PROTOCOL.u2f).

A key that a peer offers is untrusted bytes: loading raises MalformedMessage and nothing else,
verifying returns True or False and raises nothing. The classes of `cryptography` are imported
where they are used, because each of them makes the start slower.
"""

from __future__ import annotations

from binascii import b2a_base64, hexlify
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import MalformedMessage
from ..wire.codec import Reader, write_mpint, write_name, write_string

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurve,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    Secret = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey

# Of the specifications
ED25519: Final = "ssh-ed25519"  # RFC 8709
RSA: Final = "ssh-rsa"  # RFC 4253 section 6.6
SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"  # PROTOCOL.u2f
SK_ECDSA: Final = "sk-ecdsa-sha2-nistp256@openssh.com"
SK_USER_PRESENT: Final = 0x01  # flags of a security key's signature
SK_USER_VERIFIED: Final = 0x04
_CERTIFICATE: Final = "-cert-v01@openssh.com"  # PROTOCOL.certkeys

# Signature algorithm -> key type, in our order of preference (no SHA-1, no DSA).
SIGNATURE_ALGORITHMS: Final[dict[str, str]] = {
    ED25519: ED25519,
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "rsa-sha2-512": RSA,
    "rsa-sha2-256": RSA,
    SK_ED25519: SK_ED25519,
    SK_ECDSA: SK_ECDSA,
}


def is_certificate_name(algorithm: str) -> bool:
    """Whether a key type or signature algorithm is that of a certificate."""
    return algorithm.endswith(_CERTIFICATE)


def certificate_name(algorithm: str) -> str:
    """The certificate's name for a key type or signature algorithm."""
    return algorithm.removesuffix("@openssh.com") + _CERTIFICATE


def plain_name(algorithm: str) -> str:
    """The plain name for a certificate's; any other name unchanged."""
    if not is_certificate_name(algorithm):
        return algorithm
    plain = algorithm.removesuffix(_CERTIFICATE)
    return plain + "@openssh.com" if plain.startswith("sk-") else plain


# Our own choices
RSA_BITS_MINIMUM: Final = 2048  # shorter moduli are within reach of a patient attacker
RSA_BITS_MAXIMUM: Final = 16384  # OpenSSH's limit: a longer one only costs time
RSA_BITS_DEFAULT: Final = 3072  # what ssh-keygen makes


class _Curve(NamedTuple):
    """A row of RFC 5656 section 6.2.1 and section 10.1."""

    name: str
    bits: int
    digest: int


_CURVES: Final[dict[str, _Curve]] = {
    "ecdsa-sha2-nistp256": _Curve("nistp256", 256, 256),
    "ecdsa-sha2-nistp384": _Curve("nistp384", 384, 384),
    "ecdsa-sha2-nistp521": _Curve("nistp521", 521, 512),
}


def _hash(bits: int) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}[bits]


def _sha256(data: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256, Hash

    context = Hash(SHA256())
    context.update(data)
    return context.finalize()


def _curve(name: str) -> EllipticCurve:
    from cryptography.hazmat.primitives.asymmetric import ec

    if name == "nistp256":
        return ec.SECP256R1()
    return ec.SECP384R1() if name == "nistp384" else ec.SECP521R1()


class PublicKey:
    """A public key of one of the types below; compares by its blob."""

    __slots__ = ("bits", "blob", "key_type")

    def __init__(self, key_type: str, blob: bytes, bits: int) -> None:
        self.key_type = key_type
        self.blob = blob
        self.bits = bits

    @property
    def signature_algorithms(self) -> tuple[str, ...]:
        """The names that its signatures may carry, the best one first."""
        return tuple(name for name, type_ in SIGNATURE_ALGORITHMS.items() if type_ == self.key_type)

    def verify(
        self,
        algorithm: str,
        signature: bytes,
        data: bytes,
        *,
        touch_required: bool = True,
        verify_required: bool = False,
    ) -> bool:
        """Whether ``signature`` is this key's over ``data``; never raises.

        ``signature`` is the whole blob of RFC 4253 section 6.6, and must be of the
        ``algorithm`` that was negotiated. A security key's signature must show that its
        user touched it, unless ``touch_required`` is False, and with ``verify_required``
        that the device verified the user (by a PIN or a finger).
        """
        from cryptography.exceptions import InvalidSignature

        if algorithm not in self.signature_algorithms:
            return False
        reader = Reader(signature)
        try:
            if reader.string() != algorithm.encode():
                return False
            flags = self._check(algorithm, reader, data)
        except (MalformedMessage, InvalidSignature, ValueError):
            return False
        if flags is None:  # not a security key
            return not verify_required
        if touch_required and not flags & SK_USER_PRESENT:
            return False
        return bool(flags & SK_USER_VERIFIED) or not verify_required

    def _check(self, algorithm: str, reader: Reader, data: bytes) -> int | None:
        """Checks what follows the algorithm's name, or raises; returns a security key's flags."""
        raise NotImplementedError

    def fingerprint(self, hash: str = "sha256") -> str:
        """'SHA256:...' or 'MD5:aa:bb:...', as ssh-keygen shows them."""
        if hash == "sha256":
            digest = b2a_base64(_sha256(self.blob), newline=False).rstrip(b"=")
            return f"SHA256:{digest.decode()}"
        from cryptography.hazmat.primitives.hashes import MD5, Hash

        context = Hash(MD5())
        context.update(self.blob)
        return f"MD5:{hexlify(context.finalize(), ':').decode()}"

    def line(self, comment: str = "") -> str:
        """The line of a .pub file or of authorized_keys, without its end."""
        encoded = b2a_base64(self.blob, newline=False).decode()
        return f"{self.key_type} {encoded} {comment}".rstrip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.blob == other.blob

    def __hash__(self) -> int:
        return hash(self.blob)

    def __repr__(self) -> str:
        return f"<{self.key_type} {self.fingerprint()}>"


class Ed25519Key(PublicKey):
    """An ed25519 key (RFC 8709): 32 bytes."""

    __slots__ = ("_point",)

    def __init__(self, blob: bytes, reader: Reader) -> None:
        super().__init__(ED25519, blob, 256)
        self._point = _ed25519_point(reader)

    def _check(self, algorithm: str, reader: Reader, data: bytes) -> int | None:
        signature = reader.string()
        reader.end()
        _verify_ed25519(self._point, signature, data)
        return None


class EcdsaKey(PublicKey):
    """An ECDSA key (RFC 5656 section 3.1): the curve's name again, and an uncompressed point."""

    __slots__ = ("_key",)

    def __init__(self, key_type: str, blob: bytes, reader: Reader) -> None:
        super().__init__(key_type, blob, _CURVES[key_type].bits)
        self._key = _ecdsa_point(key_type, reader)

    def _check(self, algorithm: str, reader: Reader, data: bytes) -> int | None:
        signature = reader.string()
        reader.end()
        _verify_ecdsa(self._key, _CURVES[self.key_type].digest, signature, data)
        return None


class RsaKey(PublicKey):
    """An RSA key (RFC 4253 section 6.6), with the signatures of RFC 8332."""

    __slots__ = ("_key",)

    def __init__(self, blob: bytes, reader: Reader) -> None:
        exponent = reader.mpint()
        modulus = reader.mpint()
        bits = modulus.bit_length()
        super().__init__(RSA, blob, bits)
        if modulus <= 0 or not modulus & 1:
            raise MalformedMessage("an RSA modulus is not a positive odd number")
        if bits < RSA_BITS_MINIMUM:
            raise MalformedMessage(f"an RSA key of {bits} bits is too short to be safe")
        if bits > RSA_BITS_MAXIMUM:
            raise MalformedMessage(f"an RSA key of {bits} bits is too long")
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

        try:
            self._key: RSAPublicKey = RSAPublicNumbers(exponent, modulus).public_key()
        except (ValueError, OverflowError) as error:
            raise MalformedMessage("the numbers are not an RSA key") from error

    def _check(self, algorithm: str, reader: Reader, data: bytes) -> int | None:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        signature = reader.string()
        reader.end()
        # Some peers strip leading zeros, which RFC 8332 forbids and OpenSSH puts back.
        signature = signature.rjust((self.bits + 7) // 8, b"\0")
        self._key.verify(signature, data, PKCS1v15(), _hash(_RSA_DIGESTS[algorithm]))
        return None


_RSA_DIGESTS: Final = {"rsa-sha2-512": 512, "rsa-sha2-256": 256}


class SecurityKey(PublicKey):
    """A FIDO key of either kind; its signatures hold flags and a counter.

    ``application`` is the scope that the key was made for, 'ssh:' or 'ssh:something'; the
    device signs its hash, so a signature made for a web site never passes for one of SSH.
    """

    __slots__ = ("application",)

    def _read_application(self, reader: Reader) -> None:
        self.application = reader.string()

    def _check(self, algorithm: str, reader: Reader, data: bytes) -> int | None:
        signature = reader.string()
        tail = reader.take(5)  # flags and counter
        reader.end()
        signed = _sha256(self.application) + tail + _sha256(data)
        self._check_signed(signature, signed)
        return tail[0]

    def _check_signed(self, signature: bytes, signed: bytes) -> None:
        raise NotImplementedError


class SecurityEd25519Key(SecurityKey):
    """An ed25519 key of a FIDO device (PROTOCOL.u2f)."""

    __slots__ = ("_point",)

    def __init__(self, blob: bytes, reader: Reader) -> None:
        super().__init__(SK_ED25519, blob, 256)
        self._point = _ed25519_point(reader)
        self._read_application(reader)

    def _check_signed(self, signature: bytes, signed: bytes) -> None:
        _verify_ed25519(self._point, signature, signed)


class SecurityEcdsaKey(SecurityKey):
    """An ECDSA key over nistp256 of a FIDO device (PROTOCOL.u2f)."""

    __slots__ = ("_key",)

    def __init__(self, blob: bytes, reader: Reader) -> None:
        super().__init__(SK_ECDSA, blob, 256)
        self._key = _ecdsa_point("ecdsa-sha2-nistp256", reader)
        self._read_application(reader)

    def _check_signed(self, signature: bytes, signed: bytes) -> None:
        _verify_ecdsa(self._key, 256, signature, signed)


def _ed25519_point(reader: Reader) -> bytes:
    point = reader.string()
    if len(point) != 32:
        raise MalformedMessage("an ed25519 key is not of 32 bytes")
    return point


def _verify_ed25519(point: bytes, signature: bytes, data: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(point).verify(signature, data)


def _ecdsa_point(key_type: str, reader: Reader) -> EllipticCurvePublicKey:
    curve = _CURVES[key_type]
    if reader.string() != curve.name.encode():
        raise MalformedMessage("an ECDSA key names another curve than its type does")
    point = reader.string()
    if point[:1] != b"\x04":  # compressed points and infinity
        raise MalformedMessage("an ECDSA point is not in the uncompressed form")
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        return EllipticCurvePublicKey.from_encoded_point(_curve(curve.name), point)
    except ValueError as error:
        raise MalformedMessage("an ECDSA point is not on its curve") from error


def _verify_ecdsa(key: EllipticCurvePublicKey, digest: int, signature: bytes, data: bytes) -> None:
    """Verifies a ``signature`` of mpint r and mpint s (RFC 5656 section 3.1.2), or raises."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    reader = Reader(signature)
    r, s = reader.mpint(), reader.mpint()
    reader.end()
    if r <= 0 or s <= 0:
        raise MalformedMessage("an ECDSA signature holds no positive numbers")
    key.verify(encode_dss_signature(r, s), data, ECDSA(_hash(digest)))


_LOADERS: Final[dict[bytes, Callable[[bytes, Reader], PublicKey]]] = {
    ED25519.encode(): Ed25519Key,
    **{name.encode(): partial(EcdsaKey, name) for name in _CURVES},
    RSA.encode(): RsaKey,
    SK_ED25519.encode(): SecurityEd25519Key,
    SK_ECDSA.encode(): SecurityEcdsaKey,
}


def load_public_key(blob: bytes) -> PublicKey:
    """The key of a blob; raises MalformedMessage unless the blob is exactly one key."""
    reader = Reader(blob)
    loader = _LOADERS.get(reader.string())
    if loader is None:
        raise MalformedMessage("a public key is of a type that is not supported")
    key = loader(blob, reader)
    reader.end()
    return key


class PrivateKey:
    """A key that can sign. ``secret`` is the object of `cryptography`, for key files only."""

    __slots__ = ("comment", "public", "secret")

    def __init__(self, secret: Secret, comment: str = "") -> None:
        """Raises MalformedMessage for a key that we would not accept from a peer."""
        self.secret = secret
        self.public = load_public_key(_public_blob(secret))
        self.comment = comment

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """The signature's blob: algorithm and signature (RFC 4253 section 6.6).

        ``algorithm`` is one of ``public.signature_algorithms``.
        """
        if algorithm not in self.public.signature_algorithms:
            raise ValueError(f"a key of type {self.public.key_type} does not sign {algorithm}")
        return write_name(algorithm) + write_string(_sign(self.secret, algorithm, data))

    def __repr__(self) -> str:
        return f"<private {self.public!r}>"


def _public_blob(secret: Secret) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if isinstance(secret, Ed25519PrivateKey):
        return write_name(ED25519) + write_string(secret.public_key().public_bytes_raw())
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(secret, RSAPrivateKey):
        modulus = secret.public_key().public_numbers()
        return write_name(RSA) + write_mpint(modulus.e) + write_mpint(modulus.n)
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    if isinstance(secret, EllipticCurvePrivateKey):
        for key_type, curve in _CURVES.items():
            if secret.curve.name == f"secp{curve.bits}r1":
                place = secret.public_key().public_numbers()
                size = (curve.bits + 7) // 8
                point = b"\x04" + place.x.to_bytes(size, "big") + place.y.to_bytes(size, "big")
                return write_name(key_type) + write_name(curve.name) + write_string(point)
    raise MalformedMessage("a private key is of a type that is not supported")


def _sign(secret: Secret, algorithm: str, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if isinstance(secret, Ed25519PrivateKey):
        return secret.sign(data)
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(secret, RSAPrivateKey):
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        return secret.sign(data, PKCS1v15(), _hash(_RSA_DIGESTS[algorithm]))
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    signature = secret.sign(data, ECDSA(_hash(_CURVES[algorithm].digest)))
    r, s = decode_dss_signature(signature)
    return write_mpint(r) + write_mpint(s)


def generate(key_type: str, bits: int | None = None) -> PrivateKey:
    """Makes a key: 'ssh-ed25519', 'ssh-rsa' (3072 bits by default) or 'ecdsa-sha2-...'.

    Raises ValueError for a type that cannot be made or bits that it cannot have.
    """
    if key_type == RSA:
        from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

        bits = RSA_BITS_DEFAULT if bits is None else bits
        if not RSA_BITS_MINIMUM <= bits <= RSA_BITS_MAXIMUM:
            raise ValueError(f"an RSA key has {RSA_BITS_MINIMUM} to {RSA_BITS_MAXIMUM} bits")
        return PrivateKey(generate_private_key(65537, bits))
    if key_type == ED25519:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if bits not in (None, 256):
            raise ValueError("an ed25519 key has 256 bits")
        return PrivateKey(Ed25519PrivateKey.generate())
    if key_type in _CURVES:
        from cryptography.hazmat.primitives.asymmetric import ec

        curve = _CURVES[key_type]
        if bits not in (None, curve.bits):
            raise ValueError(f"a key of type {key_type} has {curve.bits} bits")
        return PrivateKey(ec.generate_private_key(_curve(curve.name)))
    raise ValueError(f"keys of type {key_type} cannot be made here")
