"""The channels of tunnels: tun@openssh.com (OpenSSH PROTOCOL 2.3), as OpenSSH really speaks it,
and tun-offload@culvert.example, which two Culverts speak.

A message is one packet: ``uint32 family | IP packet`` in point-to-point mode, the bare
frame in ethernet mode. The families are OpenBSD's on every system.

``tun-offload`` differs in three things. A message holds one or more packets, each as

    uint32    length of what follows
    byte[10]  virtio header, as the device gave it (Virtio 1.2 section 5.1.6, little-endian)
    byte[]    the IP packet or the frame

so that a TCP packet of up to 64 KiB is sent whole, a checksum need not be finished, and
small packets share the cost of a message. The window and the messages are larger. The
confirmation of the channel tells the client which addresses and routes the server has declared
for it. A client asks for this type if the server's EXT_INFO names it.
"""

from typing import Final

from .codec import Record, Strings, UInt32

CHANNEL_TYPE: Final = "tun@openssh.com"
POINT_TO_POINT: Final = 1
ETHERNET: Final = 2
MODES: Final = {"point-to-point": POINT_TO_POINT, "ethernet": ETHERNET}  # names of ssh_config(5)
ANY_UNIT: Final = 0x7FFFFFFF

FAMILY_LENGTH: Final = 4
IPV4: Final = 2
IPV6: Final = 24  # OpenBSD's AF_INET6

# A shorter IP packet is invalid, and ends that direction of OpenSSH's tunnel.
SHORTEST_PACKET: Final = 21  # bytes

# OpenSSH counts every message of a tunnel as 4 bytes longer than its data.
OPENSSH_OVERHEAD: Final = 4

OFFLOAD_CHANNEL_TYPE: Final = "tun-offload@culvert.example"

# Our own choices
OFFLOAD_WINDOW: Final = 16 << 20  # bytes: 1.3 Gbit/s at a round trip of 100 ms
OFFLOAD_MESSAGE: Final = 128 << 10  # bytes: fits the largest packet and a batch of small ones


class TunnelOpen(Record):
    """The type-specific data of the channel open, the same for both types."""

    mode: UInt32
    unit: UInt32


class HandedOut(Record):
    """The type-specific data of tun-offload's confirmation: settings for the client's end.

    All addresses, networks and names are text; every list may be empty.
    """

    addresses: Strings  # with prefix length
    peer: Strings
    routes: Strings
    mtu: UInt32  # bytes; 0: not given
    dns: Strings
    domains: Strings
