"""Terminals and programs for the user who is logged in: the monitor's part of a session."""

import contextlib
import fnmatch
import logging
import os
import pwd
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..config.server import ServerConfig
from ..crypto.patterns import matches_list
from ..crypto.permissions import Permissions
from ..wire.codec import write_uint32
from . import accounts, audit, chroot, programs, sftp_program
from .authentication import LoggedIn
from .file_reports import FileReports
from .old_scp import with_our_scp
from .peer import Peer
from .requests import (
    ClosePty,
    Deny,
    EndSessions,
    Handlers,
    LearnSettings,
    OpenPty,
    Reply,
    SendSignal,
    SettingsReply,
    Spawn,
)
from .x11_grants import X11Grants

_log = logging.getLogger(__name__)

_SIGNALS: Final = frozenset(
    (
        "ABRT",
        "ALRM",
        "FPE",
        "HUP",
        "ILL",
        "INT",
        "KILL",
        "PIPE",
        "QUIT",
        "SEGV",
        "TERM",
        "USR1",
        "USR2",
        "STOP",
        "TSTP",
        "CONT",
        "WINCH",
        "INFO",
    )
)  # RFC 4254 section 6.10, and what OpenSSH adds


class _Running(NamedTuple):
    """A program that has not ended."""

    status: int  # descriptor for its wait status
    takes_signals: bool  # from the client; False where the client did not choose the program


class SessionGrants:
    """The terminals and programs that the sessions of one connection were given."""

    def __init__(
        self,
        login: LoggedIn,
        peer: Peer,
        more_environment: Callable[[], programs.Environment],
        displays: X11Grants,
        reports: FileReports,
    ) -> None:
        """``more_environment`` gives the variables that other grants set for programs."""
        self._reports = reports
        self._login = login
        self._more_environment = more_environment
        self._displays = displays
        self._peer = peer
        self._keys_environment = _permitted_environment(login.permissions, login.config)
        self._terminals: dict[int, programs.PseudoTerminal] = {}  # those without a program yet
        self._terminals_made = 0
        self._programs: dict[int, _Running] = {}  # by process id
        self._may_begin: int | None = None  # how many programs, if more sessions are not wanted

    def handlers(self) -> Handlers:
        """The handler of each request."""
        return {
            LearnSettings: self.learn_settings,
            OpenPty: self.open_pty,
            ClosePty: self.close_pty,
            Spawn: self.spawn,
            SendSignal: self.send_signal,
            EndSessions: self.end_sessions,
        }

    def learn_settings(self, request: LearnSettings) -> Reply:
        config = self._login.config
        reply = SettingsReply(
            tuple(pattern.encode() for pattern in config.accept_env),
            config.max_sessions,
            config.client_alive_interval,
            config.client_alive_count_max,
            config.idle_timeout,
            config.x11_relay,
        )
        return reply.encode(), []

    def open_pty(self, request: OpenPty) -> Reply:
        if not self._login.permissions.pty:
            raise Deny("this key may not have a terminal")
        if not self._login.config.permit_tty:
            raise Deny("this user may not have a terminal")
        self._check_sessions(len(self._programs) + len(self._terminals))
        try:
            with contextlib.ExitStack() as undo:
                terminal = programs.open_terminal(self._login.user)
                undo.callback(terminal.close)
                master = os.dup(terminal.master)
                undo.pop_all()
        except OSError as error:
            raise Deny(f"no terminal: {error.strerror}") from error
        self._terminals_made += 1
        self._terminals[self._terminals_made] = terminal
        return write_uint32(self._terminals_made), [master]

    def _check_sessions(self, others: int) -> None:
        """Raises Deny if ``others`` leave no session; each has one terminal and program at most.

        As with sshd, a program that goes on after its session counts until it ends.
        """
        if others >= self._login.config.max_sessions:
            raise Deny("too many sessions")
        if self._may_begin == 0:
            raise Deny("no more sessions were wanted")

    def end_sessions(self, request: EndSessions) -> Reply:
        """Lets only open sessions without a program begin one; the answer is empty."""
        self._may_begin = max(0, request.open_sessions - len(self._programs))
        return b"", []

    def close_pty(self, request: ClosePty) -> Reply:
        terminal = self._terminals.pop(request.terminal, None)
        if terminal is None:
            raise Deny("no terminal")
        terminal.close()
        return b"", []

    def spawn(self, request: Spawn) -> Reply:
        user, config = self._login.user, self._login.config
        terminal = self._terminals.get(request.terminal)
        if request.terminal and terminal is None:
            raise Deny("no terminal")
        display = self._displays.of_session(request.display)
        others = len(self._programs) + len(self._terminals) - (terminal is not None)
        self._check_sessions(others)
        environment = programs.base_environment(user, config.pass_environment)
        names, values = request.environment[::2], request.environment[1::2]
        for variable, content in zip(names, values, strict=False):
            # the worker has checked this, too, but a worker may be taken over
            if variable != b"TERM" and not _accepts_variable(variable, config):
                raise Deny("such a variable is not accepted")
            environment[variable] = content
        environment |= self._keys_environment
        peer = self._peer
        environment[b"SSH_CLIENT"] = f"{peer.address} {peer.port} {peer.local_port}".encode()
        environment[b"SSH_CONNECTION"] = (
            f"{peer.address} {peer.port} {peer.local_address} {peer.local_port}".encode()
        )
        environment |= self._more_environment()
        if display is not None:
            environment[b"DISPLAY"] = display.display.name
        command = self._command(request, environment)
        if isinstance(command, sftp_program.SftpServer):
            display = None
        if terminal is not None:
            environment[b"SSH_TTY"] = terminal.name.encode()
        greeting = _motd() if config.print_motd and terminal is not None else ""
        try:
            jail = chroot.directory(config.chroot_directory, user)
        except chroot.Unsafe as error:
            _log.error("user %s gets no program: %s", user.pw_name, error)
            raise Deny("the server's settings have a mistake") from error
        runs_rc = (
            not isinstance(command, sftp_program.SftpServer)
            and request.kind != "subsystem"
            and not config.force_command
            and config.permit_user_rc
            and self._login.permissions.user_rc
        )
        try:
            with contextlib.ExitStack() as undo:
                status_read, status_write = programs.pipe(undo)
                ours, theirs = self._report_sockets(command, undo)
                told = None if display is None else display.begin(environment, undo)
                program = programs.start(
                    user, command, environment, terminal, greeting, runs_rc, jail, theirs,
                    None if display is None else display.display, told,
                )  # fmt: skip
                undo.pop_all()
        except OSError as error:
            raise Deny(f"no process: {error.strerror}") from error
        if terminal is not None:
            del self._terminals[request.terminal]
            terminal.close()
        if told is not None:
            os.close(told)
        if ours is not None and theirs is not None:
            theirs.close()
            self._reports.add(program.pid, ours)
        takes_signals = request.kind != "subsystem" and self._forced is None
        self._programs[program.pid] = _Running(status_write, takes_signals)
        if self._may_begin:
            self._may_begin -= 1
        asked = request.command.decode(errors="replace")
        audit.write(
            audit.Session(
                kind=request.kind,
                terminal=terminal.name if terminal is not None else None,
                command=asked if config.audit_commands else None,
            )
        )
        return write_uint32(program.pid), [*program.descriptors, status_read]

    @property
    def _forced(self) -> str | None:
        """The command that runs instead of the requested one, None if there is none."""
        return self._login.config.force_command or self._login.permissions.command

    def _report_sockets(
        self, command: programs.Command, undo: contextlib.ExitStack
    ) -> tuple[socket.socket, socket.socket] | tuple[None, None]:
        """Our end and the program's, for an SFTP server whose changes go to the audit."""
        if not isinstance(command, sftp_program.SftpServer) or not self._login.config.audit_files:
            return None, None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        undo.callback(theirs.close)
        return ours, theirs

    def _command(self, request: Spawn, environment: programs.Environment) -> programs.Command:
        """The command to run: forced, the subsystem's or the requested one; None for a shell."""
        config, forced = self._login.config, self._forced
        command: programs.Command = request.command
        if request.kind == "subsystem":
            known = config.subsystems.get(request.command.decode(errors="replace"))
            if known is not None:
                command = _runnable(known, config)
            elif request.command == b"sftp" and config.sftp:
                command = sftp_program.of_settings(config)
            elif forced is None:
                raise Deny("no such subsystem")
        elif request.kind == "shell":
            command = None
        if forced is not None:  # command="" allows nothing
            if isinstance(command, sftp_program.SftpServer):
                command = request.command
            if command is not None:
                environment[b"SSH_ORIGINAL_COMMAND"] = command
            return _runnable(forced, config)
        if request.kind == "exec" and not config.chroot_directory:
            return with_our_scp(request.command, environment[b"PATH"])
        return command

    def send_signal(self, request: SendSignal) -> Reply:
        program = self._programs.get(request.process)
        if program is None or request.signal not in _SIGNALS:
            raise Deny("no such process or signal")
        if not program.takes_signals:
            raise Deny("a forced command and a subsystem get no signals")
        number = getattr(signal, "SIG" + request.signal, None)
        if number is not None:
            try:
                self._kill(self._login.user, request.process, number)
            except OSError as error:
                raise Deny(str(error.strerror)) from error
        return b"", []

    @staticmethod
    def _kill(user: pwd.struct_passwd, group: int, number: int) -> None:
        """Sends a signal with the user's rights; retries, as a new child may have no group yet."""
        for patience in (0.01, 0.03, 0.1, None):
            try:
                with accounts.as_user(user):
                    os.killpg(group, number)
                return
            except ProcessLookupError:
                if patience is None:
                    raise
                time.sleep(patience)

    def ended(self, pid: int, status: int) -> None:
        """Passes the wait status of a program that has ended to the worker."""
        program = self._programs.pop(pid, None)
        if program is not None:
            self._reports.ended(pid)
            with contextlib.suppress(OSError):  # the session may be over
                os.write(program.status, write_uint32(status & 0xFFFFFFFF))
            os.close(program.status)


def _runnable(text: str, config: ServerConfig) -> programs.Command:
    """A command of the settings or of a key's line, which may be ``internal-sftp``."""
    try:
        server = sftp_program.of_command(text, config)
    except ValueError as error:
        raise Deny(f"the options of internal-sftp: {error}") from error
    return os.fsencode(text) if server is None else server


def _accepts_variable(name: bytes, config: ServerConfig) -> bool:
    """Whether a client may set this variable of the environment (AcceptEnv)."""
    text = name.decode("latin-1")
    plain = text.isascii() and text.replace("_", "a").isalnum()
    return plain and any(fnmatch.fnmatchcase(text, pattern) for pattern in config.accept_env)


def _permitted_environment(permissions: Permissions, config: ServerConfig) -> programs.Environment:
    """The variables that a key's line sets and the server permits (PermitUserEnvironment).

    The user writes that line: with LD_PRELOAD they could turn a forced command into any other.
    """
    environment: programs.Environment = {}
    dropped = []
    for name, value in permissions.environment:
        if matches_list(name, ",".join(config.permit_user_environment)) is True:
            environment[name.encode()] = os.fsencode(value)
        else:
            dropped.append(name)
    if dropped:
        _log.info("permit_user_environment drops the key's %s", ", ".join(dropped))
    return environment


def _motd() -> str:
    text = ""
    for path in ("/run/motd.dynamic", "/etc/motd"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text += file.read(16384)
        except OSError:
            continue
    return text.replace("\n", "\r\n")
