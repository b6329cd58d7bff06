"""The privileged half of one connection: a loop over the request table.

It runs as root and reads nothing from the network. The worker, which does, asks for
what it may not do itself; the monitor decides by the table, by what was authenticated,
and by the system's own files. It verifies signatures itself, over data that it puts
together itself, so that even a worker that was taken over cannot let anybody in.
"""

import contextlib
import errno
import logging
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..config.server import ServerConfig
from ..crypto.authorized_keys import Permissions, from_matches
from ..crypto.keys import PrivateKey, PublicKey
from ..crypto.suites import MINIMUM_RSA_BITS
from ..errors import MalformedMessage, UsageError
from ..services.tunnel.device import exists, name_of, open_device, unit_of
from ..ssh.auth_server import Offer, signed_data
from ..wire.codec import Message, write_text, write_uint32
from ..wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT
from . import accounts, programs, tunnels
from .penalties import Ending
from .requests import (
    DATAGRAM,
    GRANTED,
    REFUSED,
    TABLE,
    TUNNELS_LIMIT,
    Begin,
    CloseTunnel,
    OpenPty,
    OpenTunnel,
    OutcomeReply,
    RefuseAttempt,
    SendSignal,
    ShowKey,
    Sign,
    Spawn,
    UseKey,
    UsePassword,
    When,
)

_log = logging.getLogger(__name__)

# Our own choices
FAILURE_SECONDS: Final = 0.02  # a failed attempt takes a multiple of this, whatever failed
PROGRAMS_LIMIT: Final = 100  # of one connection at a time

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


class Deny(Exception):
    """The answer is no; the text goes to the worker."""


class Peer:
    """Both ends of the connection, as text and numbers."""

    def __init__(self, sock: socket.socket) -> None:
        try:
            self.address, self.port = sock.getpeername()[:2]
            self.local_address, self.local_port = sock.getsockname()[:2]
        except (OSError, ValueError):  # inetd mode on something that is no TCP socket
            self.address, self.port, self.local_address, self.local_port = "UNKNOWN", 0, "", 0
        self.address = self.address.removeprefix("::ffff:") if self.address else "UNKNOWN"


class Monitor:
    """One connection's privileges."""

    def __init__(
        self,
        config: ServerConfig,
        host_keys: Mapping[str, PrivateKey],
        peer: Peer,
        sock: socket.socket,
        worker: int,
        authenticated: Callable[[], None],
    ) -> None:
        self._config = config
        self._host_keys = host_keys
        self._peer = peer
        self._sock = sock
        self._worker = worker
        self._worker_status: int | None = None  # once it has ended
        self._tell_listener = authenticated
        self._session_id = b""
        self._counts: dict[int, int] = {}
        self._failures = 0
        self._satisfied: list[str] = []
        self._user: pwd.struct_passwd | None = None
        self._permissions = Permissions()
        self._authenticated = False
        self._user_key: PublicKey | None = None  # that signed
        self._tunnels: dict[str, tunnels.Claim | None] = {}  # devices that the worker has
        self._told_to_end = False
        self._terminals: dict[int, programs.Terminal] = {}  # that no program has yet
        self._terminals_made = 0
        self._programs: dict[int, int] = {}  # pid -> descriptor for its status
        self._deadline = (
            time.monotonic() + config.login_grace_time if config.login_grace_time else None
        )

    # -- the loop --------------------------------------------------------------------

    def run(self) -> Ending:
        """Serve until the worker ends."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        late = False
        while not late:
            timeout = None
            if self._deadline is not None:
                timeout = max(0.0, self._deadline - time.monotonic()) * 1000
            ready = dict(poll.poll(timeout))
            if wake_read in ready:
                os.read(wake_read, 512)
                self._reap()
            if self._sock.fileno() in ready and not self._serve():
                break
            if self._deadline is not None and time.monotonic() >= self._deadline:
                _log.info(
                    "no login from %s within %d s",
                    self._peer.address,
                    self._config.login_grace_time,
                )
                self._kill_worker()
                late = True
        return self._ending(late)

    def _on_term(self, *_: object) -> None:
        """Somebody else is to have our tunnel's device; the worker ends, and so do we."""
        self._told_to_end = True
        self._kill_worker()

    def _kill_worker(self) -> None:
        if self._worker_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)

    def _ending(self, late: bool) -> Ending:
        """What the listener is to know; the worker is gone, or about to go."""
        if self._worker_status is None:
            _, self._worker_status = os.waitpid(self._worker, 0)
        self._reap()
        if late:
            return Ending.GRACE_TIME
        if self._worker_status and not self._told_to_end:
            return Ending.CRASH
        if self._authenticated:
            return Ending.NORMAL
        if not self._failures:
            return Ending.NO_AUTHENTICATION
        return Ending.FAILED if self._user is not None else Ending.UNKNOWN_USER

    def _reap(self) -> None:
        for pid, status in programs.ended_children():
            if pid == self._worker:
                self._worker_status = status
            fd = self._programs.pop(pid, None)
            if fd is not None:
                with contextlib.suppress(OSError):  # the session may be over
                    os.write(fd, write_uint32(status & 0xFFFFFFFF))
                os.close(fd)

    def _serve(self) -> bool:
        try:
            data = self._sock.recv(DATAGRAM)
        except ConnectionResetError:  # it was killed before it read our last answer
            return False
        if not data:
            return False
        row = TABLE.get(data[0])
        now = When.AFTER if self._authenticated else When.BEFORE
        if row is None or now not in row.when:
            return self._end_worker(f"it asked for {data[0]}, which is not allowed now")
        count = self._counts[data[0]] = self._counts.get(data[0], 0) + 1
        if count > row.limit:
            return self._end_worker(f"it asked too often for {row.message.__name__}")
        first = GRANTED
        try:
            answer, descriptors = _HANDLERS[row.message](self, row.message.decode(data))
        except MalformedMessage as error:
            return self._end_worker(f"a malformed request: {error}")
        except Deny as denial:
            answer, descriptors = str(denial).encode(), []
            first = REFUSED
        try:
            socket.send_fds(self._sock, [first + answer], descriptors)
        except OSError:
            return False
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _end_worker(self, why: str) -> bool:
        """A worker that breaks the rules was taken over; the answer is for ``_serve``."""
        _log.warning("the worker is ended: %s", why)
        self._kill_worker()
        return False

    # -- before authentication -------------------------------------------------------

    def _sign(self, request: Sign) -> tuple[bytes, list[int]]:
        key = self._host_keys.get(request.algorithm)
        if key is None or not 20 <= len(request.exchange_hash) <= 64:
            raise Deny("no such host key")
        if not self._session_id:
            self._session_id = request.exchange_hash
        elif not self._authenticated and self._counts[Sign.number] > 10:
            raise Deny("too many key exchanges before authentication")
        return key.sign(request.algorithm, request.exchange_hash), []

    def _find(self, name: str) -> pwd.struct_passwd | None:
        """The user, who stays the same for the whole connection."""
        if self._user is not None and self._user.pw_name != name:
            raise Deny("the user changed")
        user = accounts.find(name, self._config)
        if user is not None:
            self._user = user
        return user

    def _begin(self, request: Begin) -> tuple[bytes, list[int]]:
        user = self._find(request.user)
        allowed = "password" in self._methods() and self._may_use_password(user)
        if self._config.permit_empty_passwords and allowed and accounts.has_no_password(user):
            return self._satisfied_by("none", "no password")
        return self._outcome(False), []

    def _refuse_attempt(self, request: RefuseAttempt) -> tuple[bytes, list[int]]:
        self._find(request.user)
        method = request.method[:64]  # as it came from the client
        return self._failed(request.user, method, time.monotonic(), "not supported")

    def _show_key(self, request: ShowKey) -> tuple[bytes, list[int]]:
        started = time.monotonic()
        if self._permissions_of(request) is not None:
            return b"", []
        return self._failed(request.user, "publickey", started, "key not accepted")

    def _permissions_of(self, request: ShowKey | UseKey) -> Permissions | None:
        """What the key's line allows, when there is one that applies now."""
        user = self._find(request.user)
        if user is None or "publickey" not in self._methods():
            return None
        for entry in accounts.authorized_keys(user, self._config):
            allowed = entry.options
            if (
                entry.key.blob != request.public_key
                or request.algorithm not in entry.key.signature_algorithms
            ):
                continue
            shortest = MINIMUM_RSA_BITS[self._config.profile]
            if entry.key.key_type == "ssh-rsa" and entry.key.bits < shortest:
                continue
            if allowed.from_patterns is not None and not from_matches(
                allowed.from_patterns, self._peer.address, None
            ):
                _log.info(
                    "key %s of user %s refused: not from %s",
                    entry.key.fingerprint(),
                    request.user,
                    self._peer.address,
                )
                continue
            if allowed.expires is not None and time.time() >= allowed.expires:
                _log.info("key %s of user %s has expired", entry.key.fingerprint(), request.user)
                continue
            self._key = entry.key
            return allowed
        return None

    def _use_key(self, request: UseKey) -> tuple[bytes, list[int]]:
        started = time.monotonic()
        permissions = self._permissions_of(request)
        bound = (b"", *(key.public.blob for key in self._host_keys.values()))
        if permissions is None or not self._session_id or request.host_key not in bound:
            return self._failed(request.user, "publickey", started, "key not accepted")
        offer = Offer(request.user, request.algorithm, request.public_key, request.host_key)
        valid = self._key.verify(
            request.algorithm,
            request.signature,
            signed_data(self._session_id, offer),
            touch_required=permissions.touch_required,
            verify_required=permissions.verify_required,
        )
        if not valid:
            return self._failed(request.user, "publickey", started, "wrong signature")
        self._permissions = permissions
        self._user_key = self._key
        return self._satisfied_by("publickey", f"{self._key.key_type} {self._key.fingerprint()}")

    def _may_use_password(self, user: pwd.struct_passwd | None) -> bool:
        if not self._config.password_authentication:
            return False
        if user is not None and user.pw_uid == 0:
            return self._config.permit_root_login == "yes"
        return True

    def _use_password(self, request: UsePassword) -> tuple[bytes, list[int]]:
        started = time.monotonic()
        user = self._find(request.user)
        known = request.method in ("password", "keyboard-interactive")
        allowed = known and request.method in self._methods() and self._may_use_password(user)
        right = accounts.password_is_right(user, request.password, self._config)
        if not (right and allowed):
            return self._failed(request.user, request.method, started, "wrong password")
        return self._satisfied_by(request.method, "password")

    def _methods(self) -> tuple[str, ...]:
        """What can still be tried."""
        passwords: tuple[str, ...] = ()
        if self._config.password_authentication:
            passwords = ("password", "keyboard-interactive")
        if not self._config.publickey_and_password:
            return ("publickey", *passwords)
        return passwords if "publickey" in self._satisfied else ("publickey",)

    def _satisfied_by(self, method: str, what: str) -> tuple[bytes, list[int]]:
        assert self._user is not None
        self._satisfied.append(method)
        if self._config.publickey_and_password and len(self._satisfied) < 2:
            _log.info(
                "user %s from %s: %s accepted, one more method required",
                self._user.pw_name,
                self._peer.address,
                what,
            )
            return self._outcome(False, partial=True), []
        if self._user.pw_uid and os.path.exists("/etc/nologin"):
            return self._failed(self._user.pw_name, method, time.monotonic(), "/etc/nologin")
        self._authenticated = True
        self._deadline = None
        self._tell_listener()
        _log.info(
            "user %s logged in from %s port %d with %s",
            self._user.pw_name,
            self._peer.address,
            self._peer.port,
            what,
        )
        return OutcomeReply(True, (), False, False).encode(), []

    def _failed(self, user: str, method: str, started: float, why: str) -> tuple[bytes, list[int]]:
        """Count and log a failure; it takes the same time whatever was wrong."""
        self._failures += 1
        _log.info(
            "user %r from %s port %d refused: %s: %s",
            user,
            self._peer.address,
            self._peer.port,
            method,
            why,
        )
        spent = time.monotonic() - started
        time.sleep(FAILURE_SECONDS - spent % FAILURE_SECONDS)
        final = self._failures >= self._config.max_auth_tries
        return self._outcome(False, final=final), []

    def _outcome(self, success: bool, partial: bool = False, final: bool = False) -> bytes:
        return OutcomeReply(success, self._methods(), partial, final).encode()

    # -- after authentication --------------------------------------------------------

    def _open_pty(self, request: OpenPty) -> tuple[bytes, list[int]]:
        assert self._user is not None
        if not self._permissions.pty:
            raise Deny("this key may not have a terminal")
        if len(self._terminals) >= PROGRAMS_LIMIT:
            raise Deny("too many terminals")
        try:
            terminal = programs.open_terminal(self._user)
        except OSError as error:
            raise Deny(f"no terminal: {error.strerror}") from error
        self._terminals_made += 1
        self._terminals[self._terminals_made] = terminal
        return write_uint32(self._terminals_made), [os.dup(terminal.master)]

    def _spawn(self, request: Spawn) -> tuple[bytes, list[int]]:
        user, config = self._user, self._config
        assert user is not None
        if len(self._programs) >= PROGRAMS_LIMIT:
            raise Deny("too many programs")
        terminal = self._terminals.get(request.terminal)
        if request.terminal and terminal is None:
            raise Deny("no terminal")
        environment = programs.base_environment(user, config.pass_environment)
        names, values = request.environment[::2], request.environment[1::2]
        for variable, content in zip(names, values, strict=False):
            # the worker has looked, too, but a worker may be taken over
            if variable != b"TERM" and not accounts.accepts_variable(variable, config):
                raise Deny("such a variable is not accepted")
            environment[variable] = content
        for name, value in self._permissions.environment:
            environment[name.encode()] = os.fsencode(value)
        peer = self._peer
        environment[b"SSH_CLIENT"] = f"{peer.address} {peer.port} {peer.local_port}".encode()
        environment[b"SSH_CONNECTION"] = (
            f"{peer.address} {peer.port} {peer.local_address} {peer.local_port}".encode()
        )
        command = self._command(request, environment)
        if terminal is not None:
            environment[b"SSH_TTY"] = terminal.name.encode()
        greeting = _motd() if config.print_motd and terminal is not None else ""
        status_read, status_write = os.pipe()
        try:
            program = programs.start(user, command, environment, terminal, greeting)
        except OSError as error:
            os.close(status_read)
            os.close(status_write)
            raise Deny(f"no process: {error.strerror}") from error
        if terminal is not None:
            del self._terminals[request.terminal]
            terminal.close()
        self._programs[program.pid] = status_write
        _log.info("user %s: %s%s", user.pw_name, request.kind, " on a terminal" if terminal else "")
        return write_uint32(program.pid), [*program.descriptors, status_read]

    def _command(self, request: Spawn, environment: programs.Environment) -> bytes | None:
        """What runs: the forced command, the subsystem's, the one asked for, or a shell."""
        forced = self._config.force_command or self._permissions.command
        command: bytes | None = request.command
        if request.kind == "subsystem":
            known = self._config.subsystems.get(request.command.decode(errors="replace"))
            if known is None and forced is None:
                raise Deny("no such subsystem")
            command = known.encode() if known is not None else request.command
        elif request.kind == "shell":
            command = None
        if forced is not None:  # command="" allows nothing
            if command is not None:
                environment[b"SSH_ORIGINAL_COMMAND"] = command
            return os.fsencode(forced)
        return command

    def _send_signal(self, request: SendSignal) -> tuple[bytes, list[int]]:
        assert self._user is not None
        if request.process not in self._programs or request.signal not in _SIGNALS:
            raise Deny("no such process or signal")
        number = getattr(signal, "SIG" + request.signal, None)
        if number is not None:
            try:
                self._kill(self._user, request.process, number)
            except OSError as error:
                raise Deny(str(error.strerror)) from error
        return b"", []

    @staticmethod
    def _kill(user: pwd.struct_passwd, group: int, number: int) -> None:
        """As the user, who may do no more; a child that is just born has no group yet."""
        for patience in (0.01, 0.03, 0.1, None):
            try:
                with accounts.as_user(user):
                    os.killpg(group, number)
                return
            except ProcessLookupError:
                if patience is None:
                    raise
                time.sleep(patience)

    def _open_tunnel(self, request: OpenTunnel) -> tuple[bytes, list[int]]:
        if request.mode not in (POINT_TO_POINT, ETHERNET):
            raise Deny("there is no such mode of a tunnel")
        if not self._permissions.tunnel_allowed:
            raise Deny("this key may not have a tunnel")
        unit = request.unit
        if self._permissions.tunnel is not None:
            if unit not in (ANY_UNIT, self._permissions.tunnel):
                raise Deny(f"this key may have tunnel {self._permissions.tunnel} only")
            unit = self._permissions.tunnel
        if len(self._tunnels) >= TUNNELS_LIMIT:
            raise Deny("too many tunnels")
        fd, name = self._open_first(request.mode, self._units(request.mode, unit))
        self._tunnels[name] = self._claim(name)
        _log.info("tunnel device %s opened", name)
        return write_text(name), [fd]

    def _units(self, mode: int, unit: int) -> list[int]:
        """The devices that may be opened, in this order: what is declared permits itself."""
        assert self._user is not None
        declared = self._config.tunnel
        own = tunnels.candidates(declared, mode, unit, self._user.pw_name, self._user_key)
        if own:
            return [unit_of(tunnel.device) for tunnel in own]
        if tunnels.is_declared(declared, mode, unit):
            raise Deny(f"{name_of(mode, unit)} is declared for somebody else")
        permitted = {
            "no": (),
            "point-to-point": (POINT_TO_POINT,),
            "ethernet": (ETHERNET,),
            "yes": (POINT_TO_POINT, ETHERNET),
        }[self._config.permit_tunnel]
        if mode not in permitted:
            raise Deny("this server does not permit such a tunnel (PermitTunnel)")
        return [unit]

    def _open_first(self, mode: int, units: list[int]) -> tuple[int, str]:
        """A device that is free; if none is, one of an earlier connection with the same key."""
        failures = []
        busy = []
        for unit in units:
            try:
                return self._open_device(mode, unit)
            except UsageError as error:
                failures.append(str(error))
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno == errno.EBUSY:
                    busy.append(unit)
        for unit in busy:
            if self._end_predecessor(name_of(mode, unit)):
                try:
                    return self._open_device(mode, unit)
                except UsageError as error:
                    failures.append(str(error))
        for failure in failures:
            _log.warning("%s", failure)
        raise Deny(failures[0])

    def _open_device(self, mode: int, unit: int) -> tuple[int, str]:
        """Raises UsageError."""
        assert self._user is not None
        declared = self._config.tunnel
        if tunnels.is_declared(declared, mode, unit):
            name = name_of(mode, unit)
            if not exists(name):  # or it would be made, with no address, for as long as we live
                raise UsageError(
                    f"there is no {name} now: a server makes it when it starts, but not with -i, "
                    "and removes it when it stops"
                )
            fd, name = open_device(mode, unit)
        else:
            with accounts.as_user(self._user):  # sshd_config(5), PermitTunnel
                fd, name = open_device(mode, unit)
            if tunnels.is_declared(declared, mode, unit_of(name)):  # any was wanted
                os.close(fd)
                raise UsageError(f"{name} is declared, but was removed: restart the server")
        if name in self._tunnels:
            os.close(fd)
            raise UsageError(f"{name} was removed, and this connection has yet to close it")
        return fd, name

    def _end_predecessor(self, name: str) -> bool:
        if self._user_key is None or name in self._tunnels:
            return False
        try:
            claim = tunnels.Claim(name)
        except OSError:
            return False
        try:
            return claim.end_predecessor(self._user_key)
        finally:
            claim.close()

    def _claim(self, name: str) -> tunnels.Claim | None:
        try:
            claim = tunnels.Claim(name)
        except OSError as error:  # an ordinary user's server
            _log.debug("nobody can take over %s: %s", name, error)
            return None
        claim.register(self._user_key)
        return claim

    def _close_tunnel(self, request: CloseTunnel) -> tuple[bytes, list[int]]:
        if request.device not in self._tunnels:
            raise Deny("no such tunnel")
        claim = self._tunnels.pop(request.device)
        if claim is not None:
            claim.close()
        return b"", []


def _motd() -> str:
    text = ""
    for path in ("/run/motd.dynamic", "/etc/motd"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text += file.read(16384)
        except OSError:
            continue
    return text.replace("\n", "\r\n")


_HANDLERS: Final[dict[type[Message], Callable[[Monitor, Any], tuple[bytes, list[int]]]]] = {
    Sign: Monitor._sign,
    Begin: Monitor._begin,
    RefuseAttempt: Monitor._refuse_attempt,
    ShowKey: Monitor._show_key,
    UseKey: Monitor._use_key,
    UsePassword: Monitor._use_password,
    OpenPty: Monitor._open_pty,
    Spawn: Monitor._spawn,
    SendSignal: Monitor._send_signal,
    OpenTunnel: Monitor._open_tunnel,
    CloseTunnel: Monitor._close_tunnel,
}
