"""One declared link while its supervisor runs: its state, its device, and its process.

Each attempt has a process of its own (carrier.py). What stays between attempts is here: the device
with its addresses and routes, so that connections inside the tunnel survive.
"""

import contextlib
import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from ..aio.addresses import is_address
from ..aio.loop import Loop, Timer
from ..config.directories import network_records
from ..config.links import Link, with_handed_out
from ..config.network import TunnelNetwork
from ..errors import CulvertError, MalformedMessage, UsageError
from ..process.passed_lines import PassedLines
from ..process.sandbox import Confinement
from ..services.tunnel.chains import Outside
from ..services.tunnel.device import exists, is_attached, name_of, open_device, unit_of
from ..services.tunnel.drops import Drop, Drops
from ..services.tunnel.kernel import free_device, reconcile_apart, recorded, recorded_device
from ..services.tunnel.netlink import ipv6_is_off
from ..services.tunnel.network import Change, Pin, Rules, closed, plan, table_of
from ..services.tunnel.programs import Programs
from ..services.tunnel.resolver import resolved_runs
from ..services.tunnel.rules import holds, tables
from ..wire.tun import MODES, HandedOut
from . import reports
from .carrier import carry
from .declarations import login_for
from .keeper import Keeper
from .link import LinkEvent, LinkLife, LinkState
from .lookup import ADDRESSES_LIMIT, name_servers, stub_users
from .remembered import Remembered

_log = logging.getLogger(__name__)

# Our own choices
PATIENCE: Final = 2.0  # seconds of dialling, after which a changed network makes us dial anew
LOGIN_SECONDS: Final = 60.0  # from the TCP connection to the open tunnel; boards are slow

_EVERYTHING: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def record_of(name: str) -> Path:
    """Returns the path of the record with the changes of the link ``name``."""
    return network_records() / f"link-{name}.json"


def owner_of(link: Link) -> str:
    """Returns the owner's name of a link's changes."""
    return f"link-{link.name}"


def network_at_start(link: Link, remembered: Remembered) -> TunnelNetwork:
    """Returns the network as declared, or as the server handed it out last.

    Before the first hand-out, a kill switch guards all addresses.
    """
    if remembered.handed_out is not None:
        return with_handed_out(link, remembered.handed_out)
    if link.from_server and link.kill_switch:
        return replace(link, routes=_EVERYTHING)
    return link


def closed_rules(link: Link) -> tuple[Rules, ...]:
    """Returns the rules that keep a link's kill switch closed without any other change."""
    if not link.kill_switch:
        return ()
    device = "" if link.device == "any" else link.device
    return (closed(owner_of(link), network_at_start(link, Remembered(link)), device),)


def close(link: Link, keeper: Keeper) -> None:
    """Closes a link's kill switch, if it has one, and undoes the link's other changes.

    Raises CulvertError.
    """
    rules = closed_rules(link)
    for each in rules:
        keeper.hold(each.table, each.body)
    try:
        if not rules:
            keeper.release(table_of(owner_of(link)))
    finally:
        reconcile_apart(record_of(link.name), rules)


class RunningLink:
    """Runs one link from ``start`` to ``stop``; owns its device, its process and its changes."""

    def __init__(
        self,
        link: Link,
        loop: Loop,
        confinement: Confinement,
        keeper: Keeper,
        changed: Callable[[], None],
        process_ended: Callable[[], None],
        is_traced: bool = False,
    ) -> None:
        self.link = link
        self.life = LinkLife(loop.time())
        self.device = ""  # its name; '' before one is chosen
        self.address = ""  # of the server
        self.software = ""
        self.offload = False
        self.round_trip: float | None = None  # seconds
        self.drops = Drops()  # of all connections
        self._loop = loop
        self._confinement = confinement
        self._keeper = keeper
        self._changed = changed
        self._process_has_ended = process_ended
        self._is_traced = is_traced
        self._lines = PassedLines(f"link {link.name}")
        self._record = record_of(link.name)
        # Routes that a killed supervisor left stay.
        self._routed = recorded_device(self._record) is not None
        self._made: Sequence[Change] = ()
        self._routes_made: list[str] = []
        self._remembered = Remembered(link)
        self.network = network_at_start(link, self._remembered)
        self._handed_out: Mapping[str, object] | None = None  # in this attempt
        self._hop: tuple[str, int] | None = None  # the first hop; None for a ProxyCommand
        self._candidates: list[str] = []  # the first hop's addresses, from a resolver
        self._descriptor = -1
        self.process = 0  # its id; 0 while there is none
        self._reports: socket.socket
        self._resolved = False  # whether the process has sent Resolved
        self._failure: reports.AttemptFailed | None = None
        self._dialled = 0.0
        self._drops = Drops()  # of this connection
        self._proven = False  # whether the server has answered a keepalive since OPENED
        self._timer: Timer | None = None  # for the next attempt, or for the limit of this one

    # -- from outside ----------------------------------------------------------------

    def start(self) -> None:
        """Begins to dial, unless the link is started already."""
        if self.life.state in (LinkState.IDLE, LinkState.STOPPED):
            self._happened(LinkEvent.START)

    def change(self, link: Link) -> None:
        """Reconnects with a changed declaration; changes only what differs in the network."""
        self._end_process()
        if link.mode != self.link.mode or link.device not in ("any", self.device):
            self._close_device()
            self.device = ""
        self.link = link
        self._remembered = Remembered(link)
        self.network = network_at_start(link, self._remembered)
        if link.from_server and self._remembered.handed_out is None:
            self._routed = False
        self._handed_out = None
        self._made = ()
        self._hop, self._candidates = None, []
        _log.info("link %s: its declaration has changed", link.name)
        self._happened(LinkEvent.STOP)
        self._happened(LinkEvent.START)

    def stop(self, stays_closed: bool = False) -> None:
        """Ends the connection and undoes all changes; raises CulvertError for those that stay.

        With ``stays_closed`` a kill switch is left for the next supervisor, or for `down`.
        """
        self._happened(LinkEvent.STOP)
        self._end_process()
        self._close_device()
        if stays_closed and self.link.kill_switch:
            close(self.link, self._keeper)
            return
        try:
            self._keeper.release(table_of(owner_of(self.link)))
        finally:
            reconcile_apart(self._record, ())

    def network_changed(self) -> None:
        """Makes lost changes again, and dials or probes now: the cause of waiting may be gone."""
        life = self.life
        if life.state in (LinkState.IDLE, LinkState.STOPPED):
            return
        pinned = any(isinstance(change, Pin) for change in self._made)
        lost = self._descriptor >= 0 and not is_attached(self._descriptor)
        if pinned or lost or self._routes_made != routes_of(self.device):
            self._made = ()  # routes to the server may have changed, or ours were removed
            if not self._apply():
                return
        if life.state is LinkState.UP:
            self._order(reports.PROBE)
        elif life.state is LinkState.DIALLING and self._loop.time() - self._dialled > PATIENCE:
            self._end_process()
            self._dial()
        self._happened(LinkEvent.NETWORK_CHANGED)

    def rules_changed(self) -> None:
        """Makes the link's tables again if they are damaged; we may have changed them ourselves."""
        try:
            ours = {each.key for each in tables(recorded(self._record))}
            expected = [
                each
                for each in tables(self._made)
                # A PassedOn table is not made if another program turned forwarding on.
                if isinstance(each, Rules) or each.key in ours
            ]
            if all(holds(each, Programs()) for each in expected):
                return
        except CulvertError as error:
            _log.error("link %s: %s", self.link.name, error)
        _log.warning("link %s: its rules are not as they were", self.link.name)
        self._made = ()
        self._apply()

    @property
    def tables(self) -> set[str]:
        """Returns the names of the tables with the link's rules."""
        return {each.table for each in tables(self._made)}

    # -- its state -------------------------------------------------------------------

    def _happened(self, event: LinkEvent, why: str = "") -> None:
        life, name = self.life, self.link.name
        before = life.state
        why = reports.one_line(why, 1000)  # it may come from the server
        state = life.happened(event, self._loop.time(), random.random(), why)
        if state is before:
            return
        self._stop_timer()
        match state:
            case LinkState.DIALLING:
                self._dial()
            case LinkState.UP:
                _log.info("link %s is up: %s to %s", name, self.device, self.address)
            case LinkState.BACKING_OFF:
                self._timer = self._loop.call_at(life.due, self._happened, LinkEvent.DUE)
                wait = life.due - self._loop.time()
                _log.warning("link %s: %s; again in %.0f s", name, why, wait)
            case LinkState.STOPPED:
                _log.error("link %s has stopped: %s", name, why)
            case LinkState.IDLE:
                _log.info("link %s is down", name)
        self._changed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, why: str) -> None:
        """Ends the attempt, and stops the link: another attempt cannot succeed."""
        self._end_process()
        self._happened(LinkEvent.REFUSED, why)

    def _lose(self, why: str) -> None:
        """Ends the attempt: another one may succeed."""
        self._end_process()
        self._happened(LinkEvent.LOST, why)

    # -- the machine's network -------------------------------------------------------

    def _apply(self) -> bool:
        """Makes the changes that the link needs now; if this fails, loses the attempt.

        Returns whether all changes are made.
        """
        link = self.link
        try:
            self._close_switch()
            if not self.device:
                self.device = self._choose_device()
            is_ours = recorded_device(self._record) == self.device
            if self._descriptor < 0 and exists(self.device) and not is_ours:
                self._open_device()  # fails before any change if another process uses the device
            network = self.network
            if link.from_server and network.domains and not resolved_runs():
                _log.warning(
                    "link %s: no systemd-resolved to ask for %s", link.name, network.domains
                )
                network = replace(network, dns=(), domains=())
            wanted = plan(
                owner_of(link),
                network,
                self.device,
                self._outside(),
                link.kill_switch,
                has_ipv6=not ipv6_is_off(),
            )
            changes = wanted.at_start + (wanted.while_up if self._routed else ())
            if changes != self._made:
                reconcile_apart(self._record, changes)
                self._made = changes
                self._routes_made = routes_of(self.device)
            if self._descriptor >= 0 and not is_attached(self._descriptor):
                self._close_device()
                if self.process:  # it still has the descriptor of the removed device
                    raise CulvertError("the device was removed")
            if self._descriptor < 0:
                self._open_device()
        except (CulvertError, OSError) as error:
            self._lose(str(error))
            return False
        return True

    def _close_switch(self) -> None:
        """Closes a kill switch before any step that may fail.

        The keeper holds a copy of its rules that `nft flush ruleset` does not remove.
        """
        link = self.link
        if not link.kill_switch:
            self._keeper.release(table_of(owner_of(link)))
            return
        device = self.device or ("" if link.device == "any" else link.device)
        rules = closed(owner_of(link), self.network, device, self._outside())
        self._keeper.hold(rules.table, rules.body)
        if not tables(recorded(self._record)):
            reconcile_apart(self._record, closed_rules(link))

    def _outside(self) -> Outside:
        """Returns the packets that the link's processes may send outside the tunnel."""
        if self._hop is None:
            return Outside()
        host, port = self._hop
        servers = self._candidates or self._remembered.addresses
        uids = [self._confinement.resolver_uid]
        if not self._remembered.addresses:
            uids += stub_users()
        asked = [] if is_address(host) else name_servers()
        return Outside(
            tuple(map(ip_address, servers)), port, tuple(map(ip_address, asked)), tuple(uids)
        )

    def _choose_device(self) -> str:
        if self.link.device != "any":
            return self.link.device
        recorded = recorded_device(self._record)
        kind = name_of(MODES[self.link.mode], 0)[:3]
        if recorded is not None and recorded.startswith(kind):
            return recorded
        return free_device(self.link.mode)

    def _open_device(self) -> None:
        self._descriptor, _ = open_device(MODES[self.link.mode], unit_of(self.device))

    def _close_device(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # -- its process -----------------------------------------------------------------

    def _dial(self) -> None:
        self._dialled = self._loop.time()
        self._forget_what_did_not_work()
        self._hop = None
        try:
            self._close_switch()
            login = login_for(self.link, self._is_traced)
            self._hop = login.first_hop
        except UsageError as error:
            self._refuse(str(error))
            return
        except CulvertError as error:
            self._lose(str(error))
            return
        if not self._apply():
            return
        self._failure = None
        self._resolved = False
        known = self._remembered.addresses
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.process = os.fork()
            except OSError as error:
                ours.close()
                self._lose(f"no process: {error.strerror}")
                return
            if self.process == 0:
                carry(self.link, self._descriptor, theirs, login, known, self._confinement)
        self._reports = ours
        self._reports.setblocking(False)
        self._loop.watch_reader(self._reports.fileno(), self._on_report)

    def _forget_what_did_not_work(self) -> None:
        """Goes back to the hand-out of the last connection that worked, or to none."""
        self._candidates = []
        if self._handed_out is not None:
            self._handed_out = None
            self.network = network_at_start(self.link, self._remembered)
            self._routed = self._remembered.handed_out is not None

    def _order(self, order: bytes) -> None:
        """Sends an order to the process.

        An error is ignored: the process ends by its keepalive, or has ended already.
        """
        with contextlib.suppress(OSError):
            self._reports.send(order)

    def _on_report(self) -> None:
        try:
            data = self._reports.recv(reports.DATAGRAM)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._process_ended()
            return
        try:
            kind = reports.KINDS.get(data[0])
            if kind is None:
                raise MalformedMessage("no such report")
            message = kind.decode(data)
            match message:
                case reports.Resolved():
                    self._on_resolved(message)
                case reports.Opened():
                    self._on_opened(message)
                case reports.Alive():
                    self._on_alive(message)
                case reports.PacketsDropped():
                    self._on_dropped(message)
                case reports.PassedLine():
                    self._lines.write(message.level, message.text)
                case reports.AttemptFailed():
                    self._failure = message
        except (MalformedMessage, ValueError) as error:  # the process has a bug or was taken over
            self._refuse(f"its process broke the rules: {error}")

    def _on_resolved(self, message: reports.Resolved) -> None:
        """Makes the routes and rules for the first hop's addresses, then lets the process dial.

        A process reports Resolved once, before it has read anything from the server.
        """
        if self._resolved:
            raise MalformedMessage("a name was resolved twice")
        self._resolved = True
        if len(message.addresses) > ADDRESSES_LIMIT:
            raise MalformedMessage("too many addresses")
        self._candidates = [
            str(ip_address(address.decode("ascii"))) for address in message.addresses
        ]
        if self._apply():
            self._order(reports.GO)
            patience = self.link.connect_timeout + LOGIN_SECONDS
            self._stop_timer()
            self._timer = self._loop.call_later(patience, self._too_slow)

    def _too_slow(self) -> None:
        self._lose("the server did not open the tunnel in time")

    def _on_opened(self, message: reports.Opened) -> None:
        if self.life.state is not LinkState.DIALLING or not self._resolved:
            raise MalformedMessage("a tunnel was opened twice, or too early")
        self.address = reports.one_line(message.address, 200)
        self.software = reports.one_line(message.software, 200)
        self.offload = message.offload
        if self.link.from_server:
            try:
                self._handed_out = _table(message.handed_out)
                self.network = with_handed_out(self.link, self._handed_out)
            except UsageError as error:  # the server's owner may correct it
                self._lose(str(error))
                return
        self._routed = True
        if self._apply():
            self._happened(LinkEvent.OPENED)
            self._proven = False
            self._order(reports.PROBE)

    def _on_alive(self, message: reports.Alive) -> None:
        """Remembers the hand-out at the first answer since OPENED, when it was in use."""
        self.round_trip = message.round_trip / 1e6
        if self.life.state is LinkState.UP and not self._proven:
            self._proven = True
            hop = self.address if self._hop is not None else ""
            self._remembered.learn(hop, self._handed_out)
            self._handed_out = None

    def _on_dropped(self, message: reports.PacketsDropped) -> None:
        if self.life.state is not LinkState.UP:
            raise MalformedMessage("packets were dropped before there was a tunnel")
        self._count_drops(message)

    def _count_drops(self, message: reports.PacketsDropped) -> None:
        for drops in (self._drops, self.drops):
            drops.count(Drop(message.reason), message.packets)

    def _process_ended(self) -> None:
        status = self._wait()
        failure = self._failure
        if failure is None:
            why = f"its process ended (status {os.waitstatus_to_exitcode(status)})"
            self._happened(LinkEvent.LOST, why)
        else:
            self._happened(LinkEvent.REFUSED if failure.final else LinkEvent.LOST, failure.why)

    def _end_process(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        """Waits for the end of the process; returns its wait status."""
        self._loop.watch_reader(self._reports.fileno(), None)
        _, status = os.waitpid(self.process, 0)
        self._read_last_drops()
        self._reports.close()
        self.process = 0
        self.round_trip = None
        if self._drops:
            _log.info("link %s: %s", self.link.name, self._drops)
        self._drops.clear()
        self._process_has_ended()
        return status

    def _read_last_drops(self) -> None:
        """Count what the process reported before it was killed, when nobody looked any more."""
        with contextlib.suppress(OSError, MalformedMessage, ValueError):
            while data := self._reports.recv(reports.DATAGRAM):
                if data[0] == reports.PacketsDropped.number:
                    self._count_drops(reports.PacketsDropped.decode(data))


def routes_of(device: str) -> list[str]:
    """Returns the kernel's routes to a device as comparable text.

    They are lines of /proc/net/route and ipv6_route (proc(5)) without their counters, which are
    cheap enough to read at each change of the network.
    """
    found = []
    for path, counters, name in (
        ("/proc/net/route", (4, 5), 0),
        ("/proc/net/ipv6_route", (6, 7), 9),
    ):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as lines:
            for words in map(str.split, lines):
                if words[name] == device:
                    found.append(" ".join(w for n, w in enumerate(words) if n not in counters))
    return sorted(found)


def _table(handed_out: bytes) -> Mapping[str, object]:
    """Returns a HandedOut record as keys of TunnelNetwork; raises UsageError."""
    what = HandedOut.decode(handed_out) if handed_out else None
    if what is None or not what.addresses:
        raise UsageError(
            "the server hands out no addresses: declare them here, or a [[tunnel]] with "
            "[tunnel.client] there"
        )
    table: dict[str, object] = {
        name: [part.decode("ascii", "replace") for part in getattr(what, name)]
        for name in ("addresses", "peer", "routes", "dns", "domains")
    }
    if what.mtu:
        table["mtu"] = what.mtu
    return table
