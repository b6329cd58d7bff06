"""Whose tunnel devices are: those that sshd.toml declares, and who uses one now.

A declared device belongs to the user that it names, or to the key, or to both together; if it
names neither, to root's logins. The listener makes the declared devices when the server starts and
undoes them when it stops; in between they stay, whoever connects and goes. A client whose
connection died unnoticed must not find its own device busy: whoever uses a device holds a lock file
that says who it is. Who comes with the same key has it ask its client for a sign of life, and
takes the device only if none comes. The listener holds one for each device that it declares, so
that no other server undoes it.

The locks are those of fcntl(2): a fork does not inherit them, they go with their process,
and the kernel knows whose they are, so that a number left in a file ends nobody. They go,
too, when their process closes any descriptor of the file: it must not open one twice.
"""

import fcntl
import logging
import os
import pwd
import signal
import struct
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from ..config.directories import network_records, runtime_directory
from ..config.server import Tunnel
from ..crypto.key_files import load_public_line
from ..crypto.keys import PublicKey
from ..errors import CulvertError, UsageError
from ..services.tunnel import record
from ..services.tunnel.device import name_of, unit_of
from ..services.tunnel.kernel import reconcile_apart, recorded
from ..services.tunnel.netlink import ipv6_is_off
from ..services.tunnel.network import Plan, plan
from ..services.tunnel.programs import Programs
from ..services.tunnel.rules import holds, tables
from ..services.tunnel.rules_watch import RulesWatch
from ..wire.tun import ANY_UNIT, MODES

_log = logging.getLogger(__name__)

# fcntl(2): struct flock, with offsets of 64 bits, as Python is compiled
_FLOCK: Final = struct.Struct("@hhqqi0q")

# Our own choices
RETRY_SECONDS: Final = 15.0  # between attempts to make a device
QUESTION: Final = signal.SIGUSR1  # to the monitor that has a device: does your client answer?
ANSWER_SECONDS: Final = 3.0  # that a client may take for it; a satellite takes one
END_SECONDS: Final = 3.0  # that a connection may take to end
END_POLL: Final = 0.02  # seconds
_NO_KEY: Final = "-"  # in place of a fingerprint


class Lock:
    """A file in the runtime directory that one process at a time can hold."""

    def __init__(self, name: str) -> None:
        """Raises OSError where no such file can be kept."""
        directory = runtime_directory() / "tunnels"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Hold it until ``close``; False when another process does."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def holder(self) -> int | None:
        """The other process that holds it, 0 for one that cannot be seen from here."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(pid)

    def close(self) -> None:
        """Give it up, if it is ours; a fork of who holds it only closes its descriptor."""
        os.close(self._file)


class Declared:
    """The devices of a server that runs: made, kept so, kept from other servers, and undone.

    No mistake here keeps the server from serving: a device that cannot be made is tried again.
    """

    def __init__(self, tunnels: Sequence[Tunnel]) -> None:
        self._tunnels = {tunnel.device: tunnel for tunnel in tunnels}
        self._locks: dict[str, Lock] = {}
        self._missing: dict[str, str] = {}  # devices that could not be made, and why
        self._retry_at = 0.0
        self._rules: RulesWatch | None = None

    def set_up(self) -> None:
        """Make them, and undo what a server left that does not run any more."""
        if not self._tunnels:
            return
        try:
            self._rules = RulesWatch()
        except OSError as error:
            _log.error("nobody tells when rules are removed: %s", error.strerror)
        for path in record.paths(network_records()):
            if path.name.startswith("sshd-"):
                try:
                    _undo_abandoned(path, self._tunnels)
                except (CulvertError, OSError) as error:
                    _log.error("%s is left as it is: %s", path, _reason(error))
        for device in self._tunnels:
            self._make(device)
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _make(self, device: str) -> None:
        try:
            if device not in self._locks:
                lock = _server_lock(device)
                if not lock.take():
                    lock.close()
                    raise UsageError("it is declared by another server that runs")
                self._locks[device] = lock
            changes = _plan(self._tunnels[device])
            reconcile_apart(_record(device), changes.at_start + changes.while_up)
        except (CulvertError, OSError) as error:
            why = _reason(error)
            if self._missing.get(device) != why:
                _log.error("tunnel %s cannot be used, and is tried again: %s", device, why)
            self._missing[device] = why
        else:
            if self._missing.pop(device, None) is not None:
                _log.info("tunnel %s can be used now", device)

    @property
    def patience(self) -> float | None:
        """Seconds until ``keep`` has something to do by itself; None for never."""
        return max(0.0, self._retry_at - time.monotonic()) if self._missing else None

    def fileno(self) -> int:
        """What can be read when ``keep`` has something to do; -1 for nothing."""
        return -1 if self._rules is None else self._rules.fileno()

    def keep(self) -> None:
        """Make again what others have taken away, and what could not be made before."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        gone = self._rules.take() if self._rules is not None else set()
        for device in self._tunnels:
            if device in self._missing:
                self._make(device)
            elif device in self._locks and not _is_whole(device, gone):
                _log.warning("tunnel %s: somebody changed its rules", device)
                self._make(device)

    def take_down(self) -> None:
        """End the connections that use them, whose clients then find the next server; undo."""
        self._end_connections()
        for device in self._locks:
            try:
                reconcile_apart(_record(device), ())
            except CulvertError as error:
                _log.error("%s", error)
        self.close()

    def _end_connections(self) -> None:
        claims = []
        for device in self._locks:
            try:
                claims.append(Claim(device))
            except OSError as error:
                _log.error("%s: %s", error.filename, error.strerror)
        ending = [claim for claim in claims if claim.end_holder("the server stops")]
        for claim in ending:
            claim.wait_until_free()
        for claim in claims:
            claim.close()

    def close(self) -> None:
        """Let other servers have them."""
        while self._locks:
            self._locks.popitem()[1].close()
        if self._rules is not None:
            self._rules.close()
            self._rules = None


def _plan(tunnel: Tunnel) -> Plan:
    handed_out = [each.ip for each in tunnel.client.addresses]
    owner = _record(tunnel.device).stem
    has_ipv6 = not ipv6_is_off()
    return plan(owner, tunnel, tunnel.device, handed_out=handed_out, has_ipv6=has_ipv6)


def _is_whole(device: str, gone: set[str] | None) -> bool:
    """Whether the device's tables are as they should be, of those in ``gone``, or of all."""
    try:
        return all(
            holds(each, Programs())
            for each in tables(recorded(_record(device)))
            if gone is None or each.table in gone
        )
    except CulvertError as error:
        _log.error("%s", error)
        return False


def _reason(error: CulvertError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _undo_abandoned(path: Path, declared: Collection[str]) -> None:
    device = path.stem.removeprefix("sshd-")
    if device in declared:
        return
    lock = _server_lock(device)
    try:
        if lock.take():
            reconcile_apart(path, ())
    finally:
        lock.close()


def _server_lock(device: str) -> Lock:
    return Lock(f"{device}.server")


def _record(device: str) -> Path:
    return network_records() / f"sshd-{device}.json"


def check_keys(tunnels: Sequence[Tunnel]) -> None:
    """Raises UsageError for a key that is none."""
    for tunnel in tunnels:
        if tunnel.key and not tunnel.key.startswith("SHA256:"):
            try:
                load_public_line(tunnel.key)
            except CulvertError as error:
                raise UsageError(f"tunnel '{tunnel.device}': key: {error}") from error


def is_for(tunnel: Tunnel, user: pwd.struct_passwd, key: PublicKey | None) -> bool:
    """Whether this client may have the declared tunnel.

    One that names neither a user nor a key is root's: it leads into the networks of two sites.
    """
    if tunnel.user and tunnel.user != user.pw_name:
        return False
    if not tunnel.user and not tunnel.key and user.pw_uid:
        return False
    if not tunnel.key:
        return True
    if key is None:
        return False
    if tunnel.key.startswith("SHA256:"):
        return tunnel.key == key.fingerprint()
    return load_public_line(tunnel.key)[0].blob == key.blob


def candidates(
    tunnels: Sequence[Tunnel], mode: int, unit: int, user: pwd.struct_passwd, key: PublicKey | None
) -> list[Tunnel]:
    """The declared tunnels that a client may mean, those made for its key first."""
    fitting = [
        tunnel
        for tunnel in tunnels
        if MODES[tunnel.mode] == mode
        and unit in (ANY_UNIT, unit_of(tunnel.device))
        and is_for(tunnel, user, key)
    ]
    return sorted(fitting, key=lambda tunnel: not tunnel.key)


def is_declared(tunnels: Sequence[Tunnel], mode: int, unit: int) -> bool:
    """Whether exactly this device is declared, for whomever."""
    return unit != ANY_UNIT and name_of(mode, unit) in {tunnel.device for tunnel in tunnels}


class Claim(Lock):
    """Who uses a device: whose lock it is, and in the file the key they came with, and how often
    their client has answered when somebody else wanted the device.
    """

    def __init__(self, device: str) -> None:
        """Raises OSError where no such file can be kept."""
        super().__init__(device)
        self._device = device
        self._fingerprint = _NO_KEY
        self._answers = 0
        self._is_ours = False

    def register(self, key: PublicKey | None) -> None:
        """The device is ours: be found, and be ended by who comes with the same key."""
        self.wait_until_free()  # who had the device may be about to give this up, too
        self._is_ours = self.take()
        if self._is_ours:
            self._fingerprint = key.fingerprint() if key is not None else _NO_KEY
            os.ftruncate(self._file, 0)
            self._write()

    def tell_client_answers(self) -> None:
        """Our client has just answered; who wants the device, if it is ours, may know."""
        if self._is_ours:
            self._answers += 1
            self._write()

    def _write(self) -> None:
        os.pwrite(self._file, f"{os.getpid()} {self._fingerprint} {self._answers}".encode(), 0)

    def _read(self) -> list[str]:
        """The holder's process id, its fingerprint, and how often its client has answered."""
        return os.pread(self._file, 1024, 0).decode("ascii", "replace").split()

    def end_predecessor(self, key: PublicKey) -> bool:
        """Whether the other connection with the same key that has the device has ended, because
        its client does not answer; False if there is none. Raises UsageError if it answers.
        """
        before = self._read()
        if not self._send_holder(QUESTION, key.fingerprint()):
            return False
        deadline = time.monotonic() + ANSWER_SECONDS + END_SECONDS
        while str(self.holder()) == before[0] and time.monotonic() < deadline:
            if self._read() != before:
                raise UsageError(
                    f"{self._device} is in use by another connection with this key, "
                    "and its client is alive"
                )
            time.sleep(END_POLL)
        self.end_holder("its client has come back", before)
        self.wait_until_free()
        return True

    def end_holder(self, why: str, known: Sequence[str] = ()) -> bool:
        """Have the other connection that has the device end; only the ``known`` one, if given."""
        if known and self._read() != known:
            return False
        if not self._send_holder(signal.SIGTERM):
            return False
        _log.info("the connection that uses %s is ended: %s", self._device, why)
        return True

    def _send_holder(self, number: int, fingerprint: str = "") -> bool:
        """Send a signal to the other connection that has the device, if it came with this key."""
        pid = self.holder()
        words = self._read()
        if len(words) != 3 or words[0] != str(pid) or fingerprint not in ("", words[1]):
            return False
        try:
            process = os.pidfd_open(int(words[0]))
        except OSError:  # it has ended
            return False
        try:
            if self.holder() != pid:  # it has, and its number may be somebody else's
                return False
            signal.pidfd_send_signal(process, number)
        except OSError:
            return False
        finally:
            os.close(process)
        return True

    def wait_until_free(self) -> None:
        """Wait for the other connection to end, but not for ever."""
        deadline = time.monotonic() + END_SECONDS
        while self.holder() is not None and time.monotonic() < deadline:
            time.sleep(END_POLL)
