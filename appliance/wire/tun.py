"""The words of tun@openssh.com (OpenSSH PROTOCOL 2.3), as OpenSSH really speaks it.

A message is one packet: ``uint32 family | IP packet`` in point-to-point mode, the bare
frame in ethernet mode. The families are OpenBSD's on every system.
"""

from typing import Final

from .codec import Record, UInt32

CHANNEL_TYPE: Final = "tun@openssh.com"
POINT_TO_POINT: Final = 1
ETHERNET: Final = 2
ANY_UNIT: Final = 0x7FFFFFFF

FAMILY_LENGTH: Final = 4
IPV4: Final = 2
IPV6: Final = 24  # OpenBSD's AF_INET6

# A shorter IP packet is no packet, and kills that direction of OpenSSH's tunnel.
SHORTEST_PACKET: Final = 21  # bytes

# OpenSSH counts every message of a tunnel as 4 bytes longer than its data.
OPENSSH_OVERHEAD: Final = 4


class TunnelOpen(Record):
    """The type-specific data of the channel open."""

    mode: UInt32
    unit: UInt32
