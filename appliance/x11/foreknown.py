"""What programs begin with: asked before the first of them does, over a connection that stays.

The questions are those of Xlib, XCB, Xt, GTK 3 and Qt. They go through a relay as a program's
would, which remembers the answers. Each of the three rounds needs the answers of the one before it,
and costs a round trip; the first one goes behind the set-up request. The server's events say when
something is to be asked again.
"""

import struct
from collections.abc import Iterator
from itertools import product
from typing import Final

from ..wire.codec import Buffer
from ..wire.x11 import GENERIC_EVENT, MESSAGE, REPLY
from .knowledge import Knowledge
from .relay import Relay
from .round_trips import (
    CLOSE_FONT,
    EXTENSIONS,
    GET_ATOM_NAME,
    INTERN_ATOM,
    LIST_FONTS,
    LIST_FONTS_WITH_INFO,
    OPEN_FONT,
    QUERY_EXTENSION,
    QUERY_FONT,
)
from .screens import FirstAnswer, Screens

# X Window System Protocol
_PROPERTY_NOTIFY: Final = 28
_MAPPING_NOTIFY: Final = 34
_GET_PROPERTY: Final = 20
_ATOM, _CARDINAL, _INTEGER, _RESOURCE_MANAGER, _STRING, _WINDOW = 4, 6, 19, 23, 31, 33
_ALL: Final = 0xFFFFFFFF

# Our own choice
ATOMS_LIMIT: Final = 1500  # atoms whose names are asked for: keyboards and devices have the first

_ATOMS: Final = """
AT_SPI_BUS CLIPBOARD CLIPBOARD_MANAGER CLIP_TEMPORARY DTWM_IS_RUNNING EDID EDID_DATA
ENLIGHTENMENT_DESKTOP GDK_SELECTION GDK_VISUALS Hyper INCR MANAGER MULTIPLE Meta SAVE_TARGETS
SCREEN_RESOURCES SM_CLIENT_ID Super TARGETS TEXT TIMESTAMP UTF8_STRING COMPOUND_TEXT text/plain
text/plain;charset=utf-8 WM_CHANGE_STATE WM_CLIENT_LEADER WM_CLIENT_MACHINE WM_DELETE_WINDOW
WM_LOCALE_NAME WM_PROTOCOLS WM_SAVE_YOURSELF WM_STATE WM_TAKE_FOCUS WM_WINDOW_ROLE
WM_COLORMAP_WINDOWS XFree86_DDC_EDID1_RAWDATA XdndActionAsk XdndActionCopy XdndActionLink
XdndActionList XdndActionMove XdndActionPrivate XdndAware XdndDrop XdndEnter XdndFinished XdndLeave
XdndPosition XdndProxy XdndSelection XdndStatus XdndTypeList _COMPIZ_DECOR_DELETE_PIXMAP
_COMPIZ_DECOR_PENDING _COMPIZ_DECOR_REQUEST _COMPIZ_TOOLKIT_ACTION _DT_SAVE_MODE _GTK_APPLICATION_ID
_GTK_APPLICATION_OBJECT_PATH _GTK_APP_MENU_OBJECT_PATH _GTK_EDGE_CONSTRAINTS _GTK_FRAME_EXTENTS
_GTK_HIDE_TITLEBAR_WHEN_MAXIMIZED _GTK_LOAD_ICONTHEMES _GTK_MENUBAR_OBJECT_PATH _GTK_THEME_VARIANT
_GTK_UNIQUE_BUS_NAME _GTK_WINDOW_OBJECT_PATH _GTK_SHOW_WINDOW_MENU _KDE_NET_WM_FRAME_STRUT
_KDE_NET_WM_WINDOW_TYPE_OVERRIDE _MOTIF_WM_HINTS _NET_ACTIVE_WINDOW _NET_CURRENT_DESKTOP
_NET_FRAME_EXTENTS _NET_MOVERESIZE_WINDOW _NET_STARTUP_ID _NET_STARTUP_INFO _NET_STARTUP_INFO_BEGIN
_NET_SUPPORTED _NET_SUPPORTING_WM_CHECK _NET_SYSTEM_TRAY_OPCODE _NET_SYSTEM_TRAY_VISUAL
_NET_VIRTUAL_ROOTS _NET_WM_BYPASS_COMPOSITOR _NET_WM_CM_S0 _NET_WM_CONTEXT_HELP _NET_WM_DESKTOP
_NET_WM_FULLSCREEN_MONITORS _NET_WM_FULL_PLACEMENT _NET_WM_ICON _NET_WM_ICON_NAME _NET_WM_MOVERESIZE
_NET_WM_NAME _NET_WM_OPAQUE_REGION _NET_WM_PID _NET_WM_PING _NET_WM_STATE _NET_WM_STATE_ABOVE
_NET_WM_STATE_BELOW _NET_WM_STATE_DEMANDS_ATTENTION _NET_WM_STATE_FOCUSED _NET_WM_STATE_FULLSCREEN
_NET_WM_STATE_HIDDEN _NET_WM_STATE_MAXIMIZED_HORZ _NET_WM_STATE_MAXIMIZED_VERT _NET_WM_STATE_MODAL
_NET_WM_STATE_SHADED _NET_WM_STATE_SKIP_PAGER _NET_WM_STATE_SKIP_TASKBAR _NET_WM_STATE_STAYS_ON_TOP
_NET_WM_STATE_STICKY _NET_WM_SYNC_REQUEST _NET_WM_SYNC_REQUEST_COUNTER _NET_WM_USER_TIME
_NET_WM_USER_TIME_WINDOW _NET_WM_WINDOW_OPACITY _NET_WM_WINDOW_TYPE _NET_WM_WINDOW_TYPE_COMBO
_NET_WM_WINDOW_TYPE_DESKTOP _NET_WM_WINDOW_TYPE_DIALOG _NET_WM_WINDOW_TYPE_DND
_NET_WM_WINDOW_TYPE_DOCK _NET_WM_WINDOW_TYPE_DROPDOWN_MENU _NET_WM_WINDOW_TYPE_MENU
_NET_WM_WINDOW_TYPE_NORMAL _NET_WM_WINDOW_TYPE_NOTIFICATION _NET_WM_WINDOW_TYPE_POPUP_MENU
_NET_WM_WINDOW_TYPE_SPLASH _NET_WM_WINDOW_TYPE_TOOLBAR _NET_WM_WINDOW_TYPE_TOOLTIP
_NET_WM_WINDOW_TYPE_UTILITY _NET_WORKAREA _QT_CLIPBOARD_SENTINEL _QT_CLOSE_CONNECTION
_QT_INPUT_ENCODING _QT_SCROLL_DONE _QT_SELECTION _QT_SELECTION_SENTINEL _SGI_DESKS_MANAGER
_WIN_SUPPORTING_WM_CHECK _XEMBED _XEMBED_INFO _XKB_RULES_NAMES _XSETROOT_ID _XSETTINGS_S0
_XSETTINGS_SETTINGS
"""
_ATOMS_WITH_SPACES: Final = [
    *("Custom Data", "Custom Init", "Device Product ID", "Max Contacts", "Wacom Serial IDs"),
    "libinput Tapping Enabled",
    *(f"Button {name}" for name in ("Left", "Middle", "Right", "Wheel Up", "Wheel Down")),
    *(f"Button Horiz Wheel {name}" for name in ("Left", "Right")),
    *(f"Rel {name}" for name in ("X", "Y", "Horiz Scroll", "Horiz Wheel", "Vert Scroll")),
    "Rel Vert Wheel",
    *(f"Abs {name}" for name in ("X", "Y", "Pressure", "Distance", "Tilt X", "Tilt Y", "Wheel")),
    *(f"Abs MT {name}" for name in ("Orientation", "Position X", "Position Y", "Pressure")),
    *(f"Abs MT {name}" for name in ("Touch Major", "Touch Minor", "Tracking ID")),
]
# ... and those of no table, which are asked for by name only
_EXTENSIONS: Final = ("DRI2", "DRI3", "MIT-SHM")

_CHARACTER_SETS: Final = (
    *(f"ISO8859-{number}" for number in (1, 2, 3, 4, 5, 7, 9, 13, 14, 15)),
    *("GB2312.1980-0", "ISO10646-1", "JISX0201.1976-0", "JISX0208.1983-0", "KOI8-R"),
    "KSC5601.1987-0",
)
_PATTERNS: Final = ("-*-*-*-R-*-*-*-120-*-*-*-*-{}", "*-*-{}", "*-{}")
_FONTS: Final = (
    *("fixed", "cursor", "nil2", "-*-*-*-R-*-*-*-120-*-*-*-*-ISO8859-*"),
    "-Misc-Fixed-bold-R-*-*-13-120-75-75-C-*-ISO8859-1",
    "-Misc-Fixed-bold-R-*-*-13-120-75-75-C-60-ISO8859-1",
    "-Misc-Fixed-bold-R-*-*-13-120-75-75-C-120-ISO10646-1",
    "-Misc-Fixed-medium-R-*-*-13-120-75-75-C-120-ISO10646-1",
    "-misc-fixed-medium-r-semicondensed--13-120-75-75-c-60-iso10646-1",
)

# Of extensions: minor opcode, layout and values of what follows the head
_KEYBOARDS: Final = (0x100, 3)  # the core keyboard, by XKB's number and by XInput's
_Question = tuple[int, str, tuple[int | bytes, ...]]
_QUESTIONS: Final[dict[bytes, tuple[_Question, ...]]] = {
    b"BIG-REQUESTS": ((0, "", ()),),
    b"Generic Event Extension": ((0, "HH", (1, 0)),),
    b"SHAPE": ((0, "", ()),),
    b"XFIXES": ((0, "II", (6, 0)), (0, "II", (5, 0))),
    b"RENDER": ((0, "II", (0, 11)), (1, "", ())),
    b"SYNC": ((0, "BBH", (3, 1, 0)),),
    b"DAMAGE": ((0, "II", (1, 1)),),
    b"Composite": ((0, "II", (0, 4)),),
    b"XKEYBOARD": (
        (0, "HH", (1, 0)),
        (21, "HHIIIII", (0x100, 0, 1, 1, 0, 0, 0)),  # PerClientFlags: DetectableAutoRepeat
        *((6, "HH", (keyboard, 0)) for keyboard in _KEYBOARDS),
        *(
            (8, "HH20x", (keyboard, parts))
            for keyboard in _KEYBOARDS
            for parts in (0x07, 0x40, 0x47, 0xDF)
        ),
        (10, "HBBHH", (3, 0, 1, 0, 0)),
        (13, "HHI", (3, 0, _ALL)),
        *((17, "HHI", (0x100, 0, parts)) for parts in (0x800, 0x1800)),
        (17, "HHI", (3, 0, 0x1FF5)),
        (24, "HHBBBBHH", (0x100, 0, 0, 0, 0, 0, 0, 0)),
    ),
    b"XInputExtension": (
        (1, "HH16s", (15, 0, b"XInputExtension")),  # GetExtensionVersion
        (47, "HH", (2, 4)),
        *((48, "HH", (device, 0)) for device in (0, 1, 2, 3, 4)),
    ),
    b"GLX": (
        (7, "II", (1, 4)),
        *((19, "II", (0, name)) for name in (1, 2, 3, 0x20F6)),
        (14, "I", (0,)),
    ),
}

# Properties of the root window: name, type, how many words of them
_PROPERTIES: Final = (
    *(("RESOURCE_MANAGER", "STRING", length) for length in (100_000_000, 0x2000)),
    ("GDK_VISUALS", "INTEGER", 2),
    ("_NET_SUPPORTED", "ATOM", 1024),
    *(("_NET_SUPPORTED", "ATOM", length) for length in (0x7FFFFFFF, _ALL)),
    *(("_NET_SUPPORTING_WM_CHECK", "WINDOW", length) for length in (1024, _ALL)),
    *(("_NET_WORKAREA", "CARDINAL", length) for length in (1024, _ALL)),
    ("_NET_CURRENT_DESKTOP", "CARDINAL", _ALL),
    ("_WIN_SUPPORTING_WM_CHECK", "CARDINAL", 1024),
)
_PREDEFINED: Final = {
    "ATOM": _ATOM,
    "CARDINAL": _CARDINAL,
    "INTEGER": _INTEGER,
    "RESOURCE_MANAGER": _RESOURCE_MANAGER,
    "STRING": _STRING,
    "WINDOW": _WINDOW,
}
_DEVICE_PROPERTIES: Final = (("libinput Tapping Enabled", 1), ("Device Product ID", 2))
_OUTPUT_PROPERTIES: Final = ("EDID", "EDID_DATA", "XFree86_DDC_EDID1_RAWDATA")


class Foreknown:
    """The connection that asks."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._relay = Relay(knowledge)
        self._first = FirstAnswer("<")
        self._buffer = b""
        self._rounds: Iterator[Iterator[bytes]] = iter(
            (self._first_round(), self._second_round(), self._third_round())
        )
        self._is_let_in = False
        self._sequence = 0
        self._round_ends = 0  # the request whose answer ends the round
        self._asked: dict[int, bytes] = {}  # requests whose answers later rounds need
        self._root = self._base = 0
        self._keys = 8, 0  # the first keycode, and how many there are
        self._opcodes: dict[bytes, int] = {}  # majors, and the first event of RANDR
        self._atoms: dict[str, int] = dict(_PREDEFINED)
        self._atom_names: dict[int, str] = {}  # questions by their sequence numbers
        self._outputs: list[tuple[int, int, int]] = []  # minor, resource, timestamp
        self._devices: list[int] = []
        self._fonts: list[bytes] = []
        self._first_events: dict[bytes, int] = {}

    @property
    def is_ready(self) -> bool:
        """Whether all has been asked and answered."""
        return self._is_let_in and not self._round_ends

    def begin(self) -> list[Buffer]:
        """Returns what the server gets behind the set-up request."""
        return self._next_round()

    def from_server(self, data: bytes) -> list[Buffer]:
        """Returns what the server gets next; raises MalformedMessage."""
        told = self._relay.from_server(data)
        if not self._is_let_in:
            rest = self._first.receive(told)
            if rest is None or self._first.screens is None:
                return []
            self._read_screens(self._first.screens)
            self._is_let_in = True
            told = rest
        self._buffer += told
        buffer, at = self._buffer, 0
        is_over, again = False, False
        while len(buffer) - at >= MESSAGE:
            total = MESSAGE
            if buffer[at] == REPLY or buffer[at] & 0x7F == GENERIC_EVENT:
                total += 4 * int.from_bytes(buffer[at + 4 : at + 8], "little")
            if len(buffer) - at < total:
                break
            message = buffer[at : at + total]
            if message[0] > REPLY:
                again |= self._on_event(message)
            else:
                sequence = int.from_bytes(message[2:4], "little")
                self._on_answer(sequence, message)
                is_over |= sequence == self._round_ends & 0xFFFF and self._round_ends > 0
            at += total
        self._buffer = buffer[at:]
        if is_over:
            return self._next_round()
        if again and self.is_ready:
            self._rounds = iter((self._second_round(), self._third_round()))
            return self._next_round()
        return []

    def _next_round(self) -> list[Buffer]:
        self._round_ends = 0
        pieces: list[Buffer] = []
        for questions in self._rounds:
            for question in questions:
                sent, _ = self._relay.from_program(question)
                pieces += sent
            sent, _ = self._relay.from_program(self._request(43))  # GetInputFocus
            pieces += sent
            self._round_ends = self._sequence
            break
        return pieces

    def _request(
        self, opcode: int, minor: int = 0, layout: str = "", *values: int | bytes
    ) -> bytes:
        body = struct.pack("<" + layout, *values)
        body += bytes(-len(body) % 4)
        self._sequence += 1
        return struct.pack("<BBH", opcode, minor, 1 + len(body) // 4) + body

    def _text_request(self, opcode: int, text: bytes, layout: str, *values: int) -> bytes:
        return self._request(opcode, 0, f"{layout}{len(text)}s", *values, text)

    # -- questions ---------------------------------------------------------------------

    def _first_round(self) -> Iterator[bytes]:
        """What needs no answer before it."""
        for name in (*EXTENSIONS, *(each.encode() for each in _EXTENSIONS)):
            question = self._text_request(QUERY_EXTENSION, name, "HH", len(name), 0)
            self._asked[self._sequence] = name
            yield question
        yield self._request(99)  # ListExtensions
        for atom in (*_ATOMS.split(), *_ATOMS_WITH_SPACES, *_PREDEFINED):
            question = self._text_request(INTERN_ATOM, atom.encode(), "HH", len(atom), 0)
            self._atom_names[self._sequence] = atom
            yield question
        for pattern in _PATTERNS:
            for characters in _CHARACTER_SETS:
                text = pattern.format(characters).encode()
                question = self._text_request(LIST_FONTS, text, "HH", 1, len(text))
                self._asked[self._sequence] = b"font"
                yield question

    def _second_round(self) -> Iterator[bytes]:
        """What needs the root window, resources, opcodes of extensions, and atoms."""
        yield self._request(2, 0, "III", self._root, 0x800, 0x400000)  # its PropertyNotify
        for font in _FONTS:
            yield self._text_request(OPEN_FONT, font.encode(), "IHH", self._base, len(font), 0)
            yield self._request(QUERY_FONT, 0, "I", self._base)
            yield self._request(CLOSE_FONT, 0, "I", self._base)
        for opcode in (52, 103, 106, 117, 119):  # font path, and how keys and pointer are set
            yield self._request(opcode)
        yield self._request(101, 0, "BBxx", *self._keys)  # GetKeyboardMapping
        for name, major in self._opcodes.items():
            for minor, layout, values in _QUESTIONS.get(name, ()):
                question = self._request(major, minor, layout, *values)
                if name == b"XInputExtension" and minor == 48 and values[0] == 0:
                    self._asked[self._sequence] = b"devices"
                yield question
        if (major := self._opcodes.get(b"RANDR", 0)) != 0:
            yield self._request(major, 0, "II", 1, 6)  # QueryVersion
            yield self._request(major, 4, "IHH", self._root, 7, 0)  # its events
            question = self._request(major, 25, "I", self._root)  # GetScreenResourcesCurrent
            self._asked[self._sequence] = b"resources"
            yield question
            yield self._request(major, 31, "I", self._root)  # GetOutputPrimary
            yield self._request(major, 42, "IB3x", self._root, 1)  # GetMonitors
        for wanted, kind, length in _PROPERTIES:
            if (atom := self._atoms.get(wanted)) is not None:
                yield self._property(atom, self._atoms[kind], length)
        last = min(max(self._atoms.values(), default=0), ATOMS_LIMIT)
        for atom in range(1, last + 1):
            yield self._request(GET_ATOM_NAME, 0, "I", atom)

    def _property(self, atom: int, kind: int, length: int) -> bytes:
        return self._request(_GET_PROPERTY, 0, "IIIII", self._root, atom, kind, 0, length)

    def _third_round(self) -> Iterator[bytes]:
        """What needs monitors, devices and names of fonts."""
        randr, xinput = (self._opcodes.get(each, 0) for each in (b"RANDR", b"XInputExtension"))
        for minor, resource, timestamp in self._outputs:
            yield self._request(randr, minor, "II", resource, timestamp)
            if minor != 9:
                continue
            for name, length in product(_OUTPUT_PROPERTIES, (100, 128)):
                wanted = resource, self._atoms.get(name, 0), 0, 0, length, 0, 0
                yield self._request(randr, 15, "IIIIIBBxx", *wanted)
        for device in self._devices:
            for name, length in _DEVICE_PROPERTIES:
                atom = self._atoms.get(name, 0)
                yield self._request(xinput, 59, "HBxIIII", device, 0, atom, _INTEGER, 0, length)
        for font in dict.fromkeys(self._fonts):
            yield self._text_request(LIST_FONTS_WITH_INFO, font, "HH", 1, len(font))
        if (major := self._opcodes.get(b"GLX", 0)) != 0:
            yield self._request(major, 21, "I", 0)  # GetFBConfigs, which is large

    # -- answers -----------------------------------------------------------------------

    def _read_screens(self, screens: Screens) -> None:
        self._base = screens.base
        lowest, highest = screens.keycodes
        self._keys = lowest, highest - lowest + 1
        self._root, *_ = screens.roots or (0,)

    def _on_answer(self, sequence: int, answer: bytes) -> None:
        atom = self._atom_names.pop(sequence, None)
        asked = self._asked.pop(sequence, b"")
        if answer[0] != REPLY:
            return
        if atom is not None:
            self._atoms[atom] = int.from_bytes(answer[8:12], "little")
        elif asked == b"font":
            if answer[8:10] != bytes(2):
                self._fonts.append(answer[33 : 33 + answer[32]])
        elif asked == b"resources":
            self._read_resources(answer)
        elif asked == b"devices":
            self._read_devices(answer)
        elif asked and answer[8]:
            self._opcodes[asked] = answer[9]
            self._first_events[asked] = answer[10]

    def _read_resources(self, answer: bytes) -> None:
        timestamp = int.from_bytes(answer[12:16], "little")
        crtcs, outputs = struct.unpack_from("<HH", answer, 16)
        count = min(crtcs + outputs, (len(answer) - 32) // 4)
        resources = struct.unpack_from(f"<{count}I", answer, 32)
        minors = [20] * crtcs + [9] * outputs  # GetCrtcInfo, GetOutputInfo
        self._outputs = [(m, r, timestamp) for m, r in zip(minors, resources, strict=False)]

    def _read_devices(self, answer: bytes) -> None:
        self._devices, at = [], 32
        for _ in range(int.from_bytes(answer[8:10], "little")):
            if at + 12 > len(answer):
                return
            device, _, _, classes, name = struct.unpack_from("<HHHHH", answer, at)
            self._devices.append(device)
            at += 12 + (name + 3 & ~3)
            for _ in range(classes):
                at += max(4, 4 * int.from_bytes(answer[at + 2 : at + 4], "little"))

    def _on_event(self, event: bytes) -> bool:
        """Takes note of a change; returns whether it is to be asked about."""
        kind = event[0] & 0x7F
        randr = self._first_events.get(b"RANDR", 0)
        if kind == _MAPPING_NOTIFY:
            self._knowledge.doubt(0)
            self._knowledge.doubt(self._opcodes.get(b"XKEYBOARD", -1))
        elif kind == _PROPERTY_NOTIFY:
            self._knowledge.doubt(0)
        elif randr and kind in (randr, randr + 1):
            self._knowledge.doubt(self._opcodes.get(b"RANDR", -1))
        else:
            return False
        return True
