"""The supervisor's control socket: HTTP over a Unix-domain socket that only root can open.

    GET /status, /metrics, /declarations
    POST /up, /up/NAME, /down, /down/NAME

It speaks HTTP, so that curl and every collector of metrics can read it:
``curl --unix-socket /run/culvert/links.sock http://links/metrics``. Only the request line counts;
the headers are ignored.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ..aio.listening import bind_local
from ..aio.loop import Loop
from ..config.directories import runtime_directory
from ..errors import CulvertError

# Our own choices
REQUEST_LIMIT: Final = 8192  # bytes
BACKLOG: Final = 8
PATIENCE: Final = 60.0  # seconds for a command: undoing routes and name servers takes time
SEND_SECONDS: Final = 5.0  # for one answer


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    text: str
    content_type: str = "application/json"

    def encode(self) -> bytes:
        """Returns the response as HTTP/1.0, after which the connection is closed."""
        reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 409: "Conflict"}[self.status]
        body = self.text.encode()
        head = (
            f"HTTP/1.0 {self.status} {reason}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


class NotRunning(CulvertError):
    """No supervisor answers on the control socket."""


def socket_path() -> Path:
    """Returns the path of the socket on which the supervisor listens."""
    return runtime_directory() / "links.sock"


class SupervisorSocket:
    """Answers each request with what ``answer(method, path)`` returns."""

    def __init__(self, loop: Loop, answer: Callable[[str, str], Answer]) -> None:
        self._loop = loop
        self._answer = answer
        # A killed supervisor left its file; no other one runs, as we have the lock.
        self._socket = bind_local(os.fsencode(socket_path()), unlink=True)
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        loop.watch_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        _Client(self._loop, client, self._answer)

    def close(self) -> None:
        """Stops listening, and removes the socket's file."""
        self._loop.watch_reader(self._socket.fileno(), None)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            socket_path().unlink()


class _Client:
    """One connection to the control socket, which carries one request."""

    def __init__(
        self, loop: Loop, sock: socket.socket, answer: Callable[[str, str], Answer]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._answer = answer
        self._data = b""
        sock.setblocking(False)
        loop.watch_reader(sock.fileno(), self._on_readable)
        self._timer = loop.call_later(SEND_SECONDS, self._close)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(REQUEST_LIMIT)
        except OSError:
            data = b""
        self._data += data
        if b"\r\n\r\n" in self._data:
            line = self._data.split(b"\r\n", 1)[0].decode("ascii", "replace").split()
            if len(line) == 3 and line[2].startswith("HTTP/1."):
                answer = self._answer(line[0], line[1])
            else:
                answer = Answer(400, "no HTTP request\n", "text/plain")
            self._sock.settimeout(SEND_SECONDS)
            with contextlib.suppress(OSError):
                self._sock.sendall(answer.encode())
            self._close()
        elif not data or len(self._data) > REQUEST_LIMIT:
            self._close()

    def _close(self) -> None:
        self._timer.cancel()
        self._loop.watch_reader(self._sock.fileno(), None)
        self._sock.close()


def is_running() -> bool:
    """Whether a supervisor listens; one that is busy does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(socket_path()))
        except OSError:
            return False
    return True


def request(method: str, path: str) -> Answer:
    """Sends a request to the supervisor and returns its answer.

    Raises NotRunning, and CulvertError if the caller may not ask.
    """
    where = socket_path()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(where))
            sock.sendall(f"{method} {path} HTTP/1.0\r\n\r\n".encode())
            data = b""
            while part := sock.recv(65536):
                data += part
        except PermissionError as error:
            raise CulvertError(f"{where}: only root may ask") from error
        except TimeoutError as error:
            raise NotRunning(f"{where}: no answer within {PATIENCE:.0f} s") from error
        except OSError as error:
            raise NotRunning(f"{where}: {error.strerror}") from error
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[1].isdigit():
        raise NotRunning(f"{where}: the supervisor ended while it was asked")
    return Answer(int(words[1]), body.decode())
