"""What is known of all names in one directory."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from ..aio.tasks import Future
from ..wire import fuse

FOR_EVER: Final = float("inf")  # until we are told otherwise
NEVER: Final = float("-inf")


class Listing:
    """The names in a directory, each with packed attributes; b'' where they are not known."""

    __slots__ = (
        "_changes",
        "_until",
        "_waiting",
        "begun",
        "coming",
        "entries",
        "expires",
        "failure",
        "is_ahead",
        "is_complete",
        "is_exact",
        "read_at",
    )

    def __init__(self, begun: float) -> None:
        self.begun = begun  # when it was asked for
        self.entries: dict[bytes, bytes] = {}
        self.coming: list[bytes] = []  # the names so far, while they come
        self.is_complete = False
        self.is_exact = True  # no name may have been made or removed
        self.expires = 0.0  # of the names
        self._until = 0.0
        self.failure: OSError | None = None
        self.is_ahead = False  # nobody has asked for it yet
        self.read_at = NEVER  # when a program last began to read the directory
        self._changes: dict[bytes, bytes | None] = {}  # our own, while the listing comes
        self._waiting: list[Future[None]] = []

    def change(self, name: bytes, packed: bytes | None) -> None:
        """Takes note of a name that we have made, changed or removed (None)."""
        if packed is None:
            self.entries.pop(name, None)
        else:
            self._come(name)
            self.entries[name] = packed
        if not self.is_complete:
            self._changes[name] = packed

    def doubt(self, name: bytes) -> None:
        """Takes note that a name was made, changed or removed by somebody."""
        self._come(name)
        self.entries[name] = b""
        self.is_exact = False

    def _come(self, name: bytes) -> None:
        """Shows a name to the programs that read the listing while it comes, once."""
        if self.is_over or name in self.entries:
            return
        if name not in self._changes or name not in self.coming:  # it was not removed before
            self.coming.append(name)

    def add(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes entries from the server."""
        known, names, changes = self.entries, self.coming, self._changes
        for name, packed in entries:
            if name in changes or name in known:
                continue
            known[name] = packed
            names.append(name)
        self._tell()

    def ended(self, failure: OSError | None, expires: float, until: float) -> None:
        """Ends the listing, which holds until ``expires``, attributes at least ``until``."""
        self.failure = failure
        self._until = until
        self.is_complete = failure is None
        self.expires = expires
        self.coming = []  # a program that reads it keeps the names
        self._changes.clear()
        self._tell()

    def expires_of(self, packed: bytes) -> float:
        """Returns until when attributes in the listing hold.

        While the server tells of changes in the directory, those of a file hold, but not those of a
        directory, which change by what is made in it, or of a file that has other names.
        """
        if self.expires != FOR_EVER:
            return self.expires
        is_told = not stat.S_ISDIR(fuse.mode_in(packed)) and fuse.links_in(packed) == 1
        return FOR_EVER if is_told else self._until

    @property
    def is_over(self) -> bool:
        """Whether no more entries come."""
        return self.is_complete or self.failure is not None

    def more(self) -> Future[None]:
        """Returns a future that is done when more entries have come, or the end."""
        future: Future[None] = Future()
        self._waiting.append(future)
        return future

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.resolve(None)
