"""-Q: the supported algorithms, one name on each line, as ``ssh -Q`` prints them."""

from typing import Final

from ..crypto.ciphers import CIPHERS, MACS
from ..crypto.key_exchange import METHODS
from ..crypto.suites import COMPRESSIONS, HOST_KEY_ALGORITHMS, SIGNATURES, USER_KEY_ALGORITHMS
from ..errors import UsageError

_LISTS: Final[dict[str, tuple[str, ...]]] = {
    "cipher": CIPHERS,
    "mac": MACS,
    "kex": tuple(METHODS),
    "key": ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
            "ssh-rsa", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    "sig": SIGNATURES,
    "HostKeyAlgorithms": HOST_KEY_ALGORITHMS,
    "PubkeyAcceptedAlgorithms": USER_KEY_ALGORITHMS,
    "compression": COMPRESSIONS,
}  # fmt: skip


def answer(what: str) -> int:
    """Prints the list ``what``; returns the exit status, or raises UsageError."""
    names = tuple(_LISTS) if what == "help" else _LISTS.get(what)
    if names is None:
        raise UsageError(f"-Q {what}: expected one of {', '.join(_LISTS)}")
    print("\n".join(names))
    return 0
