"""Which messages may arrive in which phase of a connection, and which events end a phase.

Only this module decides that: no handler checks whether its message may arrive.
"""

from enum import Enum, auto
from typing import Final

from ..wire.codec import Message
from ..wire.messages import (
    ChannelClose,
    ChannelData,
    ChannelEof,
    ChannelExtendedData,
    ChannelFailure,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelOpenFailure,
    ChannelRequest,
    ChannelSuccess,
    ChannelWindowAdjust,
    Debug,
    Disconnect,
    ExtInfo,
    GlobalRequest,
    Ignore,
    KexInit,
    KexInitiate,
    KexReply,
    NewKeys,
    Ping,
    RequestFailure,
    RequestSuccess,
    ServiceAccept,
    ServiceRequest,
    Unimplemented,
    UserauthBanner,
    UserauthFailure,
    UserauthInfoRequest,
    UserauthInfoResponse,
    UserauthPkOk,
    UserauthRequest,
    UserauthSuccess,
)


class Role(Enum):
    """Which side of the connection this end is."""

    CLIENT = auto()
    SERVER = auto()


class Phase(Enum):
    """What a connection waits for.

        VERSION -> KEXINIT -> EXCHANGE -> NEWKEYS -> FRESH -> SERVICE -> AUTH -> OPEN
                                 ^           |
                                 |           v
                     KEXINIT received in SERVICE, AUTH, AUTH_INFO or OPEN, then back to it

        AUTH <-> AUTH_INFO -> OPEN       a server's: a keyboard-interactive dialogue is open
        AUTH -> PRE_SUCCESS -> OPEN      a client's: EXT_INFO came, so USERAUTH_SUCCESS follows
        any phase -> CLOSED

    FRESH lasts for one packet, the first one behind the first NEWKEYS: EXT_INFO may come there,
    or right before USERAUTH_SUCCESS (RFC 8308 section 2.4).
    """

    VERSION = auto()
    KEXINIT = auto()
    EXCHANGE = auto()
    NEWKEYS = auto()
    FRESH = auto()
    SERVICE = auto()
    AUTH = auto()
    AUTH_INFO = auto()
    PRE_SUCCESS = auto()
    OPEN = auto()
    CLOSED = auto()


class Event(Enum):
    """What ends a phase."""

    IDENTIFIED = auto()  # the peer's identification string came
    KEXINIT_RECEIVED = auto()
    NEWKEYS_SENT = auto()
    NEWKEYS_RECEIVED = auto()
    FIRST_RECEIVED = auto()  # the packet behind the first NEWKEYS, unless it is EXT_INFO
    EXT_INFO_RECEIVED = auto()
    SERVICE_ACCEPTED = auto()  # ssh-userauth, by either side
    DIALOGUE_OPENED = auto()  # the server sent USERAUTH_INFO_REQUEST
    ATTEMPT_ANSWERED = auto()  # the server sent another answer, not USERAUTH_SUCCESS
    AUTHENTICATED = auto()
    ENDED = auto()


INTERRUPTED: Final = None  # the phase that the key exchange interrupted; FRESH, the first time

TABLE: Final[dict[tuple[Phase, Event], Phase | None]] = {
    (Phase.VERSION, Event.IDENTIFIED): Phase.KEXINIT,
    (Phase.KEXINIT, Event.KEXINIT_RECEIVED): Phase.EXCHANGE,
    (Phase.EXCHANGE, Event.NEWKEYS_SENT): Phase.NEWKEYS,
    (Phase.NEWKEYS, Event.NEWKEYS_RECEIVED): INTERRUPTED,
    (Phase.FRESH, Event.FIRST_RECEIVED): Phase.SERVICE,
    (Phase.FRESH, Event.EXT_INFO_RECEIVED): Phase.SERVICE,
    (Phase.SERVICE, Event.KEXINIT_RECEIVED): Phase.EXCHANGE,
    (Phase.SERVICE, Event.SERVICE_ACCEPTED): Phase.AUTH,
    (Phase.AUTH, Event.KEXINIT_RECEIVED): Phase.EXCHANGE,
    (Phase.AUTH, Event.SERVICE_ACCEPTED): Phase.AUTH,  # Paramiko asks before each attempt
    (Phase.AUTH, Event.DIALOGUE_OPENED): Phase.AUTH_INFO,
    (Phase.AUTH, Event.ATTEMPT_ANSWERED): Phase.AUTH,
    (Phase.AUTH, Event.EXT_INFO_RECEIVED): Phase.PRE_SUCCESS,
    (Phase.AUTH, Event.AUTHENTICATED): Phase.OPEN,
    (Phase.AUTH_INFO, Event.KEXINIT_RECEIVED): Phase.EXCHANGE,
    (Phase.AUTH_INFO, Event.DIALOGUE_OPENED): Phase.AUTH_INFO,
    (Phase.AUTH_INFO, Event.ATTEMPT_ANSWERED): Phase.AUTH,
    (Phase.AUTH_INFO, Event.AUTHENTICATED): Phase.OPEN,
    (Phase.PRE_SUCCESS, Event.AUTHENTICATED): Phase.OPEN,
    (Phase.OPEN, Event.KEXINIT_RECEIVED): Phase.EXCHANGE,
    **{(phase, Event.ENDED): Phase.CLOSED for phase in Phase if phase is not Phase.CLOSED},
}


class Verdict(Enum):
    """What to do with a message."""

    HANDLE = auto()
    SKIP = auto()  # silently
    UNKNOWN = auto()  # answer UNIMPLEMENTED
    REFUSE = auto()  # disconnect


def _numbers(*kinds: type[Message]) -> frozenset[int]:
    return frozenset(kind.number for kind in kinds)


_ANYTIME: Final = _numbers(Ignore, Unimplemented, Debug)
_CONNECTION: Final = _numbers(
    GlobalRequest,
    RequestSuccess,
    RequestFailure,
    ChannelOpen,
    ChannelOpenConfirmation,
    ChannelOpenFailure,
    ChannelWindowAdjust,
    ChannelData,
    ChannelExtendedData,
    ChannelEof,
    ChannelClose,
    ChannelRequest,
    ChannelSuccess,
    ChannelFailure,
)
_ALLOWED: Final[dict[tuple[Role, Phase], frozenset[int]]] = {
    (Role.SERVER, Phase.KEXINIT): _numbers(KexInit),
    (Role.CLIENT, Phase.KEXINIT): _numbers(KexInit),
    (Role.SERVER, Phase.EXCHANGE): _numbers(KexInitiate),
    (Role.CLIENT, Phase.EXCHANGE): _numbers(KexReply),
    (Role.SERVER, Phase.NEWKEYS): _numbers(NewKeys),
    (Role.CLIENT, Phase.NEWKEYS): _numbers(NewKeys),
    (Role.SERVER, Phase.FRESH): _numbers(ExtInfo, ServiceRequest, KexInit),
    (Role.CLIENT, Phase.FRESH): _numbers(ExtInfo, ServiceAccept, KexInit),
    (Role.SERVER, Phase.SERVICE): _numbers(ServiceRequest, KexInit),
    (Role.CLIENT, Phase.SERVICE): _numbers(ServiceAccept, KexInit),
    (Role.SERVER, Phase.AUTH): _numbers(ServiceRequest, UserauthRequest, KexInit),
    (Role.SERVER, Phase.AUTH_INFO): _numbers(UserauthRequest, UserauthInfoResponse, KexInit),
    (Role.CLIENT, Phase.AUTH): _numbers(
        UserauthFailure,
        UserauthSuccess,
        UserauthBanner,
        UserauthPkOk,
        UserauthInfoRequest,
        ExtInfo,
        KexInit,
    ),
    (Role.CLIENT, Phase.PRE_SUCCESS): _numbers(UserauthSuccess),
    (Role.SERVER, Phase.OPEN): _CONNECTION | _numbers(KexInit, Ping),
    (Role.CLIENT, Phase.OPEN): _CONNECTION | _numbers(KexInit, Ping),
}
_KNOWN: Final = _numbers(Disconnect) | _ANYTIME.union(*_ALLOWED.values())


def verdict(role: Role, phase: Phase, number: int, strict: bool, first: bool) -> Verdict:
    """What to do with message ``number``; ``first`` is True until NEWKEYS was received once.

    Strict key exchange (OpenSSH PROTOCOL 1.10) forbids even the harmless messages in the
    first exchange, which is what stops the Terrapin attack (CVE-2023-48795).
    """
    if number == Disconnect.number:
        return Verdict.HANDLE
    if number in _ALLOWED.get((role, phase), frozenset()):
        return Verdict.HANDLE
    if number in _ANYTIME:
        forbidden = phase is Phase.NEWKEYS or (strict and first)
        return Verdict.REFUSE if forbidden else Verdict.HANDLE
    if phase is not Phase.OPEN:
        return Verdict.REFUSE
    if role is Role.SERVER and number == UserauthRequest.number:
        return Verdict.SKIP  # RFC 4252 section 5.3: after the login, requests are ignored
    return Verdict.REFUSE if number in _KNOWN else Verdict.UNKNOWN


class Order:
    """The phase of one connection, and what else decides which messages may arrive."""

    __slots__ = ("_interrupted", "is_first", "phase", "role", "strict")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.phase = Phase.VERSION
        self.strict = False  # until both KEXINIT have asked for strict key exchange
        self.is_first = True  # until the first NEWKEYS was received
        self._interrupted = Phase.FRESH

    @property
    def is_logged_in(self) -> bool:
        """Whether the user is authenticated, also during a later key exchange."""
        return self.phase is Phase.OPEN or self._interrupted is Phase.OPEN

    def happened(self, event: Event) -> None:
        """Moves to the next phase; raises KeyError if the event cannot happen in this one."""
        before = self.phase
        self.phase = TABLE[before, event] or self._interrupted
        if event is Event.KEXINIT_RECEIVED and before is not Phase.KEXINIT:
            self._interrupted = before
        elif event is Event.NEWKEYS_RECEIVED:
            self.is_first = False

    def verdict(self, number: int) -> Verdict:
        """Returns what to do with message ``number``, which arrived just now."""
        return verdict(self.role, self.phase, number, self.strict, self.is_first)
