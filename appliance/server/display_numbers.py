"""The numbers of forwarded displays, and whose each was last.

A session gets the number back that an earlier session of the same user and key had, if it is free,
so that shells in tmux or screen find their display again after the client has reconnected.

The monitors of a server share this memory, which ends with the server: one slot for each number, in
a file without a name that the listener makes. Workers do not have it.
"""

import hashlib
import os
import pwd
from typing import Final

from ..crypto.keys import PublicKey

COUNT: Final = 1000  # numbers from x11_display_offset on; OpenSSH's MAX_DISPLAYS
_SLOT: Final = 16  # bytes
_EMPTY: Final = bytes(_SLOT)


def owner_of(user: pwd.struct_passwd, key: PublicKey | None) -> bytes:
    """Returns the mark of a user and the key that logged in; None stands for a password."""
    name = user.pw_name.encode() + b"\0"
    return hashlib.sha256(name + (b"" if key is None else key.blob)).digest()[:_SLOT]


class DisplayNumbers:
    """Remembers the last owner of each display number."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("display numbers")

    def fileno(self) -> int:
        """The descriptor that monitors keep."""
        return self._fd

    def in_order(self, first: int, owner: bytes) -> list[int]:
        """Returns the numbers from ``first`` on, in the order in which ``owner`` tries them.

        Those that the owner had come first, then those that nobody had.
        """
        table = os.pread(self._fd, COUNT * _SLOT, first * _SLOT).ljust(COUNT * _SLOT, b"\0")
        rank = {owner: 0, _EMPTY: 1}
        slots = (table[at : at + _SLOT] for at in range(0, len(table), _SLOT))
        ranks = [rank.get(slot, 2) for slot in slots]
        return sorted(range(first, first + COUNT), key=lambda number: ranks[number - first])

    def note(self, number: int, owner: bytes) -> None:
        """Remembers that ``owner`` has this number now."""
        os.pwrite(self._fd, owner, number * _SLOT)

    def close(self) -> None:
        """Closes this process's descriptor."""
        os.close(self._fd)
