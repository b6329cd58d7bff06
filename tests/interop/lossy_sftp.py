"""An SFTP server behind a link that is cut, or stands still, at the request that is asked for.

    python lossy_sftp.py FOLDER PROGRAM [ARGUMENT ...]

It passes packets between its standard streams and the program's, and looks for files in the folder:

    rule    'before NAME ...': ends before the program gets a request of that name
            'after NAME ...': ends before the program's answer to it is passed on
            'still NAME ...': makes the file 'still' before the program gets it
            The file is removed once such a request has come.
    still   nothing is passed on, as long as it exists
    down    nobody can connect
    pids    gets the number of each process
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# draft-ietf-secsh-filexfer-02 section 3
NAMES = {
    3: "open",
    4: "close",
    5: "read",
    6: "write",
    7: "lstat",
    8: "fstat",
    9: "setstat",
    10: "fsetstat",
    11: "opendir",
    12: "readdir",
    13: "remove",
    14: "mkdir",
    15: "rmdir",
    16: "realpath",
    17: "stat",
    18: "rename",
    19: "readlink",
    20: "symlink",
}
EXTENDED = 200


def packets(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole packets from the beginning."""
    while len(buffer) >= 4 and len(buffer) >= (size := 4 + int.from_bytes(buffer[:4], "big")):
        yield bytes(buffer[:size])
        del buffer[:size]


def name_of(packet: bytes) -> str:
    """The name of a request, for an extended one without its domain."""
    if packet[4] != EXTENDED:
        return NAMES.get(packet[4], "")
    length = int.from_bytes(packet[9:13], "big")
    return packet[13 : 13 + length].decode().partition("@")[0]


def main() -> None:
    folder = Path(sys.argv[1])
    if (folder / "down").exists():
        sys.exit("the link is down")
    with open(folder / "pids", "a") as file:
        file.write(f"{os.getpid()}\n")
    program = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None and program.stdout is not None
    there, back = program.stdin.fileno(), program.stdout.fileno()
    from_us, from_them = bytearray(), bytearray()
    awaited = b""  # the number of the request whose answer is not passed on
    while True:
        for fd in select.select([0, back], [], [])[0]:
            data = os.read(fd, 1 << 18)
            if not data:
                return
            if fd == back:
                from_them += data
                for packet in packets(from_them):
                    wait(folder)
                    if awaited and packet[5:9] == awaited:
                        return
                    write_all(1, packet)
                continue
            from_us += data
            for packet in packets(from_us):
                when = rule(folder, packet)
                if when == "before":
                    return
                if when == "still":
                    (folder / "still").touch()
                if when == "after":
                    awaited = packet[5:9]
                wait(folder)
                write_all(there, packet)


def rule(folder: Path, packet: bytes) -> str:
    """What is to happen at a request, '' for nothing."""
    try:
        when, *names = (folder / "rule").read_text().split()
    except (OSError, ValueError):
        return ""
    if name_of(packet) not in names:
        return ""
    (folder / "rule").unlink()
    return when


def wait(folder: Path) -> None:
    """Wait as long as the link stands still."""
    while (folder / "still").exists():
        time.sleep(0.02)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    with contextlib.suppress(OSError, KeyboardInterrupt):
        main()
    os._exit(0)
