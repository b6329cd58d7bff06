"""Which message may come when, and what leads from one phase of a connection to the next.

Nothing else decides either: a handler never asks where the connection stands.
"""

from enum import Enum, auto
from typing import Final

DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG = 1, 2, 3, 4
SERVICE_REQUEST, SERVICE_ACCEPT, EXT_INFO = 5, 6, 7
KEXINIT, NEWKEYS, KEX_INITIATE, KEX_REPLY = 20, 21, 30, 31
USERAUTH_REQUEST, USERAUTH_FAILURE, USERAUTH_SUCCESS, USERAUTH_BANNER = 50, 51, 52, 53
USERAUTH_60, USERAUTH_INFO_RESPONSE = 60, 61
PING: Final = 192


class Role(Enum):
    """Which side we are."""

    CLIENT = auto()
    SERVER = auto()


class Phase(Enum):
    """What a connection waits for.

        VERSION -> KEXINIT -> EXCHANGE -> NEWKEYS -> FRESH -> SERVICE -> AUTH -> OPEN
                                 ^           |
                                 |           v
                     KEXINIT received in SERVICE, AUTH, AUTH_INFO or OPEN, and back there

        AUTH <-> AUTH_INFO -> OPEN       a server's: a keyboard-interactive dialogue is open
        AUTH -> PRE_SUCCESS -> OPEN      a client's: EXT_INFO came, so USERAUTH_SUCCESS follows
        any phase -> CLOSED

    FRESH is the one packet behind the first NEWKEYS: EXT_INFO may come there, or right before
    USERAUTH_SUCCESS (RFC 8308 section 2.4).
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
    ATTEMPT_ANSWERED = auto()  # the server sent any other answer but USERAUTH_SUCCESS
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
    """What becomes of a message."""

    HANDLE = auto()
    SKIP = auto()  # silently
    UNKNOWN = auto()  # answer UNIMPLEMENTED
    REFUSE = auto()  # disconnect


_CONNECTION: Final = frozenset((80, 81, 82, *range(90, 101)))
_KNOWN: Final = _CONNECTION | {*range(1, 8), 20, 21, 30, 31, 50, 51, 52, 53, 60, 61, PING}

_ALLOWED: Final[dict[tuple[Role, Phase], frozenset[int]]] = {
    (Role.SERVER, Phase.KEXINIT): frozenset({KEXINIT}),
    (Role.CLIENT, Phase.KEXINIT): frozenset({KEXINIT}),
    (Role.SERVER, Phase.EXCHANGE): frozenset({KEX_INITIATE}),
    (Role.CLIENT, Phase.EXCHANGE): frozenset({KEX_REPLY}),
    (Role.SERVER, Phase.NEWKEYS): frozenset({NEWKEYS}),
    (Role.CLIENT, Phase.NEWKEYS): frozenset({NEWKEYS}),
    (Role.SERVER, Phase.FRESH): frozenset({EXT_INFO, SERVICE_REQUEST, KEXINIT}),
    (Role.CLIENT, Phase.FRESH): frozenset({EXT_INFO, SERVICE_ACCEPT, KEXINIT}),
    (Role.SERVER, Phase.SERVICE): frozenset({SERVICE_REQUEST, KEXINIT}),
    (Role.CLIENT, Phase.SERVICE): frozenset({SERVICE_ACCEPT, KEXINIT}),
    (Role.SERVER, Phase.AUTH): frozenset({SERVICE_REQUEST, USERAUTH_REQUEST, KEXINIT}),
    (Role.SERVER, Phase.AUTH_INFO): frozenset({USERAUTH_REQUEST, USERAUTH_INFO_RESPONSE, KEXINIT}),
    (Role.CLIENT, Phase.AUTH): frozenset(
        {USERAUTH_FAILURE, USERAUTH_SUCCESS, USERAUTH_BANNER, USERAUTH_60, EXT_INFO, KEXINIT}
    ),
    (Role.CLIENT, Phase.PRE_SUCCESS): frozenset({USERAUTH_SUCCESS}),
    (Role.SERVER, Phase.OPEN): _CONNECTION | {KEXINIT, PING},
    (Role.CLIENT, Phase.OPEN): _CONNECTION | {KEXINIT, PING},
}
_ANYTIME: Final = frozenset({IGNORE, UNIMPLEMENTED, DEBUG})


def verdict(role: Role, phase: Phase, number: int, strict: bool, first: bool) -> Verdict:
    """What to do with message ``number``; ``first`` until the first NEWKEYS was received.

    Strict key exchange (OpenSSH PROTOCOL 1.10) forbids even the harmless messages in the
    first exchange, which is what stops the Terrapin attack (CVE-2023-48795).
    """
    if number == DISCONNECT:
        return Verdict.HANDLE
    if number in _ALLOWED.get((role, phase), frozenset()):
        return Verdict.HANDLE
    if number in _ANYTIME:
        forbidden = phase is Phase.NEWKEYS or (strict and first)
        return Verdict.REFUSE if forbidden else Verdict.HANDLE
    if phase is not Phase.OPEN:
        return Verdict.REFUSE
    if role is Role.SERVER and number == USERAUTH_REQUEST:
        return Verdict.SKIP  # RFC 4252 section 5.3: once authenticated, for ever
    return Verdict.REFUSE if number in _KNOWN else Verdict.UNKNOWN


class Order:
    """Where one connection stands."""

    __slots__ = ("_interrupted", "is_first", "phase", "role", "strict")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.phase = Phase.VERSION
        self.strict = False  # once both KEXINIT asked for it
        self.is_first = True  # until the first NEWKEYS was received
        self._interrupted = Phase.FRESH

    @property
    def is_logged_in(self) -> bool:
        """Whether the user is authenticated, also during a later key exchange."""
        return self.phase is Phase.OPEN or self._interrupted is Phase.OPEN

    def happened(self, event: Event) -> None:
        """Move on; raises KeyError for what cannot happen in this phase."""
        before = self.phase
        self.phase = TABLE[before, event] or self._interrupted
        if event is Event.KEXINIT_RECEIVED and before is not Phase.KEXINIT:
            self._interrupted = before
        elif event is Event.NEWKEYS_RECEIVED:
            self.is_first = False

    def verdict(self, number: int) -> Verdict:
        """Return what to do with message ``number``, which arrived just now."""
        return verdict(self.role, self.phase, number, self.strict, self.is_first)
