"""The status code of each error of the system, and the errors of the server itself."""

from __future__ import annotations

import errno
import os

from ..wire.sftp import BAD_MESSAGE, FAILURE, NO_SUCH_FILE, OP_UNSUPPORTED, PERMISSION_DENIED

# As errno_to_portable in OpenSSH's sftp-server.c; any other error is a FAILURE.
CODES = {
    errno.ENOENT: NO_SUCH_FILE,
    errno.ENOTDIR: NO_SUCH_FILE,
    errno.EBADF: NO_SUCH_FILE,
    errno.ELOOP: NO_SUCH_FILE,
    errno.EPERM: PERMISSION_DENIED,
    errno.EACCES: PERMISSION_DENIED,
    errno.EFAULT: PERMISSION_DENIED,
    errno.ENAMETOOLONG: BAD_MESSAGE,
    errno.EINVAL: BAD_MESSAGE,
    errno.ENOSYS: OP_UNSUPPORTED,
    errno.EOPNOTSUPP: OP_UNSUPPORTED,
}


class Refused(Exception):
    """A request that is answered by a STATUS other than the system's.

    ``number`` is the errno that says it best.
    """

    def __init__(self, code: int, message: str, number: int) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.number = number


def refused(error: OSError) -> Refused:
    """Returns the STATUS of a system's error; its message is the system's reason."""
    number = error.errno or errno.EIO
    return Refused(CODES.get(number, FAILURE), os.strerror(number), number)


def unsupported() -> Refused:
    """Returns the answer to a request that this server does not have."""
    return Refused(OP_UNSUPPORTED, "Operation unsupported", errno.EOPNOTSUPP)


def denied() -> Refused:
    """Returns the answer to a request that the server's options do not allow."""
    return Refused(PERMISSION_DENIED, "Permission denied", errno.EACCES)
