"""Serves OpenMetrics on a loopback port, for collectors that cannot use Unix-domain sockets.

Any user of the machine can connect to the port, so a process without privileges reads the
requests; it gets the text from the supervisor over a socket pair.
"""

import contextlib
import logging
import os
import socket
from typing import Final

from .. import log
from ..aio.listening import ListeningSocket
from ..aio.loop import Loop
from ..errors import UsageError
from ..process import sandbox
from .control import REQUEST_LIMIT, Answer
from .status import OPENMETRICS

_log = logging.getLogger(__name__)

# Our own choices
ADDRESS: Final = "127.0.0.1"
PATIENCE: Final = 5.0  # seconds for a client's whole request and its answer
CLIENTS_LIMIT: Final = 64  # at once; a further client closes the oldest one
PLAIN: Final = "text/plain"
TEXT_LIMIT: Final = 1 << 20  # bytes


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on the loopback port; raises UsageError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((ADDRESS, port))
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise UsageError(f"metrics_port {port}: {error.strerror}") from error
    return sock


def start(sock: socket.socket, confinement: sandbox.Confinement) -> tuple[int, socket.socket]:
    """Starts a process that serves ``sock``.

    Returns its id, and the supervisor's end of the socket pair: for each byte that the process
    sends there, the supervisor answers with the text.
    """
    identity = confinement.identity
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sandbox.forget_signals()
            sandbox.close_all_but(
                {sock.fileno(), theirs.fileno(), *log.descriptors(), *sandbox.descriptors(identity)}
            )
            sandbox.enter(identity, confinement.calls)
            _Server(sock, theirs).loop.run()
            status = 0
        except Exception:  # the root of a process
            _log.exception("the process for metrics failed")
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours


class _Server:
    """Serves all clients in one loop, as a sandboxed process cannot start threads."""

    def __init__(self, sock: socket.socket, supervisor: socket.socket) -> None:
        self.loop = Loop()
        self._supervisor = supervisor
        self._clients: dict[_Client, None] = {}  # the oldest first
        ListeningSocket(self.loop, [sock], self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if len(self._clients) >= CLIENTS_LIMIT:
            next(iter(self._clients)).close()
        self._clients[_Client(self, sock)] = None

    def forget(self, client: "_Client") -> None:
        """Removes a closed client."""
        self._clients.pop(client, None)

    def answer(self, words: list[str]) -> Answer:
        """Returns the answer to a request line."""
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return Answer(400, "no HTTP request\n", PLAIN)
        if words[:2] != ["GET", "/metrics"]:
            return Answer(404, "only GET /metrics\n", PLAIN)
        text = b""
        with contextlib.suppress(OSError):
            self._supervisor.send(b"?")
            text = self._supervisor.recv(TEXT_LIMIT)
        if not text:  # the supervisor is gone
            self.loop.stop()
        return Answer(200, text.decode(), OPENMETRICS)


class _Client:
    """One client's connection: one request, within PATIENCE."""

    def __init__(self, server: _Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._received = b""
        self._unsent = memoryview(b"")
        sock.setblocking(False)
        server.loop.watch_reader(sock.fileno(), self._on_readable)
        self._timer = server.loop.call_later(PATIENCE, self.close)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(REQUEST_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if b"\r\n\r\n" in self._received:
            line = self._received.split(b"\r\n", 1)[0].decode("ascii", "replace")
            self._unsent = memoryview(self._server.answer(line.split()).encode())
            self._server.loop.watch_reader(self._sock.fileno(), None)
            self._server.loop.watch_writer(self._sock.fileno(), self._on_writable)
        elif not data or len(self._received) > REQUEST_LIMIT:
            self.close()

    def _on_writable(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            _log.debug("metrics: a client went away: %s", error.strerror)
            self._unsent = memoryview(b"")
        if not self._unsent:
            self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._timer.cancel()
        self._server.loop.watch_reader(self._sock.fileno(), None)
        self._server.loop.watch_writer(self._sock.fileno(), None)
        self._sock.close()
        self._server.forget(self)
