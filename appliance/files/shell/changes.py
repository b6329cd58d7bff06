"""The commands of sftp that change files at the server."""

from __future__ import annotations

import stat
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ...aio.tasks import Future
from ...wire import sftp
from ...wire.sftp import Attributes
from .. import wildcards
from ..patterns import Found, expand
from ..progress import shown
from ..sftp_client import StatusError
from .places import number
from .state import Arguments, CommandFailed, SftpState, Work, during, in_quotes

_PERMISSIONS: Final = 0o7777
_HIGHEST_ID: Final = 0xFFFFFFFF


async def rm(state: SftpState, arguments: Arguments) -> None:
    """Removes files."""
    failed = False
    for path, _ in await _named(state, arguments.operands[0]):
        state.name(f"Removing {shown(path)}")
        failed |= not await _succeeds(
            state, state.client.remove(path), f"remote delete {shown(path)}"
        )
    _end(failed)


async def rmdir(state: SftpState, arguments: Arguments) -> None:
    """Removes an empty directory."""
    path = state.absolute(wildcards.plain(arguments.operands[0]))
    with during(f"remote rmdir {in_quotes(path)}"):
        await state.client.rmdir(path)


async def mkdir(state: SftpState, arguments: Arguments) -> None:
    """Makes a directory."""
    path = state.absolute(wildcards.plain(arguments.operands[0]))
    with during(f"remote mkdir {in_quotes(path)}"):
        await state.client.mkdir(path, Attributes(permissions=0o777))


async def rename(state: SftpState, arguments: Arguments) -> None:
    """Renames a file, over another one if the server can."""
    old, new = (state.absolute(wildcards.plain(each)) for each in arguments.operands[:2])
    with during(f"remote rename {in_quotes(old)} to {in_quotes(new)}"):
        await state.client.rename(old, new)


async def ln(state: SftpState, arguments: Arguments) -> None:
    """Makes another name of a file, or with -s a symbolic link."""
    if "s" in arguments.flags:
        await symlink(state, arguments)
        return
    old, new = (state.absolute(wildcards.plain(each)) for each in arguments.operands[:2])
    if not state.client.has(sftp.HARDLINK):
        raise CommandFailed(f"Server does not support {sftp.HARDLINK} extension")
    with during(f"remote link {in_quotes(old)} to {in_quotes(new)}"):
        await state.client.hardlink(old, new)


async def symlink(state: SftpState, arguments: Arguments) -> None:
    """Makes a symbolic link, to what was typed."""
    target = wildcards.plain(arguments.operands[0])
    path = state.absolute(wildcards.plain(arguments.operands[1]))
    with during(f"remote symlink file {in_quotes(target)} to {in_quotes(path)}"):
        await state.client.symlink(target, path)


async def copy(state: SftpState, arguments: Arguments) -> None:
    """Copies a file within the server, whose data stays there if it can."""
    old, new = (state.absolute(wildcards.plain(each)) for each in arguments.operands[:2])
    client = state.client
    with during(f"stat remote {in_quotes(old)}"):
        mode = (await client.stat(old)).permissions
    if mode is not None and not stat.S_ISREG(mode):
        raise CommandFailed(f"Cannot copy non-regular file: {shown(old)}")
    if await client.is_same_file(old, new):  # which the copy would empty first
        raise CommandFailed(f"{in_quotes(old)} and {in_quotes(new)} are the same file")
    if not client.has(sftp.COPY_DATA):
        await _copy_through_here(state, old, new)
        return
    with during(f"Couldn't copy file {in_quotes(old)} to {in_quotes(new)}"):
        source = await client.open(old, sftp.READ)
        try:
            flags = sftp.WRITE | sftp.CREATE | sftp.TRUNCATE
            permissions = None if mode is None else mode & 0o777
            target = await client.open(new, flags, Attributes(permissions=permissions))
            try:
                await client.copy_data(source, 0, 0, target, 0)
            except BaseException:
                client.abandon(target)
                raise
            await client.close_file(target)
        finally:
            client.abandon(source)


async def _copy_through_here(state: SftpState, old: bytes, new: bytes) -> None:
    from ..crossings import Crossing
    from ..progress import Silent

    progress = Silent("")
    crossing = Crossing(state.loop, state.client, state.client, state.settings, progress)
    crossing.add(old, new, await state.client.stat(old))
    await crossing.run()
    _end(bool(progress.failures))


# Attributes


async def chmod(state: SftpState, arguments: Arguments) -> None:
    """Changes the permissions of files."""
    mode = number(arguments, 8, _PERMISSIONS)

    async def wanted(path: bytes) -> Attributes:
        return Attributes(permissions=mode)

    await _set(state, arguments, "Changing mode on", wanted)


async def chown(state: SftpState, arguments: Arguments) -> None:
    """Changes the owner of files."""
    await _change_owner(state, arguments, "Changing owner on", 0)


async def chgrp(state: SftpState, arguments: Arguments) -> None:
    """Changes the group of files."""
    await _change_owner(state, arguments, "Changing group on", 1)


async def _change_owner(state: SftpState, arguments: Arguments, words: str, place: int) -> None:
    """Sets one of the owner's two numbers; the protocol knows them only together."""
    wanted_id = number(arguments, 10, _HIGHEST_ID)
    ask = state.client.lstat if "h" in arguments.flags else state.client.stat

    async def wanted(path: bytes) -> Attributes:
        owner = (await ask(path)).owner
        if owner is None:
            raise CommandFailed(f"Can't get current ownership of remote file {in_quotes(path)}")
        return Attributes(owner=(owner[0], wanted_id) if place else (wanted_id, owner[1]))

    await _set(state, arguments, words, wanted)


async def _set(
    state: SftpState,
    arguments: Arguments,
    words: str,
    wanted: Callable[[bytes], Coroutine[Future[Any], None, Attributes]],
) -> None:
    if len(arguments.operands) < 2:
        raise CommandFailed(f"You must specify a path after a {arguments.name} command.")
    set_attributes = state.client.lsetstat if "h" in arguments.flags else state.client.setstat
    failed = False
    for path, _ in await _named(state, arguments.operands[1]):

        async def change(path: bytes = path) -> None:
            attributes = await wanted(path)
            state.name(f"{words} {shown(path)}")
            await set_attributes(path, attributes)

        failed |= not await _succeeds(state, change(), f"remote setstat {in_quotes(path)}")
    _end(failed)


async def _named(state: SftpState, pattern: bytes) -> Found:
    """What a pattern matches; the name itself if that is nothing, for its failure to be told."""
    found = await expand(state.client, state.absolute_pattern(pattern), follow=False)
    return found or [(state.absolute(wildcards.plain(pattern)), Attributes())]


async def _succeeds(state: SftpState, work: Work, what: str) -> bool:
    """Tells a failure, after which the next file follows."""
    try:
        await work
    except StatusError as error:
        state.complain(f"{what}: {error.strerror}")
        return False
    except CommandFailed as error:
        state.complain(str(error))
        return False
    return True


def _end(failed: bool) -> None:
    if failed:
        raise CommandFailed("")
