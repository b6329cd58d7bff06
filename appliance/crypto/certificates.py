"""Certificates: a public key, and what an authority says of it (OpenSSH's PROTOCOL.certkeys).

The authority signs the key together with a purpose (to log in, or to be a host), the names and
the time that it is valid for, and options. A peer that trusts the authority need not know the key.
A certificate is a PublicKey whose blob is the whole certificate and whose signatures are made by
the key within. Its signature algorithms have names of their own, but a signature itself holds
the plain name::

    key type                                   signature algorithm
    ssh-ed25519-cert-v01@openssh.com           the same name
    ssh-rsa-cert-v01@openssh.com               rsa-sha2-512-cert-v01@openssh.com and -256-

``load_certificate`` reads untrusted bytes: it raises MalformedMessage for all that is not a
certificate or not signed by the authority that it names, so every Certificate holds what its
authority signed. The caller decides whether to trust this authority; if it passes the trusted
ones, any other raises CertificateRefused before a key is loaded. ``check`` and ``is_for`` judge
the rest. A certificate without principals is valid for nobody, and a principal is one name,
whatever characters it has: mistakes in both have let strangers in elsewhere.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from ..errors import CertificateRefused, MalformedMessage
from ..wire.codec import (
    Reader,
    Record,
    String,
    Text,
    UInt32,
    UInt64,
    write_name,
    write_string,
    write_text,
)
from .keys import (
    RSA,
    PrivateKey,
    PublicKey,
    certificate_name,
    load_public_key,
    plain_name,
)
from .permissions import Permissions

# Of PROTOCOL.certkeys
FOREVER: Final = 0xFFFFFFFFFFFFFFFF  # valid_before of a certificate that never expires
FORCE_COMMAND: Final = "force-command"
SOURCE_ADDRESS: Final = "source-address"
VERIFY_REQUIRED: Final = "verify-required"
NO_TOUCH_REQUIRED: Final = "no-touch-required"
_CRITICAL: Final = frozenset((FORCE_COMMAND, SOURCE_ADDRESS, VERIFY_REQUIRED))
PERMITS: Final = {  # extension -> field of Permissions that it grants
    "permit-X11-forwarding": "x11_forwarding",
    "permit-agent-forwarding": "agent_forwarding",
    "permit-port-forwarding": "port_forwarding",
    "permit-pty": "pty",
    "permit-user-rc": "user_rc",
}
# Key type -> number of strings and mpints behind the type, each with its length in front.
_KEY_FIELDS: Final = {
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    RSA: 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
_PLAIN_TYPES: Final = {certificate_name(name): name for name in _KEY_FIELDS}

# Our own choices
PRINCIPALS_LIMIT: Final = 256  # OpenSSH's
NONCE_BYTES: Final = 32  # as many as OpenSSH takes


class CertType(IntEnum):
    """What a certificate is for."""

    USER = 1
    HOST = 2


class _Body(Record):
    """The fields between the key and the signature."""

    serial: UInt64
    kind: UInt32
    key_id: Text
    principals: String
    valid_after: UInt64
    valid_before: UInt64
    critical_options: String
    extensions: String
    reserved: String
    authority: String


Options = tuple[tuple[str, bytes], ...]


class Terms(NamedTuple):
    """What an authority certifies about a key; see ``issue``."""

    kind: CertType
    key_id: str
    principals: tuple[str, ...] = ()
    serial: int = 0
    valid_after: int = 0  # seconds since 1970
    valid_before: int = FOREVER  # the first second in which it is not valid any more
    critical_options: Options = ()  # a server that does not know one refuses the certificate
    extensions: Options = ()  # a server that does not know one ignores it


class Certificate(PublicKey):
    """A key whose ``authority`` vouches for it by ``terms``."""

    __slots__ = ("authority", "authority_algorithm", "key", "terms")

    def __init__(
        self,
        blob: bytes,
        key: PublicKey,
        terms: Terms,
        authority: PublicKey,
        authority_algorithm: str,
    ) -> None:
        super().__init__(certificate_name(key.key_type), blob, key.bits)
        self.key = key
        self.terms = terms
        self.authority = authority
        self.authority_algorithm = authority_algorithm  # of the authority's signature

    @property
    def signature_algorithms(self) -> tuple[str, ...]:
        return tuple(map(certificate_name, self.key.signature_algorithms))

    def verify(
        self,
        algorithm: str,
        signature: bytes,
        data: bytes,
        *,
        touch_required: bool = True,
        verify_required: bool = False,
    ) -> bool:
        """As PublicKey.verify; ``algorithm`` is a certificate's, ``signature`` names the key's."""
        return algorithm in self.signature_algorithms and self.key.verify(
            plain_name(algorithm),
            signature,
            data,
            touch_required=touch_required,
            verify_required=verify_required,
        )

    def fingerprint(self, hash: str = "sha256") -> str:
        """The fingerprint of the key within, as ssh-keygen shows it."""
        return self.key.fingerprint(hash)

    def check(self, kind: CertType, now: float, algorithms: Collection[str], rsa_bits: int) -> None:
        """Raises CertificateRefused unless valid for ``kind`` at ``now`` (seconds since 1970).

        ``algorithms`` are those that an authority may sign with. ``rsa_bits`` is the least size
        of an RSA key, also of the authority's. The caller makes sure that ``authority`` is
        trusted, and that the certificate ``is_for`` the user or host.
        """
        terms = self.terms
        if terms.kind is not kind:
            raise CertificateRefused(f"it is a {terms.kind.name.lower()} certificate")
        if self.authority_algorithm not in algorithms:
            raise CertificateRefused(
                f"its authority signs with {self.authority_algorithm}, which is not accepted here"
            )
        for key in (self.key, self.authority):
            if key.key_type == RSA and key.bits < rsa_bits:
                raise CertificateRefused(f"it holds an RSA key of {key.bits} bits")
        if now < terms.valid_after:
            raise CertificateRefused("it is not yet valid")
        if now >= terms.valid_before:
            raise CertificateRefused("it has expired")
        if not terms.principals:
            raise CertificateRefused("it names no principals, so it is good for nobody")
        known = _CRITICAL if kind is CertType.USER else ()
        for name, _ in terms.critical_options:
            if name not in known:
                raise CertificateRefused(f"it has the critical option {name!r}, unknown here")

    def is_for(self, names: Collection[str]) -> bool:
        """Whether one of its principals is among ``names``: whole names, never patterns."""
        return any(principal in names for principal in self.terms.principals)

    def permissions(self) -> Permissions:
        """The permissions that a user's certificate grants; call ``check`` before.

        Raises CertificateRefused for an option whose value cannot be read.
        """
        try:
            critical = {
                name: _value(name, data)
                for name, data in self.terms.critical_options
                if name in _CRITICAL
            }
            known = (*PERMITS, NO_TOUCH_REQUIRED)
            extensions = [
                name for name, data in self.terms.extensions if name in known and _flag(name, data)
            ]
        except MalformedMessage as error:
            raise CertificateRefused(str(error)) from error
        grants: dict[str, Any] = {field: name in extensions for name, field in PERMITS.items()}
        sources = critical.get(SOURCE_ADDRESS)
        return Permissions(
            **grants,
            command=critical.get(FORCE_COMMAND),
            from_patterns=() if sources is None else (_checked_sources(sources),),
            tunnel_allowed=grants["port_forwarding"],
            expires=None if self.terms.valid_before == FOREVER else self.terms.valid_before,
            touch_required=NO_TOUCH_REQUIRED not in extensions,
            verify_required=VERIFY_REQUIRED in critical,
        )


def _value(name: str, data: bytes) -> str | None:
    """The text of a critical option; None for an option without a value."""
    if name not in (FORCE_COMMAND, SOURCE_ADDRESS):
        _flag(name, data)
        return None
    reader = Reader(data)
    value = reader.string()
    reader.end()
    if b"\0" in value:
        raise MalformedMessage(f"its option {name} holds a NUL byte")
    return value.decode(errors="surrogateescape")


def _flag(name: str, data: bytes) -> bool:
    if data:
        raise MalformedMessage(f"its option {name} has a value, where none belongs")
    return True


def _checked_sources(text: str) -> str:
    """Returns a comma list of addresses and networks, after a check of each.

    Raises CertificateRefused for wildcards, names and negation.
    """
    from ipaddress import ip_network

    for each in text.split(","):
        try:
            ip_network(each)
        except ValueError as error:
            raise CertificateRefused(f"its option {SOURCE_ADDRESS} is not readable") from error
    return text


# -- reading -----------------------------------------------------------------------------


def load_certificate(blob: bytes, authorities: Collection[bytes] | None = None) -> Certificate:
    """The certificate of a blob, after a check of its signature; raises MalformedMessage.

    With ``authorities``, the blobs of the trusted ones' keys, a certificate of any other raises
    CertificateRefused, before a key within is loaded.
    """
    reader = Reader(blob)
    plain_type = _PLAIN_TYPES.get(reader.name())
    if plain_type is None:
        raise MalformedMessage("a certificate is of a type that is not supported")
    reader.string()  # the nonce, which makes what is signed unpredictable
    fields = [write_string(reader.string()) for _ in range(_KEY_FIELDS[plain_type])]
    body = _Body.read(reader)
    signed = blob[: reader.offset]
    signature = reader.string()
    reader.end()
    if authorities is not None and body.authority not in authorities:
        raise CertificateRefused("its authority is not trusted")
    authority = load_public_key(body.authority)  # raises if this is itself a certificate
    algorithm = Reader(signature).name()
    # An authority with a security key decides itself whether signing takes a touch.
    if not authority.verify(algorithm, signature, signed, touch_required=False):
        raise MalformedMessage("a certificate's signature is not its authority's")
    key = load_public_key(write_name(plain_type) + b"".join(fields))
    return Certificate(blob, key, _read_terms(body), authority, algorithm)


def _read_terms(body: _Body) -> Terms:
    if body.kind not in set(CertType):
        raise MalformedMessage("a certificate is neither for users nor for hosts")
    if "\0" in body.key_id:
        raise MalformedMessage("a certificate's key id holds a NUL byte")
    return Terms(
        CertType(body.kind),
        body.key_id,
        _read_principals(body.principals),
        body.serial,
        body.valid_after,
        body.valid_before,
        _read_options(body.critical_options),
        _read_options(body.extensions),
    )


def _read_principals(data: bytes) -> tuple[str, ...]:
    reader = Reader(data)
    principals: list[str] = []
    while not reader.at_end:
        principal = reader.text()
        if not principal or "\0" in principal or len(principals) == PRINCIPALS_LIMIT:
            raise MalformedMessage("a certificate's principals are too many, or one is no name")
        principals.append(principal)
    return tuple(principals)


def _read_options(data: bytes) -> Options:
    """Pairs of name and value, which must be in the order of their names, each name once."""
    reader = Reader(data)
    options: list[tuple[str, bytes]] = []
    while not reader.at_end:
        name = reader.name()
        if options and name <= options[-1][0]:
            raise MalformedMessage("a certificate's options are repeated or out of order")
        options.append((name, reader.string()))
    return tuple(options)


# -- writing -----------------------------------------------------------------------------


def issue(
    authority: PrivateKey, algorithm: str, key: PublicKey, terms: Terms, nonce: bytes
) -> Certificate:
    """A certificate for ``key``, signed by ``authority`` with ``algorithm``.

    ``nonce`` is NONCE_BYTES random bytes; the options may come in any order. Raises
    MalformedMessage for terms that no reader would accept.
    """
    body = _Body(
        terms.serial,
        terms.kind,
        terms.key_id,
        b"".join(map(write_text, terms.principals)),
        terms.valid_after,
        terms.valid_before,
        _write_options(terms.critical_options),
        _write_options(terms.extensions),
        b"",
        authority.public.blob,
    )
    fields = key.blob[len(write_name(key.key_type)) :]
    name = write_name(certificate_name(key.key_type))
    signed = name + write_string(nonce) + fields + body.encode()
    return load_certificate(signed + write_string(authority.sign(algorithm, signed)))


def _write_options(options: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(write_name(name) + write_string(data) for name, data in sorted(options))


def text_option(name: str, value: str) -> tuple[str, bytes]:
    """A critical option with a text as its value, for ``Terms``."""
    return name, write_string(value.encode(errors="surrogateescape"))
