"""Messages of a service to systemd about itself (sd_notify(3))."""

import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Sends 'READY=1', 'STATUS=...' and the like to systemd, if it started us and asks for it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(assignments).encode(), address)
