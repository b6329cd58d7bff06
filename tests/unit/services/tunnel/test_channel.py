"""Packets between a device and a channel: what is dropped, counted, and what ends a tunnel."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

import pytest

from appliance.errors import MalformedMessage, UsageError
from appliance.services.tunnel import device as device_module
from appliance.services.tunnel.channel import (
    BATCH,
    HEADER,
    OffloadTunnel,
    OpenSSHTunnel,
    TunnelChannel,
)
from appliance.services.tunnel.device import UNIT_LIMIT, is_attached, name_of, open_device
from appliance.services.tunnel.drops import Drop, Drops
from appliance.ssh.channels import Flow
from appliance.ssh.transport import OPENSSH_LIKE
from appliance.wire.tun import ANY_UNIT, ETHERNET, OFFLOAD_MESSAGE, POINT_TO_POINT
from tests.netns import Namespace
from tests.protocol.harness import Limits, Pair, Recording
from tests.unit.services.harness import FakeDriver
from tests.unit.services.tunnel.test_writer import segment

V4 = b"\x45" + bytes(39)
V6 = b"\x60" + bytes(59)


class Tunnel:
    """A tunnel at the server's end, with a socket pair in place of its device."""

    def __init__(
        self,
        mode: int = POINT_TO_POINT,
        software: bytes = b"OpenSSH_9.2",
        kind: type[TunnelChannel] = OpenSSHTunnel,
        **settings: Unpack[Limits],
    ) -> None:
        self.pair = Pair(**settings).log_in()
        self.client, accepted = self.pair.open("tun@openssh.com")
        version = self.pair.server.transport.peer_version
        self.pair.server.transport.peer_version = b"SSH-2.0-" + software
        self.driver = FakeDriver(self.pair, self.pair.server)
        self.far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setblocking(False)
        near.setblocking(False)
        self.near = near.detach()
        self.ended = 0
        self.drops = Drops()
        driver: Any = self.driver
        self.tunnel = kind(self.near, mode, driver, self.drops, self._end)
        self.pair.server.transport.peer_version = version  # which new keys depend on
        accepted.handler = self.tunnel
        if kind is OffloadTunnel:
            accepted.send_packet = OFFLOAD_MESSAGE
        self.tunnel.start(accepted)
        self.accepted = accepted

    def _end(self) -> None:
        self.ended += 1
        os.close(self.near)

    def arrive(self, packet: bytes, header: bytes = bytes(HEADER)) -> None:
        """The kernel has a packet for us, behind a header that asks for nothing."""
        self.far.send(header + packet)

    @property
    def received(self) -> list[bytes]:
        """What reached the other end of the SSH connection."""
        handler = self.client.handler
        assert isinstance(handler, Recording)
        return [e[1] for e in handler.events if e[0] == "data"]

    def at_device(self) -> list[bytes]:
        """What was written to the device."""
        packets = []
        with contextlib.suppress(BlockingIOError):
            while data := self.far.recv(70_000):
                packets.append(data[HEADER:])
        return packets

    def serve(self, count: int = 1) -> None:
        for _ in range(count):
            self.driver.loop.call_later(0.0, lambda: None)
            self.driver.loop._turn()
            self.pair.pump()

    def close(self) -> None:
        self.pair.server.transport.close()
        self.far.close()
        self.driver.loop.close()
        assert self.ended == 1


@pytest.fixture
def make() -> Iterator[Callable[..., Tunnel]]:
    made: list[Tunnel] = []

    def new(*values: object, **settings: int) -> Tunnel:
        made.append(Tunnel(*values, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for each in made:
        each.close()


Make = Callable[..., Tunnel]


def test_an_ip_packet_has_its_family_in_front(make: Make) -> None:
    it = make()
    for packet in (V4, V6):
        it.arrive(packet)
    it.serve(3)
    assert it.received == [b"\0\0\0\2" + V4, b"\0\0\0\x18" + V6]


def test_a_frame_has_nothing_in_front(make: Make) -> None:
    it = make(ETHERNET)
    frames = [b"x" * 14, b"y" * 1514, b"z"]
    for frame in frames:
        it.arrive(frame)
    it.serve(4)
    assert it.received == frames
    it.client.send(b"frame")
    it.pair.pump()
    assert it.at_device() == [b"frame"]


@pytest.mark.parametrize("size", [1, 4, 19, 20])
def test_packets_of_20_bytes_or_fewer_are_dropped(make: Make, size: int) -> None:
    it = make()
    it.arrive(V4[:size])
    it.arrive(V4[:21])
    it.serve(3)
    assert it.received == [b"\0\0\0\2" + V4[:21]]
    assert it.drops == {Drop.TOO_SHORT: 1}


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\2", b"\0\0\0"])
def test_a_message_without_a_packet_is_dropped_and_costs_no_window(make: Make, data: bytes) -> None:
    it = make()
    it.client.send(data)
    it.client.send(b"\0\0\0\2" + V4)
    it.pair.pump()
    assert it.at_device() == [V4]
    assert it.drops == {Drop.TOO_SHORT: 1}
    assert it.accepted.receive_window + it.accepted._credit == it.accepted.window
    assert it.pair.server.transport.error is None


def test_towards_openssh_each_message_costs_4_bytes_more(make: Make) -> None:
    others = (b"Culvert_1", OPENSSH_LIKE.encode() + b"Culvert_1", b"dropbear")
    for software, overhead in ((b"OpenSSH_9.2p1", 4), *((other, 0) for other in others)):
        it = make(POINT_TO_POINT, software)
        before = it.accepted.send_window
        it.arrive(V4)
        it.serve(2)
        assert before - it.accepted.send_window == 4 + len(V4) + overhead


def test_what_does_not_fit_the_window_is_dropped_and_the_tunnel_lives(make: Make) -> None:
    it = make(window=40_000)
    handler = it.client.handler
    assert isinstance(handler, Recording)
    handler.consumes = False
    packet = V4[:1] + bytes(1399)
    for _ in range(200):
        it.arrive(packet)
        it.serve()
    assert len(it.received) == 40_000 // 1408
    assert it.accepted.send_window >= 0
    assert list(it.drops) == [Drop.NO_WINDOW]
    it.client.consume(it.client.window)
    handler.consumes = True
    for _ in range(300):  # those of before are still in the device
        it.serve()
    it.arrive(V4)
    it.serve(2)
    assert it.received[-1] == b"\0\0\0\2" + V4
    assert it.pair.server.transport.error is None and it.pair.client.transport.error is None


def test_a_device_is_not_read_during_a_key_exchange(make: Make) -> None:
    it = make()
    it.pair.server.transport.rekey()
    it.arrive(V4)
    it.driver.loop.call_later(0.0, lambda: None)
    it.driver.loop._turn()
    assert it.received == []
    assert not it.pair.server.transport._held
    it.pair.pump()
    it.serve(2)
    assert it.received == [b"\0\0\0\2" + V4]


def test_a_packet_that_the_kernel_refuses_is_lost_and_the_tunnel_lives(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = make()
    write = os.writev
    for number in (errno.EINVAL, errno.EIO, errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM):

        def refuse(fd: int, data: bytes, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "writev", refuse)
        it.client.send(b"\0\0\0\2" + V4)
        it.pair.pump()
        monkeypatch.setattr(os, "writev", write)
    it.client.send(b"\0\0\0\2" + V4)
    it.pair.pump()
    assert it.at_device() == [V4]
    assert it.ended == 0
    assert it.drops == {Drop.DEVICE_REFUSED: 1, Drop.DEVICE_DOWN: 1, Drop.DEVICE_FULL: 3}


@pytest.mark.parametrize("number", [errno.EBADFD, errno.ENODEV, errno.ENXIO])
@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_device_that_is_gone_closes_the_channel(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int, direction: str
) -> None:
    it = make()

    def gone(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "writev" if direction == "in" else "readv", gone)
        if direction == "in":
            it.client.send(b"\0\0\0\2" + V4)
            it.pair.pump()
        else:
            it.arrive(V4)
            it.serve(2)
    it.pair.pump()
    assert it.drops == ({Drop.DEVICE_GONE: 1} if direction == "in" else {})
    assert it.ended == 1
    assert it.client.inbound is Flow.CLOSED
    assert it.pair.server.transport.error is None


def test_the_peers_end_of_file_ends_the_tunnel(make: Make) -> None:
    it = make()
    it.client.eof()
    it.pair.pump()
    assert it.ended == 1
    assert it.client.inbound is Flow.CLOSED


@pytest.mark.parametrize("kind", [OpenSSHTunnel, OffloadTunnel])
def test_what_comes_right_before_the_end_is_written(make: Make, kind: type[TunnelChannel]) -> None:
    """A TCP packet waits for the next of its flow, but not beyond the channel's end."""
    it = make(kind=kind)
    packet = segment(bytes(1400), 0)
    it.client.send(
        framed(bytes(HEADER) + packet) if kind is OffloadTunnel else b"\0\0\0\2" + packet
    )
    it.client.close()
    it.pair.pump()
    assert it.ended == 1
    assert it.at_device() == [packet]


# Devices


def test_a_device_is_named_after_its_mode_and_unit() -> None:
    assert name_of(POINT_TO_POINT, 3) == "tun3"
    assert name_of(ETHERNET, 0) == "tap0"
    assert name_of(ETHERNET, ANY_UNIT) == "tap%d"


def test_a_unit_that_no_name_can_hold_is_refused() -> None:
    for unit in (-1, UNIT_LIMIT + 1, 0xFFFFFFFF):
        with pytest.raises(UsageError, match="take 0 to"):
            open_device(POINT_TO_POINT, unit)


def test_a_missing_device_file_and_a_forbidden_one_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "PATH", str(tmp_path / "tun"))
    with pytest.raises(UsageError, match="modprobe tun"):
        open_device(POINT_TO_POINT, 0)

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(UsageError, match="ip tuntap add tun0 user"):
        open_device(POINT_TO_POINT, 0)


@pytest.mark.netns
def test_a_real_device_carries_packets_and_says_when_it_is_gone_or_taken() -> None:
    space = Namespace("tunnel test")
    try:
        fd, name = space.inside(lambda: open_device(POINT_TO_POINT, 5))
        assert name == "tun5"
        with pytest.raises(UsageError, match="in use by another process"):
            space.inside(lambda: open_device(POINT_TO_POINT, 5))
        other, any_name = space.inside(lambda: open_device(ETHERNET, ANY_UNIT))
        assert any_name == "tap0"
        os.close(other)
        with pytest.raises(BlockingIOError):
            os.read(fd, 100)
        assert is_attached(fd)
        space.ip("link", "del", "tun5")
        assert not is_attached(fd)
        with pytest.raises(OSError) as caught:
            os.read(fd, 100)
        assert caught.value.errno in (errno.EBADFD, errno.ENODEV, errno.ENXIO)
        os.close(fd)
        assert space.devices() == {"lo"}
    finally:
        space.close()


# -- tun-offload ---------------------------------------------------------------------------

SUPER = struct.pack("<BBHHHH", 1, 1, 40, 1460, 20, 16)  # TCP over IPv4, to be cut


def framed(*packets: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(packet)) + packet for packet in packets)


def test_a_packet_of_60_kb_travels_whole_with_its_header(make: Make) -> None:
    it = make(kind=OffloadTunnel)
    large = SUPER + V4 + bytes(60_000)
    it.arrive(large[HEADER:], SUPER)
    it.serve()
    assert it.received == [framed(large)]


def test_a_lone_packet_leaves_at_once_and_many_leave_together(make: Make) -> None:
    it = make(kind=OffloadTunnel)
    for _ in range(2 * BATCH):
        it.arrive(V4)
    it.serve(4)
    one = framed(bytes(HEADER) + V4)
    assert it.received[0] == one
    assert b"".join(it.received) == one * 2 * BATCH
    assert len(it.received) <= 4


def test_a_message_is_taken_apart_into_its_packets(make: Make) -> None:
    it = make(kind=OffloadTunnel)
    large = bytearray(V4 + bytes(3000))
    large[32] = 5 << 4  # the length of the TCP header
    packets = [SUPER + large, bytes(HEADER) + V6, bytes(HEADER) + V4]
    it.client.send(framed(*packets))
    it.pair.pump()
    assert it.at_device() == [packet[HEADER:] for packet in packets]


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        b"\0\0\0",
        framed(b""),
        framed(bytes(HEADER - 1)),
        framed(bytes(HEADER) + V4)[:-1],
        framed(bytes(HEADER) + V4) + b"\0",
        b"\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_a_message_that_is_not_whole_packets_ends_the_connection(
    make: Make, message: bytes
) -> None:
    it = make(kind=OffloadTunnel)
    it.client.send(message)
    it.pair.pump()
    assert isinstance(it.pair.server.transport.error, MalformedMessage)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<BBHHHH", 2, 0, 0, 0, 0, 0),  # 'the checksum is right': nobody checked
        struct.pack("<BBHHHH", 1, 3, 40, 1460, 20, 16),  # UDP fragments
        struct.pack("<BBHHHH", 1, 5, 40, 1460, 20, 16),  # UDP segments
        struct.pack("<BBHHHH", 1, 1, 40, 0, 20, 16),  # segments of nothing
        struct.pack("<BBHHHH", 0, 1, 40, 1460, 20, 16),  # segments without a checksum
        struct.pack("<BBHHHH", 1, 0, 0, 0, 39, 0),  # a checksum behind the end
        struct.pack("<BBHHHH", 1, 0, 0, 0, 0xFFFF, 0xFFFF),
        struct.pack("<BBHHHH", 1, 1, 41, 1460, 20, 16),  # headers longer than the packet
    ],
)
def test_a_header_that_the_kernel_should_not_see_loses_its_packet_alone(
    make: Make, header: bytes
) -> None:
    it = make(kind=OffloadTunnel)
    it.client.send(framed(header + V4, bytes(HEADER) + V6))
    it.pair.pump()
    assert it.at_device() == [V6]
    assert it.drops == {Drop.UNSOUND_HEADER: 1}


def test_a_super_packet_that_cannot_be_cut_is_lost_alone(make: Make) -> None:
    """TCP over IPv6 behind an extension header, and a TCP header of no length."""
    it = make(kind=OffloadTunnel)
    malformed = bytearray(struct.pack("<BBHHHH", 1, 4, 68, 1400, 48, 16) + bytes(68))
    malformed[HEADER] = 0x60
    it.client.send(framed(bytes(malformed), bytes(HEADER) + V6))
    it.pair.pump()
    assert it.pair.server.transport.error is None
    assert it.at_device() == [V6]


def test_a_super_packet_left_over_from_before_never_reaches_openssh(make: Make) -> None:
    it = make()
    it.arrive(V4 + bytes(3000), SUPER)
    it.arrive(V4)
    it.serve(2)
    assert it.received == [b"\0\0\0\2" + V4]
    assert it.drops == {Drop.STALE_OFFLOAD: 1}


# -- what is dropped is counted ------------------------------------------------------------


@pytest.mark.parametrize("kind", [OpenSSHTunnel, OffloadTunnel])
def test_each_packet_that_finds_no_window_is_counted(make: Make, kind: type[TunnelChannel]) -> None:
    it = make(kind=kind)
    it.accepted.send_window = 10
    for _ in range(BATCH + 5):
        it.arrive(V4)
    it.serve(3)
    assert it.received == []
    assert it.drops == {Drop.NO_WINDOW: BATCH + 5}


@pytest.mark.parametrize("kind", [OpenSSHTunnel, OffloadTunnel])
def test_a_packet_that_is_too_large_for_the_peer_is_counted_alone(
    make: Make, kind: type[TunnelChannel]
) -> None:
    it = make(kind=kind)
    it.accepted.send_packet = 100
    for packet in (V4, V4 + bytes(200), V6):
        it.arrive(packet)
    it.tunnel._busy = kind is OpenSSHTunnel  # all three in one batch
    it.serve(4)
    assert it.drops[Drop.TOO_LARGE] == (1 if kind is OpenSSHTunnel else 2)
    assert it.drops[Drop.NO_WINDOW] == 0


def test_a_device_that_goes_while_it_is_read_drops_what_was_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (OpenSSHTunnel, OffloadTunnel):
        it = make(kind=kind)
        it.tunnel._busy = True
        readv, reads = os.readv, iter((1, 2))

        def gone(fd: int, buffers: Any, readv: Any = readv, reads: Any = reads) -> int:
            if next(reads, None) is None:
                raise OSError(errno.EBADFD, "gone")
            return int(readv(fd, buffers))

        for _ in range(3):
            it.arrive(V4)
        with monkeypatch.context() as patched:
            patched.setattr(os, "readv", gone)
            it.serve()
        assert it.received == []
        assert it.drops == {Drop.DEVICE_GONE: 2}


def test_a_device_that_is_gone_is_told_of_once_however_many_packets_are_lost(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it = make(kind=OffloadTunnel)

    def gone(*_: object) -> int:
        raise OSError(errno.EBADFD, "gone")

    monkeypatch.setattr(os, "writev", gone)
    it.client.send(framed(*[bytes(HEADER) + V4] * 3))
    it.pair.pump()
    assert it.drops == {Drop.DEVICE_GONE: 3}
    assert caplog.text.count("the tunnel device is gone") == 1


@pytest.mark.parametrize("kind", [OpenSSHTunnel, OffloadTunnel])
def test_what_the_peer_sends_before_it_learns_that_the_device_is_gone_is_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: type[TunnelChannel]
) -> None:
    it = make(kind=kind)
    message = framed(bytes(HEADER) + V4) if kind is OffloadTunnel else b"\0\0\0\2" + V4

    def gone(*_: object) -> int:
        raise OSError(errno.EBADFD, "gone")

    monkeypatch.setattr(os, "writev", gone)
    for _ in range(3):
        it.client.send(message)
        it.pair.move(it.pair.client, it.pair.server)
    if kind is OffloadTunnel:
        it.client.send(b"\0")  # without its length, and nobody looks any more
        it.client.send(framed(b"") + b"\xff\xff\xff\xff")
    it.pair.pump()
    assert it.pair.server.transport.error is None
    assert it.drops == {Drop.DEVICE_GONE: 3 if kind is OpenSSHTunnel else 5}


def test_drops_are_told_with_the_most_frequent_first() -> None:
    drops = Drops()
    assert not drops
    drops.count(Drop.NO_WINDOW, 0)
    assert not drops
    drops.count(Drop.UNSOUND_HEADER)
    assert str(drops) == "dropped 1 packet: 1 unsound_header"
    drops.count(Drop.NO_WINDOW, 11)
    assert str(drops) == "dropped 12 packets: 11 no_window, 1 unsound_header"
