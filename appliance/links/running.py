"""One declared link while its supervisor runs: its life, its device, and its process.

Attempts are made by a process each (carrier.py). What stays between them is here: the
device with its addresses and routes, so that connections inside the tunnel live on.
"""

import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ..aio.loop import Loop, Timer
from ..config.directories import network_records, state_directory
from ..config.links import Link, with_handed_out
from ..config.network import TunnelNetwork
from ..errors import CulvertError, MalformedMessage, UsageError
from ..log import harmless
from ..process.sandbox import Identity
from ..services.tunnel.device import open_device
from ..services.tunnel.kernel import free_device, reconcile_apart
from ..services.tunnel.network import Change, plan
from ..wire.tun import ETHERNET, POINT_TO_POINT, HandedOut
from . import reports
from .carrier import Login, carry
from .link import Event, LinkLife, State

_log = logging.getLogger(__name__)

# Our own choice
PATIENCE: Final = 2.0  # seconds of dialling, after which a changed network starts it over


def record_of(name: str) -> Path:
    """Where the changes of the link called ``name`` are recorded."""
    return network_records() / f"link-{name}.json"


class RunningLink:
    """Everything that one link needs, from ``start`` to ``stop``."""

    def __init__(
        self,
        link: Link,
        loop: Loop,
        login_for: Callable[[Link], Login],
        identity: Identity | None,
        changed: Callable[[], None],
    ) -> None:
        self.link = link
        self.life = LinkLife(loop.time())
        self.device = ""  # its name, once there is one
        self.address = ""  # of the server
        self.software = ""
        self.offload = False
        self.round_trip: float | None = None  # seconds
        self._loop = loop
        self._login_for = login_for
        self._identity = identity
        self._changed = changed
        self.network: TunnelNetwork = link  # as it is declared, or handed out by the server
        self._record = record_of(link.name)
        self._routed = self._record.exists()  # by a supervisor that was killed: leave it so
        self._made: Sequence[Change] | None = None
        self._known = _KnownAddresses(link.name)
        self._descriptor = -1
        self._process = 0
        self._reports: socket.socket
        self._failure: reports.Failed | None = None
        self._timer: Timer | None = None

    # -- from outside ----------------------------------------------------------------

    def start(self) -> None:
        """Begin to dial, unless it goes on already."""
        if self.life.state in (State.IDLE, State.STOPPED):
            self._happened(Event.START)

    def stop(self) -> None:
        """End the connection and undo every change; raises NetworkError for what stays."""
        self._happened(Event.STOP)
        self._end_process()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._made = None
        self._routed = False
        self.network = self.link
        reconcile_apart(self._record, ())

    def network_changed(self) -> None:
        """Whatever we wait for may be there now."""
        life = self.life
        if self._made is not None and life.state is not State.STOPPED:
            self._made = None  # the ways to the server may be others
            if not self._apply():
                return
        if life.state is State.UP:
            self._order(reports.PROBE)
        elif life.state is State.DIALLING and self._loop.time() - life.since > PATIENCE:
            self._end_process()
            self._dial()
        self._happened(Event.NETWORK_CHANGED)

    # -- its life --------------------------------------------------------------------

    def _happened(self, event: Event, why: str = "") -> None:
        life, name = self.life, self.link.name
        before = life.state
        state = life.happened(event, self._loop.time(), random.random(), why)
        if state is before:
            return
        if self._timer is not None:
            self._timer.cancel()
        match state:
            case State.DIALLING:
                self._dial()
            case State.UP:
                _log.info("link %s is up: %s to %s", name, self.device, self.address)
            case State.BACKING_OFF:
                self._timer = self._loop.call_at(life.due, self._happened, Event.DUE)
                wait = life.due - self._loop.time()
                _log.warning("link %s: %s; again in %.0f s", name, why, wait)
            case State.STOPPED:
                _log.error("link %s has stopped: %s", name, why)
            case State.IDLE:
                _log.info("link %s is down", name)
        self._changed()

    def _refuse(self, why: str) -> None:
        """Something that trying again would not change."""
        self._end_process()
        self._happened(Event.REFUSED, why)

    def _apply(self) -> bool:
        """Have the machine's network as it should be now; False when that failed for good."""
        link = self.link
        if not self.device:
            self.device = free_device(link.mode) if link.device == "any" else link.device
        servers = [ip_address(address) for address in self._known.for_rules()]
        owner = f"link-{link.name}"
        try:
            wanted = plan(owner, self.network, self.device, servers, link.kill_switch)
            changes = wanted.at_start + (wanted.while_up if self._routed else ())
            if changes != self._made:
                reconcile_apart(self._record, changes)
                self._made = changes
            if self._descriptor < 0:
                mode = ETHERNET if link.mode == "ethernet" else POINT_TO_POINT
                self._descriptor, _ = open_device(mode, int(self.device[3:]))
        except CulvertError as error:
            self._refuse(str(error))
            return False
        return True

    # -- its process -----------------------------------------------------------------

    def _dial(self) -> None:
        if not self._apply():
            return
        try:
            login = self._login_for(self.link)
        except UsageError as error:
            self._refuse(str(error))
            return
        self._failure = None
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = os.fork()
        if self._process == 0:
            known = self._known.addresses
            carry(self.link, self._descriptor, theirs, login, known, self._identity)
        theirs.close()
        self._loop.watch_reader(self._reports.fileno(), self._on_report)

    def _order(self, order: bytes) -> None:
        try:
            self._reports.send(order)
        except OSError:
            _log.debug("link %s: its process is gone already", self.link.name)

    def _on_report(self) -> None:
        try:
            data = self._reports.recv(reports.DATAGRAM)
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
                    self.round_trip = message.round_trip / 1e6
                case reports.Failed():
                    self._failure = message
        except (MalformedMessage, ValueError) as error:  # it was taken over, or is ill
            self._refuse(f"its process broke the rules: {error}")

    def _on_resolved(self, message: reports.Resolved) -> None:
        self._known.learn([address.decode("ascii") for address in message.addresses])
        if self._apply():
            self._order(reports.GO)

    def _on_opened(self, message: reports.Opened) -> None:
        if self.life.state is not State.DIALLING:
            raise MalformedMessage("a tunnel was opened twice")
        self.address = harmless(message.address[:100])
        self.software = harmless(message.software)
        self.offload = message.offload
        if self.link.from_server:
            try:
                self.network = _taken(self.link, message.handed_out)
            except UsageError as error:
                self._refuse(str(error))
                return
        self._routed = True
        if self._apply():
            self._happened(Event.OPENED)

    def _process_ended(self) -> None:
        status = self._wait()
        failure = self._failure
        if failure is None:
            why = f"its process ended (status {os.waitstatus_to_exitcode(status)})"
            self._happened(Event.LOST, why)
        else:
            event = Event.REFUSED if failure.final else Event.LOST
            self._happened(event, harmless(failure.why[:1000]))

    def _end_process(self) -> None:
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        """Until the process has ended; its wait status."""
        self._loop.watch_reader(self._reports.fileno(), None)
        self._reports.close()
        _, status = os.waitpid(self._process, 0)
        self._process = 0
        self.round_trip = None
        return status


def _taken(link: Link, handed_out: bytes) -> TunnelNetwork:
    """The link's network with what the server hands out; raises UsageError."""
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
    return with_handed_out(link, table)


class _KnownAddresses:
    """The addresses of the first hop, for when its name cannot be resolved.

    They are kept in a file: at the next start of the machine a kill switch must let us reach
    the server before anything else is reached.
    """

    def __init__(self, name: str) -> None:
        self._path = state_directory() / "addresses" / name
        self.addresses: list[str] = []
        try:
            self.learn(self._path.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            self.addresses = []

    def learn(self, addresses: list[str]) -> None:
        """Keep those that are addresses; raises ValueError for anything else."""
        plain = [address.partition("%")[0] for address in addresses]
        for address in plain:
            ip_address(address)
        if plain and plain != self.addresses:
            self.addresses = plain
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.write_text("\n".join(plain), encoding="ascii")

    def for_rules(self) -> list[str]:
        """Whom a kill switch lets us reach: before the first answer, the name servers."""
        return self.addresses or _name_servers()


def _name_servers() -> list[str]:
    found = []
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for words in map(str.split, lines):
            if len(words) > 1 and words[0] == "nameserver":
                try:
                    found.append(str(ip_address(words[1].partition("%")[0])))
                except ValueError:
                    continue
    return [address for address in dict.fromkeys(found) if not ip_address(address).is_loopback]
