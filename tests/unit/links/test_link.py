"""A link's life: every move is in the table, delays grow, and a refusal is final."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.links.link import (
    FIRST_DELAY,
    LAST_DELAY,
    STEADY,
    TABLE,
    LinkEvent,
    LinkLife,
    LinkState,
)


def in_state(state: LinkState) -> LinkLife:
    """A link that came to ``state`` by events alone."""
    ways = {
        LinkState.IDLE: (),
        LinkState.DIALLING: (LinkEvent.START,),
        LinkState.UP: (LinkEvent.START, LinkEvent.OPENED),
        LinkState.BACKING_OFF: (LinkEvent.START, LinkEvent.LOST),
        LinkState.STOPPED: (LinkEvent.START, LinkEvent.REFUSED),
    }
    life = LinkLife(0.0)
    for event in ways[state]:
        life.happened(event, 0.0)
    assert life.state is state
    return life


@pytest.mark.parametrize(("state", "event"), list(product(LinkState, LinkEvent)))
def test_every_event_in_every_state_moves_by_the_table_or_raises(
    state: LinkState, event: LinkEvent
) -> None:
    life = in_state(state)
    if (state, event) in TABLE:
        assert life.happened(event, 1.0) is TABLE[state, event]
    else:
        with pytest.raises(KeyError):
            life.happened(event, 1.0)
        assert life.state is state


def test_delays_double_up_to_a_limit_and_never_end() -> None:
    life = in_state(LinkState.DIALLING)
    delays = []
    for _ in range(100):
        life.happened(LinkEvent.LOST, 1000.0)
        delays.append(life.due - 1000.0)
        life.happened(LinkEvent.DUE, 1000.0)
    assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert delays[-1] == LAST_DELAY


@given(chance=st.floats(0, 1), failures=st.integers(0, 40))
def test_jitter_stays_within_half_of_the_delay(chance: float, failures: int) -> None:
    life = in_state(LinkState.DIALLING)
    for _ in range(failures):
        life.happened(LinkEvent.LOST, 0.0)
        life.happened(LinkEvent.DUE, 0.0)
    life.happened(LinkEvent.LOST, 0.0, chance)
    base = min(LAST_DELAY, FIRST_DELAY * 2.0**failures)
    assert base * 0.5 <= life.due <= base * 1.5


def test_only_a_link_that_was_up_for_a_while_begins_its_delays_anew() -> None:
    for steady, expected in ((STEADY - 0.1, 8 * FIRST_DELAY), (STEADY, FIRST_DELAY)):
        life = in_state(LinkState.DIALLING)
        for _ in range(3):
            life.happened(LinkEvent.LOST, 0.0)
            life.happened(LinkEvent.DUE, 0.0)
        life.happened(LinkEvent.OPENED, 0.0)
        life.happened(LinkEvent.LOST, steady)
        assert life.due - steady == pytest.approx(expected)


def test_a_mount_that_was_silent_for_a_while_begins_its_delays_anew() -> None:
    life = in_state(LinkState.DIALLING)
    for _ in range(3):
        life.happened(LinkEvent.LOST, 0.0)
        life.happened(LinkEvent.DUE, 0.0)
    life.happened(LinkEvent.OPENED, 0.0)
    life.happened(LinkEvent.SILENT, STEADY, why="no answer")
    assert (life.state, life.last_error) == (LinkState.DIALLING, "no answer")
    life.happened(LinkEvent.LOST, STEADY + 1)
    assert life.due - (STEADY + 1) == pytest.approx(FIRST_DELAY)


def test_a_change_of_the_network_ends_the_waiting() -> None:
    life = in_state(LinkState.BACKING_OFF)
    assert life.happened(LinkEvent.NETWORK_CHANGED, 0.1) is LinkState.DIALLING


def test_a_refusal_is_kept_with_its_reason_until_somebody_starts_the_link() -> None:
    life = in_state(LinkState.DIALLING)
    life.happened(LinkEvent.REFUSED, 1.0, why="Permission denied")
    life.happened(LinkEvent.NETWORK_CHANGED, 2.0)
    assert (life.state, life.last_error, life.since) == (
        LinkState.STOPPED,
        "Permission denied",
        1.0,
    )
    life.happened(LinkEvent.START, 3.0)
    assert (life.state, life.last_error) == (LinkState.DIALLING, "")


def test_the_first_connection_is_no_reconnection() -> None:
    life = in_state(LinkState.UP)
    assert life.reconnects == 0
    life.happened(LinkEvent.LOST, 1.0)
    life.happened(LinkEvent.DUE, 2.0)
    life.happened(LinkEvent.OPENED, 3.0)
    assert life.reconnects == 1


@given(st.lists(st.tuples(st.sampled_from(LinkEvent), st.floats(0, 100), st.floats(0, 1))))
def test_whatever_happens_a_link_that_waits_has_a_time_to_wait_for(
    history: list[tuple[LinkEvent, float, float]],
) -> None:
    life, now = LinkLife(0.0), 0.0
    for event, pause, chance in history:
        now += pause
        if (life.state, event) not in TABLE:
            continue
        life.happened(event, now, chance)
        if life.state is LinkState.BACKING_OFF:
            assert life.due > life.since
