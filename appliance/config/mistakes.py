"""A mistake in a configuration, and where it is."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

# Our own choice
SHOWN: Final = 80  # characters of a wrong value


class Mistake(Exception):
    """A text, and the place of a wrong value: keys and indices below the table being checked."""

    def __init__(self, text: str, *place: str | int) -> None:
        super().__init__(text)
        self.text = text
        self.place = place


@contextmanager
def within(*place: str | int) -> Iterator[None]:
    """Puts ``place`` in front of the place of each Mistake that is raised inside."""
    try:
        yield
    except Mistake as mistake:
        raise Mistake(mistake.text, *place, *mistake.place) from mistake


def shown(value: object) -> str:
    """Returns a value as one line of at most SHOWN characters, without the content of tables."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        return "this list"
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python likes to write
        return "this"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def check_ranges(entry: object, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Raises Mistake for a number of ``entry`` that is not between its limits."""
    for key, (low, high) in ranges.items():
        value = getattr(entry, key)
        if not low <= value <= high:
            raise Mistake(f"expected {low} to {high}, not {shown(value)}", key)


def check_unique(values: Iterable[object], *place: str, key: str = "") -> None:
    """Raises Mistake for a value that occurs twice; its place is ``place``, the index and ``key``.

    None may occur any number of times.
    """
    seen = set()
    for index, value in enumerate(values):
        if value is not None and value in seen:
            raise Mistake(f"{value} is given twice", *place, index, *([key] if key else ()))
        seen.add(value)
