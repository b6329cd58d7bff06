"""UpdateHostKeys: the server announces its keys, and the client notes those that it proves to have.

This needs a line for the host in the user's first known_hosts file, so that only a host that was
trusted before can add keys. A key that the server no longer announces is removed.
"""

import logging
import os
import tempfile
from collections.abc import Callable

from ..crypto.keys import PublicKey, load_public_key
from ..crypto.known_hosts import SALT_BYTES, Decision, lookup, update
from ..errors import MalformedMessage, UsageError
from ..ssh.connection import Connection
from ..wire.codec import Reader
from ..wire.host_keys import HOSTKEYS_PROVE, Proof, read_strings, write_strings
from . import prompts
from .host_options import HostOptions
from .known_hosts_file import locked

_log = logging.getLogger(__name__)


class HostKeysUpdate:
    """Owns one update, from the server's announcement to the known_hosts file."""

    def __init__(self, options: HostOptions, connection: Connection) -> None:
        self._options = options
        self._connection = connection
        self._host = options.host_key_alias or options.host_name
        self._port = 22 if options.host_key_alias else options.port
        self._path = options.user_known_hosts_files[0]

    def announced(self, data: bytes) -> None:
        """Handles the server's announcement of its keys; raises MalformedMessage."""
        keys = list(_usable(read_strings(data)))
        current = self._connection.transport.host_binding.host_key
        if current not in (key.blob for key in keys):
            return  # it used a certificate, or is about to drop this key
        text = self._read()
        found = lookup(text, self._host, self._port)
        known = [each.key for each in found.keys]
        if current not in (key.blob for key in known):
            return
        if any(found.decide(key) is Decision.REVOKED for key in keys):
            return
        new = [key for key in keys if key not in known]
        if not new and all(key in keys for key in known):
            return
        if not new:
            self._write(keys, new)
            return

        def answered(answer: bytes | None) -> None:
            if answer is None or not self._proves(answer, new):
                prompts.tell(f"culvert: {self._host} does not prove its new host keys")
            else:
                self._write(keys, new)

        blobs = write_strings(key.blob for key in new)
        self._connection.global_request(HOSTKEYS_PROVE, blobs, answered)

    def _proves(self, answer: bytes, keys: list[PublicKey]) -> bool:
        session_id = self._connection.transport.session_id
        try:
            return all(
                key.verify(
                    Reader(signature).name(),
                    signature,
                    Proof(HOSTKEYS_PROVE, session_id, key.blob).encode(),
                )
                for key, signature in zip(keys, read_strings(answer), strict=True)
            )
        except (MalformedMessage, ValueError):  # ValueError: too few signatures, or too many
            return False

    def _read(self) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""

    def _write(self, keys: list[PublicKey], new: list[PublicKey]) -> None:
        try:
            if self._updated(keys) is None or not self._agreed(new):
                return
            with locked(self._path):
                text = self._updated(keys)  # others may have written since
                if text is None:
                    return
                _replace(self._path, text)
        except (OSError, UsageError) as error:
            prompts.tell(f"culvert: the new host keys could not be added: {error}")
            return
        for key in new:
            _log.info("learned the new host key %s %s", key.key_type, key.fingerprint())

    def _updated(self, keys: list[PublicKey]) -> str | None:
        """Returns the file's new text; None if the file must stay as it is."""
        salts: Callable[[], bytes] = lambda: os.urandom(SALT_BYTES)  # noqa: E731
        return update(
            self._read(), self._host, self._port, keys, self._options.hash_known_hosts,
            iter(salts, b""),
        )  # fmt: skip

    def _agreed(self, new: list[PublicKey]) -> bool:
        if self._options.update_host_keys != "ask" or not new:
            return True
        shown = "".join(f"\n  {key.key_type} {key.fingerprint()}" for key in new)
        answer = prompts.line(
            f"The server {self._host} has new host keys:{shown}\nAccept them (yes/no)? "
        )
        return answer == "yes"


def _usable(blobs: list[bytes]) -> list[PublicKey]:
    keys = []
    for blob in blobs:
        try:
            keys.append(load_public_key(blob))
        except MalformedMessage:
            continue  # of a type that we do not know
    return keys


def _replace(path: str, text: str) -> None:
    """Writes the file as a whole or not at all, with the mode that it had."""
    path = os.path.realpath(path)
    mode = os.stat(path).st_mode & 0o777
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".known_hosts-")
    try:
        with open(fd, "wb") as file:
            file.write(text.encode(errors="surrogateescape"))
            os.fchmod(fd, mode)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
