"""The tables of nftables that we made: whether they are whole, and a copy that nobody can flush.

Firewall scripts begin with `nft flush ruleset`, which takes everybody's tables away. The kernel
tells who listens (rules_watch in links), and a table that is gone, or lost a rule, is made again.
In the meantime a kill switch would be open. So its table has a copy with the flag ``owner``
(Linux 5.12): such a table belongs to the netlink socket that made it, nobody else can change it,
and it goes when its process ends, however that ends; the other one then still stands.
"""

import ctypes
import logging
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from .network import Change, NetworkError, PassedOn, Rules
from .programs import Programs

_log = logging.getLogger(__name__)

_CHAIN: Final = re.compile(r"\s*chain (\S+) {")


def remove_tables(prefix: str, programs: Programs) -> list[str]:
    """Remove what tables are left whose names begin so; returns their names."""
    listed = programs.call("nft", "list", "tables", "inet").split()
    found = [name for name in listed if name.startswith(prefix)]
    for name in found:
        programs.call("nft", "delete", "table", "inet", name)
    return found


def tables(changes: Iterable[Change]) -> list[Rules | PassedOn]:
    """Those of the changes that are tables."""
    return [change for change in changes if isinstance(change, Rules | PassedOn)]


def holds(change: Rules | PassedOn, programs: Programs) -> bool:
    """Whether the table is there, in this version, with every rule in its chain."""
    text = _listed(change.table, programs)
    if isinstance(change, PassedOn):
        whole = _lengths(text) == _lengths(change.rules)
        return whole and change.device in _devices(text)
    return f'comment "{change.digest}"' in text and _lengths(text) == _lengths(change.body)


def passed_on_devices(change: PassedOn, programs: Programs) -> set[str] | None:
    """The devices that the table lets through; None without a table."""
    text = _listed(change.table, programs)
    return _devices(text) if text else None


def _listed(table: str, programs: Programs) -> str:
    """The table as nft shows it, '' if there is none."""
    tables = programs.call("nft", "list", "tables", "inet").splitlines()
    if f"table inet {table}" not in tables:
        return ""
    return programs.call("nft", "list", "table", "inet", table)


def _devices(text: str) -> set[str]:
    elements = text.partition("elements = {")[2].partition("}")[0]
    return {each.strip(' "\n\t') for each in elements.split(",")} - {""}


def _lengths(text: str) -> Counter[str]:
    """How many lines each chain has."""
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


class HeldRules:
    """Copies of tables that only this process can change; they go when it ends."""

    def __init__(self) -> None:
        self._held: dict[str, Rules] = {}
        self._library: ctypes.CDLL | None = None
        self._context = ctypes.c_void_p()
        self._warned = False

    def hold(self, rules: Rules) -> None:
        """Hold this version of a table. Where the system cannot, there is no copy."""
        if self._held.get(rules.table) == rules:
            return
        table = f"table inet {_copy_of(rules.table)}"
        # In one transaction; one with another owner is the kernel's to clear away.
        script = f"delete {table}\n" if rules.table in self._held else ""
        try:
            self._run(f"{script}{table} {{\n\tflags owner\n{rules.body}}}\n")
        except NetworkError as error:
            if not self._warned:
                _log.warning("a flush of the ruleset opens kill switches for a moment: %s", error)
            self._warned = True
            return
        self._held[rules.table] = rules

    def release(self, table: str) -> None:
        """Let a table go, if it is held."""
        if self._held.pop(table, None) is not None:
            try:
                self._run(f"delete table inet {_copy_of(table)}\n")
            except NetworkError as error:
                _log.error("table %s stays until this process ends: %s", _copy_of(table), error)

    def _run(self, script: str) -> None:
        """Have libnftables do all of it or nothing; raises NetworkError."""
        library = self._load()
        if library.nft_run_cmd_from_buffer(self._context, script.encode()):
            said = library.nft_ctx_get_error_buffer(self._context) or b""
            raise NetworkError((said.decode(errors="replace").splitlines() or ["refused"])[0])

    def _load(self) -> ctypes.CDLL:
        if self._library is None:
            try:
                library = ctypes.CDLL("libnftables.so.1")
            except OSError as error:
                raise NetworkError("libnftables.so.1 is missing (nftables)") from error
            library.nft_ctx_new.restype = ctypes.c_void_p
            library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
            self._context = ctypes.c_void_p(library.nft_ctx_new(0))
            library.nft_ctx_buffer_error(self._context)
            library.nft_ctx_buffer_output(self._context)
            self._library = library
        return self._library


def _copy_of(table: str) -> str:
    return f"{table}-held"
