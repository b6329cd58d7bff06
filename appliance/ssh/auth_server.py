"""User authentication as the server sees it (RFC 4252, RFC 4256).

This module reads the requests. The Authority decides whether a key or a password is right;
in the server it is another process.

    WAITING --keyboard-interactive--> DIALOGUE --any request--> WAITING --success--> DONE
"""

from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from ..errors import AuthenticationFailed, ProtocolError
from ..wire.codec import Boolean, Byte, Name, Reader, Record, String, Text, write_string
from ..wire.messages import (
    UserauthBanner,
    UserauthFailure,
    UserauthInfoRequest,
    UserauthInfoResponse,
    UserauthPkOk,
    UserauthRequest,
    UserauthSuccess,
)

HOSTBOUND: Final = "publickey-hostbound-v00@openssh.com"  # OpenSSH PROTOCOL 3.1
SERVICE: Final = "ssh-connection"

# Our own choices
PASSWORD_LIMIT: Final = 1024  # bytes, as OpenSSH has it
USER_LIMIT: Final = 128  # characters; the longest user name of any system is shorter


class Outcome(NamedTuple):
    """The authority's decision on one attempt."""

    success: bool
    methods: tuple[str, ...] = ()  # that can continue, when there was no success
    partial: bool = False  # this method was satisfied, and another one is required
    final: bool = False  # there were too many failures


class Offer(NamedTuple):
    """A public key that a client shows, with or without a signature."""

    user: str
    algorithm: str  # of the signature
    blob: bytes
    host_key: bytes  # the server's, in the host-bound form of the method; else empty


class Authority(Protocol):
    """Decides about logins; a call may take long, and the connection waits for it."""

    def begin(self, user: str) -> Outcome:
        """The outcome of the method 'none', by which clients mostly ask for the methods."""
        ...

    def refuse(self, user: str, method: str) -> Outcome:
        """Counts an attempt that cannot succeed; returns its outcome."""
        ...

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        """None if a signature by this key would be accepted, else the outcome."""
        ...

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        """The outcome of a signature blob over ``signed_data`` with the connection's session id."""
        ...

    def prompt(self, user: str) -> str:
        """The prompt of keyboard-interactive; the user's answer goes to ``password``."""
        ...

    def password(self, user: str, method: str, password: bytes) -> Outcome:
        """The outcome of a password or code, by 'password' or 'keyboard-interactive'."""
        ...


class PublicKeyFields(Record):
    """The method fields of publickey, up to the signature (RFC 4252 section 7)."""

    has_signature: Boolean
    algorithm: Name
    public_key: String


class _PasswordFields(Record):
    change: Boolean
    password: String


class _KeyboardInteractiveFields(Record):
    language_tag: Text
    submethods: Text


class SignedData(Record):
    """The data that the client signs (RFC 4252 section 7); the host-bound form adds a string."""

    session_id: String
    message_number: Byte
    user_name: Text
    service_name: Name
    method_name: Name
    has_signature: Boolean
    algorithm: Name
    public_key: String


def signed_data(session_id: bytes, offer: Offer) -> bytes:
    """The bytes that a signature for ``offer`` covers."""
    method = HOSTBOUND if offer.host_key else "publickey"
    data = SignedData(
        session_id,
        UserauthRequest.number,
        offer.user,
        SERVICE,
        method,
        True,
        offer.algorithm,
        offer.blob,
    ).encode()
    return data + write_string(offer.host_key) if offer.host_key else data


class _AuthState(Enum):
    WAITING = auto()
    DIALOGUE = auto()
    DONE = auto()


class AuthServer:
    """The authentication of one connection."""

    def __init__(
        self, authority: Authority, algorithms: tuple[str, ...], host_key: bytes, banner: str
    ) -> None:
        self._authority = authority
        self._algorithms = algorithms
        self._host_key = host_key
        self._banner = banner
        self._state = _AuthState.WAITING
        self._user: str | None = None

    @property
    def in_dialogue(self) -> bool:
        """Whether INFO_RESPONSE is expected."""
        return self._state is _AuthState.DIALOGUE

    @property
    def is_done(self) -> bool:
        """Whether the user is authenticated."""
        return self._state is _AuthState.DONE

    def request(self, request: UserauthRequest) -> list[bytes]:
        """The payloads that answer the request; raises PeerError."""
        self._state = _AuthState.WAITING  # RFC 4256 section 3.1: a new request ends a dialogue
        answers = []
        if request.service_name != SERVICE:
            raise ProtocolError("authentication for a service that does not exist")
        if self._user is None:
            if len(request.user_name) > USER_LIMIT:
                raise ProtocolError("a user name that is too long")
            self._user = request.user_name
            if self._banner:
                answers.append(UserauthBanner(self._banner).encode())
        elif request.user_name != self._user:
            raise ProtocolError("the user name changed during authentication")
        answers.append(self._attempt(self._user, request.method_name, request.method_fields))
        return answers

    def _attempt(self, user: str, method: str, fields: bytes) -> bytes:
        if method == "none":
            return self._answer(self._authority.begin(user))
        if method in ("publickey", HOSTBOUND):
            return self._publickey(user, method, Reader(fields))
        if method == "password":
            reader = Reader(fields)
            password = _PasswordFields.read(reader)
            if password.change:  # we never ask for a change
                return self._answer(self._authority.refuse(user, method))
            reader.end()
            return self._password(user, method, password.password)
        if method == "keyboard-interactive":
            _KeyboardInteractiveFields.decode(fields)
            self._state = _AuthState.DIALOGUE
            prompt = self._authority.prompt(user)
            return UserauthInfoRequest("", "", "", ((prompt, False),)).encode()
        return self._answer(self._authority.refuse(user, method))

    def _publickey(self, user: str, method: str, reader: Reader) -> bytes:
        fields = PublicKeyFields.read(reader)
        host_key = reader.string() if method == HOSTBOUND else b""
        signature = reader.string() if fields.has_signature else None
        reader.end()
        if host_key and host_key != self._host_key:
            raise ProtocolError("an authentication that is bound to another host key")
        offer = Offer(user, fields.algorithm, fields.public_key, host_key)
        if fields.algorithm not in self._algorithms:
            return self._answer(self._authority.refuse(user, method))
        if signature is not None:
            return self._answer(self._authority.key(offer, signature))
        refusal = self._authority.key_is_acceptable(offer)
        if refusal is not None:
            return self._answer(refusal)
        return UserauthPkOk(fields.algorithm, fields.public_key).encode()

    def info_response(self, response: UserauthInfoResponse) -> list[bytes]:
        """The payloads that answer the password given in a dialogue."""
        assert self._user is not None
        self._state = _AuthState.WAITING
        if len(response.responses) != 1:
            raise ProtocolError("a wrong number of answers in keyboard-interactive")
        return [self._password(self._user, "keyboard-interactive", response.responses[0])]

    def _password(self, user: str, method: str, password: bytes) -> bytes:
        if len(password) > PASSWORD_LIMIT:
            return self._answer(self._authority.refuse(user, method))
        return self._answer(self._authority.password(user, method, password))

    def _answer(self, outcome: Outcome) -> bytes:
        if outcome.success:
            self._state = _AuthState.DONE
            return UserauthSuccess().encode()
        if outcome.final:
            raise AuthenticationFailed("too many authentication failures")
        return UserauthFailure(outcome.methods, outcome.partial).encode()
