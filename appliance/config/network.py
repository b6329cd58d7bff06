"""The network settings of one end of a tunnel, for its own machine, and their checks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
)
from typing import Any, Final, Literal, Protocol

from .mistakes import Mistake, check_ranges, check_unique, shown

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

Mode = Literal["point-to-point", "ethernet"]
Masquerade = Literal["no", "from-tunnel", "into-tunnel", "both"]

# Of the specifications
IPV6_MTU: Final = 1280  # bytes: RFC 8200 section 5
_MTUS: Final = (576, 65535)  # RFC 791 section 3.1, Total Length
_INTERFACE: Final = re.compile(r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}")  # Linux, dev_valid_name
_DOMAIN: Final = re.compile(  # RFC 1123 section 2.1, and _ for names of services
    r"(?=.{1,253}$)(?!-)[a-zA-Z0-9_-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9_-]{1,63}(?<!-))*"
)

# Our own choice
_DEVICE_NUMBER: Final = "(0|[1-9][0-9]{0,5})"  # short enough for an interface's name


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelNetwork:
    """A tunnel device, and the settings that this machine applies to it."""

    mode: Mode = "point-to-point"
    device: str = "any"  # tunN or tapN, or 'any' for the next free one
    addresses: tuple[Interface, ...] = ()  # of the device: 10.9.0.1/30
    peer: tuple[Address, ...] = ()  # the other end's addresses, at most one per family
    routes: tuple[Network, ...] = ()  # networks behind the other end
    any_source: bool = False  # the peer may send from any address, and get packets for any
    mtu: int = 1500  # bytes
    bridge: str = ""  # an ethernet device becomes a port of this bridge, made if missing
    forward: tuple[Network, ...] = ()  # networks behind this end; packets are forwarded for them
    masquerade: Masquerade = "no"  # which forwarded packets get this machine's address as source
    dns: tuple[Address, ...] = ()  # name servers while the tunnel is up
    domains: tuple[str, ...] = ()  # names that these servers resolve; (): all names


class _Addressing(Protocol):
    """The fields that both ends of a tunnel have: TunnelNetwork and ClientNetwork."""

    @property
    def addresses(self) -> tuple[Interface, ...]: ...
    @property
    def peer(self) -> tuple[Address, ...]: ...
    @property
    def routes(self) -> tuple[Network, ...]: ...
    @property
    def mtu(self) -> int: ...
    @property
    def dns(self) -> tuple[Address, ...]: ...
    @property
    def domains(self) -> tuple[str, ...]: ...


def check_network(network: TunnelNetwork) -> None:
    """Raises Mistake for settings that cannot be applied."""
    check_texts(network)
    check_device("device", network.device, network.mode)
    if network.bridge:
        _check_bridge(network)
    check_addressing(network)
    if network.any_source and network.mode != "point-to-point":
        raise Mistake("an ethernet device takes packets of any source as it is", "any_source")
    if network.masquerade != "no" and not network.forward:
        raise Mistake("only what is forwarded is masqueraded: add forward", "masquerade")
    check_unique(network.forward, "forward")
    for index, behind in enumerate(network.forward):
        if behind in network.routes:
            text = (
                f"{behind} lies behind the other end, says routes; give what lies behind this one"
            )
            raise Mistake(text, "forward", index)


def check_own_addresses(network: TunnelNetwork) -> None:
    """Raises Mistake if no key says which addresses the other end may use, so that it has none."""
    said = network.addresses or network.peer or network.routes
    if network.mode == "point-to-point" and not (said or network.any_source):
        raise Mistake(
            "nothing says which addresses are the other end's, and it may use no others: give"
            " addresses, peer or routes, or any_source = true",
            "addresses",
        )


def check_texts(entry: object) -> None:
    """Raises Mistake for a string of the dataclass that is not one printable line."""
    for field in fields(entry):  # type: ignore[arg-type]
        value = getattr(entry, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise Mistake("expected one line without control characters", field.name)


def check_device(key: str, name: str, mode: Mode) -> None:
    """Raises Mistake for a name that is neither 'any' nor a device of this mode."""
    kind = "tap" if mode == "ethernet" else "tun"
    if name != "any" and not re.fullmatch(kind + _DEVICE_NUMBER, name):
        raise Mistake(
            f"expected 'any' or {kind}0 to {kind}999999 for mode {mode}, not {shown(name)}", key
        )


def _check_bridge(network: TunnelNetwork) -> None:
    if network.mode != "ethernet":
        raise Mistake('only an ethernet device can be in a bridge: add mode = "ethernet"', "bridge")
    if not _INTERFACE.fullmatch(network.bridge):
        raise Mistake(
            f"expected the name of an interface, 1 to 15 characters, not {shown(network.bridge)}",
            "bridge",
        )
    if network.bridge == network.device:
        raise Mistake("the device cannot be its own bridge", "bridge")
    for key in ("addresses", "peer", "routes"):
        if getattr(network, key):
            raise Mistake(
                f"a port of a bridge has no addresses: give them to {network.bridge} itself", key
            )


def check_addressing(network: _Addressing) -> None:
    """Raises Mistake for addresses, routes and name servers that do not fit each other."""
    for index, interface in enumerate(network.addresses):
        _check_address(interface, index)
    check_unique((interface.ip for interface in network.addresses), "addresses")
    _check_peer(network)
    check_unique(network.routes, "routes")
    check_ranges(network, {"mtu": _MTUS})
    if 6 in _versions(network.addresses, network.routes) and network.mtu < IPV6_MTU:
        raise Mistake(f"IPv6 needs at least {IPV6_MTU}, not {network.mtu}", "mtu")
    _check_dns(network)


def _check_address(interface: Interface, index: int) -> None:
    place = ("addresses", index)
    if not _is_of_a_host(interface.ip):
        raise Mistake(f"{interface.ip} is no address of one host", *place)
    network = interface.network
    if network.prefixlen < network.max_prefixlen - 1:
        if interface.ip == network.network_address:
            raise Mistake(f"{interface} is the network's address, no host's", *place)
        if interface.version == 4 and interface.ip == network.broadcast_address:
            raise Mistake(f"{interface} is the broadcast address, no host's", *place)


def _is_of_a_host(address: Address) -> bool:
    return not (address.is_multicast or address.is_unspecified or address.is_loopback)


def _check_peer(network: _Addressing) -> None:
    ours = {interface.ip for interface in network.addresses}
    for index, peer in enumerate(network.peer):
        if not _is_of_a_host(peer):
            raise Mistake(f"{peer} is no address of one host", "peer", index)
        if peer in ours:
            raise Mistake(f"{peer} is this end's own address", "peer", index)
        if peer.version not in _versions(network.addresses):
            raise Mistake(f"addresses has no IPv{peer.version} address", "peer", index)
        if peer.version in _versions(network.peer[:index]):
            raise Mistake(f"there is an IPv{peer.version} address before it", "peer", index)


def _check_dns(network: _Addressing) -> None:
    reached = _versions(network.addresses, network.routes)
    for index, server in enumerate(network.dns):
        if server.is_multicast or server.is_unspecified:
            raise Mistake(f"{server} is no address of one host", "dns", index)
        if reached and server.version not in reached and not server.is_loopback:
            raise Mistake(
                f"addresses and routes have no IPv{server.version} to reach {server} with",
                *("dns", index),
            )
    check_unique(network.dns, "dns")
    for index, domain in enumerate(network.domains):
        if not _DOMAIN.fullmatch(domain):
            raise Mistake(
                f"expected a name such as example.org, not {shown(domain)}", "domains", index
            )
    check_unique(map(str.lower, network.domains), "domains")
    if network.domains and not network.dns:
        raise Mistake("there is no name server to ask for them: add dns", "domains")


def _versions(*groups: Sequence[Interface | Address | Network]) -> set[int]:
    return {each.version for group in groups for each in group}


def reached_through(network: _Addressing) -> list[Network]:
    """Returns the networks behind the tunnel: its routes, and the networks of its addresses."""
    return [*network.routes, *(address.network for address in network.addresses)]


def is_everything(routes: Iterable[Network], version: int) -> bool:
    """Whether the routes of this IP version together are the whole internet."""
    of_version = [route for route in routes if route.version == version]
    whole = list(collapse_addresses(of_version))  # type: ignore[type-var]
    return len(whole) == 1 and whole[0].prefixlen == 0


def without_ipv6(network: TunnelNetwork) -> TunnelNetwork:
    """Returns the settings without IPv6, for a machine whose IPv6 is switched off."""
    fields = ("addresses", "peer", "routes", "forward", "dns")
    kept: dict[str, Any] = {
        name: tuple(each for each in getattr(network, name) if each.version == 4) for name in fields
    }
    domains = network.domains if kept["dns"] else ()
    return replace(network, domains=domains, **kept)
