"""Copies packets between a tunnel device and a channel.

Packets are read in batches, encrypted into one buffer and sent together. A packet for which the
window has no room is dropped, as on any full link; drops.py counts each dropped packet. While a
key exchange runs or the socket is full, the device is not read, and packets wait in its queue.

    TunnelChannel     the common part
    OpenSSHTunnel     tun@openssh.com: one packet of the device's MTU per message
    OffloadTunnel     tun-offload@culvert.example: up to 64 KiB of one TCP flow per message
"""

import logging
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final

from ...aio.driver import Driver
from ...errors import MalformedMessage
from ...ssh.channels import Channel, ChannelHandler, Flow
from ...wire.codec import Buffer
from ...wire.tun import (
    FAMILY_LENGTH,
    IPV4,
    IPV6,
    OFFLOAD_MESSAGE,
    OPENSSH_OVERHEAD,
    POINT_TO_POINT,
    SHORTEST_PACKET,
)
from .device import set_offload
from .drops import Drop, Drops, drop_of
from .virtio_header import (
    PLAIN,
    VNET_HEADER,
    has_extension_headers,
    header_is_sound,
    segments,
)
from .writer import Writer

_log = logging.getLogger(__name__)

_IPV4: Final = IPV4.to_bytes(FAMILY_LENGTH, "big")
_IPV6: Final = IPV6.to_bytes(FAMILY_LENGTH, "big")

HEADER: Final = VNET_HEADER.size  # bytes in front of each packet of the device
SLOT: Final = HEADER + 65536  # bytes: room for the device's largest packet
_LENGTH: Final = struct.Struct(">I")

# Our own choices
BATCH: Final = 32  # packets per wake-up: more gains nothing, and other channels wait
BATCH_BYTES: Final = 192 << 10  # the same, for large packets
ENOUGH: Final = OFFLOAD_MESSAGE - _LENGTH.size - SLOT  # bytes: a longer message is sent at once


class TunnelChannel(ChannelHandler):
    """Copies packets both ways between the descriptor ``device`` and a channel.

    The caller closes the device after ``ended`` was called. ``drops`` counts dropped packets.
    """

    offload = False  # whether the device reads packets of up to 64 KiB (set_offload)

    def __init__(
        self,
        device: int,
        mode: int,
        driver: Driver,
        drops: Drops,
        ended: Callable[[], None],
    ) -> None:
        self._loop = driver.loop
        self._device = device
        self._point_to_point = mode == POINT_TO_POINT
        self._flush = driver.flush
        self._drops = drops
        self._ended = ended
        self.channel: Channel
        self._writer = Writer(device, not self._point_to_point, self._device_failed)
        self._reading = False
        self._busy = False  # whether the last wake-up read several packets

    def start(self, channel: Channel) -> None:
        """Begins to copy packets; the channel is open."""
        self.channel = channel
        set_offload(self._device, self.offload)
        self.resume()

    # -- from the device to the peer -------------------------------------------------

    def resume(self) -> None:
        if not self.channel.sendable():
            return
        if not self._reading:
            self._reading = True
            self._loop.watch_reader(self._device, self._on_readable)
        self._on_readable()

    def _on_readable(self) -> None:
        """Copies a batch of packets from the device to the channel."""
        raise NotImplementedError

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.watch_reader(self._device, None)

    # -- from the peer to the device -------------------------------------------------

    def data_ended(self) -> None:
        self._writer.flush()
        # The kernel may have an answer already: send it in the same wake-up.
        if self._reading:
            self._on_readable()

    def _device_failed(self, error: OSError, packets: int) -> None:
        """Counts packets that the kernel refused; closes the channel if the device is gone."""
        drop = drop_of(error)
        self._drops.count(drop, packets)
        if drop is Drop.DEVICE_GONE and self.channel.outbound is Flow.OPEN:
            _log.warning("the tunnel device is gone: %s", error.strerror)
            self._pause()
            self.channel.close()
            self._flush()

    def eof(self) -> None:
        self.channel.close()

    def closed(self) -> None:
        self._pause()
        self._writer.flush()  # packets that arrived together with the end
        self._ended()


class OpenSSHTunnel(TunnelChannel):
    """The tunnel of OpenSSH, tun@openssh.com."""

    def __init__(
        self, device: int, mode: int, driver: Driver, drops: Drops, ended: Callable[[], None]
    ) -> None:
        super().__init__(device, mode, driver, drops, ended)
        openssh = driver.connection.transport.peer_software.startswith("OpenSSH")
        self._overhead = OPENSSH_OVERHEAD if openssh else 0
        slots = memoryview(bytearray(BATCH * SLOT))  # touched only as far as packets go
        self._slots = [
            (slots[at : at + SLOT], (slots[at : at + SLOT],)) for at in range(0, BATCH * SLOT, SLOT)
        ]

    def start(self, channel: Channel) -> None:
        channel.overhead = self._overhead
        super().start(channel)

    def _on_readable(self) -> None:
        if not self.channel.sendable():
            self._pause()
            return
        pieces = []
        device, readv = self._device, os.readv
        point_to_point = self._point_to_point
        # The virtio header is all zero without offloads: the address family overwrites it.
        start = HEADER - FAMILY_LENGTH if point_to_point else HEADER
        at_once = not self._busy
        packets = 0
        try:
            for slot, target in self._slots:
                size = readv(device, target)
                packets += 1
                if slot[:HEADER] != PLAIN:  # queued while offloads were on
                    self._drops.count(Drop.STALE_OFFLOAD)
                    continue
                if point_to_point:
                    if size < HEADER + SHORTEST_PACKET:
                        self._drops.count(Drop.TOO_SHORT)
                        continue
                    family = _IPV4 if slot[HEADER] >> 4 == 4 else _IPV6
                    slot[start:HEADER] = family
                pieces.append(slot[start:size])
                if at_once:  # a lone packet is sent before the next read
                    at_once = False
                    self._send(pieces)
                    pieces = []
        except BlockingIOError:
            pass
        except OSError as error:
            self._device_failed(error, len(pieces))
            return
        self._busy = packets > 2
        if pieces:
            self._send(pieces)

    def _send(self, pieces: Sequence[Buffer]) -> None:
        unsent = len(pieces) - self.channel.send_batch(pieces)
        if unsent:
            too_large = sum(len(piece) > self.channel.send_packet for piece in pieces)
            self._drops.count(Drop.TOO_LARGE, too_large)
            self._drops.count(Drop.NO_WINDOW, unsent - too_large)
        self._flush()

    def data(self, view: memoryview) -> None:
        self.channel.consume(len(view))
        packet = view[FAMILY_LENGTH:] if self._point_to_point else view
        if packet:
            self._writer.add(packet)
        else:
            self._drops.count(Drop.TOO_SHORT)
        self.channel.ask_data_ended()

    def late_data(self, view: memoryview) -> None:
        self._drops.count(Drop.DEVICE_GONE)  # the only reason for us to close the channel first


class OffloadTunnel(TunnelChannel):
    """The tunnel of two Culverts, tun-offload@culvert.example.

    Packets keep the virtio header that the sending device gave them.
    """

    offload = True

    def __init__(
        self, device: int, mode: int, driver: Driver, drops: Drops, ended: Callable[[], None]
    ) -> None:
        super().__init__(device, mode, driver, drops, ended)
        self._buffer = bytearray(OFFLOAD_MESSAGE)
        self._view = memoryview(self._buffer)

    def _on_readable(self) -> None:
        if not self.channel.sendable():
            self._pause()
            return
        device, readv, buffer, view = self._device, os.readv, self._buffer, self._view
        enough = ENOUGH if self._busy else 0  # a lone packet is sent before the next read
        packets = end = total = 0
        try:
            while packets < BATCH and total < BATCH_BYTES:
                start = end + _LENGTH.size
                size = readv(device, (view[start : start + SLOT],))
                _LENGTH.pack_into(buffer, end, size)
                end = start + size
                packets += 1
                if end > enough:
                    self._send(end)
                    total += end
                    end, enough = 0, ENOUGH
        except BlockingIOError:
            pass
        except OSError as error:
            self._device_failed(error, _packets_within(self._view[:end]))
            return
        self._busy = packets > 2
        if end:
            self._send(end)

    def _send(self, size: int) -> None:
        if not self.channel.send_batch((self._view[:size],)):
            too_large = size > self.channel.send_packet
            drop = Drop.TOO_LARGE if too_large else Drop.NO_WINDOW
            self._drops.count(drop, _packets_within(self._view[:size]))
        self._flush()

    def data(self, view: memoryview) -> None:
        self.channel.consume(len(view))
        ethernet = not self._point_to_point
        start, end = 0, len(view)
        while start < end:
            try:
                (size,) = _LENGTH.unpack_from(view, start)
            except struct.error as error:
                raise MalformedMessage("a packet without its length") from error
            start += _LENGTH.size
            packet = view[start : start + size]
            start += size
            if start > end or size < HEADER:
                raise MalformedMessage("a packet of a wrong length")
            if packet[:HEADER] == PLAIN:
                self._writer.add(packet[HEADER:])
            elif header_is_sound(packet, ethernet):
                self._writer.flush()
                self._write_super_packet(packet, ethernet)
            else:
                self._drops.count(Drop.UNSOUND_HEADER)
        self.channel.ask_data_ended()

    def _write_super_packet(self, packet: memoryview, ethernet: bool) -> None:
        try:
            if has_extension_headers(packet, ethernet):
                for segment in segments(packet, ethernet):
                    os.write(self._device, segment)
            else:
                os.write(self._device, packet)
        except OSError as error:
            self._device_failed(error, 1)

    def late_data(self, view: memoryview) -> None:
        self._drops.count(Drop.DEVICE_GONE, _packets_within(view))


def _packets_within(message: memoryview) -> int:
    """Counts the packets of a message of tun-offload, whose length fields may be wrong."""
    packets = at = 0
    while at + _LENGTH.size <= len(message):
        at += _LENGTH.size + _LENGTH.unpack_from(message, at)[0]
        packets += 1
    return packets
