"""-w, Tunnel and TunnelDevice: a VPN tunnel of one call of the client."""

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
    """Owns the device, which ends with us."""

    def __init__(self, options: HostOptions) -> None:
        """Open the device; raises UsageError."""
        self._mode = MODES[options.tunnel]
        local, self._remote_unit = options.tunnel_device
        self._device, self.name = open_device(self._mode, local)
        _log.info("tunnel device %s", self.name)

    def start(self, driver: Driver, refused: Callable[[], None]) -> None:
        """Ask for the channel; ``refused`` is called if the server never gives one."""

        def opened(_: HandedOut | None) -> None:
            """The addresses are those that somebody typed."""

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
        """Remove the device."""
        os.close(self._device)
