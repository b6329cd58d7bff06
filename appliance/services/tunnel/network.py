"""Plans the changes that a tunnel needs in the network of its machine, as a list of small changes.

Nothing is done here: ``plan`` turns a TunnelNetwork into Change records. Each record names one
wanted state, and describes itself as the well-known command line for it. ``kernel.py`` makes the
changes, remembers them, and undoes them; ``chains.py`` has the text of the rules.

Two changes with the same ``key`` exclude each other: the later one replaces the earlier one
without a moment in which neither is in effect. This keeps a kill switch closed while its
exceptions change.

A tunnel that is a bridge's port hands all its packets to the bridge, so that addresses, routes
and rules name the bridge instead.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, Self

from ...config.network import Address as IPAddress
from ...config.network import Mode, Network, TunnelNetwork, reached_through, without_ipv6
from ...errors import CulvertError, UsageError
from . import chains
from .chains import Outside
from .marks import MARK, PIN_TABLE, TABLE_PREFIX, digest_of, table_script

# linux/if.h: IFNAMSIZ is 16 with the final zero. Characters that nft or resolvectl could read as
# syntax are not permitted.
_DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_OWNER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DOMAIN: Final = re.compile(r"~?(\.|[A-Za-z0-9_][A-Za-z0-9_.-]{0,253})")

_FORWARD: Final = "culvert-forward"  # prefix of the PassedOn tables, one for each IP version


class NetworkError(CulvertError):
    """A change to the machine's network failed; the text names the change."""


@dataclass(frozen=True, slots=True)
class Change:
    """One wanted state; its fields are text, numbers and tuples of text."""

    def describe(self) -> str:
        """Returns a command line that would do the same, or nearly."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[str, ...]:
        """Names the setting that is changed: two changes with the same key exclude each other."""
        return (type(self).__name__, *(str(value) for value in dataclasses.astuple(self)))

    def to_json(self) -> dict[str, object]:
        """Returns the argument of ``change_from_json``."""
        return {"kind": type(self).__name__} | dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Rules(Change):
    """One nftables table of the family inet; ``body`` is the text between its braces."""

    table: str
    body: str

    def describe(self) -> str:
        return f"nft -f - (table inet {self.table})"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Rules", self.table)

    @property
    def is_kill_switch(self) -> bool:
        """Whether the rules contain a kill switch."""
        return f"chain {chains.KILL_SWITCH} " in self.body

    @property
    def digest(self) -> str:
        """Identifies one version of the rules; the table has it as its comment."""
        return digest_of(self.body)

    @property
    def script(self) -> str:
        """Input for `nft -f -` that replaces the whole table in one transaction."""
        return table_script(self.table, self.body)


@dataclass(frozen=True, slots=True)
class Device(Change):
    """A persistent tun or tap device."""

    name: str
    mode: Mode

    def describe(self) -> str:
        kind = "tun" if self.mode == "point-to-point" else "tap"
        return f"ip tuntap add dev {self.name} mode {kind}"


@dataclass(frozen=True, slots=True)
class Mtu(Change):
    """The MTU of a device."""

    device: str
    mtu: int  # bytes

    def describe(self) -> str:
        return f"ip link set dev {self.device} mtu {self.mtu}"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Mtu", self.device)


@dataclass(frozen=True, slots=True)
class Bridge(Change):
    """A bridge."""

    name: str

    def describe(self) -> str:
        return f"ip link add name {self.name} type bridge"


@dataclass(frozen=True, slots=True)
class Port(Change):
    """A device that is a bridge's port."""

    device: str
    bridge: str

    def describe(self) -> str:
        return f"ip link set dev {self.device} master {self.bridge}"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Port", self.device)


@dataclass(frozen=True, slots=True)
class Up(Change):
    """A device that is up."""

    device: str

    def describe(self) -> str:
        return f"ip link set dev {self.device} up"


@dataclass(frozen=True, slots=True)
class Address(Change):
    """An address of a device, with its prefix length; for IPv6 without duplicate detection."""

    device: str
    address: str
    peer: str  # '': none

    def describe(self) -> str:
        address, _, length = self.address.partition("/")
        what = f"{address} peer {self.peer}/{length}" if self.peer else self.address
        nodad = " nodad" if ":" in address else ""
        return f"ip address add {what} dev {self.device}{nodad}"


@dataclass(frozen=True, slots=True)
class Forwarding(Change):
    """The machine forwards packets of one IP version."""

    version: int

    def describe(self) -> str:
        name = "net.ipv4.ip_forward" if self.version == 4 else "net.ipv6.conf.all.forwarding"
        return f"sysctl -w {name}=1"


@dataclass(frozen=True, slots=True)
class PassedOn(Change):
    """Limits forwarding that we turned on ourselves to packets from or to our tunnels.

    Forwarding is one switch for all devices. If it was off before, a table that all tunnels share
    lets only packets through that come from or go to a ``device`` of such a change.
    """

    version: int
    device: str

    def describe(self) -> str:
        return f"nft add element inet {self.table} tunnels {{ {self.device} }}"

    @property
    def table(self) -> str:
        """The name of the table, which all tunnels share."""
        return f"{_FORWARD}-ipv{self.version}"

    @property
    def script(self) -> str:
        """Returns the input of `nft -f -` that makes the table, and adds ``device`` to its devices.

        Devices of other tunnels stay in the table.
        """
        table = f"inet {self.table}"
        return (
            f"add table {table}\n"
            f"add chain {table} passed_on"
            " { type filter hook forward priority filter; policy accept; }\n"
            f"flush chain {table} passed_on\n"
            f"table {table} {{\n\tset tunnels {{\n\t\ttype ifname\n\t}}\n{self.rules}}}\n"
            f'add element {table} tunnels {{ "{self.device}" }}\n'
        )

    @property
    def rules(self) -> str:
        """Returns the chains of the table, without the set of devices."""
        return chains.passed_on(self.version)


@dataclass(frozen=True, slots=True)
class Pin(Change):
    """A route to the server around the tunnel, for the link's own connection.

    The route is in a table that only packets with the link's mark use (Marked): all other packets
    to the server's address go through the tunnel. The route is needed only while the prefix of the
    machine's own route to the server is not longer than ``covered``, the length of the longest
    prefix that the tunnel has for the server.
    """

    server: str
    device: str  # the tunnel's, which the route must not use
    covered: int

    def describe(self) -> str:
        way = "(by the way that leads there without the tunnel)"
        return f"ip route replace {self.server} table {PIN_TABLE} {way}"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Pin", self.server)


@dataclass(frozen=True, slots=True)
class Marked(Change):
    """Packets of links' own connections, of one IP version, use the routes of Pin first."""

    version: int

    def describe(self) -> str:
        family = "-4" if self.version == 4 else "-6"
        return f"ip {family} rule add fwmark {MARK} lookup {PIN_TABLE}"


@dataclass(frozen=True, slots=True)
class MarkedAnswers(Change):
    """The reverse path filter of IPv4 (rp_filter) accepts the server's packets to a link.

    The filter drops a packet if the route to its source leads to another device. With this switch
    the route is looked up with the packet's mark, which the chain ``answers`` sets.
    """

    def describe(self) -> str:
        return "sysctl -w net.ipv4.conf.all.src_valid_mark=1"


@dataclass(frozen=True, slots=True)
class Route(Change):
    """A network that is reached through the tunnel."""

    network: str
    via: str  # '': directly through the device
    device: str

    def describe(self) -> str:
        via = f" via {self.via}" if self.via else ""
        return f"ip route add {self.network}{via} dev {self.device}"


@dataclass(frozen=True, slots=True)
class NameServers(Change):
    """The name servers for names in ``domains``; without domains, for all names."""

    device: str
    servers: tuple[str, ...]
    domains: tuple[str, ...]

    def describe(self) -> str:
        domains = " ".join(self.domains or ("~.",))
        servers = " ".join(self.servers)
        return (
            f"resolvectl dns {self.device} {servers}; resolvectl domain {self.device} {domains}"
            " (or /etc/resolv.conf)"
        )

    @property
    def key(self) -> tuple[str, ...]:
        return ("NameServers", self.device)


KINDS: Final[dict[str, type[Change]]] = {
    kind.__name__: kind
    for kind in (
        Rules, Device, Mtu, Bridge, Port, Up, Address, PassedOn, Forwarding, Marked,
        MarkedAnswers, Pin, Route, NameServers,
    )
}  # fmt: skip


def change_from_json(data: object) -> Change:
    """Returns the change that ``to_json`` turned into ``data``. Raises ValueError."""
    name = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(name, str) or name not in KINDS:
        raise ValueError("no known kind of change")
    kind = KINDS[name]
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if data.keys() - {"kind"} != fields.keys():
        raise ValueError(f"the fields of {kind.__name__} are {', '.join(fields)}")
    values = {}
    for name, wanted in fields.items():
        value = data[name]
        if wanted is int:
            good = type(value) is int
        elif wanted in (str, Mode):
            good = isinstance(value, str)
        else:
            good = isinstance(value, list) and all(isinstance(item, str) for item in value)
            value = tuple(value) if good else value
        if not good:
            raise ValueError(f"{name} of {kind.__name__}: {value!r}")
        values[name] = value
    return kind(**values)


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes that one end of a tunnel needs, in the order of making.

    While the tunnel is up, the changes ``(*at_start, *while_up)`` are wanted.
    """

    at_start: tuple[Change, ...]  # also before the first connection and between connections
    while_up: tuple[Change, ...]  # useful only while the peer is connected

    @classmethod
    def of(cls, at_start: Sequence[Change], while_up: Sequence[Change]) -> Self:
        """Returns the plan without duplicates."""
        return cls(tuple(dict.fromkeys(at_start)), tuple(dict.fromkeys(while_up)))


_NOTHING: Final = Outside()


def plan(
    owner: str,
    network: TunnelNetwork,
    device: str,
    outside: Outside = _NOTHING,
    kill_switch: bool = False,
    handed_out: Sequence[IPAddress] = (),
    has_ipv6: bool = True,
) -> Plan:
    """Returns the changes that ``network`` needs on this machine.

    ``owner`` is a name that no other plan on the machine has; the table's name contains it.
    ``device`` is the tunnel's, whatever ``network`` says. ``handed_out`` are addresses that we
    handed out to the peer. Without IPv6 on this machine, only the rules include it, as it may be
    switched on later. Raises UsageError for an invalid name.
    """
    _check(_OWNER, owner, "a name of a link (letters, digits, '.', '_' and '-')")
    for name in (device, network.bridge) if network.bridge else (device,):
        _check(_DEVICE_NAME, name, "a name of a network device")
    for domain in network.domains:
        _check(_DOMAIN, domain, "a domain name")

    inner = network.bridge or device
    pins = _pins(network, inner, outside.servers)
    rules = chains.forwarding(network, inner)
    if network.mode == "point-to-point" and not network.any_source:
        rules += chains.own_addresses(network, inner, handed_out)
    if pins:
        rules.append(chains.answers(inner, [pin.server for pin in pins], outside.port))
    if kill_switch:
        rules += chains.kill_switch(network, inner, outside)
    at_start: list[Change] = []
    if rules:
        # Made first and undone last: a kill switch is closed before a packet can leak, and no
        # packet is forwarded before it is masqueraded.
        at_start.append(Rules(table_of(owner), "\n".join(rules)))
    if not has_ipv6:
        network = without_ipv6(network)
        pins = [pin for pin in pins if ":" not in pin.server]
    at_start += [Device(device, network.mode), Mtu(device, network.mtu)]
    if network.bridge:
        at_start += [Bridge(network.bridge), Port(device, network.bridge), Up(network.bridge)]
    at_start.append(Up(device))
    at_start += _addresses(network, inner)
    if network.forward:
        versions = sorted({each.version for each in network.forward})
        at_start += [PassedOn(version, inner) for version in versions]
        at_start += [Forwarding(version) for version in versions]

    while_up: list[Change] = []
    if pins:
        versions = sorted({ip_address(pin.server).version for pin in pins})
        while_up += [Marked(version) for version in versions]
        while_up += [MarkedAnswers()] if 4 in versions else []
        while_up += pins
    gateways = {peer.version: str(peer) for peer in network.peer}
    for route in _halves_of(network.routes):
        via = gateways.get(route.version, "") if network.mode == "ethernet" else ""
        while_up.append(Route(str(route), via, inner))
    if network.dns:
        servers_of_names = tuple(str(server) for server in network.dns)
        while_up.append(NameServers(inner, servers_of_names, network.domains))
    return Plan.of(at_start, while_up)


def closed(owner: str, network: TunnelNetwork, device: str, outside: Outside = _NOTHING) -> Rules:
    """Returns only the kill switch of ``network``, for the time without a tunnel.

    ``device`` is '' while it is not known.
    """
    inner = network.bridge or device
    return Rules(table_of(owner), "\n".join(chains.kill_switch(network, inner, outside)))


def table_of(owner: str) -> str:
    """Returns the name of the table with an owner's rules."""
    return f"{TABLE_PREFIX}{owner}"


def _pins(network: TunnelNetwork, device: str, servers: Sequence[IPAddress]) -> list[Pin]:
    """Returns a pin for each server that is in the tunnel's routes or its addresses' networks."""
    covering = _halves_of(reached_through(network))
    pins = []
    for server in dict.fromkeys(map(_plain, servers)):
        if lengths := [each.prefixlen for each in covering if server in each]:
            pins.append(Pin(str(server), device, max(lengths)))
    return pins


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise UsageError(f"{text!r} is not {what}")


def _plain(server: IPAddress) -> IPAddress:
    """Unwraps an IPv4-mapped IPv6 address and strips the zone, as routes have neither."""
    if isinstance(server, IPv6Address):
        return server.ipv4_mapped or IPv6Address(int(server))
    return server


def _addresses(network: TunnelNetwork, device: str) -> list[Change]:
    """Returns the addresses of the device; the first one of each IP version gets the peer."""
    peers = {peer.version: str(peer) for peer in network.peer}
    return [
        Address(device, str(address), peers.pop(address.version, ""))
        for address in network.addresses
    ]


def _halves_of(routes: Sequence[Network]) -> list[Network]:
    """Splits each default route in two halves, so that the machine's own default route stays."""
    return [
        half for route in routes for half in (route.subnets() if route.prefixlen == 0 else (route,))
    ]
