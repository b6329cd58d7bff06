"""Supervises the declared links and mounts: starts them, tells their status, undoes what they did.

It runs as root, as it changes the machine's network, and reads no data from a network: each link
has a process of its own, without privileges, and each mount a program, which send it reports
(reports.py). Each change is recorded on disk first, so that a new supervisor knows what a killed
one has left.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from ..aio.loop import Loop
from ..aio.processor import aes_is_fast
from ..aio.service_manager import notify
from ..config.directories import network_records
from ..config.links import ServerAccess
from ..crypto.suites import default_algorithms
from ..errors import CulvertError, UsageError
from ..process import sandbox, seccomp
from ..process.rehearsal import rehearse
from ..services.tunnel import record
from ..services.tunnel.drops import Drop
from ..services.tunnel.kernel import reconcile_apart, recorded
from ..services.tunnel.network import Rules, table_of
from ..services.tunnel.rules import tables
from ..services.tunnel.rules_watch import RulesWatch
from . import declarations, lock, metrics, mount_record
from .control import Answer, SupervisorSocket
from .keeper import Keeper
from .link import LinkLife, LinkState
from .network_watch import NetworkWatch
from .running import RunningLink, close, record_of
from .running_mount import RunningMount
from .status import OPENMETRICS, LinkStatus, MountStatus, Status, to_json, to_openmetrics

_log = logging.getLogger(__name__)

# Our own choices
SAMPLE_SECONDS: Final = 5.0  # a rate is the mean over this time
# The users that links' processes run as. No other process uses them: a kill switch recognizes the
# resolver by its user, and the links and the server's workers must have no access to each other.
# The numbers are in the range that systemd gives to users without a name.
USERS: Final = ("culvert-links",)
SPARE_UID: Final = 61197
RESOLVER_UID: Final = 61297  # of the processes that look names up


class Supervisor:
    """Owns all links and mounts of this machine, which has only one supervisor.

    ``path`` is that of their declarations. With ``is_traced`` the log shows each message of the
    links' connections. Raises UsageError.
    """

    def __init__(self, path: str, is_traced: bool = False) -> None:
        self._path = path
        self._is_traced = is_traced
        self._config = declarations.read(path)
        self._links: dict[str, RunningLink] = {}
        self._mounts: dict[str, RunningMount] = {}
        self._confinement = sandbox.Confinement(
            sandbox.prepare(USERS, SPARE_UID),
            _permitted_calls(),
            sandbox.prepare((), RESOLVER_UID),
        )
        self._lock = lock.take(path)
        port = self._config.metrics_port
        self._metrics_port = metrics.listen(port) if port else None
        self._loop = Loop()
        self._keeper = Keeper(self._loop.watch_reader)
        self._counters: dict[str, _Counter] = {}
        self._metrics: tuple[int, socket.socket] | None = None
        self._names: set[str] | None = None  # the links and mounts that are wanted; None for all
        self._opened: set[str] = set()  # links that `down NAME` ended

    def run(self, names: Collection[str] | None) -> None:
        """Runs the links and mounts ``names``, or all for None, until SIGTERM, SIGINT or `down`."""
        loop = self._loop
        sandbox.adopt_orphans()
        rehearse(default_algorithms(aes_is_fast(), "default"))
        gc.collect()
        gc.freeze()
        self._undo_what_is_left(names)
        control = SupervisorSocket(loop, self._answer)
        watch = NetworkWatch(loop, self._network_changed)
        rules = RulesWatch()
        loop.watch_reader(rules.fileno(), lambda: self._rules_changed(rules))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, loop.stop)
        loop.on_signal(signal.SIGHUP, self._reload)
        if self._metrics_port is not None:
            self._serve_metrics(self._metrics_port)
        self._names = None if names is None else set(names)
        self._start(names)
        loop.call_later(SAMPLE_SECONDS, self._sample)
        self._tell()
        notify("READY=1")
        loop.run()
        notify("STOPPING=1")
        control.close()
        watch.close()
        loop.watch_reader(rules.fileno(), None)
        rules.close()
        self._stop([*self._links, *self._mounts], stay_closed=True)
        self._keeper.close()
        if self._metrics is not None:
            pid, sock = self._metrics
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            loop.watch_reader(sock.fileno(), None)
            sock.close()
        loop.close()
        os.close(self._lock)

    # -- links and mounts --------------------------------------------------------------

    def _start(self, names: Collection[str] | None) -> None:
        """Starts the links and mounts ``names``, or all for None.

        Those with a new declaration are started again.
        """
        for link in self._config.link:
            if not _among(link, names):
                continue
            running = self._links.get(link.name)
            if running is not None and running.link != link:
                running.change(link)
            elif running is None:
                running = self._links[link.name] = RunningLink(
                    link,
                    self._loop,
                    self._confinement,
                    self._keeper,
                    self._tell,
                    self._end_orphans,
                    self._is_traced,
                )
            running.start()
        wanted = {mount.name: mount for mount in self._config.mount if _among(mount, names)}
        # First, as another one may have got the mount point.
        self._stop(
            [
                name
                for name, mount in wanted.items()
                if name in self._mounts and self._mounts[name].mount != mount
            ]
        )
        for name, mount in wanted.items():
            if name not in self._mounts:
                self._mounts[name] = RunningMount(mount, self._loop, self._tell, self._end_orphans)
            self._mounts[name].start()

    def _all(self) -> list[RunningLink | RunningMount]:
        return [*self._links.values(), *self._mounts.values()]

    def _end_orphans(self) -> None:
        """Ends the children that a link's or mount's process left, such as a ProxyCommand."""
        kept = {each.process for each in self._all()} | {self._keeper.process}
        if self._metrics is not None:
            kept.add(self._metrics[0])
        sandbox.end_children_but(kept)

    def _stop(self, names: Sequence[str], stay_closed: bool = False) -> list[str]:
        """Stops links and mounts and undoes their changes; returns a line for each failure.

        With ``stay_closed`` kill switches stay.
        """
        wrong = []
        mounts = [name for name in names if name in self._mounts]
        for name in mounts:
            self._mounts[name].ask_to_end()
        # Links come last: a mount may reach its server through one.
        for name in (*mounts, *(name for name in names if name in self._links)):
            self._counters.pop(name, None)
            try:
                if name in mounts:
                    self._mounts.pop(name).stop()
                else:
                    self._links.pop(name).stop(stay_closed)
            except CulvertError as error:
                _log.error("%s %s: %s", "mount" if name in mounts else "link", name, error)
                wrong.append(f"{name}: {error}")
        return wrong

    def _undo_what_is_left(self, names: Collection[str] | None) -> None:
        """Undoes what a killed supervisor left of links and mounts that are not started now.

        A declared kill switch stays closed.
        """
        self._close_switches()
        starting = {link.name for link in self._config.link if _among(link, names)}
        declared = {record_of(link.name): link for link in self._config.link}
        for path in left_behind():
            link = declared.get(path)
            try:
                if link is None:
                    open_again(path, self._keeper)
                elif link.name not in starting:
                    close(link, self._keeper)
            except CulvertError as error:
                _log.error("%s", error)
        mounts = {mount.name for mount in self._config.mount if _among(mount, names)}
        for name in set(mount_record.names_left()) - mounts:
            try:
                mount_record.end_left(name)
            except UsageError as error:
                _log.error("%s", error)

    def _follow(self, names: Collection[str] | None) -> None:
        """Makes the running links and mounts match the declarations.

        Declared kill switches are closed before links are undone, as a link may only have got
        another name.
        """
        declared = {link.name for link in self._config.link}
        gone = [name for name in self._links if name not in declared]
        if gone:
            self._close_switches()
        mounts = {mount.name for mount in self._config.mount}
        self._stop(gone + [name for name in self._mounts if name not in mounts])
        self._start(names)

    def _close_switches(self) -> None:
        """Closes each declared kill switch that is not closed yet and that `down` did not open."""
        for link in self._config.link:
            path = record_of(link.name)
            try:
                is_settled = link.name in self._links or link.name in self._opened
                if not is_settled and not tables(recorded(path)):
                    close(link, self._keeper)
            except CulvertError as error:
                _log.error("link %s: its kill switch is open: %s", link.name, error)

    def _up(self, names: Collection[str] | None) -> None:
        """Reads the declarations again and starts ``names``; changes nothing on UsageError."""
        config = declarations.read(self._path)
        declared = {each.name for each in (*config.link, *config.mount)}
        for name in names or ():
            if name not in declared:
                raise UsageError(f"no link or mount '{name}' is declared")
        self._config = config
        self._opened -= declared if names is None else set(names)
        if names is None:
            self._names = None
        elif self._names is not None:
            self._names |= set(names)
        self._follow(names)

    def _reload(self) -> None:
        """Reads the declarations again at SIGHUP; starts only links that were wanted before."""
        try:
            self._config = declarations.read(self._path)
        except UsageError as error:
            _log.error("the links stay as they are: %s", error)
            return
        self._follow(self._names)

    def _network_changed(self) -> None:
        for running in self._all():
            running.network_changed()

    def _rules_changed(self, rules: RulesWatch) -> None:
        tables = rules.take()
        for running in list(self._links.values()):
            if tables is None or running.tables & tables:
                running.rules_changed()

    # -- status ----------------------------------------------------------------------

    def _tell(self) -> None:
        told = _count_up("links", self._links.values())
        if self._mounts:
            told += f", {_count_up('mounts', self._mounts.values())}"
        notify(f"STATUS={told}")

    def _sample(self) -> None:
        now = self._loop.time()
        for running in self._links.values():
            self._counter(running.link.name).take(_traffic(running.device), now)
        for mount in self._mounts.values():
            self._counter(mount.mount.name).take(mount.traffic, now)
        self._loop.call_later(SAMPLE_SECONDS, self._sample)

    def _counter(self, name: str) -> _Counter:
        return self._counters.setdefault(name, _Counter())

    def _status(self) -> list[Status]:
        now = self._loop.time()
        links = [_status_of(link, self._counter(name), now) for name, link in self._links.items()]
        mounts = [
            _mount_status_of(mount, self._counter(name), now)
            for name, mount in self._mounts.items()
        ]
        return [*links, *mounts]

    def _answer(self, method: str, path: str) -> Answer:
        """Returns the answer to a request on the control socket."""
        verb, _, name = path.removeprefix("/").partition("/")
        match method, verb:
            case "GET", "status" if not name:
                return Answer(200, to_json(self._status()) + "\n")
            case "GET", "metrics" if not name:
                return Answer(200, to_openmetrics(self._status()), OPENMETRICS)
            case "GET", "declarations" if not name:
                return Answer(200, f"{self._path}\n", "text/plain")
            case "POST", "up":
                return self._on_up(name)
            case "POST", "down":
                return self._on_down(name)
            case "POST", "end" if not name:
                self._loop.stop()
                return Answer(200, "", "text/plain")
        return Answer(404, "no such request\n", "text/plain")

    def _on_up(self, name: str) -> Answer:
        try:
            self._up({name} if name else None)
        except UsageError as error:
            return Answer(400, f"{error}\n", "text/plain")
        return Answer(200, to_json(self._status()) + "\n")

    def _on_down(self, name: str) -> Answer:
        running = [each for each in (*self._links, *self._mounts) if name in ("", each)]
        closed = self._closed_beside() if not name else self._closed_beside() & {record_of(name)}
        if name and not (running or closed):
            return Answer(404, f"no link or mount '{name}' is up\n", "text/plain")
        wanted = {*self._links, *self._mounts} if self._names is None else self._names
        self._names = wanted - {name}
        self._opened |= {name} if name else {link.name for link in self._config.link}
        wrong = self._stop(running)
        for path in closed:
            try:
                open_again(path, self._keeper)
            except CulvertError as error:
                wrong.append(str(error))
        if not name:
            try:
                self._keeper.release_all()  # of links whose records are lost, too
            except CulvertError as error:
                wrong.append(str(error))
        if not (self._links or self._mounts):
            self._loop.stop()
        return Answer(409 if wrong else 200, "".join(f"{line}\n" for line in wrong), "text/plain")

    def _closed_beside(self) -> set[Path]:
        """Returns the records of links that do not run, but have a closed kill switch."""
        return set(left_behind()) - {record_of(name) for name in self._links}

    def _serve_metrics(self, listening: socket.socket) -> None:
        pid, sock = metrics.start(listening, self._confinement)
        listening.close()
        self._metrics = pid, sock

        def on_question() -> None:
            try:
                if sock.recv(1):
                    sock.send(to_openmetrics(self._status()).encode())
                    return
            except OSError as error:
                _log.error("metrics_port: %s", error.strerror)
            self._loop.watch_reader(sock.fileno(), None)

        self._loop.watch_reader(sock.fileno(), on_question)


class _Counter:
    """Computes the rates of a link or mount from its byte counts at two moments."""

    def __init__(self) -> None:
        self._before: tuple[float, int, int] | None = None
        self.received_rate = self.sent_rate = 0.0

    def take(self, traffic: tuple[int, int], now: float) -> None:
        """Takes the bytes received and sent, and updates the rates; ``now`` is in seconds."""
        received, sent = traffic
        if self._before is not None:
            then, received_then, sent_then = self._before
            passed = max(now - then, 0.001)
            self.received_rate = max(0, received - received_then) / passed
            self.sent_rate = max(0, sent - sent_then) / passed
        self._before = now, received, sent


def _traffic(device: str) -> tuple[int, int]:
    """Returns the bytes received from and sent into the tunnel (proc(5), /proc/net/dev)."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0, 0
    for line in lines:
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            values = numbers.split()
            return int(values[0]), int(values[8])
    return 0, 0


def _status_of(running: RunningLink, counter: _Counter, now: float) -> LinkStatus:
    link, life = running.link, running.life
    network = running.network
    return LinkStatus(
        **_shared(link, life, counter, _traffic(running.device), running.round_trip, now),
        device=running.device,
        address=running.address,
        software=running.software,
        offload=running.offload,
        addresses=tuple(map(str, network.addresses)),
        routes=tuple(map(str, network.routes)),
        dropped={drop.value: running.drops[drop] for drop in Drop},
    )


def _mount_status_of(running: RunningMount, counter: _Counter, now: float) -> MountStatus:
    mount = running.mount
    return MountStatus(
        **_shared(mount, running.life, counter, running.traffic, running.round_trip, now),
        mountpoint=mount.mountpoint,
        source=declarations.source_of(mount),
    )


def _shared(
    access: ServerAccess,
    life: LinkLife,
    counter: _Counter,
    traffic: tuple[int, int],
    round_trip: float | None,
    now: float,
) -> dict[str, Any]:
    """Returns the fields of Status."""
    received, sent = traffic
    is_waiting = life.state is LinkState.BACKING_OFF
    return {
        "name": access.name,
        "host": access.host,
        "state": life.state.name.lower(),
        "since": round(now - life.since, 1),
        "received_bytes": received,
        "sent_bytes": sent,
        "received_rate": round(counter.received_rate, 1),
        "sent_rate": round(counter.sent_rate, 1),
        "round_trip": round_trip,
        "connects": life.connects,
        "reconnects": life.reconnects,
        "retry_in": max(0.0, round(life.due - now, 1)) if is_waiting else None,
        "last_error": life.last_error,
    }


def _count_up(what: str, running: Collection[RunningLink | RunningMount]) -> str:
    up = sum(each.life.state is LinkState.UP for each in running)
    return f"{up} of {len(running)} {what} up"


def _among(access: ServerAccess, names: Collection[str] | None) -> bool:
    return names is None or access.name in names


def _permitted_calls() -> bytes | None:
    """Returns the seccomp filter for processes that read from the network; None if unsupported."""
    try:
        return seccomp.program(merging=False)
    except seccomp.Unsupported as error:
        _log.warning("links are carried without a filter of system calls: %s", error)
        return None


def left_behind(earlier: bool = False) -> list[Path]:
    """Returns the records of links whose changes were not undone.

    With ``earlier`` records of an earlier boot count as well.
    """
    return list(_left(earlier))


def _left(earlier: bool) -> dict[Path, list[record.RecordedChange]]:
    paths = (path for path in record.paths(network_records()) if path.name.startswith("link-"))
    records = {path: record.load(path, earlier) for path in paths}
    return {path: changes for path, changes in records.items() if changes}


def name_of(path: Path) -> str:
    """Returns the name of the link from the path of its record."""
    return path.stem.removeprefix("link-")


def left_closed(earlier: bool = False) -> dict[Path, Rules]:
    """Returns the kill switches that were left behind, by the paths of their records."""
    return {
        path: each.change
        for path, changes in _left(earlier).items()
        for each in changes
        if isinstance(each.change, Rules) and each.change.is_kill_switch
    }


def open_again(path: Path, keeper: Keeper) -> None:
    """Undoes all changes of a record, the kill switch last. Raises CulvertError."""
    try:
        keeper.release(table_of(path.stem))
    finally:
        reconcile_apart(path, ())
