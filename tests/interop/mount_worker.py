"""A process that does what it is told to a directory, and tells what came of it.

    python mount_worker.py UID GID

It becomes that user. Each line of its input is a JSON list, an operation's name and its arguments;
each line of its output is `{"done": result}` or `{"errno": "ENOENT"}`. Names are strings in
Python's way (os.fsdecode). Open files are known by small numbers, slots. What two directories on
one machine may differ in (inodes, the time of the last write) is in no result.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

STAMPS = 1_600_000_000  # times below are those that utimens has set; the clock is beyond
SHOWN = 48  # bytes; of more only length and digest are told
PAGE = mmap.PAGESIZE
LENGTH = 200  # bytes of a file that a lock may lie in


def content(seed: int, length: int) -> bytes:
    """What a write with this seed writes."""
    return random.Random(seed).randbytes(length)


def told(data: bytes) -> str:
    """Bytes in short."""
    if len(data) <= SHOWN:
        return data.hex()
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()[:16]}"


FILES = {
    "a": [(0, content(0, 100_000))],
    "b": [(0, content(1, 8192)), (1_000_000, content(2, 5000))],  # with a hole
    "d/a": [(0, b"ten bytes\n")],
}


class Worker:
    """The operations, and the files that they have opened."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._kept = 0o500

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Do an operation and return its line."""
        try:
            return {"done": OPERATIONS[name](self, *arguments)}
        except OSError as error:
            return {"errno": errno.errorcode[error.errno or 0]}

    def _file(self, slot: int) -> int:
        if slot not in self._files:
            raise OSError(errno.EBADF, "nothing is open there")
        return self._files[slot]

    def enter(self, folder: str) -> None:
        """Go to a directory."""
        os.chdir(folder)

    def fill(self, folder: str) -> None:
        """Make a directory, and what is in it at the beginning."""
        for name in ("", "d", "d/e"):
            os.mkdir(os.path.join(folder, name))
        for name, pieces in FILES.items():
            with open(os.path.join(folder, name), "wb") as file:
                for offset, data in pieces:
                    file.seek(offset)
                    file.write(data)
            os.utime(os.path.join(folder, name), (STAMPS - 1, STAMPS - 1))
        os.symlink("a", os.path.join(folder, "l"))

    def keep(self, mode: int) -> None:
        """Say which permissions chmod leaves a directory.

        Caches still know what is in one without. And who answers before the server has done
        something does not know that it may not.
        """
        self._kept = mode

    def _mode_of(self, mode: int, status: os.stat_result) -> int:
        return mode | (self._kept if stat.S_ISDIR(status.st_mode) else 0)

    # open files

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        file = os.open(path, flags, mode)
        if slot in self._files:
            self.close(slot)
        self._files[slot] = file

    def close(self, slot: int) -> None:
        file = self._file(slot)
        del self._files[slot]
        os.close(file)

    def close_all(self) -> None:
        """Close what is open, upon which all that was written is at the server."""
        files, self._files = self._files, {}
        failures = []
        for file in files.values():
            try:
                os.close(file)
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def read(self, slot: int, length: int) -> str:
        return told(os.read(self._file(slot), length))

    def pread(self, slot: int, length: int, offset: int) -> str:
        return told(os.pread(self._file(slot), length, offset))

    def write(self, slot: int, seed: int, length: int) -> int:
        return os.write(self._file(slot), content(seed, length))

    def pwrite(self, slot: int, seed: int, length: int, offset: int) -> int:
        return os.pwrite(self._file(slot), content(seed, length), offset)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._file(slot), size)

    def fsync(self, slot: int) -> None:
        os.fsync(self._file(slot))

    def fchmod(self, slot: int, mode: int) -> None:
        file = self._file(slot)
        os.fchmod(file, self._mode_of(mode, os.fstat(file)))

    def futimens(self, slot: int, seconds: int) -> None:
        os.utime(self._file(slot), (seconds, seconds))

    def fstat(self, slot: int) -> dict[str, Any]:
        return self._status(os.fstat(self._file(slot)))

    def seek(self, slot: int, offset: int, whence: int) -> int:
        """Look for data or a hole; the file's place stays at the start."""
        file = self._file(slot)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EISDIR, "file systems differ in what their directories do")
        found = os.lseek(file, offset, whence)
        os.lseek(file, 0, os.SEEK_SET)
        return found

    def copy_range(self, source: int, target: int, length: int, at: int, to: int) -> int:
        """Copy as much as there is, however often the kernel wants to be asked."""
        reading, writing = self._file(source), self._file(target)
        copied = 0
        while copied < length:
            count = os.copy_file_range(reading, writing, length - copied, at + copied, to + copied)
            if count == 0:
                break
            copied += count
        return copied

    def mmap_read(self, slot: int, page: int, length: int) -> str:
        with self._map(slot, page, length, mmap.PROT_READ) as memory:
            return told(memory[:])

    def mmap_write(self, slot: int, page: int, length: int, seed: int) -> int:
        if os.fstat(self._file(slot)).st_mode & stat.S_ISUID:
            raise OSError(errno.EPERM, "a server cannot tell it from a write, which ends setuid")
        with self._map(slot, page, length, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            memory[:] = content(seed, len(memory))
            memory.flush()
            return len(memory)

    def _map(self, slot: int, page: int, length: int, protection: int) -> mmap.mmap:
        """Map what a file has from a page on; beyond its end there is only SIGBUS."""
        file = self._file(slot)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENODEV, "only files are mapped")
        length = min(length, status.st_size - page * PAGE)
        if length <= 0:
            raise OSError(errno.ENXIO, "there is nothing to map")
        return mmap.mmap(file, length, mmap.MAP_SHARED, protection, offset=page * PAGE)

    def flock(self, slot: int, how: int) -> None:
        fcntl.flock(self._file(slot), how | fcntl.LOCK_NB)

    def lockf(self, slot: int, how: int, start: int) -> None:
        """Lock or unlock a range for this process."""
        record = struct.pack("hhqqi4x", how, os.SEEK_SET, start, LENGTH, 0)
        fcntl.fcntl(self._file(slot), fcntl.F_SETLK, record)

    # names

    def stat(self, path: str) -> dict[str, Any]:
        return self._status(os.stat(path))

    def lstat(self, path: str) -> dict[str, Any]:
        return self._status(os.lstat(path))

    def _status(self, status: os.stat_result) -> dict[str, Any]:
        told: dict[str, Any] = {"mode": oct(status.st_mode)}
        if not stat.S_ISDIR(status.st_mode):
            told |= {"size": status.st_size, "links": status.st_nlink}
        if stat.S_ISREG(status.st_mode):
            told["mtime"] = int(status.st_mtime) if status.st_mtime < STAMPS else "now"
            if status.st_size:  # else there may be blocks of extended attributes
                told["has_blocks"] = status.st_blocks > 0
        return told

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, self._mode_of(mode, os.stat(path)))

    def utimens(self, path: str, seconds: int) -> None:
        os.utime(path, (seconds, seconds), follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode | self._kept)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def statvfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(path)
        return {"size": status.f_blocks * status.f_frsize, "namemax": status.f_namemax}

    def getxattr(self, path: str, name: str) -> str:
        return told(os.getxattr(path, name, follow_symlinks=False))

    def setxattr(self, path: str, name: str, value: str, flags: int) -> None:
        os.setxattr(path, name, value.encode(), flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        names = os.listxattr(path, follow_symlinks=False)
        return sorted(name for name in names if name.startswith("user."))

    def tree(self) -> dict[str, Any]:
        """All that is below this directory."""
        found: dict[str, Any] = {}
        for place, folders, files in os.walk("."):
            for name in folders + files:
                path = os.path.join(place, name)
                status = os.lstat(path)
                found[path] = self._status(status)
                if stat.S_ISLNK(status.st_mode):
                    found[path]["target"] = os.readlink(path)
                elif stat.S_ISREG(status.st_mode):
                    found[path]["content"] = self._content(path)
        return found

    def _content(self, path: str) -> str:
        try:
            with open(path, "rb") as file:
                return told(file.read())
        except OSError as error:
            return errno.errorcode[error.errno or 0]


OPERATIONS: dict[str, Callable[..., Any]] = {
    name: method
    for name, method in vars(Worker).items()
    if not name.startswith("_") and name != "call"
}


if __name__ == "__main__":
    if os.geteuid() == 0:  # this interpreter may be where only root can start it
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[1]))
    os.umask(0o022)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.call(*json.loads(line))), flush=True)
