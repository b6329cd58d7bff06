"""Who misbehaves before authentication is refused for a while, and nobody else is."""

import itertools

import pytest

from appliance.errors import UsageError
from appliance.server import penalties as module
from appliance.server.penalties import MAXIMUM, Ending, Penalties, source_of

SOURCE = "192.0.2.1"
BLOCK = (32, 64)


def test_failures_add_up_until_the_source_is_refused() -> None:
    penalties = Penalties((), BLOCK)
    told = [penalties.add(SOURCE, Ending.FAILED, 0.0) for _ in range(5)]
    assert told == [False, False, True, False, False]
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
    assert not penalties._records
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
        assert (source_of(one, block) == source_of(other, block)) == same, (one, other, block)


def test_the_memory_of_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCES", 8)
    penalties = Penalties((), BLOCK)
    penalties.add(SOURCE, Ending.GRACE_TIME, 0.0)  # the nearest to its end
    for number in range(8):
        penalties.add(f"10.0.0.{number}", Ending.CRASH, 0.0)
    assert len(penalties._records) == 8
    penalties.add(SOURCE, Ending.GRACE_TIME, 0.0)
    assert not penalties.refuses(SOURCE, 0.0)  # its first penalty was forgotten


def test_a_bad_exempt_list_is_named() -> None:
    with pytest.raises(UsageError, match=r"per_source_penalty_exempt_list: .*'300\.1'"):
        Penalties(("300.1",), BLOCK)
