"""A filter between a forwarded program and the X server, for both directions of one connection.

It follows the requests, replies, events and errors, and judges each request by rules.py. A request
that is refused keeps its place and its length, so that no sequence number changes: its opcode
becomes one that no server knows, and the server's own error for it, which comes at the right place
among the replies, gets the code and the opcode that the program is to see. A request that is
dropped becomes a NoOperation. Where programs would end because of an error, the request is changed
so that the server gives an empty answer.

The server's messages carry the low 16 bits of their request's number only. The filter knows the
rest as libraries do: no 65536 requests follow each other without one that has to be answered. From
a program that breaks this, the answer of one request could be taken for that of another.

A trusted program may do all but what is for local programs only (LOCAL_ONLY). An extension's
requests are accepted once the program has asked for the extension by name and was told of it.
"""

import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from ..errors import MalformedMessage
from ..wire.codec import Buffer
from ..wire.x11 import ERROR, FIRST_EXTENSION, GENERIC_EVENT, MESSAGE, REPLY
from .rules import (
    ANY_PROPERTIES,
    BAD_ACCESS,
    BAD_MATCH,
    BAD_REQUEST,
    CLIPBOARD_MANAGER,
    CLIPBOARDS,
    CORE,
    EXTENSIONS,
    HARMLESS_EVENTS,
    HARMLESS_XI_EVENTS,
    LOCAL_ONLY,
    PRIMARY,
    RESOURCE_MANAGER,
    ROOT_PROPERTIES,
    SECONDARY,
    XKB_KEY_EVENTS,
    Act,
    Row,
)
from .screens import FirstAnswer

# X Window System Protocol, appendix B
_SELECTION_REQUEST: Final = 30
_SELECTION_NOTIFY: Final = 31
_CLIENT_MESSAGE: Final = 33
_UNMAP_NOTIFY: Final = 18
_CONFIGURE_REQUEST: Final = 23
_KEYMAP_NOTIFY: Final = 11
_NO_OPERATION: Final = 127
_UNASSIGNED: Final = 126  # a server answers it with BadRequest
_INPUT_ONLY_CLASS: Final = 2  # of windows
_UNANSWERED: Final = 0xFFFF  # requests in a row
# Requests of the core protocol that have a reply, or else an error.
ANSWERED: Final = frozenset(
    (
        *(3, 14, 15, 16, 17, 20, 21, 23, 26, 31, 38, 39, 40, 43, 44, 47, 48, 49, 50, 52, 73, 83),
        *(84, 85, 86, 87, 91, 92, 97, 98, 99, 101, 103, 106, 108, 110, 116, 117, 118, 119),
    )
)
_PARENT_RELATIVE: Final = 1  # a window's background
_PREDEFINED_ATOMS: Final = 68
_NOBODYS: Final = 45  # MAX_SPACE: an atom that no window has as a property, and nobody owns

# Our own choices
HELD_LIMIT: Final = 4096  # bytes of a message that must be whole to be judged
GLYPHS_LIMIT: Final = 4 * 0xFFFF  # bytes of a request to draw text, which must be whole, too
WORDS_LIMIT: Final = 1 << 24  # four bytes each, of a request: X servers have 4 million
EARLY_LIMIT: Final = 64 << 10  # bytes that a program may send before it is let in
_HEAD: Final = 72  # bytes of a request that its judge needs: the longest list of window attributes
AWAITED_LIMIT: Final = 4096  # answers that the server owes at a time, of those that we look at
ATOMS_LIMIT: Final = 4096  # atoms whose names are remembered
_REQUESTORS: Final = 64  # windows whose requests for a selection are remembered

# Traits of a resource
_WINDOW: Final = 1
_INPUT_ONLY: Final = 2  # of windows
_TOP_LEVEL: Final = 4  # of windows: whose parent is a root, or is of the window manager
_TRANSPARENT: Final = 8  # of windows: with the background of their parent
_PIXMAP: Final = 16
_WINDOW_PICTURE: Final = 32

# The RENDER extension
_COMPOSITE_GLYPHS_8: Final = 23  # and those of 16 and 32 bits follow
_OTHER_GLYPH_SET: Final = 255  # in the place of a number of glyphs: a glyph set follows

# Verdicts
_PASS: Final = 0
_DROP: Final = -1
_WAIT: Final = -2  # for more bytes of the request
# and numbers above 0: the code of the error that the program gets

_ACTS: Final = {Act.ERROR: BAD_ACCESS, Act.MATCH: BAD_MATCH, Act.DROP: _DROP}


class _Request:
    """The request in a buffer that is being judged; a filter has one of these, for speed."""

    __slots__ = ("at", "body", "present", "total")

    at: int  # where its head is
    body: int  # where its fields from offset 4 on are
    total: int  # bytes of the whole request
    present: int  # bytes of it that are there


Judge = Callable[[bytearray, _Request], int]


class _Awaited(NamedTuple):
    """An answer of the server that will be looked at."""

    sequence: int  # of its request
    is_whole: bool  # whether the answer must be whole
    answered: Callable[[bytearray, int, int], None]  # buffer, offset, bytes of the answer


class Filter:
    """One connection of a program; both methods return what is to be passed on."""

    def __init__(self, byte_order: str, clipboard: str, trusted: bool) -> None:
        """``clipboard``: none, out, in or both; what it allows counts for untrusted programs."""
        self._trusted = trusted
        self._may_offer = clipboard in ("out", "both")
        self._may_read = clipboard in ("in", "both")
        self._u16 = struct.Struct(byte_order + "H")
        self._u32 = struct.Struct(byte_order + "I")
        self._head = struct.Struct(byte_order + "BBH")
        self.inserted = 0  # bytes that the program has not sent, so far
        self._is_in = False  # whether the server has let the program in
        # the program's direction
        self._early = bytearray()  # that the program sent before that
        self._request_rest = 0  # bytes of a request that are still to come
        self._part = b""  # of a request
        self._request = _Request()
        self._sequence = 0  # of the last request
        self._sure = 0  # of a request that the server answers, or has answered
        self._asked_for = 0  # extensions of which the server has yet to tell
        self._is_held = False  # a request waits for that
        self._is_big = False  # BIG-REQUESTS is enabled
        # the server's direction
        self._first = FirstAnswer(byte_order)
        self._answer_rest = 0
        self._answer_part = b""
        self._heard = 0  # the request that the server's last message was about
        self._awaited: deque[_Awaited] = deque()
        # what is known
        self._base = self._mask = 0
        self._roots: frozenset[int] = frozenset()
        self._atoms: dict[int, bytes] = {}
        # Traits of the program's resources by their numbers, without the bits that all have.
        # A creation with a number that is taken fails at the server, so it changes nothing here,
        # and so does a request to destroy something that has a wrong length.
        self._traits = bytearray()
        self._requestors: dict[int, set[int]] = {}  # windows that want a selection: properties
        self._conversions: dict[tuple[int, int], int] = {}  # requestor, target: selection
        self._judges: list[Judge | None] = [None] * 256
        specials = self._TRUSTED if trusted else self._SPECIAL
        known = {row.opcode: row for row in CORE}
        for opcode in range(FIRST_EXTENSION):
            row = known.get(opcode)
            if trusted:
                if row is not None and row.special in specials:
                    self._judges[opcode] = partial(specials[row.special], self)
            else:
                self._judges[opcode] = self._judge(row)
        for opcode in range(FIRST_EXTENSION, 256):
            self._judges[opcode] = self._of_no_extension

    def _judge(self, row: Row | None) -> Judge | None:
        """Returns the function that judges requests of a row; None if it allows all of them."""
        if row is None:
            return _unknown
        otherwise = _ACTS[row.otherwise]
        if not row.allowed:
            return lambda data, request: otherwise
        special = partial(self._SPECIAL[row.special], self) if row.special else None
        if not row.own:
            return special
        fields = tuple(
            (offset - 4, offset in row.or_none, offset in row.or_root) for offset in row.own
        )
        needed = 12 + max(offset for offset, *_ in fields)  # with a big request's longer head
        read = self._u32.unpack_from

        def judge(data: bytearray, request: _Request) -> int:
            body = request.body
            if request.total < needed and request.at + request.total < body + needed - 8:
                return _PASS  # too short: the server's BadLength
            base, foreign = self._base, ~self._mask
            for offset, or_none, or_root in fields:
                value = read(data, body + offset)[0]
                if value & foreign != base and not (
                    (or_none and not value) or (or_root and value in self._roots)
                ):
                    return otherwise
            return _PASS if special is None else special(data, request)

        return judge

    # -- from the program --------------------------------------------------------------

    def from_client(self, view: Buffer) -> list[Buffer]:
        """Returns what the server gets of the program's bytes; raises MalformedMessage."""
        if not self._is_in:
            self._early += view
            if len(self._early) > EARLY_LIMIT:
                raise MalformedMessage("requests before the X server has let the program in")
            return []
        size = len(view)
        if size and self._request_rest >= size:
            self._request_rest -= size
            return [view]
        pieces: list[Buffer] = []
        start = self._request_rest
        if start:
            pieces.append(view[:start])
            self._request_rest = 0
        data = bytearray(self._part)
        data += view[start:]
        self._part = b""
        done = self._judge_requests(data)
        if done < len(data):
            self._part = bytes(data[done:])
            del data[done:]
        pieces.append(data)
        return pieces

    def _judge_requests(self, data: bytearray) -> int:
        """Judges all requests that are there, in place; returns where what is left begins."""
        at, size = 0, len(data)
        read_head, judges, request = self._head.unpack_from, self._judges, self._request
        while size - at >= 4:
            opcode, minor, words = read_head(data, at)
            body = at + 4
            if not words:
                if not self._is_big:
                    raise MalformedMessage("a request without a length")
                if size - at < 8:
                    break
                body = at + 8
                words = self._u32.unpack_from(data, at + 4)[0]
                if not 2 <= words <= WORDS_LIMIT:
                    raise MalformedMessage("a request of no possible length")
            total = words * 4
            judge = judges[opcode]
            self._sequence += 1
            if judge is not None:
                present = size - at
                if present < total and present < _HEAD:
                    self._sequence -= 1
                    break
                request.at, request.body, request.total = at, body, total
                request.present = present if present < total else total
                verdict = judge(data, request)
                if verdict == _WAIT:
                    self._sequence -= 1
                    break
                if verdict == _DROP:
                    data[at] = _NO_OPERATION
                elif verdict:
                    self._refuse(data, at, verdict, opcode, minor)
                size += request.total - total
                total = request.total
            if self._sequence - self._sure > _UNANSWERED:
                self._check_answers()
            if opcode in ANSWERED:
                self._sure = self._sequence
            at += total
        if at > size:
            self._request_rest = at - size
            at = size
        return at

    def _check_answers(self) -> None:
        """Raises MalformedMessage if messages of the server can no longer be told apart."""
        self._sure = max(self._sure, self._heard)
        if self._sequence - self._sure > _UNANSWERED:
            raise MalformedMessage("too many requests without an answer")

    def _refuse(self, data: bytearray, at: int, code: int, opcode: int, minor: int) -> None:
        data[at] = _UNASSIGNED
        minor = minor if opcode >= FIRST_EXTENSION else 0

        def answered(answer: bytearray, at: int, total: int) -> None:
            if answer[at] == ERROR:
                answer[at + 1] = code
                answer[at + 4 : at + 8] = bytes(4)
                self._u16.pack_into(answer, at + 8, minor)
                answer[at + 10] = opcode

        self._await(False, answered)

    def _await(self, is_whole: bool, answered: Callable[[bytearray, int, int], None]) -> None:
        if len(self._awaited) >= AWAITED_LIMIT:
            raise MalformedMessage("too many requests at a time that are refused or looked at")
        self._awaited.append(_Awaited(self._sequence, is_whole, answered))

    # -- from the server ---------------------------------------------------------------

    def from_server(self, data: bytes) -> bytes:
        """Returns what the program gets of the server's bytes."""
        if not self._is_in:
            return self._read_set_up(data)
        size = len(data)
        if self._answer_rest >= size:
            self._answer_rest -= size
            return data
        buffer = bytearray(self._answer_part)
        buffer += data
        done = self._read_answers(buffer)
        self._answer_part = bytes(buffer[done:])
        return bytes(buffer[:done])

    @property
    def has_early(self) -> bool:
        """Whether ``early`` has something for the server."""
        return self._is_in and (bool(self._early) or (self._is_held and not self._asked_for))

    def early(self) -> list[Buffer]:
        """Returns what the server gets of that which came before it had answered."""
        early, self._early = self._early, bytearray()
        self._is_held = False
        return self.from_client(early)

    def _read_answers(self, buffer: bytearray) -> int:
        at, size = self._answer_rest, len(buffer)
        self._answer_rest = 0
        read_u16, read_u32, awaited = self._u16.unpack_from, self._u32.unpack_from, self._awaited
        while size - at >= MESSAGE:
            kind = buffer[at]
            total = MESSAGE
            if kind == REPLY or kind & 0x7F == GENERIC_EVENT:
                total += 4 * read_u32(buffer, at + 4)[0]
            if kind & 0x7F != _KEYMAP_NOTIFY:
                self._heard += (read_u16(buffer, at + 2)[0] - self._heard) & 0xFFFF
            elif not self._trusted:  # it alone has no number, but the keys that are down instead
                buffer[at + 1 : at + MESSAGE] = bytes(MESSAGE - 1)
            if kind <= REPLY:
                if awaited and awaited[0].sequence == self._heard:
                    if awaited[0].is_whole and size - at < total <= HELD_LIMIT:
                        break
                    awaited.popleft().answered(buffer, at, min(total, size - at))
            elif kind == _SELECTION_REQUEST:
                self._on_selection_request(buffer, at)
            elif kind == _SELECTION_NOTIFY and self._conversions:
                self._on_selection_notify(buffer, at)
            at += total
        if at > size:
            self._answer_rest = at - size
            at = size
        return at

    def _read_set_up(self, data: bytes) -> bytes:
        """Passes the server's first answer on, and learns what the program may call its own."""
        rest = self._first.receive(data)
        if rest is None:
            return data
        self._is_in = True
        if (screens := self._first.screens) is not None:  # else the program owns nothing
            self._base, self._mask = screens.base, screens.mask
            self._roots = frozenset(screens.roots)
        return data[: len(data) - len(rest)] + (self.from_server(rest) if rest else b"")

    # -- extensions --------------------------------------------------------------------

    def _name(self, data: bytearray, request: _Request) -> bytes:
        """Returns the name in QueryExtension and InternAtom; b'' if it is of no interest."""
        end = request.at + request.present
        first = request.body + 4
        length = self._u16.unpack_from(data, request.body)[0] if first <= end else _HEAD
        if length > _HEAD - 12 or first + length > end:
            return b""  # longer than all names that a judge asks for
        return bytes(data[first : first + length])

    def _query_extension(self, data: bytearray, request: _Request) -> int:
        name = self._name(data, request)
        self._asked_for += 1

        def answered(answer: bytearray, at: int, total: int) -> None:
            self._asked_for -= 1
            if answer[at] != REPLY or not answer[at + 8]:
                return
            if not self._has(name) or answer[at + 9] < FIRST_EXTENSION:
                answer[at + 8 : at + 12] = bytes(4)  # there is none
            else:
                self._accept(name, answer[at + 9])

        self._await(False, answered)
        return _PASS

    def _of_no_extension(self, data: bytearray, request: _Request) -> int:
        """Refuses a request of an extension that the program was not told of.

        It waits while the server has yet to tell of one: a relay that hides round trips has told
        the program before.
        """
        if self._asked_for:
            self._is_held = True
            return _WAIT
        return BAD_REQUEST

    def _has(self, name: bytes) -> bool:
        """Whether the program may know of an extension."""
        if self._trusted:
            return bool(name) and name not in LOCAL_ONLY
        return name in EXTENSIONS

    def _accept(self, name: bytes, opcode: int) -> None:
        """Judges the requests of an extension by its rows."""
        if self._trusted:
            is_big = name == b"BIG-REQUESTS"
            self._judges[opcode] = self._big_requests if is_big else None
            return
        judges = {row.opcode: self._judge(row) for row in EXTENSIONS[name]}

        def judge(data: bytearray, request: _Request) -> int:
            found = judges.get(data[request.at + 1], _unknown)
            return _PASS if found is None else found(data, request)

        self._judges[opcode] = judge

    def _big_requests(self, data: bytearray, request: _Request) -> int:
        # Where the server refuses it, lengths would mean other things to the server and to us.
        if data[request.at + 1] == 0 and request.total == 4:
            self._is_big = True
        return _PASS

    def _list_extensions(self, data: bytearray, request: _Request) -> int:
        def answered(answer: bytearray, at: int, total: int) -> None:
            if answer[at] != REPLY:
                return
            left = answer[at + 1]
            names, place, end = [], at + MESSAGE, at + total
            while left and place < end:
                names.append(bytes(answer[place + 1 : place + 1 + answer[place]]))
                place += 1 + answer[place]
                left -= 1
            kept = [name for name in names if self._has(name)]
            text = b"".join(bytes((len(name),)) + name for name in kept)
            answer[at + 1] = len(kept)
            answer[at + MESSAGE : end] = text.ljust(total - MESSAGE, b"\0")

        self._await(True, answered)
        return _PASS

    # -- windows -----------------------------------------------------------------------

    def _is_own(self, resource: int) -> bool:
        return resource & ~self._mask == self._base

    def _read(self, data: bytearray, request: _Request, offset: int) -> int:
        """Returns a field by its offset in the request, 0 if the request is too short for it."""
        place = request.body + offset - 4
        if place + 4 > request.at + request.present:
            return 0
        value: int = self._u32.unpack_from(data, place)[0]
        return value

    def _trait(self, resource: int) -> int:
        """Returns the traits of a resource, 0 if it is not the program's."""
        number = resource & self._mask
        is_known = self._is_own(resource) and number < len(self._traits)
        return self._traits[number] if is_known else 0

    def _mark(self, resource: int, traits: int, gone: int = 0) -> None:
        """Gives traits to a resource of the program, and takes others from it."""
        number = resource & self._mask
        if number >= len(self._traits):
            self._traits += bytes(number + 1 - len(self._traits))
        self._traits[number] = self._traits[number] & ~gone | traits

    def _create_window(self, data: bytearray, request: _Request) -> int:
        """Gives a window a background: without one it shows what was there, of other programs."""
        if not 32 <= request.total <= 32 + 4 * 32 or request.body != request.at + 4:
            return BAD_ACCESS
        window, parent = self._read(data, request, 4), self._read(data, request, 8)
        kind = self._u16.unpack_from(data, request.at + 22)[0]
        top_level = _TOP_LEVEL if parent in self._roots else 0
        if kind == _INPUT_ONLY_CLASS or (kind == 0 and self._trait(parent) & _INPUT_ONLY):
            input_only = 0 if self._trait(window) & _WINDOW else _INPUT_ONLY
            self._mark(window, _WINDOW | top_level | input_only, _PIXMAP)
            return _PASS
        self._mark(window, _WINDOW | top_level, _PIXMAP | _INPUT_ONLY)
        mask = self._read(data, request, 28)
        if verdict := self._values(data, request, 28, mask, (0, 2)):
            return verdict
        if mask & 3:
            self._force_background(data, request.at + 28, request.at + 32, request, window)
            return _PASS
        self._u32.pack_into(data, request.at + 28, mask | 2)
        self._u16.pack_into(data, request.at + 2, request.total // 4 + 1)
        data[request.at + 32 : request.at + 32] = bytes(4)
        request.total += 4
        self.inserted += 4
        return _PASS

    def _destroy_window(self, data: bytearray, request: _Request) -> int:
        if _has_one_field(request):
            self._mark(self._read(data, request, 4), 0, 0xFF)
        return _PASS

    def _reparent_window(self, data: bytearray, request: _Request) -> int:
        window, parent = self._read(data, request, 4), self._read(data, request, 8)
        if parent in self._roots:
            if self._trait(window) & _TRANSPARENT:
                return BAD_ACCESS
            self._mark(window, _TOP_LEVEL)
        return _PASS

    def _force_background(
        self, data: bytearray, mask_at: int, values_at: int, request: _Request, window: int
    ) -> None:
        """Makes the background None of a list of attributes the pixel 0.

        And that of the parent, if the parent is another program's: it may have none itself.
        """
        if values_at + 4 > request.at + request.present:
            return  # the server's BadLength
        mask, value = (self._u32.unpack_from(data, place)[0] for place in (mask_at, values_at))
        if mask & 3 != 1 or value > _PARENT_RELATIVE:
            return
        if value and not self._trait(window) & _TOP_LEVEL:
            self._mark(window, _TRANSPARENT)
            return
        self._u32.pack_into(data, mask_at, mask & ~1 | 2)
        self._u32.pack_into(data, values_at, 0)

    def _change_window_attributes(self, data: bytearray, request: _Request) -> int:
        window, mask = self._read(data, request, 4), self._read(data, request, 8)
        if self._is_own(window):
            if verdict := self._values(data, request, 8, mask, (0, 2)):
                return verdict
            if not self._trait(window) & _INPUT_ONLY:
                self._force_background(data, request.body + 4, request.body + 8, request, window)
            return _PASS
        if mask != 0x800:  # event-mask alone
            return BAD_ACCESS
        if request.total >= request.body - request.at + 12:
            harmless = self._read(data, request, 12) & HARMLESS_EVENTS
            self._u32.pack_into(data, request.body + 8, harmless)
        return _PASS

    # -- atoms and properties ----------------------------------------------------------

    def _intern_atom(self, data: bytearray, request: _Request) -> int:
        name = self._name(data, request)
        if not _is_interesting(name) or len(self._atoms) >= ATOMS_LIMIT:
            return _PASS

        def answered(answer: bytearray, at: int, total: int) -> None:
            if answer[at] == REPLY:
                self._atoms[self._u32.unpack_from(answer, at + 8)[0]] = name

        self._await(False, answered)
        return _PASS

    def _change_property(self, data: bytearray, request: _Request) -> int:
        window, atom = self._read(data, request, 4), self._read(data, request, 8)
        if self._is_own(window) or self._is_wanted(window, atom):
            return _PASS
        return _DROP  # xterm writes CUT_BUFFER0

    def _get_property(self, data: bytearray, request: _Request) -> int:
        window, atom = self._read(data, request, 4), self._read(data, request, 8)
        if self._is_own(window) or self._is_wanted(window, atom):
            return _PASS
        name = self._atoms.get(atom, b"")
        data[request.at + 1] = 0  # delete
        if name in ANY_PROPERTIES or (
            window in self._roots and (atom == RESOURCE_MANAGER or name.startswith(ROOT_PROPERTIES))
        ):
            return _PASS
        if request.present >= request.body - request.at + 8:
            self._u32.pack_into(data, request.body + 4, _NOBODYS)
        return _PASS

    def _keep_output_property(self, data: bytearray, request: _Request) -> int:
        return self._keep(data, request, 24)

    def _keep_device_property(self, data: bytearray, request: _Request) -> int:
        return self._keep(data, request, 6)

    def _keep(self, data: bytearray, request: _Request, delete: int) -> int:
        """Clears the field that has a property deleted once it is read."""
        place = request.body + delete - 4
        if place < request.at + request.present:
            data[place] = 0
        return _PASS

    # -- selections --------------------------------------------------------------------

    def _is_clipboard(self, selection: int) -> bool:
        return selection in (PRIMARY, SECONDARY) or self._atoms.get(selection) in CLIPBOARDS

    def _set_selection_owner(self, data: bytearray, request: _Request) -> int:
        selection = self._read(data, request, 8)
        return _PASS if self._may_offer and self._is_clipboard(selection) else _DROP

    def _convert_selection(self, data: bytearray, request: _Request) -> int:
        selection = self._read(data, request, 8)
        if self._is_clipboard(selection) and self._may_read:
            return _PASS
        if self._may_offer and self._atoms.get(selection) == CLIPBOARD_MANAGER:
            return _PASS  # it reads what the program offers
        if request.total < 24 or len(self._conversions) >= _REQUESTORS:
            return BAD_ACCESS
        key = self._read(data, request, 4), self._read(data, request, 12)
        self._conversions[key] = selection
        self._u32.pack_into(data, request.body + 4, _NOBODYS)
        return _PASS

    def _on_selection_notify(self, buffer: bytearray, at: int) -> None:
        requestor, selection, target = struct.unpack_from(
            self._u32.format[0] + "III", buffer, at + 8
        )
        if selection == _NOBODYS and (requestor, target) in self._conversions:
            self._u32.pack_into(buffer, at + 12, self._conversions.pop((requestor, target)))

    def _on_selection_request(self, buffer: bytearray, at: int) -> None:
        """Lets the program answer: it writes a property of the window that asks."""
        requestor, _, target, atom = struct.unpack_from(
            self._u32.format[0] + "IIII", buffer, at + 12
        )
        wanted = self._requestors.pop(requestor, set())
        if len(wanted) >= _REQUESTORS:
            wanted.clear()
        wanted.add(atom or target)
        if self._atoms.get(target) == b"MULTIPLE":
            wanted.add(0)  # the property names others
        self._requestors[requestor] = wanted
        if len(self._requestors) > _REQUESTORS:
            del self._requestors[next(iter(self._requestors))]

    def _is_wanted(self, window: int, atom: int) -> bool:
        """Whether a window of another program has asked for a selection in this property."""
        wanted = self._requestors.get(window)
        if wanted is None:
            return False
        return atom in wanted or (0 in wanted and atom > _PREDEFINED_ATOMS)

    def _send_event(self, data: bytearray, request: _Request) -> int:
        destination = self._read(data, request, 4)
        if request.total < 44:
            return BAD_ACCESS
        propagate, kind = data[request.at + 1], data[request.body + 8] & 0x7F
        if kind == GENERIC_EVENT:
            return BAD_ACCESS  # a long event, of which old servers send 32 bytes: CVE-2017-10971
        if self._is_own(destination):
            return BAD_ACCESS if propagate else _PASS
        if destination in self._roots:
            if kind == _CLIENT_MESSAGE:
                about, atoms = self._read(data, request, 16), self._atoms
                is_pong = (
                    about in self._roots
                    and atoms.get(self._read(data, request, 20)) == b"WM_PROTOCOLS"
                    and atoms.get(self._read(data, request, 24)) == b"_NET_WM_PING"
                )
                return _PASS if self._is_own(about) or is_pong else BAD_ACCESS
            if kind in (_UNMAP_NOTIFY, _CONFIGURE_REQUEST):
                return _PASS if self._is_own(self._read(data, request, 20)) else BAD_ACCESS
        if kind == _SELECTION_NOTIFY and destination in self._requestors:
            return _PASS
        return BAD_ACCESS

    # -- pictures ----------------------------------------------------------------------

    def _create_pixmap(self, data: bytearray, request: _Request) -> int:
        pixmap = self._read(data, request, 4)
        if not self._trait(pixmap) & _WINDOW:
            self._mark(pixmap, _PIXMAP)
        return _PASS

    def _free_pixmap(self, data: bytearray, request: _Request) -> int:
        self._mark(self._read(data, request, 4), 0, _PIXMAP)
        return _PASS

    def _create_gc(self, data: bytearray, request: _Request) -> int:
        return self._gc_values(data, request, 12)

    def _change_gc(self, data: bytearray, request: _Request) -> int:
        return self._gc_values(data, request, 8)

    def _gc_values(self, data: bytearray, request: _Request, mask_at: int) -> int:
        """Refuses pixmaps of other programs as tile, stipple and clip-mask."""
        if request.present < request.total and request.present < 4 + mask_at + 4 * 23:
            return _WAIT
        mask = self._read(data, request, mask_at)
        return self._values(data, request, mask_at, mask, (10, 11, 19))

    def _values(
        self,
        data: bytearray,
        request: _Request,
        mask_at: int,
        mask: int,
        resources: tuple[int, ...],
    ) -> int:
        for bit in resources:
            if mask >> bit & 1:
                before = (mask & ((1 << bit) - 1)).bit_count()
                value = self._read(data, request, mask_at + 4 + 4 * before)
                if value > 1 and not self._is_own(value):  # 0: none, 1: the parent's
                    return BAD_ACCESS
        return _PASS

    def _create_picture(self, data: bytearray, request: _Request) -> int:
        if not self._trait(self._read(data, request, 8)) & _PIXMAP:
            self._mark(self._read(data, request, 4), _WINDOW_PICTURE)
        return self._values(data, request, 16, self._read(data, request, 16), (1, 6))

    def _change_picture(self, data: bytearray, request: _Request) -> int:
        return self._values(data, request, 8, self._read(data, request, 8), (1, 6))

    def _free_picture(self, data: bytearray, request: _Request) -> int:
        if _has_one_field(request):
            self._mark(self._read(data, request, 4), 0, _WINDOW_PICTURE)
        return _PASS

    def _composite(self, data: bytearray, request: _Request) -> int:
        if self._trait(self._read(data, request, 12)) & _WINDOW_PICTURE:
            return BAD_ACCESS
        return self._source_picture(data, request)

    def _source_picture(self, data: bytearray, request: _Request) -> int:
        """Refuses a window as a source: what lies above it would be seen.

        GetImage and CopyArea leave that out by themselves.
        """
        is_window = self._trait(self._read(data, request, 8)) & _WINDOW_PICTURE
        return BAD_ACCESS if is_window else _PASS

    def _composite_glyphs(self, data: bytearray, request: _Request) -> int:
        """Refuses glyph sets of others within the text: they have the letters that others show."""
        if verdict := self._source_picture(data, request):
            return verdict
        if request.total > GLYPHS_LIMIT:
            return BAD_ACCESS
        if request.present < request.total:
            return _WAIT
        glyph_size = 1 << data[request.at + 1] - _COMPOSITE_GLYPHS_8
        place, end = request.body + 24, request.at + request.total
        while place + 8 <= end:
            count = data[place]
            place += 8
            if count != _OTHER_GLYPH_SET:
                place += count * glyph_size + 3 & ~3
                continue
            if place + 4 <= end and not self._is_own(self._u32.unpack_from(data, place)[0]):
                return BAD_ACCESS
            place += 4
        return _PASS

    # -- input -------------------------------------------------------------------------

    def _blank_reply(self, data: bytearray, request: _Request) -> int:
        def answered(answer: bytearray, at: int, total: int) -> None:
            if answer[at] == REPLY:
                answer[at + 8 : at + total] = bytes(total - 8)

        self._await(True, answered)
        return _PASS

    def _xi_select_events(self, data: bytearray, request: _Request) -> int:
        """Leaves only harmless events of the windows of others."""
        if self._is_own(self._read(data, request, 4)):
            return _PASS
        if request.total > HELD_LIMIT or request.total < 12:
            return BAD_ACCESS
        if request.present < request.total:
            return _WAIT
        end = request.at + request.total
        place = request.body + 8
        while place + 4 <= end:
            words = self._u16.unpack_from(data, place + 2)[0]
            first = place + 4
            place = first + 4 * words
            if place > end:
                return BAD_ACCESS
            for index in range(4 * words):  # a mask of bytes: bit n of the events is n of them
                data[first + index] &= HARMLESS_XI_EVENTS >> 8 * index & 0xFF
        return _PASS

    def _xkb_select_events(self, data: bytearray, request: _Request) -> int:
        """Makes a selection of events that name keys a deselection; they are of all windows."""
        if request.total < 16:
            return BAD_ACCESS
        place = request.body + 2
        which, clear, select = (self._u16.unpack_from(data, place + 2 * n)[0] for n in range(3))
        if which & ~clear & ~select & XKB_KEY_EVENTS:
            return BAD_ACCESS  # one by one, which nobody does
        self._u16.pack_into(data, place + 2, clear | (which & XKB_KEY_EVENTS))
        self._u16.pack_into(data, place + 4, select & ~XKB_KEY_EVENTS)
        return _PASS

    def _xkb_per_client_flags(self, data: bytearray, request: _Request) -> int:
        """Clears the keyboard's controls that change for everybody when the program ends."""
        place = request.body + 12
        if place + 12 > request.at + request.total:
            return BAD_ACCESS
        data[place : place + 12] = bytes(12)
        return _PASS

    _SPECIAL: Final = {
        "big_requests": _big_requests,
        "blank_reply": _blank_reply,
        "change_gc": _change_gc,
        "change_picture": _change_picture,
        "change_property": _change_property,
        "change_window_attributes": _change_window_attributes,
        "composite": _composite,
        "composite_glyphs": _composite_glyphs,
        "convert_selection": _convert_selection,
        "create_gc": _create_gc,
        "create_picture": _create_picture,
        "create_pixmap": _create_pixmap,
        "create_window": _create_window,
        "destroy_window": _destroy_window,
        "free_picture": _free_picture,
        "free_pixmap": _free_pixmap,
        "get_property": _get_property,
        "intern_atom": _intern_atom,
        "list_extensions": _list_extensions,
        "keep_device_property": _keep_device_property,
        "keep_output_property": _keep_output_property,
        "query_extension": _query_extension,
        "reparent_window": _reparent_window,
        "send_event": _send_event,
        "set_selection_owner": _set_selection_owner,
        "source_picture": _source_picture,
        "xi_select_events": _xi_select_events,
        "xkb_per_client_flags": _xkb_per_client_flags,
        "xkb_select_events": _xkb_select_events,
    }
    _TRUSTED: Final = {"list_extensions": _list_extensions, "query_extension": _query_extension}


def _unknown(data: bytearray, request: _Request) -> int:
    """Refuses what has no row."""
    return BAD_REQUEST


def _has_one_field(request: _Request) -> bool:
    """Whether the request is as long as one that has no other field than a resource."""
    return request.at + request.total == request.body + 4


def _is_interesting(name: bytes) -> bool:
    """Whether a judge asks for the atom of this name."""
    return (
        name in ANY_PROPERTIES
        or name in CLIPBOARDS
        or name in (CLIPBOARD_MANAGER, b"MULTIPLE", b"WM_PROTOCOLS")
        or name.startswith(ROOT_PROPERTIES)
    )
