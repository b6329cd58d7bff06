"""The requests of a worker to its monitor: the table of them, and the records that are exchanged.

Each request is a message in one datagram over a socketpair. Its answer is one byte (GRANTED,
REFUSED or FAILED) with a record or a text, and descriptors may come with it. Only a line for the
log has no answer. The monitor does not trust the worker: the table says when a request is allowed,
and how often.
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
QUESTION: Final = b"\3"  # not an answer: asks for a ClientAnswers, if the client is alive
TUNNELS_LIMIT: Final = 10  # of one connection at a time; worker and monitor both check it


class Sign(Message, number=1):
    """Asks for a host key's signature of an exchange hash; the first one is the session id."""

    algorithm: Name
    exchange_hash: String


class Begin(Message, number=2):
    """Asks to log in with the authentication method 'none'."""

    user: Text


class RefuseAttempt(Message, number=3):
    """Reports an attempt that cannot succeed, so that the monitor counts it."""

    user: Text
    method: Name


class ShowKey(Message, number=4):
    """Asks whether a signature by this key would be accepted."""

    user: Text
    algorithm: Name
    public_key: String
    host_key: String


class UseKey(Message, number=5):
    """Asks to log in with a signature; the monitor makes the signed data itself."""

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
    """Asks for the prompt of keyboard-interactive; the answer is a text."""

    user: Text


class LearnSettings(Message, number=8):
    """Asks for the settings of the user who is logged in; the answer is a SettingsReply."""


class ReportTotals(Message, number=9):
    """Reports how much a connection has carried, when it ends; the answer is empty."""

    received: UInt64  # bytes
    sent: UInt64


class OpenPty(Message, number=10):
    """Asks for a terminal; the answer is its number, not 0, and the master's descriptor."""


class Spawn(Message, number=11):
    """Starts a program; the answer is its process id, and the descriptors of a ``Process``."""

    kind: Name
    command: String
    environment: Strings  # name, value, name, value ...
    terminal: UInt32  # a number from OpenPty, or 0 for pipes
    display: UInt32 = 0  # a number from ListenX11, or 0 for none


class SendSignal(Message, number=12):
    process: UInt32
    signal: Name


class OpenTunnel(Message, number=13):
    """Asks for a tunnel device; the answer is its name, and its descriptor."""

    mode: UInt32
    unit: UInt32


class CloseTunnel(Message, number=14):
    """Reports that the worker has closed a tunnel device; the answer is empty."""

    device: Name


class Connect(Message, number=15):
    """Connects to a TCP port; the answer is the fields of an ``Attempt``."""

    host: Text
    port: UInt32


class ConnectLocal(Message, number=16):
    """Connects to a Unix-domain socket; the answer is its descriptor."""

    path: String


class Listen(Message, number=17):
    """Listens on a TCP port; the answer is a number, the port, and one or two descriptors."""

    address: Text
    port: UInt32


class ListenLocal(Message, number=18):
    """Listens on a new Unix-domain socket; the answer is a number, and its descriptor."""

    path: String


class StopListening(Message, number=19):
    """Reports that the worker no longer listens there; the answer is empty."""

    listener: UInt32


class ListenAgent(Message, number=20):
    """Listens for programs that want the client's agent; the answer is a descriptor."""


class ProveHostKey(Message, number=21):
    """Asks for a host key's proof that it is the server's; the monitor makes the signed data."""

    host_key: String
    algorithm: Name


class ClosePty(Message, number=22):
    """Reports that no program will use this terminal; the answer is empty."""

    terminal: UInt32


class LogLine(Message, number=23):
    """A line for the log; it has no answer, so that the worker does not wait for the log."""

    level: UInt32
    text: String


class ClientAnswers(Message, number=24):
    """Reports that the client has answered after a QUESTION; the answer is empty."""


class EndSessions(Message, number=25):
    """Reports that the client wants no more sessions than are open now; the answer is empty."""

    open_sessions: UInt32


class ListenX11(Message, number=26):
    """Makes a display for a session; the answer is that of Listen.

    The fields are those of X11Request.
    """

    authentication_protocol: String
    authentication_cookie: String
    screen_number: UInt32


class CloseX11(Message, number=27):
    """Reports that the session of a display is over; the answer is empty."""

    display: UInt32


class OutcomeReply(Record):
    success: Boolean
    methods: NameList
    partial: Boolean
    final: Boolean


class SettingsReply(Record):
    """The settings of ConnectionConfig that the worker applies; the monitor enforces the others."""

    accept_env: Strings
    max_sessions: UInt32
    client_alive_interval: UInt32
    client_alive_count_max: UInt32
    idle_timeout: UInt32
    x11_relay: Text


class When(Flag):
    """When a request is allowed."""

    BEFORE = auto()  # authentication
    AFTER = auto()
    ALWAYS = BEFORE | AFTER


class Row(NamedTuple):
    """A request: its message, when it is allowed, and how often in a connection."""

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
        # A worker that was taken over may report devices as closed that it still has.
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
        Row(ListenX11, When.AFTER, MANY),
        Row(CloseX11, When.AFTER, MANY),
    )
}


Reply = tuple[bytes, list[int]]  # an answer, and the descriptors that come with it
Handlers = dict[type[Message], Callable[[Any], Reply]]


class Deny(Exception):
    """The monitor refuses a request; the text goes to the worker."""


class Failed(Deny):
    """The request was allowed, but a system call failed."""


class Denied(PeerError):
    """The monitor has refused a request; before authentication this ends the connection."""


class MonitorGone(Exception):
    """The other end of the socketpair is closed."""


def ask(
    sock: socket.socket,
    request: Message,
    *descriptors: int,
    questioned: Callable[[], None] = lambda: None,
) -> Reply:
    """Sends a request, and waits for its answer.

    The answer must have one of these numbers of descriptors (0 if none is given). ``questioned`` is
    called for a QUESTION that comes before the answer. Raises Denied with the monitor's text,
    OSError with the system's, MonitorGone, or MalformedMessage for other numbers of descriptors.
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
    if flags & socket.MSG_CTRUNC:  # this process had no room for the answer's descriptors
        for fd in fds:
            os.close(fd)
        raise Denied("no descriptor is left")
    if len(fds) not in (descriptors or (0,)):
        raise MalformedMessage("the monitor sent other descriptors than expected")
    return answer[1:], fds
