"""The commands of sftp: what each one is called, takes and does, in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from . import changes as changes
from . import listing as listing
from . import places as places
from . import transfers as transfers
from .state import Arguments, CommandFailed, SftpState, Work


class SftpCommand(NamedTuple):
    """A row of the table.

    ``run`` is a coroutine of the event loop, ``run_here`` a function for the main thread. The
    row whose ``usage`` is '' is another name of a command, and help does not show it.
    """

    run: Callable[[SftpState, Arguments], Work] | None = None
    usage: str = ""
    help: str = ""
    flags: str = ""
    operands: str = ""  # what is completed: R a path at the server, L one here
    least: int = 0  # operands
    run_here: Callable[[SftpState, Arguments], None] | None = None


class Quit(Exception):
    """The user is done."""


def _quit(state: SftpState, arguments: Arguments) -> None:
    raise Quit


def _help(state: SftpState, arguments: Arguments) -> None:
    """Shows all commands."""
    state.say("Available commands:")
    for name, command in COMMANDS.items():
        if command.usage or command.help:
            first, *more = command.help.split("\n")
            state.say(f"{f'{name} {command.usage}'.strip():<34} {first}")
            for line in more:
                state.say(" " * 35 + line)
    state.say(f"{'!command':<34} Execute 'command' in local shell")
    state.say(f"{'!':<34} Escape to local shell")
    state.say(f"{'?':<34} Synonym for help")


_COPY: Final = "afPpRr"

COMMANDS: Final[dict[str, SftpCommand]] = {
    "bye": SftpCommand(None, "", "Quit sftp", run_here=_quit),
    "cd": SftpCommand(places.cd, "path", "Change remote directory to 'path'", operands="R"),
    "chdir": SftpCommand(places.cd, operands="R"),
    "chgrp": SftpCommand(
        changes.chgrp, "[-h] grp path", "Change group of file 'path' to 'grp'", "h", "R"
    ),
    "chmod": SftpCommand(
        changes.chmod, "[-h] mode path", "Change permissions of file 'path' to 'mode'", "h", "R"
    ),
    "chown": SftpCommand(
        changes.chown, "[-h] own path", "Change owner of file 'path' to 'own'", "h", "R"
    ),
    "copy": SftpCommand(changes.copy, "oldpath newpath", "Copy remote file", "", "RR", 2),
    "cp": SftpCommand(changes.copy, "oldpath newpath", "Copy remote file", "", "RR", 2),
    "df": SftpCommand(
        places.df,
        "[-hi] [path]",
        "Display statistics for current directory or\nfilesystem containing 'path'",
        "hi",
        "R",
    ),
    "dir": SftpCommand(listing.ls, flags="1Safhlnrt", operands="R"),
    "exit": SftpCommand(None, "", "Quit sftp", run_here=_quit),
    "get": SftpCommand(transfers.get, "[-afpR] remote [local]", "Download file", _COPY, "RL", 1),
    "help": SftpCommand(None, "", "Display this help text", run_here=_help),
    "lcd": SftpCommand(places.lcd, "path", "Change local directory to 'path'", operands="L"),
    "lchdir": SftpCommand(places.lcd, operands="L"),
    "lls": SftpCommand(
        None, "[ls-options [path]]", "Display local directory listing", "", "L", 0, places.lls
    ),
    "lmkdir": SftpCommand(places.lmkdir, "path", "Create local directory", "", "L", 1),
    "ln": SftpCommand(
        changes.ln, "[-s] oldpath newpath", "Link remote file (-s for symlink)", "s", "RR", 2
    ),
    "lpwd": SftpCommand(places.lpwd, "", "Print local working directory"),
    "ls": SftpCommand(
        listing.ls, "[-1afhlnrSt] [path]", "Display remote directory listing", "1Safhlnrt", "R"
    ),
    "lumask": SftpCommand(places.lumask, "umask", "Set local umask to 'umask'"),
    "mget": SftpCommand(transfers.get, flags=_COPY, operands="RL", least=1),
    "mkdir": SftpCommand(changes.mkdir, "path", "Create remote directory", "", "R", 1),
    "mput": SftpCommand(transfers.put, flags=_COPY, operands="LR", least=1),
    "progress": SftpCommand(transfers.progress, "", "Toggle display of progress meter"),
    "put": SftpCommand(transfers.put, "[-afpR] local [remote]", "Upload file", _COPY, "LR", 1),
    "pwd": SftpCommand(places.pwd, "", "Display remote working directory"),
    "quit": SftpCommand(None, "", "Quit sftp", run_here=_quit),
    "reget": SftpCommand(
        transfers.get, "[-fpR] remote [local]", "Resume download file", _COPY, "RL", 1
    ),
    "rename": SftpCommand(changes.rename, "oldpath newpath", "Rename remote file", "", "RR", 2),
    "reput": SftpCommand(
        transfers.put, "[-fpR] local [remote]", "Resume upload file", _COPY, "LR", 1
    ),
    "rm": SftpCommand(changes.rm, "path", "Delete remote file", "", "R", 1),
    "rmdir": SftpCommand(changes.rmdir, "path", "Remove remote directory", "", "R", 1),
    "symlink": SftpCommand(changes.symlink, "oldpath newpath", "Symlink remote file", "", "RR", 2),
    "version": SftpCommand(places.version, "", "Show SFTP version"),
    "?": SftpCommand(None, run_here=_help),
    "!": SftpCommand(None, run_here=places.shell),
}


def find(name: str, words: list[bytes], rest: bytes) -> tuple[SftpCommand, Arguments]:
    """Returns the command and its arguments; raises CommandFailed for a mistake in them.

    ``words`` are those behind the name, and ``rest`` the same as they were typed.
    """
    command = COMMANDS.get(name)
    if command is None:
        raise CommandFailed("Invalid command.")
    flags = ""
    operands = list(words)
    takes_all = name in ("lls", "!")  # they are for another program
    while not takes_all and operands and operands[0].startswith(b"-") and operands[0] != b"-":
        word = operands.pop(0).decode(errors="replace")
        if word == "--":
            break
        for flag in word[1:]:
            if flag not in command.flags:
                raise CommandFailed(f"{name}: Invalid flag -{flag if flag.isprintable() else '?'}")
        flags += word[1:]
    if len(operands) < command.least:
        count = "two paths" if command.least > 1 else "a path"
        if command.operands in ("RL", "LR"):
            count = "at least one path"
        raise CommandFailed(f"You must specify {count} after a {name} command.")
    return command, Arguments(name, flags, operands, rest)
