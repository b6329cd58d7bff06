"""Reads requests, finds the row of each in a table, and answers.

Nothing that a client sends ends the server but what is no request at all: a packet too long or
too short to have a number, or a second INIT. Everything else is answered by a STATUS.
"""

from __future__ import annotations

import errno
import os
import struct

from ..errors import MalformedMessage
from ..wire import sftp
from ..wire.codec import write_string
from ..wire.sftp import PACKET_LIMIT
from .failures import Refused, denied, refused, unsupported
from .journal import INFO, VERBOSE
from .locks import RETRY
from .openssh_extensions import EXTENSIONS as OPENSSH_EXTENSIONS
from .own_extensions import EXTENSIONS as OWN_EXTENSIONS
from .requests import REQUESTS, log_close
from .session import Row, Session

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = struct.Struct(">IBI")  # length, type, number of the request

# Our own choice: a packet that began, and what comes behind it
BUFFER = 2 * (PACKET_LIMIT + 4)  # bytes

EXTENSIONS: dict[str, Row] = OPENSSH_EXTENSIONS | OWN_EXTENSIONS


class Unanswerable(Exception):
    """The client sent what is no request; the server ends. The text says why."""


def names() -> Iterator[str]:
    """Yields the names of all requests, for -Q, -P and -p."""
    for row in (*REQUESTS.values(), *EXTENSIONS.values()):
        yield row.name


class Server:
    """Answers the requests of one client."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._has_begun = False  # INIT was answered
        permits = session.settings.permits
        rows = (*REQUESTS.values(), *EXTENSIONS.values())
        self._denied = frozenset(row.name for row in rows if not permits(row))

    def serve(self, source: int) -> None:
        """Answers what comes from a descriptor until its end; raises Unanswerable and OSError."""
        buffer = memoryview(bytearray(BUFFER))
        start = end = 0
        while True:
            self._wait(source)
            if len(buffer) - end < PACKET_LIMIT + 4:  # make room for a whole packet
                buffer[: end - start] = buffer[start:end]
                start, end = 0, end - start
            count = os.readv(source, (buffer[end:],))
            if not count:
                return
            end += count
            start += self.receive(buffer[start:end])
            if start == end:
                start = end = 0

    def _wait(self, source: int) -> None:
        """Waits for requests, and answers older ones meanwhile that wait for something."""
        session = self._session
        while True:
            asked_for = session.watches is not None and session.watches.are_asked_for
            if not asked_for and not session.locks.are_waited_for:
                return
            import select

            poll = select.poll()
            poll.register(source, select.POLLIN)
            if asked_for and session.watches is not None:
                poll.register(session.watches.descriptor, select.POLLIN)
            ready = dict(poll.poll(RETRY if session.locks.are_waited_for else None))
            if asked_for and session.watches is not None and session.watches.descriptor in ready:
                session.watches.tell()
            session.locks.retry()
            session.replies.flush()
            if source in ready:
                return

    def receive(self, data: memoryview) -> int:
        """Answers all whole requests in ``data``; returns how many bytes they have."""
        start = 0
        try:
            while len(data) - start >= 4:
                length = int.from_bytes(data[start : start + 4], "big")
                if length > PACKET_LIMIT:
                    self._refuse_length(length, data[start:])
                    break
                if len(data) - start - 4 < length:
                    break
                start += 4
                self._answer(data[start : start + length])
                start += length
        finally:
            self._session.replies.flush()
        return start

    def _refuse_length(self, length: int, data: memoryview) -> None:
        """Ends the server; what follows cannot be told from data."""
        if len(data) < _HEAD.size:
            return
        _, kind, request = _HEAD.unpack_from(data)
        if kind != sftp.Init.number:
            self._refuse(request, Refused(sftp.BAD_MESSAGE, "The packet is too long", errno.E2BIG))
        raise Unanswerable(f"a packet of {length} bytes")

    def _answer(self, packet: memoryview) -> None:
        if packet and packet[0] == sftp.Init.number:
            self._on_init(packet)
            return
        if len(packet) < 5:
            raise Unanswerable("a packet without a request")
        request = int.from_bytes(packet[1:5], "big")
        number = 0
        try:
            if not self._has_begun:
                raise Refused(sftp.BAD_MESSAGE, "INIT has to come first", errno.EPROTO)
            self._handle(request, packet)
        except Refused as refusal:
            number = self._refuse(request, refusal)
        except MalformedMessage as reason:
            number = self._refuse(
                request, Refused(sftp.BAD_MESSAGE, f"Bad message: {reason}", errno.EBADMSG)
            )
        except OSError as reason:
            number = self._refuse(request, refused(reason))
        except OverflowError:  # an offset or size that the system's types do not hold
            number = self._refuse(request, Refused(sftp.FAILURE, "Number too large", errno.EINVAL))
        self._session.journal.end(number)

    def _refuse(self, request: int, refusal: Refused) -> int:
        self._session.journal.log(INFO, "sent status %s", refusal.message)
        self._session.replies.refuse(request, refusal)
        return refusal.number

    def _on_init(self, packet: memoryview) -> None:
        if self._has_begun:
            raise Unanswerable("a second INIT")
        if len(packet) < 5:
            raise Unanswerable("an INIT without a version")
        self._has_begun = True
        version = int.from_bytes(packet[1:5], "big")
        self._session.journal.log(VERBOSE, "received client version %d", version)
        told = sftp.Version(
            sftp.VERSION,
            tuple(
                (name, data)
                for name, data in sftp.EXTENSIONS.items()
                if name not in EXTENSIONS or EXTENSIONS[name].name not in self._denied
            ),
        )
        self._session.replies.add(write_string(told.encode()))

    def _handle(self, request: int, packet: memoryview) -> None:
        session = self._session
        kind = packet[0]
        row = REQUESTS.get(kind)
        if row is None:
            if kind != sftp.Extended.number:
                raise unsupported()
            asked = sftp.Extended.decode(packet)
            row = EXTENSIONS.get(asked.request)
            if row is None:
                raise unsupported()
            data = asked.data
        if row.name in self._denied:
            session.journal.log(INFO, "refusing %s request", row.name)
            raise denied()
        record = row.record
        if record is None:
            row.handle(session, request, packet)
            return
        fields = record.decode(packet if kind != sftp.Extended.number else data)
        paths = [getattr(fields, name) for name in row.paths]
        if any(b"\0" in path for path in paths):
            raise Refused(sftp.BAD_MESSAGE, "A path holds a NUL", errno.EINVAL)
        if row.writes and paths:
            session.journal.begin(OPERATIONS.get(row.name, row.name), *paths)
        row.handle(session, request, fields)

    def close(self) -> None:
        """Closes what the client has left open."""
        for opened in self._session.files:
            log_close(self._session, "forced ", opened)
            opened.close()
        if self._session.watches is not None:
            self._session.watches.close()


# How the reports of changes call a request, where not by its name
OPERATIONS = {"posix-rename": "rename", "lsetstat": "setstat", "write-file": "write"}
