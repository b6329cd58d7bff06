"""TOML text of a value, and of a value tree whatever it is."""

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Hypothesis needs a second for its tables of Unicode where it has none yet.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def toml(table: Mapping[str, Any]) -> str:
    """A file with these keys; tables in it are written inline."""
    return "".join(f"{_string(key)} = {_value(value)}\n" for key, value in table.items())


def write(path: Path, table: Mapping[str, Any]) -> str:
    """Write the file; its name."""
    path.write_text(toml(table), encoding="utf-8")
    return str(path)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_string(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _string(text: str) -> str:
    def escaped(letter: str) -> str:
        plain = " " <= letter <= "~" and letter not in '"\\'
        return letter if plain else f"\\U{ord(letter):08x}"

    return '"' + "".join(map(escaped, text)) + '"'


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | TEXTS
    | st.dates()
    | st.datetimes(min_value=datetime(1000, 1, 1))
    | st.times()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
