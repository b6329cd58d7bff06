"""Runs of one TCP flow, written to the device as the one packet that they once were.

The kernel takes a TCP packet of up to 64 KiB with a virtio header in front, and handles it
once where it would handle, route and acknowledge each segment; this is what a network card
does for it (generic receive offload). Fewer acknowledgements come back, too.

Packets are joined when a card would join them: same flow, same header but for length,
sequence number and checksum, in order, no flags but ACK and a last PSH, all of one size but
a shorter last one. Each one's checksum is verified first, since the kernel trusts what it
gets this way. Everything else is written as it came.
"""

import os
import struct
from collections.abc import Iterator
from typing import Final

# Virtio 1.2 section 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER: Final = struct.Struct("<BBHHHH")
PLAIN: Final = bytes(VNET_HEADER.size)  # in front of a packet that stands for itself
_NEEDS_CSUM: Final = 1
_GSO_NONE: Final = 0
_GSO_TCPV4: Final = 1
_GSO_TCPV6: Final = 4
_GSO_ECN: Final = 0x80

_TCP: Final = 6
_CWR: Final = 0x80
_ACK: Final = 0x10
_PSH: Final = 0x08
_FIN: Final = 0x01
_CHECKSUM_AT: Final = 16  # in the TCP header
_LONGEST_PACKET: Final = 65535
_ETHERNET_HEADER: Final = 14
_VLAN: Final = b"\x81\x00"
_UINT16: Final = struct.Struct(">H")
_UINT32: Final = struct.Struct(">I")
_ETHERTYPES: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}

SMALLEST_SEGMENT: Final = 8  # bytes of data; Linux's TCP_MIN_GSO_SIZE, below which nothing goes

# Our own choice
SHORTEST: Final = 256  # bytes: what is shorter is no part of a bulk transfer


def header_is_sound(packet: memoryview, ethernet: bool) -> bool:
    """Whether a peer's virtio header, in front of its packet, may be shown to the kernel.

    It may say what set_offload asked for: TCP segments to be cut, a checksum to be finished. Each
    field is compared with the packet, so that ``segments`` can rely on it.
    """
    if len(packet) < VNET_HEADER.size:
        return False
    flags, kind, header, segment, start, offset = VNET_HEADER.unpack_from(packet)
    size = len(packet) - VNET_HEADER.size
    kind &= ~_GSO_ECN
    if flags & ~_NEEDS_CSUM or header > size or (flags and start + offset + 2 > size):
        return False
    if kind == _GSO_NONE:
        return True
    shortest = {_GSO_TCPV4: 20, _GSO_TCPV6: 40}.get(kind)  # bytes of an IP header
    if shortest is None or not flags or segment < SMALLEST_SEGMENT:
        return False
    ip_at = _ip_at(packet, ethernet)
    if not ip_at + shortest <= start <= size - 20 or offset != _CHECKSUM_AT:
        return False
    if not ethernet and packet[VNET_HEADER.size] >> 4 != (4 if kind == _GSO_TCPV4 else 6):
        return False
    tcp_header = 4 * (packet[VNET_HEADER.size + start + 12] >> 4)
    return bool(20 <= tcp_header < size - start)


def has_extension_headers(packet: memoryview, ethernet: bool) -> bool:
    """Whether something stands between the IPv6 and the TCP header of a sound super-packet.

    Linux looks for the TCP header right behind the IPv6 header when it forwards one (seen in 6.18),
    takes it for too large, and loses it; so it is cut here. Such packets are rare.
    """
    _, kind, _, _, start, _ = VNET_HEADER.unpack_from(packet)
    if kind & ~_GSO_ECN != _GSO_TCPV6:
        return False
    return bool(start != _ip_at(packet, ethernet) + 40)


def _ip_at(packet: memoryview, ethernet: bool) -> int:
    """Where the IP header begins, without the virtio header in front."""
    if not ethernet:
        return 0
    kind_at = VNET_HEADER.size + 12
    return _ETHERNET_HEADER + 4 * (bytes(packet[kind_at : kind_at + 2]) == _VLAN)


def segments(packet: memoryview, ethernet: bool) -> Iterator[bytes]:
    """A sound super-packet of TCP over IPv6, cut as its header says, each with a header again.

    Their checksums are left to the kernel, as that of ``packet`` was.
    """
    _, _, _, size, tcp_at, offset = VNET_HEADER.unpack_from(packet)
    ip_at = _ip_at(packet, ethernet)
    packet = packet[VNET_HEADER.size :]
    payload_at = tcp_at + 4 * (packet[tcp_at + 12] >> 4)
    payload = packet[payload_at:]
    (sequence,) = _UINT32.unpack_from(packet, tcp_at + 4)
    pseudo = _UINT16.unpack_from(packet, tcp_at + offset)[0] - (len(packet) - tcp_at)
    vnet = VNET_HEADER.pack(_NEEDS_CSUM, _GSO_NONE, 0, 0, tcp_at, offset)
    for at in range(0, len(payload), size):
        piece = payload[at : at + size]
        head = bytearray(packet[:payload_at])
        _UINT16.pack_into(head, ip_at + 4, (payload_at + len(piece) - ip_at - 40) & 0xFFFF)
        _UINT32.pack_into(head, tcp_at + 4, (sequence + at) & 0xFFFFFFFF)
        if at:
            head[tcp_at + 13] &= ~_CWR
        if at + size < len(payload):
            head[tcp_at + 13] &= ~(_FIN | _PSH)
        length = payload_at - tcp_at + len(piece)
        _UINT16.pack_into(head, tcp_at + offset, (pseudo + length) % 65535)
        yield vnet + head + piece


class _Layout:
    """Where things are in the headers of one IP version and TCP header length."""

    def __init__(self, base: int, version: int, tcp_words: int) -> None:
        self.base = base
        self.version = version
        self.tcp_at = base + (20 if version == 4 else 40)
        self.length = self.tcp_at + 4 * tcp_words
        self.addresses_at = base + (12 if version == 4 else 8)  # up to the TCP header
        self.addresses_shift = 8 * (self.length - self.addresses_at)
        same = bytearray(b"\xff" * self.length)
        if version == 4:
            same[base + 4 : base + 6] = same[base + 10 : base + 12] = bytes(2)  # id, checksum
        same[self.tcp_at + 4 : self.tcp_at + 8] = bytes(4)  # sequence number
        same[self.tcp_at + 13] = 0xFF & ~_PSH
        same[self.tcp_at + _CHECKSUM_AT : self.tcp_at + _CHECKSUM_AT + 2] = bytes(2)
        self.same = int.from_bytes(same, "big")  # what all packets of a run share
        length_at = base + (2 if version == 4 else 4)
        same[length_at : length_at + 2] = bytes(2)
        self.same_but_length = int.from_bytes(same, "big")
        self.length_at = length_at
        self.sequence_shift = 8 * (self.length - self.tcp_at - 8)
        self.flags_shift = 8 * (self.length - self.tcp_at - 14)

    def checksum_is_right(self, value: int, header: int, size: int) -> bool:
        """For a packet of ``size`` bytes that is ``value`` as a number.

        2^16 is 1 modulo 65535, so a number modulo 65535 is the sum of its 16-bit words. The
        addresses stand right before the TCP header: one sum covers all but two words.
        """
        value = (value >> _HALF) + (value & _HALF_MASK)
        value = (value >> _QUARTER) + (value & _QUARTER_MASK)
        value = (value >> _EIGHTH) + (value & _EIGHTH_MASK)
        if size & 1:
            value <<= 8
        before = header >> self.addresses_shift
        return (value - before + _TCP + size - self.tcp_at) % 65535 == 0


# Folding a number at a multiple of 16 bits keeps it modulo 65535, and costs less than the
# division of all of it; these are for packets of 1500 bytes, and right for any.
_HALF: Final = 16 * 400
_QUARTER: Final = 16 * 200
_EIGHTH: Final = 16 * 100
_HALF_MASK: Final = (1 << _HALF) - 1
_QUARTER_MASK: Final = (1 << _QUARTER) - 1
_EIGHTH_MASK: Final = (1 << _EIGHTH) - 1


class Writer:
    """Writes packets to a device that was opened with IFF_VNET_HDR.

    ``add`` may keep what it is given until ``flush``. Both raise the device's OSError.
    """

    def __init__(self, device: int, ethernet: bool) -> None:
        self._device = device
        base = _ETHERNET_HEADER if ethernet else 0
        self._base = base
        self._layouts = {
            (version, words): _Layout(base, version, words)
            for version in (4, 6)
            for words in range(5, 16)
        }
        self._run: list[memoryview] = []  # the first packet, then the payloads of the others
        self._layout: _Layout
        self._key = 0
        self._size = 0  # of the first packet, and so of all but the last
        self._total = 0
        self._next_sequence = 0
        self._pushed = 0

    def add(self, packet: memoryview) -> None:
        """Write ``packet``, now or together with its neighbours."""
        if self._run and self._join(packet):
            return
        self.flush()
        if len(packet) < SHORTEST or not self._begin(packet):
            os.writev(self._device, (PLAIN, packet))

    def _join(self, packet: memoryview) -> bool:
        layout, size = self._layout, len(packet)
        payload = size - layout.length
        if payload <= 0 or size > self._size or self._total + payload > _LONGEST_PACKET:
            return False
        value = int.from_bytes(packet, "big")
        header = value >> 8 * payload
        if size == self._size:
            same = header & layout.same == self._key
        else:  # a shorter packet may be the last one
            same = (header ^ self._key) & layout.same_but_length == 0
            same = same and self._length_is_right(layout, packet)
        if (
            not same
            or (header >> layout.sequence_shift) & 0xFFFFFFFF != self._next_sequence
            or not layout.checksum_is_right(value, header, size)
        ):
            return False
        self._run.append(packet[layout.length :])
        self._total += payload
        self._next_sequence = (self._next_sequence + payload) & 0xFFFFFFFF
        pushed = (header >> layout.flags_shift) & _PSH
        if pushed or size < self._size:
            self._pushed = pushed
            self.flush()
        return True

    def _begin(self, packet: memoryview) -> bool:
        """Start a run, if ``packet`` can be part of one."""
        base = self._base
        version = packet[base] >> 4
        if base and bytes(packet[base - 2 : base]) != _ETHERTYPES.get(version):
            return False
        if version == 4:
            if packet[base] != 0x45 or packet[base + 9] != _TCP:
                return False
            if packet[base + 6] & 0x3F or packet[base + 7]:  # a fragment
                return False
        elif version != 6 or packet[base + 6] != _TCP:
            return False
        tcp_at = base + (20 if version == 4 else 40)
        layout = self._layouts.get((version, packet[tcp_at + 12] >> 4))
        if (
            layout is None
            or len(packet) <= layout.length
            or packet[tcp_at + 13] != _ACK
            or not self._length_is_right(layout, packet)
        ):
            return False
        value, size = int.from_bytes(packet, "big"), len(packet)
        header = value >> 8 * (size - layout.length)
        if not layout.checksum_is_right(value, header, size):
            return False
        self._layout, self._key, self._size = layout, header & layout.same, size
        sequence = (header >> layout.sequence_shift) & 0xFFFFFFFF
        self._next_sequence = (sequence + size - layout.length) & 0xFFFFFFFF
        self._total = size
        self._pushed = 0
        self._run.append(packet)
        return True

    @staticmethod
    def _length_is_right(layout: _Layout, packet: memoryview) -> bool:
        """Whether nothing trails the packet, and nothing is cut off."""
        said = packet[layout.length_at] << 8 | packet[layout.length_at + 1]
        return said == len(packet) - (layout.base if layout.version == 4 else layout.tcp_at)

    def flush(self) -> None:
        """Write what is kept."""
        run = self._run
        if not run:
            return
        self._run = []
        if len(run) == 1:
            os.writev(self._device, (PLAIN, run[0]))
            return
        layout, first = self._layout, run[0]
        header = bytearray(first[: layout.length])
        base, tcp_at = layout.base, layout.tcp_at
        outside = base if layout.version == 4 else tcp_at  # of the length that IP gives
        struct.pack_into(">H", header, layout.length_at, self._total - outside)
        if layout.version == 4:
            header[base + 10 : base + 12] = bytes(2)
            rest = int.from_bytes(header[base:tcp_at], "big") % 65535
            struct.pack_into(">H", header, base + 10, 65535 - rest)
        header[tcp_at + 13] |= self._pushed
        # the kernel finishes the checksum: it wants the sum of the pseudo header
        addresses = int.from_bytes(header[layout.addresses_at : tcp_at], "big")
        pseudo = (addresses + _TCP + self._total - tcp_at) % 65535
        struct.pack_into(">H", header, tcp_at + _CHECKSUM_AT, pseudo)
        vnet = VNET_HEADER.pack(
            _NEEDS_CSUM,
            _GSO_TCPV4 if layout.version == 4 else _GSO_TCPV6,
            layout.length,
            self._size - layout.length,
            tcp_at,
            _CHECKSUM_AT,
        )
        os.writev(self._device, (vnet, header, first[layout.length :], *run[1:]))
