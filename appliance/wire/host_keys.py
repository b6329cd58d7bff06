"""Host key rotation: a server tells its client all its host keys, and proves that it has them
(OpenSSH PROTOCOL 2.5), so that the client knows a new key before an old one is removed.

    server -> client   HOSTKEYS, the keys, each a string; no answer
    client -> server   HOSTKEYS_PROVE, the keys that the client did not know
    server -> client   a signature over Proof for each of these keys, as a string
"""

from collections.abc import Iterable
from typing import Final

from ..errors import MalformedMessage
from .codec import Name, Reader, Record, String, write_string

HOSTKEYS: Final = "hostkeys-00@openssh.com"
HOSTKEYS_PROVE: Final = "hostkeys-prove-00@openssh.com"

# Our own choice
KEYS_LIMIT: Final = 100  # of one server


class Proof(Record):
    """The data that the server signs with each key."""

    name: Name  # HOSTKEYS_PROVE
    session_id: String
    host_key: String


def write_strings(blobs: Iterable[bytes]) -> bytes:
    """Encodes keys or signatures, one after the other."""
    return b"".join(map(write_string, blobs))


def read_strings(data: bytes) -> list[bytes]:
    """Decodes keys or signatures; raises MalformedMessage."""
    reader = Reader(data)
    found: list[bytes] = []
    while reader.left:
        if len(found) == KEYS_LIMIT:
            raise MalformedMessage("more host keys than any server has")
        found.append(reader.string())
    return found
