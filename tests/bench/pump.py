"""Both ends of the forwarded connections that are measured: cheap enough not to be the measure.

serve ADDRESS              print the port; answer every byte that comes with `--size` bytes
fetch ADDRESS PORT COUNT   open COUNT connections at once, fetch from each, print the seconds
"""

import argparse
import os
import select
import socket
import sys
import time

CHUNK = 1 << 20  # bytes


def serve(address: str, size: int) -> None:
    """Serve until standard input ends."""
    content = os.memfd_create("content")
    os.truncate(content, size)
    with socket.create_server((address, 0), backlog=4096) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        epoll = select.epoll()
        epoll.register(listening, select.EPOLLIN)
        epoll.register(0, select.EPOLLIN)
        peers: dict[int, tuple[socket.socket, int]] = {}  # and the bytes that were sent
        while True:
            for fd, event in epoll.poll():
                if fd == 0:
                    return
                if fd == listening.fileno():
                    peer, _ = listening.accept()
                    peer.setblocking(False)
                    peers[peer.fileno()] = peer, 0
                    epoll.register(peer, select.EPOLLIN)
                    continue
                peer, sent = peers[fd]
                if event & select.EPOLLOUT:
                    try:
                        sent += os.sendfile(fd, content, sent, size - sent)
                    except BlockingIOError:
                        continue
                    except OSError:
                        sent = size
                    peers[fd] = peer, sent
                    if sent >= size:
                        epoll.modify(fd, select.EPOLLIN)
                elif peer.recv(1):
                    peers[fd] = peer, 0
                    epoll.modify(fd, select.EPOLLOUT)
                else:
                    epoll.unregister(fd)
                    peer.close()
                    del peers[fd]


def fetch(address: str, port: int, count: int, size: int) -> float:
    """Return the seconds that `count` connections take, all at once."""
    began = time.perf_counter()
    epoll = select.epoll()
    peers: dict[int, tuple[socket.socket, int]] = {}  # and the bytes that are missing
    for _ in range(count):
        peer = socket.create_connection((address, port))
        peer.setblocking(False)
        peer.send(b"?")
        peers[peer.fileno()] = peer, size
        epoll.register(peer, select.EPOLLIN)
    buffer = bytearray(CHUNK)
    while peers:
        for fd, _ in epoll.poll():
            peer, missing = peers[fd]
            got = peer.recv_into(buffer)
            if not got:
                sys.exit(f"a connection ended {missing} bytes too soon")
            peers[fd] = peer, missing - got
            if missing == got:
                epoll.unregister(fd)
                peer.close()
                del peers[fd]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("serve", "fetch"))
    parser.add_argument("address")
    parser.add_argument("port", type=int, nargs="?", default=0)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--size", type=int, required=True)
    chosen = parser.parse_args()
    if chosen.work == "serve":
        serve(chosen.address, chosen.size)
    else:
        print(fetch(chosen.address, chosen.port, chosen.count, chosen.size))


if __name__ == "__main__":
    main()
