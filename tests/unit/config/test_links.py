"""The links in TOML: each mistake names the file, the link, the key and what is wrong."""

from dataclasses import fields
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.config.links import (
    HANDED_OUT_LIMIT,
    DeclaredMount,
    Link,
    LinksConfig,
    load_links_config,
    with_handed_out,
)
from appliance.errors import UsageError

from .toml import write

WRONG: dict[Any, Any] = {str: 7, int: "many", bool: "yes"}
MINIMAL = {"name": "office", "host": "office.example.org"}


def load(tmp_path: Path, table: dict[str, Any]) -> LinksConfig:
    return load_links_config(write(tmp_path / "links.toml", table))


def refusal(tmp_path: Path, table: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, table)
    message = str(caught.value)
    start = f"{tmp_path / 'links.toml'}: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


def link_refusal(tmp_path: Path, **keys: Any) -> str:
    message = refusal(tmp_path, {"link": [MINIMAL | keys]})
    name = keys.get("name", "office")
    assert message.startswith(f"link {name!r}: ")
    return message.removeprefix(f"link {name!r}: ")


# -- types -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in fields(LinksConfig)])
def test_every_key_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    values: tuple[Any, ...] = ("x", {"a": 1}, [[]], 7.5)
    for value in values:
        message = refusal(tmp_path, {name: value})
        assert message.startswith(name)
        assert ": expected " in message


@pytest.mark.parametrize("name", [field.name for field in fields(Link)])
def test_every_key_of_a_link_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    kind = next(field.type for field in fields(Link) if field.name == name)
    values: tuple[Any, ...] = ({"a": 1}, [[]], True if kind is not bool else 1)
    for value in (WRONG.get(kind, 7.5), *values):
        keys = MINIMAL | {name: value}
        message = refusal(tmp_path, {"link": [keys]})
        assert message.startswith(
            ("link number 1: name" if name == "name" else "link 'office': ")
            + name * (name != "name")
        )
        assert ": expected " in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "bridge"}, "mode: expected one of point-to-point, ethernet, not 'bridge'"),
        ({"masquerade": "yes"}, "masquerade: expected one of no, from-tunnel, into-tunnel, both"),
        (
            {"routes": ["10.0.0.0/8", "10.1.2.3/24"]},
            "routes[1]: expected a network such as 192.168.2.0/24 or fd00:2::/64, not "
            "'10.1.2.3/24' (did you mean 10.1.2.0/24?)",
        ),
        ({"routes": ["10.1.2.3"]}, "(did you mean 10.1.2.3/32?)"),
        ({"routes": ["fd00::1/64"]}, "(did you mean fd00::/64?)"),
        ({"routes": [3232235520]}, "routes[0]: expected a network such as"),
        ({"routes": [True]}, "routes[0]: expected a network such as"),
        ({"routes": ["10.0.0.0/255.0.0.0"]}, "routes[0]: expected a network such as"),
        ({"routes": "10.0.0.0/8"}, "routes: expected a list of networks such as"),
        (
            {"addresses": ["10.9.0.256/30"]},
            "addresses[0]: expected an address such as 10.9.0.1/30 or fd00:9::1/64, not '10.9",
        ),
        ({"addresses": ["10.9.0.1/0.0.0.3"]}, "addresses[0]: expected an address such as"),
        ({"addresses": ["fe80::1%eth0/64"]}, "addresses[0]: expected an address such as"),
        ({"addresses": [" 10.9.0.1/30"]}, "addresses[0]: expected an address such as"),
        ({"addresses": [167772161]}, "addresses[0]: expected an address such as"),
        (
            {"peer": ["10.9.0.2/30"]},
            "peer[0]: expected an address such as 10.9.0.2 or fd00:9::2, not '10.9.0.2/30' "
            "(did you mean 10.9.0.2?)",
        ),
        ({"domains": [1]}, "domains: expected a list of strings"),
        ({"rotues": []}, "there is no key 'rotues'; did you mean 'routes'?"),
    ],
)
def test_what_is_expected_is_said_in_words(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    assert words in link_refusal(tmp_path, **keys)


def test_a_link_is_named_by_its_name_or_else_its_number(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"link": [MINIMAL, {"host": "h"}]}) == (
        "link number 2: the key 'name' is missing"
    )
    assert refusal(tmp_path, {"link": [{"name": "a"}]}) == "link 'a': the key 'host' is missing"
    assert refusal(tmp_path, {"link": [MINIMAL, 1]}) == "link[1]: expected a table, not 1"
    assert refusal(tmp_path, {"link": MINIMAL}).startswith("link: expected tables in double br")
    assert refusal(tmp_path, {"links": []}) == "there is no key 'links'; did you mean 'link'?"
    assert "link 'a\\nb': name: expected" in refusal(
        tmp_path, {"link": [MINIMAL | {"name": "a\nb"}]}
    )


def test_a_proxys_password_is_never_shown(tmp_path: Path) -> None:
    secret = "http://anna:secret@proxy:3128"
    for wrong in (secret + "x", [secret], {"a": secret}, "http:/" + secret):
        assert "secret" not in link_refusal(tmp_path, proxy=wrong)
        assert "secret" not in link_refusal(tmp_path, proxy_command=[wrong])
        assert "secret" not in refusal(tmp_path, {"link": MINIMAL | {"proxy": wrong}})
    config = load(tmp_path, {"link": [MINIMAL | {"proxy": secret} | V4]})
    assert config.link[0].proxy == secret
    assert "secret" not in repr(config)


# -- meaning ---------------------------------------------------------------------------

V4 = {"addresses": ["10.9.0.1/30"]}
V6 = {"addresses": ["fd00:9::1/64"]}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        *(
            ({"name": name}, "name: expected 1 to 32 letters, digits")
            for name in ("", "-a", ".a", "a b", "a/b", "x" * 33, "ö")
        ),
        # the device
        *(
            ({"device": name}, "device: expected 'any' or tun0 to tun999999 for mode point-to-poin")
            for name in (
                "",
                "tun",
                "tap0",
                "tun00",
                "tun01",
                "tun1000000",
                "tun-1",
                "eth0",
            )
        ),
        ({"remote_device": "tap0"}, "remote_device: expected 'any' or tun0 to tun999999"),
        ({"mode": "ethernet", "device": "tun0"}, "device: expected 'any' or tap0 to tap999999"),
        ({"mode": "ethernet", "remote_device": "tun0"}, "remote_device: expected 'any' or tap0"),
        # addresses
        ({"addresses": ["224.0.0.1/24"]}, "addresses[0]: 224.0.0.1 is no address of one host"),
        ({"addresses": ["0.0.0.0/24"]}, "addresses[0]: 0.0.0.0 is no address of one host"),
        ({"addresses": ["127.0.0.1/8"]}, "addresses[0]: 127.0.0.1 is no address of one host"),
        ({"addresses": ["::1/128"]}, "addresses[0]: ::1 is no address of one host"),
        ({"addresses": ["ff02::1/64"]}, "addresses[0]: ff02::1 is no address of one host"),
        ({"addresses": ["10.9.0.0/30"]}, "addresses[0]: 10.9.0.0/30 is the network's address"),
        ({"addresses": ["fd00::/64"]}, "addresses[0]: fd00::/64 is the network's address"),
        ({"addresses": ["10.9.0.3/30"]}, "addresses[0]: 10.9.0.3/30 is the broadcast address"),
        ({"addresses": ["10.9.0.1/30", "10.9.0.1/24"]}, "addresses[1]: 10.9.0.1 is given twice"),
        # the peer
        (V4 | {"peer": ["10.9.0.2", "10.9.0.3"]}, "peer[1]: there is an IPv4 address before it"),
        (V4 | {"peer": ["fd00::2"]}, "peer[0]: addresses has no IPv6 address"),
        ({"peer": ["10.9.0.2"]}, "peer[0]: addresses has no IPv4 address"),
        (V4 | {"peer": ["10.9.0.1"]}, "peer[0]: 10.9.0.1 is this end's own address"),
        (V4 | {"peer": ["239.0.0.1"]}, "peer[0]: 239.0.0.1 is no address of one host"),
        # routes and MTU
        ({"routes": ["10.0.0.0/8", "10.0.0.0/8"]}, "routes[1]: 10.0.0.0/8 is given twice"),
        ({"mtu": 575}, "mtu: expected 576 to 65535, not 575"),
        ({"mtu": 65536}, "mtu: expected 576 to 65535, not 65536"),
        (V6 | {"mtu": 1279}, "mtu: IPv6 needs at least 1280, not 1279"),
        ({"routes": ["fd00::/64"], "mtu": 576}, "mtu: IPv6 needs at least 1280, not 576"),
        *(
            (
                {"routes": routes},
                'routes: IPv6 would go around the tunnel: add "::/0" to routes, or ipv6_outside ='
                " true if that is meant",
            )
            for routes in (
                ["0.0.0.0/0"],
                ["0.0.0.0/1", "128.0.0.0/1"],
                ["0.0.0.0/1", "128.0.0.0/1", "::/1"],
                ["0.0.0.0/0", "fd00::/8"],
            )
        ),
        ({"kill_switch": True}, "kill_switch: there are no routes that it could guard"),
        # the bridge
        ({"bridge": "br0"}, 'bridge: only an ethernet device can be in a bridge: add mode = "eth'),
        *(
            (
                {"mode": "ethernet", "bridge": name},
                "bridge: expected the name of an interface, 1 to",
            )
            for name in ("x" * 16, "a b", "a/b", "a:b", ".", "..", "ö")
        ),
        (
            {"mode": "ethernet", "device": "tap0", "bridge": "tap0"},
            "bridge: the device cannot be its own bridge",
        ),
        *(
            (
                {"mode": "ethernet", "bridge": "br0"} | keys,
                f"{list(keys)[-1]}: a port of a bridge has no addresses: give them to br0 itself",
            )
            for keys in (V4, {"peer": ["10.9.0.2"]}, {"routes": ["10.0.0.0/8"]})
        ),
        # forwarding
        *(
            (
                {"masquerade": value},
                "masquerade: only what is forwarded is masqueraded: add forward",
            )
            for value in ("from-tunnel", "into-tunnel", "both")
        ),
        ({"forward": True}, "forward: expected a list of networks such as"),
        ({"forward": ["10.0.0.0/8", "10.0.0.0/8"]}, "forward[1]: 10.0.0.0/8 is given twice"),
        (
            {"forward": ["10.1.0.0/24", "10.2.0.0/24"], "routes": ["10.2.0.0/24"]},
            "forward[1]: 10.2.0.0/24 lies behind the other end, says routes",
        ),
        # names
        (V4 | {"dns": ["fd00::1"]}, "dns[0]: addresses and routes have no IPv6 to reach fd00::1"),
        ({"dns": ["224.0.0.1"]}, "dns[0]: 224.0.0.1 is no address of one host"),
        ({"dns": ["0.0.0.0"]}, "dns[0]: 0.0.0.0 is no address of one host"),
        ({"dns": ["10.0.0.1", "10.0.0.1"]}, "dns[1]: 10.0.0.1 is given twice"),
        *(
            ({"dns": ["10.0.0.1"], "domains": ["a.org", name]}, "domains[1]: expected a name such")
            for name in (
                "",
                ".",
                "a..b",
                "-a",
                "a-",
                "a.-b",
                "a b",
                "ö",
                "x" * 64,
                "a." * 127 + "b",
            )
        ),
        ({"dns": ["10.0.0.1"], "domains": ["a.org", "A.org"]}, "domains[1]: a.org is given twice"),
        ({"domains": ["a.org"]}, "domains: there is no name server to ask for them: add dns"),
        # the server
        *(
            ({"host": host}, "host: expected the name or address of a host, not ")
            for host in ("", "-oProxyCommand=x", "a b", "a@b", "a;b", "$(a)", "[::1]", "a/b")
        ),
        ({"host": "a\nb"}, "host: expected one line without control characters"),
        *(
            ({"user": user}, "user: expected the name of a user, not ")
            for user in ("-a", "a b", "a@b", "a/b", "a;b", "`a`", "a:b")
        ),
        *(
            ({key: "a\nb"}, f"{key}: expected one line without control characters")
            for key in ("user", "identity_file", "host_key", "known_hosts_file", "proxy_command")
        ),
        ({"port": -1}, "port: expected 0 to 65535, not -1"),
        ({"port": 65536}, "port: expected 0 to 65535, not 65536"),
        ({"proxy": "proxy:3128"}, "proxy: expected http://[user:password@]host:port or socks5:/"),
        ({"proxy_jump": ["a", "a:0"]}, "proxy_jump[1]: expected [user@]host[:port], not 'a:0'"),
        ({"proxy_jump": ["a\tb"]}, "proxy_jump: expected one line"),
        (
            {"proxy": "http://a:1", "proxy_jump": ["a"]},
            "proxy: there is proxy_jump already: only one way leads to the server",
        ),
        (
            {"proxy_command": "nc %h %p", "proxy_jump": ["a"]},
            "proxy_command: there is proxy_jump already",
        ),
        (
            {"proxy_command": "nc %h %p", "kill_switch": True, "routes": ["10.2.0.0/24"]},
            "proxy_command: the address that it connects to is not known",
        ),
        (
            {"proxy_command": "nc %h %p", "routes": ["0.0.0.0/0", "::/0"]},
            "proxy_command: the address that it connects to is not known",
        ),
        (
            {"proxy_command": "nc %h %p", "proxy": "http://a:1"},
            "proxy_command: there is proxy already",
        ),
        ({"host_key": "a b", "known_hosts_file": "/a"}, "known_hosts_file: there is host_key alr"),
        ({"server_alive_interval": 0}, "server_alive_interval: expected 1 to 3600, not 0"),
        ({"server_alive_interval": 3601}, "server_alive_interval: expected 1 to 3600, not 3601"),
        ({"server_alive_count_max": 0}, "server_alive_count_max: expected 1 to 100, not 0"),
        ({"server_alive_count_max": 101}, "server_alive_count_max: expected 1 to 100, not 101"),
        ({"connect_timeout": 0}, "connect_timeout: expected 1 to 600, not 0"),
        ({"connect_timeout": 601}, "connect_timeout: expected 1 to 600, not 601"),
        # what the server hands out
        *(
            (
                {"from_server": True} | keys,
                f"{list(keys)[-1]}: comes from the server because of from_server = true",
            )
            for keys in (
                V4,
                {"peer": ["10.9.0.2"]},
                {"routes": ["10.0.0.0/8"]},
                {"dns": ["10.0.0.1"]},
                {"domains": ["a.org"]},
            )
        ),
        ({"from_server": True, "mode": "ethernet", "bridge": "br0"}, "bridge: a port of a bridge "),
    ],
)
def test_a_link_that_makes_no_sense_is_refused(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    assert link_refusal(tmp_path, **keys).startswith(words)


def test_links_are_not_in_each_others_way(tmp_path: Path) -> None:
    other = {"name": "home", "host": "home", "any_source": True}
    office = MINIMAL | {"any_source": True}
    assert refusal(tmp_path, {"link": [office, other, office]}) == (
        "link 'office': name: office is given twice"
    )
    tun0 = {"device": "tun0"}
    assert refusal(tmp_path, {"link": [office | tun0, other | tun0]}) == (
        "link 'home': device: tun0 is given twice"
    )
    assert len(load(tmp_path, {"link": [office, other]}).link) == 2  # 'any' is no device


@pytest.mark.parametrize("port", [-1, 65536])
def test_the_port_of_the_metrics_is_one(tmp_path: Path, port: int) -> None:
    message = refusal(tmp_path, {"metrics_port": port})
    assert message == f"metrics_port: expected 0 to 65535, not {port}"


@pytest.mark.parametrize(
    "keys",
    [
        {"routes": ["0.0.0.0/0", "::/0"]},
        {"routes": ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]},
        {"routes": ["0.0.0.0/0"], "ipv6_outside": True},
        {"routes": ["0.0.0.0/1"]},
        {"routes": ["10.0.0.0/8", "10.1.0.0/16"]},
        {"routes": ["10.0.0.0/8"], "kill_switch": True},
        {"from_server": True, "kill_switch": True},
        {"addresses": ["10.9.0.0/31", "fd00::/127"], "peer": ["10.9.0.1", "fd00::1"]},
        {"addresses": ["10.9.0.1"], "peer": ["10.9.0.2"]},
        {"addresses": ["fe80::1/64"], "mtu": 1280},
        {"mode": "ethernet", "device": "tap999999", "bridge": "br-lan.1", "dns": ["10.0.0.1"]},
        {"addresses": ["10.9.0.1/30"], "dns": ["::1", "10.9.0.2"], "domains": ["a_b.x-y.org"]},
        {"forward": ["0.0.0.0/0", "192.168.1.0/24"], "masquerade": "both"} | V4,
        {"proxy": "socks5://[fd00::1]:1080"} | V4,
        {"proxy_jump": ["anna@a:22", "[fd00::1]:2222", "fd00::2"], "user": "anna.b-c"} | V4,
        {"host": "fe80::1%eth0"} | V4,
    ],
)
def test_what_makes_sense_is_accepted(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert len(load(tmp_path, {"link": [MINIMAL | keys]}).link) == 1


def test_a_link_says_which_addresses_are_the_other_ends(tmp_path: Path) -> None:
    words = "addresses: nothing says which addresses are the other end's"
    assert link_refusal(tmp_path).startswith(words)
    for keys in (
        V4, {"routes": ["10.0.0.0/8"]}, {"any_source": True}, {"from_server": True},
        {"mode": "ethernet"},
    ):  # fmt: skip
        assert len(load(tmp_path, {"link": [MINIMAL | keys]}).link) == 1


def test_addresses_and_networks_are_objects(tmp_path: Path) -> None:
    keys = {
        "addresses": ["10.9.0.1/30", "fd00:9::1/64"],
        "peer": ["10.9.0.2"],
        "routes": ["192.168.2.0/24"],
        "dns": ["192.168.2.1"],
    }
    (link,) = load(tmp_path, {"link": [MINIMAL | keys]}).link
    assert link == Link(
        name="office",
        host="office.example.org",
        addresses=(ip_interface("10.9.0.1/30"), ip_interface("fd00:9::1/64")),
        peer=(ip_address("10.9.0.2"),),
        routes=(ip_network("192.168.2.0/24"),),
        dns=(ip_address("192.168.2.1"),),
    )


def test_an_empty_file_has_no_links(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == LinksConfig()


OFFICE = Link(name="office", host="office.example.org", from_server=True)


def test_what_the_server_hands_out_takes_the_place_of_what_is_left_open() -> None:
    whole = with_handed_out(OFFICE, {"addresses": ["10.9.0.1/30"], "routes": ["10.2.0.0/24"]})
    assert [str(each) for each in (*whole.addresses, *whole.routes)] == [
        "10.9.0.1/30",
        "10.2.0.0/24",
    ]
    assert (whole.name, whole.mtu) == ("office", 1500)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"addresses": ["nonsense"]}, r"addresses\[0\]: expected an address"),
        ({"addresses": ["127.0.0.1/8"]}, "addresses"),
        ({"addresses": ["10.9.0.1/30"], "mtu": 70_000}, "mtu: expected"),
        ({"addresses": ["10.9.0.1/30"], "routes": ["0.0.0.0/0"]}, "IPv6 would go around"),
        ({"addresses": ["10.9.0.1/30"], "kill_switch": True}, "there is no key 'kill_switch'"),
        ({"addresses": ["10.9.0.1/30"], "domains": ["a b"], "dns": ["10.9.0.2"]}, "domains"),
        (
            {
                "addresses": ["10.9.0.1/30"],
                "routes": [f"10.2.{n}.0/24" for n in range(HANDED_OUT_LIMIT + 1)],
            },
            f"routes: expected at most {HANDED_OUT_LIMIT}",
        ),
    ],
)
def test_what_the_server_may_not_hand_out_is_refused_in_one_line(
    table: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=f"the server hands out: .*{words}") as caught:
        with_handed_out(OFFICE, table)
    assert "\n" not in str(caught.value)


# -- mounts ----------------------------------------------------------------------------

MOUNT = {"name": "photos", "host": "office.example.org", "mountpoint": "/mnt/photos"}


def mount_refusal(tmp_path: Path, **keys: Any) -> str:
    message = refusal(tmp_path, {"mount": [MOUNT | keys]})
    assert message.startswith("mount 'photos': ")
    return message.removeprefix("mount 'photos': ")


@pytest.mark.parametrize("name", sorted({field.name for field in fields(DeclaredMount)} - {"name"}))
def test_every_key_of_a_mount_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    assert mount_refusal(tmp_path, **{name: 7.5}).startswith(f"{name}: expected ")


def test_what_belongs_to_tunnels_is_no_key_of_a_mount(tmp_path: Path) -> None:
    ways = {field.name for field in fields(Link)} & {field.name for field in fields(DeclaredMount)}
    for field in fields(Link):
        if field.name not in ways:
            assert "there is no key" in mount_refusal(tmp_path, **{field.name: 1})
    assert {"proxy", "host_key", "server_alive_interval", "connect_timeout"} <= ways


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"host": "-oProxyCommand=x"}, "host: expected the name or address of a host"),
        ({"port": 65536}, "port: expected 0 to 65535"),
        ({"directory": "a\nb"}, "directory: expected one line without control characters"),
        ({"options": ["ro\n"]}, "options: expected one line without control characters"),
        ({"options": "ro"}, "options: expected a list of strings"),
        ({"proxy": "http://a:1", "proxy_jump": ["b"]}, "only one way leads to the server"),
    ],
)
def test_a_mistake_in_a_mount_is_named(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert words in mount_refusal(tmp_path, **keys)


@pytest.mark.parametrize(
    "path", ["", "/", "//", "mnt", "./mnt", "//mnt", "/mnt/..", "/mnt/../a", "/./a", "/a//b"]
)
def test_a_mount_point_is_an_absolute_path(tmp_path: Path, path: str) -> None:
    message = mount_refusal(tmp_path, mountpoint=path)
    assert message.startswith("mountpoint: expected an absolute path such as /mnt/photos, not ")


def test_names_of_dots_are_names_for_a_mount_point(tmp_path: Path) -> None:
    for path in ("/mnt/...", "/.mnt", "/mnt/a..", "/mnt/a b/"):
        assert load(tmp_path, {"mount": [MOUNT | {"mountpoint": path}]}).mount


def test_a_place_has_one_mount(tmp_path: Path) -> None:
    other = MOUNT | {"name": "music", "mountpoint": "/mnt/photos/"}
    message = refusal(tmp_path, {"mount": [MOUNT, other]})
    assert message == "mount 'music': mountpoint: /mnt/photos is given twice"
    below = MOUNT | {"name": "music", "mountpoint": "/mnt/photos/music"}
    for mounts in ([MOUNT, below], [below, MOUNT]):
        message = refusal(tmp_path, {"mount": mounts})
        assert message.startswith("mount 'music': mountpoint: /mnt/photos/music lies in the mount")
    beside = MOUNT | {"name": "music", "mountpoint": "/mnt/photos2"}
    assert len(load(tmp_path, {"mount": [MOUNT, beside]}).mount) == 2


def test_a_name_is_that_of_one_link_or_mount(tmp_path: Path) -> None:
    link = MINIMAL | {"name": "photos", "any_source": True}
    message = refusal(tmp_path, {"link": [link], "mount": [MOUNT]})
    assert message == "mount 'photos': name: a link has the name photos"
    twice = [MOUNT, MOUNT | {"mountpoint": "/mnt/other"}]
    message = refusal(tmp_path, {"mount": twice})
    assert message == "mount 'photos': name: photos is given twice"
    assert "name: expected 1 to 32 letters" in refusal(tmp_path, {"mount": [MOUNT | {"name": ""}]})
