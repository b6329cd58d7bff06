"""IP addresses as text, and the addresses of a name."""

import contextlib
import errno
import socket
from typing import Any


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address, not a name; an IPv6 address may have a zone."""
    return socket_address(host, 0) is not None


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]] | None:
    """The kernel's form of an IP address, or None for any other text. Looks nothing up."""
    base, percent, zone = host.partition("%")
    if not host.isascii() or "\0" in host:
        return None
    if not percent:
        with contextlib.suppress(OSError):
            socket.inet_pton(socket.AF_INET, host)
            return socket.AF_INET, (host, port)
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, base)
        return socket.AF_INET6, (base, port, 0, _zone_index(zone) if percent else 0)
    return None


def _zone_index(zone: str) -> int:
    """The interface index of an IPv6 zone, which is a number or a name; raises OSError."""
    if zone.isdigit() and len(zone) <= 10 and int(zone) <= 0xFFFFFFFF:
        return int(zone)
    return socket.if_nametoindex(zone)


def look_up(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The addresses of a name; may block. Raises OSError, also for text that is no host name."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, LookupError) as error:  # it cannot be encoded, or holds a NUL
        raise OSError(errno.EINVAL, "not a host name") from error
    return [(family, address) for family, _, _, _, address in found]
