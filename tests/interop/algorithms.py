"""Which algorithms each pair of peers has in common.

Culvert's are written down here, not asked of it, so that one it loses fails a test. OpenSSH and
Dropbear are asked, because they differ from one Debian to the next.
"""

import re
import subprocess
from collections.abc import Iterator

from tests.peers import KEY_TYPES, PATH, Algorithms, Missing, find_program

KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)
HOST_KEYS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
MAC_CIPHER = "aes128-ctr"  # with an AEAD cipher no MAC is used

# What the Python libraries lack of the above, and the families that plink can be told.
PARAMIKO_LACKS = {"curve25519-sha256", "chacha20-poly1305@openssh.com"}
ASYNCSSH_LACKS: set[str] = set()
PLINK_KEY_EXCHANGES = ("ecdh", "dh-group16-sha512", "dh-group14-sha1")
PLINK_CIPHERS = ("aesgcm", "aes", "chacha20")
PLINK_HOST_KEYS = ("ed25519", "ecdsa", "rsa")


def _ask(program: str, *words: str) -> set[str]:
    try:
        argv = [find_program(program), *words]
    except Missing:
        return {*KEY_EXCHANGES, *HOST_KEYS, *CIPHERS, *MACS}  # the tests will be skipped by name
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": PATH}, check=False)
    return set((done.stdout + done.stderr).replace(",", " ").split())


def _openssh() -> set[str]:
    kinds = ("kex", "HostKeyAlgorithms", "cipher", "mac")
    return set().union(*(_ask("ssh", "-Q", kind) for kind in kinds))


def _dropbear() -> set[str]:
    # Ciphers and MACs it can be asked for; the rest goes by what Debian's versions have.
    fixed = {*KEY_EXCHANGES, *HOST_KEYS} - {"diffie-hellman-group16-sha512", "rsa-sha2-512"}
    version = re.search(r"v(\d{4}\.\d+)", " ".join(_ask("dropbear", "-V")))
    if version is None or float(version[1]) < 2025.87:
        fixed.discard("mlkem768x25519-sha256")
    return _ask("dbclient", "-c", "help") | _ask("dbclient", "-m", "help") | fixed


def _offers(known: set[str]) -> Iterator[tuple[str, Algorithms]]:
    for name in KEY_EXCHANGES:
        if name in known:
            yield name, Algorithms(kex=name)
    for name in HOST_KEYS:
        if name in known:
            yield name, Algorithms(host_key=name)
    for name in CIPHERS:
        if name in known:
            yield name, Algorithms(cipher=name)
    for name in MACS:
        if name in known:
            yield name, Algorithms(cipher=MAC_CIPHER, mac=name)


def offers_of_client(client: str) -> Iterator[tuple[str, Algorithms]]:
    """Yield, with a name, each single choice that this client can be told and Culvert has."""
    ours = {*KEY_EXCHANGES, *HOST_KEYS, *CIPHERS, *MACS}
    match client:
        case "openssh":
            yield from _offers(_openssh())
        case "dbclient":
            yield from _offers(_dropbear() & {*CIPHERS, *MACS})
        case "plink":
            for family in PLINK_KEY_EXCHANGES:
                yield family, Algorithms(kex=family)
            for family in PLINK_CIPHERS:
                yield family, Algorithms(cipher=family)
            for family in PLINK_HOST_KEYS:
                yield family, Algorithms(host_key=family)
        case "asyncssh":
            yield from _offers(ours - ASYNCSSH_LACKS)
        case "paramiko":
            yield from _offers(ours - PARAMIKO_LACKS)
        case _:
            yield from _offers(ours)


def offers_to_server(server: str) -> Iterator[tuple[str, Algorithms]]:
    """Yield, with a name, each single choice that Culvert's client can put to this server."""
    ours = {*KEY_EXCHANGES, *HOST_KEYS, *CIPHERS, *MACS}
    match server:
        case "openssh":
            yield from _offers(_openssh())
        case "dropbear":
            # It takes four host keys; the tests give it the other types.
            yield from _offers(_dropbear() - {"ecdsa-sha2-nistp521"})
        case "asyncssh":
            yield from _offers(ours - ASYNCSSH_LACKS)
        case _:
            yield from _offers(ours)


DROPBEAR_HOST_KEYS = [name for name in KEY_TYPES if name != "ecdsa-sha2-nistp521"]
