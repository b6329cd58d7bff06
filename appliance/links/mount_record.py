"""Records the program and the place of each mount, for the supervisor after one that was killed.

A mount's program ends by itself when its supervisor has gone, once it has written what it owes the
server. One that was killed as well leaves a mount without a program: "Transport endpoint is not
connected". The records are in the runtime directory, as no mount survives a reboot.
"""

import contextlib
import json
import logging
import os
import select
import signal
from pathlib import Path
from typing import Final, NamedTuple

from ..config.directories import runtime_directory
from ..errors import UsageError
from ..mount.mounting import unmount_left
from ..services.tunnel.record import write_atomically

_log = logging.getLogger(__name__)

# Our own choice
END_SECONDS: Final = 10.0  # in which a program must have written what it owes the server


class MountRecord(NamedTuple):
    """What there is of one mount."""

    process: int
    mountpoint: str  # without symbolic links
    source: str  # as mountinfo shows it


def save(name: str, record: MountRecord) -> None:
    """Writes the record of the mount ``name``; a failure is only logged."""
    path = _path(name)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record._asdict()).encode(), 0o600)
    except OSError as error:
        _log.warning("%s: %s", path, error.strerror)


def names_left() -> list[str]:
    """Returns the names of the mounts that have a record."""
    return sorted(path.stem for path in _path("any").parent.glob("*.json"))


def end_left(name: str) -> None:
    """Ends the program of a mount, if it has a record, and unmounts; raises UsageError.

    It may take END_SECONDS.
    """
    record = _load(name)
    if record is not None:
        _end(record)
        unmount_left(record.mountpoint, record.source)
    with contextlib.suppress(FileNotFoundError):
        _path(name).unlink()


def _path(name: str) -> Path:
    return runtime_directory() / "mounts" / f"{name}.json"


def _load(name: str) -> MountRecord | None:
    path = _path(name)
    try:
        data = json.loads(path.read_bytes())
        record = MountRecord(int(data["process"]), str(data["mountpoint"]), str(data["source"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is not used: %s", path, error)
        return None
    return record


def _end(record: MountRecord) -> None:
    """Ends the program, if it still runs."""
    try:
        descriptor = os.pidfd_open(record.process)
    except OSError:
        return
    try:
        if not _is_program(record):
            return
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            if ended.poll(END_SECONDS * 1000):
                return
        raise UsageError(f"{record.mountpoint}: its process {record.process} does not end")
    finally:
        os.close(descriptor)


def _is_program(record: MountRecord) -> bool:
    """Whether the process is the mount's, and no other one that got its number."""
    try:
        words = Path(f"/proc/{record.process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return {b"--supervised", os.fsencode(record.mountpoint)} <= set(words)
