"""The name under which this process is seen by others, such as ps and X servers."""

import logging
import sys

_log = logging.getLogger(__name__)


def be_called_ssh() -> None:
    """Makes the first word of our command line 'ssh: culvert ...', in place.

    An X server takes a client for a program of this machine unless its process is called ssh, up
    to a colon, and lets local programs alone attach shared memory and the like: by that a program
    at an SSH server would read segments of the display's user. Where the name cannot be set, the
    error is logged only, since the filter hides these extensions as well.
    """
    import ctypes

    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: 48 and 49 of proc(5)
        if not 0 < start < end:
            raise ValueError("the system does not tell where the command line is")
    except (OSError, ValueError, IndexError) as error:
        _log.info("the process cannot be named ssh: %s", error)
        return
    words = " ".join(("ssh: culvert", *sys.argv[1:])).encode(errors="surrogateescape")
    size = end - start
    ctypes.memmove(start, words[: size - 1].ljust(size, b"\0"), size)
