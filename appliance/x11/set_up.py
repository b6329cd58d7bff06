"""The first bytes of a forwarded program: whether it knows the cookie that we gave the server.

    READING -> PASSED     it is let in; the X server gets its request with the display's own cookie
            -> REFUSED    it is turned away, and the X server never sees a byte

The cookie that we send to the server is a fake one, so that who learns it there can do nothing
with it once the session is over. The display's own cookie never leaves this machine.
"""

import hmac
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, Generic, NamedTuple, TypeVar

from ..errors import MalformedMessage
from ..wire.codec import Buffer
from ..wire.x11 import (
    BYTE_ORDERS,
    COOKIE_PROTOCOL,
    PROTOCOL_MAJOR,
    SetUpRequest,
    read_set_up,
    set_up_failed,
)

# Our own choice
COOKIE_LENGTH: Final = 16  # bytes of a fake cookie where the display has none, as everybody's

Grant = TypeVar("Grant")


class Authorization(NamedTuple):
    """What an X server wants to be told by its clients; empty for a server that lets all in."""

    name: bytes = b""
    data: bytes = b""


class SetUpState(Enum):
    """Whether a program is let in."""

    READING = auto()
    PASSED = auto()
    REFUSED = auto()


class SetUp(Generic[Grant]):
    """Reads one program's set-up request.

    ``grants`` has what each fake cookie gives access to. Once the state is PASSED, ``grant`` is
    the one that the program may use, and ``request`` and ``rest`` are its request and what it sent
    behind that. Once the state is REFUSED, ``why`` says why.
    """

    def __init__(self, grants: Mapping[bytes, Grant]) -> None:
        self._grants = grants
        self._buffer = bytearray()
        self.state = SetUpState.READING
        self.grant: Grant | None = None
        self.request = SetUpRequest("<", PROTOCOL_MAJOR, 0, b"", b"")
        self.rest = b""
        self.why = ""

    def receive(self, data: Buffer) -> SetUpState:
        """Reads more of the program's bytes, in state READING only; returns the new state."""
        assert self.state is SetUpState.READING
        self._buffer += data
        try:
            found = read_set_up(self._buffer)
        except MalformedMessage as error:
            self._refuse(str(error))
        else:
            if found is not None:
                self._judge(*found)
        return self.state

    def _judge(self, request: SetUpRequest, size: int) -> None:
        self.request = request
        self.rest = bytes(self._buffer[size:])
        if request.major != PROTOCOL_MAJOR:
            self._refuse(f"version {request.major} of the X protocol")
        elif request.name != COOKIE_PROTOCOL:
            self._refuse("no cookie" if not request.name else "another kind of authorization")
        else:
            self._look_up(request.data)

    def _look_up(self, cookie: bytes) -> None:
        for fake, grant in self._grants.items():  # all of them: the time tells nothing
            if hmac.compare_digest(fake, cookie):
                self.grant = grant
        if self.grant is None:
            self._refuse("a wrong cookie")
        else:
            self.state = SetUpState.PASSED

    def _refuse(self, why: str) -> None:
        self.state = SetUpState.REFUSED
        self.why = why

    def failed(self, reason: str) -> bytes:
        """Returns the answer that turns the program away, in its own byte order.

        Empty if the program has not even named a byte order.
        """
        order = BYTE_ORDERS.get(self._buffer[0]) if self._buffer else None
        return b"" if order is None else set_up_failed(order, reason)


def authorized(request: SetUpRequest, authorization: Authorization) -> bytes:
    """Returns the request for the X server, with the display's own authorization in it."""
    return request._replace(name=authorization.name, data=authorization.data).encode()
