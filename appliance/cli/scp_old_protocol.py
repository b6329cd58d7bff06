"""culvert scp -O: copies by the old scp protocol, over a program that is an ssh."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..client.copy import copy_here
from ..errors import UsageError
from ..files.old_scp import near_end
from ..files.old_scp.near_end import BlockingPace, far_command
from ..files.old_scp.peer import ScpSettings
from ..log import harmless
from .options import Options

if TYPE_CHECKING:
    from ..client.sftp_session import Host
    from ..files.copying import CopySettings
    from ..files.places import Place
    from ..files.progress import Silent


class OldCopy:
    """One run of scp -O."""

    def __init__(
        self,
        options: Options,
        host_of: Callable[[Place], Host],
        settings: CopySettings,
        progress: Silent,
    ) -> None:
        self._host_of = host_of
        self._takes_any_name = "T" in options
        self._here = settings
        self._progress = progress
        self._settings = ScpSettings(
            settings.recursive,
            settings.preserve,
            self._tell if "v" in options else None,
            progress.begin,
            BlockingPace(settings.rate).wait if settings.rate else None,
        )

    def _tell(self, text: bytes) -> None:
        self._progress.tell(harmless(text.decode(errors="backslashreplace")))

    def run(self, sources: Sequence[Place], target: Place) -> bool:
        """Copies the sources into or to the target; returns whether everything was copied."""
        must_be_directory = len(sources) > 1
        if not target.host and must_be_directory and not os.path.isdir(target.path):
            raise UsageError(f"{target.path}: {os.strerror(errno.ENOTDIR)}")
        done = [
            self._from_host(source, target, must_be_directory) for source in sources if source.host
        ]
        local = [os.fsencode(source.path) for source in sources if not source.host]
        if local and target.host:
            words = self._words(target, "t", must_be_directory)
            done.append(near_end.upload(words, local, self._settings, self._tell))
        elif local:
            into = os.fsencode(target.path)
            done += [copy_here(source, into, self._here) for source in local]
        return all(done)

    def _from_host(self, source: Place, target: Place, must_be_directory: bool) -> bool:
        words = self._words(source, "f")
        request = None if self._takes_any_name else os.fsencode(source.path)
        if target.host:
            to_words = self._words(target, "t", must_be_directory)
            return near_end.between(words, request, to_words, self._settings, self._tell)
        return near_end.download(
            words,
            request,
            os.fsencode(target.path),
            self._settings,
            self._tell,
            must_be_directory,
        )

    def _words(self, place: Place, letter: str, must_be_directory: bool = False) -> list[str]:
        """The command line of the ssh that runs the far end's scp."""
        command = far_command(letter, place.path or ".", self._settings, must_be_directory)
        return self._host_of(place)._replace(command=command).words()
