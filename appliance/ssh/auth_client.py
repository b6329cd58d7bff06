"""User authentication as the client sees it (RFC 4252, RFC 4256).

The methods that the server lists are tried in the order that the user prefers. A key that
can sign at once is used at once. A key that needs the user (a passphrase, a touch) is first
shown to the server, so that the user is asked only if the server accepts the key.

    ASKED_NONE -> ASKED_KEY | SHOWED_KEY -> ASKED_KEY | ASKED_PASSWORD | ASKED_DIALOGUE

Each failure leads to the next method; the connection itself handles the success.
"""

import hashlib
import logging
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from ..errors import AuthenticationFailed, ProtocolError
from ..wire.codec import Buffer, Reader, write_boolean, write_name, write_string, write_text
from ..wire.messages import (
    UserauthFailure,
    UserauthInfoRequest,
    UserauthInfoResponse,
    UserauthPkOk,
    UserauthRequest,
)
from .auth_server import HOSTBOUND, SERVICE, Offer, signed_data

_log = logging.getLogger(__name__)

# Our own choices
DIALOGUES: Final = 3  # attempts at keyboard-interactive; OpenSSH's NumberOfPasswordPrompts
DIALOGUE_LIMIT: Final = 100  # INFO_REQUESTs of one login; a server with more never ends asking
FACTORS_LIMIT: Final = 10  # partial successes of one login, likewise


class Identity(NamedTuple):
    """A key that may be tried."""

    blob: bytes
    algorithms: tuple[str, ...]  # that the key can sign with, the preferred one first
    sign: Callable[[str, bytes], bytes | None]  # (algorithm, data) -> signature; None: no signature
    costs_the_user: bool  # a passphrase or a touch, so ask the server first
    name: str  # for messages


class Credentials(Protocol):
    """The source of keys, passwords and answers; a call may ask the user, and wait for that."""

    def identities(self) -> Iterable[Identity]:
        """The keys, in the order in which they are to be tried."""
        ...

    def password(self) -> str | None:
        """A password, or None when the user gives up."""
        ...

    def answers(
        self, name: str, instruction: str, prompts: tuple[tuple[str, bool], ...]
    ) -> tuple[str, ...] | None:
        """An answer to each prompt (text, whether to echo), or None when the user gives up."""
        ...


class _MethodState(Enum):
    ASKED_NONE = auto()
    ASKED_KEY = auto()
    SHOWED_KEY = auto()
    ASKED_PASSWORD = auto()
    ASKED_DIALOGUE = auto()


class AuthClient:
    """The authentication of one connection."""

    def __init__(
        self,
        user: str,
        credentials: Credentials,
        methods: tuple[str, ...],
        algorithms: tuple[str, ...],
        session_id: bytes,
        host_key: bytes,
    ) -> None:
        self._user = user
        self._credentials = credentials
        self._preferred = methods
        self._algorithms = algorithms
        self._session_id = session_id
        self._host_key = host_key  # empty unless the server knows the host-bound form
        self._identities: Iterator[Identity] | None = None
        self._identity: Identity
        self._algorithm = ""
        self._exhausted: set[str] = set()
        self._tried: list[str] = []
        self._questions = self._dialogues = self._factors = 0
        self._state = _MethodState.ASKED_NONE

    @property
    def method(self) -> str:
        """The method that was tried last."""
        return self._tried[-1] if self._tried else "none"

    def begin(self) -> bytes:
        """The first request: a key if keys are preferred, else 'none' to learn the methods."""
        request = self._next_key() if self._preferred[:1] == ("publickey",) else None
        return request or self._request("none", b"")

    def _request(self, method: str, fields: Buffer) -> bytes:
        method_shown = "publickey" if method == HOSTBOUND else method
        if method != "none" and method_shown not in self._tried:
            self._tried.append(method_shown)
        return UserauthRequest(self._user, SERVICE, method, bytes(fields)).encode()

    def failure(self, message: UserauthFailure) -> bytes:
        """The next request; raises AuthenticationFailed when there is none."""
        if message.partial_success:
            self._factors += 1
            if self._factors > FACTORS_LIMIT:
                raise ProtocolError("the server never ends asking")
            self._exhausted.clear()
            self._identities = None
        _log.debug("Authentications that can continue: %s", ",".join(message.methods))
        for method in self._preferred:
            while method in message.methods and method not in self._exhausted:
                if method != self.method:
                    _log.debug("Next authentication method: %s", method)
                request = self._next(method)
                if request is not None:
                    return request
                self._exhausted.add(method)
        # Written as by OpenSSH: ssh-copy-id, Ansible and others look for these two words.
        raise AuthenticationFailed(
            f"Permission denied ({','.join(message.methods) or 'no methods left'})"
            + (f"; tried {', '.join(self._tried)}" if self._tried else "; had nothing to try")
        )

    def _next(self, method: str) -> bytes | None:
        if method == "publickey":
            return self._next_key()
        if method == "password":
            password = self._credentials.password()
            if password is None:
                return None
            self._state = _MethodState.ASKED_PASSWORD
            return self._request("password", write_boolean(False) + write_string(_typed(password)))
        self._dialogues += 1
        if self._dialogues > DIALOGUES:
            return None
        self._state = _MethodState.ASKED_DIALOGUE
        return self._request("keyboard-interactive", write_text("") + write_text(""))

    def _next_key(self) -> bytes | None:
        if self._identities is None:
            self._identities = iter(self._credentials.identities())
        for identity in self._identities:
            usable = [name for name in identity.algorithms if name in self._algorithms]
            if not usable:
                _log.debug("Skipping %s: no mutual signature algorithm", _shown(identity))
                continue
            self._identity, self._algorithm = identity, usable[0]
            _log.debug("Offering public key: %s", _shown(identity))
            if identity.costs_the_user:
                self._state = _MethodState.SHOWED_KEY
                return self._key_request(None)
            request = self._signed()
            if request is not None:
                return request
        return None

    def _signed(self) -> bytes | None:
        offer = Offer(self._user, self._algorithm, self._identity.blob, self._host_key)
        signature = self._identity.sign(self._algorithm, signed_data(self._session_id, offer))
        if signature is None:
            return None
        self._state = _MethodState.ASKED_KEY
        return self._key_request(signature)

    def _key_request(self, signature: bytes | None) -> bytes:
        fields = write_boolean(signature is not None) + write_name(self._algorithm)
        fields += write_string(self._identity.blob)
        if self._host_key:
            fields += write_string(self._host_key)
        if signature is not None:
            fields += write_string(signature)
        return self._request(HOSTBOUND if self._host_key else "publickey", fields)

    def answer60(self, payload: bytes) -> bytes:
        """The next request after message 60, whose meaning depends on the method.

        Raises PeerError if the method expects no such message.
        """
        if self._state is _MethodState.SHOWED_KEY:
            ok = UserauthPkOk.decode(payload)
            # As in OpenSSH, the algorithm is not compared: some servers answer ssh-rsa for RSA.
            if ok.public_key != self._identity.blob:
                raise ProtocolError("the server accepts a key that was not shown")
            _log.debug("Server accepts key: %s", _shown(self._identity))
            request = self._signed() or self._next_key()
            # no key left: a request that fails, so that the server lists its methods again
            return request or self._request("none", b"")
        if self._state is _MethodState.ASKED_DIALOGUE:
            asked = UserauthInfoRequest.decode(payload)
            self._questions += 1
            if self._questions > DIALOGUE_LIMIT:
                raise ProtocolError("the server never ends asking")
            answers: tuple[str, ...] | None = ()
            if asked.prompts or asked.name or asked.instruction:
                answers = self._credentials.answers(asked.name, asked.instruction, asked.prompts)
            if answers is None:
                self._exhausted.add("keyboard-interactive")
                return self._request("none", b"")
            return UserauthInfoResponse(tuple(map(_typed, answers))).encode()
        if self._state is _MethodState.ASKED_PASSWORD:
            raise AuthenticationFailed("the server wants the password to be changed first")
        raise ProtocolError("message 60, which nothing had asked for")


def _shown(identity: Identity) -> str:
    """A key as a person knows it: its file or the agent's comment, its type and fingerprint."""
    digest = b2a_base64(hashlib.sha256(identity.blob).digest(), newline=False).rstrip(b"=")
    return f"{identity.name} {Reader(identity.blob).name()} SHA256:{digest.decode()}"


def _typed(text: str) -> bytes:
    """The bytes that were typed at a terminal, which may not be UTF-8."""
    return text.encode(errors="surrogateescape")
