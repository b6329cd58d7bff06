"""The kernel's tables of devices, addresses and routes, through pyroute2.

It is imported only when it is used, as it costs a small board seconds and 22 MiB.
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
_DUMP_ATTEMPTS: Final = 5  # a listing is torn when something changes meanwhile

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
        """Give the socket back."""
        self._ip.close()

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    def link(self, verb: str, **words: Any) -> None:
        """Change a device: ip(8)'s verb and words."""
        with self._as_os_error():
            self._ip.link(verb, **words)

    def address(self, verb: str, **words: Any) -> None:
        """Change an address."""
        with self._as_os_error():
            self._ip.addr(verb, **words)

    def route(self, verb: str, **words: Any) -> None:
        """Change a route, of the main table without another ``table``."""
        with self._as_os_error():
            self._ip.route(verb, **{"table": MAIN_TABLE, **words})

    def rule(self, verb: str, version: int, mark: int, table: int) -> None:
        """Change the rule that packets with a mark take a table's routes first."""
        with self._as_os_error():
            self._ip.rule(verb, family=family_of(version), priority=table, fwmark=mark, table=table)

    def rule_exists(self, version: int, mark: int, table: int) -> bool:
        """Whether there is such a rule."""
        rules = self._dump(lambda: self._ip.get_rules(family=family_of(version)))
        return any((each.get("fwmark"), each.get("table")) == (mark, table) for each in rules)

    def remove_marked(self, group: int, kept: Collection[str], mark: int, table: int) -> list[str]:
        """Remove the group's devices that nobody uses, and the mark's rules with their table.

        Devices called like one of ``kept`` stay. Returns the names of what was removed.
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
        """What the kernel says of a device, if there is one of this name."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return None
        found = self._dump(lambda: self._ip.get_links(index))
        return found[0] if found else None

    def addresses(self, index: int, version: int) -> list[Message]:
        """The addresses of a device."""
        everyones = self._dump(lambda: self._ip.get_addr(family=family_of(version)))
        return [message for message in everyones if message["index"] == index]

    def routes(self, version: int, table: int = MAIN_TABLE) -> list[Message]:
        """The routes of a table."""
        family = family_of(version)
        return self._dump(lambda: self._ip.get_routes(family=family, table=table))

    def _dump(self, ask: Callable[[], Any]) -> list[Message]:
        with self._as_os_error():
            for _ in range(_DUMP_ATTEMPTS):
                with contextlib.suppress(self._torn):
                    return list(ask())
        raise OSError(errno.EAGAIN, "the network changes too fast to be looked at")


def device_names() -> set[str]:
    """All devices of this network namespace."""
    return {name for _, name in socket.if_nameindex()}


def family_of(version: int) -> int:
    """The address family of an IP version."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def index_of(device: str) -> int:
    """The number of a device. Raises OSError."""
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error


def ipv6_is_off() -> bool:
    """Whether no device of this machine has IPv6 (ip-sysctl, disable_ipv6)."""
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "1"
    except FileNotFoundError:  # the kernel has none
        return True
