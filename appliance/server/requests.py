"""What a worker may ask its monitor: one table, and the records that cross between them.

Each request is one datagram over a socketpair: a message, answered by one byte (GRANTED,
REFUSED or FAILED), a record or a text, and descriptors beside it; only a line for the log has no
answer. The monitor trusts none of it:
the table says when a request is allowed and how often.
"""

import os
import socket
from collections.abc import Callable
from enum import Flag, auto
from typing import Any, Final, NamedTuple

from ..errors import MalformedMessage, PeerError
from ..wire.codec import (
    Boolean,
    Message,
    Name,
    NameList,
    Record,
    String,
    Strings,
    Text,
    UInt32,
    UInt64,
)

# Our own choices
DATAGRAM: Final = 160 << 10  # bytes: the longest command (128 KiB) and its environment
GRANTED: Final = b"\0"
REFUSED: Final = b"\1"
FAILED: Final = b"\2"
QUESTION: Final = b"\3"  # not an answer: the monitor wants a ClientAnswers, if the client does
TUNNELS_LIMIT: Final = 10  # of one connection at a time; worker and monitor both insist


class Sign(Message, number=1):
    """Sign an exchange hash with a host key; the first hash is the session id."""

    algorithm: Name
    exchange_hash: String


class Begin(Message, number=2):
    """The authentication method 'none'."""

    user: Text


class RefuseAttempt(Message, number=3):
    """An attempt that cannot succeed, to be counted."""

    user: Text
    method: Name


class ShowKey(Message, number=4):
    """Would a signature by this key be accepted?"""

    user: Text
    algorithm: Name
    public_key: String
    host_key: String


class UseKey(Message, number=5):
    """A signature; the monitor makes the signed data itself."""

    user: Text
    algorithm: Name
    public_key: String
    host_key: String
    signature: String


class UsePassword(Message, number=6):
    user: Text
    method: Name
    password: String


class AskPrompt(Message, number=7):
    """What keyboard-interactive asks for; answered with a text."""

    user: Text


class LearnSettings(Message, number=8):
    """Answered with SettingsReply: what holds for the user who is logged in."""


class ReportTotals(Message, number=9):
    """How much a connection that ends has carried; answered with nothing."""

    received: UInt64  # bytes
    sent: UInt64


class OpenPty(Message, number=10):
    """Answered with a number, not 0, and the master side."""


class Spawn(Message, number=11):
    """Answered with a number, and the descriptors of a process."""

    kind: Name
    command: String
    environment: Strings  # name, value, name, value ...
    terminal: UInt32  # a number from OpenPty, or 0 for pipes


class SendSignal(Message, number=12):
    process: UInt32
    signal: Name


class OpenTunnel(Message, number=13):
    """Answered with the device's name, and its descriptor."""

    mode: UInt32
    unit: UInt32


class CloseTunnel(Message, number=14):
    """The worker has closed a tunnel device; answered with nothing."""

    device: Name


class Connect(Message, number=15):
    """Connect to a TCP port; answered with whether it goes by a name, and a descriptor."""

    host: Text
    port: UInt32


class ConnectLocal(Message, number=16):
    """Connect to a Unix-domain socket; answered with its descriptor."""

    path: String


class Listen(Message, number=17):
    """Listen on a TCP port; answered with a number, the port, and one descriptor or two."""

    address: Text
    port: UInt32


class ListenLocal(Message, number=18):
    """Listen on a new Unix-domain socket; answered with a number, and its descriptor."""

    path: String


class StopListening(Message, number=19):
    """The worker listens there no more; answered with nothing."""

    listener: UInt32


class ListenAgent(Message, number=20):
    """Listen for programs that want the client's agent; answered with a descriptor."""


class ProveHostKey(Message, number=21):
    """Sign that a host key is the server's; the monitor makes the signed data itself."""

    host_key: String
    algorithm: Name


class ClosePty(Message, number=22):
    """No program is to have this terminal; answered with nothing."""

    terminal: UInt32


class LogLine(Message, number=23):
    """A line for the log; it is not answered, so that nobody waits for the log."""

    level: UInt32
    text: String


class ClientAnswers(Message, number=24):
    """The client was asked because of a QUESTION, and is there; answered with nothing."""


class EndSessions(Message, number=25):
    """The client wants no sessions but those that are open now; answered with nothing."""

    open_sessions: UInt32


class OutcomeReply(Record):
    success: Boolean
    methods: NameList
    partial: Boolean
    final: Boolean


class SettingsReply(Record):
    """Of ConnectionConfig, what a worker acts on; the monitor insists on its part itself."""

    accept_env: Strings
    max_sessions: UInt32
    client_alive_interval: UInt32
    client_alive_count_max: UInt32
    idle_timeout: UInt32


class When(Flag):
    """When a request is allowed."""

    BEFORE = auto()  # authentication
    AFTER = auto()
    ALWAYS = BEFORE | AFTER


class Row(NamedTuple):
    """A request: what it takes, when it is allowed, how often in a connection."""

    message: type[Message]
    when: When
    limit: int
    is_answered: bool = True


MANY: Final = 1 << 62

TABLE: Final[dict[int, Row]] = {
    row.message.number: row
    for row in (
        Row(Sign, When.ALWAYS, MANY),
        Row(Begin, When.BEFORE, 100),
        Row(RefuseAttempt, When.BEFORE, 100),
        Row(ShowKey, When.BEFORE, 100),
        Row(UseKey, When.BEFORE, 100),
        Row(UsePassword, When.BEFORE, 100),
        Row(AskPrompt, When.BEFORE, 100),
        Row(LearnSettings, When.AFTER, 1),
        Row(ReportTotals, When.ALWAYS, 1),
        Row(OpenPty, When.AFTER, MANY),
        Row(ClosePty, When.AFTER, MANY),
        Row(Spawn, When.AFTER, MANY),
        Row(SendSignal, When.AFTER, MANY),
        # A worker that was taken over may say that it has closed what it has not.
        Row(OpenTunnel, When.AFTER, 1000),
        Row(CloseTunnel, When.AFTER, MANY),
        Row(Connect, When.AFTER, MANY),
        Row(ConnectLocal, When.AFTER, MANY),
        Row(Listen, When.AFTER, MANY),
        Row(ListenLocal, When.AFTER, MANY),
        Row(StopListening, When.AFTER, MANY),
        Row(ListenAgent, When.AFTER, 1),
        Row(ProveHostKey, When.AFTER, 1000),
        Row(LogLine, When.ALWAYS, MANY, is_answered=False),
        Row(ClientAnswers, When.AFTER, MANY),
        Row(EndSessions, When.AFTER, 1),
    )
}


Reply = tuple[bytes, list[int]]  # an answer, and the descriptors beside it
Handlers = dict[type[Message], Callable[[Any], Reply]]


class Deny(Exception):
    """The monitor's answer is no; the text goes to the worker."""


class Failed(Deny):
    """It was allowed, but the system said no."""


class Denied(PeerError):
    """The monitor says no; before authentication that ends the connection."""


class MonitorGone(Exception):
    """The other end of the socketpair is closed."""


def ask(
    sock: socket.socket,
    request: Message,
    *descriptors: int,
    questioned: Callable[[], None] = lambda: None,
) -> Reply:
    """Send a request and wait for its answer, with one of these numbers of descriptors (0 if
    none is given); raises Denied with the refusal, or OSError with what the system said.

    ``questioned`` is called for a QUESTION that comes before the answer.
    """
    sock.sendall(request.encode())
    answer, fds, flags, _ = socket.recv_fds(sock, DATAGRAM, max((1, *descriptors)))
    while answer == QUESTION:
        questioned()
        answer, fds, flags, _ = socket.recv_fds(sock, DATAGRAM, max((1, *descriptors)))
    if not answer:
        raise MonitorGone("the monitor ended")
    if answer[:1] == REFUSED:
        raise Denied(answer[1:].decode(errors="replace"))
    if answer[:1] == FAILED:
        raise OSError(0, answer[1:].decode(errors="replace"))
    if flags & socket.MSG_CTRUNC:  # it came, but there was no room for its descriptors
        for fd in fds:
            os.close(fd)
        raise Denied("no descriptor is left")
    if len(fds) not in (descriptors or (0,)):
        raise MalformedMessage("the monitor sent other descriptors than expected")
    return answer[1:], fds
