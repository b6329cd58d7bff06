"""Bytes of X11 for tests of the filter: requests, and what an X server answers."""

import struct

from appliance.x11.filter import Filter

BASE, MASK, ROOT = 0x400000, 0x1FFFFF, 0x50D
OWN, OTHERS = BASE + 7, 0x600007
BAD = 126  # what a refused request becomes
FIRST = 140  # the first major opcode of an extension
NO_OPERATION = 127


def set_up_reply(order: str) -> bytes:
    """A server's success: one screen with one depth of one visual."""
    visual = bytes(24)
    depth = struct.pack(order + "BxH4x", 24, 1) + visual
    screen = struct.pack(order + "I", ROOT) + bytes(35) + b"\1" + depth
    vendor = b"Somebody"
    body = struct.pack(order + "IIIIHHBB", 1, BASE, MASK, 0, len(vendor), 65535, 1, 1)
    body += bytes(10) + vendor + bytes(8) + screen
    return struct.pack(order + "BxHHH", 1, 11, 0, len(body) // 4) + body


class Talk:
    """A program and a server with a filter between them."""

    def __init__(self, order: str = "<", clipboard: str = "out", trusted: bool = False) -> None:
        self.order = order
        self.filter = Filter(order, clipboard, trusted)
        reply = set_up_reply(order)
        assert self.filter.from_server(reply) == reply
        self.sequence = 0
        self.majors: dict[bytes, int] = {}

    def send(self, data: bytes, count: int = 1) -> bytes:
        """What the server gets of a program's requests."""
        self.sequence += count
        return b"".join(bytes(piece) for piece in self.filter.from_client(data))

    def receive(self, data: bytes) -> bytes:
        return self.filter.from_server(data)

    def request(self, opcode: int, minor: int, *words: int, size: int = 0) -> bytes:
        """A request of 32-bit words, with zeros up to `size` bytes."""
        body = struct.pack(f"{self.order}{len(words)}I", *words)
        body = body.ljust(size - 4, b"\0")
        return struct.pack(self.order + "BBH", opcode, minor, 1 + len(body) // 4) + body

    def reply(self, fields: bytes = b"", more: bytes = b"", first: int = 0) -> bytes:
        head = struct.pack(self.order + "BBHI", 1, first, self.sequence & 0xFFFF, len(more) // 4)
        return (head + fields).ljust(32, b"\0") + more

    def error(self, code: int = 1, opcode: int = BAD, sequence: int = 0) -> bytes:
        number = (sequence or self.sequence) & 0xFFFF
        return struct.pack(self.order + "BBHIHB21x", 0, code, number, 99, 0, opcode)

    def event(self, kind: int, *words: int) -> bytes:
        body = struct.pack(f"{self.order}{len(words)}I", *words)
        return struct.pack(self.order + "BxH", kind, self.sequence & 0xFFFF) + body.ljust(28, b"\0")

    def extension(self, name: bytes) -> int:
        """The major opcode of an extension, as the program learns it; 0 if there is none."""
        if name not in self.majors:
            length = struct.pack(self.order + "Hxx", len(name))
            padded = name + bytes(-len(name) % 4)
            head = struct.pack(self.order + "BBH", 98, 0, 2 + len(padded) // 4)
            assert self.send(head + length + padded) == head + length + padded
            number = FIRST + len(self.majors)
            answer = self.receive(self.reply(bytes((1, number, 70, 130))))
            present, self.majors[name] = answer[8], answer[9]
            assert bool(present) == bool(answer[9])
        return self.majors[name]

    def intern(self, name: bytes, atom: int) -> int:
        length = struct.pack(self.order + "Hxx", len(name))
        padded = name + bytes(-len(name) % 4)
        head = struct.pack(self.order + "BBH", 16, 0, 2 + len(padded) // 4)
        self.send(head + length + padded)
        self.receive(self.reply(struct.pack(self.order + "I", atom)))
        return atom
