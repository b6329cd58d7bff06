"""Which algorithms are offered, in which order, and how two lists become one choice."""

from typing import Final, NamedTuple

from ..errors import KeyExchangeFailed
from .ciphers import AEAD, CIPHERS, MACS
from .key_exchange import METHODS
from .keys import certificate_name

# OpenSSH PROTOCOL 1.10 and RFC 8308 section 2.1: markers among the key exchange methods
STRICT_CLIENT: Final = "kex-strict-c-v00@openssh.com"
STRICT_SERVER: Final = "kex-strict-s-v00@openssh.com"
EXT_INFO_CLIENT: Final = "ext-info-c"
EXT_INFO_SERVER: Final = "ext-info-s"

_HOST_SIGNATURES: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
SIGNATURES: Final = (  # of a user's key, and of an authority under a certificate
    *_HOST_SIGNATURES,
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
HOST_KEY_ALGORITHMS: Final = (*_HOST_SIGNATURES, *map(certificate_name, _HOST_SIGNATURES))
USER_KEY_ALGORITHMS: Final = (*SIGNATURES, *map(certificate_name, SIGNATURES))
MINIMUM_RSA_BITS: Final = {"default": 2048, "hardened": 3072}  # of a profile, any key's
COMPRESSIONS: Final = ("none", "zlib@openssh.com")


class Algorithms(NamedTuple):
    """What one side offers, most wanted first; both directions alike."""

    key_exchange: tuple[str, ...]
    host_key: tuple[str, ...]
    user_key: tuple[str, ...]
    cipher: tuple[str, ...]
    mac: tuple[str, ...]
    compression: tuple[str, ...]
    authority: tuple[str, ...] = SIGNATURES  # under certificates


class Choice(NamedTuple):
    """What was agreed upon for one direction."""

    cipher: str
    mac: str
    compression: str


def default_algorithms(aes_is_fast: bool, profile: str = "default") -> Algorithms:
    """The lists of a profile; ChaCha20 comes first where the CPU has no AES instructions.

    'hardened' leaves what a post-quantum audit accepts; whoever sees a key holds it against
    MINIMUM_RSA_BITS.
    """
    ciphers = CIPHERS if aes_is_fast else tuple(sorted(CIPHERS, key=lambda c: "chacha" not in c))
    macs = MACS
    key_exchange = tuple(METHODS)
    host_key: tuple[str, ...] = HOST_KEY_ALGORITHMS
    user_key: tuple[str, ...] = USER_KEY_ALGORITHMS
    authority: tuple[str, ...] = SIGNATURES
    if profile == "hardened":
        key_exchange = ("mlkem768x25519-sha256",)
        plain = ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
        authority = (*plain, "sk-ssh-ed25519@openssh.com")
        host_key = (*plain, *map(certificate_name, plain))
        user_key = (*authority, *map(certificate_name, authority))
        macs = tuple(mac for mac in MACS if mac.endswith("-etm@openssh.com"))
    return Algorithms(key_exchange, host_key, user_key, ciphers, macs, COMPRESSIONS, authority)


def choose(what: str, client: tuple[str, ...], server: tuple[str, ...]) -> str:
    """The client's first name that the server has too (RFC 4253 section 7.1)."""
    for name in client:
        if name in server:
            return name
    raise KeyExchangeFailed(
        f"no {what} in common: the client offers {','.join(client) or 'nothing'}, "
        f"the server {','.join(server) or 'nothing'}"
    )


def choose_mac(cipher: str, client: tuple[str, ...], server: tuple[str, ...]) -> str:
    """As ``choose``, but an AEAD cipher needs no MAC in common."""
    return "" if cipher in AEAD else choose("MAC", client, server)
