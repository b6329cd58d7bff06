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
MINIMUM_RSA_BITS: Final = {"default": 2048, "hardened": 3072}  # of any key, by profile
COMPRESSIONS: Final = ("none", "zlib@openssh.com")


class Algorithms(NamedTuple):
    """The algorithms that one side offers, the preferred one first; the same in both directions."""

    key_exchange: tuple[str, ...]
    host_key: tuple[str, ...]
    user_key: tuple[str, ...]
    cipher: tuple[str, ...]
    mac: tuple[str, ...]
    compression: tuple[str, ...]
    authority: tuple[str, ...] = SIGNATURES  # of signatures under certificates


DEFAULT: Final = Algorithms(
    tuple(METHODS), HOST_KEY_ALGORITHMS, USER_KEY_ALGORITHMS, CIPHERS, MACS, COMPRESSIONS
)

_HARDENED_HOST_SIGNATURES: Final = ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
_HARDENED_SIGNATURES: Final = (*_HARDENED_HOST_SIGNATURES, "sk-ssh-ed25519@openssh.com")
# The algorithms that a post-quantum audit accepts. Each name was checked by a person; an algorithm
# that is added to the lists above does not become part of this one.
HARDENED: Final = Algorithms(
    key_exchange=("mlkem768x25519-sha256",),
    host_key=(*_HARDENED_HOST_SIGNATURES, *map(certificate_name, _HARDENED_HOST_SIGNATURES)),
    user_key=(*_HARDENED_SIGNATURES, *map(certificate_name, _HARDENED_SIGNATURES)),
    cipher=(
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes128-ctr",
        "aes256-ctr",
    ),
    mac=("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"),
    compression=("none", "zlib@openssh.com"),
    authority=_HARDENED_SIGNATURES,
)
_PROFILES: Final = {"default": DEFAULT, "hardened": HARDENED}


class Choice(NamedTuple):
    """The algorithms that were agreed upon for one direction."""

    cipher: str
    mac: str
    compression: str


def default_algorithms(aes_is_fast: bool, profile: str = "default") -> Algorithms:
    """The lists of a profile; ChaCha20 comes first where the CPU has no AES instructions.

    The code that receives a key compares it with MINIMUM_RSA_BITS.
    """
    algorithms = _PROFILES[profile]
    if aes_is_fast:
        return algorithms
    return algorithms._replace(cipher=tuple(sorted(algorithms.cipher, key=_is_not_chacha20)))


def _is_not_chacha20(cipher: str) -> bool:
    return "chacha" not in cipher


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
