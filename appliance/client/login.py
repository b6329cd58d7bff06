"""From the settings for a host to an authenticated connection, in steps.

    load_identities   reads the keys, for callers that cannot open files later
    dial              connects to the host, its proxy, or a command (ProxyCommand, ProxyJump)
    authenticate      talks to the proxy, checks the server's key, and logs the user in

After ``dial``, no more files, modules or processes are needed: privileges can be given up between
``dial`` and ``authenticate``, which reads the first byte from the network. ProxyJump is a command
as in OpenSSH: this program once more, with -W.
"""

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from ..aio.dial import ANSWER_SECONDS, HANDSHAKE_SECONDS, DialFailed, Patience, dial, login
from ..aio.processor import aes_is_fast
from ..crypto.ciphers import CIPHERS, MACS
from ..crypto.key_exchange import METHODS
from ..crypto.keys import SIGNATURE_ALGORITHMS, is_certificate_name
from ..crypto.suites import (
    HOST_KEY_ALGORITHMS,
    USER_KEY_ALGORITHMS,
    Algorithms,
    default_algorithms,
)
from ..errors import AuthenticationFailed, CulvertError, PeerDisconnected, PeerError, UsageError
from ..process import ourselves
from ..ssh.auth_client import Identity
from ..ssh.connection import Connection, ConnectionHandler
from ..ssh.order import Phase
from ..ssh.settings import REKEY_BYTES, REKEY_SECONDS, ClientSide, Settings
from .credentials import UserCredentials
from .host_options import HostOptions
from .host_trust import HostTrust
from .ssh_config import load

if TYPE_CHECKING:
    import subprocess

    from ..aio.proxy import ProxyHandshake

_log = logging.getLogger(__name__)

# Our own choices
JUMPS_LIMIT: Final = 16  # jump hosts on the way to one host
COMMAND_GRACE: Final = 1.0  # seconds that a command may take to end after it closed its output

_OURSELVES: Final = "from appliance.multicall import main; sys.exit(main())"


class Login:
    """One attempt to log in; its steps are called in order, ``close`` at the end."""

    _depth = 0  # of nested jump hosts: 0 for the host itself

    def __init__(self, options: HostOptions, window: int | None = None) -> None:
        """``window``: bytes of a channel; None for the default. Raises UsageError."""
        self._options = options
        self._trust = HostTrust(options)
        self._credentials = _Credentials(options, self._trust)
        rekey_bytes, rekey_seconds = options.rekey_limit
        self._settings = Settings(
            _algorithms(options, self._trust),
            rekey_bytes or REKEY_BYTES,
            rekey_seconds or REKEY_SECONDS,
            trace=options.log_level == "DEBUG3",
        )
        if any(map(is_certificate_name, self._settings.algorithms.host_key)):
            # A certificate may arrive when modules can no longer be imported.
            import_module("..crypto.certificates", __package__)
        if window is not None:
            self._settings = self._settings._replace(window=window)
        self._handshake: ProxyHandshake | None = None
        self._dialled = 0.0  # when connecting began
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = 0  # the pid of the process that started the command
        self._watch = -1  # the command's pidfd

    @property
    def first_hop(self) -> tuple[str, int] | None:
        """Host and port of the first connection; None if only ProxyCommand knows them."""
        options = self._options
        if (jump := self.jump()) is not None:
            return jump[0].first_hop
        if options.proxy_command is not None:
            return None
        if options.proxy is not None:
            return options.proxy.host, options.proxy.port
        return options.host_name, options.port

    def jump(self) -> tuple["Login", tuple[str, int]] | None:
        """Returns a login to the last jump host, which asks the user nothing, and its target.

        None without ProxyJump.
        """
        options = self._options
        if not options.proxy_jump:
            return None
        from ..config.hosts import destination

        *earlier, last = options.proxy_jump
        user, host, port = destination(last)
        _check_jump(options, last)
        given: list[str | tuple[str, str]] = [("BatchMode", "yes")]
        given += [("User", user)] if user else []
        given += [("Port", str(port))] if port else []
        given += [("ProxyJump", ",".join(earlier))] if earlier else []
        if options.connect_timeout is not None:
            given.append(("ConnectTimeout", str(options.connect_timeout)))
        if self._depth == JUMPS_LIMIT:
            raise UsageError(f"ProxyJump: no end of jump hosts, {last} has another one")
        via = Login(load(host, given, options.config_file))
        via._depth = self._depth + 1
        return via, (options.host_name, options.port)

    def load_identities(self) -> tuple[Identity, ...]:
        """Reads all keys now; ``authenticate`` opens no more files for them."""
        identities = tuple(self._credentials.identities())
        self._credentials.use(identities)
        return identities

    def use_identities(self, identities: Sequence[Identity]) -> None:
        """Has ``authenticate`` try these identities, and read no files for others."""
        self._credentials.use(tuple(identities))

    def dial(self, addresses: Sequence[str] = (), mark: int = 0) -> socket.socket:
        """Returns a socket to the first hop, at ``addresses`` if any are given; raises DialFailed.

        ``mark`` is set on the socket, which needs privileges; see ``aio.dial``.
        """
        options = self._options
        self._dialled = time.monotonic()
        if options.proxy_jump:
            return self._start(_jump(options))
        if options.proxy_command is not None:
            shell = os.environ.get("SHELL") or "/bin/sh"
            return self._start([shell, "-c", "exec " + options.proxy_command])
        assert self.first_hop is not None
        host, port = self.first_hop
        if options.proxy is not None:
            from ..aio.proxy import ProxyHandshake

            self._handshake = ProxyHandshake(options.proxy, options.host_name, options.port)
        try:
            sock, self._dialled = dial(
                host,
                port,
                options.address_family,
                options.bind_address,
                options.connect_timeout,
                options.connection_attempts,
                addresses,
                mark,
            )
            return sock
        except DialFailed as error:
            if options.proxy is not None:
                raise DialFailed(f"the proxy: {error}") from error
            raise

    def _start(self, argv: list[str]) -> socket.socket:
        """Runs a command whose standard input and output are the connection."""
        import subprocess

        ours, theirs = socket.socketpair()
        self._starter = os.getpid()
        _log.debug("the connection is a command's: %s", self._command_name)
        # A command that stays in the background must not keep our standard error open; as OpenSSH
        # (sshconnect.c, ssh_proxy_connect).
        options, is_debugging = self._options, _log.isEnabledFor(logging.DEBUG)
        stays = options.control_path is not None and options.control_persist is not None
        error_output = subprocess.DEVNULL if stays and not is_debugging else None
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=error_output
                )
            self._watch = os.pidfd_open(self._process.pid)
        except OSError as error:
            ours.close()
            if self._process is not None:  # the command runs, but has no pidfd
                self._process.kill()
                self._process.wait()
                self._process = None
            raise DialFailed(f"{self._command_name}: {argv[0]}: {error.strerror}") from error
        return ours

    @property
    def _command_name(self) -> str:
        """A name of the command for messages; the command itself may hold a password."""
        jumps = self._options.proxy_jump
        return f"ssh to the jump host {jumps[-1]}" if jumps else "ProxyCommand"

    def authenticate(self, sock: socket.socket, handler: ConnectionHandler) -> Connection:
        """Returns the connection, open for channels; closes ``sock`` if it raises CulvertError."""
        options = self._options
        self._dialled = self._dialled or time.monotonic()  # if a jump host made the connection
        try:
            if self._handshake is not None:
                self._handshake.run(sock, self._patience.handshake)
            side = ClientSide(options.user, self._trust.check, self._credentials, _methods(options))
            connection = Connection(side, self._settings, handler, os.urandom, time.monotonic())
            self._credentials.connection = connection
            try:
                login(sock, connection, self._patience)
            except DialFailed as error:
                raise DialFailed(f"{options.host_name} port {options.port}: {error}") from error
            if connection.transport.phase is Phase.CLOSED:
                assert connection.transport.error is not None
                raise self.explained(connection.transport.error)
            where = "via proxy" if self._is_indirect else f"[{options.host_name}]:{options.port}"
            method = connection.login_method
            _log.info('Authenticated to %s (%s) using "%s".', options.host_name, where, method)
        except CulvertError:
            sock.close()
            raise
        return connection

    @property
    def _is_indirect(self) -> bool:
        options = self._options
        return bool(options.proxy_jump or options.proxy_command or options.proxy)

    @property
    def _patience(self) -> Patience:
        """Limits: the rest of ConnectTimeout for the handshake, ServerAlive* for any silence."""
        options = self._options
        by_command = bool(options.proxy_jump or options.proxy_command)
        handshake = math.inf if by_command else HANDSHAKE_SECONDS
        if options.connect_timeout:
            handshake = self._dialled + options.connect_timeout - time.monotonic()
        silence = options.server_alive_interval * options.server_alive_count_max
        answer = max(silence, ANSWER_SECONDS)
        return Patience(handshake, silence or ANSWER_SECONDS, answer, by_command)

    def explained(self, error: PeerError) -> CulvertError:
        """The error that ended the connection, with the name of the host."""
        options = self._options
        if isinstance(error, AuthenticationFailed):
            return AuthenticationFailed(f"{options.user}@{options.host}: {error}")
        how = self._ended() if isinstance(error, PeerDisconnected) else ""
        explained = type(error)(f"{options.host_name} port {options.port}: {error}{how}")
        explained.__cause__ = error
        return explained

    def _ended(self) -> str:
        """Returns how the command ended, for a message; '' if that is unknown."""
        if self._process is None or os.getpid() != self._starter:
            return ""
        import subprocess

        try:
            status = self._process.wait(COMMAND_GRACE)
        except subprocess.TimeoutExpired:
            return ""
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        return f"; {self._command_name} ended with {how}"

    def abandon(self) -> None:
        """Leaves the connection and its command to another process."""
        self._process = None

    def close(self) -> None:
        """Ends the command, after the connection is over.

        After a fork the command is no child of this process, which does not wait for its end.
        """
        if self._process is None:
            return
        import signal
        import subprocess

        with contextlib.suppress(PermissionError):  # it has privileges that we gave up
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watch, signal.SIGHUP)  # as OpenSSH does
            if os.getpid() == self._starter:
                try:
                    self._process.wait(COMMAND_GRACE)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
        os.close(self._watch)
        self._process = None


def _jump(options: HostOptions) -> list[str]:
    """Returns the command line of the jump, as OpenSSH has it (ssh.c, jump_host)."""
    from ..config.hosts import destination

    *earlier, last = options.proxy_jump
    user, host, port = destination(last)
    _check_jump(options, last)
    argv = ourselves.command(_OURSELVES)
    if options.jump_command:
        return [*argv, *options.jump_command]
    argv.append("ssh")
    if user:
        argv += ["-l", user]
    if port:
        argv += ["-p", str(port)]
    if earlier:
        argv += ["-J", ",".join(earlier)]
    if options.config_file is not None:
        argv += ["-F", options.config_file]
    if options.log_level.startswith("DEBUG"):
        argv.append("-" + "v" * int(options.log_level[5:] or 1))
    return [*argv, "-W", f"[{options.host_name}]:{options.port}", host]


def _check_jump(options: HostOptions, jump: str) -> None:
    """Raises UsageError for a jump host that is the host itself."""
    from ..config.hosts import destination

    user, host, port = destination(jump)
    # The files supply the port and user that the jump host's name lacks, as for the host.
    if (host, port or options.port, user or options.user) == (
        options.host,
        options.port,
        options.user,
    ):
        raise UsageError(f"ProxyJump: {jump} is the host itself")


class _Credentials(UserCredentials):
    """The user's secrets; the keys may have been read before."""

    _loaded: tuple[Identity, ...] | None = None

    def use(self, identities: tuple[Identity, ...]) -> None:
        """Sets the identities to try."""
        self._loaded = identities

    def identities(self) -> Iterable[Identity]:  # type: ignore[override]
        return super().identities() if self._loaded is None else self._loaded


def _algorithms(options: HostOptions, trust: HostTrust) -> Algorithms:
    """Returns the algorithms to offer; certificates and known types of the host come first."""
    base = default_algorithms(aes_is_fast(), options.profile)
    plain = [name for name in base.host_key if not is_certificate_name(name)]
    certified = [name for name in base.host_key if is_certificate_name(name)]
    known = trust.known_types
    plain.sort(key=lambda name: bool(known) and SIGNATURE_ALGORITHMS[name] not in known)
    # Without an authority a certificate is worth no more than its key.
    usual = (*certified, *plain) if trust.knows_authority else tuple(plain)
    host_key = options.algorithms("host_key_algorithms", usual, HOST_KEY_ALGORITHMS)
    compression = ("zlib@openssh.com", "none") if options.compression else ("none",)
    return Algorithms(
        options.algorithms("kex_algorithms", base.key_exchange, tuple(METHODS)),
        host_key,
        options.algorithms("pubkey_accepted_algorithms", base.user_key, USER_KEY_ALGORITHMS),
        options.algorithms("ciphers", base.cipher, CIPHERS),
        options.algorithms("macs", base.mac, MACS),
        compression,
    )


def _methods(options: HostOptions) -> tuple[str, ...]:
    """Returns the methods to try, in order; with BatchMode, none that asks the user."""
    methods = options.preferred_authentications
    if methods is None:  # "," gives (), no methods: ssh-copy-id only wants to see the server
        methods = ("publickey", "keyboard-interactive", "password")
    can_ask = not options.batch_mode
    enabled = {
        "publickey": options.pubkey_authentication,
        "keyboard-interactive": options.kbd_interactive_authentication and can_ask,
        "password": options.password_authentication and can_ask,
    }
    return tuple(name for name in methods if enabled.get(name))
