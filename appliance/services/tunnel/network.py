"""What a tunnel changes in the network of its machine, as a list of small changes.

Nothing is done here: ``plan`` turns a TunnelNetwork into records, each of which says one thing
that is to be true and reads as the command line that people know for it. ``kernel.py``
makes them true, remembers which of them it made, and undoes those again.

Two changes with the same ``key`` cannot both be true: the later one takes the earlier one's
place without a moment in which neither holds, which is what keeps a kill switch closed while
its exceptions change.

A tunnel that is a bridge's port hands all its packets to the bridge, so that addresses, routes
and rules name the bridge instead.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Final, Self

from ...config.network import Address as IPAddress
from ...config.network import Mode, Network, TunnelNetwork
from ...errors import CulvertError, UsageError

# linux/if.h: IFNAMSIZ is 16 with the final zero. What nft or resolvectl could take for syntax
# is left out.
_DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_OWNER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DOMAIN: Final = re.compile(r"~?(\.|[A-Za-z0-9_][A-Za-z0-9_.-]{0,253})")

# The mark of what is ours, so that it is known even where no record of it is left. None of these
# numbers has a name in /etc/iproute2 or in linux/rtnetlink.h.
DEVICE_GROUP: Final = 197  # of the devices that we made: `ip link show group 197`
ROUTE_PROTOCOL: Final = 197  # of the routes into tunnels: `ip route show proto 197`
PIN_PROTOCOL: Final = 198  # of the routes around tunnels, to their servers

_ETHERNET_MTU: Final = 1500  # bytes; from here on no packet of a neighbour is too large


class NetworkError(CulvertError):
    """The machine's network did not become as it was wanted; the text names the change."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is to be true; its fields are text, numbers and tuples of text."""

    def describe(self) -> str:
        """The command line that would do the same, or nearly."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[str, ...]:
        """What is decided: two changes of one key cannot both be true."""
        return (type(self).__name__, *(str(value) for value in dataclasses.astuple(self)))

    def to_json(self) -> dict[str, object]:
        """What ``change_from_json`` takes."""
        return {"kind": type(self).__name__} | dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Rules(Change):
    """One nftables table of the family inet; ``body`` is what stands between its braces."""

    table: str
    body: str

    def describe(self) -> str:
        return f"nft -f - (table inet {self.table})"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Rules", self.table)

    @property
    def digest(self) -> str:
        """Stands in the table as its comment and tells one version of the rules from another."""
        return hashlib.sha256(self.body.encode()).hexdigest()[:16]

    @property
    def script(self) -> str:
        """For `nft -f -`, which does all of it or nothing: the table as it is to be."""
        table = f"table inet {self.table}"
        comment = f'\tcomment "{self.digest}"\n'
        return f"{table}\ndelete {table}\n{table} {{\n{comment}{self.body}}}\n"


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
    """The largest packet of a device."""

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
    """An address of a device, with its prefix length; of IPv6 without duplicate detection."""

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
    """The machine passes on packets of one IP version that are not for itself."""

    version: int

    def describe(self) -> str:
        name = "net.ipv4.ip_forward" if self.version == 4 else "net.ipv6.conf.all.forwarding"
        return f"sysctl -w {name}=1"


@dataclass(frozen=True, slots=True)
class Pin(Change):
    """The SSH server stays on the way that would lead there without the tunnel.

    It needs a route of its own only while that way's prefix is no longer than ``covered``, the
    length of the longest prefix that the tunnel's routes have for the server.
    """

    server: str
    device: str  # the tunnel's, which the way must not take
    covered: int

    def describe(self) -> str:
        return f"ip route replace {self.server} (by the way that leads there without the tunnel)"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Pin", self.server)


@dataclass(frozen=True, slots=True)
class Route(Change):
    """A network that is reached through the tunnel."""

    network: str
    via: str  # '': whoever is at the other end
    device: str

    def describe(self) -> str:
        via = f" via {self.via}" if self.via else ""
        return f"ip route add {self.network}{via} dev {self.device}"


@dataclass(frozen=True, slots=True)
class NameServers(Change):
    """Who is asked for names in ``domains``; without domains, for all names."""

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
        Rules, Device, Mtu, Bridge, Port, Up, Address, Forwarding, Pin, Route, NameServers,
    )
}  # fmt: skip


def change_from_json(data: object) -> Change:
    """The change that ``to_json`` wrote, as JSON gives it back. Raises ValueError."""
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
    """Everything one end of a tunnel wants of its machine, in the order of making.

    What is wanted while the tunnel is up is ``(*at_start, *while_up)``.
    """

    at_start: tuple[Change, ...]  # before the first connection, and between connections
    while_up: tuple[Change, ...]  # what only makes sense with the other end there

    @classmethod
    def of(cls, at_start: Sequence[Change], while_up: Sequence[Change]) -> Self:
        """The plan without what is said twice."""
        return cls(tuple(dict.fromkeys(at_start)), tuple(dict.fromkeys(while_up)))


def plan(
    owner: str,
    network: TunnelNetwork,
    device: str,
    servers: Sequence[IPAddress] = (),
    kill_switch: bool = False,
) -> Plan:
    """What ``network`` means on this machine.

    ``owner`` is a name that no other plan on the machine has; it becomes part of the rules' name.
    ``device`` is the tunnel's, whatever ``network`` says. ``servers`` are the addresses that
    the SSH connection itself goes to, proxies and jump hosts included. Raises UsageError for
    a name that cannot be one.
    """
    _check(_OWNER, owner, "a name of a link (letters, digits, '.', '_' and '-')")
    for name in (device, network.bridge) if network.bridge else (device,):
        _check(_DEVICE_NAME, name, "a name of a network device")
    for domain in network.domains:
        _check(_DOMAIN, domain, "a domain name")

    inner = network.bridge or device
    body = _rules(network, inner, [_plain(server) for server in servers], kill_switch)
    at_start: list[Change] = []
    if body:
        # First to be made and last to be undone: a kill switch is closed before there is
        # anything to leak, and no packet is passed on that is not yet masqueraded.
        at_start.append(Rules(f"culvert-{owner}", body))
    at_start += [Device(device, network.mode), Mtu(device, network.mtu)]
    if network.bridge:
        at_start += [Bridge(network.bridge), Port(device, network.bridge), Up(network.bridge)]
    at_start.append(Up(device))
    at_start += _addresses(network, inner)
    if network.forward:
        at_start += [Forwarding(version) for version in _versions(network)]

    routes = [half for route in network.routes for half in _halves(route)]
    while_up: list[Change] = []
    for server in map(_plain, servers):
        if covering := [route.prefixlen for route in routes if server in route]:
            while_up.append(Pin(str(server), inner, max(covering)))
    gateways = {peer.version: str(peer) for peer in network.peer}
    for route in routes:
        via = gateways.get(route.version, "") if network.mode == "ethernet" else ""
        while_up.append(Route(str(route), via, inner))
    if network.dns:
        servers_of_names = tuple(str(server) for server in network.dns)
        while_up.append(NameServers(inner, servers_of_names, network.domains))
    return Plan.of(at_start, while_up)


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise UsageError(f"{text!r} is not {what}")


def _plain(server: IPAddress) -> IPAddress:
    """The address as routes know it: no IPv4 in the clothes of IPv6, and no zone."""
    if isinstance(server, IPv6Address):
        return server.ipv4_mapped or IPv6Address(int(server))
    return server


def _versions(network: TunnelNetwork) -> list[int]:
    used = {item.version for item in (*network.addresses, *network.peer, *network.routes)}
    return sorted(used)


def _addresses(network: TunnelNetwork, device: str) -> list[Change]:
    """The first address of a family is the one that has the peer of that family."""
    peers = {peer.version: str(peer) for peer in network.peer}
    return [
        Address(device, str(address), peers.pop(address.version, ""))
        for address in network.addresses
    ]


def _halves(route: Network) -> list[Network]:
    """A default route as two that go before it, so that the machine's own stays as it is."""
    return list(route.subnets()) if route.prefixlen == 0 else [route]


def _rules(
    network: TunnelNetwork, device: str, servers: Sequence[IPAddress], kill_switch: bool
) -> str:
    """The rules' text, '' where none are needed."""
    chains = []
    if network.forward and network.mtu < _ETHERNET_MTU:
        clamp = "tcp flags syn / syn,rst tcp option maxseg size set rt mtu"
        rules = [f'iifname "{device}" {clamp}', f'oifname "{device}" {clamp}']
        chains.append(_chain("segment_size", "type filter hook forward priority mangle", rules))
    masquerade = {
        "no": [],
        "from-tunnel": [f'iifname "{device}" oifname != "{device}" masquerade'],
        "into-tunnel": [f'oifname "{device}" masquerade'],
    }
    masquerade["both"] = masquerade["from-tunnel"] + masquerade["into-tunnel"]
    if rules := masquerade[network.masquerade]:
        chains.append(_chain("masqueraded", "type nat hook postrouting priority srcnat", rules))
    if kill_switch and network.routes:
        chains += _kill_switch(network.routes, device, servers)
    return "\n".join(chains)


def _kill_switch(routes: Sequence[Network], device: str, servers: Sequence[IPAddress]) -> list[str]:
    """What is for the routes goes into the tunnel or nowhere; what came out of it is free."""
    exceptions = [
        f'oifname {{ "lo", "{device}" }} return',
        # Another link of ours may be declared for a part of the same network.
        f"oifgroup {DEVICE_GROUP} return",
        "udp sport . udp dport { 67 . 68, 68 . 67, 546 . 547, 547 . 546 } return",  # DHCP
        "icmpv6 type { nd-router-solicit, nd-router-advert,"
        " nd-neighbor-solicit, nd-neighbor-advert } return",
        # Without which some switches do not let neighbour discovery through.
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } return",
    ]
    # Collapsed, since a set of nftables takes no overlapping networks.
    v4 = collapse_addresses(route for route in routes if isinstance(route, IPv4Network))
    v6 = collapse_addresses(route for route in routes if isinstance(route, IPv6Network))
    blocked = []
    for version, match, networks in ((4, "ip daddr", [*v4]), (6, "ip6 daddr", [*v6])):
        own = dict.fromkeys(str(server) for server in servers if server.version == version)
        if own:
            exceptions.append(f"{match} {{ {', '.join(own)} }} return")
        if not networks:
            continue
        everything = networks[0].prefixlen == 0
        which = ", ".join(str(network) for network in networks)
        match = f"meta nfproto ipv{version}" if everything else f"{match} {{ {which} }}"
        blocked.append(f'{match} counter name "blocked" reject with icmpx admin-prohibited')
    return [
        "\tcounter blocked {\n\t}\n",
        _chain("kill_switch", "", [*exceptions, *blocked]),
        _chain("sent", "type filter hook output priority filter", ["jump kill_switch"]),
        _chain(
            "passed_on",
            "type filter hook forward priority filter",
            [f'iifname != "{device}" jump kill_switch'],
        ),
    ]


def _chain(name: str, hook: str, rules: Sequence[str]) -> str:
    lines = [f"{hook}; policy accept;", *rules] if hook else rules
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"
