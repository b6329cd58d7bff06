"""The phases of a connection: each follows from the table, and from nothing else."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ssh import order
from appliance.ssh.order import TABLE, Event, Order, Phase, Role

FIRST_EXCHANGE = (
    Event.IDENTIFIED,
    Event.KEXINIT_RECEIVED,
    Event.NEWKEYS_SENT,
    Event.NEWKEYS_RECEIVED,
)
LOGIN = (*FIRST_EXCHANGE, Event.FIRST_RECEIVED, Event.SERVICE_ACCEPTED, Event.AUTHENTICATED)
NEW_KEYS = (Event.KEXINIT_RECEIVED, Event.NEWKEYS_SENT, Event.NEWKEYS_RECEIVED)


def after(*events: Event) -> Order:
    found = Order(Role.SERVER)
    for event in events:
        found.happened(event)
    return found


@given(st.lists(st.sampled_from(Event)))
def test_every_event_moves_on_by_the_table_or_is_an_error(events: list[Event]) -> None:
    found = Order(Role.CLIENT)
    for event in events:
        before = found.phase
        if (before, event) not in TABLE:
            with pytest.raises(KeyError):
                found.happened(event)
            assert found.phase is before
            continue
        found.happened(event)
        assert isinstance(found.phase, Phase)
        assert TABLE[before, event] in (found.phase, order.INTERRUPTED)


def test_every_phase_can_be_reached_and_the_last_one_cannot_be_left() -> None:
    assert {phase for phase in TABLE.values() if phase} | {Phase.VERSION, Phase.FRESH} == set(Phase)
    assert not [event for phase, event in TABLE if phase is Phase.CLOSED]
    assert {event for _, event in TABLE} == set(Event)


def test_a_login_in_order() -> None:
    found = after(*FIRST_EXCHANGE)
    assert (found.phase, found.is_first, found.is_logged_in) == (Phase.FRESH, False, False)
    assert after(*LOGIN).phase is Phase.OPEN
    assert after(*LOGIN).is_logged_in


@pytest.mark.parametrize(
    "events",
    [
        (*FIRST_EXCHANGE, Event.FIRST_RECEIVED),
        LOGIN[:-1],
        (*LOGIN[:-1], Event.DIALOGUE_OPENED),
        LOGIN,
    ],
)
def test_a_later_exchange_returns_to_the_phase_that_it_interrupted(
    events: tuple[Event, ...],
) -> None:
    interrupted = after(*events)
    again = after(*events, *NEW_KEYS, *NEW_KEYS)
    assert again.phase is interrupted.phase
    during = after(*events, Event.KEXINIT_RECEIVED)
    assert during.phase is Phase.EXCHANGE
    assert during.is_logged_in is interrupted.is_logged_in


def test_no_other_module_sets_the_phase() -> None:
    for path in Path(order.__file__).parent.glob("*.py"):
        stores = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and node.attr in ("phase", "_interrupted")
            and isinstance(node.ctx, ast.Store)
        ]
        assert not stores or path.name == "order.py", f"{path.name}: lines {stores}"
