"""The server's settings, and how they are read from a TOML file.

Every key is optional, has the name of the field below, and means what sshd_config's key of
that name means. An error names the file, the key and what is expected.
"""

import re
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
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
    check_own_addresses,
    check_texts,
)
from .reader import GIVEN, mistakes_in, read_table, structured

PermitRootLogin = Literal["yes", "prohibit-password", "forced-commands-only", "no"]
PermitTunnel = Literal["no", "point-to-point", "ethernet", "yes"]
Forwarding = Literal["yes", "no", "local", "remote"]
GatewayPorts = Literal["no", "yes", "clientspecified"]
Sandbox = Literal["wanted", "required"]
X11Relay = Literal["auto", "on", "off"]
Profile = Literal["default", "hardened"]
SftpLog = Literal["quiet", "error", "info", "verbose", "debug"]

DEFAULT_HOST_KEY: Final = "/etc/culvert/ssh_host_ed25519_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientNetwork:
    """The settings that the server hands out to the client of a tunnel; the client may use them."""

    addresses: tuple[Interface, ...] = ()
    peer: tuple[Address, ...] = ()
    routes: tuple[Network, ...] = ()
    mtu: int = 1500
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel(TunnelNetwork):
    """A device that the server makes when it starts, for one client at a time.

    Without ``key`` and ``user``, only logins as root may use it.
    """

    key: str = ""  # only the client with this public key, or its SHA256: fingerprint
    user: str = ""  # only logins as this user
    client: ClientNetwork = ClientNetwork()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """Settings that a Match may change for a connection; durations in seconds, 0 for never."""

    allow_users: tuple[str, ...] = ()  # patterns, also USER@ADDRESS and USER@NETWORK; () is all
    deny_users: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ()
    deny_groups: tuple[str, ...] = ()
    permit_root_login: PermitRootLogin = "yes"
    password_authentication: bool = True
    permit_empty_passwords: bool = False
    # Each string is a list with commas: all of its methods are required, in this order.
    authentication_methods: tuple[str, ...] = ()  # () is any one method
    totp_file: str = ""  # lines of user:base32, for keyboard-interactive:totp
    password_file: str = ""  # lines of user:argon2id-hash, in place of the system's hashes
    authorized_keys_directory: str = "~/.ssh"
    trusted_user_ca_keys: str = ""  # a file: authorities whose user certificates are accepted
    authorized_principals_file: str = ""  # %u, %h, %U; certificates must name a principal in it
    revoked_keys: str = ""  # a file: a revocation list, or public keys
    pubkey_accepted_algorithms: tuple[str, ...] = ()  # () is the profile's
    ca_signature_algorithms: tuple[str, ...] = ()
    max_auth_tries: int = 6

    force_command: str = ""
    accept_env: tuple[str, ...] = ("LANG", "LC_*", "COLORTERM")
    chroot_directory: str = ""  # %h, %u, %U; see appliance/server/chroot.py
    subsystems: dict[str, str] = field(default_factory=dict)
    sftp: bool = True  # the subsystem sftp, unless ``subsystems`` names another program for it
    sftp_read_only: bool = False
    sftp_umask: str = ""  # octal; '' is that of all programs
    sftp_start_directory: str = ""  # %d is the home, %u the user; '' is the home
    sftp_log: SftpLog = "error"
    sftp_ignore_setstat: bool = False  # say that attributes were changed, and change none
    max_sessions: int = 10
    permit_tty: bool = True
    permit_user_rc: bool = True
    # Variables that authorized_keys may set, a pattern list; () is PermitUserEnvironment's no.
    permit_user_environment: tuple[str, ...] = ()
    disable_forwarding: bool = False  # overrides all forwarding keys below, tunnels included
    allow_tcp_forwarding: Forwarding = "yes"  # "local" is -L and -D, "remote" is -R
    allow_stream_local_forwarding: Forwarding = "yes"
    allow_agent_forwarding: bool = True
    x11_forwarding: bool | None = None  # None is the profile's: true, but false if it is hardened
    x11_use_localhost: bool = True
    x11_display_offset: int = 10
    x11_relay: X11Relay = "auto"  # hides round trips; "auto": where they take over 10 ms
    gateway_ports: GatewayPorts = "no"
    permit_open: tuple[str, ...] = ()  # host:port of -L and -D, '*' for any; () is all
    permit_listen: tuple[str, ...] = ()  # host:port of -R
    permit_tunnel: PermitTunnel = "no"

    client_alive_interval: int = 0  # of silence, until the server sends a probe
    client_alive_count_max: int = 3  # unanswered probes before the connection ends
    idle_timeout: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Match(ConnectionConfig):
    """Settings that replace the server's for connections that match all of its criteria.

    Each criterion is a list of patterns with commas, as in Match of sshd_config(5); '' matches all.
    """

    user: str = ""
    group: str = ""
    address: str = ""
    local_address: str = ""
    local_port: str = ""
    given: frozenset[str] = field(default=frozenset(), metadata=GIVEN)


CRITERIA: Final = ("user", "group", "address", "local_address", "local_port")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ConnectionConfig):
    """All settings of ``culvert sshd``; durations in seconds, 0 for never."""

    listen: tuple[str, ...] = ("22",)  # [address:]port
    host_keys: tuple[str, ...] = (DEFAULT_HOST_KEY,)
    make_host_keys: bool = False  # make the files of host_keys that are missing
    host_certificates: tuple[str, ...] = ()  # files, each for one of host_keys
    pid_file: str = "/run/culvert.pid"
    profile: Profile = "default"
    sandbox: Sandbox = "wanted"  # 'wanted': start even if system calls cannot be filtered

    kex_algorithms: tuple[str, ...] = ()  # () is the profile's, without finite-field groups
    login_grace_time: int = 120
    max_startups: tuple[int, int, int] = (10, 30, 100)  # start, percent, full
    per_source_max_startups: int = 20
    per_source_net_block_size: tuple[int, int] = (32, 64)  # bits of IPv4 and IPv6
    per_source_penalties: bool = True
    # Connections from this machine often come from a proxy that all clients share.
    per_source_penalty_exempt_list: tuple[str, ...] = ("127.0.0.0/8", "::1")

    trace: bool = False  # the log names each message of each connection, never its content
    audit_file: str = ""  # one JSON object per line, see appliance/server/audit.py
    audit_files: bool = False  # it also has the changes that the SFTP server reports
    audit_commands: bool = False  # the audit file also has the commands that users run

    banner: str = ""  # a file's name
    print_motd: bool = True
    pass_environment: bool = False  # the users' programs get the server's environment
    tunnel: tuple[Tunnel, ...] = ()
    match: tuple[Match, ...] = ()

    merge_memory: bool = False  # the kernel merges equal pages of connections (KSM)
    receive_window: int = 2 << 20
    rekey_bytes: int = 4 << 30
    rekey_seconds: int = 3600


_CONNECTION_RANGES: Final = {
    "max_auth_tries": (1, 100),
    "max_sessions": (0, 1000),
    "x11_display_offset": (0, 0xFFFF - 6000 - 1000),
    "client_alive_interval": (0, 86400),
    "client_alive_count_max": (1, 1000),
    "idle_timeout": (0, 10 * 86400),
}
_RANGES: Final = {
    "login_grace_time": (0, 86400),
    "per_source_max_startups": (1, 10000),
    "receive_window": (32 << 10, 64 << 20),
    "rekey_bytes": (1 << 20, 64 << 30),
    "rekey_seconds": (60, 86400),
}


_KEY: Final = re.compile(
    r"SHA256:[A-Za-z0-9+/]{43}|[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}( .*)?"  # RFC 4253 section 6.6
)


# sshd_config(5), TOKENS
_PRINCIPALS: Final = re.compile("(?:[^%]|%[uhU%])*")
_CHROOT: Final = re.compile("(?:(?:/|%h)(?:[^%]|%[uhU%])*)?")
# sftp-server(8)
_START_DIRECTORY: Final = re.compile("(?:[^%]|%[du%])*")
_UMASK: Final = re.compile("[0-7]{0,3}|0[0-7]{3}")


def load_server_config(path: str, defaults: ServerConfig) -> ServerConfig:
    """The file's settings over ``defaults``; raises UsageError."""
    table = read_table(path)
    with mistakes_in(path, table):
        given = structured(ServerConfig, table)
        check_ranges(given, _RANGES)
        _check_start_ups(given)
        _check_connection(given)
        for index, match in enumerate(given.match):
            with within("match", index):
                _check_criteria(match)
                _check_connection(match)
        for index, tunnel in enumerate(given.tunnel):
            with within("tunnel", index):
                _check_tunnel(tunnel)
        check_unique((tunnel.device for tunnel in given.tunnel), "tunnel", key="device")
    return replace(defaults, **{key: getattr(given, key) for key in table})


def _check_start_ups(config: ServerConfig) -> None:
    start, percent, full = config.max_startups
    if not (1 <= start <= full and 1 <= percent <= 100):
        text = "expected start, percent and full such as [10, 30, 100]"
        raise Mistake(f"{text}, not {shown(list(config.max_startups))}", "max_startups")
    ipv4, ipv6 = config.per_source_net_block_size
    if not (0 <= ipv4 <= 32 and 0 <= ipv6 <= 128):
        text = "expected bits of IPv4 and of IPv6 such as [32, 64]"
        raise Mistake(
            f"{text}, not {shown(list(config.per_source_net_block_size))}",
            "per_source_net_block_size",
        )


def _check_connection(config: ConnectionConfig) -> None:
    check_ranges(config, _CONNECTION_RANGES)
    for key in ("allow_users", "deny_users", "allow_groups", "deny_groups"):
        for index, pattern in enumerate(getattr(config, key)):
            with within(key, index):
                _check_pattern(pattern, of_users=key.endswith("_users"))
    _check_endpoints(config)
    for key, pattern, expected in (
        ("chroot_directory", _CHROOT, "an absolute path with no tokens but %u, %h, %U and %%"),
        ("sftp_start_directory", _START_DIRECTORY, "a path with no tokens but %d, %u and %%"),
        ("sftp_umask", _UMASK, "an octal number such as 027"),
    ):
        if not pattern.fullmatch(getattr(config, key)):
            raise Mistake(f"expected {expected}, not {shown(getattr(config, key))}", key)
    if not _PRINCIPALS.fullmatch(config.authorized_principals_file):
        text = shown(config.authorized_principals_file)
        raise Mistake(
            f"expected a path with no tokens but %u, %h, %U and %%, not {text}",
            "authorized_principals_file",
        )


def _check_pattern(pattern: str, of_users: bool) -> None:
    """Raises Mistake for a list or a '!', which have no effect here: use the deny keys instead."""
    name, at, address = pattern.rpartition("@") if of_users else ("", "", pattern)
    words = (name, address) if at else (address,)
    if not all(words) or set(pattern) & set("!,") or not pattern.isprintable() or " " in pattern:
        kind = "user, or USER@ADDRESS" if of_users else "group"
        raise Mistake(f"expected a pattern of a {kind}, not {shown(pattern)}")
    if at:
        _check_address(address)


def _check_address(pattern: str) -> None:
    """Raises Mistake for a pattern with '/' that is no network, or has bits of a host."""
    try:
        if "/" in pattern:
            ip_network(pattern)
    except ValueError as error:
        raise Mistake(
            f"expected an address, a pattern of one or a network such as 192.168.2.0/24, "
            f"not {shown(pattern)}"
        ) from error


def _check_criteria(match: Match) -> None:
    if not any(getattr(match, key) for key in CRITERIA):
        raise Mistake(f"it would cover every connection: expected one of {', '.join(CRITERIA)}")
    for key in CRITERIA:
        with within(key):
            _check_patterns(key, getattr(match, key))


def _check_patterns(key: str, text: str) -> None:
    patterns = [each.removeprefix("!") for each in text.split(",")] if text else []
    if not all(each and each.isprintable() for each in patterns):
        raise Mistake(f"expected patterns with commas, not {shown(text)}")
    for pattern in patterns:
        if key.endswith("address"):
            _check_address(pattern)
        elif key == "local_port" and set(pattern) - set("0123456789*?"):
            raise Mistake(f"expected a port or a pattern of one, not {shown(pattern)}")


def _check_endpoints(config: ConnectionConfig) -> None:
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
    check_own_addresses(tunnel)
