"""culvert sftp, also sftp: copies and changes files at a host by commands, as OpenSSH's sftp."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from ..errors import CulvertError, PeerError, UsageError
from ..log import harmless
from .options import Option, Options, help_text, parse
from .scp import COPY_OPTIONS, host_of, rate, start_log

if TYPE_CHECKING:
    from ..aio.loop import Loop
    from ..aio.loop_thread import LoopThread
    from ..client.sftp_session import SftpSession
    from ..files.copying import CopySettings
    from ..files.places import Place
    from ..files.sftp_client import SftpClient
    from ..files.shell.shell import SftpShell
    from ..files.shell.state import SftpState

_log = logging.getLogger(__name__)

_FAILURE: Final = 1
_NO_CONNECTION: Final = 255  # as ssh

SPEC: Final = (
    *COPY_OPTIONS,
    Option("a", None, "continue files that are partly there"),
    Option("b", "file", "run the commands of this file, and end at the first failure; - is input"),
    Option("B", "bytes", "of one request; the server's limit by default"),
    Option("D", "server", "run this SFTP server program, without a connection"),
    Option("f", None, "flush each copied file to its disk"),
    Option("N", None, "tell what is copied, also with -b"),
    Option("R", "number", "of requests in flight for a file; it follows the path by default"),
    Option("s", "name", "the subsystem there, or the path of an SFTP server program"),
    Option("X", "key=value", "nrequests: as -R; buffer: as -B", True),
)
_ABOUT: Final = """\
Copies and changes files at a host, by commands; 'help' lists them. The destination is
[user@]host[:path] or sftp://[user@]host[:port][/path]; a path of a file copies it here."""


def main(arguments: list[str], name: str) -> int:
    """Runs commands; returns the exit status."""
    command = "culvert sftp" if os.path.basename(sys.argv[0]) != "sftp" else name
    try:
        options = parse(arguments, SPEC, command)
        if "help" in options:
            print(help_text(f"{command} [options] destination", _ABOUT, SPEC), end="")
            return 0
        if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack characters of names
            sys.stdout.reconfigure(errors="backslashreplace")
        return _Sftp(options, command).run()
    except UsageError as error:
        print(f"{command}: {harmless(str(error))}", file=sys.stderr)
        return _FAILURE
    except CulvertError as error:
        print(f"{command}: {harmless(str(error))}", file=sys.stderr)
        return _NO_CONNECTION
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads the output, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python writes at its end
        return _FAILURE
    except Exception:  # the root of a process
        _log.exception("sftp failed")
    return _FAILURE


class _Sftp:
    """One run of the program, as its command line wants it."""

    def __init__(self, options: Options, command: str) -> None:
        self._options = options
        self._command = command
        self._batch_file = options.value("b")
        self._is_interactive = self._batch_file is None and sys.stdin.isatty()
        is_quiet = "q" in options or self._batch_file is not None
        self._is_quiet = is_quiet and "N" not in options
        self._place = self._destination()
        start_log(options)

    def _destination(self) -> Place:
        from ..files.places import Place, parse_destination

        operands = self._options.operands
        if "D" in self._options:
            return Place("", "", 0, operands[0] if operands else "")
        if not operands:
            raise UsageError(f"expected a destination; try '{self._command} --help'")
        if len(operands) > 2:
            raise UsageError("too many words behind the destination")
        return parse_destination(operands[0])

    def run(self) -> int:
        """Connects, runs the commands, and ends the session; returns the exit status."""
        from ..aio.loop import Loop
        from ..aio.loop_thread import LoopThread

        settings = self._settings()
        batch = self._open_batch()
        loop = Loop()
        try:
            session = self._connect(loop)
            thread = LoopThread(loop)
            try:
                thread.call(session.start())
                return self._serve(loop, thread, session.client, settings, batch)
            finally:
                thread.close()
                session.close()
        finally:
            loop.close()

    def _settings(self) -> CopySettings:
        from ..files.copying import CopySettings

        options = self._options
        tuning = {"nrequests": options.value("R"), "buffer": options.value("B")}
        for text in options.values("X"):
            key, _, value = text.partition("=")
            if key not in tuning:
                raise UsageError(f"-X {text}: expected nrequests=N or buffer=BYTES")
            tuning[key] = value
        return CopySettings(
            preserve="p" in options,
            recursive="r" in options,
            resume="a" in options,
            fsync="f" in options,
            temporary_name="temporary-name" in options,
            buffer=_number("-B", tuning["buffer"], 1 << 30),
            requests=_number("-R", tuning["nrequests"], 1024),
            rate=rate(options),
            follow_links=False,
        )

    def _open_batch(self) -> BinaryIO | None:
        path = self._batch_file
        if path is None or path == "-":
            return None
        try:
            return open(path, "rb")
        except OSError as error:
            raise UsageError(f"-b {path}: {error.strerror}") from error

    def _connect(self, loop: Loop) -> SftpSession:
        from ..client.sftp_session import connect, run_server

        options = self._options
        if (server := options.value("D")) is not None:
            session = run_server(loop, shlex.split(server))
            self._greet(f"Attached to {server}.")
            return session
        # -B is scp's letter for what a batch has as well: nobody is there to ask
        given = [(letter, value) for letter, value in options if letter != "B"]
        if self._batch_file is not None:
            given.append(("B", ""))
        host = host_of(Options(given, options.operands), self._place)
        if subsystem := options.value("s"):
            if "/" in subsystem:
                host = host._replace(command=subsystem)
            else:
                host = host._replace(subsystem=subsystem)
        session = connect(loop, host, "q" in options)
        self._greet(f"Connected to {host.name}.")
        return session

    def _greet(self, text: str) -> None:
        if not self._is_quiet:
            print(harmless(text), file=sys.stderr)

    def _serve(
        self,
        loop: Loop,
        thread: LoopThread,
        client: SftpClient,
        settings: CopySettings,
        batch: BinaryIO | None,
    ) -> int:
        from ..files.shell.shell import SftpShell
        from ..files.shell.state import SftpState

        home = thread.call(client.realpath(b"."))
        draws = self._batch_file is None and sys.stdout.isatty() and "q" not in self._options
        state = SftpState(loop, client, home, settings, self._is_quiet, draws)
        shell = SftpShell(state, thread.call)
        try:
            if self._place.path and (copied := self._begin_at(shell, thread)) is not None:
                return 0 if copied else _FAILURE
            if self._is_interactive:
                shell.converse(self._typed(state, thread))
                return 0
            lines = _lines(batch if batch is not None else sys.stdin.buffer)
            return 0 if shell.batch(lines, stops=self._batch_file is not None) else _FAILURE
        except PeerError as error:
            state.complain(f"{self._command}: {harmless(str(error))}")
            return _NO_CONNECTION

    def _begin_at(self, shell: SftpShell, thread: LoopThread) -> bool | None:
        """Goes to the destination's directory, and returns None; or copies its file here.

        Returns whether that was copied.
        """
        from ..files import wildcards
        from ..files.progress import shown
        from ..files.shell.transfers import is_remote_directory

        path = os.fsencode(self._place.path)
        if path.startswith(b"~"):
            path = thread.call(shell.state.client.expand_path(path))
        path = shell.state.absolute(path)
        if thread.call(is_remote_directory(shell.state, path)):
            shell.state.name(f"Changing to: {shown(path)}")
            return None if shell.perform("cd", [wildcards.quoted(path)]) else False
        targets = [wildcards.quoted(os.fsencode(each)) for each in self._options.operands[1:]]
        return shell.perform("get", [path, *targets])

    def _typed(self, state: SftpState, thread: LoopThread) -> Iterator[bytes]:
        """The lines that a person types, edited by readline if it is there."""
        from ..files.shell.shell import PROMPT
        from . import sftp_editing

        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        sftp_editing.begin(state, thread)
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            yield os.fsencode(line)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    for line in file:
        yield line.rstrip(b"\n")


def _number(option: str, text: str | None, highest: int) -> int:
    """The number of an option; 0 if it was not given."""
    if text is None:
        return 0
    scale = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text[:-1] if scale > 1 else text
    if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) * scale <= highest:
        raise UsageError(f"{option} {text}: expected a number from 1 to {highest}")
    return int(digits) * scale
