"""The numbers of displays: who gets which, again and for the first time."""

import os
import pwd
from collections.abc import Iterator

import pytest

from appliance.crypto.keys import generate
from appliance.server.display_numbers import COUNT, DisplayNumbers, owner_of

ME = pwd.getpwuid(os.geteuid())
ANNA, BEN, CLARA = (bytes([number]) * 16 for number in (1, 2, 3))


@pytest.fixture
def numbers() -> Iterator[DisplayNumbers]:
    it = DisplayNumbers()
    yield it
    it.close()


def test_a_newcomer_begins_at_the_first_number(numbers: DisplayNumbers) -> None:
    assert numbers.in_order(10, ANNA) == [*range(10, 10 + COUNT)]


def test_somebody_gets_their_numbers_back_and_others_the_next(numbers: DisplayNumbers) -> None:
    numbers.note(10, ANNA)
    numbers.note(11, BEN)
    numbers.note(13, BEN)
    assert numbers.in_order(10, ANNA)[:3] == [10, 12, 14]
    assert numbers.in_order(10, BEN)[:4] == [11, 13, 12, 14]
    assert numbers.in_order(10, CLARA)[:2] == [12, 14]


def test_the_last_owner_of_a_number_is_remembered(numbers: DisplayNumbers) -> None:
    numbers.note(10, ANNA)
    numbers.note(10, BEN)
    assert numbers.in_order(10, ANNA)[0] == 11
    assert numbers.in_order(10, BEN)[0] == 10


def test_numbers_that_others_had_come_last_and_all_are_there(numbers: DisplayNumbers) -> None:
    for number in range(10, 10 + COUNT):
        numbers.note(number, ANNA)
    assert numbers.in_order(10, BEN) == [*range(10, 10 + COUNT)]
    assert sorted(numbers.in_order(500, BEN)) == [*range(500, 500 + COUNT)]


def test_the_memory_does_not_grow(numbers: DisplayNumbers) -> None:
    for turn in range(5000):
        numbers.note(10 + turn % COUNT, turn.to_bytes(16, "big"))
    assert os.fstat(numbers.fileno()).st_size == (10 + COUNT) * 16


def test_every_process_that_has_the_descriptor_shares_it(numbers: DisplayNumbers) -> None:
    pid = os.fork()
    if pid == 0:
        numbers.note(10, ANNA)
        os._exit(0)
    os.waitpid(pid, 0)
    assert numbers.in_order(10, BEN)[0] == 11


def test_an_owner_is_a_user_and_a_key() -> None:
    first, second = generate("ssh-ed25519").public, generate("ssh-ed25519").public
    other = pwd.getpwnam("nobody")
    marks = {owner_of(ME, first), owner_of(ME, second), owner_of(ME, None), owner_of(other, first)}
    assert len(marks) == 4
    assert owner_of(ME, first) in marks
    assert all(len(mark) == 16 for mark in marks)
