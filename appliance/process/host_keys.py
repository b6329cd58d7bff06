"""The server's host keys: read, or made on first use, whole or not at all."""

import logging
import os
import tempfile
from collections.abc import Sequence

from ..crypto.key_files import KeyFileError, dump_openssh, load_private_key
from ..crypto.keys import PrivateKey, generate
from ..errors import UsageError

_log = logging.getLogger(__name__)


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
    """Generate the kind of key that the file's name tells; ed25519 when it tells none."""
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
