"""What the process of a link tells the supervisor: one record a datagram.

The supervisor runs as root and the process reads what a server sends, so the records are
strict and hold nothing that needs much understanding.
"""

from typing import Final

from ..wire.codec import Boolean, Message, Name, String, Strings, Text, UInt32, UInt64

# Our own choices
DATAGRAM: Final = 64 << 10  # bytes
GO: Final = b"g"  # the supervisor's answer to Resolved: the way to the server is free
PROBE: Final = b"p"  # from the supervisor: the network changed, see whether the server is there


class Resolved(Message, number=1):
    """The addresses of whatever is dialled first; none, if the name could not be resolved."""

    addresses: Strings


class Opened(Message, number=2):
    """The tunnel carries packets; ``handed_out`` is a HandedOut record, or empty."""

    address: Text  # that the connection goes to
    software: Text
    offload: Boolean
    handed_out: String


class Alive(Message, number=3):
    """The server answered."""

    round_trip: UInt32  # microseconds


class AttemptFailed(Message, number=4):
    """The last word; ``final`` if trying again would change nothing."""

    final: Boolean
    why: Text


class PassedLine(Message, number=5):
    """A line for the log."""

    level: UInt32
    text: String


class PacketsDropped(Message, number=6):
    """Packets that the tunnel has dropped since the last report; ``reason`` is a Drop's value."""

    reason: Name
    packets: UInt64


KINDS: Final[dict[int, type[Message]]] = {
    kind.number: kind
    for kind in (Resolved, Opened, Alive, AttemptFailed, PassedLine, PacketsDropped)
}
