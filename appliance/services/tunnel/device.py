"""Opens a tun or tap device of Linux (Documentation/networking/tuntap).

A device that open_device creates lives as long as its descriptor; a device that existed before
(``ip tuntap add``) stays. Addresses and routes are not set here.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from ...errors import UsageError
from ...wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT

PATH: Final = "/dev/net/tun"

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETPERSIST: Final = 0x400454CB
TUNSETOWNER: Final = 0x400454CC
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
_TUNSETVNETLE: Final = 0x400454DC
IFF_TUN: Final = 0x0001
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
IFF_TUN_EXCL: Final = 0x8000  # fail if the device exists
IFREQ: Final = struct.Struct("16sH22x")
_OFFLOADS: Final = 0x01 | 0x02 | 0x04 | 0x08  # TUN_F_CSUM, _TSO4, _TSO6 and _TSO_ECN

UNIT_LIMIT: Final = 999_999  # so that the name fits; OpenSSH permits more, which nobody uses


def name_of(mode: int, unit: int) -> str:
    """Returns a name such as 'tun0' or 'tap0'; for any unit 'tun%d', which the kernel fills in."""
    kind = {POINT_TO_POINT: "tun", ETHERNET: "tap"}[mode]
    return kind + ("%d" if unit == ANY_UNIT else str(unit))


def unit_of(device: str) -> int:
    """Returns the number in a name such as 'tun0'; ANY_UNIT for 'any'."""
    return ANY_UNIT if device == "any" else int(device[3:])


def open_device(mode: int, unit: int) -> tuple[int, str]:
    """Returns a non-blocking descriptor and the device's name.

    Each packet has a virtio header. ``mode`` is POINT_TO_POINT or ETHERNET, ``unit`` a number or
    ANY_UNIT. Raises UsageError, whose text says what to do about it.
    """
    name = name_of(mode, unit)
    if unit != ANY_UNIT and not 0 <= unit <= UNIT_LIMIT:
        raise UsageError(f"there is no tunnel device {name}: take 0 to {UNIT_LIMIT}, or any")
    try:
        fd = os.open(PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"{PATH} is missing: load the module with 'modprobe tun'") from error
    except OSError as error:
        raise UsageError(f"{PATH}: {error.strerror}: {_needs(name)}") from error
    flags = (IFF_TUN if mode == POINT_TO_POINT else IFF_TAP) | IFF_NO_PI | _IFF_VNET_HDR
    try:
        answer = fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
    except OSError as error:
        os.close(fd)
        why = {
            errno.EBUSY: "it is in use by another process",
            errno.EPERM: f"no permission: {_needs(name)}",
            errno.EINVAL: "it exists and is of another kind",
        }.get(error.errno or 0, error.strerror)
        raise UsageError(f"tunnel device {name}: {why}") from error
    return fd, IFREQ.unpack(answer)[0].rstrip(b"\0").decode()


def _needs(name: str) -> str:
    example = name.replace("%d", "0")
    return f"a tunnel needs root, or a device made by 'ip tuntap add {example} user NAME'"


def exists(name: str) -> bool:
    """Whether there is a network device of this name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def is_attached(device: int) -> bool:
    """Whether the descriptor still has its device; False once the device was deleted."""
    try:
        fcntl.ioctl(device, TUNGETIFF, bytes(IFREQ.size))
    except OSError:
        return False
    return True


def set_offload(device: int, on: bool) -> None:
    """Permits or forbids ``device`` to return TCP packets of up to 64 KiB, without checksums.

    A kernel that does not support it returns packets of the device's MTU, which work as well.
    """
    with contextlib.suppress(OSError):
        fcntl.ioctl(device, TUNSETOFFLOAD, _OFFLOADS if on else 0)
