"""A small X server in memory: answers requests, in order, as a real one counts them."""

import struct

from appliance.x11.round_trips import CORE

BASE, MASK = 0x200000, 0x1FFFFF
ROOT, COLORMAP, VISUAL = 0x50D, 0x20, 0x21
FOREIGN, GONE = 0x400001, 0x400002  # windows of another program; the second is no more
ANSWERED = frozenset(CORE)
EXTENSIONS = {b"BIG-REQUESTS": 133, b"RENDER": 139, b"UNHEARD-OF": 150}


def set_up_reply(base: int = BASE) -> bytes:
    """What the server says first."""
    vendor = b"test"
    visual = struct.pack("<IBBHIIIxxxx", VISUAL, 4, 8, 256, 0xFF0000, 0xFF00, 0xFF)
    depth = struct.pack("<BxHxxxx", 24, 1) + visual
    screen = struct.pack(
        "<IIIIIHHHHHHIBBBB", ROOT, COLORMAP, 0, 0, 0, 800, 600, 200, 150, 1, 1, VISUAL, 0, 0, 24, 1
    )
    body = struct.pack(
        "<IIIIHHBBBBBBBBxxxx", 1, base, MASK, 0, len(vendor), 65535, 1, 0, 0, 0, 32, 32, 8, 255
    )
    body += vendor + screen + depth
    return struct.pack("<BxHHH", 1, 11, 0, len(body) // 4) + body


def request(opcode: int, minor: int = 0, layout: str = "", *values: int | bytes) -> bytes:
    """A request's bytes."""
    body = struct.pack("<" + layout, *values)
    body += bytes(-len(body) % 4)
    return struct.pack("<BBH", opcode, minor, 1 + len(body) // 4) + body


def intern_atom(name: bytes, only_if_exists: bool = False) -> bytes:
    return request(16, only_if_exists, f"HH{len(name)}s", len(name), 0, name)


def query_extension(name: bytes) -> bytes:
    return request(98, 0, f"HH{len(name)}s", len(name), 0, name)


def property_of(window: int, atom: int = 23) -> bytes:
    return request(20, 0, "IIIII", window, atom, 0, 0, 100)


SYNC = request(43)  # GetInputFocus


class XServer:
    """Whatever is asked the same way gets the same answer, until ``change``."""

    def __init__(self) -> None:
        self.sequence = 0
        self.atoms = {b"PRIMARY": 1}
        self.property = b"first value!"
        self.requests: list[bytes] = []
        self._part = b""

    def change(self) -> bytes:
        """Another value of the root's property; returns the event that tells so."""
        self.property = b"second value"
        return struct.pack("<BxHIIIB15x", 28, self.sequence & 0xFFFF, ROOT, 23, 0, 0)

    def receive(self, data: bytes) -> bytes:
        """Returns the answers to all whole requests."""
        data = self._part + data
        at, out = 0, bytearray()
        while len(data) - at >= 4:
            size = 4 * int.from_bytes(data[at + 2 : at + 4], "little")
            if len(data) - at < size:
                break
            self.sequence += 1
            self.requests.append(data[at : at + size])
            out += self._answer(data[at : at + size])
            at += size
        self._part = data[at:]
        return bytes(out)

    def _reply(self, first: int, layout: str, *values: int | bytes, more: bytes = b"") -> bytes:
        more += bytes(-len(more) % 4)
        body = struct.pack("<" + layout, *values)
        head = struct.pack("<BBHI", 1, first, self.sequence & 0xFFFF, len(more) // 4)
        return (head + body).ljust(32, b"\0") + more

    def _error(self, code: int, opcode: int) -> bytes:
        head = struct.pack("<BBHIHB", 0, code, self.sequence & 0xFFFF, 0, 0, opcode)
        return head.ljust(32, b"\0")

    def _answer(self, asked: bytes) -> bytes:
        opcode = asked[0]
        window = int.from_bytes(asked[4:8], "little")
        if opcode == 16:
            name = asked[8 : 8 + int.from_bytes(asked[4:6], "little")]
            if asked[1] and name not in self.atoms:
                return self._reply(0, "I", 0)
            return self._reply(0, "I", self.atoms.setdefault(name, len(self.atoms) + 68))
        if opcode == 17:
            names = [name for name, atom in self.atoms.items() if atom == window]
            if not names:
                return self._error(5, opcode)
            return self._reply(0, "H", len(names[0]), more=names[0])
        if opcode == 98:
            name = asked[8 : 8 + int.from_bytes(asked[4:6], "little")]
            major = EXTENSIONS.get(name, 0)
            return self._reply(0, "BBBB", major > 0, major, 0, 0)
        if opcode == 20:
            if window == GONE:
                return self._error(3, opcode)
            return self._reply(8, "III", 31, 0, len(self.property), more=self.property)
        if opcode == 43:
            return self._reply(0, "I", ROOT)
        if opcode == 45:
            name = asked[12 : 12 + int.from_bytes(asked[8:10], "little")]
            return b"" if name == b"fixed" else self._error(15, opcode)
        if opcode == 47:
            return self._reply(0, "I", 7) if window == BASE else self._error(7, opcode)
        if opcode in (12, 18) and window == GONE:
            return self._error(3, opcode)
        if opcode == 49:
            return self._reply(0, "H", 1, more=b"\5fixed")
        if opcode == 50:
            return self._reply(4, "", more=b"info") + self._reply(0, "")
        if opcode == 84:
            red, green, blue = struct.unpack_from("<HHH", asked, 8)
            pixel = red >> 8 << 16 | green >> 8 << 8 | blue >> 8
            shown = [(value >> 8) * 257 for value in (red, green, blue)]
            return self._reply(0, "HHHHI", *shown, 0, pixel)
        if opcode in EXTENSIONS.values():
            if opcode == 150 and asked[1]:
                return b""  # nobody but the server knows
            return self._reply(0, "II", 0, 11)
        return self._reply(0, "") if opcode in ANSWERED else b""
