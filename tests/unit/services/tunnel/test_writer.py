"""Coalescing is checked against a plain segmenter: what is joined comes apart as it was."""

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.services.tunnel.virtio_header import PLAIN, VNET_HEADER
from appliance.services.tunnel.writer import Writer

SOURCE4, TARGET4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
SOURCE6, TARGET6 = b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"
ETHERNET = bytes(range(12))


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(
    payload: bytes,
    sequence: int,
    *,
    version: int = 4,
    flags: int = 0x10,
    options: bytes = b"",
    identification: int = 0,
    port: int = 5001,
    ethernet: bool = False,
) -> bytes:
    """One TCP packet, with right checksums."""
    offset = (5 + len(options) // 4) << 4
    tcp = struct.pack(
        ">HHIIBBHHH", 40000, port, sequence & 0xFFFFFFFF, 77, offset, flags, 500, 0, 0
    )
    tcp += options + payload
    if version == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), identification, 0x4000, 64, 6, 0)
        ip += SOURCE4 + TARGET4
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        pseudo = SOURCE4 + TARGET4 + struct.pack(">HH", 6, len(tcp))
    else:
        ip = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + SOURCE6 + TARGET6
        pseudo = SOURCE6 + TARGET6 + struct.pack(">II", len(tcp), 6)
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
    link = ETHERNET + (b"\x08\x00" if version == 4 else b"\x86\xdd") if ethernet else b""
    return link + ip + tcp


class Device:
    """Takes what a tun device would be given, a datagram a packet."""

    def __init__(self, ethernet: bool = False) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, self.theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            sock.setblocking(False)
        self.ours = ours
        self.ethernet = ethernet
        self.lost: list[tuple[int | None, int]] = []
        self.writer = Writer(
            ours.fileno(), ethernet, lambda error, packets: self.lost.append((error.errno, packets))
        )

    def write(self, packets: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Virtio header and packet of everything that was written for ``packets``."""
        written = []
        for packet in packets:
            self.writer.add(memoryview(packet))
            written += self._read()
        self.writer.flush()
        return written + self._read()

    def _read(self) -> list[tuple[bytes, bytes]]:
        written: list[tuple[bytes, bytes]] = []
        while True:
            try:
                data = self.theirs.recv(1 << 17)
            except BlockingIOError:
                return written
            written.append((data[: len(PLAIN)], data[len(PLAIN) :]))

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=[False, True], ids=["tun", "tap"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    made = Device(request.param)
    yield made
    made.close()


def taken_apart(vnet: bytes, packet: bytes, ethernet: bool) -> list[bytes]:
    """What the kernel makes of a super-packet; a plain packet is itself."""
    if vnet == PLAIN:
        return [packet]
    flags, kind, header_length, size, start, offset = VNET_HEADER.unpack(vnet)
    assert (flags, offset) == (1, 16)
    base = 14 if ethernet else 0
    version = packet[base] >> 4
    assert kind == {4: 1, 6: 4}[version]
    assert start == base + (20 if version == 4 else 40)
    if version == 4:
        assert struct.unpack_from(">H", packet, base + 2)[0] == len(packet) - base
        assert checksum(packet[base : base + 20]) == 0
        addresses = packet[base + 12 : base + 20]
        pseudo = addresses + struct.pack(">HH", 6, len(packet) - start)
    else:
        assert struct.unpack_from(">H", packet, base + 4)[0] == len(packet) - start
        pseudo = packet[base + 8 : base + 40] + struct.pack(">II", len(packet) - start, 6)
    partial = struct.unpack_from(">H", packet, start + 16)[0]
    assert partial % 65535 == (~checksum(pseudo) & 0xFFFF) % 65535
    sequence = struct.unpack_from(">I", packet, start + 4)[0]
    payload = packet[header_length:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    apart = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        pushed = packet[start + 13] & 0x08 if last else 0
        apart.append(
            segment(
                piece,
                sequence + number * size,
                version=version,
                flags=0x10 | pushed,
                options=packet[start + 20 : header_length],
                ethernet=ethernet,
            )
        )
    return apart


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [b"", b"\1\1\x08\x0a" + bytes(range(8))])
@pytest.mark.parametrize("size", [1000, 1001, 1448])
def test_a_run_is_one_packet_and_comes_apart_as_it_was(
    device: Device, version: int, options: bytes, size: int
) -> None:
    def make(sequence: int, size: int, flags: int = 0x10) -> bytes:
        return segment(
            os.urandom(size),
            sequence,
            version=version,
            options=options,
            flags=flags,
            ethernet=device.ethernet,
        )

    start = 0xFFFFFFFF - 3 * size  # the sequence number wraps within the run
    packets = [make(start + number * size, size) for number in range(10)]
    packets.append(make(start + 10 * size, 300, 0x18))
    written = device.write(packets)
    assert len(written) == 1
    assert taken_apart(*written[0], device.ethernet) == packets


def test_a_run_never_grows_beyond_what_ip_can_say(device: Device) -> None:
    packets = [
        segment(os.urandom(1400), number * 1400, ethernet=device.ethernet) for number in range(100)
    ]
    written = device.write(packets)
    assert len(written) == 3
    assert [p for vnet, super_packet in written
            for p in taken_apart(vnet, super_packet, device.ethernet)] == packets  # fmt: skip


def changed(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes((value,)) + packet[at + 1 :]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(segment(os.urandom(1400), 2801), id="a gap"),
        pytest.param(segment(os.urandom(1400), 2800, port=5002), id="another flow"),
        pytest.param(segment(os.urandom(1400), 2800, flags=0x11), id="FIN"),
        pytest.param(segment(os.urandom(1400), 2800, flags=0x30), id="URG"),
        pytest.param(segment(os.urandom(1401), 2800), id="longer"),
        pytest.param(segment(b"", 2800), id="an acknowledgement"),
        pytest.param(segment(os.urandom(1400), 2800, options=b"\1\1\1\0"), id="options"),
        pytest.param(changed(segment(bytes(1400), 2800), 900, 1), id="a wrong checksum"),
        pytest.param(changed(segment(bytes(1400), 2800), 1, 0xFF), id="another class"),
        pytest.param(segment(os.urandom(1400), 2800) + b"x", id="trailing bytes"),
        pytest.param(segment(os.urandom(1400), 2800)[:-1], id="cut off"),
    ],
)
def test_what_does_not_fit_a_run_is_written_as_it_came(odd: bytes) -> None:
    device = Device()
    try:
        run = [segment(os.urandom(1400), number * 1400) for number in range(2)]
        written = device.write([*run, odd])
    finally:
        device.close()
    assert taken_apart(*written[0], False) == run
    assert written[1:] == [(PLAIN, odd)]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(changed(segment(os.urandom(1400), 0), 6, 0x20), id="a first fragment"),
        pytest.param(changed(segment(os.urandom(1400), 0), 7, 0x10), id="a later fragment"),
        pytest.param(changed(segment(os.urandom(1400), 0), 9, 17), id="UDP"),
        pytest.param(changed(segment(os.urandom(1400), 0), 0, 0x46), id="IP options"),
        pytest.param(changed(segment(os.urandom(1400), 0, version=6), 6, 0), id="hop by hop"),
        pytest.param(changed(segment(os.urandom(1400), 0), 32, 0x10), id="a short TCP header"),
        pytest.param(changed(segment(os.urandom(1400), 0), 900, 1), id="a wrong checksum"),
        pytest.param(b"\x45", id="one byte"),
        pytest.param(bytes(1400), id="zeros"),
    ],
)
def test_two_of_what_is_no_plain_tcp_stay_two(packet: bytes) -> None:
    device = Device()
    try:
        assert device.write([packet, packet]) == [(PLAIN, packet)] * 2
    finally:
        device.close()


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=400),
            st.builds(
                segment,
                st.binary(min_size=0, max_size=600),
                st.integers(0, 3).map(lambda number: number * 300),
                version=st.sampled_from((4, 6)),
                flags=st.sampled_from((0x10, 0x18, 0x02)),
            ),
        ),
        max_size=12,
    )
)
def test_whatever_comes_nothing_is_lost_or_changed(packets: list[bytes]) -> None:
    device = Device()
    try:
        written = device.write(packets)
    finally:
        device.close()
    assert [p for vnet, packet in written for p in taken_apart(vnet, packet, False)] == packets


def test_a_run_that_is_refused_is_lost_as_a_whole_and_nothing_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device()
    run = [segment(os.urandom(1400), number * 1400) for number in range(3)]
    other = segment(os.urandom(100), 0, port=5002)
    try:
        for packet in run:
            device.writer.add(memoryview(packet))

        def refuse(*_: object) -> int:
            monkeypatch.undo()  # from then on it writes
            raise OSError(errno.ENOBUFS, "no room")

        monkeypatch.setattr(os, "writev", refuse)
        assert device.write([other]) == [(PLAIN, other)]
    finally:
        device.close()
    assert device.lost == [(errno.ENOBUFS, 3)]
