"""Changes the machine's network as a plan says, and undoes the changes.

``reconcile`` does both. ``kinds.py`` knows how to find, make and undo each kind of change;
``record.py`` remembers which changes were ours. Only changes that we made are undone: what was
there before stays, and has no record.

Two links may want the same change: one bridge, forwarding, one route around the tunnel to a
server. The first link makes it and the last one undoes it, since each reads the other's record.
Devices, routes and tables also carry our marks (see marks.py), so that we never remove those of
other programs, and recognize our own when a record is lost.

pyroute2 costs a small board seconds and 22 MiB: ``reconcile_apart`` uses it in a child process
that ends at once.
"""

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ...config.network import Mode
from . import record
from .kinds import Found, kinds_of_changes
from .marks import DEVICE_GROUP, MARK, PIN_TABLE
from .netlink import Netlink, device_names
from .network import Bridge, Change, Device, NetworkError, Rules, table_of
from .programs import Programs
from .record import RecordedChange
from .resolver import Resolver
from .rules import remove_tables

_log = logging.getLogger(__name__)

# Errors of undoing a change that is gone already: all of a device goes with the device.
_GONE: Final = {
    errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL,
}  # fmt: skip


def reconcile(state_path: Path, wanted: Sequence[Change]) -> None:
    """Makes the changes ``wanted``, and undoes all other changes of the same owner.

    First, recorded changes that are not in ``wanted`` are undone, in reverse order; then missing
    changes are made, in order. Changes that are already in effect are left alone, so a second call
    does nothing. If ``wanted`` is empty, everything is undone and the file removed.

    ``state_path`` is the owner's record and ends in .json. The records of all owners are in one
    folder, which is created if it is missing, and which must survive a reboot, so that
    /etc/resolv.conf is put back. Raises NetworkError at the first change that cannot be made, when
    all changes before it are made and recorded; and for changes that cannot be undone, when
    everything else is done.
    """
    with _reconciliation(state_path) as reconciliation:
        reconciliation.run(wanted)


def pending(state_path: Path, wanted: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Returns the changes that ``reconcile`` would undo, and those that it would make.

    Raises NetworkError.
    """
    with _reconciliation(state_path) as reconciliation:
        return reconciliation.pending(wanted)


@contextlib.contextmanager
def _reconciliation(state_path: Path) -> Iterator["_Reconciliation"]:
    """Yields a _Reconciliation, while the folder's lock is held. Raises NetworkError."""
    with record.locked(state_path.parent) as lock:
        try:
            netlink = Netlink()
            try:
                yield _Reconciliation(state_path, netlink, Programs(lock))
            finally:
                netlink.close()
        except OSError as error:
            raise NetworkError(f"{state_path}: {error.strerror or error}") from error


def reconcile_apart(state_path: Path, wanted: Sequence[Change]) -> None:
    """Calls ``reconcile`` in a child process, and waits for its end.

    It takes half a second, or ten on a small board. Raises NetworkError.
    """
    # A signal must not end the child half way, nor run the parent's handlers in the child.
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _reconcile_and_exit(state_path, wanted, writer)
        except OSError as error:
            raise NetworkError(f"{state_path}: cannot start a process: {error.strerror}") from error
        finally:
            os.close(writer)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            answer = pipe.read()
        finally:
            with contextlib.suppress(ChildProcessError):  # it was waited for elsewhere
                os.waitpid(pid, 0)
    if not answer:
        raise NetworkError(f"{state_path}: the process that changes the network was killed")
    if text := answer[1:].decode():
        raise NetworkError(text)


def _reconcile_and_exit(state_path: Path, wanted: Sequence[Change], writer: int) -> None:
    """Runs the child of ``reconcile_apart``: writes '.' and the error's text; never returns."""
    answer = b""
    try:
        reconcile(state_path, wanted)
        answer = b"."
    except NetworkError as error:
        answer = f".{error}".encode()
    except Exception as error:  # the root of this process, whose parent reports it
        answer = f".{state_path}: {error!r}".encode()
    finally:
        os.write(writer, answer)
        os._exit(0)


def recorded(state_path: Path) -> list[Change]:
    """Returns the changes that the record ``state_path`` names. Raises NetworkError."""
    try:
        return [each.change for each in record.load(state_path)]
    except OSError as error:
        raise NetworkError(f"{state_path}: {error.strerror}") from error


def recorded_device(state_path: Path) -> str | None:
    """Returns the recorded device, or None if it does not exist any more. Raises NetworkError."""
    names = [each.name for each in recorded(state_path) if isinstance(each, Device)]
    return next((name for name in names if name in device_names()), None)


def remove_unrecorded(folder: Path) -> list[str]:
    """Removes everything that carries our marks and is in no record of ``folder``.

    These are the tables of links, devices that no process has open, and the routes around tunnels.
    Returns the names of what was removed. Raises NetworkError.
    """
    with record.locked(folder) as lock:
        removed = remove_tables(table_of("link-"), Programs(lock))
        known = {
            each.change.name
            for path in record.paths(folder)
            for each in record.load(path)
            if isinstance(each.change, Device | Bridge)
        }
        try:
            netlink = Netlink()
            try:
                return removed + netlink.remove_marked(DEVICE_GROUP, known, MARK, PIN_TABLE)
            finally:
                netlink.close()
        except OSError as error:
            raise NetworkError(f"what links have left: {error.strerror or error}") from error


def free_device(mode: Mode) -> str:
    """Returns the first name tunN or tapN that no device has."""
    kind = "tun" if mode == "point-to-point" else "tap"
    taken = device_names()
    number = 0
    while f"{kind}{number}" in taken:
        number += 1
    return f"{kind}{number}"


class _Reconciliation:
    """One run of ``reconcile``: the records of this owner, and those of the others."""

    def __init__(self, path: Path, netlink: Netlink, programs: Programs) -> None:
        self._path = path
        self._records = record.load(path)
        self._others = record.others(path)
        everyones = [*(one.change for one in self._records), *(o.change for o in self._others)]
        resolver = Resolver(path.parent, programs)
        theirs = [one.change for one in self._others]
        self._kinds = kinds_of_changes(netlink, programs, resolver, everyones, theirs)

    def run(self, wanted: Sequence[Change]) -> None:
        failures = self._undo_all_but({change.key for change in wanted})
        for change in wanted:
            try:
                self._make(change)
            except (OSError, NetworkError) as error:
                raise NetworkError("; ".join([*failures, self._line(change, error)])) from error
        if failures:
            raise NetworkError("; ".join(failures))

    def _undo_all_but(self, keys: set[tuple[str, ...]]) -> list[str]:
        """Undoes the changes whose key is not in ``keys``; returns a line for each failure."""
        failures = []
        unwritten = ""
        needed = {other.change.key for other in self._others}
        for one in reversed(self._records[:]):
            key = one.change.key
            if key in keys:
                continue
            if key not in needed:
                try:
                    self._kinds[type(one.change)].undo(one.change, one.before)
                except (OSError, NetworkError) as error:
                    if not (isinstance(error, OSError) and error.errno in _GONE):
                        failures.append(f"not undone: {self._line(one.change, error)}")
                        continue
            self._records.remove(one)
            try:
                self._save()
            except OSError as error:  # undoing a change twice does no harm
                unwritten = f"{self._path}: {error.strerror}"
        if not self._records:
            self._save()  # also removes temporary files of a killed process
        elif unwritten:
            failures.append(unwritten)
        return failures

    def pending(self, wanted: Sequence[Change]) -> tuple[list[Change], list[Change]]:
        """Returns the changes that ``run`` would undo, and those that it would make."""
        keys = {change.key for change in wanted}
        undone = [one.change for one in reversed(self._records) if one.change.key not in keys]
        made = [
            change for change in wanted if self._kinds[type(change)].find(change) is Found.MISSING
        ]
        return undone, made

    def _make(self, change: Change) -> None:
        kind = self._kinds[type(change)]
        found = kind.find(change)
        own = next((one for one in self._records if one.change.key == change.key), None)
        other = next((one for one in self._others if one.change.key == change.key), None)
        if found is Found.THEIRS and own is None and other is None:
            return
        known = own or other
        before = known.before if known else kind.before(change)
        try:
            self._record(own, RecordedChange(change, before))
        except OSError:
            if not isinstance(change, Rules):
                raise
            # A kill switch without a record is better than none; its name says that it is ours.
            _log.error("%s is made without a record", change.describe())
        if found is Found.MISSING or (own is not None and own.change != change):
            kind.make(change)

    def _record(self, old: RecordedChange | None, new: RecordedChange) -> None:
        if new == old:
            return
        if old is None:
            self._records.append(new)
        else:
            self._records[self._records.index(old)] = new
        self._save()

    def _save(self) -> None:
        record.save(self._path, self._records)

    def _line(self, change: Change, error: OSError | NetworkError) -> str:
        if isinstance(error, OSError):
            reason = self._kinds[type(change)].reason(change, error)
        else:
            reason = str(error)
        return f"{change.describe()}: {reason}"
