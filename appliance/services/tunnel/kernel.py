"""Makes the machine's network what a plan says, and what it was before.

``reconcile`` is the one verb. ``kinds.py`` knows how to find, make and undo each kind of change;
``record.py`` remembers which changes were ours. Undone is only what was made: what was true
already stays, and has no record.

Two links may want the same thing: one bridge, forwarding, the way around the tunnel to one
server. It is made by the first and undone by the last, as each finds it in the other's
record. Beyond the records, devices, routes and tables carry marks of ours (see marks.py), so
that nobody else's are removed, and ours are known again when a record is lost.

pyroute2 costs a small board seconds and 22 MiB: ``reconcile_apart`` lets a process pay that
which ends at once.
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

# What undoing meets when the thing is gone already, as is all of a device with the device.
_GONE: Final = {
    errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL,
}  # fmt: skip


def reconcile(state_path: Path, wanted: Sequence[Change]) -> None:
    """Make exactly ``wanted`` true, of all that the file's owner ever wanted.

    What the file ``state_path`` records and is wanted no more is undone first, in reverse order;
    then what is missing is made, in order. Whatever is so already is left alone, and calling
    this again does nothing. Without ``wanted`` everything is undone and the file removed.

    The path ends in .json; all owners' files lie in one folder, which is made if it is missing,
    and which outlives a reboot, so that /etc/resolv.conf is put back. Raises NetworkError: at
    the first change that cannot be made, with all before it made and recorded; for changes that
    cannot be undone, when everything else is done.
    """
    with _reconciliation(state_path) as reconciliation:
        reconciliation.run(wanted)


def pending(state_path: Path, wanted: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """What ``reconcile`` would undo and what it would make. Raises NetworkError."""
    with _reconciliation(state_path) as reconciliation:
        return reconciliation.pending(wanted)


@contextlib.contextmanager
def _reconciliation(state_path: Path) -> Iterator["_Reconciliation"]:
    """What compares a record with the kernel, alone in its folder. Raises NetworkError."""
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
    """``reconcile`` in a process of its own, which has ended when this returns or raises.

    It takes half a second, or ten on a small board, in which this thread waits.
    """
    # What ends the parent must not end the child half way, nor run the parent's handlers in it.
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
            with contextlib.suppress(ChildProcessError):  # whoever waits for all children has it
                os.waitpid(pid, 0)
    if not answer:
        raise NetworkError(f"{state_path}: the process that changes the network was killed")
    if text := answer[1:].decode():
        raise NetworkError(text)


def _reconcile_and_exit(state_path: Path, wanted: Sequence[Change], writer: int) -> None:
    """The child of ``reconcile_apart``: never returns; answers '.' and the error's text."""
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
    """The changes that ``state_path`` says are ours. Raises NetworkError."""
    try:
        return [each.change for each in record.load(state_path)]
    except OSError as error:
        raise NetworkError(f"{state_path}: {error.strerror}") from error


def recorded_device(state_path: Path) -> str | None:
    """The device that ``state_path`` says was made, if it is there still. Raises NetworkError."""
    names = [each.name for each in recorded(state_path) if isinstance(each, Device)]
    return next((name for name in names if name in device_names()), None)


def remove_unrecorded(folder: Path) -> list[str]:
    """Remove what carries our marks and is in no record of ``folder``; returns what that was.

    These are tables of links, devices that no process has open, and the ways around tunnels.
    Raises NetworkError.
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
    """The first tunN or tapN that no device has."""
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
        """Undo what is not among ``keys``; return a line for each that could not be undone."""
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
            except OSError as error:  # what is undone twice does no harm
                unwritten = f"{self._path}: {error.strerror}"
        if not self._records:
            self._save()  # and so remove what a killed process may have left
        elif unwritten:
            failures.append(unwritten)
        return failures

    def pending(self, wanted: Sequence[Change]) -> tuple[list[Change], list[Change]]:
        """What ``run`` would undo and make."""
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
            # Rather a kill switch that nobody remembers than none; its name says that it is ours.
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
