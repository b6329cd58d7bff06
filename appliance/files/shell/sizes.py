"""Sizes in few digits, as sftp shows them (fmt_scaled(3))."""

from __future__ import annotations

from typing import Final

_UNITS: Final = "BKMGTPE"


def scaled(count: int) -> str:
    """Returns a number of bytes in at most four characters and a unit: 6B, 2.9K, 252G."""
    whole, fraction, unit = count, 0, 0
    while whole >= 1024 and unit < len(_UNITS) - 1:
        whole, fraction = divmod(whole, 1024)
        unit += 1
    tenths = (10 * fraction + 512) // 1024
    if tenths >= 10:
        whole, tenths = whole + 1, 0
    if not unit or whole >= 100:
        return f"{whole + (tenths >= 5)}{_UNITS[unit]}"
    return f"{whole}.{tenths}{_UNITS[unit]}"
