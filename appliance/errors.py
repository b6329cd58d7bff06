"""Every error that Culvert raises on purpose, in one tree: the peer's faults and our own.

CulvertError
  PeerError             whatever the other side of a connection did wrong
    ProtocolError       it broke the protocol
      MalformedMessage  a message could not be read
    KeyExchangeFailed   no algorithm in common, or the exchange was invalid
    IntegrityError      a packet failed its authentication
    CompressionError    a packet did not inflate, or to too much
    HostKeyRejected     the server's key is not the one we trust
    PeerDisconnected    it said goodbye, or the network did
    AuthenticationFailed  no method that we have satisfied the server
  CertificateRefused    a certificate does not vouch for what it is shown for
  UsageError            a mistake of the person at the keyboard or in a file
"""

from __future__ import annotations


class CulvertError(Exception):
    """The root of all errors raised on purpose; its text is one line for a person."""


class PeerError(CulvertError):
    """The peer's fault: ends this connection, and nothing else.

    ``reason`` is the code that a DISCONNECT carries (RFC 4253 section 11.1).
    """

    reason = 2


class ProtocolError(PeerError):
    """SSH_DISCONNECT_PROTOCOL_ERROR."""


class MalformedMessage(ProtocolError):
    """Bytes that are not the message which they claim to be."""


class KeyExchangeFailed(PeerError):
    """SSH_DISCONNECT_KEY_EXCHANGE_FAILED."""

    reason = 3


class IntegrityError(PeerError):
    """SSH_DISCONNECT_MAC_ERROR."""

    reason = 5


class CompressionError(PeerError):
    """SSH_DISCONNECT_COMPRESSION_ERROR."""

    reason = 6


class HostKeyRejected(PeerError):
    """SSH_DISCONNECT_HOST_KEY_NOT_VERIFIABLE."""

    reason = 9


class AuthenticationFailed(PeerError):
    """SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE."""

    reason = 14


class PeerDisconnected(PeerError):
    """The peer sent DISCONNECT, or its end of the connection is gone."""

    reason = 11


class CertificateRefused(CulvertError):
    """A genuine certificate that is not good here and now; the text says why."""


class UsageError(CulvertError):
    """A mistake in an option, a file or the environment; the text says what to do."""
