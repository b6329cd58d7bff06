"""-w, Tunnel and TunnelDevice: a VPN tunnel that lasts as long as the client runs."""

import logging
import os
from collections.abc import Callable

from ..aio.driver import Driver
from ..log import harmless
from ..services.tunnel.client import TunnelClient
from ..services.tunnel.device import open_device
from ..services.tunnel.drops import Drops
from ..wire.tun import MODES, HandedOut
from . import prompts
from .host_options import HostOptions

_log = logging.getLogger(__name__)


class ClientTunnel:
    """Owns the tunnel device, which ends with this process."""

    def __init__(self, options: HostOptions) -> None:
        """Opens the device; raises UsageError."""
        self._mode = MODES[options.tunnel]
        local, self._remote_unit = options.tunnel_device
        self._device, self.name = open_device(self._mode, local)
        _log.info("tunnel device %s", self.name)

    def start(self, driver: Driver, refused: Callable[[], None]) -> None:
        """Asks for the channel; ``refused`` is called if the server refuses it."""

        def opened(_: HandedOut | None) -> None:
            """Ignores addresses that the server hands out: the user sets them by hand."""

        def failed(why: str) -> None:
            prompts.tell(f"culvert: the server refuses the tunnel: {harmless(why)}")
            refused()

        drops = Drops()

        def ended() -> None:
            if drops:
                _log.info("tunnel device %s: %s", self.name, drops)
            drops.clear()

        TunnelClient(
            self._device, self._mode, self._remote_unit, driver, drops, opened, failed, ended
        ).start()

    def close(self) -> None:
        """Removes the device."""
        os.close(self._device)
