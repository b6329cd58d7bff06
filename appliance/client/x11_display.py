"""The display of this machine that forwarded programs are shown on: DISPLAY and its cookie."""

import logging
import os
import socket
import stat
from ipaddress import ip_address
from typing import Final

from ..aio.addresses import look_up
from ..errors import CulvertError, MalformedMessage
from ..wire.x11 import FAMILY_INTERNET, FAMILY_INTERNET6, XauthorityEntry, xauthority_entries
from ..x11.cookies import FILE_LIMIT, Address, cookie_for, local_address
from ..x11.display import Display, display
from ..x11.set_up import Authorization

_log = logging.getLogger(__name__)

_FAMILIES: Final = {4: FAMILY_INTERNET, 6: FAMILY_INTERNET6}


class NoDisplay(CulvertError):
    """There is no display here that programs could be shown on."""


def local_display() -> tuple[Display, Authorization]:
    """Returns the display of DISPLAY, and its cookie from the Xauthority file.

    The authorization is empty if there is none: the display may have no access control. Raises
    NoDisplay. May block for a display of another host, whose name has to be looked up.
    """
    name = os.environ.get("DISPLAY", "")
    if not name:
        raise NoDisplay("DISPLAY is not set")
    try:
        found = display(name)
    except ValueError as error:
        raise NoDisplay(f"DISPLAY: {error}") from error
    cookie = cookie_for(_entries(), _addresses(found), found.number)
    _log.debug("X11: display %s, %s", name, "no cookie" if cookie is None else "with a cookie")
    return found, cookie or Authorization()


def _entries() -> list[XauthorityEntry]:
    path = os.environ.get("XAUTHORITY") or os.path.expanduser("~/.Xauthority")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        _log.debug("X11: %s: %s", path, error.strerror)
        return []
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_LIMIT:
            raise MalformedMessage("no file of cookies")
        with open(fd, "rb", closefd=False) as file:
            return xauthority_entries(file.read(FILE_LIMIT))
    except (OSError, MalformedMessage) as error:
        _log.debug("X11: %s: %s", path, error)
        return []
    finally:
        os.close(fd)


def _addresses(found: Display) -> list[Address]:
    """Returns the addresses by which Xauthority files know the display.

    The loopback counts as this machine itself, as in Xlib.
    """
    here = local_address(socket.gethostname())
    if not found.host or found.host.lower() == "localhost":
        return [here]
    addresses: list[Address] = []
    try:
        for _, (host, *_) in look_up(found.host, found.port):
            address = ip_address(host.partition("%")[0])
            if address.version == 6 and address.ipv4_mapped:
                address = address.ipv4_mapped
            own = here if address.is_loopback else (_FAMILIES[address.version], address.packed)
            addresses.append(own)
    except OSError as error:
        raise NoDisplay(f"DISPLAY: {found.host}: {error.strerror or error}") from error
    return addresses
