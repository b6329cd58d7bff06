"""The stream over a channel: what is written leaves, also while nothing comes in."""

from collections.abc import Iterator
from typing import Any

import pytest

from appliance.aio.loop import Loop
from appliance.files.sftp_streams import ChannelStream

ROOM = 100  # bytes that the transport holds until they have left


class Peer:
    """A driver, its connection and a channel: sends ROOM bytes, then waits for a flush."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.connection = self.transport = self
        self.send_packet = 1000
        self.sent = b""
        self._held = 0
        self._is_blocked = False
        self.stream: ChannelStream

    def open_channel(self, *_: Any) -> "Peer":
        return self

    def request(self, *_: Any) -> None:
        pass

    def sendable(self) -> int:
        self._is_blocked = self._held >= ROOM
        return 0 if self._is_blocked else ROOM - self._held

    def send(self, data: memoryview) -> None:
        self.sent += data
        self._held += len(data)

    def flush(self) -> None:
        self._held = 0

    def wake(self) -> None:
        if self._is_blocked:
            self._is_blocked = False
            self.stream.resume()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_more_than_the_transport_holds_leaves_without_a_packet_from_the_peer(loop: Loop) -> None:
    peer = Peer(loop)
    driver: Any = peer
    peer.stream = ChannelStream(driver, print)
    peer.stream.opened(b"")
    data = bytes(range(256)) * 4
    peer.stream.write(data)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert peer.sent == data
    assert peer.stream.unsent == 0
