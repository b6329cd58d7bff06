"""A line to a server of this machine that can be cut, can stand still, and can be down."""

import contextlib
import select
import socket
import struct
import threading
from typing import Self

CHUNK = 65536
TURN = 0.05  # seconds until a change of the line is noticed
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends a reset


class Line:
    """Carries connections from its port to another one, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._unsent: dict[socket.socket, bytes] = {}
        self._lock = threading.Lock()
        self._is_over = False
        self._stands_still = self._is_down = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cut(self, reset: bool = False) -> None:
        """End all connections, by an end of file or by a reset."""
        with self._lock:
            for sock in self._peers:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
            self._peers.clear()
            self._unsent.clear()

    def stand_still(self) -> None:
        """Carry nothing any more, as when a cable is pulled."""
        self._stands_still = True

    def go_down(self) -> None:
        """End all connections, and those to come at once."""
        self._is_down = True
        self.cut()

    def go_on(self) -> None:
        """Carry everything again."""
        self._stands_still = self._is_down = False

    def _run(self) -> None:
        while not self._is_over:
            with self._lock:
                full = [*self._unsent]
                open_ends = [end for end, peer in self._peers.items() if peer not in full]
            if self._stands_still:
                watched, full = [], []
            else:
                watched = [self._listening, *open_ends]
            try:
                readable, writable, _ = select.select(watched, full, [], TURN)
            except (OSError, ValueError):  # closed meanwhile
                continue
            for sock in readable:
                if sock is self._listening:
                    self._accept()
                else:
                    self._receive(sock)
            for sock in writable:
                self._send(sock)

    def _accept(self) -> None:
        near = self._listening.accept()[0]
        if self._is_down:
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._target))
        for sock in (near, far):
            sock.setblocking(False)  # an end that takes nothing stops nobody else
        with self._lock:
            self._peers |= {near: far, far: near}

    def _receive(self, sock: socket.socket) -> None:
        with self._lock:
            if (peer := self._peers.get(sock)) is None:
                return
            data = b""
            with contextlib.suppress(OSError):
                data = sock.recv(CHUNK)
            if data:
                self._unsent[peer] = data
            else:
                self._end(sock)
        self._send(peer)

    def _send(self, sock: socket.socket) -> None:
        with self._lock:
            if (data := self._unsent.pop(sock, b"")) == b"":
                return
            try:
                rest = data[sock.send(data) :]
            except BlockingIOError:
                rest = data
            except OSError:
                self._end(sock)
                return
            if rest:
                self._unsent[sock] = rest

    def _end(self, sock: socket.socket) -> None:
        for each in (sock, self._peers[sock]):
            del self._peers[each]
            self._unsent.pop(each, None)
            each.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        self.cut()
        self._listening.close()
