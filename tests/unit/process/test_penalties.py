"""Who misbehaves before authentication is refused for a while, and nobody else is."""

import pytest

from appliance.errors import UsageError
from appliance.process import penalties as module
from appliance.process.penalties import MAXIMUM, Ending, Penalties, source_of

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
        (Ending.NO_AUTHENTICATION, 15),
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
    assert penalties.refuses(SOURCE, 119.9)
    assert not penalties.refuses(SOURCE, 120.0)
    penalties.add(SOURCE, Ending.FAILED, 121.0)
    assert not penalties.refuses(SOURCE, 122.0)


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
    assert len(penalties._ends) == 8
    penalties.add(SOURCE, Ending.GRACE_TIME, 0.0)
    assert not penalties.refuses(SOURCE, 0.0)  # its first penalty was forgotten


def test_a_bad_exempt_list_is_named() -> None:
    with pytest.raises(UsageError, match=r"per_source_penalty_exempt_list: .*'300\.1'"):
        Penalties(("300.1",), BLOCK)
