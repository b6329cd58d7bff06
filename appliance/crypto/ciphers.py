"""Ciphers, which encrypt or decrypt packets: one object per direction and key.

A packet is laid out in one buffer as RFC 4253 section 6 has it::

    uint32 packet_length | byte padding_length | payload | padding | tag

and is encrypted and decrypted in place, since a copy would cost more than the cipher.
``seal`` and ``open`` get the buffer's view and where the packet starts.
"""

import hmac
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from ..errors import IntegrityError

_UINT32 = struct.Struct(">I")
_UINT64_MASK: Final = (1 << 64) - 1


class Encryption(Protocol):
    """The sending direction."""

    block_size: int  # bytes; the padded packet is a multiple of this
    length_aside: bool  # whether packet_length itself does not count in that multiple
    tag_length: int  # bytes behind the packet

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        """Encrypts ``view[start:end]``, appends the tag, and returns the end of the tag."""
        ...


class Decryption(Protocol):
    """The receiving direction."""

    block_size: int
    length_aside: bool
    tag_length: int
    peek: int  # bytes that must have arrived before ``length`` can be called

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        """The packet_length of the packet at ``start``; may be called again for it."""
        ...

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        """Checks the tag behind ``end``, and leaves the plain packet in ``view[start:end]``.

        Raises IntegrityError, and then nothing of the packet may be used.
        """
        ...


class NoCipher:
    """Both directions before the first NEWKEYS."""

    block_size = 8
    length_aside = False
    tag_length = 0
    peek = 4

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        return end

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        value: int = _UINT32.unpack_from(view, start)[0]
        return value

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        pass


class AesGcm:
    """aes128-gcm@openssh.com and aes256-gcm@openssh.com (RFC 5647, OpenSSH PROTOCOL 1.6).

    The nonce is 4 fixed bytes and a counter of 8; the packet's length is the additional
    data. One object serves one direction.
    """

    block_size = 16
    length_aside = True
    tag_length = 16
    peek = 4

    __slots__ = ("_counter", "_decrypt", "_encrypt", "_fixed")

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        aead = AESGCM(key)
        self._encrypt = aead.encrypt_into
        self._decrypt = aead.decrypt_into
        self._fixed = iv[:4]
        self._counter = int.from_bytes(iv[4:12], "big")

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        counter = self._counter
        self._counter = (counter + 1) & _UINT64_MASK
        nonce = self._fixed + counter.to_bytes(8, "big")
        body, tag_end = start + 4, end + 16
        self._encrypt(nonce, view[body:end], view[start:body], view[body:tag_end])
        return tag_end

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        value: int = _UINT32.unpack_from(view, start)[0]
        return value

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        counter = self._counter
        self._counter = (counter + 1) & _UINT64_MASK
        nonce = self._fixed + counter.to_bytes(8, "big")
        body = start + 4
        try:
            self._decrypt(nonce, view[body : end + 16], view[start:body], view[body:end])
        except Exception as error:  # InvalidTag, which would cost an import to name
            raise IntegrityError("a packet failed its authentication") from error


class ChaChaPoly:
    """chacha20-poly1305@openssh.com (OpenSSH PROTOCOL.chacha20poly1305).

    Two ChaCha20 keys: the second encrypts the length, the first the rest; its first
    block is the Poly1305 key. The contexts are kept, and get a new nonce for each packet.
    """

    block_size = 8
    length_aside = True
    tag_length = 16
    peek = 4

    __slots__ = ("_body", "_header", "_poly1305")

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
        from cryptography.hazmat.primitives.poly1305 import Poly1305

        self._body = Cipher(ChaCha20(key[:32], bytes(16)), None).encryptor()
        self._header = Cipher(ChaCha20(key[32:], bytes(16)), None).encryptor()
        self._poly1305 = Poly1305.generate_tag

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        nonce = sequence.to_bytes(16, "big")  # a block counter of zero, then the sequence
        body = start + 4
        self._header.reset_nonce(nonce)
        self._header.update_into(view[start:body], view[start:body])
        self._body.reset_nonce(nonce)
        tag_key = self._body.update(_ONE_BLOCK)[:32]
        self._body.update_into(view[body:end], view[body:end])
        view[end : end + 16] = self._poly1305(tag_key, view[start:end])
        return end + 16

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        self._header.reset_nonce(sequence.to_bytes(16, "big"))
        return int.from_bytes(self._header.update(view[start : start + 4]), "big")

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        self._body.reset_nonce(sequence.to_bytes(16, "big"))
        tag_key = self._body.update(_ONE_BLOCK)[:32]
        if not hmac.compare_digest(self._poly1305(tag_key, view[start:end]), view[end : end + 16]):
            raise IntegrityError("a packet failed its authentication")
        self._body.update_into(view[start + 4 : end], view[start + 4 : end])


_ONE_BLOCK: Final = bytes(64)


class _AesCtrHmac:
    """The common part of both forms of AES in counter mode with a separate HMAC."""

    block_size = 16

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes, digest: str, tag_length: int) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import CTR

        self._crypt = Cipher(AES(key), CTR(iv)).encryptor().update_into  # its own inverse
        self._mac_key = mac_key
        self._digest = digest
        self.tag_length = tag_length

    def _tag(self, packet: memoryview, sequence: int) -> bytes:
        return hmac.digest(self._mac_key, _UINT32.pack(sequence) + packet, self._digest)

    def _check(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        tag = self._tag(view[start:end], sequence)
        if not hmac.compare_digest(tag, view[end : end + self.tag_length]):
            raise IntegrityError("a packet failed its authentication")


class AesCtrEtm(_AesCtrHmac):
    """aes*-ctr with hmac-*-etm@openssh.com: the MAC covers the ciphertext."""

    length_aside = True
    peek = 4

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        self._crypt(view[start + 4 : end], view[start + 4 : end])
        view[end : end + self.tag_length] = self._tag(view[start:end], sequence)
        return end + self.tag_length

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        value: int = _UINT32.unpack_from(view, start)[0]
        return value

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        self._check(view, start, end, sequence)
        self._crypt(view[start + 4 : end], view[start + 4 : end])


class AesCtrMac(_AesCtrHmac):
    """aes*-ctr with hmac-* (RFC 4253 section 6.4): the MAC covers the plaintext.

    The length is encrypted, so the first block is decrypted ahead of the rest.
    """

    length_aside = False
    peek = 16
    _length: int | None = None  # of a packet whose first block is already decrypted

    def seal(self, view: memoryview, start: int, end: int, sequence: int) -> int:
        view[end : end + self.tag_length] = self._tag(view[start:end], sequence)
        self._crypt(view[start:end], view[start:end])
        return end + self.tag_length

    def length(self, view: memoryview, start: int, sequence: int) -> int:
        if self._length is None:
            self._crypt(view[start : start + 16], view[start : start + 16])
            self._length = _UINT32.unpack_from(view, start)[0]
        return self._length

    def open(self, view: memoryview, start: int, end: int, sequence: int) -> None:
        self._length = None
        self._crypt(view[start + 16 : end], view[start + 16 : end])
        self._check(view, start, end, sequence)


class CipherSuite(NamedTuple):
    """A cipher and MAC that were agreed upon for one direction."""

    key_length: int
    iv_length: int
    mac_key_length: int
    make: Callable[[bytes, bytes, bytes], "Cipher"]


class Cipher(Encryption, Decryption, Protocol):
    """An object that can serve as either direction, but only as one of them."""


AEAD: Final[dict[str, CipherSuite]] = {
    "aes128-gcm@openssh.com": CipherSuite(16, 12, 0, AesGcm),
    "aes256-gcm@openssh.com": CipherSuite(32, 12, 0, AesGcm),
    "chacha20-poly1305@openssh.com": CipherSuite(64, 0, 0, ChaChaPoly),
}
_CTR_KEY_LENGTH: Final = {"aes128-ctr": 16, "aes256-ctr": 32}
_MACS: Final = {  # digest, length in bytes of key and tag
    "hmac-sha2-256": ("sha256", 32),
    "hmac-sha2-512": ("sha512", 64),
}

CIPHERS: Final = (*AEAD, *_CTR_KEY_LENGTH)
MACS: Final = (*(f"{name}-etm@openssh.com" for name in _MACS), *_MACS)


def suite(cipher: str, mac: str) -> CipherSuite:
    """The suite of the agreed names; for an AEAD cipher the MAC is ignored."""
    if cipher in AEAD:
        return AEAD[cipher]
    digest, length = _MACS[mac.removesuffix("-etm@openssh.com")]
    form = AesCtrEtm if mac.endswith("-etm@openssh.com") else AesCtrMac

    def make(key: bytes, iv: bytes, mac_key: bytes) -> Cipher:
        return form(key, iv, mac_key, digest, length)

    return CipherSuite(_CTR_KEY_LENGTH[cipher], 16, length, make)
