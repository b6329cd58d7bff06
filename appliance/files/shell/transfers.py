"""The commands of sftp that copy files: get, put, reget, reput."""

from __future__ import annotations

import os
import stat
import sys

from ...wire.sftp import Attributes
from .. import wildcards
from ..copying import CopySettings
from ..patterns import expand
from ..progress import Lines, Silent, shown
from ..sftp_client import StatusError
from .state import Arguments, CommandFailed, SftpState, in_quotes


async def progress(state: SftpState, arguments: Arguments) -> None:
    """Turns the progress lines on or off."""
    state.draws_progress = not state.draws_progress
    state.say(f"Progress meter {'enabled' if state.draws_progress else 'disabled'}")


async def get(state: SftpState, arguments: Arguments) -> None:
    """Copies files from the server."""
    from ..downloads import Download

    pattern = state.absolute_pattern(arguments.operands[0])
    found = await expand(state.client, pattern, follow=True)
    if not found:
        raise CommandFailed(f"File {in_quotes(wildcards.plain(pattern))} not found.")
    target = _operand(arguments, 1)
    is_directory = target is not None and os.path.isdir(target)
    if len(found) > 1 and target is not None and not is_directory:
        raise CommandFailed(
            f"Multiple source paths, but destination {in_quotes(target)} is not a directory"
        )
    settings, told = _settings(state, arguments), _progress(state)
    download = Download(state.loop, state.client, settings, told)
    verb = "Resuming" if settings.resume else "Fetching"
    for source, attributes in found:
        name = os.path.basename(source.rstrip(b"/")) or b"."
        path = name if target is None else os.path.join(target, name) if is_directory else target
        mark = b"/" if _is_directory(attributes) and not source.endswith(b"/") else b""
        state.name(f"{verb} {shown(source + mark)} to {shown(path)}")
        if mark and settings.recursive:
            state.name(f"Retrieving {shown(source)}")
        if stat.S_ISLNK(attributes.permissions or 0):  # it leads nowhere, as the server will say
            attributes = Attributes()
        download.add(source, path, attributes)
    sys.stdout.flush()
    await download.run()
    if told.failures:
        raise CommandFailed("")


async def put(state: SftpState, arguments: Arguments) -> None:
    """Copies files to the server."""
    from ..uploads import Upload

    pattern = arguments.operands[0]
    found = _local(pattern)
    target = _operand(arguments, 1)
    is_directory = False
    if target is not None:
        target = state.absolute(target)
        is_directory = await is_remote_directory(state, target)
    if len(found) > 1 and target is not None and not is_directory:
        raise CommandFailed(
            f"Multiple paths match, but destination {in_quotes(target)} is not a directory"
        )
    settings, told = _settings(state, arguments), _progress(state)
    upload = Upload(state.loop, state.client, settings, told)
    verb = "Resuming upload of" if settings.resume else "Uploading"
    failed = False
    for source in found:
        try:
            mode = os.stat(source).st_mode
        except OSError as error:
            state.complain(f"stat {shown(source)}: {error.strerror}")
            failed = True
            continue
        name = os.path.basename(source.rstrip(b"/")) or b"."
        if target is None:
            path = state.absolute(name)
        else:
            path = os.path.join(target, name) if is_directory else target
        mark = b"/" if stat.S_ISDIR(mode) and not source.endswith(b"/") else b""
        state.name(f"{verb} {shown(source + mark)} to {shown(path)}")
        if mark and settings.recursive:
            state.name(f"Entering {shown(source + mark)}")
        upload.add(source, path)
    sys.stdout.flush()
    await upload.run()
    if told.failures or failed:
        raise CommandFailed("")


def _operand(arguments: Arguments, index: int) -> bytes | None:
    operand = arguments.operand(index)
    return None if operand is None else wildcards.plain(operand)


def _settings(state: SftpState, arguments: Arguments) -> CopySettings:
    """The settings of the session, and those of the command's flags."""
    flags, settings = arguments.flags, state.settings
    return settings._replace(
        preserve=settings.preserve or "p" in flags.lower(),
        recursive=settings.recursive or "r" in flags.lower(),
        resume=settings.resume or "a" in flags or arguments.name.startswith("re"),
        fsync=settings.fsync or "f" in flags,
    )


def _progress(state: SftpState) -> Silent:
    return Lines("", sys.stdout.write) if state.draws_progress else Silent("")


def _is_directory(attributes: Attributes) -> bool:
    return stat.S_ISDIR(attributes.permissions or 0)


async def is_remote_directory(state: SftpState, path: bytes) -> bool:
    """Whether a path at the server is a directory, or leads to one."""
    try:
        return await state.client.is_directory(path, await state.client.stat(path))
    except StatusError:
        return False


def _local(pattern: bytes) -> list[bytes]:
    """What a pattern matches here; the name itself if that is nothing."""
    if wildcards.is_pattern(pattern):
        import glob

        # glob's way to make a character ordinary is a bracket around it
        found = sorted(glob.glob(_for_glob(pattern)))
        if found:
            return found
    return [wildcards.plain(pattern)]


def _for_glob(pattern: bytes) -> bytes:
    from glob import escape

    parts, at = [], 0
    while at < len(pattern):
        if pattern[at : at + 1] == b"\\":
            parts.append(escape(pattern[at + 1 : at + 2]))
            at += 2
        else:
            parts.append(pattern[at : at + 1])
            at += 1
    return b"".join(parts)
