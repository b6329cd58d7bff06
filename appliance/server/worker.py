"""The unprivileged half of one connection: all parsing and nearly all cryptography.

It asks its monitor over a socketpair for whatever it may not do itself, and waits for
the answer: one worker serves one connection, so nobody else waits with it.
"""

import gc
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from ..aio.connecting import Attempt
from ..aio.driver import Driver
from ..aio.idle import IdleTimeout
from ..aio.keepalive import REQUEST as KEEPALIVE
from ..aio.keepalive import KeepAlive
from ..aio.loop import Loop
from ..config.server import ServerConfig
from ..crypto.keys import RSA
from ..crypto.suites import Algorithms
from ..errors import PeerDisconnected, PeerError
from ..process import merging
from ..services.base import Listening, Process, Refused
from ..services.forward_server import REQUESTS, ForwardServer
from ..services.session import Session
from ..services.tunnel.channel import OffloadTunnel, OpenSSHTunnel, TunnelChannel
from ..services.tunnel.drops import Drops
from ..ssh.auth_server import Offer, Outcome
from ..ssh.channels import Channel
from ..ssh.connection import Connection, ConnectionHandler
from ..ssh.settings import ServerSide, Settings
from ..wire.codec import Message, Reader
from ..wire.forward import DIRECT_STREAMLOCAL, DIRECT_TCPIP
from ..wire.host_keys import HOSTKEYS, HOSTKEYS_PROVE, read_strings, write_strings
from ..wire.messages import (
    ADMINISTRATIVELY_PROHIBITED,
    CONNECT_FAILED,
    RESOURCE_SHORTAGE,
    UNKNOWN_CHANNEL_TYPE,
)
from ..wire.tun import (
    CHANNEL_TYPE,
    OFFLOAD_CHANNEL_TYPE,
    OFFLOAD_MESSAGE,
    OFFLOAD_WINDOW,
    HandedOut,
    TunnelOpen,
)
from .requests import (
    DATAGRAM,
    QUESTION,
    TUNNELS_LIMIT,
    AskPrompt,
    Begin,
    ClientAnswers,
    ClosePty,
    CloseTunnel,
    Connect,
    ConnectLocal,
    Denied,
    EndSessions,
    LearnSettings,
    Listen,
    ListenAgent,
    ListenLocal,
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

_log = logging.getLogger(__name__)

# Our own choices
TUNNEL_KEEPALIVE: Final = 15  # seconds; a dead client must not keep its device for long
TUNNEL_KEEPALIVES: Final = 3  # without an answer before the peer is given up


class MonitorClient:
    """The Authority and the Privileges of a worker: each call is one request."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._terminals: dict[int, int] = {}  # master side -> the monitor's number
        self._questioned: Callable[[], None] = lambda: None

    def watch(self, loop: Loop, questioned: Callable[[], None]) -> None:
        """Call ``questioned`` when the monitor wants to know whether the client is still there."""
        self._questioned = questioned
        loop.watch_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:  # a request of this turn's met it
            return
        if data != QUESTION:
            raise MonitorGone("the monitor ended")
        self._questioned()

    def _ask(self, request: Message, *descriptors: int) -> Reply:
        return ask(self._sock, request, *descriptors, questioned=self._questioned)

    def end_sessions(self, open_sessions: int) -> None:
        """Begin no programs but those of the sessions that are open now."""
        self._ask(EndSessions(open_sessions))

    def client_answers(self) -> None:
        """The client is still there."""
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
        """The server's settings as they are for the user who is logged in."""
        reply = SettingsReply.decode(self._ask(LearnSettings())[0])
        return replace(
            config,
            accept_env=tuple(pattern.decode() for pattern in reply.accept_env),
            max_sessions=reply.max_sessions,
            client_alive_interval=reply.client_alive_interval,
            client_alive_count_max=reply.client_alive_count_max,
            idle_timeout=reply.idle_timeout,
        )

    def report_totals(self, received: int, sent: int) -> None:
        """How many bytes the connection has carried; it ends."""
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
    ) -> Process:
        flat = tuple(part for pair in environment for part in pair)
        terminal = 0 if master is None else self._terminals[master]
        request = Spawn(kind, command, flat, terminal)
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
        answer, fds = self._ask_for(Listen(address, port), 1, 2)
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


class Job(NamedTuple):
    """What a worker needs to know about the server."""

    config: ServerConfig
    algorithms: Algorithms
    host_keys: Mapping[str, bytes]  # signature algorithm -> blob
    all_host_keys: tuple[bytes, ...]
    banner: str


class Worker(ConnectionHandler):
    """The services of one connection."""

    def __init__(self, job: Job, sock: socket.socket, monitor: MonitorClient) -> None:
        self._config = job.config
        self._monitor = monitor
        self._sessions = 0
        self._tunnels = 0
        self._all_host_keys = job.all_host_keys
        self._no_more_sessions = False
        self._keepalive: KeepAlive | None = None
        self._loop = Loop()
        self.connection = Connection(
            ServerSide(job.host_keys, monitor.sign, monitor, job.banner, (OFFLOAD_CHANNEL_TYPE,)),
            Settings(
                job.algorithms,
                job.config.rekey_bytes,
                job.config.rekey_seconds,
                job.config.receive_window,
                job.config.trace,
            ),
            self,
            os.urandom,
            self._loop.time(),
        )
        self._driver = Driver(self._loop, sock, self.connection, self._loop.stop)
        self._forwards = ForwardServer(self._driver, monitor)

    def run(self) -> None:
        """Until the connection is over."""
        self._driver.start()
        self._loop.run()
        self._loop.close()
        self._monitor.report_totals(self._driver.received, self._driver.sent)

    def authenticated(self) -> None:
        if self._config.merge_memory:
            merging.begin()
        self.connection.global_request(HOSTKEYS, write_strings(self._all_host_keys))
        self._config = self._monitor.settings(self._config)
        self._monitor.watch(self._loop, lambda: self._loop.call_soon(self._ask_client))
        if self._config.client_alive_interval:
            self._keep_alive(
                self._config.client_alive_interval, self._config.client_alive_count_max
            )
        if self._config.idle_timeout:
            self._watch_for_idleness()

    def _ask_client(self) -> None:
        self.connection.global_request(
            KEEPALIVE, b"", lambda answer: self._monitor.client_answers()
        )
        self._driver.flush()

    def _keep_alive(self, interval: int, count: int) -> None:
        if self._keepalive is None:
            self._keepalive = KeepAlive(self._driver, interval, count, self._silent)

    def _silent(self) -> None:
        _log.info("the client does not answer any more")
        self.connection.transport.close("no answer")
        self._driver.flush()

    def _watch_for_idleness(self) -> None:
        IdleTimeout(self._driver, self._config.idle_timeout, self._idle)

    def _idle(self) -> None:
        if self._tunnels:  # a VPN is there to be there
            self._watch_for_idleness()
            return
        _log.info("idle for %d s", self._config.idle_timeout)
        self.connection.transport.close("idle for too long")
        self._driver.flush()

    def global_request(self, name: str, data: bytes) -> bytes | None:
        if name == "no-more-sessions@openssh.com":
            if not self._no_more_sessions:
                self._no_more_sessions = True
                self._monitor.end_sessions(self._sessions)
            return b""
        if name == HOSTKEYS_PROVE:
            return self._prove_host_keys(read_strings(data))
        if name in REQUESTS:
            return self._forwards.global_request(name, data)
        return None

    def _prove_host_keys(self, blobs: list[bytes]) -> bytes | None:
        """A signature by each of these keys, None if not all are ours."""
        try:
            return write_strings(
                self._monitor.prove_host_key(blob, self._algorithm_for(blob)) for blob in blobs
            )
        except Refused:
            return None

    def _algorithm_for(self, blob: bytes) -> str:
        """An RSA key signs with the hash that the key exchange has settled on, if it has."""
        key_type = Reader(blob).name()
        if key_type != RSA:
            return key_type
        negotiated = self.connection.transport.host_key_algorithm
        return "rsa-sha2-256" if negotiated.startswith("rsa-sha2-256") else "rsa-sha2-512"

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        opener = self._OPENERS.get(channel.channel_type)
        if opener is None:
            channel.reject(UNKNOWN_CHANNEL_TYPE, "no such channel type")
        else:
            opener(self, channel, type_data)

    def _open_session(self, channel: Channel, type_data: bytes) -> None:
        Reader(type_data).end()
        if self._no_more_sessions:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "no more sessions were wanted")
            return
        if self._sessions >= self._config.max_sessions:
            channel.reject(RESOURCE_SHORTAGE, "too many sessions")
            return
        self._sessions += 1
        channel.accept(
            Session(
                channel,
                self._monitor,
                self._driver,
                self._config.accept_env,
                self._forwards.forward_agent,
                self._session_closed,
            )
        )

    def _session_closed(self) -> None:
        self._sessions -= 1

    def _open_tunnel(self, channel: Channel, type_data: bytes) -> None:
        wanted = TunnelOpen.decode(type_data)
        if self._tunnels >= TUNNELS_LIMIT:
            channel.reject(RESOURCE_SHORTAGE, "too many tunnels")
            return
        try:
            device, name = self._monitor.open_tunnel(wanted.mode, wanted.unit)
        except Refused as refusal:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, str(refusal))
            return
        except OSError as error:
            channel.reject(CONNECT_FAILED, str(error.strerror))
            return
        self._tunnels += 1
        drops = Drops()

        def ended() -> None:
            os.close(device)
            if drops:
                _log.info("tunnel device %s: %s", name, drops)
            self._monitor.close_tunnel(name)
            self._tunnels -= 1

        if channel.channel_type == OFFLOAD_CHANNEL_TYPE:
            channel.resize(OFFLOAD_WINDOW, OFFLOAD_MESSAGE)
            tunnel: TunnelChannel = OffloadTunnel(device, wanted.mode, self._driver, drops, ended)
            channel.accept(tunnel, self._handed_out(name).encode())
        else:
            tunnel = OpenSSHTunnel(device, wanted.mode, self._driver, drops, ended)
            channel.accept(tunnel)
        self.connection.transport.use_own_cipher_order()
        tunnel.start(channel)
        self._keep_alive(TUNNEL_KEEPALIVE, TUNNEL_KEEPALIVES)

    def _handed_out(self, device: str) -> HandedOut:
        """What sshd.toml declares for the client at the other end of ``device``."""
        for tunnel in self._config.tunnel:
            if tunnel.device == device and tunnel.client.addresses:
                client = tunnel.client
                peer = client.peer or tuple(each.ip for each in tunnel.addresses)
                return HandedOut(
                    _texts(client.addresses),
                    _texts({each.version: each for each in reversed(peer)}.values()),
                    _texts(client.routes),
                    client.mtu,
                    _texts(client.dns),
                    _texts(client.domains),
                )
        return HandedOut((), (), (), 0, (), ())

    _OPENERS: Final[Mapping[str, Callable[["Worker", Channel, bytes], None]]] = {
        "session": _open_session,
        CHANNEL_TYPE: _open_tunnel,
        OFFLOAD_CHANNEL_TYPE: _open_tunnel,
        DIRECT_TCPIP: lambda self, *opening: self._forwards.open_tcpip(*opening),
        DIRECT_STREAMLOCAL: lambda self, *opening: self._forwards.open_streamlocal(*opening),
    }

    def closed(self, error: PeerError | None) -> None:
        if error is None or isinstance(error, PeerDisconnected):
            _log.info("connection closed%s", f": {error}" if error else "")
        else:
            _log.warning("connection ended: %s", error)


def _texts(values: Iterable[object]) -> tuple[bytes, ...]:
    return tuple(str(value).encode() for value in values)


def serve(job: Job, sock: socket.socket, to_monitor: socket.socket) -> None:
    """Serve one connection to its end."""
    gc.enable()  # the monitor, which forked us, has no use for it
    Worker(job, sock, MonitorClient(to_monitor)).run()
