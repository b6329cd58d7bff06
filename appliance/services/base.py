"""What the services of a server need done with privileges that they do not have."""

import socket
from typing import NamedTuple, Protocol

from ..aio.connecting import Attempt


class Process(NamedTuple):
    """A process that was started for the user; the descriptors are the caller's to close.

    On a terminal, ``stdin`` and ``stdout`` are both its master side and ``stderr`` is None.
    ``status`` yields the wait status as four bytes, most significant first, when the
    process ends.
    """

    number: int
    stdin: int
    stdout: int
    stderr: int | None
    status: int


class Listening(NamedTuple):
    """Sockets that are listened on for the user; they are the caller's to close."""

    number: int  # by which it ends
    port: int  # 0 for a Unix-domain socket
    sockets: list[socket.socket]


class Refused(Exception):
    """The privileged side says no; the text says why."""


class SessionPrivileges(Protocol):
    """Each call may raise Refused, and blocks until it is done."""

    def open_pty(self) -> int:
        """The master side of a new terminal, for ``spawn`` or ``close_pty``."""
        ...

    def close_pty(self, master: int) -> None:
        """No program is to have this terminal; its master side is still the caller's to close."""
        ...

    def spawn(
        self,
        kind: str,
        command: bytes,
        environment: tuple[tuple[bytes, bytes], ...],
        master: int | None,
    ) -> Process:
        """Start 'shell', 'exec' or 'subsystem' as the user who is logged in."""
        ...

    def signal(self, process: int, name: str) -> None:
        """Send a signal by its name without SIG (RFC 4254 section 6.10)."""
        ...


class ForwardPrivileges(Protocol):
    """The same, for forwards."""

    def connect(self, host: str, port: int) -> Attempt:
        """Begin to connect to a TCP port."""
        ...

    def connect_local(self, path: bytes) -> Attempt:
        """Begin to connect to a Unix-domain socket."""
        ...

    def listen(self, address: str, port: int) -> Listening:
        """Listen on a TCP port; the address means what ``bind_addresses`` says."""
        ...

    def listen_local(self, path: bytes) -> Listening:
        """Listen on a new Unix-domain socket."""
        ...

    def listen_agent(self) -> socket.socket:
        """A Unix-domain socket that programs which are spawned later take for their agent's."""
        ...

    def stop_listening(self, number: int) -> None:
        """The sockets of a Listening are closed."""
        ...
