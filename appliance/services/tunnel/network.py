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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Final, Self

from ...config.network import Address as IPAddress
from ...config.network import Mode, Network, TunnelNetwork, reached_through, without_ipv6
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
MARK: Final = 197  # of the packets of links' own connections (SO_MARK): `ip rule show fwmark 197`
PIN_TABLE: Final = 198  # of those routes, which such packets alone take: `ip route show table 198`
TABLE_PREFIX: Final = "culvert-"  # of all tables of ours in nftables
_KILL_SWITCH: Final = "kill_switch"  # the chain
_FORWARD: Final = "culvert-forward"  # of the tables of PassedOn, one an IP version

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
    def is_kill_switch(self) -> bool:
        """Whether a kill switch is among the rules."""
        return f"chain {_KILL_SWITCH} " in self.body

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
class PassedOn(Change):
    """Where the machine passed on nothing before, it passes on what comes from or goes to these.

    Forwarding is a switch for all devices at once. Where we turn it, a table lets through what has
    to do with a device of this change, of whichever tunnel's, and nothing else.
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
        """For `nft -f -`: the table as it is to be, with the devices that it has, and this one."""
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
        """What stands in the table besides the devices."""
        return _chain(
            "passed_on",
            "type filter hook forward priority filter",
            [
                f"meta nfproto != ipv{self.version} return",
                # Other tunnels of ours, which do not forward.
                f"iifgroup {DEVICE_GROUP} iifname != @tunnels drop",
                f"oifgroup {DEVICE_GROUP} oifname != @tunnels drop",
                "iifname @tunnels return",
                "oifname @tunnels return",
                "counter drop",
            ],
        )


@dataclass(frozen=True, slots=True)
class Pin(Change):
    """The link's own connection stays on the way that leads to its server without the tunnel.

    The route stands in a table that only packets with the link's mark take (Marked): whatever else
    goes to the server's address goes through the tunnel. It is needed only while the way's prefix
    is no longer than ``covered``, the length of the longest prefix that the tunnel has for the
    server.
    """

    server: str
    device: str  # the tunnel's, which the way must not take
    covered: int

    def describe(self) -> str:
        way = "(by the way that leads there without the tunnel)"
        return f"ip route replace {self.server} table {PIN_TABLE} {way}"

    @property
    def key(self) -> tuple[str, ...]:
        return ("Pin", self.server)


@dataclass(frozen=True, slots=True)
class Marked(Change):
    """Packets of links' own connections, of one IP version, take the routes of Pin first."""

    version: int

    def describe(self) -> str:
        family = "-4" if self.version == 4 else "-6"
        return f"ip {family} rule add fwmark {MARK} lookup {PIN_TABLE}"


@dataclass(frozen=True, slots=True)
class MarkedAnswers(Change):
    """What comes back to them is not taken for a forgery because it comes another way.

    The reverse path filter of IPv4 (rp_filter) asks where a packet to its source would go, and
    minds the mark that the rules give to the server's packets.
    """

    def describe(self) -> str:
        return "sysctl -w net.ipv4.conf.all.src_valid_mark=1"


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
        Rules, Device, Mtu, Bridge, Port, Up, Address, PassedOn, Forwarding, Marked,
        MarkedAnswers, Pin, Route, NameServers,
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


@dataclass(frozen=True, slots=True)
class Outside:
    """What a link's own processes may send beside its tunnel."""

    servers: tuple[IPAddress, ...] = ()  # where its connection may go
    port: int = 0  # of what is dialled first; 0: nothing is
    resolvers: tuple[IPAddress, ...] = ()  # name servers that may be asked outside the tunnel
    uids: tuple[int, ...] = ()  # the users who may ask them


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
    """What ``network`` means on this machine.

    ``owner`` is a name that no other plan on the machine has; it becomes part of the rules' name.
    ``device`` is the tunnel's, whatever ``network`` says. ``handed_out`` are addresses that the
    other end has from us. Where the machine has no IPv6 now, there are only rules for it, as it may
    be switched on later. Raises UsageError for a name that cannot be one.
    """
    _check(_OWNER, owner, "a name of a link (letters, digits, '.', '_' and '-')")
    for name in (device, network.bridge) if network.bridge else (device,):
        _check(_DEVICE_NAME, name, "a name of a network device")
    for domain in network.domains:
        _check(_DOMAIN, domain, "a domain name")

    inner = network.bridge or device
    pins = _pins(network, inner, outside.servers)
    chains = _rules(network, inner)
    if network.mode == "point-to-point" and not network.any_source:
        chains += _own_addresses(network, inner, handed_out)
    if pins:
        chains.append(_answers(inner, pins, outside.port))
    if kill_switch:
        chains += _kill_switch(network, inner, outside)
    at_start: list[Change] = []
    if chains:
        # First to be made and last to be undone: a kill switch is closed before there is
        # anything to leak, and no packet is passed on that is not yet masqueraded.
        at_start.append(Rules(table_of(owner), "\n".join(chains)))
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
    """The kill switch of ``network`` alone, as it is while there is no tunnel.

    ``device`` may be '' while it is not known which one it will be.
    """
    inner = network.bridge or device
    return Rules(table_of(owner), "\n".join(_kill_switch(network, inner, outside)))


def table_of(owner: str) -> str:
    """The name of the table of an owner's rules."""
    return f"{TABLE_PREFIX}{owner}"


def _pins(network: TunnelNetwork, device: str, servers: Sequence[IPAddress]) -> list[Pin]:
    """One for each server that the tunnel's routes cover, or the networks of its addresses."""
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
    """The address as routes know it: no IPv4 in the clothes of IPv6, and no zone."""
    if isinstance(server, IPv6Address):
        return server.ipv4_mapped or IPv6Address(int(server))
    return server


def _addresses(network: TunnelNetwork, device: str) -> list[Change]:
    """The first address of a family is the one that has the peer of that family."""
    peers = {peer.version: str(peer) for peer in network.peer}
    return [
        Address(device, str(address), peers.pop(address.version, ""))
        for address in network.addresses
    ]


def _halves_of(routes: Sequence[Network]) -> list[Network]:
    """A default route as two that go before it, so that the machine's own stays as it is."""
    return [
        half for route in routes for half in (route.subnets() if route.prefixlen == 0 else (route,))
    ]


def _rules(network: TunnelNetwork, device: str) -> list[str]:
    """What the packets of the tunnel meet on their way."""
    chains = _forwarded(network, device)
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
    return chains


def _forwarded(network: TunnelNetwork, device: str) -> list[str]:
    """Nothing is passed on but between the tunnel and ``forward``, and what answers that.

    A source counts only on the device that leads to it, so that nobody on another network poses as
    one of ``forward``. The whole internet among those is for what comes out of the tunnel: nobody
    there begins to talk into it.
    """
    if not network.forward:
        return []
    rules = [
        f'iifname != "{device}" oifname != "{device}" return',
        f'iifname "{device}" oifname "{device}" return',  # as between a bridge's ports
    ]
    for version, family in ((4, "ip"), (6, "ip6")):
        of_version = [each for each in network.forward if each.version == version]
        named = [each for each in of_version if each.prefixlen]
        behind = [*map(str, collapse_addresses(named))]  # type: ignore[type-var]
        if behind:
            way = "fib saddr . iif oif exists"
            rules.append(f'oifname "{device}" {_any_of(f"{family} saddr", behind)} {way} return')
        if len(named) < len(of_version):
            rules.append(f'iifname "{device}" meta nfproto ipv{version} return')
        elif behind:
            rules.append(f'iifname "{device}" {_any_of(f"{family} daddr", behind)} return')
    rules += ["ct state established,related return", 'counter name "outsiders" drop']
    return [
        "\tcounter outsiders {\n\t}\n",
        _chain("forwarded", "type filter hook forward priority filter", rules),
    ]


def _own_addresses(
    network: TunnelNetwork, device: str, handed_out: Sequence[IPAddress]
) -> list[str]:
    """The peer sends from its own addresses, and gets what is for them (any_source = false).

    Its own are ``peer``, what was handed out to it, and ``routes``; without a ``peer`` of an IP
    version the networks of this end's addresses, too. Addresses that are good on the link alone,
    which no router passes on, are everybody's.
    """
    with_peer = {peer.version for peer in network.peer}
    own = [
        *(ip_network(address) for address in (*network.peer, *handed_out)),
        *network.routes,
        *(each.network for each in network.addresses if each.version not in with_peer),
    ]
    rules: dict[str, list[str]] = {"saddr": [], "daddr": []}
    ours = {
        version: [each.ip for each in network.addresses if each.version == version]
        for version in (4, 6)
    }
    # Multicast is where packets go, never where they come from.
    on_link = {
        4: {"saddr": [], "daddr": ["224.0.0.0/24"]},
        6: {"saddr": ["fe80::/10"], "daddr": ["fe80::/10", "ff02::/16"]},
    }
    for version, family in ((4, "ip"), (6, "ip6")):
        if ours[version]:  # whoever else uses it
            rules["saddr"].append(f"{_any_of(f'{family} saddr', ours[version])} drop")
        of_version = (each for each in own if each.version == version)
        theirs = [*map(str, collapse_addresses(of_version))]  # type: ignore[type-var]
        for field, found in rules.items():
            allowed = [*theirs, *on_link[version][field]]
            if any(each.endswith("/0") for each in theirs):
                found.append(f"meta nfproto ipv{version} return")
            elif allowed:
                found.append(f"{_any_of(f'{family} {field}', allowed)} return")
    return [
        "\tcounter foreign {\n\t}\n",
        _chain(
            "from_peer",
            "type filter hook prerouting priority raw",
            [f'iifname != "{device}" return', *rules["saddr"], 'counter name "foreign" drop'],
        ),
        _chain(
            "to_peer",
            "type filter hook postrouting priority filter",
            [f'oifname != "{device}" return', *rules["daddr"], 'counter name "foreign" drop'],
        ),
    ]


def _answers(device: str, pins: Sequence[Pin], port: int) -> str:
    """The chain that marks what servers send, for MarkedAnswers; of no use to IPv6."""
    servers = [pin.server for pin in pins if ":" not in pin.server]
    rules = [f'iifname != "{device}" {_any_of("ip saddr", servers)} tcp sport {port} '
             f"meta mark set {MARK}"] if servers else []  # fmt: skip
    return _chain("answers", "type filter hook prerouting priority mangle", rules)


def _any_of(match: str, values: Iterable[object]) -> str:
    return f"{match} {{ {', '.join(map(str, values))} }}"


def _kill_switch(network: TunnelNetwork, device: str, outside: Outside) -> list[str]:
    """What is for the routes goes into the tunnel or nowhere; what came out of it is free.

    Exceptions are for what this machine itself sends: the link's connection, known by its mark,
    which takes CAP_NET_ADMIN, the questions of its resolver, known by the user that it runs as, and
    what keeps the local network alive. ``device`` may be ''.
    """
    devices = f'"lo", "{device}"' if device else '"lo"'
    exceptions = [
        "udp sport . udp dport { 67 . 68, 68 . 67, 546 . 547, 547 . 546 } return",  # DHCP
        "icmpv6 type { nd-router-solicit, nd-router-advert,"
        " nd-neighbor-solicit, nd-neighbor-advert } return",
        # Without which some switches do not let neighbour discovery through.
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } return",
    ]
    if outside.port:
        exceptions.append(f"meta mark {MARK} tcp dport {outside.port} return")
    for version, match in ((4, "ip daddr"), (6, "ip6 daddr")):
        if found := [each for each in outside.resolvers if each.version == version]:
            exceptions.append(
                f"{_any_of('meta skuid', outside.uids)} {_any_of(match, found)}"
                " meta l4proto { tcp, udp } th dport { 53, 853 } return"
            )
    # Collapsed, since a set of nftables takes no overlapping networks.
    guarded = reached_through(network)
    v4 = collapse_addresses(each for each in guarded if isinstance(each, IPv4Network))
    v6 = collapse_addresses(each for each in guarded if isinstance(each, IPv6Network))
    blocked = []
    for version, match, networks in ((4, "ip daddr", [*v4]), (6, "ip6 daddr", [*v6])):
        if not networks:
            continue
        everything = networks[0].prefixlen == 0
        match = f"meta nfproto ipv{version}" if everything else _any_of(match, networks)
        blocked.append(f'{match} counter name "blocked" reject with icmpx admin-prohibited')
    if not blocked:
        return []
    jump = f"jump {_KILL_SWITCH}"
    passed_on = f'iifname != "{device}" {jump}' if device else jump
    return [
        "\tcounter blocked {\n\t}\n",
        _chain(
            _KILL_SWITCH,
            "",
            [
                f"oifname {{ {devices} }} return",
                # Another link of ours may be declared for a part of the same network.
                f"oifgroup {DEVICE_GROUP} return",
                *blocked,
            ],
        ),
        _chain("sent", "type filter hook output priority filter", [*exceptions, jump]),
        _chain("passed_on", "type filter hook forward priority filter", [passed_on]),
    ]


def _chain(name: str, hook: str, rules: Sequence[str]) -> str:
    lines = [f"{hook}; policy accept;", *rules] if hook else rules
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"
