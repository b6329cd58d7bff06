"""Displays for the sessions of the user who is logged in: the monitor's part of X11 forwarding.

A display is a TCP port, 6000 and its number, which the monitor listens on with the user's identity.
The worker gets the sockets and never parses what comes through them. Programs find the display's
cookie in a file that their own process writes before it runs them (xauthority_files.py).
"""

import contextlib
import errno
import os
import secrets
import select
import socket
from collections.abc import Sequence
from typing import Final

from ..aio.listening import EVERYWHERE, LOOPBACK, listen
from ..wire.codec import write_uint32
from ..wire.forward import X11
from ..x11 import request as x11_request
from . import accounts, audit, programs, xauthority_files
from .authentication import LoggedIn
from .display_numbers import DisplayNumbers, owner_of
from .forward_grants import copies
from .requests import CloseX11, Deny, Handlers, ListenX11, Reply
from .xauthority_files import Display

PORT: Final = 6000  # of display 0
LOCAL_SOCKET: Final = "/tmp/.X11-unix/X%d"  # of an X server on this machine

# Our own choice
PATIENCE: Final = 5.0  # seconds for a program that is still storing its cookie


class SessionDisplay:
    """The display of one session; owns the monitor's copies of its sockets."""

    def __init__(self, display: Display, sockets: Sequence[socket.socket]) -> None:
        self.display = display
        self._sockets = sockets
        self._environment: programs.Environment | None = None  # of the session's program
        self._ready = -1  # readable once the program has stored the cookie

    def begin(self, environment: programs.Environment, undo: contextlib.ExitStack) -> int:
        """Notes the session's program, which ``undo`` forgets. Raises OSError.

        Returns the descriptor that the program closes once it has stored the cookie.
        """
        self._forget_program()
        self._ready, told = os.pipe()
        self._environment = environment
        undo.callback(self._forget_program)
        undo.callback(os.close, told)
        return told

    def close(self, login: LoggedIn) -> None:
        """Ends the listening, and has the cookie removed."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        if self._environment is not None:
            environment = self._environment

            def remove(ready: int) -> None:
                select.select([ready], [], [], PATIENCE)
                xauthority_files.remove(self.display, environment)

            with contextlib.suppress(OSError):  # no process: an unused cookie stays
                programs.run_aside(login.user, self._ready, remove)
        self._forget_program()

    def _forget_program(self) -> None:
        if self._environment is not None:
            os.close(self._ready)
            self._environment = None


class X11Grants:
    """The displays of one connection."""

    def __init__(self, login: LoggedIn, numbers: DisplayNumbers) -> None:
        self._login = login
        self._numbers = numbers
        self._owner = owner_of(login.user, login.key)
        self._displays: dict[int, SessionDisplay] = {}
        self._displays_made = 0

    def handlers(self) -> Handlers:
        """The handler of each request."""
        return {ListenX11: self.listen, CloseX11: self.close_display}

    def listen(self, request: ListenX11) -> Reply:
        """Answers with a number, the port, and one or two descriptors."""
        try:
            number, port, sockets = self._listen(request)
        except Deny as denial:
            audit.write(audit.ForwardRefused(kind=X11, place="display", reason=str(denial)))
            raise
        audit.write(audit.Forward(kind=X11, place=self._place(number)))
        return write_uint32(number) + write_uint32(port), [sock.detach() for sock in sockets]

    def _listen(self, request: ListenX11) -> tuple[int, int, list[socket.socket]]:
        config = self._login.config
        if not self._is_allowed():
            raise Deny("X11 forwarding is not allowed")
        if len(self._displays) >= config.max_sessions:
            raise Deny("too many displays")
        protocol, cookie = request.authentication_protocol, request.authentication_cookie
        if why := x11_request.fault(protocol, cookie, request.screen_number):
            raise Deny(why)
        display_number, sockets = self._bind()
        try:
            ours = copies(sockets)
        except OSError as error:
            raise Deny(f"no display: {error.strerror}") from error
        self._numbers.note(display_number, self._owner)
        display = Display(
            display_number,
            request.screen_number,
            os.fsencode(socket.gethostname()),
            config.x11_use_localhost,
            protocol,
            cookie,
            secrets.token_hex(8).encode(),
        )
        self._displays_made += 1
        self._displays[self._displays_made] = SessionDisplay(display, ours)
        return self._displays_made, PORT + display_number, sockets

    def _is_allowed(self) -> bool:
        config = self._login.config
        wanted = config.x11_forwarding
        if wanted is None:
            wanted = config.profile != "hardened"
        return (
            wanted
            and self._login.permissions.x11_forwarding
            and not config.disable_forwarding
            and not config.chroot_directory  # see chroot.py
        )

    def _bind(self) -> tuple[int, list[socket.socket]]:
        """Listens as the first display that is free in both address families, and has no X server
        on this machine: an entry for localhost would take the place of that server's.
        """
        config = self._login.config
        addresses = LOOPBACK if config.x11_use_localhost else EVERYWHERE
        with accounts.as_user(self._login.user):
            for number in self._numbers.in_order(config.x11_display_offset, self._owner):
                if os.path.lexists(LOCAL_SOCKET % number):
                    continue
                try:
                    return number, listen(addresses, PORT + number)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise Deny(f"no display: {error.strerror}") from error
        raise Deny("all displays are taken")

    def _place(self, number: int) -> str:
        return os.fsdecode(self._displays[number].display.name)

    def of_session(self, number: int) -> SessionDisplay | None:
        """Returns the display with this number of an answer, None for 0; raises Deny."""
        if number and number not in self._displays:
            raise Deny("no such display")
        return self._displays.get(number)

    def close_display(self, request: CloseX11) -> Reply:
        """Ends a display; the answer is empty."""
        if request.display not in self._displays:
            raise Deny("no such display")
        audit.write(audit.ForwardClosed(kind=X11, place=self._place(request.display)))
        self._displays.pop(request.display).close(self._login)
        return b"", []

    def close(self) -> None:
        """Ends the displays that are left."""
        for display in self._displays.values():
            display.close(self._login)
        self._displays.clear()
