"""The client's end of a VPN tunnel: -w, Tunnel and TunnelDevice.

The device stays while the channel is opened again: the peer may end a channel at any
time, and the addresses and routes of the device must not go with it.
"""

import logging
import os
from collections.abc import Callable
from typing import Final

from ..aio.driver import Driver
from ..log import harmless
from ..services.tunnel.channel import TunnelChannel
from ..services.tunnel.device import open_device
from ..ssh.order import Phase
from ..wire.tun import CHANNEL_TYPE, ETHERNET, POINT_TO_POINT, TunnelOpen
from . import prompts
from .ssh_config import HostOptions

_log = logging.getLogger(__name__)

# Our own choices
FIRST_RETRY: Final = 0.5  # seconds after the peer ended the channel
LAST_RETRY: Final = 30.0


class ClientTunnel:
    """Owns the device; one channel after another carries its packets."""

    def __init__(self, options: HostOptions) -> None:
        """Open the device; raises UsageError."""
        self._mode = ETHERNET if options.tunnel == "ethernet" else POINT_TO_POINT
        local, self._remote_unit = options.tunnel_device
        self._device, self.name = open_device(self._mode, local)
        self._retry = FIRST_RETRY
        self._was_open = False
        _log.info("tunnel device %s", self.name)

    def start(
        self,
        driver: Driver,
        refused: Callable[[], None],
    ) -> None:
        """Ask for the channel; ``refused`` is called if the server never gives one."""
        self._driver = driver
        self._connection = driver.connection
        self._refused = refused
        self._open()

    def _open(self) -> None:
        if self._connection.phase is Phase.CLOSED:
            return
        handler = _Channel(self, self._device, self._mode, self._driver)
        wanted = TunnelOpen(self._mode, self._remote_unit)
        handler.channel = self._connection.open_channel(CHANNEL_TYPE, wanted.encode(), handler)
        self._driver.flush()

    def opened(self) -> None:
        """The server has its device."""
        self._was_open = True
        self._retry = FIRST_RETRY

    def failed(self, description: str) -> None:
        """The server refused the channel."""
        if not self._was_open:
            prompts.tell(f"culvert: the server refuses the tunnel: {harmless(description)}")
            self._refused()

    def ended(self) -> None:
        """The channel is gone; have another one while the connection lives."""
        if self._connection.phase is not Phase.CLOSED and self._was_open:
            self._driver.loop.call_later(self._retry, self._open)
            self._retry = min(self._retry * 2, LAST_RETRY)

    def close(self) -> None:
        """Remove the device."""
        os.close(self._device)


class _Channel(TunnelChannel):
    """A tunnel channel that we open ourselves."""

    def __init__(self, tunnel: ClientTunnel, device: int, mode: int, driver: Driver) -> None:
        super().__init__(device, mode, driver, tunnel.ended)
        self._tunnel = tunnel

    def opened(self, type_data: bytes) -> None:
        self._tunnel.opened()
        self.start(self.channel)

    def open_failed(self, reason_code: int, description: str) -> None:
        self._tunnel.failed(description)
