"""Key files as a command reads and writes them.

A file is written whole or not at all: it is made under another name in the same directory, 0600,
never through a link that another user left there, and is renamed once it is on the disk.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Final

from ..crypto import key_files
from ..crypto.key_files import KeyFileError, WrongPassphrase
from ..crypto.keys import PrivateKey
from ..errors import UsageError

# Our own choices
FILE_LIMIT: Final = 1 << 20  # bytes: a key is far smaller, a known_hosts file hardly larger
PROMPTS: Final = 3  # how often a passphrase is asked for before we give up


def write_whole(path: str, data: bytes, mode: int = 0o600, replace: bool = False) -> None:
    """Writes a file whole or not at all; raises FileExistsError unless it may be replaced.

    At any moment, and after any crash, ``path`` has its old content or all of ``data``. A link in
    its place is replaced and never followed.
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, mode), "wb") as stream:
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                if replace:
                    os.replace(temporary, path)
                else:
                    _rename_to_nothing(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:  # the user does not know the temporary name
        raise OSError(error.errno, error.strerror, path) from error


def _rename_to_nothing(source: str, target: str) -> None:
    """Renames unless there is a target, even one that appears at this moment."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # FAT, which boot partitions are, has no links.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)
    else:
        os.unlink(source)


def read_file(path: str, private: bool = False) -> bytes:
    """Returns a file's bytes ('-': standard input); others must have no access to a private key."""
    if path == "-":
        return sys.stdin.buffer.read(FILE_LIMIT)
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
            raise UsageError(f"{path}: not a file")
        if private and status.st_uid == os.getuid() and status.st_mode & 0o077:
            raise UsageError(
                f"{path}: others may read or write this private key; try chmod 600 {path}"
            )
        data = stream.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{path}: larger than {FILE_LIMIT} bytes, so neither a key nor a list")
    return data


def load_private(path: str, passphrase: bytes | None) -> PrivateKey:
    """Returns the private key of a file; asks for its passphrase unless one is given."""
    data = read_file(path, private=True)
    try:
        if passphrase is not None:
            return key_files.load_private_key(data, lambda: passphrase)
        for attempt in range(PROMPTS):
            try:
                return key_files.load_private_key(data, lambda: ask(f"passphrase for {path}"))
            except WrongPassphrase:
                if attempt == PROMPTS - 1:
                    raise
                print("Bad passphrase, try again.", file=sys.stderr)
        raise AssertionError("the last attempt returns or raises")
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error


def ask(what: str) -> bytes:
    """Asks for a line without echo; raises UsageError if nobody can be asked."""
    import getpass
    import warnings

    with warnings.catch_warnings():  # about echo: without a terminal nobody sees it
        warnings.simplefilter("ignore", getpass.GetPassWarning)
        try:
            return os.fsencode(getpass.getpass(f"Enter {what}: "))
        except EOFError as error:
            raise UsageError("a passphrase is needed; give it with -P or -N") from error


def home_file(name: str) -> str:
    """Returns a file's path in ~/.ssh of the account's home, not $HOME, as ssh-keygen does."""
    import pwd

    return os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".ssh", name)
