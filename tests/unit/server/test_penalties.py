"""Who misbehaves before authentication is refused for a while, and nobody else is."""

import itertools
import time
from ipaddress import IPv4Address

import pytest

from appliance.errors import UsageError
from appliance.server import penalties as module
from appliance.server.penalties import MAXIMUM, MINIMUM, SECONDS, Ending, Penalties, blocks_of
from tests.netns import wait_until
from tests.unit.server.conftest import Dial, Serve, connect, is_alone

SOURCE = "192.0.2.1"
BLOCK = (32, 64)


def test_failures_add_up_until_the_source_is_refused() -> None:
    penalties = Penalties((), BLOCK)
    told = [penalties.add(SOURCE, Ending.FAILED, 0.0) for _ in range(5)]
    assert told == ["", "", "192.0.2.1/32", "", ""]
    assert penalties.refuses(SOURCE, 1.0)
    assert not penalties.refuses("192.0.2.2", 1.0)


@pytest.mark.parametrize(
    ("ending", "count"),
    [
        (Ending.CRASH, 1),
        (Ending.GRACE_TIME, 2),
        (Ending.FAILED, 3),
        (Ending.UNKNOWN_USER, 3),
        (Ending.NO_AUTHENTICATION, 10),
    ],
)
def test_each_kind_of_end_has_its_weight(ending: Ending, count: int) -> None:
    penalties = Penalties((), BLOCK)
    for _ in range(count):
        assert not penalties.refuses(SOURCE, 0.0)
        penalties.add(SOURCE, ending, 0.0)
    assert penalties.refuses(SOURCE, 0.0)


def test_a_penalty_passes_and_is_forgotten() -> None:
    penalties = Penalties((), BLOCK)
    for _ in range(4):
        penalties.add(SOURCE, Ending.FAILED, 100.0)
    seconds = 5.0 * (1 + 9 / 8 + 10 / 8 + 11 / 8)
    assert penalties.refuses(SOURCE, 100.0 + seconds - 0.1)
    assert not penalties.refuses(SOURCE, 100.0 + seconds)
    assert not penalties.refuses(SOURCE, 105.0 + seconds)
    assert not penalties._records[4]
    penalties.add(SOURCE, Ending.FAILED, 106.0 + seconds)
    assert not penalties.refuses(SOURCE, 107.0 + seconds)


def test_who_comes_once_a_second_and_never_logs_in_is_refused_and_ever_more_often() -> None:
    """D(HE)at: a key exchange a second, for which a second of penalty was just not enough."""
    penalties = Penalties((), BLOCK)
    served: list[int] = []
    for now in range(3600):
        if not penalties.refuses(SOURCE, now):
            served.append(now)
            penalties.add(SOURCE, Ending.NO_AUTHENTICATION, now)
    pauses = [later - now for now, later in itertools.pairwise(served)]
    assert len([now for now in served if now < 40]) < 25
    assert min(pauses[-90:]) >= 16  # from 15 in a row at the start to one of 16 seconds, and fewer
    assert pauses[-1] > 20


def test_who_only_looks_whether_the_port_is_open_every_two_seconds_is_never_refused() -> None:
    """As a proxy that spreads connections does (HAProxy's inter)."""
    penalties = Penalties((), BLOCK)
    for now in range(0, 7200, 2):
        assert not penalties.refuses(SOURCE, now)
        penalties.add(SOURCE, Ending.NO_AUTHENTICATION, now)


def test_bad_ends_of_an_hour_ago_make_nothing_dearer() -> None:
    penalties = Penalties((), BLOCK)
    for _ in range(200):
        penalties.add(SOURCE, Ending.FAILED, 0.0)
    assert not penalties.refuses(SOURCE, 3600.0)
    assert not penalties.add(SOURCE, Ending.FAILED, 3600.0)
    assert not penalties.add(SOURCE, Ending.FAILED, 3600.0)


def test_what_is_far_apart_does_not_add_up() -> None:
    penalties = Penalties((), BLOCK)
    for number in range(100):
        penalties.add(SOURCE, Ending.FAILED, number * 6.0)
        assert not penalties.refuses(SOURCE, number * 6.0)


def test_a_penalty_has_a_limit() -> None:
    penalties = Penalties((), BLOCK)
    for _ in range(1000):
        penalties.add(SOURCE, Ending.CRASH, 0.0)
    assert penalties.refuses(SOURCE, MAXIMUM - 1)
    assert not penalties.refuses(SOURCE, MAXIMUM)


def test_a_login_costs_nothing() -> None:
    penalties = Penalties((), BLOCK)
    for _ in range(1000):
        penalties.add(SOURCE, Ending.NORMAL, 0.0)
    assert not penalties.refuses(SOURCE, 0.0)


def test_who_is_exempt_is_never_refused() -> None:
    penalties = Penalties(("192.0.2.0/24", "2001:db8::/32", "::1"), BLOCK)
    for source in (SOURCE, "2001:db8::5", "::1", "not an address"):
        penalties.add(source, Ending.CRASH, 0.0)
        assert not penalties.refuses(source, 0.0)


def test_all_addresses_of_one_ipv6_customer_are_one_source() -> None:
    penalties = Penalties((), BLOCK)
    penalties.add("2001:db8:0:1::1", Ending.CRASH, 0.0)
    assert penalties.refuses("2001:db8:0:1:ffff::2", 0.0)
    assert penalties.refuses("2001:db8:0:1::1%eth0", 0.0)
    assert not penalties.refuses("2001:db8:0:2::1", 0.0)


def test_a_source_is_as_large_as_the_block_of_addresses() -> None:
    for one, other, block, same in (
        ("192.0.2.1", "192.0.2.2", (32, 64), False),
        ("192.0.2.1", "192.0.2.2", (24, 64), True),
        ("192.0.2.1", "198.51.100.1", (0, 64), True),
        ("2001:db8::1", "2001:db8::ffff:2", (32, 64), True),
        ("2001:db8::1", "2001:db8:0:1::1", (32, 64), False),
        ("2001:db8::1", "2001:db8:0:1::1", (32, 48), True),
        ("2001:db8::1", "2001:db8::2", (32, 128), False),
        ("fe80::1%eth0", "fe80::1%eth1", (32, 128), True),
        ("0.0.0.1", "::1", (0, 0), False),
        ("UNKNOWN", "", (32, 64), True),
    ):
        sources = [blocks_of(address, block)[0] for address in (one, other)]
        assert (sources[0] == sources[1]) == same, (one, other, block)


def test_wider_blocks_than_a_source_are_those_that_ipv6_sites_are_assigned() -> None:
    for address, block, count in (
        ("192.0.2.1", (24, 64), 1),
        ("2001:db8::1", (32, 128), 4),
        ("2001:db8::1", (32, 64), 3),
        ("2001:db8::1", (32, 56), 2),
        ("2001:db8::1", (32, 48), 1),
        ("2001:db8::1", (32, 32), 1),
    ):
        assert len(set(blocks_of(address, block))) == count, (address, block)
    one, other = blocks_of("2001:db8:0:1::1", BLOCK), blocks_of("2001:db8:0:101::1", BLOCK)
    assert [mine == theirs for mine, theirs in zip(one, other, strict=True)] == [False, False, True]


@pytest.mark.parametrize(("networks", "sources"), [(256, 16), (65536, 32)])
@pytest.mark.parametrize("ending", [Ending.NO_AUTHENTICATION, Ending.FAILED])
def test_a_site_is_no_more_than_some_sources_however_many_it_has(
    networks: int, sources: int, ending: Ending
) -> None:
    """A hundred connections a second, each from the next /64: all of them were served."""
    penalties = Penalties((), BLOCK)
    served = 0
    for number in range(600 * 100):
        source, now = f"2001:db8:7:{number % networks:x}::1", number / 100
        if not penalties.refuses(source, now):
            served += 1
            penalties.add(source, ending, now)
    # A source that takes care is served as often as what it does costs seconds.
    assert served < sources * (600 + MINIMUM) / SECONDS[ending]
    assert not penalties.refuses("2001:db8:8::1", 600)  # the next site


def test_a_refused_site_is_told_as_its_network() -> None:
    penalties = Penalties((), BLOCK)
    told = [
        penalties.add(f"2001:db8:7:{network:x}::1", Ending.CRASH, 0.0) for network in range(256)
    ]
    assert set(told[:2]) == {"2001:db8:7::/64", "2001:db8:7:1::/64"}
    assert [each for each in told if not each.endswith("/64")] == [
        "2001:db8:7::/56", "2001:db8:7::/48",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [Ending.GRACE_TIME, Ending.FAILED, Ending.NO_AUTHENTICATION])
def test_one_source_has_none_of_its_neighbours_refused(ending: Ending) -> None:
    """With all the connections that it may have open at once, which is when most ends come."""
    penalties = Penalties((), BLOCK)
    for now in range(0, 3600, 5):
        if not penalties.refuses("2001:db8:7:1::1", now):
            for _ in range(20):
                penalties.add("2001:db8:7:1::1", ending, now)
        assert not penalties.refuses("2001:db8:7:2::1", now), now


@pytest.mark.parametrize("pattern", ["10.0.0.{}", "2001:db8:{:x}::1"])
def test_the_memory_of_sources_is_bounded_for_each_ip_version(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(module, "RECORDS", 8)
    penalties = Penalties((), BLOCK)
    first, other = pattern.format(0), "192.0.2.1" if ":" in pattern else "2001:db8:ffff::1"
    for source in (other, first):
        penalties.add(source, Ending.GRACE_TIME, 0.0)  # the nearest to its end
    for number in range(1, 9):
        penalties.add(pattern.format(number), Ending.CRASH, 0.0)
    assert all(len(records) <= 8 for records in penalties._records.values())
    for source, refused in ((first, False), (other, True), (pattern.format(8), True)):
        penalties.add(source, Ending.GRACE_TIME, 0.0)
        assert penalties.refuses(source, 0.0) == refused, source  # the first penalty is forgotten


def test_to_forget_takes_no_time_for_each_of_many_that_come_once() -> None:
    penalties = Penalties((), BLOCK)
    started = time.monotonic()
    for number in range(2 * module.RECORDS):
        penalties.add(str(IPv4Address(number)), Ending.FAILED, number)
    assert time.monotonic() - started < 60  # it took four minutes


def test_a_bad_exempt_list_is_named() -> None:
    with pytest.raises(UsageError, match=r"per_source_penalty_exempt_list: .*'300\.1'"):
        Penalties(("300.1",), BLOCK)


def test_a_source_that_never_authenticates_is_refused_for_a_while(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server("per_source_penalty_exempt_list = []\n")
    logged_in = dial(server).log_in()
    for _ in range(20):  # each costs a second or more, and ten are too many
        connect(server).close()
    assert wait_until(lambda: "is refused for a while: no_authentication" in server.log)
    with connect(server) as sock:
        assert sock.recv(1) == b""
    assert logged_in.answers()  # who is in stays in


def test_nobody_is_punished_for_logging_in(our_server: Serve, dial: Dial) -> None:
    server = our_server("per_source_penalty_exempt_list = []\n")
    for _ in range(20):
        dial(server).log_in().close()
    assert is_alone(server)
    dial(server).log_in()


def test_a_source_that_makes_the_server_exchange_keys_in_a_loop_is_soon_refused(
    our_server: Serve, dial: Dial
) -> None:
    """DHEat, CVE-2002-20001: what costs the server most, again and again."""
    server = our_server("per_source_penalty_exempt_list = []\n")
    started = time.monotonic()
    exchanged = 0
    while time.monotonic() - started < 4:
        client = dial(server)
        exchanged += client.until(lambda connection: connection.transport.session_id)
        client.close()
    assert 5 < exchanged < 4 * 20, exchanged  # fewer than 20 a second
    assert "is refused for a while: no_authentication" in server.log
