"""Packets that a tunnel does not carry, counted by reason.

A packet is what the device reads or writes at once: one that TCP offload left whole counts once.
"""

import errno
from collections import Counter
from enum import StrEnum
from typing import Final


class Drop(StrEnum):
    """Why a packet is dropped; the values are those of the status, the metrics and the log."""

    NO_WINDOW = "no_window"  # the peer has not taken what it was sent before
    TOO_LARGE = "too_large"  # for the peer's largest message
    TOO_SHORT = "too_short"  # it holds no IP packet
    STALE_OFFLOAD = "stale_offload"  # read whole, for a peer that takes no such packets
    UNSOUND_HEADER = "unsound_header"  # the peer's virtio header does not fit its packet
    DEVICE_DOWN = "device_down"  # the tunnel device is not up
    DEVICE_FULL = "device_full"  # the kernel has no room for it
    DEVICE_REFUSED = "device_refused"  # the kernel does not take it for a packet
    DEVICE_GONE = "device_gone"  # somebody has deleted the tunnel device


_ERRORS: Final = {
    errno.EIO: Drop.DEVICE_DOWN,
    errno.EAGAIN: Drop.DEVICE_FULL,
    errno.ENOBUFS: Drop.DEVICE_FULL,
    errno.ENOMEM: Drop.DEVICE_FULL,
    errno.EBADFD: Drop.DEVICE_GONE,
    errno.ENODEV: Drop.DEVICE_GONE,
    errno.ENXIO: Drop.DEVICE_GONE,
}


class Drops(Counter[Drop]):
    """How many packets were dropped for each reason; false while none was."""

    def count(self, drop: Drop, packets: int = 1) -> None:
        """Add packets, perhaps 0, to those that were dropped for this reason."""
        if packets:
            self[drop] += packets

    def __str__(self) -> str:
        """'dropped 12 packets: 10 no_window, 2 unsound_header'."""
        parts = ", ".join(f"{packets} {drop}" for drop, packets in self.most_common())
        return f"dropped {self.total()} packet{'s' * (self.total() != 1)}: {parts}"


def drop_of(error: OSError) -> Drop:
    """Why a device does not read or write a packet."""
    return _ERRORS.get(error.errno or 0, Drop.DEVICE_REFUSED)
