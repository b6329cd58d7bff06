"""What the owner of a connection decides: its role, and the settings of both roles."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ..crypto.keys import PublicKey
from ..crypto.suites import Algorithms
from .auth_client import Credentials
from .auth_server import Authority

# Our own choices
WINDOW: Final = 2 << 20  # bytes of a channel; what OpenSSH gives a session or a tunnel
REKEY_BYTES: Final = 4 << 30  # in either direction; far below what AES-GCM may carry
REKEY_SECONDS: Final = 3600.0  # RFC 4253 section 9


class Settings(NamedTuple):
    """The settings of either role."""

    algorithms: Algorithms
    rekey_bytes: int = REKEY_BYTES
    rekey_seconds: float = REKEY_SECONDS
    window: int = WINDOW
    trace: bool = False  # log each message, but never its content


class ServerSide(NamedTuple):
    """What a connection needs to be a server's."""

    host_keys: Mapping[str, bytes]  # signature algorithm -> public key blob
    sign: Callable[[str, bytes], bytes]  # (algorithm, exchange hash) -> signature blob
    authority: Authority
    banner: str = ""
    extensions: tuple[str, ...] = ()  # that our EXT_INFO names besides SSH's own


class ClientSide(NamedTuple):
    """What a connection needs to be a client's."""

    user: str
    check_host_key: Callable[[PublicKey], None]  # key or Certificate; raises HostKeyRejected
    credentials: Credentials
    methods: tuple[str, ...] = ("publickey", "keyboard-interactive", "password")
