"""The privileged half of one connection: a loop over the request table.

It runs as root and reads nothing from the network. The worker reads from the network, and asks the
monitor for all that it may not do itself. The monitor decides by the table, by the user and keys
that were authenticated, and by the system's own files.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from ..config.server import ServerConfig
from ..errors import MalformedMessage
from ..process import merging
from ..process.passed_lines import PassedLines
from . import audit, programs, tunnels
from .authentication import Authentication, LoggedIn
from .display_numbers import DisplayNumbers
from .file_reports import FileReports
from .forward_grants import ForwardGrants
from .host_keys import HostKeys
from .peer import Peer
from .penalties import Ending
from .requests import (
    DATAGRAM,
    FAILED,
    GRANTED,
    QUESTION,
    REFUSED,
    TABLE,
    ClientAnswers,
    Deny,
    Failed,
    LogLine,
    Reply,
    ReportTotals,
    Row,
    When,
)
from .session_grants import SessionGrants
from .tunnel_grants import TunnelGrants
from .x11_grants import X11Grants

_log = logging.getLogger(__name__)


class Monitor:
    """Answers the requests of one connection's worker, and ends a worker that breaks the rules."""

    def __init__(
        self,
        config: ServerConfig,
        host_keys: HostKeys,
        display_numbers: DisplayNumbers,
        peer: Peer,
        sock: socket.socket,
        worker: int,
        authenticated: Callable[[], None],
    ) -> None:
        self._config = config
        self._display_numbers = display_numbers
        self._peer = peer
        self._sock = sock
        self._sock.setblocking(False)
        self._worker = worker
        self._worker_status: int | None = None  # its wait status, once it has ended
        self._tell_listener = authenticated
        self._counts: dict[int, int] = {}
        self._told_to_end = False
        self._authentication = Authentication(config, host_keys, peer, self._logged_in)
        self._handlers = self._authentication.handlers()
        self._handlers[ReportTotals] = self.report_totals
        self._handlers[LogLine] = self.log_line
        self._lines = PassedLines("worker")
        self._totals: ReportTotals | None = None
        self._started = time.monotonic()
        self._sessions: SessionGrants | None = None
        self._reports = FileReports()
        self._forwards: ForwardGrants | None = None
        self._tunnels: TunnelGrants | None = None
        self._displays: X11Grants | None = None
        self._questioned = False  # by another connection's monitor; the worker does not know yet
        self._answer_by: float | None = None  # when the client must have answered
        self._deadline = (
            time.monotonic() + config.login_grace_time if config.login_grace_time else None
        )

    def _logged_in(self, login: LoggedIn) -> None:
        self._deadline = None
        if self._config.merge_memory:
            merging.begin()
        self._tell_listener()
        self._forwards = ForwardGrants(login)
        self._displays = X11Grants(login, self._display_numbers)
        self._sessions = SessionGrants(
            login, self._peer, self._forwards.environment, self._displays, self._reports
        )
        self._tunnels = TunnelGrants(login)
        for grants in (self._sessions, self._tunnels, self._forwards, self._displays):
            self._handlers |= grants.handlers()
        self._handlers[ClientAnswers] = self.client_answers

    # -- the loop --------------------------------------------------------------------

    def run(self) -> Ending:
        """Serves until the worker ends; returns how the connection ended."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(tunnels.QUESTION, self._on_question)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        self._reports.watch(poll)
        ending = Ending.CRASH
        try:
            ending = self._ending(self._loop(poll, wake_read))
        finally:
            self._kill_worker()
            self._reports.close()
            if self._forwards is not None:
                self._forwards.close()
            if self._displays is not None:
                self._displays.close()
            self._tell_end(ending)
        return ending

    def _loop(self, poll: select.poll, wake_read: int) -> bool:
        """Serves requests until the connection ends; returns whether the grace time ended it."""
        while True:
            timeout = None
            deadlines = [due for due in (self._deadline, self._answer_by) if due is not None]
            if deadlines:
                timeout = max(0.0, min(deadlines) - time.monotonic()) * 1000
            ready = dict(poll.poll(timeout))
            if wake_read in ready:
                os.read(wake_read, 512)
                self._reap()
            if self._questioned:
                self._ask_client()
            self._reports.read(ready)
            if self._sock.fileno() in ready and not self._serve():
                return False
            if self._answer_by is not None and time.monotonic() >= self._answer_by:
                self._answer_by = None
                _log.info("the client does not answer, and another connection wants its tunnel")
                self._on_term()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                audit.write(audit.Late(grace_time=self._config.login_grace_time))
                self._kill_worker()
                return True

    def _tell_end(self, ending: Ending) -> None:
        reason = ending.name.lower()
        if self._worker_status and os.WIFSIGNALED(self._worker_status):
            reason += f" ({signal.strsignal(os.WTERMSIG(self._worker_status))})"
        audit.write(
            audit.Disconnected(
                seconds=round(time.monotonic() - self._started, 1),
                reason=reason,
                received=self._totals.received if self._totals else None,
                sent=self._totals.sent if self._totals else None,
            )
        )

    def log_line(self, request: LogLine) -> Reply:
        self._lines.write(request.level, request.text)
        return b"", []

    def report_totals(self, request: ReportTotals) -> Reply:
        self._totals = request
        return b"", []

    def _on_question(self, *_: object) -> None:
        self._questioned = True

    def _ask_client(self) -> None:
        """Asks whether the client is alive, because another connection wants its tunnel's device.

        The worker passes the question on. If no answer comes in time, monitor and worker end.
        """
        self._questioned = False
        if self._answer_by is None:
            self._answer_by = time.monotonic() + tunnels.ANSWER_SECONDS
            with contextlib.suppress(OSError):  # the worker has ended, or does not read
                self._sock.send(QUESTION)

    def client_answers(self, request: ClientAnswers) -> Reply:
        """Notes that the client is alive; the answer is empty."""
        self._answer_by = None
        if self._tunnels is not None:
            self._tunnels.tell_client_answers()
        return b"", []

    def _on_term(self, *_: object) -> None:
        """Ends the worker, and so the connection: its tunnel's device is to become free."""
        self._told_to_end = True
        self._kill_worker()

    def _kill_worker(self) -> None:
        if self._worker_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)

    def _ending(self, late: bool) -> Ending:
        """How the connection ended, for the listener; waits for the worker, which is ending."""
        if self._worker_status is None:
            _, self._worker_status = os.waitpid(self._worker, 0)
        self._reap()
        if late:
            return Ending.GRACE_TIME
        if self._worker_status and not self._told_to_end:
            return Ending.CRASH
        if self._authentication.is_done:
            return Ending.NORMAL
        if not self._authentication.failures:
            return Ending.NO_AUTHENTICATION
        return Ending.FAILED if self._authentication.user_is_known else Ending.UNKNOWN_USER

    def _reap(self) -> None:
        for pid, status in programs.ended_children():
            if pid == self._worker:
                self._worker_status = status
            if self._sessions is not None:
                self._sessions.ended(pid, status)

    def _serve(self) -> bool:
        try:
            data = self._sock.recv(DATAGRAM)
        except ConnectionResetError:  # the worker was killed before it read the last answer
            return False
        if not data:
            return False
        row = TABLE.get(data[0])
        now = When.AFTER if self._authentication.is_done else When.BEFORE
        if row is None or now not in row.when:
            return self._end_worker(f"it asked for {data[0]}, which is not allowed now")
        if self._authentication.is_over and row.when is When.BEFORE:
            return self._end_worker("it goes on after the last attempt to log in")
        count = self._counts[data[0]] = self._counts.get(data[0], 0) + 1
        if count > row.limit:
            return self._end_worker(f"it asked too often for {row.message.__name__}")
        # before authentication, events are written at once: a login before the worker learns of it
        with audit.held() if now is When.AFTER else contextlib.nullcontext():
            return self._answer(row, data)

    def _answer(self, row: Row, data: bytes) -> bool:
        first = GRANTED
        try:
            answer, descriptors = self._handlers[row.message](row.message.decode(data))
        except MalformedMessage as error:
            return self._end_worker(f"a malformed request: {error}")
        except Deny as denial:
            answer, descriptors = str(denial).encode(), []
            first = FAILED if isinstance(denial, Failed) else REFUSED
        except Exception:  # the root of a request: no request may end the monitor
            _log.exception("%s failed", row.message.__name__)
            answer, descriptors = b"the server could not do this", []
            first = REFUSED
        if not row.is_answered:
            return True
        try:
            socket.send_fds(self._sock, [first + answer], descriptors)
        except BlockingIOError:  # a worker that waits for its answer has room for it
            return self._end_worker("it does not take its answers")
        except OSError:
            return False
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _end_worker(self, why: str) -> bool:
        """Kills the worker, which was taken over if it breaks the rules; returns False."""
        _log.warning("the worker is ended: %s", why)
        self._kill_worker()
        return False
