"""What one owner has changed in the machine's network, in a file that outlives a crash.

A change is written down before it is made, together with what undoing it needs, so that a
process may die at any moment: what the file names is undone, whether it was made or not. All
owners have their files in one folder, whose lock is held while anything is changed; so each
can see what another still needs.

The kernel's settings are gone after a reboot. The file therefore carries the boot's id, and a
record of an earlier boot means only that files may have been changed.
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

from .network import Change, NameServers, NetworkError, change_from_json

log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Before = Mapping[str, str]  # how it was, in whatever words the kind of change chooses


@dataclass(frozen=True, slots=True)
class Record:
    """A change that is ours to undo."""

    change: Change
    before: Before


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, waiting for whoever has it; the folder is made if it is missing.

    Yields the lock's descriptor. A program that is handed it keeps the lock until it ends, even
    when this process is killed before. Raises NetworkError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def load(path: Path) -> list[Record]:
    """The records of this boot in the order of making; none where there is no file.

    Of an earlier boot the name servers are left, which stand in a file. A damaged file is moved
    aside. Raises OSError.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        boot, records = _parse(text)
    except ValueError as error:
        aside = path.with_suffix(".damaged")
        log.warning("%s is damaged (%s) and is now %s", path, error, aside)
        os.replace(path, aside)
        return []
    if boot == _boot_id():
        return records
    return [record for record in records if isinstance(record.change, NameServers)]


def others(path: Path) -> list[Record]:
    """The records of this boot in all files of the folder but this one. Raises OSError."""
    found: list[Record] = []
    for other in sorted(path.parent.glob("*.json")):
        if other == path:
            continue
        # One that cannot be read is its owner's affair.
        with contextlib.suppress(ValueError, FileNotFoundError):
            boot, records = _parse(other.read_bytes())
            if boot == _boot_id():
                found += records
    return found


def save(path: Path, records: Sequence[Record]) -> None:
    """Write the file; without records, remove it. Raises OSError."""
    if not records:
        path.unlink(missing_ok=True)
        temporary(path).unlink(missing_ok=True)
        return
    changes = [
        {"change": record.change.to_json(), "before": dict(record.before)} for record in records
    ]
    text = json.dumps({"boot": _boot_id(), "changes": changes}, indent=1) + "\n"
    write_atomically(path, text.encode(), 0o600)


def temporary(path: Path) -> Path:
    """Where the next version of a file is written; a process that was killed may leave it."""
    return path.with_name(f".{path.name}.new")


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that a power cut leaves the old or the new one. Raises OSError."""
    new = temporary(path)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask says
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(new, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _parse(text: bytes) -> tuple[str, list[Record]]:
    data = json.loads(text)  # its errors, and those of UTF-8, are ValueErrors
    if not isinstance(data, dict) or data.keys() != {"boot", "changes"}:
        raise ValueError("not a record of changes")
    boot, changes = data["boot"], data["changes"]
    if not isinstance(boot, str) or not isinstance(changes, list):
        raise ValueError("not a record of changes")
    return boot, [_parse_record(change) for change in changes]


def _parse_record(data: object) -> Record:
    if not isinstance(data, dict) or data.keys() != {"change", "before"}:
        raise ValueError("not a change and what was before")
    before = data["before"]
    if not isinstance(before, dict) or not all(isinstance(v, str) for v in before.values()):
        raise ValueError("what was before is not text")
    return Record(change_from_json(data["change"]), before)
