"""The trace of a connection: a line for each message in either direction, never its content.

A line has the message's number and RFC name, the names and channel numbers that it holds, and its
size::

    send packet: type 90 (SSH_MSG_CHANNEL_OPEN), session, sender channel 0, 24 bytes
    receive packet: type 91 (SSH_MSG_CHANNEL_OPEN_CONFIRMATION), recipient channel 0, ...

A Trace is made only if its lines are wanted, so they are logged whatever the level of all others.
"""

import logging
from collections.abc import Iterator
from typing import Final

from ..errors import MalformedMessage
from ..log import TRACE
from ..wire import messages
from ..wire.codec import Buffer, Field, Message, Reader
from ..wire.messages import (
    KexInit,
    KexInitiate,
    KexReply,
    NewKeys,
    UserauthInfoRequest,
    UserauthPkOk,
)
from .auth_server import HOSTBOUND

_log = logging.getLogger(__name__)
_log.setLevel(TRACE)

# Our own choice
WORD_LIMIT: Final = 64  # characters of a name, which the peer may have made up

# The fields that are shown; all others are content.
_WORDS: Final = ("service_name", "method_name", "request_name", "channel_type", "request_type")
_CHANNELS: Final = {
    "recipient_channel": "recipient channel",
    "sender_channel": "sender channel",
}


def _rfc_name(kind: type[Message]) -> str:
    """The RFC name of a message: CHANNEL_OPEN for ChannelOpen."""
    if kind in (KexInit, NewKeys):
        return kind.__name__.upper()
    spaced = "".join(f"_{letter}" if letter.isupper() else letter for letter in kind.__name__)
    return spaced.removeprefix("_").upper()


def _shown_fields(kind: type[Message]) -> dict[str, Field]:
    """The fields up to the last one that is shown."""
    fields = dict(kind._fields)
    while fields and next(reversed(fields)) not in (*_WORDS, *_CHANNELS):
        fields.popitem()
    return fields


_KINDS: Final = {
    kind.number: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}
_NAMES: Final = {number: _rfc_name(kind) for number, kind in _KINDS.items()}
_FIELDS: Final = {number: _shown_fields(kind) for number, kind in _KINDS.items()}
# Messages whose names depend on the key exchange method, and on the authentication method.
_EXCHANGE_NAMES: Final = {KexInitiate.number: "INIT", KexReply.number: "REPLY"}
_EXCHANGES: Final = {
    "diffie": "KEXDH",  # RFC 4253 section 8
    "mlkem768x25519": "KEX_HYBRID",  # draft-ietf-sshm-mlkem-hybrid-kex
}  # all others: KEX_ECDH, RFC 5656 section 7.1
_METHOD_NAMES: Final = {
    "publickey": _rfc_name(UserauthPkOk),
    HOSTBOUND: _rfc_name(UserauthPkOk),
    "keyboard-interactive": _rfc_name(UserauthInfoRequest),
    "password": "USERAUTH_PASSWD_CHANGEREQ",  # RFC 4252 section 8
}


class Trace:
    """The trace of one connection."""

    def __init__(self) -> None:
        self.key_exchange = ""  # the method that was agreed upon last
        self._method = ""  # of the last USERAUTH_REQUEST

    def sent(self, payload: Buffer) -> None:
        """Logs a message that is about to be sent."""
        self._tell("send", payload)

    def received(self, payload: Buffer) -> None:
        """Logs a message that has arrived, before it is checked."""
        self._tell("receive", payload)

    def _tell(self, direction: str, payload: Buffer) -> None:
        number = payload[0]
        details = list(self._details(number, payload))
        name = self._name(number)
        words = (f"type {number} ({f'SSH_MSG_{name}' if name else 'unknown'})", *details)
        _log.log(TRACE, "%s packet: %s, %d bytes", direction, ", ".join(words), len(payload))

    def _details(self, number: int, payload: Buffer) -> Iterator[str]:
        reader = Reader(payload)
        reader.byte()
        try:
            for name, field in _FIELDS.get(number, {}).items():
                value = field.read(reader)
                if name in _CHANNELS:
                    yield f"{_CHANNELS[name]} {value}"
                elif name in _WORDS:
                    yield ascii(value[:WORD_LIMIT])[1:-1]
                if name == "method_name":
                    self._method = value
        except MalformedMessage:
            yield "malformed"

    def _name(self, number: int) -> str | None:
        if number in _EXCHANGE_NAMES:
            family = self.key_exchange.partition("-")[0]
            return f"{_EXCHANGES.get(family, 'KEX_ECDH')}_{_EXCHANGE_NAMES[number]}"
        if number == UserauthPkOk.number:
            return _METHOD_NAMES.get(self._method)
        return _NAMES.get(number)
