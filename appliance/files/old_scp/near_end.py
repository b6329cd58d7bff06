"""The near end of the old scp protocol: runs the far end's ``scp`` by a program that is an ssh.

Each function takes the program's command line with the far end's command (``far_command``) in it,
and returns whether everything was copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

from ...errors import UsageError
from .peer import READ, ScpPeer, ScpSettings
from .relay import ScpRelay
from .request import wanted
from .sink import ScpSink
from .source import ScpSource

_F_SETPIPE_SZ: Final = 1031

Tell = Callable[[bytes], None]  # gets each message for the user, as the far end sent it


def far_command(
    letter: str, path: str, settings: ScpSettings, must_be_directory: bool = False
) -> str:
    """Returns the far end's command: ``letter`` is t to send there, f to fetch from there.

    The far end's shell expands ``path``, as it always did.
    """
    words = ["scp"]
    if settings.trace is not None:
        words.append("-v")
    if settings.recursive:
        words.append("-r")
    if settings.preserve:
        words.append("-p")
    if must_be_directory:
        words.append("-d")
    words.append(f"-{letter}")
    if path.startswith("-"):
        words.append("--")
    return " ".join((*words, path))


def upload(
    words: Sequence[str], sources: Sequence[bytes], settings: ScpSettings, tell: Tell
) -> bool:
    """Sends local files."""
    with _Program(words) as program:
        peer = ScpPeer(program.read_fd, program.write_fd, tell)
        return program.ends_well(peer.run(lambda: ScpSource(peer, settings).send(sources)))


def download(
    words: Sequence[str],
    request: bytes | None,
    target: bytes,
    settings: ScpSettings,
    tell: Tell,
    must_be_directory: bool = False,
) -> bool:
    """Receives files into ``target``.

    ``request`` is the path that the far end was asked for: files of other names are refused.
    With None (-T), the far end may name what it likes.
    """
    with _Program(words) as program:
        peer = ScpPeer(program.read_fd, program.write_fd, tell)
        sink = ScpSink(peer, settings, _wanted(request))
        return program.ends_well(peer.run(lambda: sink.receive(target, must_be_directory)))


def _wanted(request: bytes | None) -> Callable[[bytes], bool]:
    return wanted(request) if request is not None else lambda name: True


def between(
    from_words: Sequence[str],
    request: bytes | None,
    to_words: Sequence[str],
    settings: ScpSettings,
    tell: Tell,
) -> bool:
    """Sends files of one far end to another, through this machine (-3); see ``download``."""
    with _Program(from_words) as source, _Program(to_words) as sink:
        relay = ScpRelay(
            ScpPeer(source.read_fd, source.write_fd, tell),
            ScpPeer(sink.read_fd, sink.write_fd, tell),
            settings,
            _wanted(request),
        )
        done = relay.run()
        is_well = source.ends_well(done)
        return sink.ends_well(done) and is_well


class BlockingPace:
    """Holds a copy to a number of bytes a second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0  # when the bytes so far are due

    def wait(self, count: int) -> None:
        """Waits as long as ``count`` more bytes would be too early."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count / self._rate
        if self._free_at > now:
            time.sleep(self._free_at - now)


class _Program:
    """A program that carries the protocol on its standard input and output."""

    def __init__(self, words: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(
                words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise UsageError(f"{words[0]}: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = self._process.stdin, self._process.stdout
        self.write_fd, self.read_fd = (pipe.fileno() for pipe in self._pipes)
        for fd in (self.write_fd, self.read_fd):
            with contextlib.suppress(OSError):  # the user's pipes may use up their quota
                fcntl.fcntl(fd, _F_SETPIPE_SZ, READ)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def ends_well(self, done: bool) -> bool:
        """Waits for the program's end if all was ``done``; returns whether both went well."""
        self._close()
        return done and self._process.wait() == 0

    def _close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
