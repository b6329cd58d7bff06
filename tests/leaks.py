"""What leaves a site in clear: somebody who sends without pause, and a listener outside."""

import contextlib
import errno
import socket
import threading
import time
from collections import Counter
from ipaddress import ip_address
from typing import Self

from tests.netns import ETH_P_ALL, SO_RCVBUFFORCE, Namespace

PAUSE = 0.002  # seconds between two packets of the stream
BUFFER = 32 << 20  # bytes
_TCP, _ICMPV6 = 6, 58
_NEIGHBOUR_DISCOVERY = {130, 131, 132, 133, 134, 135, 136, 143}


class Stream:
    """Packets of UDP to each of some addresses, every 2 ms, sent inside a namespace."""

    def __init__(self, where: Namespace, *targets: str) -> None:
        self.sent = 0
        self._targets = targets
        self._over = threading.Event()
        families = (socket.AF_INET, socket.AF_INET6)
        self._sockets = {
            family: where.inside(lambda family=family: socket.socket(family, socket.SOCK_DGRAM))  # type: ignore[misc]
            for family in families
        }
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._over.wait(PAUSE):
            for target in self._targets:
                sock = self._sockets[socket.AF_INET6 if ":" in target else socket.AF_INET]
                with contextlib.suppress(OSError):  # refused, or no way there
                    sock.sendto(b"in clear", (target, 9))
                self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()


class Outside:
    """Counts what passes a device and is not TCP to `server` and `port`, from or to anybody."""

    def __init__(self, where: Namespace, device: str, server: str, port: int) -> None:
        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            sock.bind((device, ETH_P_ALL))
            sock.settimeout(0.05)
            return sock

        self._socket = where.inside(listen)
        self._server = ip_address(server).packed
        self._port = port.to_bytes(2, "big")
        self._leaks: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while not self._over.is_set():
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                continue
            if kind != socket.PACKET_OUTGOING and (leak := self._leak(frame)):
                self._leaks[leak] += 1

    def _leak(self, frame: bytes) -> str:
        """'' for what may be there."""
        match frame[12:14]:
            case b"\x08\x00":
                protocol, target, ports = frame[23], frame[30:34], frame[34:38]
            case b"\x86\xdd":
                protocol, target, ports = frame[20], frame[38:54], frame[54:58]
                if protocol == 0 or (protocol == _ICMPV6 and ports[0] in _NEIGHBOUR_DISCOVERY):
                    return ""
            case _:
                return ""
        if protocol == _TCP and target == self._server and ports[2:] == self._port:
            return ""
        return f"protocol {protocol} to {ip_address(target)} port {int.from_bytes(ports[2:])}"

    def leaks(self) -> dict[str, int]:
        """What has left until now, and how often."""
        time.sleep(0.2)  # what is on its way arrives
        return dict(self._leaks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()
