"""culvert x11 --check: what keeps a program of the last host off our display, and how to mend it.

Nothing is supposed; each thing is tried in the way that the program will need it:

    the display    a set-up request with the cookie
    each host      a login, through those before it; a connection from there to the next one
    the last host  a session with X11, whose shell shows DISPLAY and the file of cookies; then a
                   set-up request to that display, from there through the session's channel
"""

import shlex
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from ..aio.driver import Driver
from ..aio.loop import Loop
from ..aio.tasks import Future, run
from ..errors import CulvertError, MalformedMessage
from ..log import harmless
from ..services.x11_client import X11Client, X11Session, X11Settings
from ..ssh.channels import Channel, ChannelHandler
from ..ssh.connection import Connection
from ..wire.forward import DIRECT_TCPIP, DirectTcpip
from ..wire.messages import ADMINISTRATIVELY_PROHIBITED
from ..wire.session import X11_REQUEST, Command
from ..wire.x11 import COOKIE_PROTOCOL, SetUpRequest, set_up_refusal, xauthority_entries
from ..x11.display import Display, display
from ..x11.set_up import Authorization
from .greeting import Greeting
from .host_options import HostOptions
from .login import Login
from .x11_display import NoDisplay, local_display

T = TypeVar("T")

# X Window System Protocol, chapter 9
_LIST_HOSTS: Final = bytes((110, 0, 1, 0))
_REPLY: Final = 32  # bytes, of which the second one says whether access control is on

# Our own choices
SECONDS: Final = 15.0  # for each answer of a server after the login
_LIMIT: Final = 2 << 20  # bytes that the shell may say: a file of cookies has up to one MiB
_BEGIN: Final = b"culvert-x11-begin\n"
_END: Final = b"\nculvert-x11-end"
_SHELL: Final = """
f=${XAUTHORITY:-$HOME/.Xauthority}; PATH=$PATH:/usr/bin:/usr/local/bin:/usr/X11R6/bin
echo culvert-x11-begin; echo "$DISPLAY"; command -v xauth || echo; echo "$f"
cat "$f" 2>/dev/null; printf '\\nculvert-x11-end'; read x"""

_FORWARDING: Final = {
    "OpenSSH": "AllowTcpForwarding yes in its sshd_config, no DisableForwarding",
    "Culvert": 'allow_tcp_forwarding = "yes" in its sshd.toml',
    "dropbear": "its server without -j",
    "": "its server's settings for TCP forwarding",
}
_X11: Final = {
    "OpenSSH": "X11Forwarding yes, no DisableForwarding, a right XAuthLocation in its sshd_config",
    "Culvert": "x11_forwarding = true in its sshd.toml; its log says why",
    "dropbear": "a server with X11 there: dropbear is often built without it, as Debian's is",
    "": "its server's settings for X11",
}


class Trouble(CulvertError):
    """Something is in the way; ``mend`` says what to do."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


def check(hops: Sequence[HostOptions], say: Callable[[str], None]) -> bool:
    """Says what is in the way, in a line or two for each thing; returns whether nothing is.

    ``hops`` are the hosts in their order, each with those before it as its jump hosts. Nothing
    behind a host that cannot be passed is tried.
    """
    report = _Report(say)
    here = report.tried("here", partial(_check_display, report))
    *jumps, last = hops
    for jump, following in zip(jumps, hops[1:], strict=True):
        if not report.tried(jump.host, partial(_check_jump, jump, following, report)):
            report.note("nothing behind it was tried")
            return False
    reached = report.tried(last.host, partial(_check_last, last, here, report))
    return here is not None and reached is not None


class _Report:
    """The lines for a person."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._where = ""

    def tried(self, where: str, step: Callable[[], T]) -> T | None:
        """Returns what ``step`` returns; None after a CulvertError, which is told.

        What the step says is told as being so at ``where``.
        """
        self._where = where
        try:
            return step()
        except Trouble as trouble:
            self._tell("FAIL", str(trouble))
            self._say(f"      to mend it: {harmless(trouble.mend)}")
        except CulvertError as error:
            self._tell("FAIL", str(error))
        return None

    def fine(self, what: str) -> None:
        """Says what works."""
        self._tell("ok", what)

    def note(self, what: str) -> None:
        """Says what is in nobody's way, but may be wanted otherwise."""
        self._tell("note", what)

    def _tell(self, word: str, what: str) -> None:
        self._say(f"{word:4}  {self._where}: {harmless(what)}")


# -- the display ---------------------------------------------------------------------------


def _check_display(report: _Report) -> tuple[Display, Authorization]:
    """Returns our display and its cookie, after a set-up."""
    try:
        found, authorization = local_display()
    except NoDisplay as error:
        mend = "run this in a terminal of a graphical desktop, which sets DISPLAY"
        raise Trouble(str(error), mend) from error
    try:
        with _connected(found) as sock:
            refusal, has_access_control = _set_up(sock, authorization)
    except OSError as error:
        raise Trouble(
            f"the display cannot be reached: {error.strerror or error}",
            "see that the X server of DISPLAY runs; after a new login DISPLAY may be another one",
        ) from error
    if refusal:
        what = "with its cookie" if authorization.data else "without a cookie"
        raise Trouble(
            f"the display lets nobody in {what}: {refusal}",
            "XAUTHORITY has to name the file with the display's cookie, for this user",
        )
    report.fine("the display can be reached" + (" by its cookie" if authorization.data else ""))
    if not has_access_control:
        report.note("the display lets every program in, as its access control is off (xhost -)")
    return found, authorization


def _connected(found: Display) -> socket.socket:
    failure = OSError("it has no address")
    for path in found.paths:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS)
        try:
            sock.connect(path)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    if found.host:
        return socket.create_connection((found.host, found.port), SECONDS)
    raise failure


def _set_up(sock: socket.socket, authorization: Authorization) -> tuple[str, bool]:
    """Returns why the display lets us not in, '' if it does; and whether access is controlled."""
    sock.sendall(_request(authorization))
    answer = b""
    while (known := set_up_refusal(answer)) is None:
        answer += _received(sock)
    refusal, size = known
    if refusal:
        return refusal, True
    sock.sendall(_LIST_HOSTS)
    while len(answer) < size + _REPLY:
        answer += _received(sock)
    return "", bool(answer[size + 1])


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ConnectionResetError("it has closed the connection")
    return data


def _request(authorization: Authorization) -> bytes:
    return SetUpRequest("<", 11, 0, authorization.name, authorization.data).encode()


# -- hosts ---------------------------------------------------------------------------------


def _check_jump(hop: HostOptions, following: HostOptions, report: _Report) -> bool:
    """Tries a host on the way; returns True."""
    with _LoggedIn(hop) as there:
        report.fine(f"logged in as {hop.user}; it runs {there.software or 'no known server'}")
        host, port = following.host_name, following.port
        through = _Through(there, (host, port), b"")
        code, why = there.run(through.opened_or_not())
        if code == ADMINISTRATIVELY_PROHIBITED:
            raise Trouble(
                f"it refuses to forward TCP to {host} port {port}: {why}",
                f"{there.by_software(_FORWARDING)}; no restrict, no-port-forwarding or permitopen "
                "in the key's line of authorized_keys",
            )
        if code:
            raise Trouble(
                f"{host} port {port} cannot be reached from there: {why}",
                "see that the name is known there, and that the server behind it runs",
            )
        report.fine(f"{host} port {port} can be reached from there")
    return True


def _check_last(
    hop: HostOptions, here: tuple[Display, Authorization] | None, report: _Report
) -> bool:
    """Tries the last host, and the display through it; returns True."""
    with _LoggedIn(hop) as there:
        report.fine(f"logged in as {hop.user}; it runs {there.software or 'no known server'}")
        found, authorization = here or (display(":0"), Authorization())
        settings = X11Settings(found, authorization, hop.forward_x11_trusted, 0, "none")
        x11 = X11Client(settings, there.driver, lambda: None)
        there.x11 = x11
        try:
            session = _Session(there, x11.session(hop.forward_x11_trusted))
            _check_session(session, there, report)
            if here is not None:
                _check_channel(session, there, report)
        finally:
            x11.close()
    return True


def _check_session(session: "_Session", there: "_LoggedIn", report: _Report) -> None:
    there.run(session.answered())
    if not session.is_granted:
        mend = (
            f"{there.by_software(_X11)}; no restrict or no-X11-forwarding in the key's line of "
            "authorized_keys (restrict,x11-forwarding is fine)"
        )
        raise Trouble("it refuses X11 forwarding", session.without_xauth or mend)
    shell = session.shell
    if shell is None:
        raise Trouble(
            "it grants X11 forwarding, but no shell answers there",
            "see what the user's shell, or command= in authorized_keys, does",
        )
    if not shell.display:
        raise Trouble(
            "it grants X11 forwarding, but programs find no DISPLAY",
            "see whether a start-up file of the shell unsets DISPLAY",
        )
    report.fine(f"X11 forwarding is granted: DISPLAY is {shell.display}")
    if not session.has_cookie:
        raise Trouble(
            f"the cookie of {shell.display} is not in {shell.authority}",
            session.without_xauth
            or "see that this file and its folder can be written, the disk is not full, no lock "
            f"{shell.authority}-c is left, and ~/.ssh/rc, if there is one, stores the cookie",
        )
    report.fine(f"the cookie of this display is in {shell.authority}")


def _check_channel(session: "_Session", there: "_LoggedIn", report: _Report) -> None:
    assert session.shell is not None
    try:
        place = display(session.shell.display)
    except ValueError as error:
        raise Trouble(f"DISPLAY is {session.shell.display}: {error}", _X11[""]) from error
    began = time.monotonic()
    request = _request(Authorization(COOKIE_PROTOCOL, session.cookie))
    through = _Through(there, (place.host or "localhost", place.port), request)
    code, why = there.run(through.opened_or_not())
    if code == ADMINISTRATIVELY_PROHIBITED:
        report.note("no program was tried, as this takes TCP forwarding, which is refused there")
        return
    if code:
        raise Trouble(f"nobody listens at {session.shell.display}: {why}", "see the server's log")
    refusal = there.run(through.answered())
    if refusal:
        raise Trouble(
            f"a program there would be turned away: {refusal}", "see what the display says above"
        )
    took = (time.monotonic() - began) * 1000
    report.fine(f"a program there has reached the display, in {took:.0f} ms")


class _LoggedIn:
    """A connection to a host for the time of a ``with`` block."""

    def __init__(self, hop: HostOptions) -> None:
        """Logs in; raises CulvertError."""
        self.x11: X11Client | None = None
        self._login = Login(hop)
        try:
            sock = self._login.dial()
            self._handler = _Handler(hop, self)
            self.connection: Connection = self._login.authenticate(sock, self._handler)
        except CulvertError:
            self._login.close()
            raise
        self._loop = Loop()
        self.driver = Driver(self._loop, sock, self.connection, lambda: None)
        self.driver.start()

    def __enter__(self) -> "_LoggedIn":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.transport.close("disconnected by user")
        self.driver.flush()
        self._loop.close()
        self._login.close()

    @property
    def software(self) -> str:
        """The server's name: a key of the tables of what to mend, '' for none of them."""
        software = self.connection.transport.peer_software
        return next((name for name in _X11 if name and software.startswith(name)), "")

    def by_software(self, mends: dict[str, str]) -> str:
        return mends[self.software]

    def run(self, coroutine: Coroutine[Future[Any], None, T]) -> T:
        """Runs the loop until the coroutine is done; raises Trouble after SECONDS."""

        def late() -> None:
            self.connection.transport.close("no answer")

        patience = self._loop.call_later(SECONDS, late)
        try:
            self.driver.flush()
            return run(self._loop, coroutine)
        finally:
            patience.cancel()


class _Handler(Greeting):
    """Takes x11 channels of the connection, and no others."""

    def __init__(self, hop: HostOptions, there: _LoggedIn) -> None:
        super().__init__(hop, quiet=True)
        self._there = there

    def channel_open(self, channel: Channel, type_data: bytes) -> None:
        if self._there.x11 is None:
            channel.reject(ADMINISTRATIVELY_PROHIBITED, "not wanted here")
        else:
            self._there.x11.channel_open(channel, type_data)


class _Shell(NamedTuple):
    """What the shell there has said."""

    display: str
    xauth: str  # the program's path, '' for none
    authority: str  # the file of cookies
    content: bytes  # of this file


def _said(output: bytes) -> _Shell | None:
    """Returns what the shell has said by now, None if that is not everything."""
    _, begin, text = output.partition(_BEGIN)
    parts = text.removesuffix(_END).split(b"\n", 3)
    if not (begin and text.endswith(_END) and len(parts) == 4):
        return None
    shown, xauth, authority = (part.decode(errors="replace") for part in parts[:3])
    return _Shell(shown, xauth, authority, parts[3])


class _Session(ChannelHandler):
    """A session there that asks for X11, and whose shell tells what programs find."""

    def __init__(self, there: _LoggedIn, right: X11Session) -> None:
        self._software = there.software
        self._right = right
        self.is_granted = False
        self.shell: _Shell | None = None
        self._output = bytearray()
        self._answered: Future[None] = Future()
        self._channel = there.connection.open_channel("session", b"", self)

    @property
    def cookie(self) -> bytes:
        """The fake cookie that programs there show."""
        return self._right.cookie

    @property
    def has_cookie(self) -> bool:
        """Whether programs find it."""
        assert self.shell is not None
        number = self.shell.display.rpartition(":")[2].partition(".")[0].encode()
        try:
            entries = xauthority_entries(self.shell.content)
        except MalformedMessage:
            return False
        return any(each.data == self.cookie and each.number == number for each in entries)

    @property
    def without_xauth(self) -> str:
        """How to mend that a program is missing which the server needs; '' if none is."""
        if self._software != "OpenSSH" or self.shell is None or self.shell.xauth:
            return ""
        return "install xauth there, which OpenSSH's server needs; Culvert's does not"

    async def answered(self) -> None:
        """Waits until the shell has said everything, or is gone."""
        await self._answered

    def opened(self, type_data: bytes) -> None:
        self._channel.request(X11_REQUEST, self._right.request, self._x11_answered)
        command = f"exec /bin/sh -c {shlex.quote(_SHELL)}"
        self._channel.request("exec", Command(command.encode()).encode())

    def _x11_answered(self, success: bool) -> None:
        self.is_granted = success
        if success:
            self._right.granted()

    def data(self, view: memoryview) -> None:
        self._output += view
        self._channel.consume(len(view))
        if len(self._output) > _LIMIT:
            self._channel.close()
            self.closed()
        elif not self._answered.done:
            self.shell = _said(bytes(self._output))
            if self.shell is not None:
                self._answered.resolve(None)

    def extended_data(self, code: int, view: memoryview) -> None:
        self._channel.consume(len(view))

    def open_failed(self, reason_code: int, description: str) -> None:
        self.closed()

    def closed(self) -> None:
        if not self._answered.done:
            self._answered.resolve(None)


class _Through(ChannelHandler):
    """A connection that the server makes for us: to the next host, or to a display there."""

    def __init__(self, there: _LoggedIn, place: tuple[str, int], first: bytes) -> None:
        """``first`` is sent: a set-up request."""
        self._first = first
        self._answer = bytearray()
        self._opened: Future[tuple[int, str]] = Future()
        self._refusal: Future[str] = Future()
        opening = DirectTcpip(*place, "127.0.0.1", 65535)
        self._channel = there.connection.open_channel(DIRECT_TCPIP, opening.encode(), self)

    async def opened_or_not(self) -> tuple[int, str]:
        """Returns the reason code of RFC 4254 and a description; 0 if it is open."""
        return await self._opened

    async def answered(self) -> str:
        """Returns why the display has turned the request away, '' if it has not."""
        return await self._refusal

    def opened(self, type_data: bytes) -> None:
        if self._first:
            self._channel.send(self._first)
        else:
            self._channel.close()
        self._opened.resolve((0, ""))

    def open_failed(self, reason_code: int, description: str) -> None:
        self._opened.resolve((reason_code, description))

    def data(self, view: memoryview) -> None:
        self._answer += view
        self._channel.consume(len(view))
        known = set_up_refusal(self._answer)
        if known is not None and not self._refusal.done:
            self._refusal.resolve(known[0])

    def closed(self) -> None:
        if not self._opened.done:
            self._opened.resolve((2, "no answer"))
        if not self._refusal.done:
            self._refusal.resolve("the connection was closed")
