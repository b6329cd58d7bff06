"""links.toml: the tunnels and mounts that this machine opens to others and keeps open."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from . import hosts
from .mistakes import Mistake, check_ranges, check_unique, shown, within
from .network import (
    TunnelNetwork,
    check_device,
    check_network,
    check_own_addresses,
    check_texts,
    is_everything,
    reached_through,
)
from .reader import mistakes_in, read_table, structured


@dataclass(frozen=True, kw_only=True)  # no slots: a Link has those of TunnelNetwork
class ServerAccess:
    """A declared name, and the way to a server; ssh_config(5) supplies what is not given here."""

    name: str
    host: str
    port: int = 0  # 0: ssh_config's, or 22
    user: str = ""  # '': ssh_config's, or the local user
    identity_file: str = ""
    host_key: str = ""  # the server's public key, as in known_hosts; '': known_hosts decides
    known_hosts_file: str = ""
    proxy_jump: tuple[str, ...] = ()  # [user@]host[:port], the first one first
    # The texts of both may hold a password.
    proxy: str = field(default="", repr=False)  # http://[user:password@]host:port or socks5://...
    proxy_command: str = field(default="", repr=False)  # as ssh_config(5) has it
    server_alive_interval: int = 15  # seconds
    server_alive_count_max: int = 3  # unanswered probes before the server is given up
    connect_timeout: int = 15  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(ServerAccess, TunnelNetwork):
    """One tunnel to one server."""

    remote_device: str = "any"  # tunN or tapN at the server
    from_server: bool = False  # the server hands out addresses, routes, MTU and DNS
    kill_switch: bool = False  # block these routes outside the tunnel
    ipv6_outside: bool = False  # accept a full tunnel for IPv4 while IPv6 stays outside


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredMount(ServerAccess):
    """One directory of a server, mounted here by SFTP."""

    mountpoint: str  # an absolute path
    directory: str = ""  # at the server; '' is home
    options: tuple[str, ...] = ()  # of sshfs's -o


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """All settings of links.toml."""

    link: tuple[Link, ...] = ()
    mount: tuple[DeclaredMount, ...] = ()
    metrics_port: int = 0  # OpenMetrics on this port of 127.0.0.1, too; 0: on the socket only


# Our own choice
HANDED_OUT_LIMIT: Final = 64  # entries of each kind that are accepted from a server

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_MOUNTPOINT: Final = re.compile(r"(/(?!\.{1,2}(/|$))[^/]+)+/?")  # absolute, without . and ..
_ACCESS_RANGES: Final = {
    "port": (0, 65535),
    "server_alive_interval": (1, 3600),
    "server_alive_count_max": (1, 100),
    "connect_timeout": (1, 600),
}
_CONFIG_RANGES: Final = {"metrics_port": (0, 65535)}


def load_links_config(path: str) -> LinksConfig:
    """The file's links and mounts; raises UsageError."""
    table = read_table(path)
    with mistakes_in(path, table):
        config = structured(LinksConfig, table)
        check_ranges(config, _CONFIG_RANGES)
        for index, link in enumerate(config.link):
            with within("link", index):
                _check_link(link)
        check_unique((link.name for link in config.link), "link", key="name")
        devices = [None if link.device == "any" else link.device for link in config.link]
        check_unique(devices, "link", key="device")
        for index, mount in enumerate(config.mount):
            with within("mount", index):
                _check_mount(mount)
                if mount.name in {link.name for link in config.link}:
                    raise Mistake(f"a link has the name {mount.name}", "name")
        check_unique((mount.name for mount in config.mount), "mount", key="name")
        _check_places(config.mount)
    return config


def _check_link(link: Link) -> None:
    _check_name(link.name)
    if link.from_server:
        _check_from_server(link)
    check_network(link)
    check_device("remote_device", link.remote_device, link.mode)
    _check_access(link)
    _check_routes(link)
    if not link.from_server:
        check_own_addresses(link)


def _check_mount(mount: DeclaredMount) -> None:
    _check_name(mount.name)
    check_texts(mount)
    _check_access(mount)
    if not _MOUNTPOINT.fullmatch(mount.mountpoint):
        text = f"expected an absolute path such as /mnt/photos, not {shown(mount.mountpoint)}"
        raise Mistake(text, "mountpoint")


def _check_places(mounts: Sequence[DeclaredMount]) -> None:
    """Raises Mistake for a mount at or below the mount point of another one."""
    places = [mount.mountpoint.rstrip("/") for mount in mounts]
    check_unique(places, "mount", key="mountpoint")
    for index, path in enumerate(places):
        for other, above in zip(mounts, places, strict=True):
            if path.startswith(f"{above}/"):
                raise Mistake(
                    f"{path} lies in the mount '{other.name}', and would have to wait for its"
                    " server",
                    "mount",
                    index,
                    "mountpoint",
                )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Mistake(
            "expected 1 to 32 letters, digits and any of _ . - behind the first one, not"
            f" {shown(name)}",
            "name",
        )


def _check_from_server(link: Link) -> None:
    """Raises Mistake for a key that the server hands out, too: it is unclear which value counts."""
    for key in ("addresses", "peer", "routes", "dns", "domains"):
        if getattr(link, key):
            raise Mistake("comes from the server because of from_server = true", key)
    if link.bridge:
        raise Mistake(
            "a port of a bridge has no addresses, so that from_server = true has no use", "bridge"
        )


def _check_access(access: ServerAccess) -> None:
    """Checks numbers, host, user, jump hosts and proxy: there must be one way to the server."""
    check_ranges(access, _ACCESS_RANGES)
    _check_with(hosts.host_name, access.host, "host")
    if access.user:
        _check_with(hosts.user_name, access.user, "user")
    for index, jump in enumerate(access.proxy_jump):
        _check_with(hosts.destination, jump, "proxy_jump", index)
    if access.proxy:
        try:
            hosts.proxy(access.proxy)
        except ValueError as error:
            raise Mistake(str(error), "proxy") from error
    ways = [key for key in ("proxy_jump", "proxy", "proxy_command") if getattr(access, key)]
    if len(ways) > 1:
        raise Mistake(f"there is {ways[0]} already: only one way leads to the server", ways[1])
    if access.host_key and access.known_hosts_file:
        raise Mistake("there is host_key already: the file would not be read", "known_hosts_file")


def _check_with(parse: Callable[[str], object], text: str, *place: str | int) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise Mistake(f"{error}, not {shown(text)}", *place) from error


def _check_routes(link: Link) -> None:
    if link.kill_switch and not link.routes and not link.from_server:
        raise Mistake("there are no routes that it could guard", "kill_switch")
    reached = reached_through(link)
    if link.proxy_command and (
        link.kill_switch or is_everything(reached, 4) or is_everything(reached, 6)
    ):
        raise Mistake(
            "the address that it connects to is not known, and must stay outside the tunnel: use"
            " proxy or proxy_jump",
            "proxy_command",
        )
    everything = is_everything(reached, 4) and not is_everything(reached, 6)
    if everything and not link.ipv6_outside:
        raise Mistake(
            'IPv6 would go around the tunnel: add "::/0" to routes, or ipv6_outside = true if that'
            " is meant",
            "routes",
        )


def with_handed_out(link: Link, table: Mapping[str, object]) -> Link:
    """Returns the link with the settings of TunnelNetwork that its server hands out.

    Raises UsageError.
    """
    with mistakes_in("the server hands out", dict(table)):
        given = structured(TunnelNetwork, dict(table))
        for key in ("addresses", "peer", "routes", "dns", "domains"):
            if len(getattr(given, key)) > HANDED_OUT_LIMIT:
                raise Mistake(f"expected at most {HANDED_OUT_LIMIT}", key)
        whole = replace(link, from_server=False, **{key: getattr(given, key) for key in table})
        _check_link(whole)
    return whole
