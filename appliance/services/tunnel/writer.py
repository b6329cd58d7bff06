"""Writes packets to the device, and joins successive packets of one TCP flow into one.

The kernel accepts a TCP packet of up to 64 KiB with a virtio header, and then handles and routes
one packet instead of each segment. A network card does the same (generic receive offload). Fewer
acknowledgements come back, too.

Packets are joined when a card would join them: same flow; same header except length, sequence
number and checksum; in order; no flags except ACK and a PSH in the last one; all of one size
except a shorter last one. Each checksum is verified first, since the kernel does not check a
joined packet. All other packets are written as they came.
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
SHORTEST: Final = 256  # bytes: a shorter packet does not begin a bulk transfer


class _Layout:
    """The offsets and masks of header fields, for one IP version and TCP header length."""

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
        self.same = int.from_bytes(same, "big")  # mask of the bits that a run's packets share
        length_at = base + (2 if version == 4 else 4)
        same[length_at : length_at + 2] = bytes(2)
        self.same_but_length = int.from_bytes(same, "big")
        self.length_at = length_at
        self.sequence_shift = 8 * (self.length - self.tcp_at - 8)
        self.flags_shift = 8 * (self.length - self.tcp_at - 14)

    def checksum_is_right(self, value: int, header: int, size: int) -> bool:
        """Whether the TCP checksum is right in a packet of ``size`` bytes.

        ``value`` is the packet as a big-endian number, ``header`` the same of its headers. 2^16 is
        1 modulo 65535, so a number modulo 65535 is the sum of its 16-bit words. The addresses stand
        right before the TCP header, so one sum covers all but two words of the pseudo header.
        """
        value = (value >> _HALF) + (value & _HALF_MASK)
        value = (value >> _QUARTER) + (value & _QUARTER_MASK)
        value = (value >> _EIGHTH) + (value & _EIGHTH_MASK)
        if size & 1:
            value <<= 8
        before = header >> self.addresses_shift
        return (value - before + _TCP + size - self.tcp_at) % 65535 == 0


# Folding a number at a multiple of 16 bits keeps its value modulo 65535, and costs less than
# dividing the whole number. These sizes suit packets of 1500 bytes, and are right for all others.
_HALF: Final = 16 * 400
_QUARTER: Final = 16 * 200
_EIGHTH: Final = 16 * 100
_HALF_MASK: Final = (1 << _HALF) - 1
_QUARTER_MASK: Final = (1 << _QUARTER) - 1
_EIGHTH_MASK: Final = (1 << _EIGHTH) - 1


class Writer:
    """Writes packets to a device that was opened with IFF_VNET_HDR.

    ``add`` may keep a packet until ``flush``. ``failed`` gets the device's OSError and the number
    of packets that are lost.
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
        self._size = 0  # of the first packet, and of all others but the last
        self._total = 0
        self._next_sequence = 0
        self._pushed = 0

    def add(self, packet: memoryview) -> None:
        """Writes ``packet``, now or joined with the packets around it."""
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
        """Starts a run if ``packet`` can be part of one; returns whether it does."""
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
        """Whether the length field of the IP header fits the packet's size."""
        said = packet[layout.length_at] << 8 | packet[layout.length_at + 1]
        return said == len(packet) - (layout.base if layout.version == 4 else layout.tcp_at)

    def flush(self) -> None:
        """Writes the packets that are kept."""
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
        outside = base if layout.version == 4 else tcp_at  # bytes that IP's length does not count
        struct.pack_into(">H", header, layout.length_at, self._total - outside)
        if layout.version == 4:
            header[base + 10 : base + 12] = bytes(2)
            rest = int.from_bytes(header[base:tcp_at], "big") % 65535
            struct.pack_into(">H", header, base + 10, 65535 - rest)
        header[tcp_at + 13] |= self._pushed
        # The kernel completes the checksum: it expects the sum of the pseudo header here.
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
