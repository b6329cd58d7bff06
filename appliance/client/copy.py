"""What scp does: copies between this machine and hosts, or between two hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from ..aio.loop import Loop
from ..aio.tasks import run
from ..errors import UsageError
from ..files.copying import CopySettings
from ..files.patterns import matching
from ..files.places import Place
from ..files.progress import Silent
from ..files.sftp_client import SftpClient, StatusError
from ..wire.sftp import Attributes
from .sftp_session import SftpSession


class Copy:
    """One run of scp: its sessions, one for each host, and what failed."""

    def __init__(
        self,
        connect: Callable[[Loop, Place], SftpSession],
        settings: CopySettings,
        progress: Silent,
    ) -> None:
        """``connect`` logs in to the host of a place."""
        self._connect = connect
        self._settings = settings
        self._progress = progress
        self._loop = Loop()
        self._sessions: dict[tuple[str, str, int], SftpSession] = {}

    def run(self, sources: Sequence[Place], target: Place) -> bool:
        """Copies the sources into or to the target; returns whether everything was copied."""
        try:
            run(self._loop, self._copy(sources, target))
        finally:
            for session in self._sessions.values():
                session.close()
            self._loop.close()
        return not self._progress.failures

    async def _session(self, place: Place) -> SftpClient:
        key = place.user, place.host, place.port
        if key not in self._sessions:
            session = self._sessions[key] = self._connect(self._loop, place)
            await session.start()
        return self._sessions[key].client

    async def _copy(self, sources: Sequence[Place], target: Place) -> None:
        if not target.host:
            await self._to_here(sources, os.fsencode(target.path))
            return
        client = await self._session(target)
        path = await _resolved(client, target.path)
        is_directory = await self._is_directory(client, path)
        if len(sources) > 1 and not is_directory:
            raise UsageError(f"{target.path or '.'}: Not a directory")
        for source in sources:
            if source.host:
                await self._across(source, client, path, is_directory)
        local = [source for source in sources if not source.host]
        if local:
            from ..files.uploads import Upload

            upload = Upload(self._loop, client, self._settings, self._progress)
            for source in local:
                name = os.fsencode(source.path)
                upload.add(name, _below(path, name, is_directory))
            await upload.run()

    async def _is_directory(self, client: SftpClient, path: bytes) -> bool:
        try:
            return await client.is_directory(path, await client.stat(path))
        except StatusError:
            return False

    async def _across(
        self, source: Place, target: SftpClient, path: bytes, is_directory: bool
    ) -> None:
        from ..files.crossings import Crossing

        client = await self._session(source)
        crossing = Crossing(self._loop, client, target, self._settings, self._progress)
        found = await self._found(client, source)
        if len(found) > 1 and not is_directory:
            raise UsageError(f"{os.fsdecode(path)}: Not a directory")
        for name, attributes in found:
            crossing.add(name, _below(path, name, is_directory), attributes)
        await crossing.run()

    async def _to_here(self, sources: Sequence[Place], target: bytes) -> None:
        from ..files.downloads import Download

        is_directory = os.path.isdir(target)
        if len(sources) > 1 and not is_directory:
            raise UsageError(f"{os.fsdecode(target)}: {os.strerror(errno.ENOTDIR)}")
        for source in sources:
            if not source.host:
                if not copy_here(os.fsencode(source.path), target, self._settings):
                    self._progress.failures += 1
                continue
            client = await self._session(source)
            download = Download(self._loop, client, self._settings, self._progress)
            found = await self._found(client, source)
            if len(found) > 1 and not is_directory:
                raise UsageError(f"{os.fsdecode(target)}: {os.strerror(errno.ENOTDIR)}")
            for name, attributes in found:
                download.add(name, _below(target, name, is_directory), attributes)
            await download.run()

    async def _found(self, client: SftpClient, source: Place) -> list[tuple[bytes, Attributes]]:
        try:
            return await matching(client, await _resolved(client, source.path))
        except StatusError as error:
            self._progress.failed(os.fsencode(source.path), error)
            return []


def copy_here(source: bytes, target: bytes, settings: CopySettings) -> bool:
    """Copies on this machine, by cp(1); returns whether that worked."""
    import subprocess

    flags = ["-r"] * settings.recursive + ["-p"] * settings.preserve
    return not subprocess.run(["cp", *flags, "--", source, target], check=False).returncode


async def _resolved(client: SftpClient, path: str) -> bytes:
    """The path for the server; one that begins with ~ becomes absolute."""
    name = os.fsencode(path) or b"."
    return await client.expand_path(name) if name.startswith(b"~") else name


def _below(target: bytes, source: bytes, is_directory: bool) -> bytes:
    """The path that a source gets: in the target if that is a directory, else the target."""
    name = os.path.basename(source.rstrip(b"/"))
    return target if not is_directory or name in (b"", b".", b"..") else os.path.join(target, name)
