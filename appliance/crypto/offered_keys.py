"""The keys that a peer may offer: a plain key, or a certificate.

The code for certificates is imported when a certificate comes, because it makes the start slower.
"""

from ..wire.codec import Reader
from .keys import PublicKey, is_certificate_name, load_public_key


def load_offered_key(blob: bytes) -> PublicKey:
    """Returns the key or the Certificate of a blob; raises MalformedMessage.

    Do not trust a Certificate before ``Certificate.check`` was called.
    """
    if not is_certificate_name(Reader(blob).string().decode("latin-1")):
        return load_public_key(blob)
    from .certificates import load_certificate

    return load_certificate(blob)
