"""OpenMetrics on a loopback port, for collectors that know no unix sockets.

Any user of the machine can connect there, so a process without privileges reads their
requests; the text it hands out comes from the supervisor over a socketpair.
"""

import logging
import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

from .. import log
from ..errors import UsageError
from ..process import sandbox
from .status import OPENMETRICS

_log = logging.getLogger(__name__)

# Our own choices
ADDRESS: Final = "127.0.0.1"
PATIENCE: Final = 1.0  # seconds for a client's request, in which the others wait
TEXT_LIMIT: Final = 1 << 20  # bytes


def listen(port: int) -> socket.socket:
    """The socket on the port; raises UsageError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((ADDRESS, port))
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise UsageError(f"metrics_port {port}: {error.strerror}") from error
    return sock


def start(sock: socket.socket, identity: sandbox.Identity | None) -> tuple[int, socket.socket]:
    """Serve in a process of its own: its id, and the socket on which it asks for the text."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sandbox.forget_signals()
            sandbox.close_all_but(
                {sock.fileno(), theirs.fileno(), *log.descriptors(), *sandbox.descriptors(identity)}
            )
            sandbox.enter(identity)
            _serve(sock, theirs)
            status = 0
        except Exception:  # the root of a process
            _log.exception("the process for metrics failed")
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours


class _Handler(BaseHTTPRequestHandler):
    """GET /metrics, and nothing else."""

    timeout = PATIENCE
    supervisor: socket.socket

    def do_GET(self) -> None:
        if self.path != "/metrics":
            self.send_error(404)
            return
        self.supervisor.send(b"?")
        text = self.supervisor.recv(TEXT_LIMIT)
        if not text:
            raise SystemExit(0)  # the supervisor is gone
        self.send_response(200)
        self.send_header("Content-Type", OPENMETRICS)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("metrics: " + format, *args)


class _Server(HTTPServer):
    """One client at a time: a sandboxed process can have no threads."""

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("metrics: a client went away", exc_info=True)


def _serve(sock: socket.socket, supervisor: socket.socket) -> None:
    _Handler.supervisor = supervisor
    server = _Server((ADDRESS, 0), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.serve_forever()
