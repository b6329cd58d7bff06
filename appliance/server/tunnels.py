"""The tunnel devices that sshd.toml declares, and locks that tell which connection has a device.

A declared device is for the user that it names, or for the key, or for both together; if it names
neither, for root's logins. The listener makes the declared devices when the server starts, and
removes them when it stops. In between they stay, even if no client uses them. The listener holds a
lock file for each declared device, so that no other server removes it.

A client whose connection died unnoticed must not find its own device busy. So the monitor of a
connection that has a device holds another lock file, which names the monitor and the client's key.
If a new connection comes with the same key, its monitor asks the old monitor whether the old client
is alive, and takes the device only if that client does not answer.

The locks are those of fcntl(2). A fork does not inherit them, they end with their process, and the
kernel knows which process holds one, so that a process id left in a file ends no wrong process.
They also end when their process closes any descriptor of the file, which must not be opened twice.
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
ANSWER_SECONDS: Final = 3.0  # that a client may take to answer; a satellite link takes one
END_SECONDS: Final = 3.0  # that a connection may take to end
END_POLL: Final = 0.02  # seconds
_NO_KEY: Final = "-"  # in place of a fingerprint


class Lock:
    """A file in the runtime directory that one process at a time can hold."""

    def __init__(self, name: str) -> None:
        """Opens or makes the file; raises OSError where that is not possible."""
        directory = runtime_directory() / "tunnels"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Takes the lock until ``close``; returns False if another process holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def holder(self) -> int | None:
        """The id of another process that holds the lock, 0 if it is not visible; None if none."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(pid)

    def close(self) -> None:
        """Releases the lock if it is ours; in a fork of its holder, only closes the descriptor."""
        os.close(self._file)


class Declared:
    """The declared devices of a running server, which it makes, locks, repairs and removes.

    No mistake here keeps the server from serving: a device that cannot be made is tried again.
    """

    def __init__(self, tunnels: Sequence[Tunnel]) -> None:
        self._tunnels = {tunnel.device: tunnel for tunnel in tunnels}
        self._locks: dict[str, Lock] = {}
        self._missing: dict[str, str] = {}  # devices that could not be made, and why
        self._retry_at = 0.0
        self._rules: RulesWatch | None = None

    def set_up(self) -> None:
        """Makes the devices, and removes those of a server that does not run any more."""
        if not self._tunnels:
            return
        try:
            self._rules = RulesWatch()
        except OSError as error:
            _log.error("this server cannot notice when rules are removed: %s", error.strerror)
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
        """Seconds until ``keep`` is due for a missing device; None if none is missing."""
        return max(0.0, self._retry_at - time.monotonic()) if self._missing else None

    def fileno(self) -> int:
        """The descriptor that is readable when ``keep`` is due; -1 if there is none."""
        return -1 if self._rules is None else self._rules.fileno()

    def keep(self) -> None:
        """Repairs devices whose rules others have removed, and makes those that are missing."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        gone = self._rules.take() if self._rules is not None else set()
        for device in self._tunnels:
            if device in self._missing:
                self._make(device)
            elif device in self._locks and not _is_whole(device, gone):
                _log.warning("tunnel %s: somebody changed its rules", device)
                self._make(device)

    def take_down(self) -> None:
        """Ends the connections that use the devices, and removes the devices.

        The clients of these connections then connect to the next server.
        """
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
        """Releases the locks, so that other servers can have the devices."""
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
    """Whether the device's tables are as recorded: those in ``gone``, or all if it is None."""
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
    """Raises UsageError for a key that cannot be read."""
    for tunnel in tunnels:
        if tunnel.key and not tunnel.key.startswith("SHA256:"):
            try:
                load_public_line(tunnel.key)
            except CulvertError as error:
                raise UsageError(f"tunnel '{tunnel.device}': key: {error}") from error


def is_for(tunnel: Tunnel, user: pwd.struct_passwd, key: PublicKey | None) -> bool:
    """Whether this client may have the declared tunnel.

    A tunnel that names neither a user nor a key is for root: it leads into the networks of two
    sites.
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
    """The declared tunnels that a client may have, those for its key first."""
    fitting = [
        tunnel
        for tunnel in tunnels
        if MODES[tunnel.mode] == mode
        and unit in (ANY_UNIT, unit_of(tunnel.device))
        and is_for(tunnel, user, key)
    ]
    return sorted(fitting, key=lambda tunnel: not tunnel.key)


def is_declared(tunnels: Sequence[Tunnel], mode: int, unit: int) -> bool:
    """Whether exactly this device is declared, for any user or key."""
    return unit != ANY_UNIT and name_of(mode, unit) in {tunnel.device for tunnel in tunnels}


class Claim(Lock):
    """The lock of the monitor whose connection has a device.

    The file holds the monitor's process id, the fingerprint of the client's key, and how often the
    client has answered because another connection wanted the device.
    """

    def __init__(self, device: str) -> None:
        """Opens or makes the file; raises OSError where that is not possible."""
        super().__init__(device)
        self._device = device
        self._fingerprint = _NO_KEY
        self._answers = 0
        self._is_ours = False

    def register(self, key: PublicKey | None) -> None:
        """Takes the lock and writes the file, for later connections with the same key."""
        self.wait_until_free()  # the connection that had the device may be about to release this
        self._is_ours = self.take()
        if self._is_ours:
            self._fingerprint = key.fingerprint() if key is not None else _NO_KEY
            os.ftruncate(self._file, 0)
            self._write()

    def tell_client_answers(self) -> None:
        """Counts an answer of our client in the file, for the connection that wants the device."""
        if self._is_ours:
            self._answers += 1
            self._write()

    def _write(self) -> None:
        os.pwrite(self._file, f"{os.getpid()} {self._fingerprint} {self._answers}".encode(), 0)

    def _read(self) -> list[str]:
        """The holder's process id, its fingerprint, and how often its client has answered."""
        return os.pread(self._file, 1024, 0).decode("ascii", "replace").split()

    def end_predecessor(self, key: PublicKey) -> bool:
        """Ends the other connection that has the device, if its client does not answer.

        Returns False if there is none with the same key. Raises UsageError if the client answers.
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
        """Ends the other connection that has the device; returns whether it was told to end.

        With ``known``, the words of the file as read before, only if they are still the same.
        """
        if known and self._read() != known:
            return False
        if not self._send_holder(signal.SIGTERM):
            return False
        _log.info("the connection that uses %s is ended: %s", self._device, why)
        return True

    def _send_holder(self, number: int, fingerprint: str = "") -> bool:
        """Sends a signal to the monitor of the other connection that has the device.

        With ``fingerprint``, only if it has this key. Returns whether the signal was sent.
        """
        pid = self.holder()
        words = self._read()
        if len(words) != 3 or words[0] != str(pid) or fingerprint not in ("", words[1]):
            return False
        try:
            process = os.pidfd_open(int(words[0]))
        except OSError:  # it has ended
            return False
        try:
            if self.holder() != pid:  # it has ended, and its id may be another process's
                return False
            signal.pidfd_send_signal(process, number)
        except OSError:
            return False
        finally:
            os.close(process)
        return True

    def wait_until_free(self) -> None:
        """Waits for the other connection to end, but at most END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        while self.holder() is not None and time.monotonic() < deadline:
            time.sleep(END_POLL)
