"""Who is connected: both ends of the connection, as text and numbers."""

import socket


class Peer:
    """Both ends of the connection, as text and numbers."""

    def __init__(self, sock: socket.socket) -> None:
        try:
            self.address, self.port = sock.getpeername()[:2]
            self.local_address, self.local_port = sock.getsockname()[:2]
        except (OSError, ValueError):  # inetd mode on something that is no TCP socket
            self.address, self.port, self.local_address, self.local_port = "UNKNOWN", 0, "", 0
        self.address = self.address.removeprefix("::ffff:") if self.address else "UNKNOWN"
