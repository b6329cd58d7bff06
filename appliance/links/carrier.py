"""The process that carries one link: dials, logs in, and copies packets until the connection ends.

The supervisor forks it for each attempt. It gives up its privileges once it has a socket to the
server, so that root never reads data from a server; the answers of name servers and the data of
jump hosts are read without privileges, too (lookup.py, way.py). The keys are in another process
(signer.py). The device belongs to the supervisor and stays when this process ends.
"""

import gc
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final

from .. import log
from ..aio.driver import Driver
from ..aio.keepalive import KeepAlive
from ..aio.loop import Loop
from ..client.login import Login
from ..config.links import Link
from ..errors import AuthenticationFailed, CulvertError, HostKeyRejected, PeerError, UsageError
from ..log import harmless
from ..process import sandbox
from ..services.tunnel.client import TunnelClient
from ..services.tunnel.device import unit_of
from ..services.tunnel.drops import Drops
from ..ssh.connection import Connection, ConnectionHandler
from ..wire.codec import Message
from ..wire.tun import MODES, OFFLOAD_CHANNEL_TYPE, HandedOut
from .lookup import look_up
from .reports import GO, PROBE, Alive, AttemptFailed, Opened, PacketsDropped, PassedLine, Resolved
from .signer import Signer
from .way import Way

_log = logging.getLogger(__name__)

# Our own choices
PROBE_SECONDS: Final = 5.0  # for the server's answer after the network changed
HANDED_OUT_LIMIT: Final = 32 << 10  # bytes: a report holds twice as many
# Errors that a new attempt would meet again.
FINAL: Final = (AuthenticationFailed, HostKeyRejected, UsageError)


class Carrier(ConnectionHandler):
    """One attempt at one link, from dialling to the end of its connection."""

    def __init__(self, link: Link, device: int, reports: socket.socket) -> None:
        self._link = link
        self._device = device
        self._reports = reports
        self._failure: CulvertError | None = None
        self._drops = Drops()  # since the last report

    def run(
        self,
        login: Login,
        known: Sequence[str],
        confinement: sandbox.Confinement,
    ) -> None:
        """Carries packets until the connection ends; the last report gives the reason.

        ``known`` are the first hop's addresses from an earlier connection.
        """
        gc.enable()
        way = Way(confinement)
        try:
            hop = login.first_hop
            addresses = (look_up(*hop, confinement.resolver) if hop else []) or known
            signer = Signer(login.load_identities, confinement)
            login.use_identities(signer.identities)
            if hop is not None:  # without a ProxyCommand, whose exit status is reported
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # other children are not waited for
            self._report(Resolved(tuple(address.encode() for address in addresses)))
            if self._reports.recv(1) != GO:
                return
            sock = way.connect(login, addresses)
            self._address = way.address
            link = self._link
            _limit_silence(sock, link.server_alive_interval * link.server_alive_count_max)
            # A restarted syslog could not be reached from the sandbox.
            log.pass_on(lambda level, text: self._report(PassedLine(level, text)))
            sandbox.enter(confinement.identity, confinement.calls)
            connection = login.authenticate(sock, self)
            signer.close()
            self._carry(connection, sock)
        except CulvertError as error:
            self._failure = error
        failure = self._failure or CulvertError("the server closed the connection")
        if said := way.why():
            failure = CulvertError(said)
        self._report(AttemptFailed(isinstance(failure, FINAL), str(failure)[:1000]))

    def _report(self, message: Message) -> None:
        self._reports.sendall(message.encode())

    def _carry(self, connection: Connection, sock: socket.socket) -> None:
        link = self._link
        loop = self._loop = Loop()
        driver = self._driver = Driver(loop, sock, connection, loop.stop)
        self._connection = connection
        self._keepalive = KeepAlive(
            driver,
            link.server_alive_interval,
            link.server_alive_count_max,
            self._silent,
            self._answered,
        )
        loop.watch_reader(self._reports.fileno(), self._on_order)
        mode, unit = MODES[link.mode], unit_of(link.remote_device)
        TunnelClient(
            self._device,
            mode,
            unit,
            driver,
            self._drops,
            self._opened,
            self._refused,
            self._report_drops,
        ).start()
        driver.start()
        loop.run()
        self._report_drops()

    def _on_order(self) -> None:
        if self._reports.recv(16) == PROBE:
            self._keepalive.probe(PROBE_SECONDS)
        else:  # the supervisor is gone
            self._loop.stop()

    def _opened(self, handed_out: HandedOut | None) -> None:
        encoded = handed_out.encode() if handed_out else b""
        if len(encoded) > HANDED_OUT_LIMIT:
            self._fail(f"the server hands out more than {HANDED_OUT_LIMIT} bytes")
            return
        self._report(
            Opened(
                self._address,
                self._connection.transport.peer_software[:200],
                self._connection.transport.peer_speaks(OFFLOAD_CHANNEL_TYPE),
                encoded,
            )
        )

    def _refused(self, why: str) -> None:
        self._fail(f"the server refuses the tunnel: {why}")

    def _silent(self) -> None:
        self._fail("the server does not answer any more")

    def _fail(self, why: str) -> None:
        self._failure = CulvertError(why)
        self._loop.stop()

    def _answered(self, round_trip: float) -> None:
        self._report(Alive(int(round_trip * 1e6)))
        self._report_drops()

    def _report_drops(self) -> None:
        """Reports dropped packets, together with another report: they alone wake nobody up."""
        for drop, packets in self._drops.items():
            self._report(PacketsDropped(drop, packets))
        self._drops.clear()

    def banner(self, text: str) -> None:
        _log.info("the server says: %s", harmless(text).strip())

    def closed(self, error: PeerError | None) -> None:
        self._failure = self._failure or error


def _limit_silence(sock: socket.socket, seconds: int) -> None:
    """Makes the kernel, too, give up when sent data is not acknowledged for ``seconds``."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def carry(
    link: Link,
    device: int,
    reports: socket.socket,
    login: Login,
    known: Sequence[str],
    confinement: sandbox.Confinement,
) -> None:
    """Runs the whole process; never returns."""
    status = 0
    try:
        sandbox.forget_signals()
        sandbox.end_with_parent()
        sandbox.close_all_but(
            {
                device,
                reports.fileno(),
                *log.descriptors(),
                *sandbox.descriptors(confinement.identity),
            }
        )
        Carrier(link, device, reports).run(login, known, confinement)
    except (BrokenPipeError, ConnectionResetError):  # the supervisor is gone
        pass
    except Exception:  # the root of a process
        _log.exception("link %s: its process failed", link.name)
        status = 1
    finally:
        os._exit(status)
