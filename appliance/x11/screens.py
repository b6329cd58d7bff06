"""What an X server tells of itself when it lets a client in (X11 protocol, chapter 8)."""

import contextlib
import struct
from typing import Final, NamedTuple

_SUCCESS: Final = 1
_TRUE_COLOR: Final = 4
_ALLOC_COLOR_REPLY: Final = struct.Struct("<BxHIHHHxxI12x")


class _Channel(NamedTuple):
    """One of a pixel's three colours."""

    shift: int
    most: int  # the largest value
    bits: int  # of a value that the screen can show

    def nearest(self, value: int) -> int:
        """Returns the value of a pixel for 0 to 65535."""
        low = value * self.most // 65535
        near = [n for n in (low, low + 1) if n <= self.most]
        return min(near, key=lambda n: (abs(self.shown(n) - value), n))

    def shown(self, value: int) -> int:
        """Returns the 0 to 65535 that a pixel's value stands for."""
        return ((value * 65535 // self.most) >> (16 - self.bits)) * 65535 // ((1 << self.bits) - 1)


class Screens(NamedTuple):
    """The resources of one connection, the root windows, and how colours become pixels."""

    base: int
    mask: int
    keycodes: tuple[int, int]  # the lowest and the highest
    roots: tuple[int, ...]
    true_colors: dict[int, tuple[_Channel, ...]]  # by colormap: red, green, blue

    def is_own(self, resource: int) -> bool:
        """Whether a resource is the program's."""
        return resource & ~self.mask == self.base

    def color(self, request: bytes) -> bytes:
        """Returns the answer to a little-endian AllocColor that the colour decides, or nothing."""
        if len(request) != 16:
            return b""
        colormap, *wanted = struct.unpack_from("<IHHH", request, 4)
        channels = self.true_colors.get(colormap)
        if channels is None:
            return b""
        values = [channel.nearest(value) for channel, value in zip(channels, wanted, strict=True)]
        pixel = 0
        for channel, value in zip(channels, values, strict=True):
            pixel |= value << channel.shift
        shown = [channel.shown(value) for channel, value in zip(channels, values, strict=True)]
        return _ALLOC_COLOR_REPLY.pack(1, 0, 0, *shown, pixel)


class FirstAnswer:
    """Collects the server's answer to the set-up request, until it is whole."""

    def __init__(self, byte_order: str) -> None:
        self._order = byte_order
        self._bytes = bytearray()
        self._is_refusal = False
        self.screens: Screens | None = None  # of an answer that is one of an X server

    def receive(self, data: bytes) -> bytes | None:
        """Returns what follows an answer that lets the program in; None before that."""
        if self._is_refusal:
            return None
        answer = self._bytes
        answer += data
        if len(answer) < 8:
            return None
        if answer[0] != _SUCCESS:
            self._is_refusal = True
            answer.clear()
            return None
        size = 8 + 4 * struct.unpack_from(self._order + "H", answer, 6)[0]
        if len(answer) < size:
            return None
        with contextlib.suppress(struct.error, IndexError):
            self.screens = _read(bytes(answer[:size]), self._order)
        rest = bytes(answer[size:])
        answer.clear()
        return rest


def _read(reply: bytes, order: str) -> Screens:
    base, mask = struct.unpack_from(order + "II", reply, 12)
    vendor_length = struct.unpack_from(order + "H", reply, 24)[0]
    count, formats = reply[28], reply[29]
    at = 40 + (vendor_length + 3 & ~3) + 8 * formats
    roots, true_colors = [], {}
    for _ in range(count):
        root, colormap = struct.unpack_from(order + "II", reply, at)
        root_visual = struct.unpack_from(order + "I", reply, at + 32)[0]
        depths = reply[at + 39]
        roots.append(root)
        at += 40
        for _ in range(depths):
            visuals = struct.unpack_from(order + "H", reply, at + 2)[0]
            at += 8
            for place in range(at, at + 24 * visuals, 24):
                visual, kind, bits, _, *masks = struct.unpack_from(order + "IBBHIII", reply, place)
                if visual == root_visual and kind == _TRUE_COLOR and 0 < bits <= 16 and all(masks):
                    true_colors[colormap] = tuple(_channel(each, bits) for each in masks)
            at += 24 * visuals
    return Screens(base, mask, (reply[34], reply[35]), tuple(roots), true_colors)


def _channel(mask: int, bits: int) -> _Channel:
    shift = (mask & -mask).bit_length() - 1
    return _Channel(shift, mask >> shift, bits)
