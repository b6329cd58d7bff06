"""The client's end of a VPN tunnel: opens a channel, and another one when the peer has closed it.

The device belongs to the caller and stays: the peer may close a channel at any time, and the
device must keep its addresses and routes.
"""

from collections.abc import Callable
from typing import Final

from ...aio.driver import Driver
from ...ssh.order import Phase
from ...wire.tun import (
    CHANNEL_TYPE,
    OFFLOAD_CHANNEL_TYPE,
    OFFLOAD_MESSAGE,
    OFFLOAD_WINDOW,
    HandedOut,
    TunnelOpen,
)
from .channel import OffloadTunnel, OpenSSHTunnel, TunnelChannel
from .drops import Drops

# Our own choices
FIRST_RETRY: Final = 0.5  # seconds after the peer ended the channel
LAST_RETRY: Final = 30.0


class TunnelClient:
    """Carries the packets of one device, over one channel after another of one connection.

    ``opened`` gets what a Culvert server hands out, or None from other servers; it is called for
    the first channel only. ``refused`` gets the server's reason if it refuses that channel.
    ``ended`` is called after each channel. ``drops`` counts the dropped packets of all channels.
    """

    def __init__(
        self,
        device: int,
        mode: int,
        remote_unit: int,
        driver: Driver,
        drops: Drops,
        opened: Callable[[HandedOut | None], None],
        refused: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self._device = device
        self._wanted = TunnelOpen(mode, remote_unit)
        self._driver = driver
        self._drops = drops
        self._connection = driver.connection
        self._opened = opened
        self._refused = refused
        self._ended = ended
        self._retry = FIRST_RETRY
        self._was_open = False

    def start(self) -> None:
        """Opens a channel, unless the connection is closed."""
        connection, wanted = self._connection, self._wanted
        if connection.transport.phase is Phase.CLOSED:
            return
        ends = self._device, wanted.mode, self._driver, self._drops, self.ended
        if connection.transport.peer_speaks(OFFLOAD_CHANNEL_TYPE):
            handler: _Asked = _OffloadTunnel(*ends)
            size: tuple[int, ...] = (OFFLOAD_WINDOW, OFFLOAD_MESSAGE)
            channel_type = OFFLOAD_CHANNEL_TYPE
        else:
            handler = _OpenSSHTunnel(*ends)
            size = ()
            channel_type = CHANNEL_TYPE
        handler.client = self
        handler.channel = connection.open_channel(channel_type, wanted.encode(), handler, *size)
        self._driver.flush()

    def confirmed(self, handed_out: HandedOut | None) -> None:
        """Reports the first channel that the server confirms."""
        self._retry = FIRST_RETRY
        if not self._was_open:
            self._was_open = True
            self._opened(handed_out)

    def failed(self, description: str) -> None:
        """Reports why the server refuses the channel, if none was open before."""
        if not self._was_open:
            self._refused(description)

    def ended(self) -> None:
        """Opens another channel after a delay, while the connection is open."""
        self._ended()
        if self._connection.transport.phase is not Phase.CLOSED and self._was_open:
            self._driver.loop.call_later(self._retry, self.start)
            self._retry = min(self._retry * 2, LAST_RETRY)


class _Asked(TunnelChannel):
    """A tunnel channel that the client opens."""

    client: TunnelClient

    def opened(self, type_data: bytes) -> None:
        self.client.confirmed(HandedOut.decode(type_data) if self.offload else None)
        self.start(self.channel)

    def open_failed(self, reason_code: int, description: str) -> None:
        self.client.failed(description)


class _OpenSSHTunnel(_Asked, OpenSSHTunnel):
    pass


class _OffloadTunnel(_Asked, OffloadTunnel):
    pass
