"""The way to a link's server: a socket to it, through jump hosts if there are any.

What is dialled first is dialled by root, with the mark that a kill switch and the routes know.
Each jump host has a process of its own, as confined as the one that carries the link: it logs in
there and moves bytes.

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
    """How one attempt gets to its server."""

    def __init__(self, confinement: sandbox.Confinement) -> None:
        self._confinement = confinement
        self.address = ""  # that was dialled, if one was
        self._reasons: list[int] = []  # pipes, in which a hop says why it ended

    def connect(self, login: Login, addresses: Sequence[str]) -> socket.socket:
        """A socket to the server, whose first hop has ``addresses``; raises CulvertError."""
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
        """What the first hop that failed said, '' if none did."""
        for pipe in self._reasons:
            try:
                if said := os.read(pipe, _REASON):
                    return said.decode(errors="replace")
            except BlockingIOError:
                continue
        return ""


def _peer_address(sock: socket.socket) -> str:
    """Where the connection goes, as a person reads it."""
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):  # a command's
        return ""


class _Hop(ConnectionHandler):
    """The process that is logged in to a jump host, and connects onwards from there."""

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
        """The whole of the process, which never returns."""
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
        # The originator of a channel without a socket of its own, as OpenSSH names it.
        opening = DirectTcpip(*self._place, "127.0.0.1", 65535)
        splice.join(connection.open_channel(DIRECT_TCPIP, opening.encode(), splice))
        driver.start()
        loop.run()

    def _say(self, text: str) -> None:
        os.write(self._reason, harmless(text).encode()[:_REASON])

    def banner(self, text: str) -> None:
        _log.info("the jump host says: %s", harmless(text).strip())

    def closed(self, error: PeerError | None) -> None:
        if self._loop is not None:  # or the login says why
            if error is not None:
                self._say(str(error))
            self._loop.stop()


class _Onwards(SocketSplice):
    """The channel to the next host."""

    say: Callable[[str], None]

    def open_failed(self, reason_code: int, description: str) -> None:
        self.say(f"the jump host does not connect: {description}")
        self._release()
