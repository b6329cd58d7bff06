"""Connects to a link's server, through jump hosts if there are any.

Root dials the first hop, with the mark that a kill switch and the routes recognize. For each jump
host a process of its own logs in there and copies bytes; it has the same sandbox as the process
that carries the link.

    carrier == socket pair == hop to the last jump host == ... == TCP connection to the first one
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from .. import log
from ..aio.driver import Driver
from ..aio.loop import Loop
from ..client.login import Login
from ..errors import CulvertError, PeerError
from ..log import harmless
from ..process import sandbox
from ..services.forward import SocketSplice
from ..services.tunnel.marks import MARK
from ..ssh.connection import Connection, ConnectionHandler
from ..wire.forward import DIRECT_TCPIP, DirectTcpip
from .signer import Signer, fork

_log = logging.getLogger(__name__)

# Our own choice
_REASON: Final = 1000  # bytes


class Way:
    """Makes the connection of one attempt, and owns the pipes of its jump hosts' processes."""

    def __init__(self, confinement: sandbox.Confinement) -> None:
        self._confinement = confinement
        self.address = ""  # the dialled one; '' if none was dialled
        self._reasons: list[int] = []  # pipes from the hops, for the reasons of their ends

    def connect(self, login: Login, addresses: Sequence[str]) -> socket.socket:
        """Returns a socket to the server; ``addresses`` are the first hop's.

        Raises CulvertError.
        """
        jump = login.jump()
        if jump is None:
            sock = login.dial(addresses, MARK)
            self.address = _peer_address(sock)
            return sock
        via, place = jump
        signer = Signer(via.load_identities, self._confinement)
        via.use_identities(signer.identities)
        with self.connect(via, addresses) as sock:
            ours, theirs = socket.socketpair()
            reason, writer = os.pipe()
            os.set_blocking(reason, False)
            self._reasons.append(reason)
            with theirs:
                if fork() == 0:
                    ours.close()
                    _Hop(via, sock, theirs, place, writer).run(signer, self._confinement)
                os.close(writer)
        signer.close()
        return ours

    def why(self) -> str:
        """Returns the reason of the first hop that failed; '' if none did."""
        for pipe in self._reasons:
            try:
                if said := os.read(pipe, _REASON):
                    return said.decode(errors="replace")
            except BlockingIOError:
                continue
        return ""


def _peer_address(sock: socket.socket) -> str:
    """Returns the peer's address as text; '' for the socket of a ProxyCommand."""
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):  # the socket of a command
        return ""


class _Hop(ConnectionHandler):
    """The process that logs in to a jump host and forwards the connection to the next host."""

    def __init__(
        self,
        login: Login,
        sock: socket.socket,
        onwards: socket.socket,
        place: tuple[str, int],
        reason: int,
    ) -> None:
        self._login = login
        self._sock = sock
        self._onwards = onwards
        self._place = place
        self._reason = reason
        self._loop: Loop | None = None

    def run(self, signer: Signer, confinement: sandbox.Confinement) -> None:
        """Runs the whole process; never returns."""
        try:
            sandbox.close_all_but(
                {
                    *(self._reason, signer.fileno()),
                    *(self._sock.fileno(), self._onwards.fileno()),
                    *log.descriptors(),
                    *sandbox.descriptors(confinement.identity),
                }
            )
            sandbox.enter(confinement.identity, confinement.calls)
            connection = self._login.authenticate(self._sock, self)
            signer.close()
            self._forward(connection)
        except CulvertError as error:
            self._say(str(error))
        except Exception:  # the root of a process
            _log.exception("the process of a jump host failed")
        finally:
            os._exit(0)

    def _forward(self, connection: Connection) -> None:
        loop = self._loop = Loop()
        driver = Driver(loop, self._sock, connection, loop.stop)
        splice = _Onwards(self._onwards, driver, lambda _: loop.stop())
        splice.say = self._say
        # OpenSSH's originator for a channel without a socket of its own.
        opening = DirectTcpip(*self._place, "127.0.0.1", 65535)
        splice.join(connection.open_channel(DIRECT_TCPIP, opening.encode(), splice))
        driver.start()
        loop.run()

    def _say(self, text: str) -> None:
        os.write(self._reason, harmless(text).encode()[:_REASON])

    def banner(self, text: str) -> None:
        _log.info("the jump host says: %s", harmless(text).strip())

    def closed(self, error: PeerError | None) -> None:
        if self._loop is not None:  # before that, the login raises the error
            if error is not None:
                self._say(str(error))
            self._loop.stop()


class _Onwards(SocketSplice):
    """The forwarded channel to the next host."""

    say: Callable[[str], None]

    def open_failed(self, reason_code: int, description: str) -> None:
        self.say(f"the jump host does not connect: {description}")
        self._release()
