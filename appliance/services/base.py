"""The privileged calls of a server's services, which run without privileges themselves."""

import socket
from typing import Final, NamedTuple, Protocol

from ..aio.connecting import Attempt
from ..wire.session import X11Request

# Our own choice
X11_WINDOW: Final = 2 << 20  # bytes, at both ends: OpenSSH's 64 KiB cost xterm 67 round trips


class Process(NamedTuple):
    """A process that was started for the user; the caller closes the descriptors.

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
    """Listening sockets of the user; the caller closes them."""

    number: int  # for ``stop_listening``
    port: int  # 0 for a Unix-domain socket
    sockets: list[socket.socket]


class Refused(Exception):
    """The privileged side refused a call; the text gives the reason."""


class SessionPrivileges(Protocol):
    """The privileged calls of a session; each one blocks, and may raise Refused."""

    def open_pty(self) -> int:
        """Returns the master side of a new terminal, for ``spawn`` or ``close_pty``."""
        ...

    def close_pty(self, master: int) -> None:
        """Gives up a terminal that no program was started on; the caller closes ``master``."""
        ...

    def spawn(
        self,
        kind: str,
        command: bytes,
        environment: tuple[tuple[bytes, bytes], ...],
        master: int | None,
        display: int,
    ) -> Process:
        """Starts a program as the logged-in user; ``kind``: 'shell', 'exec' or 'subsystem'.

        ``display`` is the number of a Listening for X11, or 0.
        """
        ...

    def signal(self, process: int, name: str) -> None:
        """Sends a signal by its name without SIG (RFC 4254 section 6.10)."""
        ...


class ForwardPrivileges(Protocol):
    """The privileged calls of forwards; each one blocks, and may raise Refused."""

    def connect(self, host: str, port: int) -> Attempt:
        """Begins to connect to a TCP port."""
        ...

    def connect_local(self, path: bytes) -> Attempt:
        """Begins to connect to a Unix-domain socket."""
        ...

    def listen(self, address: str, port: int) -> Listening:
        """Listens on a TCP port; ``bind_addresses`` says what the address means."""
        ...

    def listen_local(self, path: bytes) -> Listening:
        """Listens on a new Unix-domain socket."""
        ...

    def listen_agent(self) -> socket.socket:
        """Listens on a Unix-domain socket that later programs use as their agent's."""
        ...

    def listen_x11(self, request: X11Request) -> Listening:
        """Listens as the display of one session, whose program ``spawn`` starts."""
        ...

    def close_x11(self, number: int) -> None:
        """Forgets a display, whose session is over and whose sockets the caller has closed."""
        ...

    def stop_listening(self, number: int) -> None:
        """Forgets a Listening, whose sockets the caller has closed."""
        ...
