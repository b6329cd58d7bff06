"""Converts terminal modes and sizes between RFC 4254's encoding and the system's termios.

The encoding is opcode, uint32, opcode, uint32 ... and ends with opcode 0 (section 8).
"""

import contextlib
import fcntl
import struct
import termios
from typing import Any, Final

from ..errors import MalformedMessage
from ..wire.codec import Reader

_END: Final = 0
_FIRST_UNDEFINED: Final = 160  # opcodes 160 to 255 end the list (RFC 4254 section 8)
_ISPEED: Final = 128
_OSPEED: Final = 129
_IUTF8: Final = 0o40000  # Linux's; Python's termios has no name for it

# Indices into the list of termios.tcgetattr
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _IN_SPEED, _OUT_SPEED, _CC = range(7)

_CHARACTERS: Final[dict[int, str]] = {
    1: "VINTR", 2: "VQUIT", 3: "VERASE", 4: "VKILL", 5: "VEOF", 6: "VEOL", 7: "VEOL2",
    8: "VSTART", 9: "VSTOP", 10: "VSUSP", 12: "VREPRINT", 13: "VWERASE", 14: "VLNEXT",
    18: "VDISCARD",
}  # fmt: skip
_FLAGS: Final[dict[int, tuple[int, str]]] = {
    30: (_IFLAG, "IGNPAR"), 31: (_IFLAG, "PARMRK"), 32: (_IFLAG, "INPCK"),
    33: (_IFLAG, "ISTRIP"), 34: (_IFLAG, "INLCR"), 35: (_IFLAG, "IGNCR"),
    36: (_IFLAG, "ICRNL"), 37: (_IFLAG, "IUCLC"), 38: (_IFLAG, "IXON"),
    39: (_IFLAG, "IXANY"), 40: (_IFLAG, "IXOFF"), 41: (_IFLAG, "IMAXBEL"),
    42: (_IFLAG, "IUTF8"),
    50: (_LFLAG, "ISIG"), 51: (_LFLAG, "ICANON"), 52: (_LFLAG, "XCASE"),
    53: (_LFLAG, "ECHO"), 54: (_LFLAG, "ECHOE"), 55: (_LFLAG, "ECHOK"),
    56: (_LFLAG, "ECHONL"), 57: (_LFLAG, "NOFLSH"), 58: (_LFLAG, "TOSTOP"),
    59: (_LFLAG, "IEXTEN"), 60: (_LFLAG, "ECHOCTL"), 61: (_LFLAG, "ECHOKE"),
    62: (_LFLAG, "PENDIN"),
    70: (_OFLAG, "OPOST"), 71: (_OFLAG, "OLCUC"), 72: (_OFLAG, "ONLCR"),
    73: (_OFLAG, "OCRNL"), 74: (_OFLAG, "ONOCR"), 75: (_OFLAG, "ONLRET"),
    90: (_CFLAG, "CS7"), 91: (_CFLAG, "CS8"), 92: (_CFLAG, "PARENB"), 93: (_CFLAG, "PARODD"),
}  # fmt: skip


def _flag(name: str) -> int | None:
    return _IUTF8 if name == "IUTF8" else getattr(termios, name, None)


def encode_modes(fd: int) -> bytes:
    """Returns the modes of the terminal ``fd`` in RFC 4254's encoding."""
    attributes = termios.tcgetattr(fd)
    items = [(_ISPEED, _baud(attributes[_IN_SPEED])), (_OSPEED, _baud(attributes[_OUT_SPEED]))]
    for opcode, name in _CHARACTERS.items():
        index = getattr(termios, name, None)
        if index is not None:
            value = attributes[_CC][index]
            number = value if isinstance(value, int) else value[0]
            items.append((opcode, number or 255))  # 255: no such character
    for opcode, (place, name) in _FLAGS.items():
        mask = _flag(name)
        if mask is not None:
            items.append((opcode, int(attributes[place] & mask == mask)))
    return b"".join(struct.pack(">BI", *item) for item in items) + bytes((_END,))


def _baud(speed: int) -> int:
    for name in ("B9600", "B19200", "B38400", "B57600", "B115200"):
        if getattr(termios, name) == speed:
            return int(name[1:])
    return 38400


def apply_modes(fd: int, modes: bytes) -> None:
    """Sets the modes that a peer asks for; raises MalformedMessage.

    ``fd`` is either side of the terminal.
    """
    reader = Reader(modes)
    wanted: dict[int, int] = {}
    while modes and (opcode := reader.byte()) != _END and opcode < _FIRST_UNDEFINED:
        wanted[opcode] = reader.uint32()
        if len(wanted) == len(modes):
            raise MalformedMessage("terminal modes without an end")
    attributes: list[Any] = termios.tcgetattr(fd)
    for opcode, value in wanted.items():
        if opcode in _CHARACTERS:
            index = getattr(termios, _CHARACTERS[opcode], None)
            if index is not None:
                attributes[_CC][index] = bytes((0 if value == 255 else value & 0xFF,))
        elif opcode in _FLAGS:
            place, name = _FLAGS[opcode]
            mask = _flag(name)
            if mask is not None:
                attributes[place] = attributes[place] & ~mask | (mask if value else 0)
    with contextlib.suppress(termios.error):  # this system does not support a value
        termios.tcsetattr(fd, termios.TCSANOW, attributes)


def get_size(fd: int) -> tuple[int, int, int, int]:
    """Returns columns and rows, and width and height in pixels."""
    rows, columns, width, height = struct.unpack(
        "HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    )
    return columns, rows, width, height


def set_size(fd: int, columns: int, rows: int, width: int, height: int) -> None:
    """Sets columns and rows, and width and height in pixels; 65535 is the most of each."""
    limited = (min(value, 0xFFFF) for value in (rows, columns, width, height))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *limited))
