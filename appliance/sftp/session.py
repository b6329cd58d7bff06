"""What all requests of one client share."""

from __future__ import annotations

import errno
import os

from ..errors import system_error
from ..wire.sftp import Attributes
from .failures import denied
from .file_attributes import pack, pack_with_identity
from .journal import Journal
from .listing import LongNames, NoLongNames
from .locks import Locks
from .open_files import OpenFiles
from .replies import Replies

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..wire.codec import Record
    from .watches import Watches


_PATH_LIMIT = 4096  # PATH_MAX of Linux


class Settings:
    """What the command line says about requests."""

    def __init__(
        self,
        read_only: bool = False,
        denied: Collection[str] = (),
        allowed: Collection[str] | None = None,
        ignores_setstat: bool = False,
        home: bytes = b"",
    ) -> None:
        """``allowed``: None for all but ``denied``. ``home`` is that of the user."""
        self.read_only = read_only
        self.denied = denied
        self.allowed = allowed
        self.ignores_setstat = ignores_setstat
        self.home = home

    def permits(self, row: Row) -> bool:
        """Whether the options -R, -P and -p permit a request.

        An extension of ours is permitted if that is true of the requests which it spares.
        """
        if row.writes and self.read_only:
            return False
        if row.name in self.denied:
            return False
        if self.allowed is None or row.name in self.allowed:
            return not any(name in self.denied for name in row.spares)
        return bool(row.spares) and all(
            name in self.allowed and name not in self.denied for name in row.spares
        )


class Row:
    """A request: its name for -Q, its record and its handler."""

    __slots__ = ("handle", "name", "paths", "record", "spares", "writes")

    def __init__(
        self,
        name: str,
        record: type[Record] | None,
        handle: Callable[..., None],
        *,
        paths: tuple[str, ...] = (),
        writes: bool = False,
        spares: tuple[str, ...] = (),
    ) -> None:
        """``handle`` takes the session, the request's number, and the record or the raw packet.

        ``paths`` names the fields that are paths. With ``writes``, it changes something, and
        those are what it changes. ``spares`` names the plain requests that do the same.
        """
        self.name = name
        self.record = record
        self.handle = handle
        self.paths = paths
        self.writes = writes
        self.spares = spares


class Session:
    """The state of one client's session."""

    def __init__(
        self, settings: Settings, journal: Journal, write: Callable[[memoryview], None]
    ) -> None:
        """``write`` takes replies."""
        self.settings = settings
        self.journal = journal
        self.replies = Replies(write)
        self.files = OpenFiles()
        self.longnames: LongNames = LongNames()
        self.locks = Locks(self.replies, self.files)
        self.watches: Watches | None = None  # once there is one
        self.pack = pack  # what makes attributes
        self.tells_identities = False

    def tell_identities(self) -> None:
        """Adds a FileIdentity to all attributes from now on, and leaves longnames out."""
        self.pack = pack_with_identity
        self.tells_identities = True
        self.longnames = NoLongNames()

    def change(
        self, name: bytes, attributes: Attributes, apply: Callable[[Attributes], None]
    ) -> None:
        """Changes attributes by ``apply``, unless SETSTAT is ignored; raises OSError."""
        self.journal.attributes(
            name, attributes.size, attributes.permissions, attributes.times, attributes.owner
        )
        if not self.settings.ignores_setstat:
            apply(attributes)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        """Opens a file; raises OSError, and Refused for one to be written in read-only mode.

        Nothing that is opened makes the server wait: not a FIFO without a far end, not a
        terminal, not a file with a lease. A terminal does not become that of the server.

        The memory of a process, this one's as well, is not written: whoever may do that runs
        programs, and an account that is for files alone may not.
        """
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & (os.O_CREAT | os.O_TRUNC)
        if writes:
            self.journal.begin("write", path)
            if self.settings.read_only:
                raise denied()
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
        if writes and _is_memory(descriptor):
            os.close(descriptor)
            raise system_error(errno.EACCES)
        return descriptor


def _is_memory(descriptor: int) -> bool:
    """Whether this is /proc/PID/mem, by whatever path it was opened (proc(5))."""
    try:
        path = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:  # a chroot without /proc
        return False
    folder, name = os.path.split(path)
    is_named_so = name == b"mem" and os.path.basename(folder).isdigit()
    return is_named_so and not os.fstatvfs(descriptor).f_blocks  # as no disk says


def resolved(path: bytes) -> bytes:
    """Returns the absolute path without links, '.' and '..'; its last part need not exist."""
    if len(path) >= _PATH_LIMIT:  # which the system could not open, and we would split for long
        raise system_error(errno.ENAMETOOLONG)
    try:
        found = os.path.realpath(path or b".")
    except RecursionError:  # a link to a link to a link ...
        raise system_error(errno.ELOOP) from None
    os.stat(os.path.dirname(found) + b"/.")  # the rest must exist and be a directory
    if os.path.islink(found):
        raise system_error(errno.ELOOP)
    return found
