"""Packets between a tunnel device and a channel, in the order in which they meet it.

Packets are read in batches while they last, sealed into one buffer and sent at once.
What the window does not take is dropped, as on any link that is full; while a key
exchange runs or the socket is full, the device is not read and its own queue holds.
"""

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

from ...aio.driver import Driver
from ...ssh.channels import Channel, ChannelHandler
from ...wire.tun import (
    FAMILY_LENGTH,
    IPV4,
    IPV6,
    OPENSSH_OVERHEAD,
    POINT_TO_POINT,
    SHORTEST_PACKET,
)

_log = logging.getLogger(__name__)

# Our own choices
BATCH: Final = 32  # packets a wake-up: beyond it nothing is gained, and others wait
SLOT: Final = 65536 + FAMILY_LENGTH  # bytes: the largest IP packet


class TunnelChannel(ChannelHandler):
    """One direction of packets each way between the descriptor ``device`` and a channel.

    The device is the caller's to close, when ``ended`` is called.
    """

    def __init__(
        self,
        device: int,
        mode: int,
        driver: Driver,
        ended: Callable[[], None],
    ) -> None:
        self._loop = driver.loop
        self._device = device
        self._point_to_point = mode == POINT_TO_POINT
        openssh = driver.connection.peer_software.startswith("OpenSSH")
        self._overhead = OPENSSH_OVERHEAD if openssh else 0
        self._flush = driver.flush
        self._ended = ended
        self.channel: Channel
        self._reading = False
        self._busy = False  # whether packets came in a row last time
        slots = memoryview(bytearray(BATCH * SLOT))  # touched only as far as packets go
        self._slots = [
            (slots[at : at + SLOT], (slots[at + FAMILY_LENGTH : at + SLOT],))
            for at in range(0, BATCH * SLOT, SLOT)
        ]

    def start(self, channel: Channel) -> None:
        """Begin, once the channel is open."""
        self.channel = channel
        channel.overhead = self._overhead
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
        if not self.channel.sendable():
            self._pause()
            return
        pieces = []
        device, readv = self._device, os.readv
        point_to_point = self._point_to_point
        at_once = not self._busy
        packets = 0
        try:
            for slot, target in self._slots:
                size = readv(device, target)
                packets += 1
                if point_to_point:
                    if size < SHORTEST_PACKET:
                        continue
                    slot[3] = IPV4 if slot[FAMILY_LENGTH] >> 4 == 4 else IPV6
                    pieces.append(slot[: FAMILY_LENGTH + size])
                else:
                    pieces.append(target[0][:size])
                if at_once:  # a lone packet does not wait for a look at the next
                    at_once = False
                    self.channel.send_batch(pieces)
                    self._flush()
                    pieces = []
        except BlockingIOError:
            pass
        except OSError as error:
            self._device_failed(error)
            return
        self._busy = packets > 2
        if pieces:
            self.channel.send_batch(pieces)
            self._flush()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.watch_reader(self._device, None)

    # -- from the peer to the device -------------------------------------------------

    def data(self, view: memoryview) -> None:
        self.channel.consume(len(view))
        packet = view[FAMILY_LENGTH:] if self._point_to_point else view
        if not packet:
            return
        try:
            os.write(self._device, packet)
        except OSError as error:
            self._device_failed(error)
        # The kernel may have an answer already: take it along in the same wake-up.
        self.channel.ask_resume()

    def _device_failed(self, error: OSError) -> None:
        """A packet that the kernel refuses is a lost packet; a device that is gone ends it."""
        if error.errno in (errno.EBADFD, errno.ENODEV, errno.ENXIO):
            _log.warning("the tunnel device is gone: %s", error.strerror)
            self._pause()
            self.channel.close()
            self._flush()

    def eof(self) -> None:
        self.channel.close()

    def closed(self) -> None:
        self._pause()
        self._ended()
