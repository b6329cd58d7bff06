"""Names of displays, as Xlib takes them in DISPLAY.

:0  unix:0  unix/:0  local/:0       this machine's sockets /tmp/.X11-unix/X0, @/tmp/.X11-unix/X0
host:1.2  tcp/host:1.2  inet6/...   TCP port 6001, and screen 2
[::1]:0  ::1:0                      the same for an IPv6 address
/path:0  unix:/path  unix//path     the socket /path:0, /path (macOS has such displays)
"""

import re
from typing import Final, NamedTuple

# X Window System Protocol, appendix B
TCP_PORT: Final = 6000
_SOCKETS: Final = "/tmp/.X11-unix/X"

_NUMBERED: Final = re.compile(r"(.*):([0-9]{1,5})(?:\.([0-9]{1,3}))?", re.DOTALL)
_PATH: Final = re.compile(r"(/.*?)(?::([0-9]{1,5}))?(?:(?<=[0-9])\.([0-9]{1,3}))?", re.DOTALL)
_PROTOCOLS: Final = {"tcp": "any", "inet": "inet", "inet6": "inet6"}

# OpenSSH's
SCREEN_LIMIT: Final = 400


class Display(NamedTuple):
    """Where an X server listens: at ``paths``, or at a TCP port of ``host``."""

    paths: tuple[bytes, ...]  # to be tried in this order; one that begins with NUL is abstract
    host: str  # a name or an address without brackets; '' for a display with paths
    family: str  # of the host's addresses: any, inet, inet6
    number: int
    screen: int

    @property
    def port(self) -> int:
        """The TCP port of a display with a host."""
        return TCP_PORT + self.number


def display(text: str) -> Display:
    """Returns the display with this name; raises ValueError if there can be none.

    The text stays what it is: no shell ever sees it.
    """
    if not text.isprintable() or not text.isascii() or len(text) > 255:
        raise ValueError("expected the name of a display such as :0 or host:10.0")
    path = text.removeprefix("unix:") if text.startswith("unix:/") else text
    if path.startswith("unix//"):
        path = path.removeprefix("unix/")
    if path.startswith("/"):
        return _at_path(path)
    found = _NUMBERED.fullmatch(text)
    if found is None:
        raise ValueError("expected the name of a display such as :0 or host:10.0")
    place, number, screen = found[1], int(found[2]), int(found[3] or 0)
    protocol, slash, host = place.rpartition("/")
    _check_screen(screen)
    if host in ("", "unix") or protocol in ("unix", "local"):
        if protocol not in ("", "unix", "local"):
            raise ValueError(f"expected a host behind {protocol}/")
        path = f"{_SOCKETS}{number}"
        return Display((path.encode(), b"\0" + path.encode()), "", "any", number, screen)
    family = _PROTOCOLS.get(protocol, "" if slash else "any")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not family or number > 0xFFFF - TCP_PORT or not re.fullmatch(r"[A-Za-z0-9_.:%-]+", host):
        raise ValueError("expected the name of a display such as :0 or host:10.0")
    return Display((), host, family, number, screen)


def _at_path(text: str) -> Display:
    """Returns the display at a path, which may end with :number and .screen.

    Both may be a part of the socket's own name, so that the longest one is tried first.
    """
    found = _PATH.fullmatch(text)
    assert found is not None  # each part but the first character is optional
    bare, number, screen = found[1], int(found[2] or 0), int(found[3] or 0)
    _check_screen(screen)
    without_screen = bare if found[2] is None else f"{bare}:{found[2]}"
    names = dict.fromkeys((text, without_screen, bare))
    return Display(tuple(name.encode() for name in names), "", "any", number, screen)


def _check_screen(screen: int) -> None:
    if screen > SCREEN_LIMIT:
        raise ValueError(f"expected a screen up to {SCREEN_LIMIT}")
