"""A client of an authentication agent (draft-ietf-sshm-ssh-agent): lists its keys, and asks it
for signatures.
"""

import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..crypto.key_files import write_secret
from ..crypto.keys import PrivateKey, PublicKey, plain_name
from ..crypto.offered_keys import load_offered_key
from ..errors import MalformedMessage
from ..ssh.transport import HostBinding
from ..wire.codec import Boolean, Message, Reader, Record, String, UInt32, write_text, write_uint32

_REQUEST_IDENTITIES: Final = b"\x0b"
_IDENTITIES_ANSWER: Final = 12
_ADD: Final = b"\x11"
_ADD_CONSTRAINED: Final = b"\x19"
_LIFETIME: Final = b"\x01"
_CONFIRM: Final = b"\x02"
_SUCCESS: Final = b"\x06"
_RSA_FLAGS: Final = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}

# Our own choices
ANSWER_LIMIT: Final = 256 << 10  # bytes, OpenSSH's
KEYS_LIMIT: Final = 2048
TIMEOUT: Final = 60.0  # seconds: a hardware key may wait for a touch


class _SignRequest(Message, number=13):
    key: String
    data: String
    flags: UInt32


class _SignResponse(Message, number=14):
    signature: String


class _Extension(Message, number=27):
    name: String


class _SessionBind(Record):
    """The fields that follow the extension's name (OpenSSH PROTOCOL.agent 1)."""

    host_key: String
    session_id: String
    signature: String
    is_forwarding: Boolean


def session_bind(binding: HostBinding, forwarding: bool) -> bytes:
    """Returns the request that tells the agent which SSH connection it serves.

    The agent needs it for keys that are restricted to some hosts (ssh-add -h). An older agent
    does not know the request and answers with a failure. ``forwarding`` is true when programs at
    the server will talk to the agent.
    """
    bind = _SessionBind(*binding, forwarding)
    return _Extension(b"session-bind@openssh.com").encode() + bind.encode()


class AgentKey(NamedTuple):
    """A key that the agent holds."""

    public: PublicKey  # or a Certificate
    comment: str


class Agent:
    """One connection to an agent; each failure of the connection is an OSError."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(TIMEOUT)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Closes the connection to the agent."""
        self._sock.close()

    def bind(self, binding: HostBinding) -> None:
        """Tells the agent which SSH connection it serves."""
        self._ask(session_bind(binding, forwarding=False))

    def keys(self) -> Iterator[AgentKey]:
        """Returns the agent's keys whose types Culvert knows."""
        reader = self._ask(_REQUEST_IDENTITIES)
        try:
            if reader.byte() != _IDENTITIES_ANSWER:
                return
            for _ in range(min(reader.uint32(), KEYS_LIMIT)):
                blob, comment = reader.string(), reader.string()
                try:
                    yield AgentKey(load_offered_key(blob), comment.decode(errors="replace"))
                except MalformedMessage:
                    continue  # a key of an unknown type
        except MalformedMessage as error:
            raise OSError("the agent's answer is malformed") from error

    def add(self, key: PrivateKey, comment: str, confirm: bool, lifetime: int) -> bool:
        """Adds a key to the agent; returns False if the agent refuses.

        ``lifetime`` is in seconds, 0 for no limit. With ``confirm`` the agent asks its user before
        each use of the key.
        """
        constraints = b"".join(
            (
                _LIFETIME + write_uint32(lifetime) if lifetime else b"",
                _CONFIRM if confirm else b"",
            )
        )
        number = _ADD_CONSTRAINED if constraints else _ADD
        request = number + write_secret(key) + write_text(comment) + constraints
        return self._ask(request).rest() == _SUCCESS

    def sign(self, key: PublicKey, algorithm: str, data: bytes) -> bytes | None:
        """Returns a signature blob, or None when the agent refuses."""
        request = _SignRequest(key.blob, data, _RSA_FLAGS.get(plain_name(algorithm), 0))
        answer = self._ask(request.encode()).rest()
        try:
            return _SignResponse.decode(answer).signature
        except MalformedMessage:
            return None

    def _ask(self, request: bytes) -> Reader:
        self._sock.sendall(write_uint32(len(request)) + request)
        length = int.from_bytes(self._take(4), "big")
        if not 0 < length <= ANSWER_LIMIT:
            raise OSError("the agent's answer is too long")
        return Reader(self._take(length))

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._sock.recv(count - len(data))
            if not more:
                raise OSError("the agent closed the connection")
            data += more
        return data
