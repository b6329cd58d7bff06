"""Writes the nftables chains that a tunnel's packets pass, as text.

``network.py`` decides which of them a tunnel needs, and puts them into tables.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final

from ...config.network import Address, TunnelNetwork, reached_through
from .marks import DEVICE_GROUP, MARK

KILL_SWITCH: Final = "kill_switch"  # the chain

_ETHERNET_MTU: Final = 1500  # bytes; a tunnel of this MTU has room for a neighbour's packets


@dataclass(frozen=True, slots=True)
class Outside:
    """The packets that a link's own processes may send outside its tunnel."""

    servers: tuple[Address, ...] = ()  # possible addresses of the first hop
    port: int = 0  # of the first hop; 0: nothing is dialled
    resolvers: tuple[Address, ...] = ()  # name servers that may be asked outside the tunnel
    uids: tuple[int, ...] = ()  # the users that may ask the resolvers


def passed_on(version: int) -> str:
    """Returns the chain of PassedOn: forwards packets from and to devices of the set ``tunnels``.

    All other forwarded packets are dropped.
    """
    return _chain(
        "passed_on",
        "type filter hook forward priority filter",
        [
            f"meta nfproto != ipv{version} return",
            # Our other tunnels, which have no ``forward``.
            f"iifgroup {DEVICE_GROUP} iifname != @tunnels drop",
            f"oifgroup {DEVICE_GROUP} oifname != @tunnels drop",
            "iifname @tunnels return",
            "oifname @tunnels return",
            "counter drop",
        ],
    )


def forwarding(network: TunnelNetwork, device: str) -> list[str]:
    """Returns the chains that filter forwarded packets, limit their TCP segments and masquerade.

    Forwarded are packets between the tunnel and the networks of ``forward``.
    """
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
    """Returns the filter that lets a tunnel's packets pass only from or to ``forward``.

    Replies pass as well. A packet into the tunnel must arrive on the device that the route to its
    source uses, so that a host of another network cannot use an address of ``forward``. A default
    route in ``forward`` lets packets out of the tunnel go anywhere, but no new connection in.
    """
    if not network.forward:
        return []
    rules = [
        f'iifname != "{device}" oifname != "{device}" return',
        f'iifname "{device}" oifname "{device}" return',  # such as between a bridge's ports
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


def own_addresses(network: TunnelNetwork, device: str, handed_out: Sequence[Address]) -> list[str]:
    """Returns the chains that limit the peer to its own addresses (any_source = false).

    The peer may send from its own addresses only, and receives only packets to them. These are
    ``peer``, the addresses that were handed out to the peer, and ``routes``; if ``peer`` has none
    of an IP version, also the networks of this end's addresses. Link-local addresses, which no
    router forwards, are always permitted.
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
    # A multicast address can be a destination, never a source.
    on_link = {
        4: {"saddr": [], "daddr": ["224.0.0.0/24"]},
        6: {"saddr": ["fe80::/10"], "daddr": ["fe80::/10", "ff02::/16"]},
    }
    for version, family in ((4, "ip"), (6, "ip6")):
        if ours[version]:  # the peer must not use this end's addresses
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


def answers(device: str, servers: Sequence[str], port: int) -> str:
    """Returns the chain that marks the servers' packets (see MarkedAnswers); IPv6 needs none."""
    servers = [server for server in servers if ":" not in server]
    rules = [f'iifname != "{device}" {_any_of("ip saddr", servers)} tcp sport {port} '
             f"meta mark set {MARK}"] if servers else []  # fmt: skip
    return _chain("answers", "type filter hook prerouting priority mangle", rules)


def _any_of(match: str, values: Iterable[object]) -> str:
    return f"{match} {{ {', '.join(map(str, values))} }}"


def kill_switch(network: TunnelNetwork, device: str, outside: Outside) -> list[str]:
    """Returns the chains of the kill switch: they block packets to the routes outside the tunnel.

    Packets that came out of the tunnel are not blocked. Exceptions are for packets of this machine
    itself: the link's connection, known by its mark, which needs CAP_NET_ADMIN; the queries of its
    resolver, known by the user that it runs as; DHCP and neighbour discovery. ``device`` is ''
    while it is not known.
    """
    devices = f'"lo", "{device}"' if device else '"lo"'
    exceptions = [
        "udp sport . udp dport { 67 . 68, 68 . 67, 546 . 547, 547 . 546 } return",  # DHCP
        "icmpv6 type { nd-router-solicit, nd-router-advert,"
        " nd-neighbor-solicit, nd-neighbor-advert } return",
        # Some switches block neighbour discovery without these reports.
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
    # Collapsed, because a set of nftables cannot have overlapping networks.
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
    jump = f"jump {KILL_SWITCH}"
    passed_on = f'iifname != "{device}" {jump}' if device else jump
    return [
        "\tcounter blocked {\n\t}\n",
        _chain(
            KILL_SWITCH,
            "",
            [
                f"oifname {{ {devices} }} return",
                # Another of our links may carry a part of the same network.
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
