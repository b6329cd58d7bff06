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
from collections.abc import Callable
from typing import Final

from ...wire.codec import Buffer
from .virtio_header import (
    CHECKSUM_AT,
    ETHERNET_HEADER,
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    PLAIN,
    PSH,
    VNET_HEADER,
)

_TCP: Final = 6
_ACK: Final = 0x10
_LONGEST_PACKET: Final = 65535
_ETHERTYPES: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}

# Our own choice
SHORTEST: Final = 256  # bytes: what is shorter is no part of a bulk transfer


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
        same[self.tcp_at + 13] = 0xFF & ~PSH
        same[self.tcp_at + CHECKSUM_AT : self.tcp_at + CHECKSUM_AT + 2] = bytes(2)
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

    ``add`` may keep what it is given until ``flush``. ``failed`` gets the device's OSError and how
    many packets are lost with it.
    """

    def __init__(self, device: int, ethernet: bool, failed: Callable[[OSError, int], None]) -> None:
        self._device = device
        self._failed = failed
        base = ETHERNET_HEADER if ethernet else 0
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
            self._write((PLAIN, packet), 1)

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
        pushed = (header >> layout.flags_shift) & PSH
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
            self._write((PLAIN, run[0]), 1)
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
        struct.pack_into(">H", header, tcp_at + CHECKSUM_AT, pseudo)
        vnet = VNET_HEADER.pack(
            NEEDS_CSUM,
            GSO_TCPV4 if layout.version == 4 else GSO_TCPV6,
            layout.length,
            self._size - layout.length,
            tcp_at,
            CHECKSUM_AT,
        )
        self._write((vnet, header, first[layout.length :], *run[1:]), len(run))

    def _write(self, pieces: tuple[Buffer, ...], packets: int) -> None:
        try:
            os.writev(self._device, pieces)
        except OSError as error:
            self._failed(error, packets)
