"""What a profile offers."""

import subprocess
import sys

from appliance.crypto.ciphers import CIPHERS, MACS
from appliance.crypto.key_exchange import METHODS
from appliance.crypto.suites import (
    COMPRESSIONS,
    HARDENED,
    HOST_KEY_ALGORITHMS,
    SIGNATURES,
    USER_KEY_ALGORITHMS,
    Algorithms,
    default_algorithms,
)


def test_the_hardened_profile_is_what_was_audited() -> None:
    """Whoever changes this list has looked at what a post-quantum audit accepts."""
    assert default_algorithms(True, "hardened") == Algorithms(
        key_exchange=("mlkem768x25519-sha256",),
        host_key=(
            "ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256",
            "ssh-ed25519-cert-v01@openssh.com", "rsa-sha2-512-cert-v01@openssh.com",
            "rsa-sha2-256-cert-v01@openssh.com",
        ),
        user_key=(
            "ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256", "sk-ssh-ed25519@openssh.com",
            "ssh-ed25519-cert-v01@openssh.com", "rsa-sha2-512-cert-v01@openssh.com",
            "rsa-sha2-256-cert-v01@openssh.com", "sk-ssh-ed25519-cert-v01@openssh.com",
        ),
        cipher=(
            "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
            "aes128-ctr", "aes256-ctr",
        ),
        mac=("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"),
        compression=("none", "zlib@openssh.com"),
        authority=("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256", "sk-ssh-ed25519@openssh.com"),
    )  # fmt: skip


def test_the_hardened_profile_offers_nothing_that_is_not_there() -> None:
    everything = (
        METHODS, HOST_KEY_ALGORITHMS, USER_KEY_ALGORITHMS, CIPHERS, MACS, COMPRESSIONS, SIGNATURES,
    )  # fmt: skip
    for hardened, known in zip(HARDENED, everything, strict=True):
        assert set(hardened) <= set(known)


def test_a_new_cipher_is_no_part_of_the_hardened_profile() -> None:
    statements = """
from appliance.crypto import ciphers
ciphers.CIPHERS += ("new-cipher",)
ciphers.MACS += ("new-etm@openssh.com",)
from appliance.crypto.suites import default_algorithms
for profile in ("default", "hardened"):
    algorithms = default_algorithms(True, profile)
    print("new-cipher" in algorithms.cipher, "new-etm@openssh.com" in algorithms.mac)
"""
    argv = [sys.executable, "-c", statements]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["True True", "False False"]


def test_chacha20_comes_first_where_aes_is_slow() -> None:
    for profile in ("default", "hardened"):
        fast, slow = (default_algorithms(aes_is_fast, profile) for aes_is_fast in (True, False))
        assert fast.cipher[0].startswith("aes")
        assert slow.cipher[0] == "chacha20-poly1305@openssh.com"
        assert sorted(slow.cipher) == sorted(fast.cipher)
        assert slow == fast._replace(cipher=slow.cipher)
