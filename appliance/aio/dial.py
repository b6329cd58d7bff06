"""From a host's name to a connection that is authenticated, without an event loop.

Until then there is nothing to do but to wait for one socket.
"""

import socket
import time
from collections.abc import Sequence
from typing import Final

from ..errors import CulvertError
from ..ssh.connection import Connection
from ..ssh.order import Phase

# Our own choices
LOGIN_SECONDS: Final = 120.0  # that a server may stay silent during the login, without a prompt

FAMILIES: Final = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class DialFailed(CulvertError):
    """No connection to the host came about."""


def dial(
    host: str,
    port: int,
    family: str = "any",
    bind_address: str | None = None,
    timeout: float | None = None,
    attempts: int = 1,
    addresses: Sequence[str] = (),
    mark: int = 0,
) -> socket.socket:
    """Connect to the first address of ``host`` that answers; raises DialFailed.

    With ``addresses`` it is not looked up. ``mark`` is the packets' for routes and rules (SO_MARK
    of socket(7)), which takes CAP_NET_ADMIN.
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
) -> socket.socket:
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
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    why = (failure.strerror or str(failure)) if failure else "no address"
    why = "Connection timed out" if isinstance(failure, TimeoutError) else why
    raise DialFailed(f"connect to host {host} port {port}: {why}") from failure


def login(sock: socket.socket, connection: Connection, timeout: float = LOGIN_SECONDS) -> None:
    """Run the connection until it is authenticated, or over: see ``connection.error``."""
    sock.settimeout(timeout)
    while True:
        try:
            while connection.unsent:
                connection.sent(sock.send(connection.data_to_send()))
            if connection.phase in (Phase.OPEN, Phase.CLOSED):
                return
            count = sock.recv_into(connection.receive_buffer())
        except TimeoutError as error:
            raise DialFailed(f"the server has been silent for {timeout:.0f} s") from error
        except OSError:
            count = 0
        if not count:
            connection.receive_eof()
            return
        connection.received(count, time.monotonic())
