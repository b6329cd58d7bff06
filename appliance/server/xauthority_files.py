"""The Xauthority files in which a session's programs find the cookie of their display.

Everything here runs in a process of the user, who owns the files and may have put anything there.
The cookie goes into the user's own file, with the others that it holds and under the locks of
xauth, or else into a file of the session's own: where the home is read-only, full or missing, the
lock is held, or the user's file is none that we read.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Final, NamedTuple

from ..errors import MalformedMessage
from ..wire.x11 import (
    FAMILY_INTERNET,
    FAMILY_INTERNET6,
    FAMILY_LOCAL,
    XauthorityEntry,
)
from ..x11.xauthority import with_entries, without_cookie

STALE_SECONDS: Final = 600  # of a lock; xauth's

# Our own choices
LOCK_SECONDS: Final = 2.0  # that a program waits at most for its display's cookie
LOCK_PAUSE: Final = 0.02  # seconds between two tries
FILE_LIMIT: Final = 1 << 20  # bytes
TEMPORARY: Final = b"/tmp/culvert-xauthority-"  # of folders, made by whoever needs one

Environment = MutableMapping[bytes, bytes]


class Display(NamedTuple):
    """A session's display, as its programs and ~/.ssh/rc are told of it."""

    number: int
    screen: int
    host: bytes  # this machine's name
    is_local: bool  # it listens on the loopback only (X11UseLocalhost)
    protocol: bytes
    cookie: bytes  # hexadecimal
    token: bytes  # in a name that nobody else can have taken

    @property
    def name(self) -> bytes:
        """The value of DISPLAY."""
        host = b"localhost" if self.is_local else self.host
        return b"%s:%d.%d" % (host, self.number, self.screen)

    def entries(self) -> list[XauthorityEntry]:
        """Returns the entries that lead to the cookie.

        X clients look for localhost as for the Unix-domain sockets of this machine.
        """
        places = [(FAMILY_LOCAL, self.host)]
        if not self.is_local:
            places += _addresses(self.host)
        number, cookie = b"%d" % self.number, bytes.fromhex(self.cookie.decode())
        return [XauthorityEntry(*place, number, self.protocol, cookie) for place in places]

    def without_cookie(self, data: bytes) -> bytes:
        """Returns a file's bytes without those entries; raises MalformedMessage."""
        return without_cookie(data, b"%d" % self.number, bytes.fromhex(self.cookie.decode()))


def _addresses(host: bytes) -> list[tuple[int, bytes]]:
    """Returns the families and addresses that programs find for this machine's name."""
    families = {socket.AF_INET: FAMILY_INTERNET, socket.AF_INET6: FAMILY_INTERNET6}
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    places = [
        (families[family], socket.inet_pton(family, str(address[0]).partition("%")[0]))
        for family, _, _, _, address in found
        if family in families
    ]
    return list(dict.fromkeys(places))


def users_file(environment: Environment) -> bytes:
    """Returns the absolute path of the file that X clients read (Xau(3))."""
    given = environment.get(b"XAUTHORITY") or b".Xauthority"
    return os.path.abspath(os.path.join(environment[b"HOME"], given))


def add(display: Display, environment: Environment) -> bytes:
    """Writes the cookie, and returns the path of the file that has it; raises OSError.

    It waits for LOCK_SECONDS at most.
    """
    path, entries = users_file(environment), display.entries()
    try:
        _change(path, lambda data: with_entries(data, entries))
    except (OSError, MalformedMessage):
        path = _write_own(display, environment, with_entries(b"", entries))
    return path


def remove(display: Display, environment: Environment) -> None:
    """Removes what ``add`` has written, wherever that was."""
    _remove_own(display, environment)
    with contextlib.suppress(OSError, MalformedMessage):
        _change(users_file(environment), display.without_cookie)


# -- the user's file ---------------------------------------------------------------------


def _change(path: bytes, change: Callable[[bytes], bytes]) -> None:
    """Replaces the file at once by a changed one, under its lock; raises OSError.

    An empty file is removed. A symbolic link stays one. MalformedMessage comes from ``change``.
    """
    with _locked(path):
        target = os.path.realpath(path)
        before = _read(target)
        after = change(before)
        if after == before:
            return
        if not after:
            os.unlink(target)
            return
        new = target + b"-n"  # xauth's name for it
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # left behind by an xauth that was killed
        _write(new, after)
        try:
            os.rename(new, target)
        except OSError:
            os.unlink(new)
            raise


def _read(path: bytes) -> bytes:
    """Returns the content of a regular file, b'' if there is none; raises OSError."""

    def opener(_: object, flags: int) -> int:  # a FIFO, or a device, must not make us wait
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)

    try:
        with open(path, "rb", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = file.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        return b""
    if len(data) > FILE_LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data


def _write(path: bytes, data: bytes) -> None:
    """Makes a file that only the user may read; raises OSError, and then there is none."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError:
        os.unlink(path)
        raise


@contextlib.contextmanager
def _locked(path: bytes) -> Iterator[None]:
    """Holds the lock of an Xauthority file, as XauLockAuth of Xau(3) does; raises OSError.

    The lock is held by whoever has made the link PATH-l to the file PATH-c.
    """
    first, second = path + b"-c", path + b"-l"
    _take_lock(first, second)
    try:
        yield
    finally:
        for name in (first, second):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _take_lock(first: bytes, second: bytes) -> None:
    until = time.monotonic() + LOCK_SECONDS
    has_first = False
    try:
        while True:
            for name in (second, first):
                _remove_stale(name)
            has_first = has_first or _make(first)
            if has_first and _link(first, second):
                return
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, "the file is locked")
            time.sleep(LOCK_PAUSE)
    except OSError:
        if has_first:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(first)
        raise


def _link(first: bytes, second: bytes) -> bool:
    """Makes a hard link; returns False if there is one. Raises OSError."""
    try:
        os.link(first, second)
    except FileExistsError:
        return False
    return True


def _make(path: bytes) -> bool:
    """Makes an empty file; returns False if there is one. Raises OSError."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return False
    return True


def _remove_stale(path: bytes) -> None:
    """Removes a part of a lock whose process has died.

    Of several processes one does it: a second one could remove the lock that the first has taken.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, there = os.fstat(fd), os.lstat(path)
        is_same = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
        if is_same and time.time() - ours.st_ctime > STALE_SECONDS:
            os.unlink(path)
    except OSError:
        pass
    finally:
        os.close(fd)


# -- a file of the session's own -----------------------------------------------------------


def _own_folders(display: Display, environment: Environment) -> list[bytes]:
    """Returns folders for the session's own file, in the order of preference.

    All but the last have the same name for the next session, so that shells which go on after this
    one find the cookie of the next one as well. Somebody else may have taken such a name in /tmp.
    """
    uid = b"%d" % os.geteuid()
    given = environment.get(b"XDG_RUNTIME_DIR", b"")
    runtime = [given] if os.path.isabs(given) else []
    return [*runtime, b"/run/user/" + uid, TEMPORARY + uid, TEMPORARY + display.token]


def _is_private(folder: bytes) -> bool:
    """Whether this is the user's directory, where nobody else may do anything."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    mode = status.st_mode
    return stat.S_ISDIR(mode) and status.st_uid == os.geteuid() and not mode & 0o077


def _own_file(folder: bytes, display: Display) -> bytes:
    return os.path.join(folder, b"culvert-xauthority-%d" % display.number)


def _write_own(display: Display, environment: Environment, data: bytes) -> bytes:
    """Writes a file for this session only, and returns its path; raises OSError."""
    problem = OSError(errno.EACCES, os.strerror(errno.EACCES))
    for folder in _own_folders(display, environment):
        if folder.startswith(TEMPORARY):
            with contextlib.suppress(OSError):
                os.mkdir(folder, 0o700)
        if not _is_private(folder):
            continue
        path = _own_file(folder, display)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a session whose server was killed
            _write(path, data)
        except OSError as error:
            problem = error
            _remove_if_empty(folder)
        else:
            return path
    raise problem


def _remove_own(display: Display, environment: Environment) -> None:
    """Removes the session's own file, if it is not the next session's by now."""
    for folder in _own_folders(display, environment):
        path = _own_file(folder, display)
        with contextlib.suppress(OSError, MalformedMessage):
            if _is_private(folder) and not display.without_cookie(_read(path)):
                os.unlink(path)
                _remove_if_empty(folder)


def _remove_if_empty(folder: bytes) -> None:
    if folder.startswith(TEMPORARY):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
