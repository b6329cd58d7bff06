"""Finds, makes and undoes each kind of change to the machine's network."""

import contextlib
import enum
import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from .device import (
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_TUN_EXCL,
    IFREQ,
    TUNSETIFF,
    TUNSETOWNER,
    TUNSETPERSIST,
)
from .device import PATH as TUN_PATH
from .marks import DEVICE_GROUP, MARK, PIN_PROTOCOL, PIN_TABLE, ROUTE_PROTOCOL
from .netlink import MAIN_TABLE, Message, Netlink, device_names, family_of, index_of
from .network import (
    Address,
    Bridge,
    Change,
    Device,
    Forwarding,
    Marked,
    MarkedAnswers,
    Mtu,
    NameServers,
    PassedOn,
    Pin,
    Port,
    Route,
    Rules,
    Up,
)
from .programs import Programs
from .record import Before
from .resolver import Resolver
from .rules import holds, passed_on_devices, remove

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
_IFF_UP: Final = 0x1
_IFA_F_NODAD: Final = 0x02
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_UNICAST: Final = 1
_RTNH_F_DEAD: Final = 0x1
_RTNH_F_ONLINK: Final = 0x4
_IPV6_METRIC: Final = 1024  # the default metric of a route

_NO_ADDRESS: Final = "00:00:00:00:00:00"  # a bridge has it after losing its last port

_SYSCTL: Final = Path("/proc/sys")

_HINTS: Final = {
    errno.EPERM: "needs root (CAP_NET_ADMIN)",
    errno.EACCES: "needs root (CAP_NET_ADMIN)",
    errno.ENETUNREACH: "the gateway is in no network of the machine",
    errno.ENODEV: "there is no such device",
}

C = TypeVar("C", bound=Change)


class Found(enum.Enum):
    """Whether a change is in effect already, and whether we made it."""

    MISSING = enum.auto()
    THEIRS = enum.auto()  # made by another program, or by us: only the record can tell
    OURS = enum.auto()  # it carries our mark


class ChangeKind(Generic[C]):
    """Finds, makes and undoes changes of one kind; every method may raise OSError."""

    def find(self, change: C) -> Found:
        """Returns whether the change is in effect already."""
        raise NotImplementedError

    def before(self, change: C) -> Before:
        """Returns the former state that ``undo`` needs; called just before ``make``."""
        return {}

    def make(self, change: C) -> None:
        """Makes the change; an earlier version of ours may be in effect."""
        raise NotImplementedError

    def undo(self, change: C, before: Before) -> None:
        """Restores the former state; the change may never have been made, or be gone already."""
        raise NotImplementedError

    def reason(self, change: C, error: OSError) -> str:
        """Returns why ``make`` or ``undo`` failed, in one line."""
        where = f"{error.filename}: " if error.filename is not None else ""
        hint = f": {_HINTS[error.errno]}" if error.errno in _HINTS else ""
        return f"{where}{error.strerror or error}{hint}"


class _Tables(ChangeKind[Rules]):
    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def find(self, change: Rules) -> Found:
        return Found.OURS if holds(change, self._programs) else Found.MISSING

    def make(self, change: Rules) -> None:
        self._programs.call("nft", "-f", "-", text=change.script)

    def undo(self, change: Rules, before: Before) -> None:
        remove(change.table, self._programs)


class _Links(ChangeKind[C]):
    """Changes of devices and of their properties."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def _find_device(self, name: str) -> Found:
        device = self._netlink.device(name)
        if device is None:
            return Found.MISSING
        return Found.OURS if device.get("group") == DEVICE_GROUP else Found.THEIRS

    def _remove(self, name: str) -> None:
        if self._find_device(name) is Found.OURS:
            self._netlink.link("del", index=index_of(name))


class _Devices(_Links[Device]):
    def find(self, change: Device) -> Found:
        return self._find_device(change.name)

    def make(self, change: Device) -> None:
        kind = IFF_TUN if change.mode == "point-to-point" else IFF_TAP
        flags = kind | IFF_NO_PI | IFF_TUN_EXCL
        with contextlib.ExitStack() as stack:
            descriptor = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.ioctl(descriptor, TUNSETIFF, IFREQ.pack(change.name.encode(), flags))
            # Until the device is persistent it goes with the descriptor, and so never stays
            # without our mark, even if this process is killed.
            index = index_of(change.name)
            self._netlink.link("set", index=index, group=DEVICE_GROUP)
            if kind == IFF_TAP:
                # A bridge takes the lowest address of its ports. An address that begins with fe
                # is high, so the bridge keeps the address that its neighbours know.
                address = bytes([0xFE]) + secrets.token_bytes(5)
                self._netlink.link("set", index=index, address=address.hex(":"))
            # Without an owner any user could attach to it: all may open /dev/net/tun.
            fcntl.ioctl(descriptor, TUNSETOWNER, 0)
            fcntl.ioctl(descriptor, TUNSETPERSIST, 1)

    def undo(self, change: Device, before: Before) -> None:
        self._remove(change.name)


class _Mtus(_Links[Mtu]):
    def find(self, change: Mtu) -> Found:
        return Found.THEIRS if self._mtu(change.device) == change.mtu else Found.MISSING

    def _mtu(self, device: str) -> int:
        found = self._netlink.device(device)
        return int(found.get("mtu")) if found else 0

    def before(self, change: Mtu) -> Before:
        return {"mtu": str(self._mtu(change.device))}

    def make(self, change: Mtu) -> None:
        self._netlink.link("set", index=index_of(change.device), mtu=change.mtu)

    def undo(self, change: Mtu, before: Before) -> None:
        if self._mtu(change.device) != int(before["mtu"]):
            self._netlink.link("set", index=index_of(change.device), mtu=int(before["mtu"]))


class _Bridges(_Links[Bridge]):
    def find(self, change: Bridge) -> Found:
        return self._find_device(change.name)

    def make(self, change: Bridge) -> None:
        self._netlink.link("add", ifname=change.name, kind="bridge", group=DEVICE_GROUP)

    def undo(self, change: Bridge, before: Before) -> None:
        self._remove(change.name)


class _Ports(_Links[Port]):
    def find(self, change: Port) -> Found:
        is_port = self._master(change.device) == change.bridge
        return Found.THEIRS if is_port else Found.MISSING

    def _master(self, device: str) -> str:
        found = self._netlink.device(device)
        index = found.get("master") if found else None
        return socket.if_indextoname(index) if index else ""

    def before(self, change: Port) -> Before:
        bridge = self._netlink.device(change.bridge)
        address = bridge.get("address") if bridge else ""
        return {"master": self._master(change.device), "address": address}

    def make(self, change: Port) -> None:
        index = index_of(change.device)
        self._netlink.link("set", index=index, master=index_of(change.bridge))

    def undo(self, change: Port, before: Before) -> None:
        if self._master(change.device) != before["master"]:
            old = self._netlink.device(before["master"])
            master = old["index"] if old else 0
            self._netlink.link("set", index=index_of(change.device), master=master)
        bridge = self._netlink.device(change.bridge)
        if bridge and bridge.get("address") == _NO_ADDRESS and before["address"]:
            self._netlink.link("set", index=bridge["index"], address=before["address"])


class _Ups(_Links[Up]):
    def find(self, change: Up) -> Found:
        device = self._netlink.device(change.device)
        return Found.THEIRS if device and device["flags"] & _IFF_UP else Found.MISSING

    def make(self, change: Up) -> None:
        self._netlink.link("set", index=index_of(change.device), state="up")

    def undo(self, change: Up, before: Before) -> None:
        index = index_of(change.device)
        kept = [m for m in self._netlink.addresses(index, 6) if m["scope"] == _SCOPE_UNIVERSE]
        self._netlink.link("set", index=index, state="down")
        # IPv6 forgets the addresses of a device that goes down; these were set by somebody else.
        for message in kept:
            words = {"local": message.get("local"), "address": message.get("address")}
            with contextlib.suppress(FileExistsError):
                self._netlink.address(
                    "add",
                    index=index,
                    prefixlen=message["prefixlen"],
                    flags=message.get("flags") & _IFA_F_NODAD,
                    **{word: value for word, value in words.items() if value},
                )


class _Addresses(_Links[Address]):
    def find(self, change: Address) -> Found:
        found = self._netlink.device(change.device)
        if found is None:
            return Found.MISSING
        interface = ip_interface(change.address)
        wanted = str(interface.ip), interface.network.prefixlen
        for message in self._netlink.addresses(found["index"], interface.version):
            address = message.get("address")  # the peer's, if there is one
            local = message.get("local") or address
            # Another program may have set the address without a peer.
            if (local, message["prefixlen"]) == wanted and address in (local, change.peer):
                return Found.THEIRS
        return Found.MISSING

    def make(self, change: Address) -> None:
        self._netlink.address("add", **self._words(change))

    def undo(self, change: Address, before: Before) -> None:
        self._netlink.address("del", **self._words(change))

    def reason(self, change: Address, error: OSError) -> str:
        if error.errno == errno.EACCES and ":" in change.address:
            return f"IPv6 is switched off (net.ipv6.conf.{change.device}.disable_ipv6 = 1)"
        return super().reason(change, error)

    @staticmethod
    def _words(change: Address) -> dict[str, Any]:
        interface = ip_interface(change.address)
        words: dict[str, Any] = {
            "index": index_of(change.device),
            "prefixlen": interface.network.prefixlen,
            "address": change.peer or str(interface.ip),
        }
        if change.peer or interface.version == 4:
            words["local"] = str(interface.ip)
        if interface.version == 6:
            words["flags"] = _IFA_F_NODAD
        return words


def switch_of(version: int) -> Path:
    """Returns the sysctl file that switches the forwarding of an IP version, for all devices."""
    name = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    return _SYSCTL / "net" / name


class _Forwardings(ChangeKind[Forwarding]):
    """Forwarding of an IP version; its switch also overwrites the settings of each device."""

    def find(self, change: Forwarding) -> Found:
        on = switch_of(change.version).read_text().strip() != "0"
        return Found.THEIRS if on else Found.MISSING

    def before(self, change: Forwarding) -> Before:
        if change.version == 4:
            touched = ["ipv4/conf/*/forwarding", "ipv4/conf/all/accept_redirects"]
        else:
            touched = ["ipv6/conf/*/forwarding", "ipv6/conf/*/accept_ra"]
        paths = [path for each in touched for path in sorted((_SYSCTL / "net").glob(each))]
        switch = switch_of(change.version)
        return {
            str(path.relative_to(_SYSCTL)): path.read_text().strip() for path in (switch, *paths)
        }

    def make(self, change: Forwarding) -> None:
        if change.version == 6:
            # A machine that forwards ignores router advertisements, and forgets the routes that
            # it learned from them, unless accept_ra is 2.
            for path in (_SYSCTL / "net/ipv6/conf").glob("*/accept_ra"):
                if path.parent.name not in ("all", "default") and path.read_text().strip() == "1":
                    path.write_text("2")
        switch_of(change.version).write_text("1")

    def undo(self, change: Forwarding, before: Before) -> None:
        for name, value in before.items():  # the switch comes first
            path = _SYSCTL / name
            with contextlib.suppress(FileNotFoundError):  # the device is gone
                if path.read_text().strip() != value:
                    path.write_text(value)


class _PassedOn(ChangeKind[PassedOn]):
    """``everyones`` are the Forwarding changes in all records: the switches that we turned on."""

    def __init__(self, programs: Programs, everyones: Sequence[Forwarding]) -> None:
        self._programs = programs
        self._ours = {switch.version for switch in everyones}

    def find(self, change: PassedOn) -> Found:
        on = switch_of(change.version).read_text().strip() != "0"
        ours = change.version in self._ours or passed_on_devices(change, self._programs) is not None
        if on and not ours:
            return Found.THEIRS  # whoever turned it on decides what is forwarded
        return Found.OURS if holds(change, self._programs) else Found.MISSING

    def make(self, change: PassedOn) -> None:
        self._programs.call("nft", "-f", "-", text=change.script)

    def undo(self, change: PassedOn, before: Before) -> None:
        devices = passed_on_devices(change, self._programs)
        if devices is None:
            return
        if not devices - {change.device}:
            remove(change.table, self._programs)
            return
        element = f'element inet {change.table} tunnels {{ "{change.device}" }}'
        self._programs.call("nft", "-f", "-", text=f"delete {element}\n")


class _Routes(_Links[Route]):
    def find(self, change: Route) -> Found:
        index = index_of(change.device) if self._netlink.device(change.device) else 0
        for message in self._same_network(change):
            if message.get("oif") == index and (message.get("gateway") or "") == change.via:
                ours = message["proto"] == ROUTE_PROTOCOL
                return Found.OURS if ours else Found.THEIRS
        return Found.MISSING

    def _same_network(self, change: Route) -> list[Message]:
        network = ip_network(change.network)
        routes = self._netlink.routes(network.version)
        return [message for message in routes if _network(message, network.version) == network]

    def make(self, change: Route) -> None:
        self._netlink.route("add", **self._words(change))

    def undo(self, change: Route, before: Before) -> None:
        self._netlink.route("del", **self._words(change))

    @staticmethod
    def _words(change: Route) -> dict[str, Any]:
        version = ip_network(change.network).version
        words: dict[str, Any] = {
            "family": family_of(version),
            "dst": change.network,
            "oif": index_of(change.device),
            "proto": ROUTE_PROTOCOL,
            "type": _UNICAST,
        }
        if change.via:
            words["gateway"] = change.via
        elif version == 4:
            words["scope"] = _SCOPE_LINK
        return words

    def reason(self, change: Route, error: OSError) -> str:
        if error.errno == errno.EEXIST:
            for message in self._same_network(change):
                if message.get("priority") in (None, _IPV6_METRIC):
                    gateway, index = message.get("gateway"), message.get("oif")
                    via = f" via {gateway}" if gateway else ""
                    device = f" dev {socket.if_indextoname(index)}" if index else ""
                    return f"another route to {change.network} exists:{via}{device}"
        return super().reason(change, error)


class _Marks(_Links[Marked]):
    def find(self, change: Marked) -> Found:
        found = self._netlink.rule_exists(change.version, MARK, PIN_TABLE)
        return Found.OURS if found else Found.MISSING

    def make(self, change: Marked) -> None:
        self._netlink.rule("add", change.version, MARK, PIN_TABLE)

    def undo(self, change: Marked, before: Before) -> None:
        self._netlink.rule("del", change.version, MARK, PIN_TABLE)


class _MarkedAnswers(ChangeKind[MarkedAnswers]):
    _SWITCH: Final = _SYSCTL / "net/ipv4/conf/all/src_valid_mark"

    def find(self, change: MarkedAnswers) -> Found:
        return Found.THEIRS if self._SWITCH.read_text().strip() == "1" else Found.MISSING

    def make(self, change: MarkedAnswers) -> None:
        self._SWITCH.write_text("1")

    def undo(self, change: MarkedAnswers, before: Before) -> None:
        self._SWITCH.write_text("0")


class _Pins(_Links[Pin]):
    """Routes around the tunnel; each call of ``make`` adapts them to the machine's other routes.

    ``everyones`` are the pins in all records: if two links have the same server, the route must
    use neither tunnel, and the pin is needed while one of the links needs it.
    """

    def __init__(self, netlink: Netlink, everyones: Sequence[Pin]) -> None:
        super().__init__(netlink)
        self._everyones = everyones

    def find(self, change: Pin) -> Found:
        wanted, pins = self._look(change)
        if wanted is None:
            return Found.MISSING if pins else Found.THEIRS
        is_so = any(_way(message) == _way(wanted) for message in pins)
        return Found.OURS if is_so else Found.MISSING

    def make(self, change: Pin) -> None:
        wanted, pins = self._look(change)
        if wanted is None:
            for message in pins:
                self._remove_pin(change, message)
            return
        words = {key: value for key, value in _way(wanted).items() if value}
        scope = _SCOPE_UNIVERSE if "gateway" in words or "via" in words else _SCOPE_LINK
        self._netlink.route(
            "replace",
            family=wanted["family"],
            dst=_host(change.server),
            table=PIN_TABLE,
            proto=PIN_PROTOCOL,
            type=_UNICAST,
            scope=scope if wanted["family"] == socket.AF_INET else _SCOPE_UNIVERSE,
            **words,
        )

    def undo(self, change: Pin, before: Before) -> None:
        for message in self._look(change)[1]:
            self._remove_pin(change, message)

    def _remove_pin(self, change: Pin, message: Message) -> None:
        self._netlink.route(
            "del",
            family=message["family"],
            dst=_host(change.server),
            table=PIN_TABLE,
            proto=PIN_PROTOCOL,
            scope=message["scope"],
            oif=message.get("oif"),
        )

    def _look(self, change: Pin) -> tuple[Message | None, list[Message]]:
        """Returns the route that the pin must copy, or None if no pin is needed; and the pins."""
        server = ip_address(change.server)
        same = [change, *(pin for pin in self._everyones if pin.key == change.key)]
        tunnels = set()
        for pin in same:
            with contextlib.suppress(OSError):
                tunnels.add(index_of(pin.device))
        ways = []
        for message in self._leading_to(server):
            if not (_way(message)["oif"] in tunnels or message["flags"] & _RTNH_F_DEAD):
                ways.append(message)
        pins = self._leading_to(server, PIN_TABLE)
        if not ways:
            # No route leads to the server, so there is none to copy. An earlier pin stays: it may
            # become right again.
            return (pins[0] if pins else None), pins
        best = min(ways, key=lambda way: (-way["dst_len"], way.get("priority") or 0))
        needed = best["dst_len"] <= max(pin.covered for pin in same)
        return (best if needed else None), pins

    def _leading_to(self, server: Any, table: int = MAIN_TABLE) -> list[Message]:
        return [
            message
            for message in self._netlink.routes(server.version, table)
            if message["type"] == _UNICAST and server in _network(message, server.version)
        ]


def _host(server: str) -> str:
    return str(ip_network(server))


def _network(message: Message, version: int) -> Any:
    """Returns the destination network of a route; a default route's message names none."""
    anything = "0.0.0.0" if version == 4 else "::"
    return ip_network(f"{message.get('dst') or anything}/{message['dst_len']}")


def _way(message: Message) -> dict[str, Any]:
    """Returns a route's next hop and device; of a multipath route, those of the first hop."""
    hops = message.get("multipath")
    hop = hops[0] if hops else message
    return {
        "oif": hop["oif"] if hops else message.get("oif"),
        "gateway": hop.get("gateway"),
        "via": hop.get("via"),
        "prefsrc": message.get("prefsrc"),
        "flags": hop["flags"] & _RTNH_F_ONLINK,
    }


class _NameServers(ChangeKind[NameServers]):
    """Name servers; ``others`` are the changes of the other links."""

    def __init__(self, resolver: Resolver, others: Sequence[NameServers]) -> None:
        self._resolver = resolver
        self._others = others

    def find(self, change: NameServers) -> Found:
        return Found.OURS if self._resolver.holds(change) else Found.MISSING

    def make(self, change: NameServers) -> None:
        self._resolver.make(change, self._others)

    def undo(self, change: NameServers, before: Before) -> None:
        exists = change.device in device_names()
        self._resolver.undo(change, self._others, exists)


def kinds_of_changes(
    netlink: Netlink,
    programs: Programs,
    resolver: Resolver,
    everyones: Sequence[Change],
    others: Sequence[Change],
) -> dict[type[Change], ChangeKind[Any]]:
    """Returns the ChangeKind of each kind of change.

    ``everyones`` are the changes in all records, ``others`` those of other owners.
    """
    return {
        Rules: _Tables(programs),
        Device: _Devices(netlink),
        Mtu: _Mtus(netlink),
        Bridge: _Bridges(netlink),
        Port: _Ports(netlink),
        Up: _Ups(netlink),
        Address: _Addresses(netlink),
        PassedOn: _PassedOn(
            programs, [change for change in everyones if isinstance(change, Forwarding)]
        ),
        Forwarding: _Forwardings(),
        Marked: _Marks(netlink),
        MarkedAnswers: _MarkedAnswers(),
        Pin: _Pins(netlink, [change for change in everyones if isinstance(change, Pin)]),
        Route: _Routes(netlink),
        NameServers: _NameServers(
            resolver, [change for change in others if isinstance(change, NameServers)]
        ),
    }
