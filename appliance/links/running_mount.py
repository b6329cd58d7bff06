"""One declared mount while its supervisor runs: its state, and the program that serves it.

The program is ``culvert sshfs``, a child. It connects again by itself when the connection was lost;
here it is started again when it has ended.
"""

import contextlib
import logging
import os
import random
import socket
import subprocess
from collections.abc import Callable
from typing import Final

from ..aio.loop import Loop, Timer
from ..config.links import DeclaredMount
from ..errors import CulvertError, MalformedMessage, UsageError
from ..mount.options import MountLine
from ..process import ourselves
from ..process.passed_lines import PassedLines
from . import mount_record, reports
from .declarations import options_of, settings_of, source_of
from .link import LinkEvent, LinkLife, LinkState
from .mount_record import END_SECONDS, MountRecord
from .running import LOGIN_SECONDS

_log = logging.getLogger(__name__)

# Our own choice
GRACE: Final = 1.0  # seconds that a program gets to end after its last report

_PROGRAM: Final = "from appliance.multicall import main; sys.exit(main())"
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class RunningMount:
    """Runs one mount from ``start`` to ``stop``; owns its program."""

    def __init__(
        self,
        mount: DeclaredMount,
        loop: Loop,
        changed: Callable[[], None],
        process_ended: Callable[[], None],
    ) -> None:
        self.mount = mount
        self.life = LinkLife(loop.time())
        self.round_trip: float | None = None  # seconds
        self._loop = loop
        self._changed = changed
        self._process_has_ended = process_ended
        self._lines = PassedLines(f"mount {mount.name}")
        self._program: subprocess.Popen[bytes] | None = None
        self._reports: socket.socket
        self._progress: reports.MountProgress | None = None  # the last one of this program
        self._past_traffic = 0, 0  # of the programs before
        self._failure: reports.AttemptFailed | None = None
        self._timer: Timer | None = None  # for the next attempt, or for the limit of this one

    # -- from outside ----------------------------------------------------------------

    @property
    def process(self) -> int:
        """The id of the program's process; 0 while there is none."""
        return 0 if self._program is None else self._program.pid

    @property
    def traffic(self) -> tuple[int, int]:
        """Returns the bytes of SFTP from and to the server."""
        received, sent = self._past_traffic
        if self._progress is None:
            return received, sent
        return received + self._progress.received, sent + self._progress.sent

    def start(self) -> None:
        """Begins to mount, unless that has begun already."""
        if self.life.state in (LinkState.IDLE, LinkState.STOPPED):
            self._happened(LinkEvent.START)

    def ask_to_end(self) -> None:
        """Has the program write what it owes the server, and unmount; ``stop`` waits for it.

        SIGTERM would do, but a second one, such as systemd's, has it end at once.
        """
        if self._program is not None:
            self._reports.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Unmounts; raises CulvertError if what was written has not reached the server."""
        self._happened(LinkEvent.STOP)
        self.ask_to_end()
        was_mounted = self._progress is not None
        if self._program is not None and was_mounted:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._program.wait(END_SECONDS)
        status = self._end_program()
        mount_record.end_left(self.mount.name)
        if status and was_mounted:
            raise CulvertError(
                f"{self.mount.mountpoint} is unmounted, but not all that was written there has"
                " reached the server"
            )

    def network_changed(self) -> None:
        """Tries again now: the cause of waiting may be gone."""
        self._happened(LinkEvent.NETWORK_CHANGED)

    # -- its state -------------------------------------------------------------------

    def _happened(self, event: LinkEvent, why: str = "") -> None:
        life, name = self.life, self.mount.name
        before = life.state
        why = reports.one_line(why, 1000)  # it may come from the server
        state = life.happened(event, self._loop.time(), random.random(), why)
        if state is before:
            return
        self._stop_timer()
        match state:
            case LinkState.DIALLING if self._program is None:
                self._mount()
            case LinkState.UP:
                _log.info("mount %s is up: %s", name, self.mount.mountpoint)
            case LinkState.BACKING_OFF:
                self._timer = self._loop.call_at(life.due, self._happened, LinkEvent.DUE)
                wait = life.due - self._loop.time()
                _log.warning("mount %s: %s; again in %.0f s", name, why, wait)
            case LinkState.STOPPED:
                _log.error("mount %s has stopped: %s", name, why)
            case LinkState.IDLE:
                _log.info("mount %s is down", name)
        self._changed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- its program -----------------------------------------------------------------

    def _mount(self) -> None:
        """Starts the program."""
        name = self.mount.name
        try:
            mount_record.end_left(name)
            line = options_of(self.mount)
            mountpoint = os.path.realpath(self.mount.mountpoint)
            self._start(mountpoint)
        except (CulvertError, OSError) as error:
            self._happened(LinkEvent.LOST, str(error))
            return
        source = line.source or source_of(self.mount)
        mount_record.save(name, MountRecord(self.process, mountpoint, source))
        self._timer = self._loop.call_later(_patience(self.mount, line), self._too_slow)

    def _start(self, mountpoint: str) -> None:
        """Starts the program, and tells it how to log in; raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = ["sshfs", "-f", "--supervised", str(theirs.fileno())]
        for option in self.mount.options:
            words += ["-o", option]
        words += ["--", source_of(self.mount), mountpoint]
        settings = [os.fsencode(text) for pair in settings_of(self.mount) for text in pair]
        try:
            with theirs:
                ours.send(reports.MountOrder(tuple(settings)).encode())
                self._program = subprocess.Popen(
                    ourselves.command(_PROGRAM, *words),
                    env=_ENVIRONMENT,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # ^C is for the supervisor
                )
        except OSError:
            ours.close()
            raise
        self._failure = None
        self._reports = ours
        ours.setblocking(False)
        self._loop.watch_reader(ours.fileno(), self._on_report)

    def _too_slow(self) -> None:
        self._end_program()
        self._happened(LinkEvent.LOST, "the server did not let it mount in time")

    def _on_report(self) -> None:
        try:
            data = self._reports.recv(reports.DATAGRAM)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._program_ended()
            return
        try:
            self._take(data)
        except MalformedMessage as error:  # the program has a bug or was taken over
            self._end_program()
            self._happened(LinkEvent.REFUSED, f"its program broke the rules: {error}")

    def _take(self, data: bytes) -> None:
        """Takes a report, of which nothing has more effect than to be shown."""
        kind = reports.MOUNT_KINDS.get(data[0])
        if kind is None:
            raise MalformedMessage("no such report")
        message = kind.decode(data)
        match message:
            case reports.MountProgress():
                self._on_progress(message)
            case reports.PassedLine():
                self._lines.write(message.level, message.text)
            case reports.AttemptFailed():
                self._failure = message

    def _on_progress(self, message: reports.MountProgress) -> None:
        self._progress = message
        self.round_trip = message.round_trip / 1e6
        state = self.life.state
        if message.is_connected and state is LinkState.DIALLING:
            self._happened(LinkEvent.OPENED)
        elif not message.is_connected and state is LinkState.UP:
            self._happened(LinkEvent.SILENT, message.last_error)

    def _program_ended(self) -> None:
        """Takes note that the program has closed its socket, which is one of its last steps."""
        failure = self._failure
        if self._program is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._program.wait(GRACE)
        status = self._end_program()
        if failure is not None:
            self._happened(LinkEvent.REFUSED if failure.final else LinkEvent.LOST, failure.why)
        elif status == 0:
            self._happened(LinkEvent.LOST, "somebody has unmounted it")
        else:
            self._happened(LinkEvent.LOST, f"its program ended (status {status})")

    def _end_program(self) -> int:
        """Kills the program, unless it has ended, and unmounts; returns its exit status."""
        if self._program is None:
            return 0
        self._loop.watch_reader(self._reports.fileno(), None)
        self._program.kill()
        status = self._program.wait()
        with contextlib.suppress(OSError, MalformedMessage):  # its last lines for the log
            while data := self._reports.recv(reports.DATAGRAM):
                self._take(data)
        self._reports.close()
        self._past_traffic = self.traffic
        self._program = self._progress = self.round_trip = None
        self._process_has_ended()
        try:
            mount_record.end_left(self.mount.name)
        except UsageError as error:
            _log.error("mount %s: %s", self.mount.name, error)
        return status


def _patience(mount: DeclaredMount, line: MountLine) -> float:
    """Returns the seconds until the program must have mounted."""
    return mount.connect_timeout + LOGIN_SECONDS + line.mount.timeout
