"""Security keys (FIDO) made of software: they sign whatever a test wants, touched or not."""

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from appliance.crypto.keys import SK_ED25519, PrivateKey, load_public_key
from appliance.wire.codec import write_mpint, write_name, write_string, write_uint32

TOUCHED = 0x01  # flags of a signature, of OpenSSH's PROTOCOL.u2f
VERIFIED = 0x04


class Token:
    """A FIDO device made of software."""

    def __init__(self, key_type: str, application: bytes = b"ssh:") -> None:
        self.key_type = key_type
        self.application = application
        if key_type == SK_ED25519:
            self.edwards = ed25519.Ed25519PrivateKey.generate()
            fields = write_string(self.edwards.public_key().public_bytes_raw())
        else:
            self.curve = ec.generate_private_key(ec.SECP256R1())
            plain = PrivateKey(self.curve).public.blob
            fields = plain[4 + len("ecdsa-sha2-nistp256") :]
        self.public = load_public_key(write_name(key_type) + fields + write_string(application))

    def sign(self, data: bytes, flags: int, application: bytes | None = None) -> bytes:
        tail = bytes([flags]) + write_uint32(7)
        scope = self.application if application is None else application
        signed = hashlib.sha256(scope).digest() + tail + hashlib.sha256(data).digest()
        if self.key_type == SK_ED25519:
            raw = self.edwards.sign(signed)
        else:
            raw = b"".join(
                map(write_mpint, decode_dss_signature(self.curve.sign(signed, ec.ECDSA(SHA256()))))
            )
        return write_name(self.key_type) + write_string(raw) + tail
