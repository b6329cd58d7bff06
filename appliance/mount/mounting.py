"""Mounts a FUSE file system, and unmounts it.

Root calls mount(2). Anybody else has fusermount3 do it, which is setuid root and passes the
descriptor of /dev/fuse through a socket. With auto_unmount it stays, also for root, and unmounts
when this process has ended in whatever way.

Nothing here asks the file system itself, which is not served yet or not any more: that would wait
for ever. The mount is known by its number and device in /proc/self/mountinfo, so that one that
somebody else has put in its place, or on top of it, is left alone.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UsageError, system_error

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

DEVICE: Final = "/dev/fuse"

# <sys/mount.h>
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_DIRSYNC: Final = 128
MS_NOATIME: Final = 1024
_MNT_DETACH: Final = 2

FLAG_NAMES: Final = {
    MS_NOSUID: "nosuid",
    MS_NODEV: "nodev",
    MS_NOEXEC: "noexec",
    MS_SYNCHRONOUS: "sync",
    MS_DIRSYNC: "dirsync",
    MS_NOATIME: "noatime",
}

# Our own choice
HELPER_SECONDS: Final = 30.0  # until fusermount3 must have answered


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """What the kernel is told of a mount."""

    flags: int = MS_NOSUID | MS_NODEV
    subtype: str = "sshfs"  # the type is fuse.sshfs
    words: tuple[str, ...] = ()  # allow_other, default_permissions, context=...
    auto_unmount: bool = False


class _Place(NamedTuple):
    """A mount as mountinfo has it; the number alone may be used again after its end."""

    number: int
    device: str
    fs_type: str
    source: str


class Mounted:
    """A mounted file system; owns the descriptor that its requests come from."""

    def __init__(self, fd: int, mountpoint: str, helper: _Helper | None) -> None:
        self.fd = fd
        self.mountpoint = mountpoint
        self._helper = helper
        with _Directory(mountpoint) as directory:
            place = directory.mount_place()
        if place is None or not place.fs_type.startswith("fuse"):
            self.close()
            raise UsageError(f"{mountpoint}: something else was mounted there at the same moment")
        self._place = place

    def unmount(self) -> None:
        """Unmounts, unless that is done or something else is mounted there; raises UsageError.

        Files that are open can be used until ``close``.
        """
        if self._is_gone():
            return
        for place, path in _mounts():  # a directory above may have got another name
            if place == self._place:
                with _Directory(path) as directory:
                    if directory.mount_place() == place:
                        _unmount(directory)

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def close(self) -> None:
        """Closes ``fd``, with which the file system ends."""
        os.close(self.fd)
        if self._helper is not None:
            self._helper.close()


class _Directory:
    """A directory, or the root of a mount, that no change of a path exchanges.

    It is opened without a question to its file system.
    """

    def __init__(self, path: str) -> None:
        """Raises UsageError."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        self.path = path
        self.safe_path = f"/proc/self/fd/{self.fd}".encode()

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def mount_place(self) -> _Place | None:
        """Returns the mount that it is the root of."""
        with open(f"/proc/self/fdinfo/{self.fd}") as file:
            number = int(dict(line.split(":", 1) for line in file)["mnt_id"])
        for place, path in _mounts():
            if place.number == number and path == self.path:
                return place
        return None


def _mounts() -> Iterator[tuple[_Place, str]]:
    """Yields all mounts, each with its path."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            _, fs_type, source, *_ = fields[fields.index("-") :]
            place = _Place(int(fields[0]), fields[2], fs_type, _unescaped(source))
            yield place, _unescaped(fields[4])


def check_mountpoint(path: str) -> str:
    """Returns the absolute path of the directory to mount on; raises UsageError."""
    try:
        status = os.stat(path)
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        hint = ""
        if error.errno == errno.ENOTCONN:
            hint = f"; an old mount has lost its program: fusermount3 -u {path}"
        raise UsageError(f"bad mount point `{path}': {error.strerror}{hint}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"bad mount point `{path}': Not a directory")
    if os.geteuid() and not os.access(real, os.W_OK):  # as fusermount3 wants it
        raise UsageError(f"bad mount point `{path}': you have no write access to it")
    return real


def mount(mountpoint: str, source: str, options: KernelOptions, root_mode: int) -> Mounted:
    """Mounts on a path of ``check_mountpoint``; raises UsageError.

    ``root_mode``: st_mode of the root, of which the kernel wants the type in advance.
    """
    if os.geteuid() == 0 and not options.auto_unmount:
        fd = _open_device()
        try:
            _mount(fd, mountpoint, source, options, root_mode)
        except UsageError:
            os.close(fd)
            raise
        except PermissionError:  # root of a container; fusermount3 may have what we lack
            os.close(fd)
        except OSError as error:
            os.close(fd)
            raise UsageError(f"{mountpoint}: cannot mount: {_explained(error)}") from error
        else:
            return Mounted(fd, mountpoint, None)
    helper = _Helper(mountpoint, source, options)
    return Mounted(helper.fd, mountpoint, helper if options.auto_unmount else None)


# -- by root -------------------------------------------------------------------------------


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "; 'modprobe fuse' loads it" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise UsageError(f"{DEVICE}: {error.strerror}{hint}") from error


def _mount(fd: int, mountpoint: str, source: str, options: KernelOptions, root_mode: int) -> None:
    """Calls mount(2); raises OSError."""
    import ctypes

    words = [
        f"fd={fd}",
        f"rootmode={stat.S_IFMT(root_mode):o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
        *options.words,
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    with _Directory(mountpoint) as directory:
        if os.readlink(directory.safe_path) != os.fsencode(mountpoint):
            raise UsageError(f"{mountpoint}: the path leads to another directory now")
        failed = libc.mount(
            os.fsencode(source),
            directory.safe_path,
            os.fsencode(f"fuse.{options.subtype}" if options.subtype else "fuse"),
            ctypes.c_ulong(options.flags),
            os.fsencode(",".join(words)),
        )
    if failed:
        number = ctypes.get_errno()
        raise system_error(number)


def _explained(error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no FUSE; 'modprobe fuse' loads it"
    return error.strerror or str(error)


def _unescaped(field: str) -> str:
    """Returns a path of mountinfo, in which blanks and backslashes are octal (proc(5))."""
    for code in ("040", "011", "012", "134"):
        field = field.replace(f"\\{code}", chr(int(code, 8)))
    return field


def _unmount(directory: _Directory) -> None:
    """Unmounts, also while files are open; raises UsageError."""
    if os.geteuid() == 0:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(directory.safe_path, _MNT_DETACH) == 0:
            return
        if (number := ctypes.get_errno()) != errno.EPERM:
            raise UsageError(f"{directory.path}: cannot unmount: {os.strerror(number)}")
    import subprocess

    words = [_helper_program(), "-u", "-z", "-q", "--", directory.path]
    done = subprocess.run(words, env={}, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise UsageError(f"{directory.path}: {_complaint(done.stderr)}")


def unmount_left(mountpoint: str, source: str) -> None:
    """Unmounts what a program that has ended has left mounted there; raises UsageError."""
    for place, path in reversed([*_mounts()]):  # one may lie on top of another
        if (path, place.source) == (mountpoint, source) and place.fs_type.startswith("fuse"):
            with _Directory(path) as directory:
                if directory.mount_place() == place:
                    _unmount(directory)


# -- by fusermount3 ------------------------------------------------------------------------


class _Helper:
    """One run of fusermount3, which mounts and sends the descriptor."""

    def __init__(self, mountpoint: str, source: str, options: KernelOptions) -> None:
        """Raises UsageError."""
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._start(mountpoint, source, options, theirs)
            self.fd = self._receive()
        except BaseException:
            self._socket.close()
            raise
        if not options.auto_unmount:
            self.close()

    def _start(
        self, mountpoint: str, source: str, options: KernelOptions, theirs: socket.socket
    ) -> subprocess.Popen[bytes]:
        import subprocess

        words = [
            "ro" if options.flags & MS_RDONLY else "rw",
            *(name for flag, name in FLAG_NAMES.items() if options.flags & flag),
            *options.words,
            f"fsname={_escaped(source)}",
            *([f"subtype={_escaped(options.subtype)}"] if options.subtype else []),
            *(["auto_unmount"] if options.auto_unmount else []),
        ]
        program = _helper_program()
        try:
            return subprocess.Popen(
                [program, "-o", ",".join(words), "--", mountpoint],
                env={"_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            raise UsageError(f"{program}: {error.strerror}") from error

    def _receive(self) -> int:
        """Returns the descriptor of /dev/fuse; raises UsageError."""
        self._socket.settimeout(HELPER_SECONDS)
        try:
            _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        except TimeoutError as error:
            self._process.kill()
            self._complaint()
            raise UsageError("fusermount3 does not answer") from error
        if not descriptors:
            raise UsageError(self._complaint())
        assert self._process.stderr is not None
        self._process.stderr.close()
        os.set_inheritable(descriptors[0], False)
        os.set_blocking(descriptors[0], False)
        return descriptors[0]

    def _complaint(self) -> str:
        _, text = self._process.communicate()
        return _complaint(text)

    def close(self) -> None:
        """Waits for its end; with auto_unmount that of the socket makes it unmount what is left."""
        self._socket.close()
        self._process.wait()


def _helper_program() -> str:
    import shutil

    # Those that are setuid stand in the system's directories. mount(8) calls us without PATH.
    path = f"/usr/bin:/bin:{os.environ.get('PATH', '')}"
    for name in ("fusermount3", "fusermount"):
        if (found := shutil.which(name, path=path)) is not None:
            return found
    raise UsageError("fusermount3 is missing, which mounts for users: install the package fuse3")


def _escaped(text: str) -> str:
    """Returns a value for fusermount3, whose list of options has commas (lib/mount_util.c)."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _complaint(text: bytes) -> str:
    """Returns what fusermount3 wrote as one line."""
    lines = text.decode(errors="replace").split("\n")
    told = [line.partition(": ")[2] or line for line in lines if line]
    return "; ".join(told) or "fusermount3 failed without a reason"
