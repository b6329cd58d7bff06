"""Runs the far end of scp's old protocol where there is no ``scp``.

``scp -O``, ``pscp -scp`` and Dropbear's scp run ``scp -t path`` at the far end, by a user's shell.
On a board without OpenSSH no such program is found. Then the command's first word becomes the
command line of our own far end (``cli/scp_far_end.py``), and the shell gets the rest as it came.

Nothing else changes: an ``scp`` that is in PATH is always used, the programs of users get the same
environment, and no file is put where others would find it. A forced command decides by itself what
it runs, and a chroot has its own programs.
"""

import os
import shlex
from typing import Final

from ..process import ourselves

_FAR_END: Final = "from appliance.cli.scp_far_end import main; sys.exit(main(sys.argv[1:]))"


def with_our_scp(command: bytes, path: bytes) -> bytes:
    """Returns the command to run in place of ``command``; ``path`` is the PATH that it gets."""
    words = command.split(b" ")
    if words[0] != b"scp" or not _is_far_end(words[1:]) or _is_found(b"scp", path):
        return command
    ours = os.fsencode(shlex.join(ourselves.bare_command(_FAR_END)))
    return ours + command[len(b"scp") :]


def _is_far_end(words: list[bytes]) -> bool:
    """Whether -t or -f is among the options, which come first, and none that it does not know."""
    letters = b""
    for word in words:
        if word[:1] != b"-" or word == b"--":
            break
        letters += word[1:]
    return bool({*letters} & {*b"tf"}) and {*letters} <= {*b"dfprtv"}


def _is_found(program: bytes, path: bytes) -> bool:
    places = (os.path.join(folder, program) for folder in path.split(b":") if folder[:1] == b"/")
    return any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places)
