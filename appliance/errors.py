"""Every error that Culvert raises on purpose, in one tree: the peer's faults and our own.

CulvertError
  PeerError             a fault of the peer, the other side of the connection
    ProtocolError       the peer broke the protocol
      MalformedMessage  a message could not be read
    KeyExchangeFailed   no algorithm in common, or the exchange was invalid
    IntegrityError      a packet failed its authentication
    CompressionError    a packet did not inflate, or inflated to too many bytes
    HostKeyRejected     the server's key is not the one we trust
    PeerDisconnected    the peer disconnected, or the network failed
    AuthenticationFailed  no authentication method succeeded
  CertificateRefused    a certificate is not valid for this use
  UsageError            a mistake of the person at the keyboard or in a file
"""

from __future__ import annotations

import os


class CulvertError(Exception):
    """The root of all errors raised on purpose; its text is one line for a person."""


class PeerError(CulvertError):
    """The peer's fault: ends this connection, and nothing else.

    ``reason`` is the code that a DISCONNECT carries (RFC 4253 section 11.1).
    """

    reason = 2


class ProtocolError(PeerError):
    """The peer broke the protocol (SSH_DISCONNECT_PROTOCOL_ERROR)."""


class MalformedMessage(ProtocolError):
    """Bytes could not be read as the message that was expected."""


class KeyExchangeFailed(PeerError):
    """No key was agreed upon (SSH_DISCONNECT_KEY_EXCHANGE_FAILED)."""

    reason = 3


class IntegrityError(PeerError):
    """A packet failed its authentication (SSH_DISCONNECT_MAC_ERROR)."""

    reason = 5


class CompressionError(PeerError):
    """A packet did not inflate (SSH_DISCONNECT_COMPRESSION_ERROR)."""

    reason = 6


class HostKeyRejected(PeerError):
    """The server's key is not trusted (SSH_DISCONNECT_HOST_KEY_NOT_VERIFIABLE)."""

    reason = 9


class AuthenticationFailed(PeerError):
    """The login failed (SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE)."""

    reason = 14


class PeerDisconnected(PeerError):
    """The peer sent DISCONNECT, or its end of the connection is gone."""

    reason = 11


class CertificateRefused(CulvertError):
    """A genuine certificate that is not valid for this use or time; the text says why."""


class UsageError(CulvertError):
    """A mistake in an option, a file or the environment; the text says what to do."""


def system_error(number: int) -> OSError:
    """Returns what a system call raises that fails with this errno."""
    return OSError(number, os.strerror(number))
