"""What an SFTP server reports of its work to the monitor of its connection.

One FileChange in a datagram each. The program is the user's, so that the reader trusts nothing.
"""

from .codec import Name, Record, String, UInt32

# Our own choices
PATH_LIMIT = 4096  # bytes; PATH_MAX of Linux
DATAGRAM = 2 * PATH_LIMIT + 256  # bytes

OPERATIONS = frozenset(
    (
        "write",
        "setstat",
        "remove",
        "mkdir",
        "rmdir",
        "rename",
        "symlink",
        "hardlink",
        "set-xattr",
        "remove-xattr",
    )
)


class FileChange(Record):
    """A file that was changed, or was not: ``error`` is then the system's errno."""

    operation: Name
    path: String
    target: String  # the new name of rename and hardlink, the path of a symlink
    error: UInt32
