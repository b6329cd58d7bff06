"""Turns a TOML file into frozen dataclasses, and reports mistakes in the file.

A field with a default is optional; a field with ``repr=False`` is secret. A nested dataclass is a
table, ``[tunnel.client]``; a tuple of dataclasses is an array of tables, ``[[link]]``. A field
with the metadata GIVEN is no key of the file: it gets the names of the keys that the table has.
Only lists, addresses and networks are converted: a number is no string, and a boolean is no
number. cattrs checks the single values. cattrs and tomllib are imported late, because programs
that read no file start without them.

The caller checks the values against each other. An error is one line that names the file, the
entry by its name or number, the key, and what is expected:

    links.toml: link 'office': routes[1]: expected a network such as 192.168.2.0/24
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar, get_origin

from ..errors import UsageError
from .mistakes import Mistake, shown, within
from .network import Address, Interface, Network

T = TypeVar("T")
Table = dict[str, Any]

GIVEN: Final = {"given": True}
_NAMES: Final = ("name", "device")  # the keys that name an entry in a message

_WORDS: Final[dict[Any, str]] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    bool | None: "true or false",
    dict[str, str]: "a table of strings",
    tuple[str, ...]: "a list of strings",
    Interface: "an address such as 10.9.0.1/30 or fd00:9::1/64",
    Address: "an address such as 10.9.0.2 or fd00:9::2",
    Network: "a network such as 192.168.2.0/24 or fd00:2::/64",
    tuple[Interface, ...]: "a list of addresses such as 10.9.0.1/30 or fd00:9::1/64",
    tuple[Address, ...]: "a list of addresses such as 10.9.0.2 or fd00:9::2",
    tuple[Network, ...]: "a list of networks such as 192.168.2.0/24 or fd00:2::/64",
}


def read_table(path: str) -> Table:
    """Returns the whole file as a table; raises UsageError."""
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not a TOML file: too deeply nested") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of too many digits
        raise UsageError(f"{path}: not a TOML file: {error}") from error


@contextmanager
def mistakes_in(path: str, table: Table) -> Iterator[None]:
    """Turns a Mistake, whose place begins at the top of the file, into a UsageError."""
    try:
        yield
    except Mistake as mistake:
        where = [path, *_entry_and_key(table, mistake.place)]
        raise UsageError(f"{': '.join(where)}: {mistake.text}") from mistake


def _entry_and_key(table: Table, place: tuple[str | int, ...]) -> Iterator[str]:
    """Yields the place in words for a message: "link 'office'", "client.routes[1]"."""
    match place:
        case (str(key), int(index), *rest) if type(table[key][index]) is dict:
            entry = table[key][index]
            names = [entry[name] for name in _NAMES if type(entry.get(name)) is str]
            yield f"{key} {shown(names[0])}" if names else f"{key} number {index + 1}"
            place = tuple(rest)
    path = ""
    for step in place:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    if path:
        yield path.removeprefix(".")


def structured(kind: type[T], table: object) -> T:
    """Returns the table as a ``kind``; raises Mistake for a value of the wrong type."""
    if type(table) is not dict:
        raise Mistake(f"expected a table, not {shown(table)}")
    every: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    known = {name: field for name, field in every.items() if field.metadata != GIVEN}
    for key in table:
        if key not in known:
            raise Mistake(f"there is no key {shown(key)}{_meant(key, known)}")
    for name, field in known.items():
        if name not in table and field.default is field.default_factory is MISSING:
            raise Mistake(f"the key '{name}' is missing")
    values: dict[str, object] = dict.fromkeys(every.keys() - known.keys(), frozenset(table))
    for key, value in table.items():
        with within(key):
            values[key] = _value(known[key], known[key].type, value)
    return kind(**values)


def _value(field: Field[Any], kind: Any, value: object) -> object:
    """Returns the value of a field, or one element of its list, as a ``kind``."""
    if is_dataclass(kind):
        return structured(kind, value)  # type: ignore[arg-type]
    element = kind.__args__[0] if get_origin(kind) is tuple else None
    if is_dataclass(element) or element in (Interface, Address, Network):
        if type(value) is not list:
            raise Mistake(f"expected {_expected(kind)}, not {shown(value)}")
        values = []
        for index, item in enumerate(value):
            with within(index):
                values.append(_value(field, element, item))
        return tuple(values)
    try:
        if element is not None and type(value) is not list:
            raise TypeError("not a list")  # cattrs would split a string into letters
        return _converter().structure(value, kind)
    except Exception as error:  # cattrs raises many classes without a common base
        text = f"expected {_expected(kind)}"
        if field.repr:  # it holds no secret
            text += f", not {shown(value)}{_close_to(kind, value)}"
        raise Mistake(text) from error


@cache
def _converter() -> Any:
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for plain in (str, int, bool):
        converter.register_structure_hook(plain, _strict(plain))
    converter.register_structure_hook(Interface, lambda value, _: _parsed(Interface, value))
    converter.register_structure_hook(Address, lambda value, _: _parsed(Address, value))
    converter.register_structure_hook(Network, lambda value, _: _parsed(Network, value))
    return converter


def _strict(plain: type) -> Any:
    def structure(value: object, _: object) -> object:
        if type(value) is not plain:
            raise TypeError(f"not a {plain.__name__}")
        return value

    return structure


def _parsed(kind: Any, value: object) -> object:
    """Returns the address or network that a string names; refuses numbers, netmasks and zones."""
    pattern = {
        Interface: r"[0-9a-fA-F.:]+(/[0-9]{1,3})?",
        Address: r"[0-9a-fA-F.:]+",
        Network: r"[0-9a-fA-F.:]+/[0-9]{1,3}",
    }[kind]
    if type(value) is not str or not re.fullmatch(pattern, value):
        raise ValueError("not of this form")
    if kind == Interface:
        return ipaddress.ip_interface(value)
    return ipaddress.ip_address(value) if kind == Address else ipaddress.ip_network(value)


def _close_to(kind: Any, value: object) -> str:
    """Returns a hint for an address with a prefix length too many or too few; '' for none."""
    try:
        interface = _parsed(Interface, value)
    except ValueError:
        return ""
    assert isinstance(interface, Interface)
    if kind == Network:
        return f" (did you mean {interface.network}?)"
    return f" (did you mean {interface.ip}?)" if kind == Address else ""


def _expected(kind: Any) -> str:
    """Returns the description of a type for a message."""
    if kind in _WORDS:
        return _WORDS[kind]
    arguments: tuple[Any, ...] = kind.__args__
    if is_dataclass(arguments[0]):
        return "tables in double brackets"
    if get_origin(kind) is tuple:
        return f"a list of {len(arguments)} whole numbers"
    return "one of " + ", ".join(arguments)


def _meant(key: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""
