"""The peer of a connection, by the addresses and ports of both ends."""

import socket


class Peer:
    """The addresses and ports of both ends; the address is UNKNOWN where there is none."""

    def __init__(self, sock: socket.socket) -> None:
        try:
            self.address, self.port = sock.getpeername()[:2]
            self.local_address, self.local_port = sock.getsockname()[:2]
        except (OSError, ValueError):  # inetd mode without a TCP socket
            self.address, self.port, self.local_address, self.local_port = "UNKNOWN", 0, "", 0
        self.address = self.address.removeprefix("::ffff:") if self.address else "UNKNOWN"
