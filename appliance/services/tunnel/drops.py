"""Counts the packets that a tunnel drops, by reason.

A packet is what one read or write of the device transfers: a packet of up to 64 KiB that TCP
offload left whole counts once.
"""

import errno
from collections import Counter
from enum import StrEnum
from typing import Final


class Drop(StrEnum):
    """Why a packet is dropped; the values are those of the status, the metrics and the log."""

    NO_WINDOW = "no_window"  # the channel's window is full
    TOO_LARGE = "too_large"  # larger than the peer's largest message
    TOO_SHORT = "too_short"  # it contains no IP packet
    STALE_OFFLOAD = "stale_offload"  # a packet with offloads, for a peer that takes none
    UNSOUND_HEADER = "unsound_header"  # the peer's virtio header does not fit its packet
    DEVICE_DOWN = "device_down"  # the tunnel device is not up
    DEVICE_FULL = "device_full"  # the kernel has no room for it
    DEVICE_REFUSED = "device_refused"  # the kernel finds the packet invalid
    DEVICE_GONE = "device_gone"  # the tunnel device was deleted


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
    """The number of packets dropped for each reason; false while it is zero for all."""

    def count(self, drop: Drop, packets: int = 1) -> None:
        """Adds to the packets that were dropped for this reason; ``packets`` may be 0."""
        if packets:
            self[drop] += packets

    def __str__(self) -> str:
        """Returns a line such as 'dropped 12 packets: 10 no_window, 2 unsound_header'."""
        parts = ", ".join(f"{packets} {drop}" for drop, packets in self.most_common())
        return f"dropped {self.total()} packet{'s' * (self.total() != 1)}: {parts}"


def drop_of(error: OSError) -> Drop:
    """Returns the reason for which a device failed to read or write a packet."""
    return _ERRORS.get(error.errno or 0, Drop.DEVICE_REFUSED)
