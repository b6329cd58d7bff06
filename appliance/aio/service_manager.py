"""What a service tells systemd about itself (sd_notify(3)); without systemd, nothing."""

import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Send 'READY=1', 'STATUS=...' and the like to whoever started us and wants to know."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(assignments).encode(), address)
