"""The answers of an X server that the round-trip relay remembers, for all programs of a session.

Atoms, fonts and opcodes hold as long as the server runs without a reset. So what is known is bound
to a connection that stays (foreknown.py): it keeps the server from a reset, and ends with it.
"""

import struct
from typing import Final

from ..wire.x11 import ERROR, REPLY
from .round_trips import (
    CORE,
    EXTENSIONS,
    GET_ATOM_NAME,
    INTERN_ATOM,
    QUERY_EXTENSION,
    QUERY_FONT,
    Kind,
)

# X Window System Protocol
_BAD_FONT: Final = 7

# Our own choice
LIMIT: Final = 8 << 20  # bytes of all answers


class Knowledge:
    """Answers by the keys of their requests: opcode, minor opcode, and what row.key tells."""

    def __init__(self) -> None:
        self.extensions: dict[int, bytes] = {}  # by their major opcodes
        self.is_valid = True
        self._answers: dict[bytes, bytes] = {}
        self._size = 0

    def answer(self, key: bytes) -> bytes:
        """Returns the messages of an answer, whose sequence numbers mean nothing; or nothing."""
        return self._answers.get(key, b"")

    def end(self) -> None:
        """Forgets everything for good: the server is another one, or may be."""
        self.is_valid = False
        self._answers.clear()
        self._size = 0

    def learn(self, key: bytes, answer: bytes) -> None:
        """Remembers an answer of the server, if it is one that holds."""
        opcode = key[0]
        if answer[0] == ERROR and not (opcode == QUERY_FONT and answer[1] == _BAD_FONT):
            return
        if opcode == INTERN_ATOM:
            atom = answer[8:12]
            if atom == bytes(4):
                return  # there is no such atom yet
            self._keep(bytes((GET_ATOM_NAME, 0)) + atom, _atom_name(key[2:]))
        elif opcode == QUERY_EXTENSION and answer[8]:
            self.extensions[answer[9]] = key[2:]
        self._keep(key, answer)

    def _keep(self, key: bytes, answer: bytes) -> None:
        if not self.is_valid:
            return
        self._size += len(answer) - len(self._answers.get(key, b""))
        if self._size > LIMIT:
            self._answers.clear()
            self._size = len(answer)
        self._answers[key] = answer

    def doubt(self, opcode: int) -> None:
        """Forgets what is expected only, of the core protocol (0) or of an extension's opcode."""
        extension = EXTENSIONS.get(self.extensions.get(opcode, b""))
        rows = extension.rows if extension is not None else {}
        for key in [*self._answers]:
            if opcode == 0:
                row = CORE.get(key[0])
            else:
                row = rows.get(key[1]) if key[0] == opcode else None
            if row is not None and row.kind is Kind.EXPECTED:
                self._size -= len(self._answers.pop(key))

    def forget(self, key: bytes) -> None:
        """Forgets one answer."""
        self._size -= len(self._answers.pop(key, b""))


def _atom_name(name: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("<BxHIH22x", REPLY, 0, len(padded) // 4, len(name)) + padded
