"""What a peer may offer as its key: a plain key, or a certificate.

The code for certificates is imported when one is met, because start-up pays for it.
"""

from ..wire.codec import Reader
from .keys import PublicKey, is_certificate_name, load_public_key


def load_offered_key(blob: bytes) -> PublicKey:
    """Returns the key or the Certificate of a blob; raises MalformedMessage.

    A Certificate vouches for nothing until ``Certificate.check`` was asked.
    """
    if not is_certificate_name(Reader(blob).string().decode("latin-1")):
        return load_public_key(blob)
    from .certificates import load_certificate

    return load_certificate(blob)
