"""The unprivileged half of one connection: all parsing and nearly all cryptography.

It asks its monitor for everything that it may not do itself (monitor_client.py), and blocks until
the answer comes: a worker serves one connection, so no other connection has to wait.
"""

import gc
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

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
from ..services.base import Refused
from ..services.forward_server import REQUESTS, ForwardServer
from ..services.session import Session
from ..services.tunnel.channel import OffloadTunnel, OpenSSHTunnel, TunnelChannel
from ..services.tunnel.drops import Drops
from ..ssh.channels import Channel
from ..ssh.connection import Connection, ConnectionHandler
from ..ssh.settings import ServerSide, Settings
from ..wire.codec import Reader
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
from .monitor_client import MonitorClient
from .requests import TUNNELS_LIMIT

_log = logging.getLogger(__name__)

# Our own choices
TUNNEL_KEEPALIVE: Final = 15  # seconds; a dead client must not keep its device for long
TUNNEL_KEEPALIVES: Final = 3  # without an answer before the connection is closed


class Job(NamedTuple):
    """What a worker needs to know about the server."""

    config: ServerConfig
    algorithms: Algorithms
    host_keys: Mapping[str, bytes]  # signature algorithm -> blob
    all_host_keys: tuple[bytes, ...]
    banner: str


class Worker(ConnectionHandler):
    """The services of one connection."""

    def __init__(
        self,
        job: Job,
        monitor: MonitorClient,
        drive: Callable[[Connection], Driver],
        now: float,
    ) -> None:
        """``drive`` gives the new connection its driver, which the caller starts."""
        self._config = job.config
        self._monitor = monitor
        self._sessions = 0
        self._tunnels = 0
        self._all_host_keys = job.all_host_keys
        self._no_more_sessions = False
        self._keepalive: KeepAlive | None = None
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
            now,
        )
        self.driver = drive(self.connection)
        self._forwards = ForwardServer(self.driver, monitor)

    def authenticated(self) -> None:
        if self._config.merge_memory:
            merging.begin()
        self.connection.global_request(HOSTKEYS, write_strings(self._all_host_keys))
        self._config = self._monitor.settings(self._config)
        self._forwards.x11_relay = self._config.x11_relay
        loop = self.driver.loop
        self._monitor.watch(loop, lambda: loop.call_soon(self._ask_client))
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
        self.driver.flush()

    def _keep_alive(self, interval: int, count: int) -> None:
        if self._keepalive is None:
            self._keepalive = KeepAlive(self.driver, interval, count, self._silent)

    def _silent(self) -> None:
        _log.info("the client does not answer any more")
        self.connection.transport.close("no answer")
        self.driver.flush()

    def _watch_for_idleness(self) -> None:
        IdleTimeout(self.driver, self._config.idle_timeout, self._idle)

    def _idle(self) -> None:
        if self._tunnels:  # a VPN must stay up without traffic, too
            self._watch_for_idleness()
            return
        _log.info("idle for %d s", self._config.idle_timeout)
        self.connection.transport.close("idle for too long")
        self.driver.flush()

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
        """The algorithm to sign with; for an RSA key, that of the key exchange if it was RSA."""
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
                self.driver,
                self._config.accept_env,
                self._forwards.forward_agent,
                self._forwards.forward_x11,
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
            tunnel: TunnelChannel = OffloadTunnel(device, wanted.mode, self.driver, drops, ended)
            channel.accept(tunnel, self._handed_out(name).encode())
        else:
            tunnel = OpenSSHTunnel(device, wanted.mode, self.driver, drops, ended)
            channel.accept(tunnel)
        self.connection.transport.use_own_cipher_order()
        tunnel.start(channel)
        self._keep_alive(TUNNEL_KEEPALIVE, TUNNEL_KEEPALIVES)

    def _handed_out(self, device: str) -> HandedOut:
        """The settings that sshd.toml declares for the client at the other end of ``device``."""
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
    """Serves one connection to its end."""
    gc.enable()  # the monitor, which forked this process, has disabled it
    loop = Loop()
    monitor = MonitorClient(to_monitor)
    worker = Worker(
        job, monitor, lambda connection: Driver(loop, sock, connection, loop.stop), loop.time()
    )
    worker.driver.start()
    loop.run()
    loop.close()
    monitor.report_totals(worker.driver.received, worker.driver.sent)
