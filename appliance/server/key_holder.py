"""The process that holds the private halves of the host keys and signs with them.

    listener (root) --fork--> key holder (root): reads the key files, signs
        |                         ^
        +--fork--> monitor (root) + a socket for each signature
                      +--fork--> worker (nobody)

A fork has all of its parent's memory, freed memory included: a private key's numbers and the lines
of its file. So no process that workers are forked from reads a key file. The key holder reads them,
forks nothing, and tells the listener the public keys.

The listener and the monitors share the socket that takes requests. A request carries the socket for
its answer. The key holder ends when all other processes have closed the first socket: after a
SIGHUP the old key holder lives as long as connections that began with its keys. It is not a child
of the listener, because the listener may become a daemon, and may end before its connections.
"""

import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Final

from .. import log
from ..crypto.keys import PrivateKey, PublicKey, load_public_key
from ..errors import UsageError, system_error
from ..process import sandbox
from ..wire.codec import Name, Record, String, Strings
from . import host_keys

_log = logging.getLogger(__name__)

# Our own choices
REQUEST_LIMIT: Final = 16 << 10  # bytes: a public key, and the hash or proof to sign
SIGNATURE_LIMIT: Final = 8 << 10  # bytes
ANSWER_SECONDS: Final = 30.0  # for a signature, which may wait for those of other connections
_LOADED: Final = b"\0"
_FAILED: Final = b"\1"


class _Loaded(Record):
    """The key holder's first message: the public halves of its keys."""

    public_keys: Strings


class _Request(Record):
    """A request to sign ``data`` with one of the keys."""

    public_key: String
    algorithm: Name
    data: String


class HeldKey:
    """A host key whose private half the key holder has."""

    def __init__(self, public: PublicKey, requests: socket.socket) -> None:
        self.public = public
        self._requests = requests

    def sign(self, algorithm: str, data: bytes) -> bytes:
        """A signature blob; raises OSError if the key holder does not answer."""
        request = _Request(self.public.blob, algorithm, data).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                socket.send_fds(self._requests, [request], [theirs.fileno()])
            ours.settimeout(ANSWER_SECONDS)
            signature = ours.recv(SIGNATURE_LIMIT)
        if not signature:
            raise system_error(errno.ENOKEY)
        return signature


class KeyHolder:
    """The listener's and the monitors' end of a key holder."""

    def __init__(self, paths: Sequence[str], make: bool) -> None:
        """Starts a key holder that reads these files; with ``make``, it makes missing ones.

        Raises UsageError, whose text says what is wrong with a file.
        """
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.settimeout(ANSWER_SECONDS)
        told_read, told_write = os.pipe()
        try:
            try:
                _fork(theirs, told_write, paths, make)
            finally:
                os.close(told_write)
                theirs.close()
            with open(told_read, "rb", closefd=False) as told:
                answer = told.read()
            if answer[:1] != _LOADED:
                text = answer[1:].decode() or "the process that reads them ended: see the log"
                raise UsageError(f"host keys: {text}" if not answer else text)
        except (OSError, UsageError) as error:
            self.close()
            if isinstance(error, OSError):
                raise UsageError(f"host keys: no process: {error.strerror}") from error
            raise
        finally:
            os.close(told_read)
        self.keys = [
            HeldKey(load_public_key(blob), self._requests)
            for blob in _Loaded.decode(answer[1:]).public_keys
        ]

    def fileno(self) -> int:
        """The descriptor of the requests' socket, which hangs up when the key holder ends."""
        return self._requests.fileno()

    def close(self) -> None:
        """Closes this process's end; called when it needs no more signatures."""
        self._requests.close()


def _fork(requests: socket.socket, told: int, paths: Sequence[str], make: bool) -> None:
    """Starts the key holder as a child of a child that has ended; raises OSError."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if os.fork() == 0:
            _hold(requests, told, paths, make)
    except OSError as error:
        os.write(told, _FAILED + f"host keys: no process: {error.strerror}".encode())
    finally:
        os._exit(0)


def _hold(requests: socket.socket, told: int, paths: Sequence[str], make: bool) -> None:
    """In the new process: reads the keys, tells the public halves, signs, and never returns.

    It exits when all other processes have closed the requests' socket.
    """
    try:
        os.setsid()  # a hangup of the listener's first terminal must not end the key holder
        sandbox.forget_signals()
        sandbox.keep_descriptors({requests.fileno(), told, *log.descriptors()})
        sandbox.hide()
        try:
            keys = host_keys.load(paths, make)
        except UsageError as error:
            os.write(told, _FAILED + str(error).encode())
            return
        os.write(told, _LOADED + _Loaded(tuple(key.public.blob for key in keys)).encode())
        os.close(told)
        os.chdir("/")  # so that no other file system stays busy
        _serve(requests, keys)
    except Exception:  # the root of a process
        _log.exception("the key holder failed")
    finally:
        os._exit(0)


def _serve(requests: socket.socket, keys: Sequence[PrivateKey]) -> None:
    by_blob = {key.public.blob: key for key in keys}
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_LIMIT, 1)
        if not data:
            return
        if not descriptors:  # this process had no free descriptor for it
            continue
        with socket.socket(fileno=descriptors[0]) as answer:
            request = _Request.decode(data)
            signature = by_blob[request.public_key].sign(request.algorithm, request.data)
            try:
                answer.send(signature)
            except OSError as error:
                _log.debug("the process that asked for a signature is gone: %s", error.strerror)
