"""Which message may come when: the one place that decides it.

    VERSION -> KEXINIT -> EXCHANGE -> NEWKEYS -> FRESH -> SERVICE -> AUTH -> OPEN
                            ^                                          |      |
                            +---- a key exchange may begin again ------+------+

FRESH is the one packet after the first NEWKEYS, the only place of EXT_INFO but the one
right before USERAUTH_SUCCESS, which is PRE_SUCCESS. AUTH_INFO is AUTH while a
keyboard-interactive dialogue is open.
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
    """What we wait for."""

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
