"""The worker's side of the requests to its monitor, over a socketpair."""

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from ..aio.connecting import Attempt
from ..aio.loop import Loop
from ..config.server import ServerConfig, X11Relay
from ..services.base import Listening, Process, Refused
from ..ssh.auth_server import Offer, Outcome
from ..wire.codec import Message, Reader
from ..wire.session import X11Request
from .requests import (
    DATAGRAM,
    QUESTION,
    AskPrompt,
    Begin,
    ClientAnswers,
    ClosePty,
    CloseTunnel,
    CloseX11,
    Connect,
    ConnectLocal,
    Denied,
    EndSessions,
    LearnSettings,
    Listen,
    ListenAgent,
    ListenLocal,
    ListenX11,
    MonitorGone,
    OpenPty,
    OpenTunnel,
    OutcomeReply,
    ProveHostKey,
    RefuseAttempt,
    Reply,
    ReportTotals,
    SendSignal,
    SettingsReply,
    ShowKey,
    Sign,
    Spawn,
    StopListening,
    UseKey,
    UsePassword,
    ask,
)


class MonitorClient:
    """The Authority, SessionPrivileges and ForwardPrivileges of a worker: a call is a request."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._terminals: dict[int, int] = {}  # master side -> the monitor's number
        self._questioned: Callable[[], None] = lambda: None

    def watch(self, loop: Loop, questioned: Callable[[], None]) -> None:
        """Calls ``questioned`` when the monitor asks whether the client is still alive."""
        self._questioned = questioned
        loop.watch_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:  # a request in this turn of the loop has read it already
            return
        if data != QUESTION:
            raise MonitorGone("the monitor ended")
        self._questioned()

    def _ask(self, request: Message, *descriptors: int) -> Reply:
        return ask(self._sock, request, *descriptors, questioned=self._questioned)

    def end_sessions(self, open_sessions: int) -> None:
        """Has the monitor start no programs except for the sessions that are open now."""
        self._ask(EndSessions(open_sessions))

    def client_answers(self) -> None:
        """Tells the monitor that the client is still alive."""
        self._ask(ClientAnswers())

    def sign(self, algorithm: str, exchange_hash: bytes) -> bytes:
        """A host key's signature."""
        return self._ask(Sign(algorithm, exchange_hash))[0]

    def begin(self, user: str) -> Outcome:
        return _outcome(self._ask(Begin(user))[0])

    def refuse(self, user: str, method: str) -> Outcome:
        return _outcome(self._ask(RefuseAttempt(user, method))[0])

    def key_is_acceptable(self, offer: Offer) -> Outcome | None:
        answer, _ = self._ask(ShowKey(offer.user, offer.algorithm, offer.blob, offer.host_key))
        return _outcome(answer) if answer else None

    def key(self, offer: Offer, signature: bytes) -> Outcome:
        request = UseKey(offer.user, offer.algorithm, offer.blob, offer.host_key, signature)
        return _outcome(self._ask(request)[0])

    def password(self, user: str, method: str, password: bytes) -> Outcome:
        return _outcome(self._ask(UsePassword(user, method, password))[0])

    def prompt(self, user: str) -> str:
        return Reader(self._ask(AskPrompt(user))[0]).text()

    def settings(self, config: ServerConfig) -> ServerConfig:
        """The server's settings, changed to those for the user who is logged in."""
        reply = SettingsReply.decode(self._ask(LearnSettings())[0])
        return replace(
            config,
            accept_env=tuple(pattern.decode() for pattern in reply.accept_env),
            max_sessions=reply.max_sessions,
            client_alive_interval=reply.client_alive_interval,
            client_alive_count_max=reply.client_alive_count_max,
            idle_timeout=reply.idle_timeout,
            x11_relay=cast(X11Relay, reply.x11_relay),
        )

    def report_totals(self, received: int, sent: int) -> None:
        """Tells the monitor, at the end, how many bytes the connection has carried."""
        self._ask(ReportTotals(received, sent))

    def open_pty(self) -> int:
        answer, fds = self._ask_for(OpenPty(), 1)
        self._terminals[fds[0]] = Reader(answer).uint32()
        return fds[0]

    def close_pty(self, master: int) -> None:
        self._ask_for(ClosePty(self._terminals.pop(master)))

    def spawn(
        self,
        kind: str,
        command: bytes,
        environment: tuple[tuple[bytes, bytes], ...],
        master: int | None,
        display: int,
    ) -> Process:
        flat = tuple(part for pair in environment for part in pair)
        terminal = 0 if master is None else self._terminals[master]
        request = Spawn(kind, command, flat, terminal, display)
        answer, fds = self._ask_for(request, 4 if master is None else 1)
        if master is not None:
            del self._terminals[master]
        number = Reader(answer).uint32()
        if master is not None:
            return Process(number, master, master, None, fds[0])
        return Process(number, fds[0], fds[1], fds[2], fds[3])

    def signal(self, process: int, name: str) -> None:
        self._ask_for(SendSignal(process, name))

    def open_tunnel(self, mode: int, unit: int) -> tuple[int, str]:
        answer, fds = self._ask_for(OpenTunnel(mode, unit), 1)
        return fds[0], Reader(answer).text()

    def close_tunnel(self, name: str) -> None:
        self._ask_for(CloseTunnel(name))

    def connect(self, host: str, port: int) -> Attempt:
        answer, fds = self._ask_for(Connect(host, port), 1)
        return Attempt(socket.socket(fileno=fds[0]), Reader(answer).boolean())

    def connect_local(self, path: bytes) -> Attempt:
        _, fds = self._ask_for(ConnectLocal(path), 1)
        return Attempt(socket.socket(fileno=fds[0]))

    def listen(self, address: str, port: int) -> Listening:
        return self._listen(Listen(address, port))

    def _listen(self, request: Listen | ListenX11) -> Listening:
        answer, fds = self._ask_for(request, 1, 2)
        reader = Reader(answer)
        number = reader.uint32()
        return Listening(number, reader.uint32(), [socket.socket(fileno=fd) for fd in fds])

    def listen_local(self, path: bytes) -> Listening:
        answer, fds = self._ask_for(ListenLocal(path), 1)
        return Listening(Reader(answer).uint32(), 0, [socket.socket(fileno=fds[0])])

    def stop_listening(self, number: int) -> None:
        self._ask_for(StopListening(number))

    def prove_host_key(self, blob: bytes, algorithm: str) -> bytes:
        return self._ask_for(ProveHostKey(blob, algorithm))[0]

    def listen_agent(self) -> socket.socket:
        _, fds = self._ask_for(ListenAgent(), 1)
        return socket.socket(fileno=fds[0])

    def listen_x11(self, request: X11Request) -> Listening:
        return self._listen(
            ListenX11(
                request.authentication_protocol,
                request.authentication_cookie,
                request.screen_number,
            )
        )

    def close_x11(self, number: int) -> None:
        self._ask_for(CloseX11(number))

    def _ask_for(self, request: Message, *descriptors: int) -> Reply:
        if len(request.encode()) > DATAGRAM:
            raise Refused("this is too long")
        try:
            return self._ask(request, *descriptors)
        except Denied as error:
            raise Refused(str(error)) from error


def _outcome(data: bytes) -> Outcome:
    reply = OutcomeReply.decode(data)
    return Outcome(reply.success, reply.methods, reply.partial, reply.final)
