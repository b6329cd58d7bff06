"""The displays of X11 forwarding, as the server's programs reach them (RFC 4254 section 6.3)."""

import contextlib
import socket
from collections.abc import Callable

from ..aio.listening import ListeningSocket
from ..aio.loop import Loop
from .base import Listening


class X11Display:
    """The display of one session; owns its listening sockets.

    Each connection becomes an x11 channel, which may outlive the session.
    """

    def __init__(
        self,
        loop: Loop,
        listening: Listening,
        single_connection: bool,
        offer: Callable[[socket.socket], None],
        stop: Callable[[int], None],
    ) -> None:
        """``offer`` takes a program's connection.

        ``stop`` is called with the display's number when the session is over.
        """
        self.number = listening.number
        self._sockets = listening.sockets
        self._single_connection = single_connection
        self._offer = offer
        self._stop = stop
        self._listener = ListeningSocket(loop, listening.sockets, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if self._single_connection:
            self._refuse_others()
        self._offer(sock)

    def _refuse_others(self) -> None:
        """Ends the listening for the privileged side's copies of the sockets, too.

        The display itself stays until the session's end: the program that has connected has yet
        to read its cookie.
        """
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """Closes the display, because its session is over."""
        self._listener.close()
        self._stop(self.number)
