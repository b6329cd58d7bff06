"""Hides round trips: answers a program's requests itself, where the answer is known.

It stands near the program; behind it lies the long line to the X server. Each request goes on, or
GetInputFocus in its place, so that the server counts as the program does and no number has to be
changed. For each answer that was given here one of the server comes as well: it is compared, and
dropped. So the server is never silent for 65,536 requests, which have 16 bits to be told apart.

Answers stay in the order of their requests: what is known waits for what is not. An event of the
server, which tells the number of the last request that it has seen, gets a later number if a later
request was answered already. Since that would hide which request an error belongs to, nothing is
answered before the server is done with an earlier request for the window of another program, which
it may refuse; and with one of which it is not known whether it will be answered.

    relay.from_program(data)   returns what the server gets, and what the program gets at once
    relay.from_server(data)    returns what the program gets
"""

import struct
from collections import deque
from typing import Final, NamedTuple

from ..errors import MalformedMessage
from ..wire.codec import Buffer
from ..wire.x11 import ERROR, FIRST_EXTENSION, GENERIC_EVENT, MESSAGE, REPLY
from .knowledge import Knowledge
from .round_trips import (
    ALLOC_COLOR,
    CORE,
    EXTENSION_WINDOWS,
    EXTENSIONS,
    GET_INPUT_FOCUS,
    OPEN_FONT,
    QUERY_FONT,
    WINDOWS,
    Kind,
    Row,
)
from .screens import FirstAnswer, Screens

# X Window System Protocol, appendix B
_KEYMAP_NOTIFY: Final = 11  # the only message without a sequence number
_BAD_NAME: Final = 15

# Our own choices
HELD: Final = 4096  # bytes of a request that must be whole; longer ones are nothing we know
KEPT: Final = 1 << 20  # bytes of a reply that is remembered
FONTS: Final = 1000  # that a program has open, and we know by name

_u16 = struct.Struct("<H").unpack_from
_u32 = struct.Struct("<I").unpack_from
_pack_u16 = struct.Struct("<H").pack_into
_STAND_IN: Final = struct.pack("<BxH", GET_INPUT_FOCUS, 1)


class _Turn:
    """A request whose answer the program has not got yet."""

    __slots__ = ("answer", "barrier", "is_series", "key", "sequence")

    def __init__(
        self, sequence: int, answer: bytes, barrier: int, key: bytes, is_series: bool
    ) -> None:
        self.sequence = sequence
        self.answer = answer  # ours; empty: the server's is awaited
        self.barrier = barrier  # the server must have seen this request before ours is told
        self.key = key  # under which the server's is remembered; empty: it is not
        self.is_series = is_series


class _Expected(NamedTuple):
    """An answer of ours, for which one of the server is to come."""

    sequence: int
    key: bytes  # of the request; empty: the server's answer is that to a stand-in
    answer: bytes


class Counts(NamedTuple):
    """What a relay has done for a program."""

    requests: int
    hidden: int  # requests that were answered here
    left: int  # requests whose answer came from the server
    mistaken: int  # answers that the server did not give alike


class Relay:
    """One connection of a program, behind the set-up request."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._screens: Screens | None = None  # once the server has let the program in
        self._first = FirstAnswer("<")
        # the program's direction
        self._part = b""
        self._request_rest = 0
        self._sequence = 0  # of the last request
        self._is_big = False
        self._barrier = 0  # the last request that may be answered or refused unlike we think
        self._fonts: dict[int, bytes] = {}  # names of open fonts
        # the server's direction
        self._answer_part = b""
        self._answer_rest = 0
        self._is_rest_dropped = False
        self._turns: deque[_Turn] = deque()
        self._expected: deque[_Expected] = deque()
        self._series = bytearray()  # the answers of a series so far
        self._told = 0  # the last request of which the program has heard
        self._heard = 0  # the last request that the server has told of
        self._seen = 0  # the last request that the server is known to be done with
        self._hidden = self._left = self._mistaken = 0

    @property
    def counts(self) -> Counts:
        """What it has done so far."""
        return Counts(self._sequence, self._hidden, self._left, self._mistaken)

    # -- from the program --------------------------------------------------------------

    def from_program(self, view: Buffer) -> tuple[list[Buffer], bytes]:
        """Returns what the server gets, and what the program gets; raises MalformedMessage."""
        size = len(view)
        if self._request_rest >= size:
            self._request_rest -= size
            return [view], b""
        pieces: list[Buffer] = []
        start = self._request_rest
        if start:
            pieces.append(view[:start])
            self._request_rest = 0
        data = self._part + bytes(view[start:])
        answers = bytearray()
        at = self._take_requests(data, pieces, answers)
        self._part = data[at:]
        return pieces, bytes(answers)

    def _take_requests(self, data: bytes, pieces: list[Buffer], answers: bytearray) -> int:
        """Returns where the first request that is not whole begins."""
        at = passed = 0
        size = len(data)
        while size - at >= 4:
            total = 4 * _u16(data, at + 2)[0]
            if not total:
                if not self._is_big:
                    raise MalformedMessage("a request without a length")
                if size - at < 8:
                    break
                total = 4 * _u32(data, at + 4)[0]
                if total < 8:
                    raise MalformedMessage("a request shorter than its head")
                is_known = False
            else:
                is_known = total <= HELD
            end = at + total
            if end > size:
                if is_known:
                    break
                self._request_rest = end - size
                end = size
            self._sequence += 1
            request = data[at:end] if is_known else data[at : at + 4]
            if not self._take(request, is_known, answers):
                at = end
                continue
            pieces.append(data[passed:at])
            pieces.append(_STAND_IN)
            at = passed = end
        if passed < at:
            pieces.append(data[passed:at])
        return at

    def _take(self, request: bytes, is_whole: bool, answers: bytearray) -> bool:
        """Takes a request; returns whether the server gets a stand-in for it."""
        opcode = request[0]
        if opcode < FIRST_EXTENSION:
            row, window = CORE.get(opcode), WINDOWS.get(opcode, 0)
        else:
            name = self._knowledge.extensions.get(opcode, b"")
            extension = EXTENSIONS.get(name)
            if extension is None or request[1] > extension.last:
                self._barrier = self._sequence
                return False
            row = extension.rows.get(request[1])
            window = EXTENSION_WINDOWS.get(name, {}).get(request[1], 0)
            if name == b"BIG-REQUESTS":
                self._is_big = True
        if row is None:
            if window and not (is_whole and self._is_safe(request, window)):
                self._barrier = self._sequence
            return is_whole and opcode == OPEN_FONT and self._open_font(request, answers)
        key = known = b""
        if is_whole and opcode == ALLOC_COLOR and self._screens is not None:
            known = self._screens.color(request)
        elif is_whole and (key := self._key(row, opcode, request)):
            known = self._knowledge.answer(key)
        is_skipped = row.kind is Kind.STATIC or opcode == ALLOC_COLOR
        if known and self._screens is not None:
            self._answer(answers, known, b"" if is_skipped else key)
            return is_skipped
        self._turns.append(_Turn(self._sequence, b"", 0, key, row.is_series))
        return False

    def _is_safe(self, request: bytes, window_at: int) -> bool:
        """Whether a request names a window of the program, a root window or none."""
        if self._screens is None or len(request) < window_at + 4:
            return False
        window = _u32(request, window_at)[0]
        return not window or self._screens.is_own(window) or window in self._screens.roots

    def _key(self, row: Row, opcode: int, request: bytes) -> bytes:
        """Returns what an answer is remembered under; empty if it is not."""
        if row.kind is Kind.SERVER or (row.unless and any(request[row.unless : row.unless + 1])):
            return b""
        roots = self._screens.roots if self._screens is not None else ()
        if row.of_root and _u32(request, row.of_root)[0] not in roots:
            return b""
        if opcode == QUERY_FONT:
            name = self._fonts.get(_u32(request, 4)[0]) if len(request) == 8 else None
            return bytes((QUERY_FONT, 0)) + name if name else b""
        minor = request[1] if opcode >= FIRST_EXTENSION else 0
        return bytes((opcode, minor)) + row.key(request)

    def _open_font(self, request: bytes, answers: bytearray) -> bool:
        """Remembers a font's name; refuses one that the server is known not to have."""
        length = _u16(request, 8)[0] if len(request) >= 12 else 0
        name = request[12 : 12 + length]
        font = _u32(request, 4)[0] if length else 0
        if len(self._fonts) >= FONTS:
            self._fonts.clear()
        self._fonts[font] = name
        known = self._knowledge.answer(bytes((QUERY_FONT, 0)) + name)
        if not known:
            self._barrier = self._sequence  # it may be refused
        if not known or known[0] != ERROR or self._screens is None:
            return False
        error = bytearray(MESSAGE)
        error[:2] = ERROR, _BAD_NAME
        error[10] = OPEN_FONT
        self._answer(answers, bytes(error), b"")
        return True

    def _answer(self, answers: bytearray, answer: bytes, key: bytes) -> None:
        """Answers the last request now, or in its turn; with a key the server gets it as well."""
        self._hidden += 1
        answer = _numbered(answer, self._sequence)
        self._expected.append(_Expected(self._sequence, key, answer))
        if not self._turns and self._barrier <= self._seen:
            answers += answer
            self._told = self._sequence
        else:
            self._turns.append(_Turn(self._sequence, answer, self._barrier, key, False))

    # -- from the server ---------------------------------------------------------------

    def from_server(self, data: bytes) -> bytes:
        """Returns what the program gets of the server's bytes."""
        if self._screens is None:
            return self._read_set_up(data)
        out = bytearray()
        size, at = len(data), 0
        if self._answer_rest:
            at = min(self._answer_rest, size)
            self._answer_rest -= at
            if not self._is_rest_dropped:
                out += data[:at]
        buffer = self._answer_part + data[at:]
        size, at = len(buffer), 0
        while size - at >= MESSAGE:
            first, total = buffer[at], MESSAGE
            if first == REPLY or first & 0x7F == GENERIC_EVENT:
                total += 4 * _u32(buffer, at + 4)[0]
            if at + total > size and total <= KEPT:
                break
            message = buffer[at : at + total]
            self._is_rest_dropped = False
            if first <= REPLY:
                out += self._answered(message, total)
            else:
                out += self._event(message)
            at += total
        if at > size:
            self._answer_rest = at - size
            at = size
        self._answer_part = buffer[at:]
        return bytes(out)

    def _event(self, event: bytes) -> bytes:
        if event[0] & 0x7F == _KEYMAP_NOTIFY:
            return event
        sequence = self._widened(_u16(event, 2)[0])
        ready = self._saw(sequence - 1)  # it may still refuse the one that it tells
        self._told = max(self._told, sequence)
        return ready + _numbered(event, self._told)

    def _answered(self, answer: bytes, total: int) -> bytes:
        """Takes a reply or an error, maybe only its first bytes; returns what the program gets."""
        sequence = self._widened(_u16(answer, 2)[0])
        ready = self._saw(sequence - 1)
        turn = self._turns[0] if self._turns else None
        if self._expected and self._expected[0].sequence == sequence:
            self._compare(self._expected.popleft(), answer if len(answer) == total else b"")
            self._is_rest_dropped = True
            if turn is not None and turn.sequence == sequence:
                self._turns.popleft()
                self._told = sequence
                ready += turn.answer
            return ready + self._saw(sequence)
        if turn is not None and turn.sequence == sequence and not turn.answer:
            is_last = not (turn.is_series and answer[0] == REPLY and answer[1])
            self._left += is_last
            if len(answer) < total or len(self._series) + total > KEPT:
                turn.key = b""
            if turn.key:
                self._series += answer
                if is_last:
                    self._knowledge.learn(turn.key, bytes(self._series))
            if is_last:
                self._series.clear()
                self._turns.popleft()
            else:
                return ready + answer
        self._told = max(self._told, sequence)
        return ready + _numbered(answer, self._told) + self._saw(sequence)

    def _compare(self, expected: _Expected, answer: bytes) -> None:
        if expected.key and expected.answer != answer:
            self._mistaken += 1
            self._knowledge.forget(expected.key)
            if answer:
                self._knowledge.learn(expected.key, answer)

    def _saw(self, sequence: int) -> bytes:
        """Takes note that the server is done with a request; returns answers whose turn it is."""
        self._seen = max(self._seen, sequence)
        ready = b""
        while self._expected and self._expected[0].sequence <= self._seen:
            expected = self._expected.popleft()  # the server has nothing to say to it
            self._mistaken += 1
            self._knowledge.forget(expected.key)
        while self._turns:
            turn = self._turns[0]
            if turn.answer:
                if turn.barrier > self._seen:
                    break
                ready += turn.answer
                self._told = turn.sequence
            elif turn.sequence > self._seen:
                break
            self._turns.popleft()  # without an answer: the server has none either
        return ready

    def _widened(self, low: int) -> int:
        """Returns the number of a request of which the server tells the low 16 bits.

        It tells none that is lower than the one before, nor 65,536 higher.
        """
        self._heard = min(self._heard + (low - self._heard & 0xFFFF), self._sequence)
        return self._heard

    def _read_set_up(self, data: bytes) -> bytes:
        """Passes the server's first answer on, and learns from it."""
        rest = self._first.receive(data)
        if rest is None:
            return data
        self._screens = self._first.screens
        return data[: len(data) - len(rest)] + (self.from_server(rest) if rest else b"")


def _numbered(messages: bytes, sequence: int) -> bytes:
    """Returns messages of the server with another sequence number in each."""
    numbered, at = bytearray(messages), 0
    while at < len(numbered):
        _pack_u16(numbered, at + 2, sequence & 0xFFFF)
        at += MESSAGE
        if numbered[at - MESSAGE] == REPLY and at < len(numbered):
            at += 4 * _u32(numbered, at - MESSAGE + 4)[0]
        else:
            break
    return bytes(numbered)
