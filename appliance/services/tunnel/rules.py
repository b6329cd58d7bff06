"""Checks whether our nftables tables are complete, and removes tables that were left behind."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from .network import Change, NetworkError, PassedOn, Rules
from .programs import Programs

_CHAIN: Final = re.compile(r"\s*chain (\S+) {")


def remove_tables(prefix: str, programs: Programs) -> list[str]:
    """Removes all tables whose names begin with ``prefix``; returns their names."""
    listed = programs.call("nft", "list", "tables", "inet").split()
    found = [name for name in listed if name.startswith(prefix)]
    for name in found:
        remove(name, programs)
    return found


def remove(table: str, programs: Programs) -> None:
    """Removes a table, whether it exists or not. Raises NetworkError."""
    named = f"table inet {table}"
    programs.call("nft", "-f", "-", text=f"{named}\ndelete {named}\n")


def tables(changes: Iterable[Change]) -> list[Rules | PassedOn]:
    """Returns those changes that are tables."""
    return [change for change in changes if isinstance(change, Rules | PassedOn)]


def holds(change: Rules | PassedOn, programs: Programs) -> bool:
    """Whether the table exists in this version, with the right number of lines in each chain."""
    text = _listed(change.table, programs)
    if isinstance(change, PassedOn):
        whole = _lengths(text) == _lengths(change.rules)
        return whole and change.device in _devices(text)
    return f'comment "{change.digest}"' in text and _lengths(text) == _lengths(change.body)


def exists(table: str, programs: Programs) -> bool:
    """Whether a table of this name exists."""
    return f"table inet {table}" in programs.call("nft", "list", "tables", "inet").splitlines()


def passed_on_devices(change: PassedOn, programs: Programs) -> set[str] | None:
    """Returns the devices whose packets the table lets through; None without a table."""
    text = _listed(change.table, programs)
    return _devices(text) if text else None


def _listed(table: str, programs: Programs) -> str:
    """Returns the table as nft lists it; '' if there is none."""
    try:
        return programs.call("nft", "list", "table", "inet", table)
    except NetworkError as error:  # another program may remove it at any time
        if os.strerror(errno.ENOENT) in str(error):
            return ""
        raise


def _devices(text: str) -> set[str]:
    elements = text.partition("elements = {")[2].partition("}")[0]
    return {each.strip(' "\n\t') for each in elements.split(",")} - {""}


def _lengths(text: str) -> Counter[str]:
    """Returns the number of lines of each chain."""
    found: Counter[str] = Counter()
    chain = ""
    for line in text.splitlines():
        if match := _CHAIN.match(line):
            chain = match[1]
        elif line.strip() == "}":
            chain = ""
        elif chain and line.strip():
            found[chain] += 1
    return found
