"""Sockets for the user who is logged in: the monitor's part of forwarding.

The monitor makes each socket with the user's identity, so that a forward reaches no file and no
port that the user's own programs could not reach. The rules are those of sshd_config(5) and of the
key's line in authorized_keys. The monitor compares the client's host, port or path with them, and
otherwise only passes it on.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ..aio import connecting, name_connector
from ..aio.listening import LocalListener, bind_addresses, listen
from ..config.hosts import endpoint
from ..process import sandbox
from ..wire.codec import write_boolean, write_uint32
from ..wire.forward import (
    AUTH_AGENT,
    DIRECT_STREAMLOCAL,
    DIRECT_TCPIP,
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
)
from . import accounts, audit
from .authentication import LoggedIn
from .requests import (
    Connect,
    ConnectLocal,
    Deny,
    Failed,
    Handlers,
    Listen,
    ListenAgent,
    ListenLocal,
    Reply,
    StopListening,
)

# Our own choice
LISTENERS_LIMIT: Final = 200  # of one connection at a time


Request = Connect | ConnectLocal | Listen | ListenLocal | ListenAgent
Places = tuple[tuple[str, int], ...]  # host and port; '*' and 0 stand for any


class _Listening(NamedTuple):
    """A TCP port or a Unix-domain socket that the worker listens on."""

    place: str
    local: LocalListener | None  # None: a TCP port
    sockets: Sequence[socket.socket]  # the monitor's copies

    def stop(self) -> None:
        """Ends the listening, even if the worker has not closed its own descriptors."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class ForwardGrants:
    """The addresses that one connection may connect to and listen on, and its listeners."""

    def __init__(self, login: LoggedIn) -> None:
        self._login = login
        config, permissions = login.config, login.permissions
        self._permit_open = _rules(config.permit_open, permissions.permit_open)
        self._permit_listen = _rules(config.permit_listen, permissions.permit_listen)
        self._listeners: dict[int, _Listening] = {}
        self._listeners_made = 0
        self._agent: LocalListener | None = None
        self._by_name = name_connector.NameConnector(self._become)

    def handlers(self) -> Handlers:
        """The handler of each request."""
        return {
            Connect: self._told(DIRECT_TCPIP, self.connect),
            ConnectLocal: self._told(DIRECT_STREAMLOCAL, self.connect_local),
            Listen: self._told(FORWARDED_TCPIP, self.listen),
            ListenLocal: self._told(FORWARDED_STREAMLOCAL, self.listen_local),
            StopListening: self.stop_listening,
            ListenAgent: self._told(AUTH_AGENT, self.listen_agent),
        }

    def _become(self) -> None:
        accounts.become(self._login.user)
        sandbox.confine()

    @staticmethod
    def _told(kind: str, grant: Callable[[Any], Reply]) -> Callable[[Any], Reply]:
        """Returns ``grant`` as a handler that also writes the outcome to the audit."""

        def handler(request: Request) -> Reply:
            place = _place(request)
            try:
                reply = grant(request)
            except Deny as denial:
                audit.write(audit.ForwardRefused(kind=kind, place=place, reason=str(denial)))
                raise
            audit.write(audit.Forward(kind=kind, place=place))
            return reply

        return handler

    # -- connecting --------------------------------------------------------------------

    def connect(self, request: Connect) -> Reply:
        """Answers with the fields of an Attempt: whether it is by name, and a descriptor."""
        if not self._allows(self._login.config.allow_tcp_forwarding, "local"):
            raise Deny("port forwarding is not allowed")
        if not 0 < request.port < 65536:
            raise Deny("there is no such port")
        if len(request.host.encode()) > name_connector.NAME_LIMIT - 2:
            raise Deny("there is no such host")
        if not all(_permits(each, request.host, request.port) for each in self._permit_open):
            raise Deny("this place may not be connected to (permitopen)")
        try:
            with accounts.as_user(self._login.user):
                attempt = connecting.connect_address(request.host, request.port)
            if attempt is None:
                attempt = self._by_name.connect(request.host, request.port)
        except OSError as error:
            raise Failed(error.strerror or "no connection") from error
        return write_boolean(attempt.by_name), [attempt.sock.detach()]

    def connect_local(self, request: ConnectLocal) -> Reply:
        """Answers with a descriptor."""
        if (
            not self._allows(self._login.config.allow_stream_local_forwarding, "local")
            or self._permit_open  # this permits hosts and ports, but no path
            or self._login.config.chroot_directory  # see chroot.py
        ):
            raise Deny("forwarding of sockets is not allowed")
        try:
            with accounts.as_user(self._login.user):
                attempt = connecting.connect_local(self._path(request.path))
        except OSError as error:
            raise Failed(error.strerror or str(error)) from error
        return b"", [attempt.sock.detach()]

    def _allows(self, setting: str, direction: str) -> bool:
        return (
            setting in ("yes", direction)
            and not self._login.config.disable_forwarding
            and self._login.permissions.port_forwarding
        )

    def _path(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self._login.user.pw_dir), path)

    # -- listening ---------------------------------------------------------------------

    def listen(self, request: Listen) -> Reply:
        """Answers with a number, the port, and one or two descriptors."""
        if not self._allows(self._login.config.allow_tcp_forwarding, "remote"):
            raise Deny("port forwarding is not allowed")
        if request.port > 65535:
            raise Deny("there is no such port")
        if not all(_permits(each, request.address, request.port) for each in self._permit_listen):
            raise Deny("this may not be listened on (permitlisten)")
        self._check_limit()
        addresses = bind_addresses(request.address, self._login.config.gateway_ports)
        try:
            with accounts.as_user(self._login.user):
                sockets = listen(addresses, request.port)
            ours = copies(sockets)
        except OSError as error:
            raise Deny(f"port {request.port}: {error.strerror}") from error
        port = sockets[0].getsockname()[1]
        number = self._remember(f"{request.address}:{port}", None, ours)
        return write_uint32(number) + write_uint32(port), [sock.detach() for sock in sockets]

    def listen_local(self, request: ListenLocal) -> Reply:
        """Answers with a number, and a descriptor."""
        if (
            not self._allows(self._login.config.allow_stream_local_forwarding, "remote")
            or self._permit_listen
            or self._login.config.chroot_directory
        ):
            raise Deny("forwarding of sockets is not allowed")
        self._check_limit()
        path = self._path(request.path)
        try:
            with accounts.as_user(self._login.user):
                listener = LocalListener(path)
            try:
                ours = copies([listener.socket])
            except OSError:
                self._remove(listener)
                raise
        except OSError as error:
            raise Deny(str(error.strerror)) from error
        number = self._remember(_place(request), listener, ours)
        return write_uint32(number), [listener.socket.detach()]

    def _check_limit(self) -> None:
        if len(self._listeners) >= LISTENERS_LIMIT:
            raise Deny("too many forwards")

    def _remember(
        self, place: str, local: LocalListener | None, ours: Sequence[socket.socket]
    ) -> int:
        self._listeners_made += 1
        self._listeners[self._listeners_made] = _Listening(place, local, ours)
        return self._listeners_made

    def stop_listening(self, request: StopListening) -> Reply:
        """Ends a listener; the answer is empty."""
        if request.listener not in self._listeners:
            raise Deny("no such forward")
        listening = self._listeners.pop(request.listener)
        listening.stop()
        self._remove(listening.local)
        kind = FORWARDED_TCPIP if listening.local is None else FORWARDED_STREAMLOCAL
        audit.write(audit.ForwardClosed(kind=kind, place=listening.place))
        return b"", []

    # -- the client's agent --------------------------------------------------------------

    def listen_agent(self, request: ListenAgent) -> Reply:
        """Answers with a descriptor; programs find the socket in SSH_AUTH_SOCK."""
        if (
            not self._login.permissions.agent_forwarding
            or not self._login.config.allow_agent_forwarding
            or self._login.config.disable_forwarding
            or self._login.config.chroot_directory
        ):
            raise Deny("agent forwarding is not allowed")
        try:
            with accounts.as_user(self._login.user):
                folder = tempfile.mkdtemp(prefix="ssh-", dir="/tmp")
                try:
                    self._agent = LocalListener(os.fsencode(f"{folder}/agent.{os.getpid()}"))
                except OSError:
                    os.rmdir(folder)
                    raise
        except OSError as error:
            raise Deny(f"no socket for the agent: {error.strerror}") from error
        return b"", [self._agent.socket.detach()]

    def environment(self) -> dict[bytes, bytes]:
        """The environment variables that programs need for agent forwarding."""
        return {} if self._agent is None else {b"SSH_AUTH_SOCK": self._agent.path}

    def close(self) -> None:
        """Ends the child that resolves names, and removes the files of the remaining sockets."""
        self._by_name.close()
        if self._agent is not None:
            self._remove(self._agent)
            with accounts.as_user(self._login.user), contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self._agent.path))
        for listening in self._listeners.values():
            listening.stop()
            self._remove(listening.local)
        self._listeners.clear()

    def _remove(self, local: LocalListener | None) -> None:
        if local is not None:
            with accounts.as_user(self._login.user):
                local.remove()


def copies(sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """Duplicates the sockets; if descriptors run out, closes all of them and raises OSError."""
    with contextlib.ExitStack() as undo:
        for sock in sockets:
            undo.callback(sock.close)
        copies = [undo.enter_context(sock.dup()) for sock in sockets]
        undo.pop_all()
    return copies


def _place(request: Request) -> str:
    """The requested address or path, as the audit shows it."""
    if isinstance(request, Connect):
        return f"{request.host}:{request.port}"
    if isinstance(request, Listen):
        return f"{request.address}:{request.port}"
    if isinstance(request, ListenAgent):
        return "agent"
    return request.path.decode(errors="replace")


def _rules(configured: tuple[str, ...], of_key: Places | None) -> list[Places]:
    """The lists of permitted places; a request must match one place of each list."""
    rules: list[Places] = []
    if configured:
        rules.append(tuple(endpoint(text) for text in configured))
    return rules if of_key is None else [*rules, of_key]


def _permits(places: Places, host: str, port: int) -> bool:
    return any(
        place_host in ("*", host) and place_port in (0, port) for place_host, place_port in places
    )
