"""What the round-trip relay knows of X11's requests: the table, one row a request that is answered.

A request without a row gets no answer, if it is one of the core protocol or of an extension of the
table, and of a version that the table knows. Of all others nothing is known. Numbers and layouts
are those of the X Window System Protocol and of the headers of each extension (xorgproto).
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple


class Kind(Enum):
    """What may answer a request, besides the server."""

    SERVER = auto()  # nothing else
    STATIC = auto()  # an earlier answer: it holds as long as the server runs
    STATED = auto()  # an earlier answer; but the server has to see the request as well
    EXPECTED = auto()  # an earlier answer, which the server's own is compared with


# What tells a request from others of its row: bytes of it, without those that have no meaning.
Key = Callable[[bytes], bytes]


class Row(NamedTuple):
    """A request that is answered."""

    kind: Kind
    key: Key = bytes
    of_root: int = 0  # the offset of a window that must be a root window, for all but SERVER
    is_series: bool = False  # the answers are several
    unless: int = 0  # the offset of a byte that deletes what is asked for


def _nothing(request: bytes) -> bytes:
    return b""


def _part(*parts: tuple[int, int]) -> Key:
    """Only these bytes have a meaning."""

    def key(request: bytes) -> bytes:
        return b"".join(request[start:end] for start, end in parts)

    return key


def _text(length_at: int, text_at: int, *parts: tuple[int, int]) -> Key:
    """A text with its length, and these bytes."""

    def key(request: bytes) -> bytes:
        length = int.from_bytes(request[length_at : length_at + 2], "little")
        others = b"".join(request[start:end] for start, end in parts)
        return others + request[text_at : text_at + length]

    return key


def _fixed(*parts: tuple[int, int]) -> Row:
    return Row(Kind.STATIC, _part(*parts))


_BODY: Final = _part((4, 64))
_SERVER: Final = Row(Kind.SERVER)
_STATED: Final = Row(Kind.STATED, _BODY)
_EXPECTED: Final = Row(Kind.EXPECTED, _BODY)

INTERN_ATOM: Final = 16
GET_ATOM_NAME: Final = 17
OPEN_FONT: Final = 45
CLOSE_FONT: Final = 46
QUERY_FONT: Final = 47
LIST_FONTS: Final = 49
LIST_FONTS_WITH_INFO: Final = 50
ALLOC_COLOR: Final = 84
QUERY_EXTENSION: Final = 98
GET_INPUT_FOCUS: Final = 43

CORE: Final[dict[int, Row]] = {
    3: _SERVER,  # GetWindowAttributes
    14: _SERVER,  # GetGeometry
    15: _SERVER,  # QueryTree
    INTERN_ATOM: Row(Kind.STATED, _text(4, 8)),  # a filter at the display wants to know
    GET_ATOM_NAME: _fixed((4, 8)),
    20: Row(Kind.EXPECTED, _part((4, 24)), of_root=4, unless=1),  # GetProperty
    21: _SERVER,  # ListProperties
    23: _SERVER,  # GetSelectionOwner
    26: _SERVER,  # GrabPointer
    31: _SERVER,  # GrabKeyboard
    38: _SERVER,  # QueryPointer
    39: _SERVER,  # GetMotionEvents
    40: _SERVER,  # TranslateCoordinates
    GET_INPUT_FOCUS: _SERVER,  # by which programs wait for the server
    44: _SERVER,  # QueryKeymap
    QUERY_FONT: Row(Kind.STATIC, _nothing),  # the relay's key is the font's name
    48: _SERVER,  # QueryTextExtents
    LIST_FONTS: Row(Kind.STATIC, _text(6, 8, (4, 6))),
    LIST_FONTS_WITH_INFO: Row(Kind.STATIC, _text(6, 8, (4, 6)), is_series=True),
    52: Row(Kind.EXPECTED, _nothing),  # GetFontPath
    73: _SERVER,  # GetImage
    83: _SERVER,  # ListInstalledColormaps
    ALLOC_COLOR: _SERVER,  # the relay computes it for a TrueColor visual
    85: _SERVER,  # AllocNamedColor
    86: _SERVER,  # AllocColorCells
    87: _SERVER,  # AllocColorPlanes
    91: _SERVER,  # QueryColors
    92: Row(Kind.STATIC, _text(8, 12, (4, 8))),  # LookupColor
    97: Row(Kind.STATIC, _part((1, 2), (4, 12)), of_root=4),  # QueryBestSize
    QUERY_EXTENSION: Row(Kind.STATED, _text(4, 8)),  # likewise
    99: Row(Kind.STATIC, _nothing),  # ListExtensions
    101: Row(Kind.EXPECTED, _part((4, 6))),  # GetKeyboardMapping
    103: Row(Kind.EXPECTED, _nothing),  # GetKeyboardControl
    106: Row(Kind.EXPECTED, _nothing),  # GetPointerControl
    108: _SERVER,  # GetScreenSaver
    110: _SERVER,  # ListHosts
    116: _SERVER,  # SetPointerMapping
    117: Row(Kind.EXPECTED, _nothing),  # GetPointerMapping
    118: _SERVER,  # SetModifierMapping
    119: Row(Kind.EXPECTED, _nothing),  # GetModifierMapping
}
# Requests without an answer that may name a window of another program, and where: what the server
# thinks of it must be known before anything behind it is answered.
WINDOWS: Final[dict[int, int]] = {
    **dict.fromkeys((2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, 19, 25, 42, 113, 114), 4),
    **dict.fromkeys((22, 24), 4),
    **dict.fromkeys((28, 29, 33, 34), 4),
}


class Extension(NamedTuple):
    """The last request that is known of it (a minor opcode), and those that are answered."""

    last: int
    rows: dict[int, Row]


EXTENSIONS: Final[dict[bytes, Extension]] = {
    b"BIG-REQUESTS": Extension(0, {0: _STATED}),
    b"XC-MISC": Extension(2, {0: _STATED, 1: _SERVER, 2: _SERVER}),
    b"Generic Event Extension": Extension(0, {0: _STATED}),
    b"SHAPE": Extension(8, {0: _STATED, 5: _SERVER, 7: _SERVER, 8: _SERVER}),
    b"XFIXES": Extension(
        34, {0: _STATED, 4: _SERVER, 19: _SERVER, 24: _SERVER, 25: _SERVER, 34: _SERVER}
    ),
    b"RENDER": Extension(36, {0: _STATED, 1: Row(Kind.STATIC, _BODY), 2: _SERVER, 29: _SERVER}),
    b"XKEYBOARD": Extension(
        25,
        {
            0: _STATED,
            4: _SERVER,  # GetState
            6: Row(Kind.EXPECTED, _part((4, 6))),  # GetControls
            8: Row(Kind.EXPECTED, _part((4, 26))),  # GetMap
            10: _EXPECTED,  # GetCompatMap
            12: _SERVER,  # GetIndicatorState
            13: Row(Kind.EXPECTED, _part((4, 6), (8, 12))),  # GetIndicatorMap
            15: _SERVER,  # GetNamedIndicator
            17: Row(Kind.EXPECTED, _part((4, 6), (8, 12))),  # GetNames
            19: _SERVER,  # GetGeometry
            21: Row(Kind.STATED, _part((4, 6), (8, 28))),  # PerClientFlags
            22: _SERVER,  # ListComponents
            23: _SERVER,  # GetKbdByName
            24: Row(Kind.EXPECTED, _part((4, 11), (12, 16))),  # GetDeviceInfo
        },
    ),
    b"RANDR": Extension(
        46,
        {
            0: _STATED,
            2: _SERVER,  # SetScreenConfig
            5: _EXPECTED,  # GetScreenInfo
            6: _EXPECTED,  # GetScreenSizeRange
            8: _SERVER,  # GetScreenResources: the server looks for new monitors
            9: _EXPECTED,  # GetOutputInfo
            10: _EXPECTED,  # ListOutputProperties
            11: _EXPECTED,  # QueryOutputProperty
            15: Row(Kind.EXPECTED, _part((4, 26)), unless=24),  # GetOutputProperty
            16: _SERVER,  # CreateMode
            20: _EXPECTED,  # GetCrtcInfo
            21: _SERVER,  # SetCrtcConfig
            22: _EXPECTED,  # GetCrtcGammaSize
            23: _EXPECTED,  # GetCrtcGamma
            25: _EXPECTED,  # GetScreenResourcesCurrent
            27: _EXPECTED,  # GetCrtcTransform
            28: _EXPECTED,  # GetPanning
            29: _SERVER,  # SetPanning
            31: _EXPECTED,  # GetOutputPrimary
            32: _EXPECTED,  # GetProviders
            33: _EXPECTED,  # GetProviderInfo
            36: _EXPECTED,  # ListProviderProperties
            37: _EXPECTED,  # QueryProviderProperty
            41: _SERVER,  # GetProviderProperty
            42: Row(Kind.EXPECTED, _part((4, 9))),  # GetMonitors
            45: _SERVER,  # CreateLease
        },
    ),
    b"XINERAMA": Extension(
        5,
        {
            0: _STATED,
            1: _EXPECTED,
            2: _EXPECTED,
            3: _EXPECTED,
            4: _EXPECTED,
            5: _EXPECTED,
        },
    ),
    b"XInputExtension": Extension(
        61,
        {
            1: Row(Kind.STATED, _text(4, 8)),  # GetExtensionVersion
            2: Row(Kind.EXPECTED, _nothing),  # ListInputDevices
            **dict.fromkeys((3, 5, 7, 9, 10, 11, 12, 13, 20, 22, 24, 26, 27, 28, 29, 30), _SERVER),
            **dict.fromkeys((33, 34, 35, 36, 39, 40, 45), _SERVER),
            47: _STATED,  # XIQueryVersion
            48: Row(Kind.EXPECTED, _part((4, 6))),  # XIQueryDevice
            **dict.fromkeys((50, 51, 54), _SERVER),
            56: Row(Kind.EXPECTED, _part((4, 6))),  # XIListProperties
            59: Row(Kind.EXPECTED, _part((4, 7), (8, 24)), unless=6),  # XIGetProperty
            60: _SERVER,  # XIGetSelectedEvents
        },
    ),
    b"SYNC": Extension(
        19,
        {
            0: Row(Kind.STATED, _part((4, 6))),
            1: Row(Kind.STATIC, _nothing),  # ListSystemCounters
            5: _SERVER,
            10: _SERVER,
            13: _SERVER,
            18: _SERVER,
        },
    ),
    b"DAMAGE": Extension(4, {0: _STATED}),
    b"Composite": Extension(8, {0: _STATED, 7: _SERVER}),
    b"Present": Extension(4, {0: _STATED, 4: _SERVER}),
    b"MIT-SCREEN-SAVER": Extension(5, {0: _STATED, 1: _SERVER}),
    b"DPMS": Extension(8, {0: _STATED, 1: _EXPECTED, 2: _EXPECTED, 7: _SERVER}),
    b"DOUBLE-BUFFER": Extension(7, {0: _STATED, 6: _SERVER, 7: _SERVER}),
    b"MIT-SHM": Extension(7, {0: _STATED, 4: _SERVER, 7: _SERVER}),
    b"XFree86-Bigfont": Extension(1, {0: _STATED, 1: _SERVER}),
    b"GLX": Extension(
        35,
        {
            7: _STATED,  # QueryVersion
            14: Row(Kind.STATIC, _BODY),  # GetVisualConfigs
            18: Row(Kind.STATIC, _BODY),  # QueryExtensionsString
            19: Row(Kind.STATIC, _BODY),  # QueryServerString
            21: Row(Kind.STATIC, _BODY),  # GetFBConfigs
            **dict.fromkeys((5, 6, 17, 25, 26, 29), _SERVER),
        },
    ),
}
# As WINDOWS, by extension and minor opcode
EXTENSION_WINDOWS: Final[dict[bytes, dict[int, int]]] = {
    b"XInputExtension": {46: 4},  # XISelectEvents
    b"SHAPE": {1: 8, 2: 8, 3: 8, 4: 8, 6: 4},
    b"XFIXES": {2: 4, 3: 4},
    b"RANDR": {4: 4},
    b"DAMAGE": {1: 8},
    b"Composite": {1: 4, 2: 4, 3: 4, 4: 4, 6: 4},
    b"Present": {1: 4, 2: 4, 3: 8},
    b"MIT-SHM": {1: 8},  # Attach: a segment is never the program's
}
