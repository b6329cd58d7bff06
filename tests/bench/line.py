"""A long line: a relay that delivers every byte after half a round trip, in either direction.

    python -m tests.bench.line ADDRESS PORT --milliseconds 20

It prints its own port, and serves until standard input ends. It takes what comes at once, as if
the line began with an endless queue: what is measured is whether the ends keep the line full.
"""

import argparse
import contextlib
import heapq
import itertools
import select
import socket
import sys
import time
from collections import deque

CHUNK = 256 << 10  # bytes


class End:
    """One end of a connection through the relay, and what is on its way to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer: End
        self.coming: deque[tuple[float, bytes]] = deque()  # when it is due; b"" is the end
        self.free_at = 0.0  # when the line to it has carried what came so far
        self.due: deque[memoryview] = deque()
        self.ended = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Relay:
    """Owns all connections."""

    def __init__(self, target: tuple[str, int], delay: float, rate: float) -> None:
        """``delay``: seconds one way; ``rate``: bytes a second each way, 0 for no limit."""
        self._target = target
        self._delay = delay
        self._rate = rate
        self._epoll = select.epoll()
        self._ends: dict[int, End] = {}
        self._timers: list[tuple[float, int, End]] = []
        self._numbers = itertools.count()

    def run(self, listening: socket.socket) -> None:
        """Relays until standard input ends."""
        self._epoll.register(listening, select.EPOLLIN)
        self._epoll.register(0, select.EPOLLIN)
        while True:
            wait = self._timers[0][0] - time.monotonic() if self._timers else -1
            for fd, event in self._epoll.poll(max(wait, 0) if self._timers else -1):
                if fd == 0:
                    return
                if fd == listening.fileno():
                    self._accept(listening)
                elif fd in self._ends:
                    if event & ~select.EPOLLOUT:
                        self._read(self._ends[fd])
                    if event & select.EPOLLOUT and fd in self._ends:
                        self._send(self._ends[fd])
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                end = heapq.heappop(self._timers)[2]
                while end.coming and end.coming[0][0] <= now:
                    end.due.append(memoryview(end.coming.popleft()[1]))
                self._send(end)

    def _accept(self, listening: socket.socket) -> None:
        here = End(listening.accept()[0])
        there = End(socket.create_connection(self._target))
        here.peer, there.peer = there, here
        for end in (here, there):
            self._ends[end.sock.fileno()] = end
            self._epoll.register(end.sock, select.EPOLLIN)

    def _read(self, end: End) -> None:
        if end.ended:  # and now it has hung up
            self._close(end)
            return
        try:
            data = end.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer, now = end.peer, time.monotonic()
        if self._rate:
            peer.free_at = max(peer.free_at, now) + len(data) / self._rate
            now = peer.free_at
        when = now + self._delay
        end.peer.coming.append((when, data))
        heapq.heappush(self._timers, (when, next(self._numbers), end.peer))
        if not data:
            end.ended = True
            self._watch(end)

    def _send(self, end: End) -> None:
        while end.due and end.sock.fileno() >= 0:
            data = end.due[0]
            try:
                if not data:
                    end.due.clear()
                    with contextlib.suppress(OSError):
                        end.sock.shutdown(socket.SHUT_WR)
                    if end.ended:
                        self._close(end)
                    return
                count = end.sock.send(data)
            except BlockingIOError:
                break
            except OSError:
                self._close(end)
                return
            if count == len(data):
                end.due.popleft()
            else:
                end.due[0] = data[count:]
        self._watch(end)

    def _watch(self, end: End) -> None:
        if end.sock.fileno() in self._ends:
            events = 0 if end.ended else select.EPOLLIN
            self._epoll.modify(end.sock, events | (select.EPOLLOUT if end.due else 0))

    def _close(self, end: End) -> None:
        if self._ends.pop(end.sock.fileno(), None) is not None:
            self._epoll.unregister(end.sock)
            end.sock.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--milliseconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=0, help="Mbit/s, each way")
    chosen = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        print(listening.getsockname()[1], flush=True)
        delay, rate = chosen.milliseconds / 2000, chosen.rate * 1e6 / 8
        relay = Relay((chosen.address, chosen.port), delay, rate)
        relay.run(listening)


if __name__ == "__main__":
    main()
    sys.exit(0)
