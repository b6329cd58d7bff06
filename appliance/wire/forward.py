"""The names and data of forwarding: TCP connections (RFC 4254 section 7), Unix-domain sockets
(OpenSSH PROTOCOL 2.4) and X11 (RFC 4254 section 6.3.2).

    direct-*      the client asks the server to connect to an address or path
    forwarded-*   the server accepted a connection to an address or path on which the client
                  had asked it to listen
"""

from typing import Final

from .codec import Record, String, Text, UInt32

DIRECT_TCPIP: Final = "direct-tcpip"
FORWARDED_TCPIP: Final = "forwarded-tcpip"
DIRECT_STREAMLOCAL: Final = "direct-streamlocal@openssh.com"
FORWARDED_STREAMLOCAL: Final = "forwarded-streamlocal@openssh.com"

AUTH_AGENT: Final = "auth-agent@openssh.com"  # OpenSSH PROTOCOL.agent: the opening has no data
AUTH_AGENT_REQUEST: Final = "auth-agent-req@openssh.com"  # a request on a session's channel

X11: Final = "x11"

TCPIP_FORWARD: Final = "tcpip-forward"
CANCEL_TCPIP_FORWARD: Final = "cancel-tcpip-forward"
STREAMLOCAL_FORWARD: Final = "streamlocal-forward@openssh.com"
CANCEL_STREAMLOCAL_FORWARD: Final = "cancel-streamlocal-forward@openssh.com"


class DirectTcpip(Record):
    """The opening of a direct-tcpip channel (RFC 4254 section 7.2)."""

    host: Text
    port: UInt32
    originator_address: Text
    originator_port: UInt32


class ForwardedTcpip(Record):
    """The opening of a forwarded-tcpip channel (RFC 4254 section 7.2).

    ``address`` is the one that the client requested, ``port`` the one that the server listens on.
    """

    address: Text
    port: UInt32
    originator_address: Text
    originator_port: UInt32


class TcpipForward(Record):
    """The data of tcpip-forward and cancel-tcpip-forward (RFC 4254 section 7.1)."""

    address: Text
    port: UInt32  # 0: the server chooses one, and answers with a BoundPort


class BoundPort(Record):
    """The answer to a tcpip-forward request for port 0."""

    port: UInt32


class DirectStreamlocal(Record):
    """The opening of a direct-streamlocal channel."""

    path: String
    reserved: String = b""
    reserved_number: UInt32 = 0


class ForwardedStreamlocal(Record):
    """The opening of a forwarded-streamlocal channel."""

    path: String
    reserved: String = b""


class StreamlocalForward(Record):
    """The data of streamlocal-forward and cancel-streamlocal-forward."""

    path: String


class X11Open(Record):
    """The opening of an x11 channel (RFC 4254 section 6.3.2), for a program that connected."""

    originator_address: Text
    originator_port: UInt32
