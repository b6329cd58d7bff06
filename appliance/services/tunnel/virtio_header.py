"""Checks the virtio header that stands in front of each packet of a device.

The header tells the kernel where to complete a checksum, and where to cut a TCP packet of up to
64 KiB. The kernel trusts it, so a peer's header is compared with its packet first.
"""

import struct
from collections.abc import Iterator
from typing import Final

# Virtio 1.2 section 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER: Final = struct.Struct("<BBHHHH")
PLAIN: Final = bytes(VNET_HEADER.size)  # of a packet without offloads
NEEDS_CSUM: Final = 1
_GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
_GSO_ECN: Final = 0x80

SMALLEST_SEGMENT: Final = 8  # bytes of data; Linux's TCP_MIN_GSO_SIZE: it refuses smaller ones

CHECKSUM_AT: Final = 16  # in the TCP header
_CWR: Final = 0x80
PSH: Final = 0x08
_FIN: Final = 0x01
ETHERNET_HEADER: Final = 14
_VLAN: Final = b"\x81\x00"
_UINT16: Final = struct.Struct(">H")
_UINT32: Final = struct.Struct(">I")


def header_is_sound(packet: memoryview, ethernet: bool) -> bool:
    """Whether the virtio header of a peer's ``packet`` may be given to the kernel.

    Permitted are the offloads of set_offload: cutting into TCP segments, completing a checksum.
    Each field is compared with the packet, so that ``segments`` can rely on it.
    """
    if len(packet) < VNET_HEADER.size:
        return False
    flags, kind, header, segment, start, offset = VNET_HEADER.unpack_from(packet)
    size = len(packet) - VNET_HEADER.size
    kind &= ~_GSO_ECN
    if flags & ~NEEDS_CSUM or header > size or (flags and start + offset + 2 > size):
        return False
    if kind == _GSO_NONE:
        return True
    shortest = {GSO_TCPV4: 20, GSO_TCPV6: 40}.get(kind)  # bytes of an IP header
    if shortest is None or not flags or segment < SMALLEST_SEGMENT:
        return False
    ip_at = _ip_at(packet, ethernet)
    if not ip_at + shortest <= start <= size - 20 or offset != CHECKSUM_AT:
        return False
    if not ethernet and packet[VNET_HEADER.size] >> 4 != (4 if kind == GSO_TCPV4 else 6):
        return False
    tcp_header = 4 * (packet[VNET_HEADER.size + start + 12] >> 4)
    return bool(20 <= tcp_header < size - start)


def has_extension_headers(packet: memoryview, ethernet: bool) -> bool:
    """Whether there are headers between the IPv6 and the TCP header of a sound super-packet.

    When Linux forwards such a packet (seen in 6.18), it expects the TCP header right after the
    IPv6 header, finds the packet too large, and drops it; so we cut it here. Such packets are rare.
    """
    _, kind, _, _, start, _ = VNET_HEADER.unpack_from(packet)
    if kind & ~_GSO_ECN != GSO_TCPV6:
        return False
    return bool(start != _ip_at(packet, ethernet) + 40)


def _ip_at(packet: memoryview, ethernet: bool) -> int:
    """Returns the offset of the IP header, counted from the end of the virtio header."""
    if not ethernet:
        return 0
    kind_at = VNET_HEADER.size + 12
    return ETHERNET_HEADER + 4 * (bytes(packet[kind_at : kind_at + 2]) == _VLAN)


def segments(packet: memoryview, ethernet: bool) -> Iterator[bytes]:
    """Cuts a sound super-packet of TCP over IPv6 into segments, each with a virtio header.

    The kernel completes the checksums of the segments, as it would have done for ``packet``.
    """
    _, _, _, size, tcp_at, offset = VNET_HEADER.unpack_from(packet)
    ip_at = _ip_at(packet, ethernet)
    packet = packet[VNET_HEADER.size :]
    payload_at = tcp_at + 4 * (packet[tcp_at + 12] >> 4)
    payload = packet[payload_at:]
    (sequence,) = _UINT32.unpack_from(packet, tcp_at + 4)
    pseudo = _UINT16.unpack_from(packet, tcp_at + offset)[0] - (len(packet) - tcp_at)
    vnet = VNET_HEADER.pack(NEEDS_CSUM, _GSO_NONE, 0, 0, tcp_at, offset)
    for at in range(0, len(payload), size):
        piece = payload[at : at + size]
        head = bytearray(packet[:payload_at])
        _UINT16.pack_into(head, ip_at + 4, (payload_at + len(piece) - ip_at - 40) & 0xFFFF)
        _UINT32.pack_into(head, tcp_at + 4, (sequence + at) & 0xFFFFFFFF)
        if at:
            head[tcp_at + 13] &= ~_CWR
        if at + size < len(payload):
            head[tcp_at + 13] &= ~(_FIN | PSH)
        length = payload_at - tcp_at + len(piece)
        _UINT16.pack_into(head, tcp_at + offset, (pseudo + length) % 65535)
        yield vnet + head + piece
