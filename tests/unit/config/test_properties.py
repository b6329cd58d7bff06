"""Any file is a configuration or one line about it; what is valid is read as it was written."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import permutations
from typing import Any, get_args, get_origin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.config.links import DeclaredMount, Link, LinksConfig, load_links_config
from appliance.config.network import Address, Interface, Network, is_everything
from appliance.config.reader import GIVEN
from appliance.config.server import ClientNetwork, ServerConfig, Tunnel, load_server_config
from appliance.errors import UsageError

from .toml import TEXTS, VALUES, patient, write

Strategy = st.SearchStrategy[Any]


def load_server(path: str) -> ServerConfig:
    return load_server_config(path, ServerConfig())


# -- anything --------------------------------------------------------------------------

NEARLY = st.sampled_from(
    [
        *("", "any", "tun0", "tap7", "br0", "a", "a.org", "-a", "a b", "10.9.0.1", "10.9.0.1/30"),
        *("10.0.0.0/8", "0.0.0.0/0", "fd00::1", "fd00::1/64", "::/0", "127.0.0.1", "ff02::1"),
        *("http://a:1", "socks5://a:b@c:1", "SHA256:x", "10.9.0.1/33", "224.0.0.0/4", "::"),
    ]
)


def nearly(kind: Any) -> Strategy:
    """Mostly values of this type, whether they make sense or not."""
    if is_dataclass(kind):
        keys = {field.name: nearly(field.type) for field in fields(kind) if field.metadata != GIVEN}
        required = [name for name in ("name", "host") if name in keys]
        return st.fixed_dictionaries(
            {name: keys.pop(name) for name in required}, optional=keys
        ) | st.dictionaries(st.sampled_from([*keys, "x"]) | TEXTS, VALUES, max_size=3)
    if get_origin(kind) is tuple:
        return st.lists(nearly(get_args(kind)[0]), max_size=3) | VALUES
    if kind in (str, Address, Interface, Network):
        return NEARLY | TEXTS
    if kind in (bool, bool | None):
        return st.booleans()
    if kind is int:
        return st.sampled_from([0, 1, 15, 22, 576, 1500, 65535]) | st.integers()
    if get_origin(kind) is dict:
        return st.dictionaries(TEXTS, TEXTS, max_size=2) | VALUES
    return st.sampled_from(get_args(kind))


def refusal(load: Callable[[str], object], path: str) -> str | None:
    try:
        load(path)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("load", "kind"), [(load_links_config, LinksConfig), (load_server, ServerConfig)]
)
@patient
@given(data=st.data())
def test_any_file_is_a_configuration_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, load: Callable[[str], Any], kind: type, data: Any
) -> None:
    table = data.draw(nearly(kind))
    path = write(tmp_path_factory.getbasetemp() / "any.toml", table)
    message = refusal(load, path)
    assert message is None or (message.startswith(path + ": ") and message.isprintable())


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(data)
    for load in (load_links_config, load_server):
        assert "\n" not in (refusal(load, str(path)) or "")


# -- what is valid ---------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20})|fd00::[1-9a-f]{1,3}", fullmatch=True)
USERS = st.from_regex(r"[a-z][a-z0-9._-]{0,10}", fullmatch=True)
DOMAINS = st.from_regex(r"[a-z]{1,9}(\.[a-z0-9]{1,9}){0,3}", fullmatch=True)
PRINTABLE = TEXTS.filter(str.isprintable)
PLACES = {
    4: st.builds(
        lambda n, bits: (IPv4Address(n), bits), st.integers(10 << 24, 11 << 24), st.integers(8, 32)
    ),
    6: st.builds(
        lambda n, bits: (IPv6Address((0xFD00 << 112) + n), bits),
        st.integers(1, 1 << 100),
        st.integers(8, 128),
    ),
}
NETWORKS = st.one_of(
    PLACES[4].map(lambda place: str(IPv4Network(place, strict=False))),
    PLACES[6].map(lambda place: str(IPv6Network(place, strict=False))),
)


@st.composite
def addressing(draw: st.DrawFn) -> dict[str, Any]:
    """Addresses, peers, routes, MTU and names that fit each other."""
    versions = draw(st.sampled_from([[], [4], [6], [4, 6]]))
    table: dict[str, Any] = {"addresses": [], "peer": [], "dns": []}
    for version in versions:
        address, bits = draw(PLACES[version])
        last = draw(PLACES[version])[0]
        network = (IPv4Network if version == 4 else IPv6Network)((address, bits), strict=False)
        assume(bits >= network.max_prefixlen - 1 or address not in (network[0], network[-1]))
        assume(last != address)
        table["addresses"].append(f"{address}/{bits}")
        table["peer"] += draw(st.sampled_from([[], [str(last)]]))
        table["dns"] += draw(st.sampled_from([[], [str(last)]]))
    table["routes"] = draw(st.lists(NETWORKS, unique=True, max_size=4))
    table["mtu"] = draw(st.integers(1280, 65535))
    table["domains"] = draw(st.lists(DOMAINS, unique=True, max_size=3)) if table["dns"] else []
    return table


@st.composite
def tunnel_network(draw: st.DrawFn) -> dict[str, Any]:
    mode = draw(st.sampled_from(["point-to-point", "ethernet"]))
    kind = "tap" if mode == "ethernet" else "tun"
    forward = draw(st.lists(NETWORKS, unique=True, max_size=3))
    table: dict[str, Any] = {
        "mode": mode,
        "device": f"{kind}{draw(st.integers(0, 999999))}",
        "forward": forward,
        "any_source": draw(st.booleans()) and mode == "point-to-point",
        "masquerade": draw(st.sampled_from(["no", "from-tunnel", "into-tunnel", "both"]))
        if forward
        else "no",
    }
    if mode == "ethernet" and draw(st.booleans()):
        return table | {"bridge": "br" + str(draw(st.integers(0, 99))), "mtu": 1400}
    table |= draw(addressing())
    assume(not set(forward) & set(table["routes"]))
    if mode == "point-to-point" and not (table["addresses"] or table["peer"] or table["routes"]):
        table["any_source"] = True
    return table


@st.composite
def access(draw: st.DrawFn) -> dict[str, Any]:
    """A name, and the way to a server."""
    way: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"proxy": "http://u:p%20@h:1"},
                {"proxy_command": "nc %h %p"},
                {"proxy_jump": ["a@b:1"]},
            ]
        )
    )
    return way | {
        "name": draw(NAMES),
        "host": draw(HOSTS),
        "port": draw(st.integers(0, 65535)),
        "user": draw(USERS | st.just("")),
        "identity_file": draw(PRINTABLE),
        draw(st.sampled_from(["host_key", "known_hosts_file"])): draw(PRINTABLE),
        "server_alive_interval": draw(st.integers(1, 3600)),
        "server_alive_count_max": draw(st.integers(1, 100)),
        "connect_timeout": draw(st.integers(1, 600)),
    }


@st.composite
def mount(draw: st.DrawFn) -> dict[str, Any]:
    names = st.sampled_from(["a", "b c", "...", "é"])
    return draw(access()) | {
        "directory": draw(PRINTABLE),
        "mountpoint": "/" + "/".join(draw(st.lists(names, min_size=1, max_size=3))),
        "options": draw(st.lists(PRINTABLE, max_size=3)),
    }


@st.composite
def link(draw: st.DrawFn) -> dict[str, Any]:
    table = draw(tunnel_network())
    if draw(st.booleans()) and "bridge" not in table:
        for key in ("addresses", "peer", "routes", "dns", "domains"):
            del table[key]
        table["from_server"] = True
    kind = "tap" if table["mode"] == "ethernet" else "tun"
    table |= draw(access())
    table |= {
        "remote_device": draw(st.sampled_from(["any", f"{kind}0"])),
        "kill_switch": draw(st.booleans())
        and "proxy_command" not in table
        and bool(table.get("from_server") or table.get("routes")),
        "ipv6_outside": draw(st.booleans()),
    }
    routes = [ip_network(route) for route in table.get("routes", [])]
    if is_everything(routes, 4) or is_everything(routes, 6):
        table.pop("proxy_command", None)
    return table


@st.composite
def tunnel(draw: st.DrawFn) -> dict[str, Any]:
    table = draw(tunnel_network())
    client = draw(addressing())
    if not client["addresses"]:
        del client["routes"]
    return table | {
        "key": draw(st.sampled_from(["", "SHA256:" + "A" * 43, "ssh-ed25519 AAAA= x y"])),
        "user": draw(USERS | st.just("")),
        "client": client,
    }


def assert_same(table: Mapping[str, Any], config: Any) -> None:
    """Every key of the table is in the dataclass, and the others have their defaults."""
    for key, value in table.items():
        found = getattr(config, key)
        if isinstance(value, dict) and is_dataclass(found):
            assert_same(value, found)
        elif isinstance(value, list):
            assert len(found) == len(value)
            for one, other in zip(value, found, strict=True):
                if isinstance(one, dict):
                    assert_same(one, other)
                else:
                    assert (str(other) if isinstance(one, str) else other) == one
        else:
            assert found == value
    for field in fields(config):
        if field.name not in table and field.metadata != GIVEN:
            assert getattr(config, field.name) == field.default


@patient
@given(
    st.fixed_dictionaries(
        {
            "link": st.lists(
                link(), max_size=3, unique_by=(lambda t: t["name"], lambda t: t["device"])
            ),
            "mount": st.lists(mount(), max_size=2),
            "metrics_port": st.integers(0, 65535),
        }
    )
)
def test_valid_links_and_mounts_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    names = [entry["name"] for entry in table["link"] + table["mount"]]
    assume(len(set(names)) == len(names))
    places = [f"{mount['mountpoint']}/" for mount in table["mount"]]
    assume(not any(one.startswith(other) for one, other in permutations(places, 2)))
    path = write(tmp_path_factory.getbasetemp() / "valid.toml", table)
    assert_same(table, load_links_config(path))


@patient
@given(
    st.fixed_dictionaries(
        {
            "tunnel": st.lists(tunnel(), max_size=3, unique_by=lambda t: t["device"]),
            "subsystems": st.dictionaries(TEXTS, TEXTS, max_size=2),
            "listen": st.lists(TEXTS, max_size=3),
            "max_startups": st.tuples(*3 * [st.integers(1, 100)]).map(sorted),
            "max_auth_tries": st.integers(1, 100),
            "permit_tunnel": st.sampled_from(["no", "point-to-point", "ethernet", "yes"]),
            "print_motd": st.booleans(),
            "allow_tcp_forwarding": st.sampled_from(["yes", "no", "local", "remote"]),
            "gateway_ports": st.sampled_from(["no", "yes", "clientspecified"]),
            "allow_users": st.lists(USERS | st.just("a*@192.0.2.0/24"), max_size=3),
            "match": st.lists(
                st.fixed_dictionaries(
                    {
                        "user": USERS,
                        "address": st.sampled_from(["*", "!192.0.2.0/24,10.*"]),
                        "subsystems": st.dictionaries(TEXTS, TEXTS, max_size=2),
                    },
                    optional={"max_sessions": st.integers(0, 1000), "permit_tty": st.booleans()},
                ),
                max_size=3,
            ),
            "permit_open": st.lists(st.sampled_from(["a:1", "*:*", "[fd00::1]:22"]), max_size=3),
        }
    )
)
def test_valid_settings_of_the_server_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "valid.toml", table)
    assert_same(table, load_server(path))


def keys_of(strategy: Strategy) -> set[str]:
    """All keys that the tables of this strategy have."""
    seen: set[str] = set()

    @settings(patient, max_examples=500, database=None)
    @given(strategy)
    def collect(table: dict[str, Any]) -> None:
        seen.update(table)

    collect()
    return seen


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        (Link, link()),
        (DeclaredMount, mount()),
        (Tunnel, tunnel()),
        (ClientNetwork, addressing()),
    ],
)
def test_every_key_is_tried_with_valid_values(kind: type, strategy: Strategy) -> None:
    assert {field.name for field in fields(kind)} == keys_of(strategy)
