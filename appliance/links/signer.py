"""A process that holds the keys of a login and signs, so that who reads from the network has none.

It is forked while files can be read, reads the keys, gives up its privileges, and ends when the
login is over: the process that carries a link for months has never had its private key. It signs
what RFC 4252 has a client sign, for one session and within the time of a login.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from .. import log
from ..errors import CulvertError, MalformedMessage
from ..process import sandbox
from ..ssh.auth_client import Identity
from ..wire.codec import Boolean, Message, Name, NameList, Reader, String, Text, UInt32
from ..wire.messages import UserauthRequest

_log = logging.getLogger(__name__)

# Our own choices
DATAGRAM: Final = 64 << 10  # bytes
SIGNATURES: Final = 64  # of one login, far more than a server asks for
SECONDS: Final = 120.0  # that a login may take


class _Key(Message, number=1):
    """A key that can sign."""

    blob: String
    algorithms: NameList
    costs_the_user: Boolean
    name: Text


class _NoMore(Message, number=2):
    """All keys have been named; ``wrong``: why there are none."""

    wrong: Text


class _Sign(Message, number=3):
    """Sign ``data`` with the key of this index."""

    index: UInt32
    algorithm: Name
    data: String


class Signer:
    """The keys of one login, in another process."""

    def __init__(
        self,
        load: Callable[[], Iterable[Identity]],
        confinement: sandbox.Confinement,
    ) -> None:
        """``load`` reads the keys; raises what it raises as a CulvertError."""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                if fork() == 0:
                    self._sock.close()
                    _serve(theirs, load, confinement)
            self.identities = tuple(self._receive())
        except CulvertError:
            self._sock.close()
            raise

    def _receive(self) -> Iterable[Identity]:
        index = 0
        while data := self._sock.recv(DATAGRAM):
            if data[0] != _Key.number:
                wrong = _NoMore.decode(data).wrong
                if wrong:
                    raise CulvertError(wrong)
                return
            key = _Key.decode(data)
            sign = self._signing(index)
            index += 1
            yield Identity(key.blob, key.algorithms, sign, key.costs_the_user, key.name)
        raise CulvertError("the process that reads the keys has ended")

    def _signing(self, index: int) -> Callable[[str, bytes], bytes | None]:
        def sign(algorithm: str, data: bytes) -> bytes | None:
            self._sock.sendall(_Sign(index, algorithm, data).encode())
            return self._sock.recv(DATAGRAM) or None

        return sign

    def fileno(self) -> int:
        """The descriptor of its socket."""
        return self._sock.fileno()

    def close(self) -> None:
        """End it."""
        self._sock.close()


def fork() -> int:
    """As os.fork; raises CulvertError if there can be no more processes."""
    try:
        return os.fork()
    except OSError as error:
        raise CulvertError(f"no process: {error.strerror}") from error


def _serve(
    sock: socket.socket,
    load: Callable[[], Iterable[Identity]],
    confinement: sandbox.Confinement,
) -> None:
    """The process: never returns."""
    try:
        sandbox.close_all_but(
            {sock.fileno(), *log.descriptors(), *sandbox.descriptors(confinement.identity)}
        )
        wrong = ""
        identities: list[Identity] = []
        try:
            identities = list(load())
        except CulvertError as error:
            wrong = str(error)
        for each in identities:
            sock.sendall(
                _Key(each.blob, tuple(each.algorithms), each.costs_the_user, each.name).encode()
            )
        sandbox.enter(confinement.identity, confinement.calls)
        sock.sendall(_NoMore(wrong).encode())
        session: bytes | None = None
        deadline = time.monotonic() + SECONDS
        for _ in range(SIGNATURES):
            sock.settimeout(max(0.0, deadline - time.monotonic()) or 0.001)
            if not (data := sock.recv(DATAGRAM)):
                break
            asked = _Sign.decode(data)
            reader = Reader(asked.data)
            of, number = reader.string(), reader.byte()
            session = of if session is None else session
            if number != UserauthRequest.number or of != session:
                raise MalformedMessage("this is no login's to sign")
            signature = identities[asked.index].sign(asked.algorithm, asked.data)
            sock.sendall(signature or b"")
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        pass
    except Exception:  # the root of a process
        _log.exception("the process that holds the keys failed")
    finally:
        os._exit(0)
