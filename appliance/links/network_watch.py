"""Notices changes of the machine's network: of a device, an address or a route (rtnetlink(7)).

It does not matter what exactly changed: any change is a reason to try again now.
"""

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from ..aio.loop import Loop

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, _ROUTE, RTMGRP_IPV6_IFADDR, _ROUTE
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

# Our own choice
CALM: Final = 1.0  # seconds: changes come in bursts, and one call per burst is enough


class NetworkWatch:
    """Calls ``changed`` once for each burst of changes."""

    def __init__(self, loop: Loop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._waiting = False
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.bind((0, _GROUPS))
        self._sock.setblocking(False)
        loop.watch_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        with contextlib.suppress(OSError):  # ENOBUFS, a full socket, means changes as well
            while True:
                self._sock.recv(65536)
        if not self._waiting:
            self._waiting = True
            self._loop.call_later(CALM, self._calm)

    def _calm(self) -> None:
        self._waiting = False
        self._changed()

    def close(self) -> None:
        """Stops watching."""
        self._loop.watch_reader(self._sock.fileno(), None)
        self._sock.close()
