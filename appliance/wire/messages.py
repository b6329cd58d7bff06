"""The messages of RFC 4252, 4253, 4254, 4256, 5656, 8308 and OpenSSH's PROTOCOL.

Each carries its RFC name without SSH_MSG_ and the RFC's field names. Numbers 30 to 49
and 60 to 79 mean different things in different key exchanges and authentication
methods, so the caller names the class that it expects.
"""

import struct
from typing import Final

from .codec import (
    Boolean,
    Cookie,
    Extensions,
    Message,
    Name,
    Offered,
    Prompts,
    Rest,
    Shown,
    String,
    Strings,
    Text,
    UInt32,
)

# RFC 4253 section 11.1
BY_APPLICATION: Final = 11

# RFC 4254 section 5.1
ADMINISTRATIVELY_PROHIBITED: Final = 1
CONNECT_FAILED: Final = 2
UNKNOWN_CHANNEL_TYPE: Final = 3
RESOURCE_SHORTAGE: Final = 4

# RFC 4254 section 5.2
EXTENDED_DATA_STDERR: Final = 1


class Disconnect(Message, number=1):
    reason_code: UInt32
    description: Shown = ""
    language_tag: Rest = bytes(4)  # an empty string; some peers leave it out


class Ignore(Message, number=2):
    data: String = b""


class Unimplemented(Message, number=3):
    sequence_number: UInt32


class Debug(Message, number=4):
    always_display: Boolean
    message: Shown
    language_tag: Shown = ""


class ServiceRequest(Message, number=5):
    service_name: Name


class ServiceAccept(Message, number=6):
    service_name: Name


class ExtInfo(Message, number=7):
    extensions: Extensions


class KexInit(Message, number=20):
    cookie: Cookie
    kex_algorithms: Offered
    server_host_key_algorithms: Offered
    encryption_algorithms_client_to_server: Offered
    encryption_algorithms_server_to_client: Offered
    mac_algorithms_client_to_server: Offered
    mac_algorithms_server_to_client: Offered
    compression_algorithms_client_to_server: Offered
    compression_algorithms_server_to_client: Offered
    languages_client_to_server: Offered = ()
    languages_server_to_client: Offered = ()
    first_kex_packet_follows: Boolean = False
    reserved: UInt32 = 0


class NewKeys(Message, number=21):
    pass


class KexInitiate(Message, number=30):
    """SSH_MSG_KEX_ECDH_INIT, KEX_HYBRID_INIT and, since an mpint is laid out like a
    string, KEXDH_INIT: the client's public value."""

    client_public: String


class KexReply(Message, number=31):
    """SSH_MSG_KEX_ECDH_REPLY, KEX_HYBRID_REPLY and KEXDH_REPLY."""

    host_key: String
    server_public: String
    signature: String


class UserauthRequest(Message, number=50):
    user_name: Text
    service_name: Name
    method_name: Name
    method_fields: Rest


class UserauthFailure(Message, number=51):
    methods: Offered
    partial_success: Boolean


class UserauthSuccess(Message, number=52):
    pass


class UserauthBanner(Message, number=53):
    message: Shown
    language_tag: Shown = ""


class UserauthPkOk(Message, number=60):
    algorithm: Name
    public_key: String


class UserauthInfoRequest(Message, number=60):
    name: Shown
    instruction: Shown
    language_tag: Shown
    prompts: Prompts


class UserauthInfoResponse(Message, number=61):
    responses: Strings


class GlobalRequest(Message, number=80):
    request_name: Name
    want_reply: Boolean
    request_data: Rest = b""


class RequestSuccess(Message, number=81):
    response_data: Rest = b""


class RequestFailure(Message, number=82):
    pass


class ChannelOpen(Message, number=90):
    channel_type: Name
    sender_channel: UInt32
    initial_window_size: UInt32
    maximum_packet_size: UInt32
    type_data: Rest = b""


class ChannelOpenConfirmation(Message, number=91):
    recipient_channel: UInt32
    sender_channel: UInt32
    initial_window_size: UInt32
    maximum_packet_size: UInt32
    type_data: Rest = b""


class ChannelOpenFailure(Message, number=92):
    recipient_channel: UInt32
    reason_code: UInt32
    description: Shown = ""
    language_tag: Shown = ""


class ChannelWindowAdjust(Message, number=93):
    recipient_channel: UInt32
    bytes_to_add: UInt32


class ChannelData(Message, number=94):
    recipient_channel: UInt32
    data: String


class ChannelExtendedData(Message, number=95):
    recipient_channel: UInt32
    data_type_code: UInt32
    data: String


class ChannelEof(Message, number=96):
    recipient_channel: UInt32


class ChannelClose(Message, number=97):
    recipient_channel: UInt32


class ChannelRequest(Message, number=98):
    recipient_channel: UInt32
    request_type: Name
    want_reply: Boolean
    request_data: Rest = b""


class ChannelSuccess(Message, number=99):
    recipient_channel: UInt32


class ChannelFailure(Message, number=100):
    recipient_channel: UInt32


class Ping(Message, number=192):
    """OpenSSH PROTOCOL 1.10, ping@openssh.com."""

    data: String


class Pong(Message, number=193):
    data: String


# The two hot messages, packed by hand: number, recipient, [type,] length of the data.
# tests/unit/wire/test_messages.py shows that they equal the records above.
CHANNEL_DATA_HEADER: Final = struct.Struct(">BII")
CHANNEL_EXTENDED_DATA_HEADER: Final = struct.Struct(">BIII")
