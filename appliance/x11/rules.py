"""What a program behind the filter may ask of the X server: the table, one row a request.

It is an allow-list: an extension without rows is hidden and its requests are refused, and so is a
request without a row. A row may name fields that must hold resources of the program itself (their
offsets in the request), so that it reads, writes, grabs and kills nothing of other programs.

The numbers and layouts are those of the X Window System Protocol and of the protocol headers of
each extension (xorgproto).
"""

from enum import Enum, auto
from typing import Final, NamedTuple

# X.h: errors
BAD_REQUEST: Final = 1
BAD_MATCH: Final = 8
BAD_ACCESS: Final = 10


class Act(Enum):
    """What happens to a request that breaks its row."""

    ERROR = auto()  # the program gets BadAccess
    MATCH = auto()  # the program gets BadMatch, which it must expect of this request
    DROP = auto()  # nothing happens, and nobody is told: programs do it and do not need it


class Row(NamedTuple):
    """A request.

    ``own``: offsets of fields that must be resources of the program. ``or_none``: those of them
    that may also be 0. ``or_root``: those that may also be a root window.
    """

    name: str
    opcode: int  # major for the core protocol, minor for an extension
    allowed: bool = True
    own: tuple[int, ...] = ()
    or_none: tuple[int, ...] = ()
    or_root: tuple[int, ...] = ()
    otherwise: Act = Act.ERROR
    special: str = ""  # a judge of filter.py that looks at the request as well


def _own(name: str, opcode: int, *own: int, otherwise: Act = Act.ERROR) -> Row:
    return Row(name, opcode, own=own, otherwise=otherwise)


def _never(name: str, opcode: int, otherwise: Act = Act.ERROR) -> Row:
    return Row(name, opcode, allowed=False, otherwise=otherwise)


def _plain(*rows: tuple[str, int]) -> tuple[Row, ...]:
    return tuple(Row(name, opcode) for name, opcode in rows)


CORE: Final = (
    # windows
    Row("CreateWindow", 1, own=(4, 8), or_root=(8,), special="create_window"),
    Row("ChangeWindowAttributes", 2, special="change_window_attributes"),
    Row("GetWindowAttributes", 3),
    Row("DestroyWindow", 4, own=(4,), special="destroy_window"),
    _own("DestroySubwindows", 5, 4),
    _never("ChangeSaveSet", 6),
    Row("ReparentWindow", 7, own=(4, 8), or_root=(8,), special="reparent_window"),
    _own("MapWindow", 8, 4),
    _own("MapSubwindows", 9, 4),
    _own("UnmapWindow", 10, 4),
    _own("UnmapSubwindows", 11, 4),
    _own("ConfigureWindow", 12, 4),
    _own("CirculateWindow", 13, 4),
    *_plain(("GetGeometry", 14), ("QueryTree", 15)),
    # properties and selections
    Row("InternAtom", 16, special="intern_atom"),
    Row("GetAtomName", 17),
    Row("ChangeProperty", 18, special="change_property"),
    _own("DeleteProperty", 19, 4, otherwise=Act.DROP),
    Row("GetProperty", 20, special="get_property"),
    Row("ListProperties", 21),
    Row("SetSelectionOwner", 22, own=(4,), or_none=(4,), special="set_selection_owner"),
    Row("GetSelectionOwner", 23),
    Row("ConvertSelection", 24, own=(4,), special="convert_selection"),
    Row("SendEvent", 25, special="send_event"),
    # input
    _own("GrabPointer", 26, 4),
    Row("UngrabPointer", 27),
    _own("GrabButton", 28, 4),
    _own("UngrabButton", 29, 4),
    Row("ChangeActivePointerGrab", 30),
    _own("GrabKeyboard", 31, 4),
    Row("UngrabKeyboard", 32),
    _own("GrabKey", 33, 4),
    _own("UngrabKey", 34, 4),
    Row("AllowEvents", 35),
    _never("GrabServer", 36, Act.DROP),  # stops all programs
    _never("UngrabServer", 37, Act.DROP),
    Row("QueryPointer", 38),
    _own("GetMotionEvents", 39, 4),
    Row("TranslateCoordinates", 40),
    Row("WarpPointer", 41, own=(4, 8), or_none=(4,)),
    _own("SetInputFocus", 42, 4, otherwise=Act.DROP),
    Row("GetInputFocus", 43),
    Row("QueryKeymap", 44, special="blank_reply"),  # the keys that are down
    # fonts
    Row("OpenFont", 45),
    _own("CloseFont", 46, 4),
    *_plain(("QueryFont", 47), ("QueryTextExtents", 48)),
    *_plain(("ListFonts", 49), ("ListFontsWithInfo", 50)),
    _never("SetFontPath", 51),
    Row("GetFontPath", 52),
    # drawing: what is drawn to, and what a picture is taken from
    Row("CreatePixmap", 53, own=(4,), special="create_pixmap"),
    Row("FreePixmap", 54, own=(4,), special="free_pixmap"),
    Row("CreateGC", 55, own=(4,), special="create_gc"),
    Row("ChangeGC", 56, own=(4,), special="change_gc"),
    _own("CopyGC", 57, 4, 8),
    _own("SetDashes", 58, 4),
    _own("SetClipRectangles", 59, 4),
    _own("FreeGC", 60, 4),
    _own("ClearArea", 61, 4),
    _own("CopyArea", 62, 4, 8, 12),
    _own("CopyPlane", 63, 4, 8, 12),
    _own("PolyPoint", 64, 4, 8),
    _own("PolyLine", 65, 4, 8),
    _own("PolySegment", 66, 4, 8),
    _own("PolyRectangle", 67, 4, 8),
    _own("PolyArc", 68, 4, 8),
    _own("FillPoly", 69, 4, 8),
    _own("PolyFillRectangle", 70, 4, 8),
    _own("PolyFillArc", 71, 4, 8),
    _own("PutImage", 72, 4, 8),
    _own("GetImage", 73, 4, otherwise=Act.MATCH),
    _own("PolyText8", 74, 4, 8),
    _own("PolyText16", 75, 4, 8),
    _own("ImageText8", 76, 4, 8),
    _own("ImageText16", 77, 4, 8),
    # colours and cursors
    _own("CreateColormap", 78, 4),
    _own("FreeColormap", 79, 4),
    *_plain(("CopyColormapAndFree", 80), ("InstallColormap", 81), ("UninstallColormap", 82)),
    *_plain(("ListInstalledColormaps", 83), ("AllocColor", 84), ("AllocNamedColor", 85)),
    *_plain(("AllocColorCells", 86), ("AllocColorPlanes", 87), ("FreeColors", 88)),
    *_plain(("StoreColors", 89), ("StoreNamedColor", 90), ("QueryColors", 91), ("LookupColor", 92)),
    Row("CreateCursor", 93, own=(4, 8, 12), or_none=(12,)),
    _own("CreateGlyphCursor", 94, 4),
    _own("FreeCursor", 95, 4),
    _own("RecolorCursor", 96, 4),
    Row("QueryBestSize", 97),
    # the server
    Row("QueryExtension", 98, special="query_extension"),
    Row("ListExtensions", 99, special="list_extensions"),
    _never("ChangeKeyboardMapping", 100),
    Row("GetKeyboardMapping", 101),
    _never("ChangeKeyboardControl", 102, Act.DROP),
    *_plain(("GetKeyboardControl", 103), ("Bell", 104)),
    _never("ChangePointerControl", 105, Act.DROP),
    Row("GetPointerControl", 106),
    _never("SetScreenSaver", 107, Act.DROP),
    Row("GetScreenSaver", 108),
    _never("ChangeHosts", 109),
    _never("ListHosts", 110),
    _never("SetAccessControl", 111),
    _never("SetCloseDownMode", 112),
    _own("KillClient", 113, 4),
    _own("RotateProperties", 114, 4),
    _never("ForceScreenSaver", 115, Act.DROP),
    _never("SetPointerMapping", 116),
    Row("GetPointerMapping", 117),
    _never("SetModifierMapping", 118),
    Row("GetModifierMapping", 119),
    Row("NoOperation", 127),
)

_BIG_REQUESTS: Final = (Row("Enable", 0, special="big_requests"),)
_XC_MISC: Final = _plain(("GetVersion", 0), ("GetXIDRange", 1), ("GetXIDList", 2))
_GENERIC_EVENT: Final = _plain(("QueryVersion", 0))
_SHAPE: Final = (
    Row("QueryVersion", 0),
    _own("Rectangles", 1, 8),
    Row("Mask", 2, own=(8, 16), or_none=(16,)),
    _own("Combine", 3, 8, 16),
    _own("Offset", 4, 8),
    Row("QueryExtents", 5),
    _own("SelectInput", 6, 4),
    *_plain(("InputSelected", 7), ("GetRectangles", 8)),
)
_XFIXES: Final = (
    Row("QueryVersion", 0),
    _own("SelectSelectionInput", 2, 4),
    Row("SelectCursorInput", 3, own=(4,), or_root=(4,)),
    _own("CreateRegion", 5, 4),
    _own("CreateRegionFromBitmap", 6, 4, 8),
    _own("CreateRegionFromWindow", 7, 4, 8),
    _own("CreateRegionFromGC", 8, 4, 8),
    _own("CreateRegionFromPicture", 9, 4, 8),
    _own("DestroyRegion", 10, 4),
    _own("SetRegion", 11, 4),
    _own("CopyRegion", 12, 4, 8),
    _own("UnionRegion", 13, 4, 8, 12),
    _own("IntersectRegion", 14, 4, 8, 12),
    _own("SubtractRegion", 15, 4, 8, 12),
    _own("InvertRegion", 16, 4, 16),
    _own("TranslateRegion", 17, 4),
    _own("RegionExtents", 18, 4, 8),
    _own("FetchRegion", 19, 4),
    Row("SetGCClipRegion", 20, own=(4, 8), or_none=(8,)),
    Row("SetWindowShapeRegion", 21, own=(4, 16), or_none=(16,)),
    Row("SetPictureClipRegion", 22, own=(4, 8), or_none=(8,)),
    _own("SetCursorName", 23, 4),
    _own("GetCursorName", 24, 4),
    _own("ExpandRegion", 28, 4, 8),
    _own("HideCursor", 29, 4),
    _own("ShowCursor", 30, 4),
)
_RENDER: Final = (
    *_plain(("QueryVersion", 0), ("QueryPictFormats", 1), ("QueryPictIndexValues", 2)),
    Row("CreatePicture", 4, own=(4, 8), special="create_picture"),
    Row("ChangePicture", 5, own=(4,), special="change_picture"),
    _own("SetPictureClipRectangles", 6, 4),
    Row("FreePicture", 7, own=(4,), special="free_picture"),
    Row("Composite", 8, own=(8, 12, 16), or_none=(12,), special="composite"),
    Row("Trapezoids", 10, own=(8, 12), special="source_picture"),
    Row("Triangles", 11, own=(8, 12), special="source_picture"),
    Row("TriStrip", 12, own=(8, 12), special="source_picture"),
    Row("TriFan", 13, own=(8, 12), special="source_picture"),
    _own("CreateGlyphSet", 17, 4),
    _own("ReferenceGlyphSet", 18, 4, 8),
    _own("FreeGlyphSet", 19, 4),
    _own("AddGlyphs", 20, 4),
    _own("FreeGlyphs", 22, 4),
    Row("CompositeGlyphs8", 23, own=(8, 12, 20), special="composite_glyphs"),
    Row("CompositeGlyphs16", 24, own=(8, 12, 20), special="composite_glyphs"),
    Row("CompositeGlyphs32", 25, own=(8, 12, 20), special="composite_glyphs"),
    _own("FillRectangles", 26, 8),
    Row("CreateCursor", 27, own=(4, 8), special="source_picture"),
    _own("SetPictureTransform", 28, 4),
    Row("QueryFilters", 29),
    _own("SetPictureFilter", 30, 4),
    _own("CreateAnimCursor", 31, 4),
    _own("AddTraps", 32, 4),
    _own("CreateSolidFill", 33, 4),
    _own("CreateLinearGradient", 34, 4),
    _own("CreateRadialGradient", 35, 4),
    _own("CreateConicalGradient", 36, 4),
)
_XKEYBOARD: Final = (
    Row("UseExtension", 0),
    Row("SelectEvents", 1, special="xkb_select_events"),
    *_plain(("Bell", 3), ("GetState", 4)),
    _never("LatchLockState", 5, Act.DROP),
    *_plain(("GetControls", 6), ("GetMap", 8), ("GetCompatMap", 10), ("GetIndicatorState", 12)),
    *_plain(("GetIndicatorMap", 13), ("GetNamedIndicator", 15), ("GetNames", 17)),
    *_plain(("GetGeometry", 19), ("ListComponents", 22)),
    Row("PerClientFlags", 21, special="xkb_per_client_flags"),
    Row("GetDeviceInfo", 24),
)
# A property of a device is read, and not deleted with it.
_RANDR: Final = (
    Row("GetOutputProperty", 15, special="keep_output_property"),
    Row("GetProviderProperty", 41, special="keep_output_property"),
    *_plain(
        *(("QueryVersion", 0), ("SelectInput", 4), ("GetScreenInfo", 5), ("GetScreenSizeRange", 6)),
        *(("GetScreenResources", 8), ("GetOutputInfo", 9), ("ListOutputProperties", 10)),
        *(("QueryOutputProperty", 11), ("GetCrtcInfo", 20)),
        *(("GetCrtcGammaSize", 22), ("GetCrtcGamma", 23), ("GetScreenResourcesCurrent", 25)),
        *(("GetCrtcTransform", 27), ("GetPanning", 28), ("GetOutputPrimary", 31)),
        *(("GetProviders", 32), ("GetProviderInfo", 33), ("ListProviderProperties", 36)),
        *(("QueryProviderProperty", 37), ("GetMonitors", 42)),
    ),
)
_XINERAMA: Final = _plain(
    *(("QueryVersion", 0), ("GetState", 1), ("GetScreenCount", 2), ("GetScreenSize", 3)),
    *(("IsActive", 4), ("QueryScreens", 5)),
)
_XINPUT: Final = (
    *_plain(("GetExtensionVersion", 1), ("ListInputDevices", 2), ("XIQueryPointer", 40)),
    Row("XIWarpPointer", 41, own=(4, 8), or_none=(4,)),
    _own("XIChangeCursor", 42, 4),
    Row("XIGetClientPointer", 45),
    Row("XISelectEvents", 46, special="xi_select_events"),
    *_plain(("XIQueryVersion", 47), ("XIQueryDevice", 48)),
    _own("XISetFocus", 49, 4, otherwise=Act.DROP),
    Row("XIGetFocus", 50),
    _own("XIGrabDevice", 51, 4),
    *_plain(("XIUngrabDevice", 52), ("XIAllowEvents", 53)),
    _own("XIPassiveGrabDevice", 54, 8),
    _own("XIPassiveUngrabDevice", 55, 4),
    *_plain(("XIListProperties", 56), ("XIGetSelectedEvents", 60)),
    Row("XIGetProperty", 59, special="keep_device_property"),
)
_SYNC: Final = (
    *_plain(("Initialize", 0), ("ListSystemCounters", 1)),
    _own("CreateCounter", 2, 4),
    _own("SetCounter", 3, 4),
    _own("ChangeCounter", 4, 4),
    Row("QueryCounter", 5),
    _own("DestroyCounter", 6, 4),
    Row("Await", 7),
    _own("CreateAlarm", 8, 4),
    _own("ChangeAlarm", 9, 4),
    _own("QueryAlarm", 10, 4),
    _own("DestroyAlarm", 11, 4),
    Row("GetPriority", 13),
    _own("CreateFence", 14, 8),
    _own("TriggerFence", 15, 4),
    _own("ResetFence", 16, 4),
    _own("DestroyFence", 17, 4),
    _own("QueryFence", 18, 4),
    Row("AwaitFence", 19),
)
_DAMAGE: Final = (
    Row("QueryVersion", 0),
    _own("Create", 1, 4, 8),
    _own("Destroy", 2, 4),
    Row("Subtract", 3, own=(4, 8, 12), or_none=(8, 12)),
    _own("Add", 4, 4, 8),
)
_PRESENT: Final = (
    Row("QueryVersion", 0),
    _own("Pixmap", 1, 4, 8),
    _own("NotifyMSC", 2, 4),
    _own("SelectInput", 3, 4, 8),
    Row("QueryCapabilities", 4),
)
_COMPOSITE: Final = (
    Row("QueryVersion", 0),
    _own("RedirectWindow", 1, 4),
    _own("RedirectSubwindows", 2, 4),
    _own("UnredirectWindow", 3, 4),
    _own("UnredirectSubwindows", 4, 4),
    _own("CreateRegionFromBorderClip", 5, 4, 8),
    # The window's pixmap outside of its shape has what was on the screen, of all programs.
    _never("NameWindowPixmap", 6, Act.MATCH),
)
_SCREEN_SAVER: Final = _plain(("QueryVersion", 0), ("QueryInfo", 1), ("Suspend", 5))
_DPMS: Final = _plain(("GetVersion", 0), ("Capable", 1), ("GetTimeouts", 2), ("Info", 7))
# A program draws with its own processor and sends pictures, as over any SSH connection. Requests
# to draw at the server (Render, RenderLarge, 101 and more) reach much code of its drivers, and are
# off by default in the server as well.
_GLX: Final = (
    Row("CreateContext", 3),
    _own("DestroyContext", 4, 4),
    Row("MakeCurrent", 5, own=(4,), or_none=(4,)),
    *_plain(("IsDirect", 6), ("QueryVersion", 7), ("WaitGL", 8), ("WaitX", 9)),
    _own("SwapBuffers", 11, 8),
    _own("CreateGLXPixmap", 13, 12, 16),
    Row("GetVisualConfigs", 14),
    _own("DestroyGLXPixmap", 15, 4),
    *_plain(("QueryExtensionsString", 18), ("QueryServerString", 19), ("ClientInfo", 20)),
    Row("GetFBConfigs", 21),
    _own("CreatePixmap", 22, 12, 16),
    _own("DestroyPixmap", 23, 4),
    *_plain(("CreateNewContext", 24), ("QueryContext", 25)),
    Row("MakeContextCurrent", 26, own=(8, 12), or_none=(8, 12)),
    Row("CreatePbuffer", 27),
    _own("DestroyPbuffer", 28, 4),
    Row("GetDrawableAttributes", 29, own=(4,)),
    _own("ChangeDrawableAttributes", 30, 4),
    _own("CreateWindow", 31, 12, 16),
    _own("DeleteWindow", 32, 4),
    *_plain(("SetClientInfoARB", 33), ("CreateContextAttribsARB", 34)),
    Row("SetClientInfo2ARB", 35),
)

EXTENSIONS: Final = {
    b"BIG-REQUESTS": _BIG_REQUESTS,
    b"Composite": _COMPOSITE,
    b"DAMAGE": _DAMAGE,
    b"DPMS": _DPMS,
    b"GLX": _GLX,
    b"Generic Event Extension": _GENERIC_EVENT,
    b"MIT-SCREEN-SAVER": _SCREEN_SAVER,
    b"Present": _PRESENT,
    b"RANDR": _RANDR,
    b"RENDER": _RENDER,
    b"SHAPE": _SHAPE,
    b"SYNC": _SYNC,
    b"XC-MISC": _XC_MISC,
    b"XFIXES": _XFIXES,
    b"XINERAMA": _XINERAMA,
    b"XInputExtension": _XINPUT,
    b"XKEYBOARD": _XKEYBOARD,
}

# What a server lets programs of its own machine do only: hidden from trusted programs, too.
LOCAL_ONLY: Final = frozenset(
    (b"MIT-SHM", b"DRI2", b"DRI3", b"XFree86-DGA", b"XFree86-VidModeExtension")
)

# Events (X.h) that a program may select on windows of others: no keys, and no pointer.
HARMLESS_EVENTS: Final = (
    0x8000  # Exposure
    | 0x10000  # VisibilityChange
    | 0x20000  # StructureNotify
    | 0x80000  # SubstructureNotify
    | 0x200000  # FocusChange
    | 0x400000  # PropertyChange
    | 0x800000  # ColormapChange
)
HARMLESS_XI_EVENTS: Final = 1 << 1 | 1 << 11 | 1 << 12  # DeviceChanged, Hierarchy, Property

XKB_KEY_EVENTS: Final = 1 << 9 | 1 << 10  # ActionMessage, AccessX: they name keys

# Properties that may be read: of root windows, and of any window.
RESOURCE_MANAGER: Final = 23  # Xatom.h
ROOT_PROPERTIES: Final = (b"_NET_", b"_MOTIF_", b"_GTK_", b"_QT_", b"_XKB_RULES_NAMES", b"_ICC_")
ANY_PROPERTIES: Final = frozenset(
    (
        *(b"_XSETTINGS_SETTINGS", b"_NET_SUPPORTING_WM_CHECK", b"WM_STATE", b"_NET_FRAME_EXTENTS"),
        *(b"XdndAware", b"XdndProxy", b"XdndTypeList", b"_MOTIF_DRAG_RECEIVER_INFO"),
    )
)

# Selections (X11Clipboard): what a program may offer, and what it may read.
PRIMARY: Final = 1
SECONDARY: Final = 2
CLIPBOARDS: Final = frozenset((b"CLIPBOARD", b"XdndSelection"))
CLIPBOARD_MANAGER: Final = b"CLIPBOARD_MANAGER"
