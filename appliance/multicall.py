"""One program, many names: argv[0], or else the first argument, chooses the applet.

Each applet's module is imported only when it is chosen.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Final, NamedTuple

from . import __version__


class Applet(NamedTuple):
    """Where an applet lives, and what it is for; a row without help text is an alias."""

    module: str
    help: str = ""


APPLETS: Final[dict[str, Applet]] = {
    "sshd": Applet("sshd", "the server; with Dropbear's options"),
    "ssh": Applet("ssh", "the client: commands, shells and VPN tunnels; with OpenSSH's options"),
    "keygen": Applet("keygen", "make and convert keys, show fingerprints; as ssh-keygen"),
    "up": Applet("links", "connect the tunnels declared in links.toml and keep them connected"),
    "down": Applet("links", "end them, and undo what they changed"),
    "status": Applet("links", "show them"),
    "dropbear": Applet("sshd"),
    "dbclient": Applet("dbclient"),
    "dropbearkey": Applet("keygen"),
    "dropbearconvert": Applet("keygen"),
}


def main() -> int:
    """The entry point of the command; returns the exit status."""
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
    run: Callable[[list[str], str], int] = import_module(f"appliance.cli.{applet.module}").main
    return run(arguments, name)


def _open_standard_descriptors() -> None:
    """Whoever starts us may have closed some: what we open must not be taken for them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # so this is the number that the next one gets
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _help() -> str:
    rows = [f"  {name:8} {applet.help}" for name, applet in APPLETS.items() if applet.help]
    aliases = ", ".join(name for name, applet in APPLETS.items() if not applet.help)
    return "\n".join(
        (
            "usage: culvert APPLET [options]     'culvert APPLET --help' tells more",
            "",
            *rows,
            "",
            f"Under the names {aliases}",
            "it takes those programs' options.",
        )
    )
