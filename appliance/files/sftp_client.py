"""The client's half of SFTP: requests with any number in flight, and their replies.

A request is sent at once and returns a future; replies come in any order. What a server lacks
is done by plain requests, or raises StatusError with EOPNOTSUPP.

    client.start()            sends INIT; awaits VERSION, and turns on our extensions
    await client.stat(path)   and so on: a method for each request
    client.read(...)          the one request with a callback instead, for bulk data

Paths are bytes. A failure is a StatusError, which is an OSError: with the server's reason, and its
errno if the server is Culvert's.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol, TypeVar

from ..aio.tasks import Future
from ..errors import MalformedMessage, PeerDisconnected, PeerError, ProtocolError
from ..log import harmless
from ..wire import sftp
from ..wire.codec import Buffer, Message, Record
from ..wire.sftp import Attributes, NamedFile

# Our own choices
READDIRS: Final = 32  # in flight for one directory: OpenSSH's server sends only 100 names a reply
_TEXT_LIMIT: Final = 300  # characters of a server's text that are shown

_HEADER: Final = struct.Struct(">IBI")  # length, type, id
_STATUS_CODE: Final = struct.Struct(">I")
_READ: Final = struct.Struct(">QI")
_WRITE: Final = struct.Struct(">QI")
_TYPE_AT: Final = 4
_BODY_AT: Final = 9  # behind length, type and id

_ERRNO: Final = {
    sftp.NO_SUCH_FILE: errno.ENOENT,
    sftp.PERMISSION_DENIED: errno.EACCES,
    sftp.FAILURE: errno.EIO,
    sftp.BAD_MESSAGE: errno.EBADMSG,
    sftp.NO_CONNECTION: errno.ENOTCONN,
    sftp.CONNECTION_LOST: errno.ENOTCONN,
    sftp.OP_UNSUPPORTED: errno.EOPNOTSUPP,
}
_REASONS: Final = {
    sftp.NO_SUCH_FILE: "No such file or directory",
    sftp.PERMISSION_DENIED: "Permission denied",
    sftp.FAILURE: "Failure",
    sftp.BAD_MESSAGE: "Bad message",
    sftp.NO_CONNECTION: "No connection",
    sftp.CONNECTION_LOST: "Connection lost",
    sftp.OP_UNSUPPORTED: "Operation unsupported",
}

Reply = TypeVar("Reply", covariant=True)
Data = TypeVar("Data", bound=Record)

# Takes the bytes of a READ, None at the end of the file, or the failure.
OnRead = Callable[[memoryview | None, Exception | None], None]
OnWritten = Callable[[Exception | None], None]  # takes the failure of a WRITE, or None
_OnReply = Callable[[int, memoryview], None]  # the type of the reply, and its whole packet


class StatusError(OSError):
    """A request failed; ``code`` is the STATUS's, ``strerror`` the server's reason.

    As with OSError itself, one with ENOENT is a FileNotFoundError, and so on.
    """

    def __new__(cls, code: int, reason: str, number: int, path: bytes | None = None) -> StatusError:
        kind = _KINDS.get(number, StatusError)
        return super().__new__(kind, number, reason, None if path is None else os.fsdecode(path))

    def __init__(self, code: int, reason: str, number: int, path: bytes | None = None) -> None:
        super().__init__()
        self.code = code
        self._reason, self._number = reason, number

    def about(self, path: bytes) -> StatusError:
        """Returns the failure of this request as one of ``path``."""
        return StatusError(self.code, self._reason, self._number, path)


class _NotFound(StatusError, FileNotFoundError):
    """The server's ENOENT."""


class _Exists(StatusError, FileExistsError):
    """The server's EEXIST."""


class _WouldBlock(StatusError, BlockingIOError):
    """The server's EAGAIN: another lock is in the way."""


_KINDS: Final[dict[int, type[StatusError]]] = {
    errno.ENOENT: _NotFound,
    errno.EEXIST: _Exists,
    errno.EAGAIN: _WouldBlock,
}


class ReplyType(Protocol[Reply]):
    """What reads a reply: a record of wire/sftp.py, or a faster way to read the same."""

    @property
    def number(self) -> int:
        """The type of the packet."""
        ...

    def decode(self, payload: memoryview, /) -> Reply:
        """Returns the reply; raises MalformedMessage."""
        ...


class Stream(Protocol):
    """The bytes between the client and its server."""

    def write(self, data: Buffer) -> None:
        """Sends ``data``, or keeps it until it can be sent."""
        ...

    @property
    def unsent(self) -> int:
        """How many bytes wait until they can be sent."""
        ...

    def close(self) -> None:
        """Ends the stream."""
        ...


class SftpClient:
    """One session with a server, over a stream that calls ``received`` and ``ended``."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray(_TYPE_AT + sftp.PACKET_LIMIT)
        self._filled = 0
        self._next_id = 0
        self._waiting: dict[int, _OnReply] = {}
        self._version: Future[sftp.Version] = Future()
        self._failure: PeerError | None = None
        self._on_writable: list[Future[None]] = []
        self._on_end: list[Callable[[PeerError], None]] = []
        self.extensions: dict[str, bytes] = {}
        self.received_bytes = self.sent_bytes = 0
        self.read_limit = sftp.PLAIN_DATA_LIMIT  # bytes of one request
        self.write_limit = sftp.PLAIN_DATA_LIMIT

    # -- the session -------------------------------------------------------------------

    async def start(self) -> None:
        """Agrees on the version, and learns the server's extensions and limits."""
        self._write(_packet(sftp.Init(sftp.VERSION)))
        version = await self._version
        if version.version != sftp.VERSION:
            raise ProtocolError(f"the server speaks version {version.version} of SFTP, not 3")
        self.extensions = dict(version.extensions)
        for name in (sftp.ATTRIBUTES, sftp.ERRNO):
            if name in self.extensions:
                self.send(sftp.Extended(0, name)).when_done(lambda: None)
        if sftp.LIMITS in self.extensions:
            limits = await self._extended(sftp.LIMITS, b"", sftp.Limits)
            self.read_limit = _data_limit(limits.max_read_length)
            self.write_limit = _data_limit(limits.max_write_length)

    def has(self, extension: str) -> bool:
        """Whether the server has announced the extension."""
        return extension in self.extensions

    def close(self) -> None:
        """Ends the session."""
        self._stream.close()

    def when_ended(self, callback: Callable[[PeerError], None]) -> None:
        """Calls ``callback`` when the session has ended, before its requests fail."""
        self._on_end.append(callback)

    @property
    def in_flight(self) -> int:
        """How many requests wait for their replies."""
        return len(self._waiting)

    async def writable(self) -> None:
        """Waits until what was sent has left, but for one packet."""
        while self._stream.unsent > sftp.PACKET_LIMIT:
            if self._failure is not None:
                raise self._failure
            future: Future[None] = Future()
            self._on_writable.append(future)
            await future

    def drained(self) -> None:
        """Takes note, from the stream, that its unsent bytes have become fewer."""
        if self._on_writable and self._stream.unsent <= sftp.PACKET_LIMIT:
            waiting, self._on_writable = self._on_writable, []
            for future in waiting:
                future.resolve(None)

    # -- from the stream ---------------------------------------------------------------

    def received(self, view: memoryview) -> None:
        """Handles bytes from the server; raises PeerError, after which nothing more may come."""
        self.received_bytes += len(view)
        if not self._filled:
            view = view[self._handle(view) :]
        at, buffer = 0, self._buffer
        while at < len(view):
            part = view[at : at + len(buffer) - self._filled]
            end = self._filled + len(part)
            buffer[self._filled : end] = part
            self._filled = end
            at += len(part)
            with memoryview(buffer) as whole:
                done = self._handle(whole[:end])
                if done:
                    whole[: end - done] = whole[done:end]
                    self._filled = end - done

    def _handle(self, view: memoryview) -> int:
        """Handles the whole packets at the beginning; returns how many bytes they took."""
        at, end = 0, len(view)
        while end - at > _TYPE_AT:
            length, kind = struct.unpack_from(">IB", view, at)
            if not 1 <= length <= sftp.PACKET_LIMIT:
                raise self._no_packet(view[at:])
            size = _TYPE_AT + length
            if end - at < size:
                break
            packet = view[at : at + size]
            at += size
            if kind == sftp.Version.number:
                self._on_version(packet)
                continue
            if size < _BODY_AT:
                raise MalformedMessage("a reply without the number of its request")
            (number,) = struct.unpack_from(">I", packet, 5)
            on_reply = self._waiting.pop(number, None)
            if on_reply is None:
                raise ProtocolError("a reply to a request that was not made")
            try:
                on_reply(kind, packet)
            except PeerError:
                self._waiting[number] = on_reply  # which ``ended`` calls with the failure
                raise
        return at

    def _no_packet(self, view: memoryview) -> ProtocolError:
        """The error of a length that no packet has: most often a text of the shell's."""
        if self._version.done:
            return ProtocolError("the server sent a packet that is too long or empty")
        text = harmless(bytes(view[:_TEXT_LIMIT]).decode(errors="replace"))
        return ProtocolError(
            f"the server sent no SFTP, but: {text!r}; what its shell prints must not be printed"
            " when it runs a program"
        )

    def _on_version(self, packet: memoryview) -> None:
        if self._version.done:
            raise ProtocolError("a second VERSION")
        self._version.resolve(sftp.Version.decode(packet[_TYPE_AT:]))

    def ended(self, error: PeerError | None) -> None:
        """Fails every request that is not answered, because the server is gone."""
        if self._failure is not None:
            return
        self._failure = error or PeerDisconnected("the SFTP server has ended")
        for callback in self._on_end:
            callback(self._failure)
        if not self._version.done:
            self._version.fail(self._failure)
        failed = sftp.Status(0, sftp.CONNECTION_LOST, str(self._failure))
        waiting, self._waiting = self._waiting, {}
        for number, on_reply in waiting.items():
            failed.id = number
            on_reply(sftp.Status.number, memoryview(_packet(failed)))
        writers, self._on_writable = self._on_writable, []
        for future in writers:
            future.fail(self._failure)

    # -- requests ----------------------------------------------------------------------

    def send(self, request: Any, path: bytes | None = None) -> Future[None]:
        """Sends a request that is answered by STATUS; ``path`` is for the error."""
        future: Future[None] = Future()

        def on_reply(kind: int, packet: memoryview) -> None:
            if kind != sftp.Status.number:
                raise ProtocolError(f"a reply of type {kind} where a STATUS was expected")
            error = self._error(packet, path)
            if error is None:
                future.resolve(None)
            else:
                future.fail(error)

        self._send(request, on_reply)
        return future

    def ask(
        self, request: Any, expected: ReplyType[Reply], path: bytes | None = None
    ) -> Future[Reply]:
        """Sends a request that is answered by ``expected``, or by STATUS if it failed."""
        future: Future[Reply] = Future()

        def on_reply(kind: int, packet: memoryview) -> None:
            if kind == expected.number:
                future.resolve(expected.decode(packet[_TYPE_AT:]))
                return
            if kind != sftp.Status.number:
                raise ProtocolError(f"a reply of type {kind}, not {expected.number}")
            error = self._error(packet, path)
            future.fail(error or ProtocolError("a STATUS of success where a result was expected"))

        self._send(request, on_reply)
        return future

    def _send(self, request: Any, on_reply: _OnReply) -> None:
        request.id = self._number(on_reply)
        self._write(_packet(request))

    def _write(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self._stream.write(data)

    def _number(self, on_reply: _OnReply) -> int:
        """Returns the number of a new request."""
        if self._failure is not None:
            raise self._failure
        number = self._next_id
        while number in self._waiting:
            number = (number + 1) & 0xFFFFFFFF
        self._next_id = (number + 1) & 0xFFFFFFFF
        self._waiting[number] = on_reply
        return number

    def _error(self, packet: memoryview, path: bytes | None) -> Exception | None:
        """Returns the failure that a STATUS tells; None for success."""
        code = _status_code(packet)
        if code == sftp.OK:
            return None
        if self._failure is not None:
            return self._failure
        reason, number = "", 0
        if len(packet) > _BODY_AT + _STATUS_CODE.size:  # some servers send no message
            status = sftp.Status.decode(packet[_TYPE_AT:])
            # in one line: another could pass for one of ours
            reason = " ".join(harmless(status.message[:_TEXT_LIMIT]).split())
            if self.has(sftp.ERRNO) and len(status.rest) == 8:
                number = int.from_bytes(status.rest[4:], "big")
        if number not in errno.errorcode:
            number = 0
        if number:
            reason = os.strerror(number)
        elif code in (sftp.NO_SUCH_FILE, sftp.PERMISSION_DENIED) or not reason:
            reason = _REASONS.get(code, f"Error {code}")
        return StatusError(code, reason, number or _ERRNO.get(code, errno.EIO), path)

    async def _extended(
        self, name: str, data: bytes, expected: type[Data], path: bytes | None = None
    ) -> Data:
        """Sends EXTENDED and returns what its reply holds; raises StatusError."""
        if name not in self.extensions:
            raise _unsupported(name, path)
        reply = await self.ask(sftp.Extended(0, name, data), sftp.ExtendedReply, path)
        return expected.decode(reply.data)

    async def _extended_status(self, name: str, data: bytes, path: bytes | None = None) -> None:
        if name not in self.extensions:
            raise _unsupported(name, path)
        await self.send(sftp.Extended(0, name, data), path)

    # -- files -------------------------------------------------------------------------

    async def open(self, path: bytes, pflags: int, attrs: Attributes | None = None) -> bytes:
        """Opens a file; returns its handle."""
        request = sftp.Open(0, path, pflags, attrs or Attributes())
        return (await self.ask(request, sftp.Handle, path)).handle

    def close_file(self, handle: bytes, path: bytes | None = None) -> Future[None]:
        """Closes a file or directory; what was written may fail only now."""
        return self.send(sftp.Close(0, handle), path)

    def abandon(self, handle: bytes) -> None:
        """Closes a file or directory whatever comes of it."""
        if self._failure is None:
            self.close_file(handle).when_done(lambda: None)

    def read(self, handle: bytes, offset: int, length: int, on_read: OnRead) -> None:
        """Reads; calls ``on_read`` with up to ``length`` bytes, valid during the call."""

        def on_reply(kind: int, packet: memoryview) -> None:
            if kind == sftp.Data.number:
                if len(packet) < 13:
                    raise MalformedMessage("DATA without its length")
                (size,) = struct.unpack_from(">I", packet, _BODY_AT)
                if size != len(packet) - 13 or size > length:
                    raise MalformedMessage("DATA of a wrong length")
                on_read(packet[13:], None)
            elif kind != sftp.Status.number:
                raise ProtocolError(f"a reply of type {kind} to a READ")
            elif _status_code(packet) == sftp.EOF:
                on_read(None, None)
            else:
                error = self._error(packet, None)
                on_read(None, error or ProtocolError("a READ without data"))

        number = self._number(on_reply)
        size = 1 + 4 + 4 + len(handle) + _READ.size
        head = _HEADER.pack(size, sftp.Read.number, number) + len(handle).to_bytes(4, "big")
        self._write(head + handle + _READ.pack(offset, length))

    def read_bytes(self, handle: bytes, offset: int, length: int) -> Future[bytes]:
        """Reads; the future is of up to ``length`` bytes, or of b'' at the end of the file."""
        future: Future[bytes] = Future()

        def on_read(data: memoryview | None, error: Exception | None) -> None:
            if error is not None:
                future.fail(error)
            else:
                future.resolve(b"" if data is None else bytes(data))

        self.read(handle, offset, length, on_read)
        return future

    def write(self, handle: bytes, offset: int, data: Buffer, on_written: OnWritten) -> None:
        """Writes at most ``write_limit`` bytes; calls ``on_written``. See ``writable``."""

        def on_reply(kind: int, packet: memoryview) -> None:
            if kind != sftp.Status.number:
                raise ProtocolError(f"a reply of type {kind} to a WRITE")
            on_written(self._error(packet, None))

        number = self._number(on_reply)
        size = 1 + 4 + 4 + len(handle) + _WRITE.size + len(data)
        head = _HEADER.pack(size, sftp.Write.number, number) + len(handle).to_bytes(4, "big")
        self._write(b"".join((head, handle, _WRITE.pack(offset, len(data)), data)))

    async def stat(self, path: bytes) -> Attributes:
        """Returns the attributes of a file, or of what a symbolic link leads to."""
        return (await self.ask(sftp.Stat(0, path), sftp.AttrsReply, path)).attrs

    async def lstat(self, path: bytes) -> Attributes:
        """Returns the attributes of a file, or of the symbolic link itself."""
        return (await self.ask(sftp.LStat(0, path), sftp.AttrsReply, path)).attrs

    async def fstat(self, handle: bytes, path: bytes | None = None) -> Attributes:
        """Returns the attributes of an open file."""
        return (await self.ask(sftp.FStat(0, handle), sftp.AttrsReply, path)).attrs

    async def is_same_file(self, one: bytes, other: bytes) -> bool:
        """Whether both paths lead to the same file, as far as the server tells."""
        asked = [self.ask(sftp.Stat(0, path), sftp.AttrsReply, path) for path in (one, other)]
        try:
            first, second = [(await each).attrs.identity for each in asked]
            if first is not None and second is not None:
                return (first.device, first.inode) == (second.device, second.inode)
            return await self.realpath(one) == await self.realpath(other)
        except StatusError:
            return False

    async def setstat(self, path: bytes, attrs: Attributes) -> None:
        """Sets those attributes that are given."""
        await self.send(sftp.SetStat(0, path, attrs), path)

    async def lsetstat(self, path: bytes, attrs: Attributes) -> None:
        """Sets attributes, of a symbolic link itself."""
        data = sftp.PathAttributes(path, attrs).encode()
        await self._extended_status(sftp.LSETSTAT, data, path)

    async def fsetstat(self, handle: bytes, attrs: Attributes, path: bytes | None = None) -> None:
        """Sets attributes of an open file."""
        await self.send(sftp.FSetStat(0, handle, attrs), path)

    async def fsync(self, handle: bytes, path: bytes | None = None) -> None:
        """Has the server write an open file to its disk."""
        await self._extended_status(sftp.FSYNC, sftp.OneHandle(handle).encode(), path)

    # -- directories and names ---------------------------------------------------------

    def open_directory(self, path: bytes) -> Future[sftp.Handle]:
        """Opens a directory, for ``listing`` or ``abandon``."""
        return self.ask(sftp.OpenDir(0, path), sftp.Handle, path)

    async def listing(
        self, path: bytes, opened: Future[sftp.Handle] | None = None
    ) -> AsyncIterator[tuple[NamedFile, ...]]:
        """Yields the entries of a directory as they come, '.' and '..' included.

        ``opened``: what ``open_directory`` has returned, if it was called before.
        """
        async for names in self.read_directory(path, sftp.Names, opened):
            if not names.entries:
                raise ProtocolError("a listing without an entry, and not at its end")
            yield names.entries

    async def read_directory(
        self,
        path: bytes,
        expected: ReplyType[Reply],
        opened: Future[sftp.Handle] | None = None,
    ) -> AsyncIterator[Reply]:
        """Yields the replies to READDIR, as ``expected`` decodes them.

        So many are asked for at once that a long link does not slow a long listing.
        """
        handle = (await (opened or self.open_directory(path))).handle
        try:
            asked = [self.ask(sftp.ReadDir(0, handle), expected, path) for _ in range(2)]
            at_end = False
            while asked:
                try:
                    names = await asked.pop(0)
                except StatusError as error:
                    if error.code != sftp.EOF:
                        raise
                    at_end = True
                    continue
                if not at_end:
                    more = min(2, READDIRS - len(asked))
                    asked += [
                        self.ask(sftp.ReadDir(0, handle), expected, path) for _ in range(more)
                    ]
                yield names
        finally:
            self.abandon(handle)

    async def is_directory(self, path: bytes, attributes: Attributes) -> bool:
        """Whether ``path`` is a directory, also if its attributes do not tell."""
        if attributes.permissions is not None:
            return stat.S_ISDIR(attributes.permissions)
        try:
            handle = (await self.open_directory(path)).handle
        except StatusError:
            return False
        self.abandon(handle)
        return True

    async def realpath(self, path: bytes) -> bytes:
        """Returns the absolute path."""
        return _only(await self.ask(sftp.RealPath(0, path), sftp.Names, path))

    async def expand_path(self, path: bytes) -> bytes:
        """Returns the absolute path of one that may begin with ~ or ~user."""
        if sftp.EXPAND_PATH in self.extensions:
            request = sftp.Extended(0, sftp.EXPAND_PATH, sftp.OnePath(path).encode())
            return _only(await self.ask(request, sftp.Names, path))
        if path == b"~" or path.startswith(b"~/"):  # a session begins at home
            return await self.realpath(path[2:] or b".")
        if path.startswith(b"~"):
            raise _unsupported(sftp.EXPAND_PATH, path)
        return await self.realpath(path)

    async def readlink(self, path: bytes) -> bytes:
        """Returns the target of a symbolic link."""
        return _only(await self.ask(sftp.ReadLink(0, path), sftp.Names, path))

    async def mkdir(self, path: bytes, attrs: Attributes | None = None) -> None:
        """Makes a directory."""
        await self.send(sftp.MkDir(0, path, attrs or Attributes()), path)

    async def make_directory(self, path: bytes, attrs: Attributes) -> None:
        """Makes a directory, unless there is one."""
        try:
            await self.mkdir(path, attrs)
        except StatusError:
            found = (await self.stat(path)).permissions
            if found is not None and not stat.S_ISDIR(found):
                raise

    async def rmdir(self, path: bytes) -> None:
        """Removes an empty directory."""
        await self.send(sftp.RmDir(0, path), path)

    async def remove(self, path: bytes) -> None:
        """Removes a file."""
        await self.send(sftp.Remove(0, path), path)

    async def rename(self, old: bytes, new: bytes) -> None:
        """Renames a file, over one that is there if the server can (rename(2))."""
        if sftp.POSIX_RENAME in self.extensions:
            data = sftp.TwoPaths(old, new).encode()
            await self._extended_status(sftp.POSIX_RENAME, data, old)
        else:
            await self.plain_rename(old, new)

    async def plain_rename(self, old: bytes, new: bytes) -> None:
        """Renames a file, but not over another one."""
        await self.send(sftp.Rename(0, old, new), old)

    async def symlink(self, target: bytes, path: bytes) -> None:
        """Makes a symbolic link at ``path``."""
        await self.send(sftp.SymLink(0, target, path), path)

    async def hardlink(self, old: bytes, new: bytes) -> None:
        """Makes another name of a file."""
        await self._extended_status(sftp.HARDLINK, sftp.TwoPaths(old, new).encode(), new)

    async def statvfs(self, path: bytes) -> sftp.FileSystem:
        """Returns the size and free space of the file system."""
        data = sftp.OnePath(path).encode()
        return await self._extended(sftp.STATVFS, data, sftp.FileSystem, path)

    async def copy_data(
        self,
        source: bytes,
        offset: int,
        length: int,
        target: bytes,
        at: int,
        path: bytes | None = None,
    ) -> None:
        """Copies between two open files at the server; ``length`` 0 is up to the end."""
        data = sftp.CopyData(source, offset, length, target, at).encode()
        await self._extended_status(sftp.COPY_DATA, data, path)

    # -- our own extensions ------------------------------------------------------------

    async def read_file(self, path: bytes, length: int) -> sftp.FileContent:
        """Opens a file and reads its beginning; closed if that is all of it."""
        data = sftp.ReadFile(path, length).encode()
        return await self._extended(sftp.READ_FILE, data, sftp.FileContent, path)

    async def write_file(
        self, path: bytes, pflags: int, attrs: Attributes, content: bytes, set_attrs: Attributes
    ) -> Attributes:
        """Opens a file, writes it, sets attributes and closes it; returns its attributes."""
        if sftp.WRITE_FILE not in self.extensions:
            raise _unsupported(sftp.WRITE_FILE, path)
        data = sftp.WriteFile(path, pflags, attrs, content, set_attrs).encode()
        request = sftp.Extended(0, sftp.WRITE_FILE, data)
        return (await self.ask(request, sftp.AttrsReply, path)).attrs

    async def lookup_tree(self, path: bytes, depth: int, entries: int) -> tuple[sftp.Listing, ...]:
        """Lists a directory, and those below it as far as a reply holds them."""
        data = sftp.LookupTree(path, depth, entries).encode()
        return (await self._extended(sftp.LOOKUP_TREE, data, sftp.Tree, path)).listings

    async def extents(self, handle: bytes, offset: int) -> sftp.Extents:
        """Returns where an open file holds data, from ``offset`` on."""
        data = sftp.FindExtents(handle, offset).encode()
        return await self._extended(sftp.EXTENTS, data, sftp.Extents)

    async def watch(self, path: bytes) -> int:
        """Has the server tell of changes in a directory; returns the number that they have."""
        data = sftp.OnePath(path).encode()
        return (await self._extended(sftp.WATCH, data, sftp.WatchReply, path)).watch

    async def unwatch(self, watch: int) -> None:
        """Ends what ``watch`` began."""
        await self._extended_status(sftp.UNWATCH, sftp.WatchReply(watch).encode())

    async def changes(self) -> sftp.ChangesReply:
        """Waits for changes in watched directories."""
        return await self._extended(sftp.CHANGES, b"", sftp.ChangesReply)

    async def lock(self, handle: bytes, kind: int, offset: int, length: int, waits: bool) -> None:
        """Takes, gives up or tests a lock of an open file, by one of the LOCK_* types.

        ``length`` 0 is up to the end. Raises StatusError with EAGAIN if another lock is in the
        way; with ``waits``, waits for it instead.
        """
        data = sftp.Lock(handle, kind, offset, length, waits).encode()
        await self._extended_status(sftp.LOCK, data)

    async def get_xattr(self, path: bytes, name: bytes) -> bytes:
        """Returns an extended attribute, of a symbolic link itself."""
        data = sftp.NamedXattr(path, name).encode()
        return (await self._extended(sftp.GET_XATTR, data, sftp.XattrValue, path)).value

    async def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Sets an extended attribute; ``flags`` as for setxattr(2)."""
        data = sftp.SetXattr(path, name, value, flags).encode()
        await self._extended_status(sftp.SET_XATTR, data, path)

    async def list_xattrs(self, path: bytes) -> tuple[bytes, ...]:
        """Returns the names of the extended attributes."""
        data = sftp.OnePath(path).encode()
        return (await self._extended(sftp.LIST_XATTRS, data, sftp.XattrNames, path)).names

    async def remove_xattr(self, path: bytes, name: bytes) -> None:
        """Removes an extended attribute."""
        data = sftp.NamedXattr(path, name).encode()
        await self._extended_status(sftp.REMOVE_XATTR, data, path)


def _packet(message: Message) -> bytes:
    payload = message.encode()
    return len(payload).to_bytes(4, "big") + payload


def _status_code(packet: memoryview) -> int:
    if len(packet) < _BODY_AT + _STATUS_CODE.size:
        raise MalformedMessage("a STATUS without its code")
    code: int = _STATUS_CODE.unpack_from(packet, _BODY_AT)[0]
    return code


def _data_limit(announced: int) -> int:
    """The bytes of one request, where the server says that it takes ``announced``."""
    return min(announced, sftp.DATA_LIMIT) or sftp.PLAIN_DATA_LIMIT


def _only(names: sftp.Names) -> bytes:
    if len(names.entries) != 1:
        raise ProtocolError(f"{len(names.entries)} names where one was expected")
    return names.entries[0].filename


def _unsupported(name: str, path: bytes | None) -> StatusError:
    return StatusError(sftp.OP_UNSUPPORTED, f"the server has no {name}", errno.EOPNOTSUPP, path)
