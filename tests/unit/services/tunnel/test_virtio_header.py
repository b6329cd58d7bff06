"""A peer's virtio header: which one the kernel may see, and super-packets that are cut here."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.services.tunnel.virtio_header import (
    VNET_HEADER,
    has_extension_headers,
    header_is_sound,
    segments,
)

HEADER = VNET_HEADER.size
OPTIONS = bytes([6, 0, 1, 4, 0, 0, 0, 0])  # destination options, then TCP


def super_packet(payload: bytes, size: int, before: bytes = b"") -> bytes:
    """TCP over IPv6 with an extension header, as a device hands it out; ``before``: Ethernet."""
    tcp = struct.pack(">HHIIBBHHH", 5000, 5001, 0xFFFFFF00, 7, 5 << 4, 0x99, 500, 0, 0)
    addresses = bytes(range(32))
    length = len(tcp) + len(payload)
    pseudo = (int.from_bytes(addresses, "big") + 6 + length) % 65535
    tcp = tcp[:16] + struct.pack(">H", pseudo) + tcp[18:]
    ip = struct.pack(">IHBB", 6 << 28, len(OPTIONS) + length, 60, 64) + addresses
    at = len(before) + len(ip) + len(OPTIONS)
    header = VNET_HEADER.pack(1, 4, at + 20, size, at, 16)
    return header + before + ip + OPTIONS + tcp + payload


@pytest.mark.parametrize(
    ("before", "ethernet"),
    [
        (b"", False),
        (bytes(12) + b"\x86\xdd", True),
        (bytes(12) + b"\x81\x00\x00\x07\x86\xdd", True),
    ],
    ids=["tun", "tap", "vlan"],
)
def test_segments_say_together_what_the_super_packet_said(before: bytes, ethernet: bool) -> None:
    payload = bytes(range(256)) * 20
    packet = memoryview(super_packet(payload, 1400, before))
    assert header_is_sound(packet, ethernet)
    assert has_extension_headers(packet, ethernet)
    cut = list(segments(packet, ethernet))
    assert len(cut) == 4
    said = b""
    for number, segment in enumerate(cut):
        flags, kind, _, _, start, offset = VNET_HEADER.unpack_from(segment)
        assert (flags, kind, offset) == (1, 0, 16)
        frame = segment[VNET_HEADER.size :]
        assert frame[: len(before)] == before
        ip, tcp = frame[len(before) : start], frame[start:]
        assert struct.unpack_from(">H", ip, 4)[0] == len(ip) - 40 + len(tcp)
        sequence = struct.unpack_from(">I", tcp, 4)[0]
        assert sequence == (0xFFFFFF00 + 1400 * number) & 0xFFFFFFFF
        last, first = number == 3, number == 0
        assert tcp[13] == 0x10 | (0x09 if last else 0) | (0x80 if first else 0)
        partial = struct.unpack_from(">H", tcp, 16)[0]
        whole = (int.from_bytes(ip[8:40], "big") + 6 + len(tcp)) % 65535
        assert partial % 65535 == whole
        said += tcp[20:]
    assert said == payload


def test_what_has_no_extension_header_goes_as_it_came() -> None:
    plain = bytearray(super_packet(bytes(3000), 1400))
    del plain[VNET_HEADER.size + 40 : VNET_HEADER.size + 48]
    VNET_HEADER.pack_into(plain, 0, 1, 4, 60, 1400, 40, 16)
    assert not has_extension_headers(memoryview(plain), False)


@given(
    st.tuples(
        st.sampled_from([0, 1]), st.sampled_from([0, 1, 4, 0x84]), st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF), st.integers(0, 200), st.sampled_from([6, 16, 0xFFFF]),
    ),
    st.binary(max_size=300),
    st.booleans(),
)  # fmt: skip
def test_whatever_a_peer_sends_is_cut_or_lost(
    header: tuple[int, ...], packet: bytes, ethernet: bool
) -> None:
    whole = memoryview(VNET_HEADER.pack(*header) + packet)
    assert_cut_or_lost(whole, ethernet)


def assert_cut_or_lost(whole: memoryview, ethernet: bool) -> None:
    if header_is_sound(whole, ethernet) and has_extension_headers(whole, ethernet):
        for segment in segments(whole, ethernet):
            assert header_is_sound(memoryview(segment), ethernet)


FRAME = bytes(12) + b"\x86\xdd"


@settings(max_examples=500)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), max_size=4),
    st.integers(1, 3000),
)
def test_a_super_packet_with_any_field_wrong_is_cut_or_lost(
    ethernet: bool, changes: list[tuple[int, int]], length: int
) -> None:
    packet = bytearray(super_packet(bytes(length), 1400, FRAME if ethernet else b""))
    for at, value in changes:
        if at < len(packet):
            packet[at] = value
    assert_cut_or_lost(memoryview(packet), ethernet)


TCP_AT = 48  # behind the IPv6 header and its extension


@pytest.mark.parametrize("ethernet", [False, True])
@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(4, b"\x01\0", id="segments of one byte"),
        pytest.param(4, b"\x07\0", id="segments shorter than Linux makes any"),
        pytest.param(HEADER + TCP_AT + 12, b"\0", id="no TCP header"),
        pytest.param(HEADER + TCP_AT + 12, b"\x40", id="a TCP header of 16 bytes"),
        pytest.param(6, b"\x1e\0", id="TCP within the IP header"),
    ],
)
def test_a_super_packet_that_does_not_fit_its_header_is_not_sound(
    ethernet: bool, at: int, value: bytes
) -> None:
    before = FRAME if ethernet else b""
    packet = bytearray(super_packet(bytes(3000), 1400, before))
    at += len(before) if at >= HEADER else 0
    packet[at : at + len(value)] = value
    assert not header_is_sound(memoryview(packet), ethernet)


def test_a_super_packet_without_room_for_its_tcp_options_is_not_sound() -> None:
    packet = bytearray(super_packet(bytes(40), 1400))
    packet[HEADER + TCP_AT + 12] = 0xF0
    assert not header_is_sound(memoryview(packet), False)


def test_a_super_packet_of_the_other_ip_version_is_not_sound() -> None:
    packet = bytearray(super_packet(bytes(3000), 1400))
    packet[HEADER] = 0x45
    assert not header_is_sound(memoryview(packet), False)
