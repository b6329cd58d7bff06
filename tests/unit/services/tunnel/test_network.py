"""Which changes each part of a TunnelNetwork means, and how they read."""

import json
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from appliance.config.network import TunnelNetwork
from appliance.errors import UsageError
from appliance.services.tunnel.chains import Outside
from appliance.services.tunnel.network import (
    Change,
    Device,
    Forwarding,
    Marked,
    MarkedAnswers,
    Mtu,
    Pin,
    Plan,
    Port,
    Rules,
    Up,
    change_from_json,
    closed,
    plan,
)

BARE = ["ip tuntap add dev tun0 mode tun", "ip link set dev tun0 mtu 1500", "ip link set dev tun0 up"]  # fmt: skip  # noqa: E501


def network(**words: Any) -> TunnelNetwork:
    """A TunnelNetwork whose addresses and networks are given as text."""
    read: dict[str, Callable[[str], Any]] = {
        "addresses": ip_interface, "peer": ip_address, "routes": ip_network,
        "forward": ip_network, "dns": ip_address,
    }  # fmt: skip
    for name in read.keys() & words.keys():
        words[name] = tuple(read[name](item) for item in words[name])
    return TunnelNetwork(**words)


def lines(changes: tuple[Change, ...]) -> list[str]:
    return [change.describe() for change in changes]


def planned(device: str = "tun0", servers: tuple[str, ...] = (), **words: Any) -> Plan:
    kill_switch = words.pop("kill_switch", False)
    words.setdefault("any_source", True)  # whose rules have tests of their own
    outside = Outside(tuple(map(ip_address, servers)), 22, (ip_address("192.0.2.53"),), (61197,))
    return plan("office", network(**words), device, outside, kill_switch)


def rules(made: Plan) -> str:
    """The text of the only table."""
    (table,) = (change for change in made.at_start if isinstance(change, Rules))
    assert made.at_start[0] is table  # first made, last undone
    return table.body


def test_a_device_alone_needs_three_changes() -> None:
    made = planned()
    assert lines(made.at_start) == BARE
    assert made.while_up == ()


def test_the_first_address_of_a_family_has_the_peer() -> None:
    made = planned(
        addresses=["10.9.0.1/30", "10.8.0.1/24", "fd00:9::1/64"], peer=["fd00:9::2", "10.9.0.2"]
    )
    assert lines(made.at_start)[3:] == [
        "ip address add 10.9.0.1 peer 10.9.0.2/30 dev tun0",
        "ip address add 10.8.0.1/24 dev tun0",
        "ip address add fd00:9::1 peer fd00:9::2/64 dev tun0 nodad",
    ]


def test_routes_go_by_the_device_or_by_the_peer_of_an_ethernet() -> None:
    words: dict[str, Any] = {"peer": ["10.9.0.2"], "routes": ["192.168.2.0/24", "fd00:2::/64"]}
    assert lines(planned(**words).while_up) == [
        "ip route add 192.168.2.0/24 dev tun0",
        "ip route add fd00:2::/64 dev tun0",
    ]
    assert lines(planned("tap0", mode="ethernet", **words).while_up) == [
        "ip route add 192.168.2.0/24 via 10.9.0.2 dev tap0",
        "ip route add fd00:2::/64 dev tap0",
    ]


def test_default_routes_become_their_halves() -> None:
    assert lines(planned(routes=["0.0.0.0/0", "::/0", "0.0.0.0/0"]).while_up) == [
        "ip route add 0.0.0.0/1 dev tun0",
        "ip route add 128.0.0.0/1 dev tun0",
        "ip route add ::/1 dev tun0",
        "ip route add 8000::/1 dev tun0",
    ]


def test_a_bridge_has_the_addresses_and_routes_of_its_port() -> None:
    made = planned(
        "tap0", mode="ethernet", bridge="br0", mtu=1400, addresses=["10.9.0.1/24"],
        routes=["192.168.2.0/24"], masquerade="into-tunnel",
    )  # fmt: skip
    assert lines(made.at_start)[1:] == [
        "ip tuntap add dev tap0 mode tap",
        "ip link set dev tap0 mtu 1400",
        "ip link add name br0 type bridge",
        "ip link set dev tap0 master br0",
        "ip link set dev br0 up",
        "ip link set dev tap0 up",
        "ip address add 10.9.0.1/24 dev br0",
    ]
    assert lines(made.while_up) == ["ip route add 192.168.2.0/24 dev br0"]
    assert 'oifname "br0" masquerade' in rules(made)


def test_servers_that_a_route_covers_are_pinned_before_the_routes() -> None:
    made = planned(
        servers=("203.0.113.5", "203.0.113.5", "198.51.100.1", "2001:db8::1", "::ffff:10.1.2.3"),
        routes=["203.0.0.0/8", "203.0.113.0/24", "10.0.0.0/8"],
    )
    assert made.while_up[:4] == (
        Marked(4), MarkedAnswers(), Pin("203.0.113.5", "tun0", 24), Pin("10.1.2.3", "tun0", 8),
    )  # fmt: skip
    assert not any(isinstance(change, Pin) for change in made.while_up[4:])
    outside = Outside((IPv6Address("fe80::1%eth0"),), 22)
    everything = plan("o", network(routes=["::/0"]), "tun0", outside)
    assert everything.while_up[:2] == (Marked(6), Pin("fe80::1", "tun0", 1))


def test_an_address_covers_the_server_as_a_route_does() -> None:
    made = planned(servers=("203.0.113.5",), addresses=["193.0.0.1/2"])
    assert Pin("203.0.113.5", "tun0", 2) in made.while_up


def test_what_a_server_sends_is_marked_for_the_reverse_path_filter() -> None:
    text = rules(planned(servers=("203.0.113.5", "2001:db8::1"), routes=["0.0.0.0/0", "::/0"]))
    rule = 'iifname != "tun0" ip saddr { 203.0.113.5 } tcp sport 22 meta mark set 197'
    assert f"\t{rule}\n" in text
    assert "2001:db8::1" not in text


def test_forwarding_is_for_the_families_that_are_used() -> None:
    def forwarded(*networks: str) -> list[int]:
        changes = planned(forward=networks).at_start
        return [change.version for change in changes if isinstance(change, Forwarding)]

    assert forwarded() == []
    assert forwarded("10.1.0.0/24", "10.2.0.0/24") == [4]
    assert forwarded("::/0") == [6]
    both = ("0.0.0.0/0", "fd00:1::/64")
    assert forwarded(*both) == [4, 6]
    made = planned(forward=both)
    assert lines(made.at_start)[4:] == [
        "nft add element inet culvert-forward-ipv4 tunnels { tun0 }",
        "nft add element inet culvert-forward-ipv6 tunnels { tun0 }",
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ]
    changes = plan("office", network(forward=both), "tun0", has_ipv6=False).at_start
    assert [change.version for change in changes if isinstance(change, Forwarding)] == [4]


def test_into_a_tunnel_goes_only_what_comes_from_where_its_network_is() -> None:
    text = rules(
        planned(
            forward=["10.1.0.0/24", "10.1.1.0/24", "0.0.0.0/0", "fd00:1::/64"],
            routes=["10.2.0.0/24"],
        )
    )
    assert chain(text, "forwarded")[1:] == [
        'iifname != "tun0" oifname != "tun0" return',
        'iifname "tun0" oifname "tun0" return',
        'oifname "tun0" ip saddr { 10.1.0.0/23 } fib saddr . iif oif exists return',
        'iifname "tun0" meta nfproto ipv4 return',
        'oifname "tun0" ip6 saddr { fd00:1::/64 } fib saddr . iif oif exists return',
        'iifname "tun0" ip6 daddr { fd00:1::/64 } return',
        "ct state established,related return",
        'counter name "outsiders" drop',
    ]
    assert "forwarded" not in rules(planned(kill_switch=True, routes=["10.2.0.0/24"]))


@pytest.mark.parametrize(
    ("masquerade", "expected"),
    [
        ("from-tunnel", ['iifname "tun0" oifname != "tun0" masquerade']),
        ("into-tunnel", ['oifname "tun0" masquerade']),
        ("both", ['iifname "tun0" oifname != "tun0" masquerade', 'oifname "tun0" masquerade']),
    ],
)
def test_masquerade_is_a_rule_a_direction(masquerade: str, expected: list[str]) -> None:
    text = rules(planned(masquerade=masquerade))
    assert [line.strip() for line in text.splitlines() if "masquerade" in line][1:] == expected


def test_segments_are_clamped_only_where_a_neighbours_packets_are_too_large() -> None:
    text = rules(planned(forward=["10.1.0.0/24"], mtu=1400))
    assert text.count("tcp option maxseg size set rt mtu") == 2
    assert "masquerade" not in text
    assert "tcp option" not in rules(planned(forward=["10.1.0.0/24"], mtu=1500))
    assert len(planned(mtu=1400).at_start) == 3


def chain(text: str, name: str) -> list[str]:
    """The rules of one chain."""
    body = text.partition(f"chain {name} {{\n")[2].partition("\t}\n")[0]
    return [line.strip() for line in body.splitlines()]


def test_the_kill_switch_blocks_the_routes_for_all_but_the_link_itself() -> None:
    text = rules(
        planned(
            servers=("203.0.113.5", "::ffff:203.0.113.5", "2001:db8::1"),
            routes=["10.1.0.0/16", "10.0.0.0/8", "fd00:2::/64"],
            kill_switch=True,
        )
    )
    assert chain(text, "kill_switch") == [
        'oifname { "lo", "tun0" } return',
        "oifgroup 197 return",
        'ip daddr { 10.0.0.0/8 } counter name "blocked" reject with icmpx admin-prohibited',
        'ip6 daddr { fd00:2::/64 } counter name "blocked" reject with icmpx admin-prohibited',
    ]
    sent = chain(text, "sent")
    assert sent[-1] == "jump kill_switch"
    assert "meta mark 197 tcp dport 22 return" in sent
    assert (
        "meta skuid { 61197 } ip daddr { 192.0.2.53 } meta l4proto { tcp, udp }"
        " th dport { 53, 853 } return"
    ) in sent
    assert chain(text, "passed_on")[1:] == ['iifname != "tun0" jump kill_switch']
    assert "203.0.113.5" not in text.replace("ip saddr { 203.0.113.5 }", "")
    everything = rules(planned(routes=["0.0.0.0/0", "10.0.0.0/8"], kill_switch=True))
    assert 'meta nfproto ipv4 counter name "blocked"' in everything
    assert "ip6 daddr" not in everything
    assert lines(planned(kill_switch=True).at_start) == BARE  # nothing to keep in


def test_a_kill_switch_is_closed_from_the_declaration_alone() -> None:
    declared = network(routes=["0.0.0.0/0"], addresses=["10.9.0.1/30"])
    text = closed("office", declared, "").body
    assert chain(text, "kill_switch")[:2] == ['oifname { "lo" } return', "oifgroup 197 return"]
    assert "mark" not in text
    assert "skuid" not in text
    assert chain(text, "passed_on")[1:] == ["jump kill_switch"]
    assert (
        closed("office", declared, "tun0").key
        == planned(routes=["0.0.0.0/0"], kill_switch=True).at_start[0].key
    )


def test_a_peer_has_its_own_addresses_and_no_others() -> None:
    words = {
        "addresses": ["10.9.0.1/30", "fd00:9::1/64"], "peer": ["10.9.0.2"],
        "routes": ["192.168.2.0/24", "192.168.2.128/25"],
    }  # fmt: skip
    made = plan("office", network(**words), "tun0", handed_out=[ip_address("10.9.0.7")])
    text = rules(made)
    assert chain(text, "from_peer")[1:] == [
        'iifname != "tun0" return',
        "ip saddr { 10.9.0.1 } drop",
        "ip saddr { 10.9.0.2/32, 10.9.0.7/32, 192.168.2.0/24 } return",
        "ip6 saddr { fd00:9::1 } drop",
        "ip6 saddr { fd00:9::/64, fe80::/10 } return",
        'counter name "foreign" drop',
    ]
    assert chain(text, "to_peer")[1:] == [
        'oifname != "tun0" return',
        "ip daddr { 10.9.0.2/32, 10.9.0.7/32, 192.168.2.0/24, 224.0.0.0/24 } return",
        "ip6 daddr { fd00:9::/64, fe80::/10, ff02::/16 } return",
        'counter name "foreign" drop',
    ]
    everything = rules(plan("office", network(**words | {"routes": ["0.0.0.0/0"]}), "tun0"))
    assert "meta nfproto ipv4 return" in chain(everything, "from_peer")
    for free in ({"any_source": True}, {"mode": "ethernet"}):
        assert not any(
            isinstance(change, Rules)
            for change in plan("office", network(**words, **free), "tap0").at_start
        )


def test_the_table_is_replaced_as_a_whole_and_knows_its_version() -> None:
    one, other = (
        planned(routes=[route], kill_switch=True).at_start[0]
        for route in ("10.0.0.0/8", "10.0.0.0/9")
    )
    assert isinstance(one, Rules)
    assert isinstance(other, Rules)
    assert one.key == other.key
    assert one.digest != other.digest
    head = "table inet culvert-office\ndelete table inet culvert-office\n"
    assert one.script.startswith(f"{head}table inet culvert-office {{\n\tcomment ")
    assert one.describe() == "nft -f - (table inet culvert-office)"


def test_name_servers_come_last_and_without_domains_are_asked_for_all() -> None:
    words: dict[str, Any] = {"routes": ["10.0.0.0/8"], "dns": ["10.0.0.53", "fd00::53"]}
    assert planned(**words).while_up[-1].describe() == (
        "resolvectl dns tun0 10.0.0.53 fd00::53; resolvectl domain tun0 ~. (or /etc/resolv.conf)"
    )
    some = planned(domains=("corp.example", "~lab.example"), **words).while_up[-1]
    assert "domain tun0 corp.example ~lab.example (" in some.describe()


@pytest.mark.parametrize(
    ("owner", "device", "words"),
    [
        ("", "tun0", {}),
        ("a b", "tun0", {}),
        ("a{}", "tun0", {}),
        ("x" * 65, "tun0", {}),
        ("office", "", {}),
        ("office", "-tun0", {}),
        ("office", 'tun"', {}),
        ("office", "tun*", {}),
        ("office", "../tun0", {}),
        ("office", "t" * 16, {}),
        ("office", "tun0\n", {}),
        ("office", "tap0", {"bridge": "br 0"}),
        ("office", "tun0", {"domains": ("--help",)}),
        ("office", "tun0", {"domains": ("a\nnameserver 1.2.3.4",)}),
        ("office", "tun0", {"domains": ("",)}),
    ],
)
def test_names_that_could_be_syntax_are_refused(
    owner: str, device: str, words: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="is not"):
        plan(owner, network(**words), device)


def test_every_change_survives_json() -> None:
    made = planned(
        "tap0", ("203.0.113.5",), mode="ethernet", bridge="br0", addresses=["10.9.0.1/24"],
        peer=["10.9.0.2"], routes=["0.0.0.0/0"], forward=["10.1.0.0/24"], mtu=1400,
        masquerade="both", dns=["10.9.0.2"], domains=("corp.example",), kill_switch=True,
    )  # fmt: skip
    changes = (*made.at_start, *made.while_up)
    assert len({type(change) for change in changes}) == 14
    for change in changes:
        assert change_from_json(json.loads(json.dumps(change.to_json()))) == change
    assert len({change.key for change in changes}) == len(changes)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"kind": "Change"},
        {"kind": ["Up"]},
        {"kind": "Up"},
        {"kind": "Up", "device": 1},
        {"kind": "Up", "device": "tun0", "more": 1},
        {"kind": "Mtu", "device": "tun0", "mtu": "1400"},
        {"kind": "Mtu", "device": "tun0", "mtu": True},
        {"kind": "NameServers", "device": "tun0", "servers": "10.0.0.1", "domains": []},
        {"kind": "NameServers", "device": "tun0", "servers": [1], "domains": []},
    ],
)
def test_what_is_no_change_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        change_from_json(data)


def test_two_versions_of_one_thing_have_one_key() -> None:
    assert Mtu("tun0", 1400).key == Mtu("tun0", 1500).key != Mtu("tun1", 1400).key
    assert Pin("203.0.113.5", "tun0", 1).key == Pin("203.0.113.5", "tun1", 8).key
    assert Port("tap0", "br0").key == Port("tap0", "br1").key
    assert Up("tun0").key != Device("tun0", "point-to-point").key
