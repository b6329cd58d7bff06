"""The programs that mount a server's directory, sshfs and Culvert's, behind one interface.

A mount runs in the foreground, so its process is the caller's child. Whatever happens in between,
`mounted` leaves no mount and no process behind, and it fails where it had to use force for that.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.netns import wait_until
from tests.peers import (
    CULVERT,
    Login,
    Server,
    environment,
    find_program,
    mistake_in,
    write_ssh_config,
)

# by the names that tests.peers gives their clients
PROGRAMS: dict[str, Sequence[str]] = {"openssh": ("sshfs",), "culvert": (*CULVERT, "sshfs")}

PATIENCE = 20  # seconds to mount or to end
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
_ESCAPES = {" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"}


class NoMount(RuntimeError):
    """A directory could not be mounted, or not be unmounted; the text has the program's words."""


@dataclass(slots=True)
class Mount:
    """A directory of a server, here and there."""

    place: Path  # the mount point
    behind: Path  # the directory that it shows
    config: Path  # ssh's; only this mount's processes name it
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[int]:
        """The ids of the processes of this mount: sshfs's ssh is nobody's child."""
        name = os.fsencode(self.config)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if name in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """Kill its processes, upon which the kernel lets go of whoever waits for the mount."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def mount_line(place: Path) -> str:
    """The line of mountinfo about a mount point, '' where nothing is mounted."""
    name = "".join(_ESCAPES.get(character, character) for character in str(place))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == name:
            return line
    return ""


def command(
    program: str, config: Path, behind: Path, place: Path, options: Sequence[str]
) -> list[str]:
    """The command line that mounts the directory ``behind`` of the host 'there' in a config."""
    argv = [*PROGRAMS[program]]
    argv[0] = find_program(argv[0])
    argv += [f"there:{behind}", str(place), "-F", str(config)]
    for option in options:
        argv += ["-o", option]
    return argv


@contextlib.contextmanager
def mounted(
    program: str,
    server: Server,
    login: Login,
    behind: Path,
    folder: Path,
    options: Sequence[str] = (),
    port: int = 0,
) -> Iterator[Mount]:
    """Mount a directory until the end; raises NoMount.

    ``folder`` is empty and for the mount alone; ``port`` is that of a relay before the server.
    """
    place = folder / "mount"
    place.mkdir()
    config = write_ssh_config(folder, server, login, port)
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command(program, config, behind, place, options), "-f"],
            env=environment(folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # nobody finds a terminal to ask
        )
    mount = Mount(place, behind, config, process, log)

    def settled() -> bool:
        return bool(mount_line(place)) or process.poll() is not None

    try:
        if not wait_until(settled, PATIENCE) or process.poll() is not None:
            raise NoMount(f"{program} has not mounted: {log.read_text(errors='replace')}")
        yield mount
    except BaseException:
        unmount(mount)
        raise
    if words := unmount(mount):
        raise NoMount(f"{words}\n{log.read_text(errors='replace')}")


def unmount(mount: Mount) -> str:
    """End a mount by force if need be; return what had to be forced, or was said wrongly."""
    wrong = ""
    if mount_line(mount.place):
        argv = [find_program("fusermount3"), "-u", str(mount.place)]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            wrong = done.stderr
        except subprocess.TimeoutExpired:
            wrong = "fusermount3 -u hangs"
    if mount_line(mount.place):
        path = os.fsencode(mount.place)
        ctypes.CDLL(None).umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    if not wrong and not wait_until(lambda: not mount.processes(), PATIENCE):
        wrong = "its processes go on after it was unmounted"
    mount.kill()
    return wrong or mistake_in(mount.log.read_text(errors="replace"))


def synchronize(folder: Path) -> None:
    """fsync(2) a directory: the server has everything in it then, also with write_behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
