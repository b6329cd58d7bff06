"""The server's settings, and how a TOML file becomes them.

Every key is optional, has the name of the field below, and means what sshd_config's key of
that name means. An error names the file, the key and what is expected.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from .hosts import endpoint, user_name
from .mistakes import Mistake, check_ranges, check_unique, shown, within
from .network import (
    Address,
    Interface,
    Network,
    TunnelNetwork,
    check_addressing,
    check_network,
    check_texts,
)
from .reader import mistakes_in, read_table, structured

PermitRootLogin = Literal["yes", "prohibit-password", "no"]
PermitTunnel = Literal["no", "point-to-point", "ethernet", "yes"]
Forwarding = Literal["yes", "no", "local", "remote"]
GatewayPorts = Literal["no", "yes", "clientspecified"]
Profile = Literal["default", "hardened"]

DEFAULT_HOST_KEY: Final = "/etc/culvert/ssh_host_ed25519_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientNetwork:
    """What the server hands to the client of a tunnel, which may take it."""

    addresses: tuple[Interface, ...] = ()
    peer: tuple[Address, ...] = ()
    routes: tuple[Network, ...] = ()
    mtu: int = 1500
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel(TunnelNetwork):
    """A device that the server makes when it starts, for one client at a time."""

    key: str = ""  # only the client with this public key, or its SHA256: fingerprint
    user: str = ""  # only who logs in as this user
    client: ClientNetwork = ClientNetwork()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What ``culvert sshd`` does; durations in seconds, 0 for never."""

    listen: tuple[str, ...] = ("22",)  # [address:]port
    host_keys: tuple[str, ...] = (DEFAULT_HOST_KEY,)
    make_host_keys: bool = False  # those of host_keys that are missing
    host_certificates: tuple[str, ...] = ()  # files, each of one of host_keys
    pid_file: str = "/run/culvert.pid"
    profile: Profile = "default"

    permit_root_login: PermitRootLogin = "yes"
    password_authentication: bool = True
    permit_empty_passwords: bool = False
    # Each of them is a list with commas, of which every method is required, in its order.
    authentication_methods: tuple[str, ...] = ()  # () is any one method
    totp_file: str = ""  # lines of user:base32, for keyboard-interactive:totp
    password_file: str = ""  # lines of user:argon2id-hash, in place of the system's hashes
    authorized_keys_directory: str = "~/.ssh"
    trusted_user_ca_keys: str = ""  # a file: authorities whose certificates let users in
    authorized_principals_file: str = ""  # %u, %h, %U: for whom such certificates must be
    revoked_keys: str = ""  # a file: a revocation list, or public keys
    pubkey_accepted_algorithms: tuple[str, ...] = ()  # () is the profile's
    ca_signature_algorithms: tuple[str, ...] = ()
    allow_group: str = ""
    max_auth_tries: int = 6
    login_grace_time: int = 120
    max_startups: tuple[int, int, int] = (10, 30, 100)  # start, percent, full
    max_startups_per_source: int = 20
    per_source_penalties: bool = True
    # What comes from this machine is often a proxy in front of everybody.
    per_source_penalty_exempt_list: tuple[str, ...] = ("127.0.0.0/8", "::1")

    banner: str = ""  # a file's name
    print_motd: bool = True
    force_command: str = ""
    accept_env: tuple[str, ...] = ("LANG", "LC_*", "COLORTERM")
    pass_environment: bool = False  # the server's own, to the user's programs
    subsystems: dict[str, str] = field(default_factory=dict)
    permit_tty: bool = True
    permit_user_rc: bool = True
    disable_forwarding: bool = False  # all that follow and tunnels, whatever they say
    allow_tcp_forwarding: Forwarding = "yes"  # "local" is -L and -D, "remote" is -R
    allow_stream_local_forwarding: Forwarding = "yes"
    allow_agent_forwarding: bool = True
    gateway_ports: GatewayPorts = "no"
    permit_open: tuple[str, ...] = ()  # host:port of -L and -D, '*' for any; () is all
    permit_listen: tuple[str, ...] = ()  # host:port of -R
    permit_tunnel: PermitTunnel = "no"
    tunnel: tuple[Tunnel, ...] = ()

    receive_window: int = 2 << 20
    keepalive: int = 0
    idle_timeout: int = 0
    rekey_bytes: int = 4 << 30
    rekey_seconds: int = 3600


_RANGES: Final = {
    "max_auth_tries": (1, 100),
    "login_grace_time": (0, 86400),
    "max_startups_per_source": (1, 10000),
    "receive_window": (32 << 10, 64 << 20),
    "keepalive": (0, 86400),
    "idle_timeout": (0, 10 * 86400),
    "rekey_bytes": (1 << 20, 64 << 30),
    "rekey_seconds": (60, 86400),
}


_KEY: Final = re.compile(
    r"SHA256:[A-Za-z0-9+/]{43}|[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( .*)?"  # RFC 4253 section 6.6
)


_PRINCIPALS: Final = re.compile("(?:[^%]|%[uhU%])*")  # sshd_config(5), TOKENS


def load_server_config(path: str, defaults: ServerConfig) -> ServerConfig:
    """The file's settings over ``defaults``; raises UsageError."""
    table = read_table(path)
    with mistakes_in(path, table):
        given = structured(ServerConfig, table)
        check_ranges(given, _RANGES)
        _check_endpoints(given)
        if not _PRINCIPALS.fullmatch(given.authorized_principals_file):
            text = shown(given.authorized_principals_file)
            raise Mistake(
                f"expected a path with no tokens but %u, %h, %U and %%, not {text}",
                "authorized_principals_file",
            )
        for index, tunnel in enumerate(given.tunnel):
            with within("tunnel", index):
                _check_tunnel(tunnel)
        check_unique((tunnel.device for tunnel in given.tunnel), "tunnel", key="device")
    return replace(defaults, **{key: getattr(given, key) for key in table})


def _check_endpoints(config: ServerConfig) -> None:
    for key in ("permit_open", "permit_listen"):
        for index, text in enumerate(getattr(config, key)):
            try:
                endpoint(text)
            except ValueError as error:
                raise Mistake(f"{error}, not {shown(text)}", key, index) from error


def _check_tunnel(tunnel: Tunnel) -> None:
    check_network(tunnel)
    if tunnel.device == "any":
        kind = "tap0" if tunnel.mode == "ethernet" else "tun0"
        raise Mistake(f"expected a definite device such as {kind}, by which clients ask", "device")
    if tunnel.key and not _KEY.fullmatch(tunnel.key):
        raise Mistake(f"expected a public key or SHA256:..., not {shown(tunnel.key)}", "key")
    if tunnel.user:
        try:
            user_name(tunnel.user)
        except ValueError as error:
            raise Mistake(f"{error}, not {shown(tunnel.user)}", "user") from error
    with within("client"):
        check_texts(tunnel.client)
        check_addressing(tunnel.client)
        if tunnel.client.routes and not tunnel.client.addresses:
            raise Mistake("the client needs an address to use them: add addresses", "routes")
