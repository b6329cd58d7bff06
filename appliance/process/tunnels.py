"""Whose tunnel devices are: those that sshd.toml declares, and who uses one now.

The listener makes the declared devices when the server starts and undoes them when it
stops; in between they stay, whoever connects and goes. A client whose connection died
unnoticed must not find its own device busy: whoever uses a device holds a lock file that
says who it is, and who comes with the same key ends the one before.
"""

import fcntl
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..config.directories import network_records, runtime_directory
from ..config.server import Tunnel
from ..crypto.key_files import load_public_line
from ..crypto.keys import PublicKey
from ..errors import CulvertError, UsageError
from ..services.tunnel.device import name_of
from ..services.tunnel.kernel import reconcile_apart
from ..services.tunnel.network import plan
from ..wire.tun import ANY_UNIT, ETHERNET

_log = logging.getLogger(__name__)

# Our own choices
TAKEOVER_SECONDS: Final = 3.0  # that the one before may take to end
TAKEOVER_POLL: Final = 0.02  # seconds


def set_up(tunnels: Sequence[Tunnel]) -> None:
    """Make the declared devices, and undo what an earlier declaration left; UsageError."""
    try:
        wanted = {_record(tunnel): tunnel for tunnel in tunnels}
        for path in network_records().glob("sshd-*.json"):
            if path not in wanted:
                reconcile_apart(path, ())
        for path, tunnel in wanted.items():
            changes = plan(path.stem, tunnel, tunnel.device)
            reconcile_apart(path, changes.at_start + changes.while_up)
    except CulvertError as error:
        raise UsageError(str(error)) from error


def take_down(tunnels: Sequence[Tunnel]) -> None:
    """Undo what ``set_up`` did."""
    for tunnel in tunnels:
        try:
            reconcile_apart(_record(tunnel), ())
        except CulvertError as error:
            _log.error("%s", error)


def _record(tunnel: Tunnel) -> Path:
    return network_records() / f"sshd-{tunnel.device}.json"


def check_keys(tunnels: Sequence[Tunnel]) -> None:
    """Raises UsageError for a key that is none."""
    for tunnel in tunnels:
        if tunnel.key and not tunnel.key.startswith("SHA256:"):
            try:
                load_public_line(tunnel.key)
            except CulvertError as error:
                raise UsageError(f"tunnel '{tunnel.device}': key: {error}") from error


def is_for(tunnel: Tunnel, user: str, key: PublicKey | None) -> bool:
    """Whether this client may have the declared tunnel."""
    if tunnel.user and tunnel.user != user:
        return False
    if not tunnel.key:
        return True
    if key is None:
        return False
    if tunnel.key.startswith("SHA256:"):
        return tunnel.key == key.fingerprint()
    return load_public_line(tunnel.key)[0].blob == key.blob


def candidates(
    tunnels: Sequence[Tunnel], mode: int, unit: int, user: str, key: PublicKey | None
) -> list[Tunnel]:
    """The declared tunnels that a client may mean, those made for its key first."""
    kind = "ethernet" if mode == ETHERNET else "point-to-point"
    fitting = [
        tunnel
        for tunnel in tunnels
        if tunnel.mode == kind
        and unit in (ANY_UNIT, int(tunnel.device[3:]))
        and is_for(tunnel, user, key)
    ]
    return sorted(fitting, key=lambda tunnel: not tunnel.key)


def is_declared(tunnels: Sequence[Tunnel], mode: int, unit: int) -> bool:
    """Whether exactly this device is declared, for whomever."""
    return unit != ANY_UNIT and name_of(mode, unit) in {tunnel.device for tunnel in tunnels}


class Claim:
    """Who uses a device, in a file that stays locked while they do."""

    def __init__(self, device: str) -> None:
        """Raises OSError where no such file can be kept."""
        directory = runtime_directory() / "tunnels"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / device
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, fingerprint: str) -> None:
        """The device is ours: be found under ``fingerprint``."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another connection of ours has the lock and says the same
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} {fingerprint}".encode(), 0)

    def end_predecessor(self, fingerprint: str) -> bool:
        """End the connection with the same key that has the device; whether there was one."""
        if self._is_free():
            return False
        words = os.pread(self._file, 1024, 0).decode("ascii", "replace").split()
        if len(words) != 2 or words[1] != fingerprint or words[0] == str(os.getpid()):
            return False
        _log.info("%s is taken over from an earlier connection of the same key", self._path.name)
        os.kill(int(words[0]), signal.SIGTERM)
        deadline = time.monotonic() + TAKEOVER_SECONDS
        while not self._is_free() and time.monotonic() < deadline:
            time.sleep(TAKEOVER_POLL)
        return True

    def _is_free(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

    def drop(self) -> None:
        """Nobody is to find us here."""
        os.close(self._file)
