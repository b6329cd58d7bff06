"""One program, many names: argv[0], or else the first argument, chooses the applet.

Each applet's module is imported only when it is chosen. This module imports next to nothing, since
sessions wait for ``sftp-server`` to start.
"""

from __future__ import annotations

import os
import sys

from . import __version__

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable


class Applet:
    """An applet's module and its help text; a row without help text is an alias."""

    __slots__ = ("help", "module")

    def __init__(self, module: str, help: str = "") -> None:
        self.module = module
        self.help = help


APPLETS: dict[str, Applet] = {
    "sshd": Applet("sshd", "the server; with Dropbear's options"),
    "ssh": Applet("ssh", "the client: commands, shells and VPN tunnels; with OpenSSH's options"),
    "x11": Applet("x11", "run a graphical program of a host, over any number of hops"),
    "scp": Applet("scp", "copy files between hosts; with OpenSSH's options"),
    "sftp": Applet("sftp", "copy and change files at a host, by commands; as OpenSSH's"),
    "sshfs": Applet("sshfs", "mount a directory of a server; with sshfs's options"),
    "keygen": Applet("keygen", "make and convert keys, show fingerprints; as ssh-keygen"),
    "up": Applet("links", "connect the tunnels declared in links.toml and keep them connected"),
    "down": Applet("links", "end these tunnels, and undo what they changed"),
    "status": Applet("links", "show these tunnels and their state"),
    "sftp-server": Applet("sftp_server", "the SFTP server; with the options of OpenSSH's"),
    "dropbear": Applet("sshd"),
    "dbclient": Applet("dbclient"),
    "dropbearkey": Applet("keygen"),
    "dropbearconvert": Applet("keygen"),
    "mount.sshfs": Applet("sshfs"),
    "mount.fuse.sshfs": Applet("sshfs"),
}


def main() -> int:
    """Runs the applet that was called; returns the exit status."""
    _open_standard_descriptors()
    name = os.path.basename(sys.argv[0])
    arguments = sys.argv[1:]
    if name not in APPLETS:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        name, arguments = arguments[0], arguments[1:]
        if name in ("-V", "--version"):
            print(f"Culvert {__version__}")
            return 0
    applet = APPLETS.get(name)
    if applet is None:
        print(f"culvert: there is no applet '{name}'; try 'culvert --help'", file=sys.stderr)
        return 1
    module = f"appliance.cli.{applet.module}"
    __import__(module)  # importlib takes longer to import than some applets
    run: Callable[[list[str], str], int] = sys.modules[module].main
    return run(arguments, name)


def _open_standard_descriptors() -> None:
    """Opens /dev/null in place of each standard descriptor that is closed.

    Otherwise the next file to be opened would be used as standard input, output or error.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed, so os.open returns this number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _help() -> str:
    rows = [f"  {name:11} {applet.help}" for name, applet in APPLETS.items() if applet.help]
    aliases = ", ".join(name for name, applet in APPLETS.items() if not applet.help)
    return "\n".join(
        (
            "usage: culvert APPLET [options]     'culvert APPLET --help' tells more",
            "",
            *rows,
            "",
            f"Called as {aliases},",
            "culvert takes the options of that program.",
        )
    )
