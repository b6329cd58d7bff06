"""Lists of keys and certificates that are revoked (OpenSSH's PROTOCOL.krl).

A list is a KRL, which is binary, or a text with one public key on each line. A key is revoked
itself or by its hash. A certificate is revoked by its serial number or key id, under its authority
or under any authority, and also by its key or its authority's key. The reader is strict, because
half a list would let in keys that the other half revokes: a caller that gets MalformedMessage must
refuse every key.

::

    header     magic, format, version, date, flags, reserved, comment
    section    1 certificates of an authority: 0x20 serials, 0x21 a range, 0x22 a bitmap, 0x23 ids
               2 keys    3 SHA-1 of keys    5 SHA-256 of keys
               4 a signature over all before it    255 an extension
"""

import hashlib
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import MalformedMessage
from ..wire.codec import (
    MPInt,
    Reader,
    Record,
    String,
    Text,
    UInt32,
    UInt64,
    write_byte,
    write_mpint,
    write_string,
    write_text,
    write_uint64,
)
from .certificates import Certificate, load_certificate
from .keys import PublicKey, is_certificate_name, load_public_key

# Of PROTOCOL.krl
MAGIC: Final = b"SSHKRL\n\0"
FORMAT: Final = 1
_CERTIFICATES: Final = 1
_KEYS: Final = 2
_SHA1: Final = 3
_SIGNATURE: Final = 4
_SHA256: Final = 5
_EXTENSION: Final = 255
_SERIAL_LIST: Final = 0x20
_SERIAL_RANGE: Final = 0x21
_SERIAL_BITMAP: Final = 0x22
_KEY_ID: Final = 0x23
_CERTIFICATE_EXTENSION: Final = 0x39
_SERIAL_MAXIMUM: Final = (1 << 64) - 1


class _Header(Record):
    format_version: UInt32
    version: UInt64
    generated_date: UInt64
    flags: UInt64
    reserved: String
    comment: Text


class _Range(Record):
    low: UInt64
    high: UInt64


class _Bitmap(Record):
    offset: UInt64
    bits: MPInt


class RevokedCertificates:
    """The revoked certificates of one authority."""

    __slots__ = ("bitmaps", "key_ids", "ranges", "serials")

    def __init__(self) -> None:
        self.serials: set[int] = set()
        self.ranges: list[tuple[int, int]] = []  # lowest and highest serial
        self.bitmaps: list[tuple[int, int]] = []  # serial of bit 0, and the bits
        self.key_ids: set[str] = set()

    def add_range(self, low: int, high: int) -> None:
        """Revokes the serials from ``low`` to ``high``; MalformedMessage if there are none."""
        if not 0 < low <= high <= _SERIAL_MAXIMUM:
            raise MalformedMessage("a range of serial numbers is empty, or begins with 0")
        if low == high:
            self.serials.add(low)
        else:
            self.ranges.append((low, high))

    def contains(self, certificate: Certificate) -> bool:
        """Whether a certificate of this authority is revoked."""
        terms = certificate.terms
        serial = terms.serial
        if terms.key_id in self.key_ids:
            return True
        return serial != 0 and (  # 0: the authority does not number its certificates
            serial in self.serials
            or any(low <= serial <= high for low, high in self.ranges)
            or any(serial >= at and bits >> (serial - at) & 1 for at, bits in self.bitmaps)
        )


class RevocationList:
    """The revoked keys and certificates."""

    __slots__ = ("certificates", "comment", "keys", "sha1", "sha256", "version")

    def __init__(self) -> None:
        self.version = 0
        self.comment = ""
        self.certificates: dict[bytes, RevokedCertificates] = {}  # by authority; b"": any
        self.keys: set[bytes] = set()  # blobs
        self.sha1: set[bytes] = set()  # of blobs
        self.sha256: set[bytes] = set()

    def revokes(self, key: PublicKey) -> bool:
        """Whether the key, or the certificate, or its authority, is revoked."""
        if not isinstance(key, Certificate):
            return self._revokes_plain(key)
        lists = map(self.certificates.get, (key.authority.blob, b""))
        return (
            self._revokes_plain(key.key)
            or self._revokes_plain(key.authority)
            or any(each is not None and each.contains(key) for each in lists)
        )

    def _revokes_plain(self, key: PublicKey) -> bool:
        return (
            key.blob in self.keys
            or hashlib.sha256(key.blob).digest() in self.sha256
            or hashlib.sha1(key.blob).digest() in self.sha1  # the format's choice
        )

    def certificates_of(self, authority: PublicKey | None) -> RevokedCertificates:
        """The revoked certificates of an authority (None: of any); the caller may add some."""
        blob = b"" if authority is None else authority.blob
        return self.certificates.setdefault(blob, RevokedCertificates())

    def dump(self, now: int) -> bytes:
        """The list as a KRL, generated at ``now`` (seconds since 1970)."""
        header = _Header(FORMAT, self.version, now, 0, b"", self.comment)
        sections = [MAGIC, header.encode()]
        for authority, certificates in sorted(self.certificates.items()):
            body = write_string(authority) + write_string(b"")
            sections.append(_section(_CERTIFICATES, body + _dump_certificates(certificates)))
        for kind, values in ((_KEYS, self.keys), (_SHA1, self.sha1), (_SHA256, self.sha256)):
            if values:
                sections.append(_section(kind, b"".join(map(write_string, sorted(values)))))
        return b"".join(sections)


def _section(kind: int, body: bytes) -> bytes:
    return write_byte(kind) + write_string(body)


def _dump_certificates(certificates: RevokedCertificates) -> bytes:
    parts = []
    if certificates.serials:
        serials = b"".join(map(write_uint64, sorted(certificates.serials)))
        parts.append(_section(_SERIAL_LIST, serials))
    for low, high in certificates.ranges:
        parts.append(_section(_SERIAL_RANGE, _Range(low, high).encode()))
    for offset, bits in certificates.bitmaps:
        parts.append(_section(_SERIAL_BITMAP, write_uint64(offset) + write_mpint(bits)))
    if certificates.key_ids:
        parts.append(_section(_KEY_ID, b"".join(map(write_text, sorted(certificates.key_ids)))))
    return b"".join(parts)


# -- reading -----------------------------------------------------------------------------


def load(data: bytes) -> RevocationList:
    """The list of a file's bytes, a KRL or a text; raises MalformedMessage."""
    return _load_krl(data) if data.startswith(MAGIC) else _load_text(data)


def _load_text(data: bytes) -> RevocationList:
    """Reads one key from each line; also keys of unsupported types can be revoked."""
    revoked = RevocationList()
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        try:
            blob = a2b_base64(words[1] if len(words) > 1 else b"", strict_mode=True)
            reader = Reader(blob)
            if reader.string() != words[0] or reader.at_end:
                raise MalformedMessage("its key is not of the type that it says")
            if is_certificate_name(words[0].decode("ascii", errors="replace")):
                blob = load_certificate(blob).key.blob
        except (Base64Error, MalformedMessage) as error:
            raise MalformedMessage(f"line {number} is no public key: {error}") from error
        revoked.keys.add(blob)
    return revoked


def _load_krl(data: bytes) -> RevocationList:
    revoked = RevocationList()
    reader = Reader(data)
    reader.take(len(MAGIC))
    header = _Header.read(reader)
    if header.format_version != FORMAT:
        raise MalformedMessage("the revocation list is of a format that is not known")
    revoked.version, revoked.comment = header.version, header.comment
    signers: list[PublicKey] = []
    while not reader.at_end:
        kind = reader.byte()
        body = Reader(reader.string())
        if kind == _SIGNATURE:
            signers.append(_signer(data, body.rest(), reader))
            continue
        if signers:
            raise MalformedMessage("the revocation list goes on behind its signature")
        read = _SECTIONS.get(kind)
        if read is None:
            raise MalformedMessage("the revocation list has a section that is not known")
        read(revoked, body)
        body.end()
    if signers and all(map(revoked.revokes, signers)):
        raise MalformedMessage("the revocation list revokes the keys that signed it")
    return revoked


def _signer(data: bytes, blob: bytes, reader: Reader) -> PublicKey:
    """The key that signed all bytes before ``reader``; reads the signature, and checks it."""
    key = load_public_key(blob)
    signed = data[: reader.offset]
    signature = reader.string()
    algorithm = Reader(signature).name()
    if not key.verify(algorithm, signature, signed, touch_required=False):
        raise MalformedMessage("the revocation list's signature is wrong")
    return key


def _strings(reader: Reader) -> Iterator[bytes]:
    while not reader.at_end:
        yield reader.string()


def _read_keys(revoked: RevocationList, body: Reader) -> None:
    revoked.keys.update(_strings(body))


def _read_sha1(revoked: RevocationList, body: Reader) -> None:
    revoked.sha1.update(_hashes(body, 20))


def _read_sha256(revoked: RevocationList, body: Reader) -> None:
    revoked.sha256.update(_hashes(body, 32))


def _hashes(body: Reader, length: int) -> Iterator[bytes]:
    for each in _strings(body):
        if len(each) != length:
            raise MalformedMessage("a hash in the revocation list is of the wrong length")
        yield each


def _read_extension(_: object, body: Reader) -> None:
    body.name()
    if body.boolean():  # critical: a program that does not know it must not use the list
        raise MalformedMessage("the revocation list has a critical extension that is not known")
    body.string()


def _read_certificates(revoked: RevocationList, body: Reader) -> None:
    authority = body.string()
    body.string()  # reserved
    certificates = revoked.certificates.setdefault(authority, RevokedCertificates())
    while not body.at_end:
        read = _CERTIFICATE_SECTIONS.get(body.byte())
        if read is None:
            raise MalformedMessage("the revocation list has a section that is not known")
        part = Reader(body.string())
        read(certificates, part)
        part.end()


def _read_serials(certificates: RevokedCertificates, part: Reader) -> None:
    while not part.at_end:
        serial = part.uint64()
        certificates.add_range(serial, serial)


def _read_range(certificates: RevokedCertificates, part: Reader) -> None:
    both = _Range.read(part)
    certificates.add_range(both.low, both.high)


def _read_bitmap(certificates: RevokedCertificates, part: Reader) -> None:
    bitmap = _Bitmap.read(part)
    if bitmap.bits < 0 or bitmap.offset + bitmap.bits.bit_length() - 1 > _SERIAL_MAXIMUM:
        raise MalformedMessage("a bitmap in the revocation list is negative or too long")
    certificates.bitmaps.append((bitmap.offset, bitmap.bits))


def _read_key_ids(certificates: RevokedCertificates, part: Reader) -> None:
    while not part.at_end:
        certificates.key_ids.add(part.text())


_SECTIONS: Final[dict[int, Callable[[RevocationList, Reader], None]]] = {
    _CERTIFICATES: _read_certificates,
    _KEYS: _read_keys,
    _SHA1: _read_sha1,
    _SHA256: _read_sha256,
    _EXTENSION: _read_extension,
}
_CERTIFICATE_SECTIONS: Final[dict[int, Callable[[RevokedCertificates, Reader], None]]] = {
    _SERIAL_LIST: _read_serials,
    _SERIAL_RANGE: _read_range,
    _SERIAL_BITMAP: _read_bitmap,
    _KEY_ID: _read_key_ids,
    _CERTIFICATE_EXTENSION: _read_extension,
}
