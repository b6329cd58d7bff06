"""A process that holds the keys of a login and signs for the process that reads from the network.

It is forked while files can be read, reads the keys, gives up its privileges, and ends with the
login. So the process that carries a link for months never has its private key. It signs only the
authentication requests of RFC 4252, for one session and within the time of a login.
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
SIGNATURES: Final = 64  # for one login, far more than a server asks for
SECONDS: Final = 120.0  # for one login


class _Key(Message, number=1):
    """A key that can sign."""

    blob: String
    algorithms: NameList
    costs_the_user: Boolean
    name: Text


class _NoMore(Message, number=2):
    """The end of the list of keys; ``wrong`` says why they could not be read, or is ''."""

    wrong: Text


class _Sign(Message, number=3):
    """A request to sign ``data`` with the key of this index."""

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
        """Starts the process, where ``load`` reads the keys; raises its errors as CulvertError."""
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
        """Returns the descriptor of the socket to the process."""
        return self._sock.fileno()

    def close(self) -> None:
        """Ends the process."""
        self._sock.close()


def fork() -> int:
    """Forks like os.fork; raises CulvertError if no process can be started."""
    try:
        return os.fork()
    except OSError as error:
        raise CulvertError(f"no process: {error.strerror}") from error


def _serve(
    sock: socket.socket,
    load: Callable[[], Iterable[Identity]],
    confinement: sandbox.Confinement,
) -> None:
    """Runs the process; never returns."""
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
