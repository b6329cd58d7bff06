"""The commands of sftp about directories, at the server and here, and about this machine."""

from __future__ import annotations

import os

from ...wire import sftp
from .. import wildcards
from ..progress import shown
from .sizes import scaled
from .state import Arguments, CommandFailed, SftpState, during, in_quotes


async def cd(state: SftpState, arguments: Arguments) -> None:
    """Changes the directory at the server."""
    name = wildcards.plain(arguments.operand(0) or b"")
    path = state.absolute(name) if name else state.start_directory
    with during(f"stat remote {in_quotes(path)}"):
        path = await state.client.realpath(path)
        attributes = await state.client.stat(path)
    if not await state.client.is_directory(path, attributes):
        raise CommandFailed(f"Can't change directory: {in_quotes(path)} is not a directory")
    state.directory = path


async def pwd(state: SftpState, arguments: Arguments) -> None:
    """Prints the directory at the server."""
    state.say(f"Remote working directory: {shown(state.directory)}")


async def version(state: SftpState, arguments: Arguments) -> None:
    """Prints the version of the protocol."""
    state.say(f"SFTP protocol version {sftp.VERSION}")


async def df(state: SftpState, arguments: Arguments) -> None:
    """Prints how full a file system is."""
    path = state.absolute(wildcards.plain(arguments.operand(0) or b"."))
    with during(f"remote statvfs {in_quotes(path)}"):
        found = await state.client.statvfs(path)
    used = found.f_blocks - found.f_bfree
    blocks = found.f_blocks, used, found.f_bavail, found.f_bfree
    if "i" in arguments.flags:
        used = found.f_files - found.f_ffree
        counts = found.f_files, used, found.f_favail, found.f_ffree
        state.say("     Inodes        Used       Avail      (root)    %Capacity")
        row = " ".join(f"{count:11}" for count in counts)
        state.say(f"{row}         {_percent(used, found.f_files)}")
        return
    percent = _percent(used, found.f_blocks)
    if "h" in arguments.flags:
        sizes = " ".join(f"{scaled(each * found.f_frsize):>7}B" for each in blocks)
        state.say("    Size     Used    Avail   (root)    %Capacity")
        state.say(f"{sizes}         {percent}")
    else:
        sizes = " ".join(f"{each * found.f_frsize // 1024:12}" for each in blocks)
        state.say("        Size         Used        Avail       (root)    %Capacity")
        state.say(f"{sizes}         {percent}")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part // whole:3}%" if whole else "UNK"


# This machine


async def lcd(state: SftpState, arguments: Arguments) -> None:
    """Changes the directory here."""
    path = os.path.expanduser(wildcards.plain(arguments.operand(0) or b"~"))
    with during(f"Couldn't change local directory to {in_quotes(path)}"):
        os.chdir(path)


async def lpwd(state: SftpState, arguments: Arguments) -> None:
    """Prints the directory here."""
    with during("Couldn't get local cwd"):
        state.say(f"Local working directory: {shown(os.getcwdb())}")


async def lmkdir(state: SftpState, arguments: Arguments) -> None:
    """Makes a directory here."""
    path = wildcards.plain(arguments.operands[0])
    with during(f"Couldn't create local directory {in_quotes(path)}"):
        os.mkdir(path)


async def lumask(state: SftpState, arguments: Arguments) -> None:
    """Sets the umask of what is copied to this machine."""
    mask = number(arguments, 8, 0o7777)
    os.umask(mask)
    state.say(f"Local umask: {mask:03o}")


def number(arguments: Arguments, base: int, highest: int) -> int:
    """Returns the number that comes first; raises CommandFailed if there is none."""
    text = wildcards.plain(arguments.operand(0) or b"")
    digits = b"0123456789"[:base]
    if not text or text.strip(digits) or len(text) > 11 or int(text, base) > highest:
        raise CommandFailed(f"You must supply a numeric argument to the {arguments.name} command.")
    return int(text, base)


def lls(state: SftpState, arguments: Arguments) -> None:
    """Lists a directory here, by ls(1)."""
    _run(state, b"ls" + (b" " + arguments.rest if arguments.rest else b""))


def shell(state: SftpState, arguments: Arguments) -> None:
    """Runs a command of this machine, or a shell."""
    _run(state, arguments.rest)


def _run(state: SftpState, command: bytes) -> None:
    """Runs a command in the foreground: ^C is its own."""
    import subprocess

    program = os.environ.get("SHELL") or "/bin/sh"
    words: list[str | bytes] = [program, "-c", command] if command else [program]
    with during(f"Couldn't execute {in_quotes(os.fsencode(program))}"):
        process = subprocess.Popen(words)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue
    if status < 0:
        state.complain("Shell exited abnormally")
    elif status:
        state.complain(f"Shell exited with status {status}")
