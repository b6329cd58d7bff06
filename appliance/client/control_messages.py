"""The messages on a control socket between clients that share one connection.

Each message is one packet of a Unix-domain SOCK_SEQPACKET socket. NewSession and NewStdioForward
carry the descriptors that the session uses.

    client -> master   one of the requests; for a session also WindowSize, as often as it changes
    master -> client   Running, Done; for a session Say, Raw, Cooked, Suspend, and finally Ended
"""

from typing import Final

from ..wire.codec import Boolean, Message, String, Strings, Text, UInt32

# Our own choice
PACKET: Final = 192 << 10  # bytes: the longest command (128 KiB) and its environment


class Check(Message, number=1):
    """Ask whether the master is alive; answered with Running."""


class Exit(Message, number=2):
    """End the connection; answered with Done."""


class Stop(Message, number=3):
    """Take no more clients; answered with Done."""


class AddForward(Message, number=4):
    """Add a forward; answered with Done."""

    direction: Text
    text: Text


class CancelForward(Message, number=5):
    """Cancel a forward; answered with Done."""

    direction: Text
    text: Text


class NewSession(Message, number=6):
    """Start a session; carries three descriptors: standard input, output and error."""

    kind: Text
    command: String
    environment: Strings  # name, value, name, value ...
    pty_request: String  # empty for no terminal
    is_terminal: Boolean  # whether the first descriptor is one
    stdin: Boolean  # whether to read it
    escape: String
    agent: Boolean
    x11: Text = "no"  # no, untrusted, trusted: the master allows no more than it was started with
    x11_refused: Text = "ignore"  # what a session without X11 does: ignore, warn, fail


class NewStdioForward(Message, number=7):
    """Start the forward of -W; carries two descriptors: standard input and output."""

    host: Text
    port: UInt32
    stdin: Boolean


class WindowSize(Message, number=8):
    columns: UInt32
    rows: UInt32
    width: UInt32
    height: UInt32


class Running(Message, number=20):
    process: UInt32


class Done(Message, number=21):
    """The result of a request: why it failed, or ''; and the allocated port, or 0."""

    why: Text = ""
    port: UInt32 = 0


class Say(Message, number=22):
    """A line for the user."""

    text: Text


class Raw(Message, number=23):
    """Set the terminal to raw mode, so that every key goes to the program."""


class Cooked(Message, number=24):
    """Restore the terminal's mode."""


class Suspend(Message, number=25):
    """Stop, until the shell continues the client."""


class Ended(Message, number=26):
    status: UInt32
    on_terminal: Boolean
