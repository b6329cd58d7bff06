"""The server's host keys, which are read or made on first use, and their certificates.

A new key file appears complete or not at all. Only the key holder (key_holder.py) reads the key
files; the other processes have it sign.
"""

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..crypto.key_files import KeyFileError, dump_openssh, load_offered_line, load_private_key
from ..crypto.keys import RSA, PrivateKey, PublicKey, generate, plain_name
from ..errors import UsageError

_log = logging.getLogger(__name__)


class HostKeySigner(Protocol):
    """A key that signs: a PrivateKey, or a HeldKey in processes without the private half."""

    public: PublicKey

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """A signature blob; raises OSError if the key holder does not answer."""
        ...


class HostKey(NamedTuple):
    """A key, and what the server shows for it: the public key itself or a certificate."""

    signer: HostKeySigner
    public: PublicKey  # or a Certificate

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """A signature blob; ``algorithm`` is one of ``public.signature_algorithms``."""
        return self.signer.sign(plain_name(algorithm), data)


class HostKeys(NamedTuple):
    """The keys of a server: those that it shows, and all that it has."""

    by_algorithm: dict[str, HostKey]  # the first key that signs under each name
    by_blob: dict[bytes, HostKeySigner]


def arrange(keys: Sequence[HostKeySigner], certificates: Sequence[str], shortest: int) -> HostKeys:
    """Chooses the key or certificate for each signature algorithm; raises UsageError.

    ``certificates`` are paths. A certificate that is not for hosts, or for none of the keys, is a
    mistake. One that is not valid now is only named in the log, because clients refuse it. RSA
    keys must have ``shortest`` bits or more.
    """
    found: dict[str, HostKey] = {}
    for key in keys:
        if key.public.key_type == RSA and key.public.bits < shortest:
            raise UsageError(f"this profile wants RSA host keys of {shortest} bits or more")
        for algorithm in key.public.signature_algorithms:
            found.setdefault(algorithm, HostKey(key, key.public))
    for path in certificates:
        host_key = _with_certificate(keys, path)
        for algorithm in host_key.public.signature_algorithms:
            found.setdefault(algorithm, host_key)
    return HostKeys(found, {key.public.blob: key for key in keys})


def _with_certificate(keys: Sequence[HostKeySigner], path: str) -> HostKey:
    from ..crypto.certificates import Certificate, CertType

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            certificate, _ = load_offered_line(file.read(1 << 20))
    except KeyFileError as error:
        raise UsageError(f"host certificate {path}: {error}") from error
    except OSError as error:
        raise UsageError(f"host certificate {path}: {error.strerror}") from error
    if not isinstance(certificate, Certificate) or certificate.terms.kind is not CertType.HOST:
        raise UsageError(f"host certificate {path}: it is not a host certificate")
    key = next((key for key in keys if key.public == certificate.key), None)
    if key is None:
        raise UsageError(f"host certificate {path}: it certifies none of the host keys")
    if not certificate.terms.valid_after <= time.time() < certificate.terms.valid_before:
        _log.warning("host certificate %s is not valid now", path)
    return HostKey(key, certificate)


def load(paths: Sequence[str], make: bool) -> list[PrivateKey]:
    """One key a path; with ``make``, missing ones are generated. Raises UsageError."""
    keys = []
    for path in paths:
        try:
            keys.append(_read(path))
        except FileNotFoundError:
            if not make:
                raise UsageError(
                    f"host key {path} is missing: make it with 'culvert keygen -f {path}', or "
                    "give -R to have it made"
                ) from None
            keys.append(_make(path))
    return keys


def _read(path: str) -> PrivateKey:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"host key {path} may be read by others: chmod 600 {path}")
            return load_private_key(file.read(1 << 20))
    except KeyFileError as error:
        raise UsageError(f"host key {path}: {error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"host key {path}: {error.strerror}") from error


def _make(path: str) -> PrivateKey:
    """Generates a key of the type that the file's name contains, or else an ed25519 key."""
    name = os.path.basename(path)
    kind = "ssh-ed25519"
    if "ecdsa" in name:
        kind = "ecdsa-sha2-nistp256"
    elif "rsa" in name:
        kind = "ssh-rsa"
    key = generate(kind)
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=folder, prefix=".culvert-")  # 0600, O_EXCL
        try:
            with open(fd, "wb") as file:
                file.write(dump_openssh(key, None, "host key"))
                file.flush()
                os.fsync(fd)
            try:
                os.link(temporary, path)  # fails if another server was faster
            except FileExistsError:
                return _read(path)
        finally:
            os.unlink(temporary)
        _log.info("made host key %s: %s", path, key.public.fingerprint())
    except OSError as error:
        raise UsageError(f"host key {path} cannot be made: {error.strerror}") from error
    return key
