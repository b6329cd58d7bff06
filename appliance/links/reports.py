"""The reports of the processes of links and mounts to the supervisor: one record per datagram.

The supervisor runs as root, and the processes read data from servers, so the records are strict
and simple to parse.
"""

from typing import Final

from ..log import harmless
from ..wire.codec import Boolean, Message, Name, String, Strings, Text, UInt32, UInt64

# Our own choices
DATAGRAM: Final = 64 << 10  # bytes
GO: Final = b"g"  # the supervisor's answer to Resolved: routes and rules permit to dial
PROBE: Final = b"p"  # from the supervisor: the network changed, so check that the server answers


class Resolved(Message, number=1):
    """The addresses of the first hop; none if its name could not be resolved."""

    addresses: Strings


class Opened(Message, number=2):
    """The tunnel carries packets; ``handed_out`` is a HandedOut record, or empty."""

    address: Text  # of the peer of the connection
    software: Text
    offload: Boolean
    handed_out: String


class Alive(Message, number=3):
    """The server answered a keepalive."""

    round_trip: UInt32  # microseconds


class AttemptFailed(Message, number=4):
    """The last report; ``final`` if a new attempt cannot succeed."""

    final: Boolean
    why: Text


class PassedLine(Message, number=5):
    """A line for the supervisor's log."""

    level: UInt32
    text: String


class PacketsDropped(Message, number=6):
    """Packets that the tunnel has dropped since the last report; ``reason`` is a Drop's value."""

    reason: Name
    packets: UInt64


class MountOrder(Message, number=7):
    """To the program of a mount, once: how it logs in."""

    settings: Strings  # keywords and values of ssh_config(5) in turns


class MountProgress(Message, number=8):
    """What the status shows of a mount; the program has mounted, and serves it."""

    is_connected: Boolean
    received: UInt64  # bytes of SFTP from the server, since the program began
    sent: UInt64
    round_trip: UInt32  # microseconds
    last_error: Text


KINDS: Final[dict[int, type[Message]]] = {
    kind.number: kind
    for kind in (Resolved, Opened, Alive, AttemptFailed, PassedLine, PacketsDropped)
}
MOUNT_KINDS: Final[dict[int, type[Message]]] = {
    kind.number: kind for kind in (AttemptFailed, PassedLine, MountProgress)
}


def one_line(text: str, limit: int) -> str:
    """Returns a text of a report, which may come from a server, so that it can be shown."""
    return " ".join(harmless(text[:limit]).split())
