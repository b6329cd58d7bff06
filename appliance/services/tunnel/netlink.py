"""Reads and changes the kernel's devices, addresses and routes, through pyroute2.

pyroute2 is imported only when it is used, as it costs a small board seconds and 22 MiB.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

# linux/rtnetlink.h
MAIN_TABLE: Final = 254
# linux/if.h
_LOWER_UP: Final = 1 << 16  # of a tun device: a process has it open

# Our own choice
_DUMP_ATTEMPTS: Final = 5  # a change during a listing makes it incomplete

Message = Any  # of pyroute2, which has no types


class Netlink:
    """The kernel's tables of devices, addresses and routes; its errors are OSErrors."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

        self._error = NetlinkError
        self._torn = NetlinkDumpInterrupted
        with self._as_os_error():
            self._ip = IPRoute()

    def close(self) -> None:
        """Closes the socket."""
        self._ip.close()

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    def link(self, verb: str, **words: Any) -> None:
        """Changes a device, with the verb and words of ip-link(8)."""
        with self._as_os_error():
            self._ip.link(verb, **words)

    def address(self, verb: str, **words: Any) -> None:
        """Changes an address."""
        with self._as_os_error():
            self._ip.addr(verb, **words)

    def route(self, verb: str, **words: Any) -> None:
        """Changes a route, of the main table unless ``table`` is given."""
        with self._as_os_error():
            self._ip.route(verb, **{"table": MAIN_TABLE, **words})

    def rule(self, verb: str, version: int, mark: int, table: int) -> None:
        """Changes the rule that makes packets with a mark use the routes of a table first."""
        with self._as_os_error():
            self._ip.rule(verb, family=family_of(version), priority=table, fwmark=mark, table=table)

    def rule_exists(self, version: int, mark: int, table: int) -> bool:
        """Whether a rule for this mark and table exists."""
        rules = self._dump(lambda: self._ip.get_rules(family=family_of(version)))
        return any((each.get("fwmark"), each.get("table")) == (mark, table) for each in rules)

    def remove_marked(self, group: int, kept: Collection[str], mark: int, table: int) -> list[str]:
        """Removes the group's devices that no process uses, and the mark's rules and their table.

        Devices whose names are in ``kept`` stay. Returns the names of what was removed.
        """
        removed = []
        for each in self._dump(lambda: self._ip.get_links(group=group)):
            name = each.get("ifname")
            if each.get("group") == group and name not in kept and not each["flags"] & _LOWER_UP:
                self.link("del", index=each["index"])
                removed.append(name)
        for version in (4, 6):
            if self.rule_exists(version, mark, table):
                self.rule("del", version, mark, table)
                with self._as_os_error():
                    self._ip.flush_routes(family=family_of(version), table=table)
                removed.append(f"table {table}")
        return removed

    def device(self, name: str) -> Message | None:
        """Returns the kernel's message about a device; None if there is none of this name."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return None
        found = self._dump(lambda: self._ip.get_links(index))
        return found[0] if found else None

    def addresses(self, index: int, version: int) -> list[Message]:
        """Returns the addresses of a device."""
        everyones = self._dump(lambda: self._ip.get_addr(family=family_of(version)))
        return [message for message in everyones if message["index"] == index]

    def routes(self, version: int, table: int = MAIN_TABLE) -> list[Message]:
        """Returns the routes of a table."""
        family = family_of(version)
        return self._dump(lambda: self._ip.get_routes(family=family, table=table))

    def _dump(self, ask: Callable[[], Any]) -> list[Message]:
        with self._as_os_error():
            for _ in range(_DUMP_ATTEMPTS):
                with contextlib.suppress(self._torn):
                    return list(ask())
        raise OSError(errno.EAGAIN, "the network changes too fast to be looked at")


def device_names() -> set[str]:
    """Returns the names of all devices in this network namespace."""
    return {name for _, name in socket.if_nameindex()}


def family_of(version: int) -> int:
    """Returns the address family of an IP version."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def index_of(device: str) -> int:
    """Returns the index of a device. Raises OSError."""
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error


def ipv6_is_off() -> bool:
    """Whether IPv6 is off for all devices of this machine (ip-sysctl, disable_ipv6)."""
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "1"
    except FileNotFoundError:  # the kernel has no IPv6
        return True
