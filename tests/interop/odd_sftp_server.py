"""A server of SFTP version 3 with the oddities of servers in the field, and of hostile ones.

    python odd_sftp_server.py [oddity ...]

It serves the files of this machine on its standard input and output, without any extension.
"""

import contextlib
import os
import random
import stat
import struct
import sys
from collections.abc import Callable, Iterator

from appliance.wire import sftp
from appliance.wire.codec import Message
from appliance.wire.sftp import Attributes, NamedFile

ODDITIES = {
    "out-of-order": "answers what was asked together in any order",
    "short-reads": "answers a READ with 32 KiB at most",
    "shortest-reads": "answers a READ with 1000 bytes at most",
    "cuts-writes": "takes no WRITE of more than 32 KiB",
    "no-setstat": "refuses SETSTAT and FSETSTAT",
    "no-attributes": "leaves permissions and times out",
    "no-messages": "sends a STATUS without its texts",
    "one-name": "sends one name a reply",
    "clock": "believes that it is 1970",
    # hostile
    "climbs": "lists a name that leaves the directory",
    "setuid": "says that each file is setuid root",
    "endless": "never ends a file",
    "talks": "begins with what a shell's files print",
    "huge-packet": "announces 4 GiB",
    "other-id": "answers what nobody asked",
    "wrong-type": "answers with what was not asked for",
    "no-names": "answers READDIR without names",
    "dies": "ends after 300 KB",
    "escapes": "sends what a terminal acts on",
    "floods": "goes on sending once its input has ended",
    "other-tree": "lists a tree that was not asked for",
    "bad-names": "lists names that no file can have",
    "other-types": "says of each file that it is of another type than in the listing",
    "same-handle": "has one handle for all",
    "huge-sizes": "says that each file has 2^63 bytes and more",
    "odd-times": "has times in the far future",
    "nobody": "says that each file belongs to user and group -1",
    "same-name": "lists the same name without end",
    "cut-replies": "cuts each reply that has attributes, after the first ones",
    "leads-out": "has symbolic links that lead out",
    "wrong-type-later": "answers with what was not asked for, after a while",
    "empty-reads": "answers a READ without data",
}
_KINDS = {
    kind.number: kind
    for kind in vars(sftp).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}
LATER = 12  # replies, by which a mount is there
BAD_NAMES = (b"", b"a/b", b"/etc", b"..", b"../..", b"nul\0nul", b"x" * 10_000, b"y" * 256, b".")
Answer = Message | list[Message]


class Server:
    """Files by handle, and an answer for each request."""

    def __init__(self, oddities: set[str]) -> None:
        self._odd = oddities
        self._files: dict[bytes, int] = {}
        self._listings: dict[bytes, list[NamedFile]] = {}
        self._handles = 0
        self._sent = 0
        self._replies = 0

    def run(self) -> None:
        """Serves until the end of the input."""
        out = sys.stdout.buffer
        if "talks" in self._odd:
            out.write(b"Welcome to this host!\n")
        for requests in self._batches():
            answers = [self._answer(request) for request in requests]
            if "out-of-order" in self._odd:
                random.shuffle(answers)
            for answer in answers:
                data = self._encoded(answer)
                self._sent += len(data)
                if "dies" in self._odd and self._sent > 300_000:
                    sys.exit(1)
                out.write(len(data).to_bytes(4, "big") + data)
            out.flush()
        while "floods" in self._odd:
            out.write(bytes(1 << 16))

    def _encoded(self, answer: Message) -> bytes:
        if "no-messages" in self._odd and isinstance(answer, sftp.Status):
            return answer.encode()[:9]
        if "other-id" in self._odd and isinstance(answer, sftp.AttrsReply):
            answer.id ^= 0x40000000
        if "wrong-type" in self._odd and isinstance(answer, sftp.AttrsReply):
            return sftp.Handle(answer.id, b"x").encode()
        self._replies += 1
        is_later = self._replies > LATER
        if "wrong-type-later" in self._odd and is_later and not isinstance(answer, sftp.Handle):
            return sftp.Handle(getattr(answer, "id", 0), b"x").encode()
        if "cut-replies" in self._odd and is_later and not isinstance(answer, sftp.Status):
            return answer.encode()[:-3]
        if "huge-packet" in self._odd and isinstance(answer, sftp.AttrsReply):
            sys.stdout.buffer.write(b"\xff\xff\xff\xff")
        return answer.encode()

    def _batches(self) -> Iterator[list[Message]]:
        buffer = b""
        while data := os.read(0, 1 << 20):
            buffer += data
            requests = []
            while len(buffer) >= 4 and len(buffer) >= 4 + (n := struct.unpack(">I", buffer[:4])[0]):
                payload, buffer = buffer[4 : 4 + n], buffer[4 + n :]
                requests.append(_KINDS[payload[0]].decode(payload))
            yield requests

    def _answer(self, request: Message) -> Message:
        if isinstance(request, sftp.Init):
            return sftp.Version(3, ((sftp.LOOKUP_TREE, b"1"),) if "other-tree" in self._odd else ())
        if isinstance(request, sftp.Extended):  # its only one
            other = sftp.Tree((sftp.Listing(b"other", True, ()),))
            return sftp.ExtendedReply(request.id, other.encode())
        number: int = request.id  # type: ignore[attr-defined]
        try:
            return self._ANSWERS[type(request)](self, request)
        except KeyError:
            return sftp.Status(number, sftp.OP_UNSUPPORTED, "no such request")
        except FileNotFoundError:
            text = "\x1b]0;owned\x07No such file" if "escapes" in self._odd else "No such file"
            return sftp.Status(number, sftp.NO_SUCH_FILE, text)
        except PermissionError:
            return sftp.Status(number, sftp.PERMISSION_DENIED, "Permission denied")
        except OSError:
            return sftp.Status(number, sftp.FAILURE, "Failure")

    def _attributes(self, status: os.stat_result) -> Attributes:
        if "no-attributes" in self._odd:
            return Attributes(size=status.st_size)
        mode = status.st_mode | (0o6000 if "setuid" in self._odd else 0)
        times = int(status.st_atime), int(status.st_mtime)
        if "clock" in self._odd:
            times = (7, 7)
        if "odd-times" in self._odd:
            times = (0xFFFFFFFF, 0xFFFFFFFE)
        owner = (status.st_uid, status.st_gid)
        if "nobody" in self._odd:
            owner = (0xFFFFFFFF, 0xFFFFFFFF)
        size = status.st_size
        if "huge-sizes" in self._odd:
            size = random.choice((1 << 63, (1 << 64) - 1, (1 << 63) - 1))
        return Attributes(size, owner, mode, times)

    def _stat(self, request: sftp.Stat) -> Message:
        return sftp.AttrsReply(request.id, self._attributes(os.stat(request.path)))

    def _lstat(self, request: sftp.LStat) -> Message:
        return sftp.AttrsReply(request.id, self._attributes(os.lstat(request.path)))

    def _fstat(self, request: sftp.FStat) -> Message:
        return sftp.AttrsReply(request.id, self._attributes(os.fstat(self._files[request.handle])))

    def _handle(self) -> bytes:
        self._handles += 1
        return b"h" if "same-handle" in self._odd else b"h%d" % self._handles

    def _open(self, request: sftp.Open) -> Message:
        flags = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY, 3: os.O_RDWR}[request.pflags & 3]
        for bit, flag in (
            (sftp.CREATE, os.O_CREAT),
            (sftp.TRUNCATE, os.O_TRUNC),
            (sftp.EXCLUSIVE, os.O_EXCL),
        ):
            flags |= flag if request.pflags & bit else 0
        mode = request.attrs.permissions
        handle = self._handle()
        self._files[handle] = os.open(request.filename, flags, 0o666 if mode is None else mode)
        return sftp.Handle(request.id, handle)

    def _close(self, request: sftp.Close) -> Message:
        if request.handle in self._files:
            os.close(self._files.pop(request.handle))
        else:
            del self._listings[request.handle]
        return sftp.Status(request.id, sftp.OK)

    def _read(self, request: sftp.Read) -> Message:
        length = request.length
        if "short-reads" in self._odd:
            length = min(length, 32 << 10)
        if "shortest-reads" in self._odd:
            length = min(length, 1000)
        if "empty-reads" in self._odd:
            return sftp.Data(request.id, b"")
        if "endless" in self._odd:
            return sftp.Data(request.id, bytes(length))
        data = os.pread(self._files[request.handle], length, request.offset)
        return sftp.Data(request.id, data) if data else sftp.Status(request.id, sftp.EOF, "EOF")

    def _write(self, request: sftp.Write) -> Message:
        if "cuts-writes" in self._odd and len(request.data) > 32 << 10:
            return sftp.Status(request.id, sftp.FAILURE, "too long")
        os.pwrite(self._files[request.handle], request.data, request.offset)
        return sftp.Status(request.id, sftp.OK)

    def _opendir(self, request: sftp.OpenDir) -> Message:
        names = [b".", b"..", *sorted(os.listdir(request.path))]
        if "climbs" in self._odd:
            names.append(b"../climbed")
        if "bad-names" in self._odd:
            names += BAD_NAMES
        handle = self._handle()
        self._listings[handle] = [
            NamedFile(name, b"-rw-r--r-- " + name, self._attributes_in(request.path, name))
            for name in names
        ]
        return sftp.Handle(request.id, handle)

    def _attributes_in(self, path: bytes, name: bytes) -> Attributes:
        try:
            attributes = self._attributes(os.lstat(os.path.join(path, name)))
            if "other-types" in self._odd and attributes.permissions is not None:
                attributes.permissions ^= stat.S_IFREG ^ stat.S_IFDIR
            return attributes
        except (OSError, ValueError):
            return Attributes(size=3, permissions=stat.S_IFREG | 0o644)

    def _readdir(self, request: sftp.ReadDir) -> Message:
        entries = self._listings[request.handle]
        if "no-names" in self._odd:
            return sftp.Names(request.id, ())
        if "same-name" in self._odd:
            return sftp.Names(request.id, (NamedFile(b"file", b"file", Attributes(size=3)),) * 100)
        if not entries:
            return sftp.Status(request.id, sftp.EOF, "EOF")
        count = 1 if "one-name" in self._odd else 100
        some, self._listings[request.handle] = entries[:count], entries[count:]
        return sftp.Names(request.id, tuple(some))

    def _set(self, request: sftp.SetStat | sftp.FSetStat) -> Message:
        if "no-setstat" in self._odd:
            return sftp.Status(request.id, sftp.OP_UNSUPPORTED, "not here")
        where = request.path if isinstance(request, sftp.SetStat) else self._files[request.handle]
        attrs = request.attrs
        if attrs.size is not None:
            os.truncate(where, attrs.size)
        if attrs.permissions is not None:
            os.chmod(where, attrs.permissions & 0o7777)
        if attrs.times is not None:
            os.utime(where, attrs.times)
        return sftp.Status(request.id, sftp.OK)

    def _remove(self, request: sftp.Remove) -> Message:
        os.unlink(request.filename)
        return sftp.Status(request.id, sftp.OK)

    def _mkdir(self, request: sftp.MkDir) -> Message:
        mode = request.attrs.permissions
        os.mkdir(request.path, 0o777 if mode is None else mode)
        return sftp.Status(request.id, sftp.OK)

    def _rmdir(self, request: sftp.RmDir) -> Message:
        os.rmdir(request.path)
        return sftp.Status(request.id, sftp.OK)

    def _rename(self, request: sftp.Rename) -> Message:
        os.link(request.oldpath, request.newpath)
        os.unlink(request.oldpath)
        return sftp.Status(request.id, sftp.OK)

    def _realpath(self, request: sftp.RealPath) -> Message:
        path = os.path.realpath(request.path)
        return sftp.Names(request.id, (NamedFile(path, path, Attributes()),))

    def _readlink(self, request: sftp.ReadLink) -> Message:
        path = b"../../etc" if "leads-out" in self._odd else os.readlink(request.path)
        return sftp.Names(request.id, (NamedFile(path, path, Attributes()),))

    def _symlink(self, request: sftp.SymLink) -> Message:
        os.symlink(request.targetpath, request.linkpath)
        return sftp.Status(request.id, sftp.OK)

    _ANSWERS: dict[type[Message], Callable[["Server", "object"], Message]] = {
        sftp.Stat: _stat,  # type: ignore[dict-item]
        sftp.LStat: _lstat,  # type: ignore[dict-item]
        sftp.FStat: _fstat,  # type: ignore[dict-item]
        sftp.Open: _open,  # type: ignore[dict-item]
        sftp.Close: _close,  # type: ignore[dict-item]
        sftp.Read: _read,  # type: ignore[dict-item]
        sftp.Write: _write,  # type: ignore[dict-item]
        sftp.OpenDir: _opendir,  # type: ignore[dict-item]
        sftp.ReadDir: _readdir,  # type: ignore[dict-item]
        sftp.SetStat: _set,  # type: ignore[dict-item]
        sftp.FSetStat: _set,  # type: ignore[dict-item]
        sftp.Remove: _remove,  # type: ignore[dict-item]
        sftp.MkDir: _mkdir,  # type: ignore[dict-item]
        sftp.RmDir: _rmdir,  # type: ignore[dict-item]
        sftp.Rename: _rename,  # type: ignore[dict-item]
        sftp.RealPath: _realpath,  # type: ignore[dict-item]
        sftp.ReadLink: _readlink,  # type: ignore[dict-item]
        sftp.SymLink: _symlink,  # type: ignore[dict-item]
    }


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(ODDITIES)
    assert not unknown, unknown
    with contextlib.suppress(ConnectionError):
        Server(set(sys.argv[1:])).run()
    os._exit(0)
