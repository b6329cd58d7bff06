"""Records what one owner has changed in the machine's network, in a file that survives a crash.

A change is recorded before it is made, together with the former state that undoing it needs. So
the process may die at any moment: every recorded change is undone, whether it was made or not. The
records of all owners are in one folder, whose lock is held during changes, so that each owner can
see which changes the others still need.

A reboot resets the kernel's settings. The file therefore names the boot's id; after a reboot, only
the recorded changes of files count.

A disk that is full or read-only must not prevent a kill switch from being closed, nor `down` from
opening it: a record that cannot be written goes to the runtime directory, which is in memory. As
long as it exists there, it replaces the one on the disk.
"""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...config.directories import runtime_directory
from .network import Change, NameServers, NetworkError, change_from_json

log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Before = Mapping[str, str]  # the former state; each kind of change chooses its own keys


@dataclass(frozen=True, slots=True)
class RecordedChange:
    """A change that we must undo."""

    change: Change
    before: Before


def in_memory(path: Path) -> Path:
    """Returns the path that is written instead when ``path`` cannot be written."""
    return runtime_directory() / "network" / path.name


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Waits for the folder's lock and holds it; creates the folder if it is missing.

    If the folder cannot be created, the folder in memory is locked. Yields the lock's descriptor.
    A program that inherits the descriptor holds the lock until it ends, even if this process is
    killed before. Raises NetworkError.
    """
    try:
        descriptor = _open_folder(folder)
    except OSError as error:
        try:
            descriptor = _open_folder(in_memory(folder / "any").parent)
        except OSError:
            raise NetworkError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def paths(folder: Path) -> list[Path]:
    """Returns the paths in ``folder`` of all owners' records, including those kept in memory."""
    names = {each.name for where in _folders(folder) for each in where.glob("*.json")}
    return [folder / name for name in sorted(names)]


def _folders(folder: Path) -> tuple[Path, Path]:
    return folder, in_memory(folder / "any").parent


def load(path: Path, earlier: bool = False) -> list[RecordedChange]:
    """Returns the recorded changes in the order of making; none if there is no file.

    Of a record of an earlier boot, only the name servers are returned, as they are in a file; with
    ``earlier``, all its changes. A damaged file is moved aside.
    """
    found = _read(path)
    if found is None:
        return []
    file, text = found
    try:
        boot, records = _parse(text)
    except (ValueError, RecursionError) as error:
        aside = file.with_suffix(".damaged")
        log.warning("%s is damaged (%s) and is to be %s", file, error, aside)
        with contextlib.suppress(OSError):  # it stays, until the next save overwrites it
            os.replace(file, aside)
        return []
    if earlier or boot == _boot_id():
        return records
    return [record for record in records if isinstance(record.change, NameServers)]


def _read(path: Path) -> tuple[Path, bytes] | None:
    """Returns the file that counts and its content, or None; logs a file that cannot be read."""
    for file in (in_memory(path), path):
        try:
            return file, file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s is not used: %s", file, error.strerror)
    return None


def others(path: Path) -> list[RecordedChange]:
    """Returns the changes of this boot in all other records of the folder. Raises OSError."""
    found: list[RecordedChange] = []
    for other in paths(path.parent):
        if other == path:
            continue
        # A damaged record is left to its owner.
        with contextlib.suppress(ValueError, RecursionError):
            if (read := _read(other)) is not None:
                boot, records = _parse(read[1])
                if boot == _boot_id():
                    found += records
    return found


def save(path: Path, records: Sequence[RecordedChange]) -> None:
    """Writes the file, in memory if ``path`` cannot be written; removes it if it would be empty.

    Raises OSError.
    """
    changes = [
        {"change": record.change.to_json(), "before": dict(record.before)} for record in records
    ]
    text = json.dumps({"boot": _boot_id(), "changes": changes}, indent=1).encode() + b"\n"
    spare = in_memory(path)
    try:
        if records:
            write_atomically(path, text, 0o600)
        else:
            _remove(path)
    except OSError as error:
        if not spare.exists():
            log.warning("%s: %s: the record is kept in %s", path, error.strerror, spare)
        spare.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(spare, text, 0o600)
        return
    _remove(spare)


def _remove(path: Path) -> None:
    for each in (path, temporary(path)):
        if each.exists():  # a read-only file system refuses to unlink even a missing file
            each.unlink()


def temporary(path: Path) -> Path:
    """Returns the path of a file's next version; a killed process may leave such a file."""
    return path.with_name(f".{path.name}.new")


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Writes a file so that a power cut leaves the old or the new version. Raises OSError."""
    new = temporary(path)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Writes the names in a folder to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _parse(text: bytes) -> tuple[str, list[RecordedChange]]:
    data = json.loads(text)  # its errors, and those of UTF-8, are ValueErrors
    if not isinstance(data, dict) or data.keys() != {"boot", "changes"}:
        raise ValueError("not a record of changes")
    boot, changes = data["boot"], data["changes"]
    if not isinstance(boot, str) or not isinstance(changes, list):
        raise ValueError("not a record of changes")
    return boot, [_parse_record(change) for change in changes]


def _parse_record(data: object) -> RecordedChange:
    if not isinstance(data, dict) or data.keys() != {"change", "before"}:
        raise ValueError("not a change and what was before")
    before = data["before"]
    if not isinstance(before, dict) or not all(isinstance(v, str) for v in before.values()):
        raise ValueError("what was before is not text")
    return RecordedChange(change_from_json(data["change"]), before)
