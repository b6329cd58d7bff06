"""The client's agent as programs at the server reach it (agent forwarding).

The agent is first told which SSH connection it serves.
"""

import socket
from typing import Final

from ..aio.loop import Timer
from ..wire.codec import write_string
from .agent_client import ANSWER_LIMIT, session_bind
from .forward import Arriving

# Our own choice
BIND_SECONDS: Final = 5.0  # for the agent's answer


class ArrivingAgent(Arriving):
    """A channel that the server opens to the agent, until the agent has answered session-bind.

    The content of the answer does not matter: an agent that does not know session-bind works, too.
    """

    _patience: Timer | None = None

    def _connected(self, sock: socket.socket) -> None:
        loop = self._driver.loop
        self._sock = sock
        self._answer = b""  # the part that has arrived
        self._wanted = 4  # bytes: first the length field, then the whole answer
        self._patience = loop.call_later(BIND_SECONDS, self._give_up, "it does not answer")
        loop.watch_reader(sock.fileno(), self._on_readable)
        bind = session_bind(self._driver.connection.transport.host_binding, forwarding=True)
        try:
            sock.sendall(write_string(bind))  # a new socket has room for it
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(self._wanted - len(self._answer))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._give_up("it closed the connection")
            return
        self._answer += data
        if len(self._answer) == 4:
            self._wanted += int.from_bytes(self._answer, "big")
            if not 4 < self._wanted <= 4 + ANSWER_LIMIT:
                self._give_up("its answer is malformed")
        elif len(self._answer) == self._wanted:
            self._stop_waiting()
            self._driver.loop.watch_reader(self._sock.fileno(), None)
            super()._connected(self._sock)

    def _give_up(self, why: str) -> None:
        self._stop_waiting()
        self._connecting.cancel()
        self._failed(why)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def closed(self) -> None:
        self._stop_waiting()
        super().closed()
