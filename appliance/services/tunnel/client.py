"""The client's end of a VPN tunnel: asks for a channel, and again when the peer ended it.

The device belongs to the caller and stays: the peer may end a channel at any time, and the
addresses and routes of the device must not go with it.
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
    """One channel after another carries the packets of one device, while a connection lives.

    ``opened`` gets what a Culvert server hands out, or None from any other; ``refused`` gets
    the server's words if it never gave a channel; ``ended`` is called after each channel.
    ``drops`` counts what all of them drop.
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
        """Ask for the channel."""
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
        """The server has its device."""
        self._retry = FIRST_RETRY
        if not self._was_open:
            self._was_open = True
            self._opened(handed_out)

    def failed(self, description: str) -> None:
        """The server refused the channel."""
        if not self._was_open:
            self._refused(description)

    def ended(self) -> None:
        """The channel is gone; have another one while the connection lives."""
        self._ended()
        if self._connection.transport.phase is not Phase.CLOSED and self._was_open:
            self._driver.loop.call_later(self._retry, self.start)
            self._retry = min(self._retry * 2, LAST_RETRY)


class _Asked(TunnelChannel):
    """A tunnel channel that we open ourselves."""

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
