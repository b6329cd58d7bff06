"""The server's first process: binds, loads, accepts, and forks a monitor a connection.

It reads not one byte from the network. Everything that a connection will need is
imported and tried once before the first accept, and the heap is frozen, so that a fork
shares nearly all of its memory.

    listener (root) --fork--> monitor (root) --fork--> worker (nobody, locked in)
"""

import errno
import gc
import logging
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from .. import log
from ..aio.processor import aes_is_fast
from ..aio.service_manager import notify
from ..config.server import ServerConfig
from ..crypto.suites import MINIMUM_RSA_BITS
from ..errors import CulvertError, UsageError
from . import factors, host_keys, sandbox, tunnels, user_keys, worker
from .monitor import Monitor
from .peer import Peer
from .penalties import Ending, Penalties
from .programs import ended_children
from .requests import MonitorGone

_log = logging.getLogger(__name__)

# Our own choices
BACKLOG: Final = 128
_PID: Final = struct.Struct("i")


def bind(listen: Sequence[str]) -> list[socket.socket]:
    """A socket for each '[address:]port'; a port alone means every address."""
    sockets = []
    for text in listen:
        address, _, port = text.rpartition(":")
        address = address.removeprefix("[").removesuffix("]")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"'{text}' is not [address:]port")
        for family, host in _families(address):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((host, int(port)))
                sock.listen(BACKLOG)
            except OSError as error:
                raise UsageError(
                    f"cannot listen on {host} port {port}: {error.strerror}"
                    + (": is another server running?" if error.errno == 98 else "")
                    + (": ports below 1024 need root" if error.errno == 13 else "")
                ) from error
            sock.setblocking(False)
            sockets.append(sock)
    return sockets


def _families(address: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address or address == "*":
        both = [(socket.AF_INET, "0.0.0.0")]
        return [*both, (socket.AF_INET6, "::")] if os.path.exists("/proc/net/if_inet6") else both
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"cannot listen on {address}: {error.strerror}") from error
    return [(family, str(sockaddr[0])) for family, _, _, _, sockaddr in found]


class Listener:
    """The accept loop and what it counts."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._identity = sandbox.prepare()
        if config.tunnel and self._identity is None:
            raise UsageError(
                f"[[tunnel]] makes devices and needs root: this server runs as uid {os.geteuid()}"
            )
        keys = host_keys.load(config.host_keys, config.make_host_keys)
        self._host_keys = host_keys.by_algorithm(
            keys, config.host_certificates, MINIMUM_RSA_BITS[config.profile]
        )
        algorithms = user_keys.algorithms(config, aes_is_fast())
        if not set(algorithms.host_key) & set(self._host_keys):
            raise UsageError("no host key that this profile accepts")
        self._job = worker.Job(
            config,
            algorithms,
            {name: key.public.blob for name, key in self._host_keys.items()},
            _read_banner(config.banner),
        )
        factors.sequences(config)
        tunnels.check_keys(config.tunnel)
        self._declared = tunnels.Declared(config.tunnel)
        self._connections = 0
        self._sources: dict[int, str] = {}  # monitors whose peer is not authenticated
        self._per_source: Counter[str] = Counter()
        self._monitors: dict[int, str] = {}  # all of them, and where their peers are
        self._penalties = (
            Penalties(config.per_source_penalty_exempt_list)
            if config.per_source_penalties
            else None
        )
        self._sockets: list[socket.socket] = []
        self._pipes: tuple[int, ...] = ()  # that are no monitor's business

    def serve_one(self, sock: socket.socket) -> None:
        """Inetd mode: one connection, then return."""
        self._preload()
        self._monitor(sock, 1, None)

    def run(self, sockets: list[socket.socket]) -> None:
        """Accept until SIGTERM; connections live on without us, but those of declared devices."""
        self._sockets = sockets
        if self._identity is not None:
            self._declared.set_up()
        self._preload()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        told_read, told_write = os.pipe()
        self._pipes = wake_read, wake_write, told_read
        stopped = False

        def stop(*_: object) -> None:
            nonlocal stopped
            stopped = True

        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        poll = select.poll()
        by_fd = {sock.fileno(): sock for sock in sockets}
        for fd in (*by_fd, wake_read, told_read):
            poll.register(fd, select.POLLIN)
        for sock in sockets:
            address, port = sock.getsockname()[:2]
            _log.info("listening on %s port %d", address, port)
        notify("READY=1")
        while not stopped:
            for fd, _ in poll.poll():
                if fd == wake_read:
                    os.read(wake_read, 512)
                    self._reap()
                elif fd == told_read:
                    for (pid,) in _PID.iter_unpack(os.read(told_read, 512 * _PID.size)):
                        self._release(pid)
                else:
                    self._accept(by_fd[fd], told_write)
        notify("STOPPING=1")
        _log.info("stopped listening")
        if self._identity is not None:
            self._declared.take_down()

    def _preload(self) -> None:
        """Do once what every connection does, so that forks find it in memory."""
        from .rehearsal import rehearse

        rehearse(self._job.algorithms)
        gc.collect()
        gc.freeze()

    def _accept(self, listening: socket.socket, told: int) -> None:
        try:
            sock, address = listening.accept()
        except OSError as error:  # gone again, or out of descriptors
            _log.warning("accept: %s", error.strerror)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(0.1)  # the connection waits in the queue, and so can we
            return
        with sock:
            source = str(address[0])
            if self._penalties is not None and self._penalties.refuses(source, time.monotonic()):
                _log.debug("connection from %s dropped: a penalty", source)
                return
            if self._drops(source):
                _log.info("connection from %s dropped: too many start-ups", source)
                return
            self._connections += 1
            try:
                pid = os.fork()
            except OSError as error:
                _log.warning("connection from %s dropped: fork: %s", source, error.strerror)
                return
            if pid == 0:
                self._child(sock, told)
            self._monitors[pid] = source
            self._sources[pid] = source
            self._per_source[source] += 1

    def _drops(self, source: str) -> bool:
        """MaxStartups of sshd_config(5), random early drop, and a limit for each source."""
        if self._per_source[source] >= self._config.max_startups_per_source:
            return True
        start, percent, full = self._config.max_startups
        waiting = len(self._sources)
        if waiting < start:
            return False
        if waiting >= full:
            return True
        chance = percent + (100 - percent) * (waiting - start) / (full - start)
        return random.random() * 100 < chance

    def _release(self, pid: int) -> None:
        """A monitor's peer is authenticated, or it ended."""
        source = self._sources.pop(pid, None)
        if source is not None:
            self._per_source[source] -= 1
            if not self._per_source[source]:
                del self._per_source[source]

    def _reap(self) -> None:
        for pid, status in ended_children():
            self._release(pid)
            self._punish(self._monitors.pop(pid, ""), os.waitstatus_to_exitcode(status))

    def _punish(self, source: str, status: int) -> None:
        """A connection of ``source`` ended; a negative status is a signal's."""
        if self._penalties is None or not source:
            return
        ending = Ending(status) if status in set(Ending) else Ending.CRASH
        if self._penalties.add(source, ending, time.monotonic()):
            _log.warning("%s is refused for a while: %s", source, ending.name.lower())

    def _child(self, sock: socket.socket, told: int) -> None:
        """In the new process: become a monitor, and never return."""
        status = Ending.CRASH
        try:
            sandbox.forget_signals()
            for listening in self._sockets:
                listening.close()
            for fd in self._pipes:
                os.close(fd)
            self._declared.close()
            status = self._monitor(sock, self._connections, told)
        except Exception:  # the root of a process
            _log.exception("the monitor failed")
        finally:
            os._exit(status)

    def _monitor(self, sock: socket.socket, number: int, told: int | None) -> Ending:
        gc.disable()  # short code, few objects: a collection would only copy shared pages
        log.serve_connection(number)
        peer = Peer(sock)
        _log.info("connection from %s port %d", peer.address, peer.port)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            if told is not None:
                os.close(told)
            self._worker(sock, theirs)
        theirs.close()
        sock.close()

        def authenticated() -> None:
            if told is not None:
                os.write(told, _PID.pack(os.getpid()))

        return Monitor(self._config, self._host_keys, peer, ours, pid, authenticated).run()

    def _worker(self, sock: socket.socket, to_monitor: socket.socket) -> None:
        """In the new process: give everything up, serve, and never return."""
        status = 0
        try:
            self._host_keys.clear()
            sandbox.enter(self._identity)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            worker.serve(self._job, sock, to_monitor)
        except MonitorGone:
            pass
        except CulvertError as error:
            _log.warning("%s", error)
        except Exception:  # the root of a process
            _log.exception("the worker failed")
            status = 1
        finally:
            os._exit(status)


def _read_banner(path: str) -> str:
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(16384)
    except OSError as error:
        raise UsageError(f"banner {path}: {error.strerror}") from error


def daemonize() -> None:
    """Leave the terminal and the caller; standard descriptors go to /dev/null."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.chdir("/")
