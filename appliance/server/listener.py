"""The server's first process: binds, loads, accepts, and forks a monitor for each connection.

It does not read a single byte from the network. Before the first accept it imports and runs once
everything that a connection needs, and freezes the heap, so that a fork shares nearly all of its
memory.

    listener (root) --fork--> monitor (root) --fork--> worker (nobody, locked in)

It does not read private keys either, because forks would have traces of them; see key_holder.py.
"""

import errno
import gc
import logging
import os
import random
import select
import signal
import socket
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from .. import __version__, log
from ..aio.processor import aes_is_fast
from ..aio.service_manager import notify
from ..config.server import ServerConfig
from ..crypto.suites import MINIMUM_RSA_BITS
from ..errors import CulvertError, UsageError
from ..process import merging, sandbox, seccomp
from . import audit, factors, host_keys, matching, tunnels, user_keys, worker
from .display_numbers import DisplayNumbers
from .key_holder import KeyHolder
from .monitor import Monitor
from .peer import Peer
from .penalties import Ending, Penalties, blocks_of
from .pipes import Pipes
from .programs import ended_children
from .requests import LogLine, MonitorGone

_log = logging.getLogger(__name__)

# Our own choices
BACKLOG: Final = 128
RETRY_SECONDS: Final = 1.0  # until host keys that could not be read are tried again
DROPS_INTERVAL: Final = 1.0  # seconds between lines: a flood of connections must not flood the log
_PID: Final = struct.Struct("i")


def bind(listen: Sequence[str], kept: Sequence[socket.socket] = ()) -> list[socket.socket]:
    """A socket for each '[address:]port'; a port alone means every address. Raises UsageError.

    Sockets of ``kept`` that already listen there are used again.
    """
    listening = {(sock.family, *sock.getsockname()[:2]): sock for sock in kept}
    sockets: list[socket.socket] = []
    try:
        for text in listen:
            address, _, port = text.rpartition(":")
            address = address.removeprefix("[").removesuffix("]")
            if not port.isdigit() or not 0 < int(port) < 65536:
                raise UsageError(f"'{text}' is not [address:]port")
            for family, host in _families(address):
                place = family, host.partition("%")[0], int(port)
                sockets.append(listening.get(place) or _listen(family, host, int(port)))
    except UsageError:
        _close_all_but(sockets, kept)
        raise
    return sockets


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}"
            + (": is another server running?" if error.errno == errno.EADDRINUSE else "")
            + (": ports below 1024 need root" if error.errno == errno.EACCES else "")
        ) from error
    sock.setblocking(False)
    return sock


def _close_all_but(sockets: Iterable[socket.socket], kept: Collection[socket.socket]) -> None:
    for sock in sockets:
        if sock not in kept:
            sock.close()


def _families(address: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address or address == "*":
        both = [(socket.AF_INET, "0.0.0.0")]
        return [*both, (socket.AF_INET6, "::")] if os.path.exists("/proc/net/if_inet6") else both
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"cannot listen on {address}: {error.strerror}") from error
    return [(family, str(sockaddr[0])) for family, _, _, _, sockaddr in found]


class _Settings:
    """The server's settings, and all objects that the listener makes from them.

    A SIGHUP makes a new object, which replaces the old one as a whole.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Starts a key holder, which reads or makes the host keys; raises UsageError."""
        self.config = config
        self.key_holder = KeyHolder(config.host_keys, config.make_host_keys)
        try:
            self._arrange(config)
        except UsageError:
            self.close()
            raise

    def begin(self, before: "_Settings | None" = None) -> None:
        """Puts these settings into force, and closes ``before``, which they replace."""
        if self.config.merge_memory and (obstacle := merging.obstacle()):
            _log.warning("merge_memory: %s", obstacle)
        if before is None:
            return
        before.close()
        if self.penalties is not None and before.penalties is not None:
            self.penalties.go_on_from(before.penalties)

    def close(self) -> None:
        """Closes the socket to the key holder; for settings that are replaced or not used."""
        self.key_holder.close()

    def _arrange(self, config: ServerConfig) -> None:
        self.host_keys = host_keys.arrange(
            self.key_holder.keys, config.host_certificates, MINIMUM_RSA_BITS[config.profile]
        )
        factors.sequences(config)
        algorithms = user_keys.algorithms(config, aes_is_fast())
        if not set(algorithms.host_key) & set(self.host_keys.by_algorithm):
            raise UsageError("no host key that this profile accepts")
        # the worker accepts the algorithms of every [[match]]; the monitor checks the user's
        accepted = dict.fromkeys(algorithms.user_key)
        for number, match in enumerate(config.match, 1):
            special = matching.with_match(config, match)
            try:
                factors.sequences(special)
                accepted |= dict.fromkeys(user_keys.algorithms(special, True).user_key)
            except UsageError as error:
                raise UsageError(f"match number {number}: {error}") from error
        algorithms = algorithms._replace(user_key=tuple(accepted))
        self.job = worker.Job(
            config,
            algorithms,
            {name: key.public.blob for name, key in self.host_keys.by_algorithm.items()},
            tuple(self.host_keys.by_blob),
            _read_banner(config.banner),
        )
        self.calls = _permitted_calls(config)
        self.penalties = (
            Penalties(config.per_source_penalty_exempt_list, config.per_source_net_block_size)
            if config.per_source_penalties
            else None
        )


class Listener:
    """The accept loop, with its settings, sockets and counts of connections."""

    def __init__(self, config: ServerConfig, read_again: Callable[[], ServerConfig]) -> None:
        """``read_again`` reads the settings at a SIGHUP. It and this raise UsageError."""
        self._read_again = read_again
        self._identity = sandbox.prepare()
        if config.tunnel and self._identity is None:
            raise UsageError(
                f"[[tunnel]] makes devices and needs root: this server runs as uid {os.geteuid()}"
            )
        tunnels.check_keys(config.tunnel)
        self._declared = tunnels.Declared(config.tunnel)
        self._settings = _Settings(config)
        self._open_audit(self._settings)
        self._settings.begin()
        self._display_numbers = DisplayNumbers()
        self._connections = 0
        # Process ids of monitors whose peer is not authenticated -> blocks_of the peer's address.
        self._starting: dict[int, tuple[int, ...]] = {}
        self._per_block: Counter[int] = Counter()
        self._monitors: dict[int, str] = {}  # process id -> the peer's address
        self._sockets: list[socket.socket] = []
        self._drops_untold = 0
        self._tells_drops_at = 0.0

    def _take(self, settings: "_Settings") -> None:
        settings.begin(self._settings)
        self._settings = settings

    @staticmethod
    def _open_audit(settings: "_Settings") -> None:
        try:
            audit.open_file(settings.config.audit_file)
        except UsageError:
            settings.close()
            raise

    def close(self) -> None:
        """Closes the listener's own descriptors; connections keep theirs."""
        self._settings.close()
        self._display_numbers.close()

    def serve_one(self, reading: int, writing: int) -> None:
        """Serves one connection, over a socket or two pipes, and returns (inetd mode)."""
        self._preload()
        if stat.S_ISSOCK(os.fstat(reading).st_mode):
            os.close(writing)
            self._monitor(socket.socket(fileno=reading), 1, None)
            return
        pipes = Pipes(reading, writing, self._identity)
        self._monitor(pipes.socket, 1, None)
        pipes.close()

    def run(self, sockets: list[socket.socket]) -> None:
        """Accepts until SIGTERM or SIGINT.

        Then connections go on, except those that use declared tunnel devices.
        """
        self._sockets = sockets
        if self._identity is not None:
            self._declared.set_up()
        self._preload()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        told_read, told_write = os.pipe()
        signals: set[int] = set()
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: signals.add(number))
        poll = select.poll()
        for fd in (wake_read, told_read, self._declared.fileno()):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        by_fd: dict[int, socket.socket | None] = {}
        self._watch(poll, by_fd)
        audit.write(audit.Started(version=__version__))
        self._tell_places(sockets)
        notify("READY=1")
        while not signals & {signal.SIGTERM, signal.SIGINT}:
            patience = self._declared.patience
            ready = poll.poll(None if patience is None else patience * 1000)
            if self._declared.patience == 0:
                self._declared.keep()
            for fd, _ in ready:
                if fd == self._declared.fileno():
                    self._declared.keep()
                elif fd == wake_read:
                    os.read(wake_read, 512)
                    self._reap()
                elif fd == told_read:
                    for (pid,) in _PID.iter_unpack(os.read(told_read, 512 * _PID.size)):
                        self._release(pid)
                elif (listening := by_fd[fd]) is not None:
                    self._accept(listening, told_write)
                else:
                    self._begin_key_holder()
                    self._watch(poll, by_fd)
                    break
            if signal.SIGHUP in signals:
                signals.discard(signal.SIGHUP)
                self._reload()
                self._watch(poll, by_fd)
        notify("STOPPING=1")
        audit.write(audit.Stopped())
        if self._identity is not None:
            self._declared.take_down()

    def _watch(self, poll: select.poll, by_fd: dict[int, socket.socket | None]) -> None:
        """Has ``poll`` watch the current listening sockets and the socket to the key holder.

        ``by_fd`` maps their descriptors to the sockets, and the key holder's to None.
        """
        for fd in by_fd:
            poll.unregister(fd)
        by_fd.clear()
        for sock in self._sockets:
            by_fd[sock.fileno()] = sock
            poll.register(sock, select.POLLIN)
        key_holder = self._settings.key_holder
        by_fd[key_holder.fileno()] = None
        poll.register(key_holder, 0)  # for POLLHUP alone, which comes when the key holder ends

    def _begin_key_holder(self) -> None:
        """Starts another key holder after one has ended, which is never planned."""
        _log.error("the process that holds the host keys has ended; another one is started")
        try:
            self._take(_Settings(self._settings.config))
        except UsageError as error:
            _log.error("%s", error)
            time.sleep(RETRY_SECONDS)

    @staticmethod
    def _tell_places(sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            address, port = sock.getsockname()[:2]
            audit.write(audit.Listening(local_address=address, local_port=port))

    def _reload(self) -> None:
        """Reads the settings again; keeps the old ones if the new ones have a mistake.

        Connections keep the settings that they began with.
        """
        # sd_notify(3): a service tells that it reloads, and the time
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._begin_again()
        except UsageError as error:
            audit.write(audit.NotReloaded(reason=str(error)))
        else:
            audit.write(audit.Reloaded())
        notify("READY=1")

    def _begin_again(self) -> None:
        """Puts the new settings into force; a UsageError leaves everything as it was."""
        config = self._read_again()
        tunnel = self._settings.config.tunnel
        if config.tunnel != tunnel:
            _log.warning("changes in [[tunnel]] take effect when the server starts again")
            config = replace(config, tunnel=tunnel)
        old = self._sockets
        new = bind(config.listen, kept=old)
        try:
            settings = _Settings(config)
            self._open_audit(settings)
        except UsageError:
            _close_all_but(new, old)
            raise
        self._sockets = new
        self._take(settings)
        self._preload()
        _close_all_but(old, new)
        self._tell_places(sock for sock in new if sock not in old)

    def _preload(self) -> None:
        """Does once what every connection does, so that forks share the memory for it."""
        from ..process.rehearsal import rehearse

        rehearse(self._settings.job.algorithms)
        gc.collect()
        gc.freeze()

    def _accept(self, listening: socket.socket, told: int) -> None:
        try:
            sock, address = listening.accept()
        except OSError as error:  # the client is gone, or no descriptor is left
            _log.warning("accept: %s", error.strerror)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(0.1)  # the connection stays in the queue: do not spin
            return
        with sock:
            source = str(address[0])
            config, penalties = self._settings.config, self._settings.penalties
            blocks = blocks_of(source, config.per_source_net_block_size)
            if penalties is not None and penalties.refuses(source, time.monotonic()):
                self._tell_drop(source, "a penalty")
                return
            if self._drops(blocks):
                self._tell_drop(source, "too many start-ups")
                return
            self._connections += 1
            try:
                pid = os.fork()
            except OSError as error:
                self._tell_drop(source, f"no process: {error.strerror}")
                return
            if pid == 0:
                self._child(sock, told)
            self._monitors[pid] = source
            self._starting[pid] = blocks
            self._per_block.update(blocks)

    def _tell_drop(self, source: str, why: str) -> None:
        now = time.monotonic()
        if now < self._tells_drops_at:
            self._drops_untold += 1
            return
        audit.write(audit.Dropped(address=source, reason=why, others=self._drops_untold or None))
        self._tells_drops_at = now + DROPS_INTERVAL
        self._drops_untold = 0

    def _drops(self, blocks: tuple[int, ...]) -> bool:
        """Whether to drop a connection: MaxStartups of sshd_config(5), and a limit for each source.

        ``blocks`` are the source's own block, then wider ones, each with twice the limit of the one
        before. No block alone keeps others out: it may take at most three quarters of the places,
        and in the random early drop of others it counts as at most a quarter of ``start``.
        """
        config = self._settings.config
        start, percent, full = config.max_startups
        for level, block in enumerate(blocks):
            limit = config.per_source_max_startups << level
            if self._per_block[block] >= min(limit, full - full // 4):
                return True
        if len(self._starting) >= full:
            return True
        others = self._others(blocks)
        own = self._per_block[blocks[0]]
        waiting = own + sum(min(self._per_block[other], start // 4) for other in others)
        if waiting < start:
            return False
        chance = percent + (100 - percent) * (waiting - start) / (full - start)
        return random.random() * 100 < chance

    def _others(self, blocks: tuple[int, ...]) -> set[int]:
        """The widest blocks with start-ups that do not contain the source of ``blocks``."""
        found = set()
        for others in self._starting.values():
            pairs = zip(reversed(others), reversed(blocks), strict=False)
            found.add(next((other for other, own in pairs if other != own), blocks[0]))
        return found - {blocks[0]}

    def _release(self, pid: int) -> None:
        """Stops counting a monitor that has ended, or whose peer is authenticated."""
        self._per_block -= Counter(self._starting.pop(pid, ()))

    def _reap(self) -> None:
        for pid, status in ended_children():
            self._release(pid)
            self._punish(self._monitors.pop(pid, ""), os.waitstatus_to_exitcode(status))

    def _punish(self, source: str, status: int) -> None:
        """Adds the penalty for the end of a connection; a negative status is a signal's."""
        penalties = self._settings.penalties
        if penalties is None or not source:
            return
        ending = Ending(status) if status in set(Ending) else Ending.CRASH
        if network := penalties.add(source, ending, time.monotonic()):
            audit.write(audit.Penalty(address=source, network=network, reason=ending.name.lower()))

    def _child(self, sock: socket.socket, told: int) -> None:
        """In the new process: becomes a monitor, and never returns."""
        status = Ending.CRASH
        try:
            sandbox.forget_signals()
            kept = {sock.fileno(), told, *log.descriptors(), *audit.descriptors()}
            kept |= {self._settings.key_holder.fileno(), self._display_numbers.fileno()}
            sandbox.keep_descriptors(kept | sandbox.descriptors(self._identity))
            status = self._monitor(sock, self._connections, told)
        except Exception:  # the root of a process
            _log.exception("the monitor failed")
        finally:
            os._exit(status)

    def _monitor(self, sock: socket.socket, number: int, told: int | None) -> Ending:
        gc.disable()  # short code, few objects: a collection would only copy shared pages
        log.serve_connection(number)
        peer = Peer(sock)
        audit.serve_connection(number, peer)
        audit.write(audit.Connected())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._worker(sock, theirs)
        theirs.close()
        sock.close()

        def authenticated() -> None:
            if told is not None:
                os.write(told, _PID.pack(os.getpid()))

        settings = self._settings
        return Monitor(
            settings.config,
            settings.host_keys,
            self._display_numbers,
            peer,
            ours,
            pid,
            authenticated,
        ).run()

    def _worker(self, sock: socket.socket, to_monitor: socket.socket) -> None:
        """In the new process: gives up all privileges, serves, and never returns."""
        status = 0
        try:
            audit.close_file()
            log.pass_on(lambda level, text: to_monitor.sendall(LogLine(level, text).encode()))
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            kept = {sock.fileno(), to_monitor.fileno(), *log.descriptors()}
            sandbox.keep_descriptors(kept | sandbox.descriptors(self._identity))
            sandbox.enter(self._identity, self._settings.calls)
            worker.serve(self._settings.job, sock, to_monitor)
        except MonitorGone:
            pass
        except CulvertError as error:
            _log.warning("%s", error)
        except Exception:  # the root of a process
            _log.exception("the worker failed")
            status = 1
        finally:
            os._exit(status)


def _permitted_calls(config: ServerConfig) -> bytes | None:
    """The filter for a worker's system calls, None where the kernel cannot limit them."""
    try:
        return seccomp.program(config.merge_memory)
    except seccomp.Unsupported as error:
        text = f"workers may make every system call: {error}"
        if config.sandbox == "required":
            raise UsageError(text) from error
        _log.warning("%s", text)
        return None


def _read_banner(path: str) -> str:
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(16384)
    except OSError as error:
        raise UsageError(f"banner {path}: {error.strerror}") from error
