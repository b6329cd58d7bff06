"""Connects to a host and logs in, without an event loop.

Until the login is over, a client has nothing to do but to wait for one socket.
"""

import logging
import math
import socket
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import CulvertError
from ..ssh.connection import Connection
from ..ssh.order import Phase

_log = logging.getLogger(__name__)

# Our own choices
HANDSHAKE_SECONDS: Final = 120.0  # until the login begins; sshd's LoginGraceTime
ANSWER_SECONDS: Final = 120.0  # for one answer of the login; no sshd takes longer (LoginGraceTime)

FAMILIES: Final = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class DialFailed(CulvertError):
    """The host cannot be reached, or does not answer in time."""


def dial(
    host: str,
    port: int,
    family: str = "any",
    bind_address: str | None = None,
    timeout: float | None = None,
    attempts: int = 1,
    addresses: Sequence[str] = (),
    mark: int = 0,
) -> tuple[socket.socket, float]:
    """Connects to the first address of ``host`` that answers, each within ``timeout`` seconds.

    Returns the socket, and when connecting to this address began (seconds, monotonic). If
    ``addresses`` are given, the name is not looked up. ``mark`` marks the packets for routing
    rules (SO_MARK of socket(7)), which needs CAP_NET_ADMIN. Raises DialFailed.
    """
    for attempt in range(attempts):
        if attempt:
            time.sleep(1.0)  # as OpenSSH does
        try:
            return _dial_once(host, port, family, bind_address, timeout, addresses or (host,), mark)
        except DialFailed as error:
            failure = error
    raise failure


def _dial_once(
    host: str,
    port: int,
    family: str,
    bind_address: str | None,
    timeout: float | None,
    names: Sequence[str],
    mark: int,
) -> tuple[socket.socket, float]:
    try:
        addresses = [
            found
            for name in names
            for found in socket.getaddrinfo(name, port, FAMILIES[family], socket.SOCK_STREAM)
        ]
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise DialFailed(f"Could not resolve hostname {host}: {why}") from error
    failure: OSError | None = None
    for kind, _, _, _, address in addresses:
        sock = socket.socket(kind, socket.SOCK_STREAM)
        began = time.monotonic()
        _log.debug("Connecting to %s [%s] port %d.", host, address[0], port)
        try:
            sock.settimeout(timeout)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if bind_address is not None:
                sock.bind((bind_address, 0))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
            why = error.strerror or str(error)
            _log.debug("connect to address %s port %d: %s", address[0], port, why)
            continue
        _log.debug("Connection established.")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock, began
    why = (failure.strerror or str(failure)) if failure else "no address"
    why = "Connection timed out" if isinstance(failure, TimeoutError) else why
    raise DialFailed(f"connect to host {host} port {port}: {why}") from failure


class Patience(NamedTuple):
    """How many seconds a server may take; time that the user takes does not count."""

    handshake: float = HANDSHAKE_SECONDS  # until keys and the authentication service are agreed
    silence: float = ANSWER_SECONDS  # between two packets
    answer: float = ANSWER_SECONDS  # to one request of the login
    by_command: bool = False  # ProxyCommand may ask the user before the first byte arrives


class LoginTime:
    """Decides how long a login may wait for the server.

    A server that keeps sending, but does not go on with the login, is given up, too: lines
    before its identification, IGNORE, banners and new keys do not count as answers.
    """

    def __init__(self, connection: Connection, patience: Patience, now: float) -> None:
        self._connection = connection
        self._patience = patience
        self._handshake_until = now + patience.handshake
        self._packets = connection.transport.received_packets
        self._packet_at = now
        self._requests = 0
        self._request_at = now
        self._waits_for_command = patience.by_command

    @property
    def until(self) -> float:
        """When the login is given up (seconds, monotonic); ``handled`` may move it."""
        patience = self._patience
        if self._waits_for_command:
            return self._handshake_until
        if self._is_logging_in:
            until = self._request_at + patience.answer
        else:
            until = self._handshake_until
        return min(until, self._packet_at + patience.silence)

    @property
    def _is_logging_in(self) -> bool:
        """Whether more than the service was requested, which every server accepts at once."""
        return self._requests > 1

    def handled(self, began: float, now: float) -> None:
        """Notes that data which arrived at ``began`` is handled, and the user asked if need be."""
        connection, took = self._connection, now - began
        packets = connection.transport.received_packets
        self._handshake_until += took
        self._packet_at += took
        self._request_at += took
        if self._waits_for_command:
            self._waits_for_command = False
            self._packet_at = now
            self._handshake_until = min(self._handshake_until, now + HANDSHAKE_SECONDS)
        if packets != self._packets:
            self._packets, self._packet_at = packets, now
        if connection.login_requests != self._requests:
            self._requests, self._request_at = connection.login_requests, now

    def expired(self) -> DialFailed:
        """The error of a login that took too long, in OpenSSH's words."""
        if self._is_logging_in:
            return DialFailed("Connection timed out during authentication")
        is_greeting = self._connection.transport.phase is Phase.VERSION
        return DialFailed(
            f"Connection timed out during {'banner' if is_greeting else 'key'} exchange"
        )


def login(sock: socket.socket, connection: Connection, patience: Patience) -> None:
    """Runs the connection until it is authenticated or ends (see ``connection.transport.error``).

    Raises DialFailed if the server takes too long.
    """
    transport = connection.transport
    limit = LoginTime(connection, patience, time.monotonic())
    while True:
        try:
            while transport.unsent:
                _wait_until(sock, limit.until)
                transport.sent(sock.send(transport.data_to_send()))
            if transport.phase in (Phase.OPEN, Phase.CLOSED):
                return
            _wait_until(sock, limit.until)
            count = sock.recv_into(transport.receive_buffer())
        except TimeoutError as error:
            raise limit.expired() from error
        except OSError:
            count = 0
        if not count:
            transport.receive_eof()
            return
        began = time.monotonic()
        transport.received(count, began)
        limit.handled(began, time.monotonic())


def _wait_until(sock: socket.socket, until: float) -> None:
    """Makes the next call on ``sock`` raise TimeoutError at ``until``, or raises it if past."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(None if math.isinf(left) else left)
