"""The filter as a whole: framing, order of answers, and the judges that a row alone is not."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.x11.filter import (
    ANSWERED,
    ATOMS_LIMIT,
    AWAITED_LIMIT,
    EARLY_LIMIT,
    HELD_LIMIT,
    WORDS_LIMIT,
    Filter,
)
from appliance.x11.rules import BAD_ACCESS, BAD_MATCH, BAD_REQUEST, CORE, EXTENSIONS, Act
from tests.unit.x11.server import (
    BAD,
    BASE,
    MASK,
    NO_OPERATION,
    OTHERS,
    OWN,
    ROOT,
    Talk,
    set_up_reply,
)

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
CLIPBOARD, TARGETS, MULTIPLE, PROPERTY, TITLE = 300, 301, 302, 303, 304


def refused(data: bytes) -> bytes:
    return bytes((BAD,)) + data[1:]


def dropped(data: bytes) -> bytes:
    return bytes((NO_OPERATION,)) + data[1:]


# -- framing -----------------------------------------------------------------------------


def conversation(talk: Talk) -> tuple[bytes, bytes, bytes, bytes]:
    """Requests and answers, what the server gets of them, and what the program gets."""
    good, bad = talk.request(43, 0), talk.request(44, 0)
    image = talk.request(72, 2, OWN, OWN, 0, 0, 0, size=4000)
    steal = talk.request(73, 2, ROOT, 0, 0, 0)
    requests = good + image + steal + bad + steal + good
    passed = good + image + refused(steal) + bad + refused(steal) + good
    answers, seen = b"", b""
    for number, kind in enumerate((1, 0, 2, 3, 2, 1), 1):
        talk.sequence = number
        if kind == 1:
            answer = shown = talk.reply(b"focus", bytes(64)) + talk.event(12, 5)
        elif kind == 2:
            answer = talk.event(12, 6) + talk.error()
            shown = talk.event(12, 6) + struct.pack(
                talk.order + "BBHIHB21x", 0, BAD_MATCH, number, 0, 0, 73
            )
        elif kind == 3:
            answer, shown = talk.reply(b"keys" * 6, b"keys" * 2), talk.reply(bytes(24), bytes(8))
        else:
            answer = shown = b""  # drawing
        answers += answer
        seen += shown
    talk.sequence = 0
    return requests, answers, passed, seen


@ORDERS
@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 33, 100, 10000])
def test_however_the_bytes_arrive_the_same_is_passed_on(order: str, size: int) -> None:
    talk = Talk(order)
    requests, answers, wanted, shown = conversation(talk)
    passed = b"".join(
        b"".join(map(bytes, talk.filter.from_client(requests[at : at + size])))
        for at in range(0, len(requests), size)
    )
    assert passed == wanted
    seen = b"".join(
        talk.filter.from_server(answers[at : at + size]) for at in range(0, len(answers), size)
    )
    assert seen == shown


def test_a_long_request_passes_as_it_is() -> None:
    """Without a copy: it is most of what goes over the line."""
    talk = Talk()
    image = talk.request(72, 2, OWN, OWN, size=100_000)
    talk.send(image[:50_000])
    middle = memoryview(image)[50_000:60_000]
    assert talk.filter.from_client(middle)[0] is middle


@ORDERS
def test_big_requests_have_a_longer_head_once_they_are_enabled(order: str) -> None:
    talk = Talk(order)
    big = struct.pack(order + "BBHIII", 72, 2, 0, 20_000, OWN, OWN).ljust(80_000, b"\0")
    foreign = struct.pack(order + "BBHIII", 72, 2, 0, 20_000, OTHERS, OWN).ljust(80_000, b"\0")
    with pytest.raises(MalformedMessage):
        Talk(order).send(big)
    enable = talk.request(talk.extension(b"BIG-REQUESTS"), 0)
    after = talk.request(43, 0)
    assert talk.send(enable + big + foreign + after) == enable + big + refused(foreign) + after


@ORDERS
def test_a_big_request_may_not_be_shorter_than_its_head(order: str) -> None:
    talk = Talk(order)
    talk.send(talk.request(talk.extension(b"BIG-REQUESTS"), 0))
    with pytest.raises(MalformedMessage):
        talk.send(struct.pack(order + "BBHI", 127, 0, 0, 1))


def test_the_longest_big_request_holds_no_memory() -> None:
    talk = Talk()
    talk.send(talk.request(talk.extension(b"BIG-REQUESTS"), 0))
    talk.send(struct.pack("<BBHI", 127, 0, 0, WORDS_LIMIT) + bytes(100))
    assert len(talk.filter._part) == 0


@pytest.mark.parametrize("words", [WORDS_LIMIT + 1, 0x40000001, 0xFFFFFFFF])
def test_a_length_that_servers_have_taken_for_a_smaller_one_ends_the_connection(words: int) -> None:
    """CVE-2014-8092: what a server took for the next request would pass the filter unseen."""
    talk = Talk()
    talk.send(talk.request(talk.extension(b"BIG-REQUESTS"), 0))
    with pytest.raises(MalformedMessage):
        talk.send(struct.pack("<BBHI", 127, 0, 0, words))


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(("minor", "words"), [(1, ()), (0, (0,))])
def test_big_requests_that_the_server_does_not_enable_are_none(
    trusted: bool, minor: int, words: tuple[int, ...]
) -> None:
    """Otherwise the rest of one would be requests to the server that the filter passes over."""
    talk = Talk(trusted=trusted)
    talk.send(talk.request(talk.extension(b"BIG-REQUESTS"), minor, *words))
    with pytest.raises(MalformedMessage):
        talk.send(struct.pack("<BBHI", 127, 0, 0, 100))


def test_sequence_numbers_pass_65536() -> None:
    talk = Talk()
    talk.send(talk.request(127, 0) * 65_000, 65_000)
    talk.receive(talk.event(12))
    talk.send(talk.request(127, 0) * 600, 600)
    data = talk.request(109, 0, 0)
    assert talk.send(data) == refused(data)
    assert talk.sequence == 65_601
    assert talk.receive(talk.error())[1] == BAD_ACCESS


@ORDERS
@pytest.mark.parametrize("trusted", [False, True])
def test_an_answer_is_of_one_request_though_65536_have_the_same_number(
    order: str, trusted: bool
) -> None:
    """The reply of the first was taken for that of the second, which then passed as it was."""
    talk = Talk(order, trusted=trusted)
    first, second = talk.request(43, 0), talk.request(99, 0)
    with pytest.raises(MalformedMessage):
        talk.send(first + talk.request(127, 0) * 65_535 + second)
    talk = Talk(order, trusted=trusted)
    between = talk.request(127, 0) * 65_534
    talk.send(first + between + first + second, 65_537)
    for number in (1, 65_536):
        talk.sequence = number
        assert talk.receive(focus := talk.reply(b"x" * 24)) == focus
    talk.sequence = 65_537
    shown = talk.receive(talk.reply(b"", b"\7MIT-SHM", first=1))
    assert shown[1] == 0 and b"MIT-SHM" not in shown


def test_a_request_that_is_to_have_an_answer_is_never_dropped() -> None:
    dropped_ones = {row.opcode for row in CORE if row.otherwise is Act.DROP}
    assert not dropped_ones & ANSWERED


def test_a_program_that_draws_hears_of_it_before_65536_requests() -> None:
    """Libraries ask for a reply by then; an event tells as much."""
    talk = Talk()
    for _ in range(4):
        talk.send(talk.request(127, 0) * 40_000, 40_000)
        talk.receive(struct.pack("<BB30x", 11, 5) + talk.event(12))
    with pytest.raises(MalformedMessage):
        talk.send(talk.request(127, 0) * 65_536)


@pytest.mark.parametrize("opcode", [98, 110])
def test_a_server_that_stands_still_owes_a_limited_number_of_answers(opcode: int) -> None:
    """Each took 600 bytes of memory, for a request of four."""
    talk = Talk()
    talk.send(talk.request(opcode, 0) * AWAITED_LIMIT)
    with pytest.raises(MalformedMessage):
        talk.send(talk.request(opcode, 0))


def test_an_error_of_the_servers_own_is_left_alone() -> None:
    talk = Talk()
    talk.send(talk.request(14, 0, OWN))
    error = talk.error(9, 14)
    assert talk.receive(error) == error


def test_long_events_and_replies_are_framed() -> None:
    talk = Talk()
    generic = struct.pack("<BBHI", 35, 131, 0, 10).ljust(72, b"\1")
    assert talk.receive(generic + talk.event(2)) == generic + talk.event(2)


@ORDERS
def test_a_program_that_speaks_before_it_is_let_in_is_judged_afterwards(order: str) -> None:
    made = Filter(order, "out", False)
    early = struct.pack(order + "BBHI", 4, 0, 2, OTHERS)
    assert made.from_client(early[:3]) == made.from_client(early[3:]) == []
    assert not made.has_early
    reply = set_up_reply(order)
    for place in range(len(reply)):
        made.from_server(reply[place : place + 1])
    assert made.has_early
    assert b"".join(map(bytes, made.early())) == refused(early)
    assert not made.has_early


def test_a_request_waits_for_the_server_to_tell_of_its_extension() -> None:
    """A relay that hides round trips has told the program already."""
    talk = Talk()
    asking = struct.pack("<BBHHH8s", 98, 0, 4, 6, 0, b"RENDER")
    using = struct.pack("<BBHII", 139, 0, 3, 0, 11)
    assert b"".join(map(bytes, talk.filter.from_client(asking + using))) == asking
    assert not talk.filter.has_early
    reply = struct.pack("<BBHIBBBB20x", 1, 0, 1, 0, 1, 139, 0, 0)
    assert talk.filter.from_server(reply) == reply
    assert talk.filter.has_early
    assert b"".join(map(bytes, talk.filter.early())) == using


def test_but_not_for_ever() -> None:
    with pytest.raises(MalformedMessage):
        Filter("<", "out", False).from_client(bytes(EARLY_LIMIT + 1))


def test_a_program_that_is_not_let_in_reaches_nothing() -> None:
    made = Filter("<", "out", False)
    failed = struct.pack("<BBHHH", 0, 4, 11, 0, 1) + b"away"
    assert made.from_server(failed) == failed
    assert made.from_client(struct.pack("<BBH", 43, 0, 1)) == []


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_arbitrary_requests_are_judged_or_an_error(chunks: list[bytes], trusted: bool) -> None:
    talk = Talk(trusted=trusted)
    try:
        for chunk in chunks:
            talk.filter.from_client(chunk)
    except MalformedMessage:
        return
    assert len(talk.filter._part) <= HELD_LIMIT


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_answers_keep_their_length(chunks: list[bytes]) -> None:
    talk = Talk()
    talk.send(talk.request(44, 0) + talk.request(99, 0) + talk.request(73, 0, ROOT), 3)
    passed = sum(len(talk.filter.from_server(chunk)) for chunk in chunks)
    held = len(talk.filter._answer_part)
    assert passed + held == sum(map(len, chunks))
    assert held < HELD_LIMIT


@given(st.binary(max_size=300))
def test_an_arbitrary_greeting_passes(data: bytes) -> None:
    assert Filter("<", "out", False).from_server(data) == data


@ORDERS
def test_requests_of_every_length_are_judged_or_left_to_the_server(order: str) -> None:
    """A program of the server must not end the client by an error of Python's."""
    talk = Talk(order)
    talk.send(talk.request(talk.extension(b"BIG-REQUESTS"), 0))
    rows = [(row.opcode, 0) for row in CORE]
    for name, extension in EXTENSIONS.items():
        major = talk.extension(name)
        rows += [(major, row.opcode) for row in extension]
    for opcode, minor in rows:
        for words in (*range(1, 30), 0xFFFE, 0xFFFF):
            body = struct.pack(order + "I", OWN) * (words - 1)
            small = struct.pack(order + "BBH", opcode, minor, words) + body
            assert len(talk.send(small)) - len(small) in (0, 4)
            big = struct.pack(order + "BBHI", opcode, minor, 0, words + 1) + body
            assert len(talk.send(big)) == len(big)


def test_no_opcode_is_left_to_chance() -> None:
    """Core opcodes without a row, and all of extensions that nobody has asked for."""
    talk = Talk()
    for opcode in (0, *range(120, 127), *range(128, 256)):
        data = talk.request(opcode, 0, OWN, OWN)
        assert talk.send(data) == refused(data)
        assert talk.receive(talk.error())[1] == BAD_REQUEST
    data = talk.request(talk.extension(b"RENDER"), 200, OWN)
    assert talk.send(data) == refused(data)


def test_a_trusted_program_uses_no_extension_that_it_was_not_told_of() -> None:
    """It could guess the opcode of MIT-SHM, and attach shared memory of this machine."""
    talk = Talk(trusted=True)
    talk.extension(b"RENDER")
    for opcode in range(128, 256):
        data = talk.request(opcode, 1, OWN, 1, 0)
        is_known = opcode == talk.majors[b"RENDER"]
        assert talk.send(data) == (data if is_known else refused(data))


# -- extensions --------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("trusted", [False, True])
def test_the_list_of_extensions_names_those_that_are_there(order: str, trusted: bool) -> None:
    talk = Talk(order, trusted=trusted)
    names = [b"MIT-SHM", b"RENDER", b"XTEST", b"DRI3", b"SHAPE"]
    text = b"".join(bytes((len(name),)) + name for name in names)
    text += bytes(-len(text) % 4)
    talk.send(talk.request(99, 0))
    answer = talk.reply(b"", text, first=len(names))
    seen = talk.receive(answer[:40]) + talk.receive(answer[40:])
    assert len(seen) == len(answer)
    assert seen[1] == (3 if trusted else 2)
    assert (b"XTEST" in seen) is trusted
    assert b"MIT-SHM" not in seen and b"DRI3" not in seen
    assert b"\6RENDER" in seen and b"\5SHAPE" in seen


def test_an_extension_that_the_server_lacks_is_not_there() -> None:
    talk = Talk()
    talk.send(struct.pack("<BBHHxx", 98, 0, 4, 6) + b"RENDER\0\0")
    talk.receive(talk.reply(bytes((0, 140, 0, 0))))
    data = talk.request(140, 0)
    assert talk.send(data) == refused(data)


# -- windows -----------------------------------------------------------------------------


def create(talk: Talk, mask: int, *values: int, kind: int = 1, parent: int = ROOT) -> bytes:
    head = struct.pack(talk.order + "BBHII", 1, 24, 8 + len(values), OWN, parent)
    head += struct.pack(talk.order + "hhHHHHII", 0, 0, 9, 9, 0, kind, 0, mask)
    return head + struct.pack(f"{talk.order}{len(values)}I", *values)


@ORDERS
def test_a_window_has_a_background_so_that_it_shows_nothing_of_others(order: str) -> None:
    talk = Talk(order)
    assert talk.send(create(talk, 0x800, 5)) == create(talk, 0x802, 0, 5)
    assert talk.filter.inserted == 4
    assert talk.send(create(talk, 0x801, 0, 5)) == create(talk, 0x802, 0, 5)
    for same in (
        create(talk, 0x801, OWN, 5), create(talk, 0x802, 9, 5),
        create(talk, 0x803, 0, 9, 5), create(talk, 0x800, 5, kind=2),
    ):  # fmt: skip
        assert talk.send(same) == same
    assert talk.filter.inserted == 4
    talk.send(talk.request(4, 0, OWN) + create(talk, 0x800, 5, kind=2), 2)
    inside = create(talk, 0x800, 5, kind=0, parent=OWN)  # of a window that is for input only
    assert talk.send(inside) == inside
    attributes = talk.request(2, 0, OWN + 1, 1, 0)
    assert talk.send(attributes) == talk.request(2, 0, OWN + 1, 2, 0)


@ORDERS
def test_a_window_has_no_background_of_a_parent_of_others(order: str) -> None:
    """Which may have none: a window manager's frame, or the root of a server that came up so."""
    talk = Talk(order)
    relative, painted = talk.request(2, 0, OWN, 1, 1), talk.request(2, 0, OWN, 2, 0)
    to_root, to_own = (talk.request(7, 0, OWN, parent, 0) for parent in (ROOT, OWN + 1))
    assert talk.send(create(talk, 0x801, 1, 5)) == create(talk, 0x802, 0, 5)
    assert talk.send(relative) == painted
    talk.send(talk.request(4, 0, OWN))
    inside = create(talk, 0x801, 1, 5, parent=OWN + 1)
    assert talk.send(inside) == inside
    assert talk.send(to_own + to_root, 2) == to_own + refused(to_root)
    talk.send(talk.request(4, 0, OWN))
    talk.send(create(talk, 2, 0, parent=OWN + 1))
    assert talk.send(to_root) == to_root
    assert talk.send(relative) == painted


def test_a_window_is_painted_with_no_others_pixmap() -> None:
    talk = Talk()
    attributes = talk.request(2, 0, OWN, 1, OTHERS)
    for data in (create(talk, 1, OTHERS), create(talk, 4, OTHERS), attributes):
        assert talk.send(data) == refused(data)


@ORDERS
def test_of_others_windows_a_program_hears_harmless_events_only(order: str) -> None:
    talk = Talk(order)
    for window in (ROOT, OTHERS):
        data = talk.request(2, 0, window, 0x800, 0xFFFFFFFF)
        assert talk.send(data) == talk.request(2, 0, window, 0x800, 0xEB8000)
        data = talk.request(2, 0, window, 0x4001, 0, 5)  # background and cursor
        assert talk.send(data) == refused(data)
    data = talk.request(2, 0, OWN, 0x800, 0xFFFFFF)
    assert talk.send(data) == data


@pytest.mark.parametrize("trusted", [False, True])
def test_no_event_names_the_keys_that_are_down(trusted: bool) -> None:
    """Every window that comes under the pointer can have it, wherever the keys are typed."""
    talk = Talk(trusted=trusted)
    keys = b"\13" + b"keys" * 7 + b"key"
    assert talk.receive(keys + talk.event(7)) == (
        (keys if trusted else b"\13" + bytes(31)) + talk.event(7)
    )


@ORDERS
def test_raw_events_of_xinput_are_for_nobody(order: str) -> None:
    talk = Talk(order)
    major = talk.extension(b"XInputExtension")

    def select(window: int, *masks: bytes) -> bytes:
        body = struct.pack(order + "IHxx", window, len(masks))
        body += b"".join(struct.pack(order + "HH", 1, len(mask) // 4) + mask for mask in masks)
        return struct.pack(order + "BBH", major, 46, 1 + len(body) // 4) + body

    everything = b"\xff" * 8
    harmless = bytes((2, 0x18, 0, 0, 0, 0, 0, 0))
    assert talk.send(select(ROOT, everything, everything)) == select(ROOT, harmless, harmless)
    assert talk.send(select(OWN, everything)) == select(OWN, everything)
    long = select(OTHERS, *[everything] * 20)
    assert talk.send(long[:100]) + talk.send(long[100:], 0) == select(OTHERS, *[harmless] * 20)
    wrong = struct.pack(order + "BBHIHxxHH", major, 46, 4, ROOT, 1, 1, 9)
    assert talk.send(wrong) == refused(wrong)


@ORDERS
def test_events_of_xkb_that_name_keys_are_for_nobody(order: str) -> None:
    talk = Talk(order)
    major = talk.extension(b"XKEYBOARD")

    def select(which: int, clear: int, select: int) -> bytes:
        fields = struct.pack(order + "HHHHHH", 0x100, which, clear, select, 0xFF, 0xFF)
        return struct.pack(order + "BBH", major, 1, 4) + fields

    assert talk.send(select(0x007, 0, 0x007)) == select(0x007, 0, 0x007)
    assert talk.send(select(0xFFF, 0, 0xFFF)) == select(0xFFF, 0x600, 0x9FF)
    assert talk.send(select(0x604, 0x600, 0)) == select(0x604, 0x600, 0)
    assert talk.send(select(0x400, 0, 0)) == refused(select(0x400, 0, 0))


@ORDERS
def test_a_program_that_ends_leaves_the_keyboard_as_it_is(order: str) -> None:
    talk = Talk(order)
    major, big = talk.extension(b"XKEYBOARD"), talk.extension(b"BIG-REQUESTS")
    detectable = talk.request(major, 21, 0x100, 5, 5, 0, 0, 0)
    assert talk.send(detectable) == detectable
    assert talk.send(talk.request(major, 21, 0x100, 5, 5, 1, 1, 1)) == detectable
    short = talk.request(major, 21, 0x100, 5, 5, 1, 1)
    assert talk.send(short) == refused(short)
    talk.send(talk.request(big, 0))
    short = struct.pack(order + "BBHI", major, 21, 0, 7).ljust(28, b"\1")
    assert talk.send(short) == refused(short)


# -- properties --------------------------------------------------------------------------


def get(talk: Talk, window: int, atom: int, delete: int = 0) -> bytes:
    return talk.request(20, delete, window, atom, 0, 0, 100)


@ORDERS
def test_the_properties_of_others_are_empty_but_for_what_programs_need(order: str) -> None:
    talk = Talk(order)
    known = talk.intern(b"_NET_WORKAREA", 400)
    settings = talk.intern(b"_XSETTINGS_SETTINGS", 401)
    talk.intern(b"SECRET", 402)
    nothing = 45
    for window, atom, seen in (
        (OWN, 402, 402), (ROOT, known, known), (ROOT, 23, 23), (OTHERS, settings, settings),
        (OTHERS, known, nothing), (OTHERS, 39, nothing), (ROOT, 402, nothing), (ROOT, 9, nothing),
        (ROOT, 403, nothing),
    ):  # fmt: skip
        assert talk.send(get(talk, window, atom)) == get(talk, window, seen)
    assert talk.send(get(talk, ROOT, known, 1)) == get(talk, ROOT, known, 0)
    assert talk.send(get(talk, OWN, 402, 1)) == get(talk, OWN, 402, 1)


@ORDERS
@pytest.mark.parametrize(
    ("extension", "minor", "delete", "size"),
    [(b"RANDR", 15, 24, 28), (b"RANDR", 41, 24, 28), (b"XInputExtension", 59, 6, 24)],
)
def test_a_property_of_a_device_is_not_deleted_when_it_is_read(
    order: str, extension: bytes, minor: int, delete: int, size: int
) -> None:
    talk = Talk(order)
    read = talk.request(talk.extension(extension), minor, size=size)
    deleting = read[:delete] + b"\1" + read[delete + 1 :]
    assert talk.send(read + deleting, 2) == read * 2


def test_the_properties_of_others_are_not_written() -> None:
    talk = Talk()
    for window in (ROOT, OTHERS):
        data = talk.request(18, 0, window, 9, 31, 8, 4, 0)
        assert talk.send(data) == dropped(data)


# -- the clipboard -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "offers", "reads"),
    [("none", False, False), ("out", True, False), ("in", False, True), ("both", True, True)],
)
@ORDERS
def test_the_clipboard_is_by_policy(order: str, policy: str, offers: bool, reads: bool) -> None:
    talk = Talk(order, policy)
    talk.intern(b"CLIPBOARD", CLIPBOARD)
    for selection in (1, 2, CLIPBOARD):
        data = talk.request(22, 0, OWN, selection, 0)
        assert talk.send(data) == (data if offers else dropped(data))
        data = talk.request(24, 0, OWN, selection, TARGETS, PROPERTY, 0)
        passed = talk.send(data)
        assert passed == (data if reads else talk.request(24, 0, OWN, 45, TARGETS, PROPERTY, 0))
        notify = talk.event(31, 0, OWN, selection if reads else 45, TARGETS, 0)
        assert talk.receive(notify) == talk.event(31, 0, OWN, selection, TARGETS, 0)


def test_a_selection_that_rules_the_desktop_is_not_taken() -> None:
    talk = Talk(clipboard="both")
    data = talk.request(22, 0, OWN, talk.intern(b"WM_S0", 500), 0)
    assert talk.send(data) == dropped(data)


def send_event(talk: Talk, destination: int, kind: int, *words: int, propagate: int = 0) -> bytes:
    event = struct.pack(f"{talk.order}BBH{len(words)}I", kind, 32, 0, *words).ljust(32, b"\0")
    return struct.pack(talk.order + "BBHII", 25, propagate, 11, destination, 0) + event


@ORDERS
def test_who_asks_for_what_a_program_offers_gets_it(order: str) -> None:
    talk = Talk(order)
    talk.intern(b"MULTIPLE", MULTIPLE)

    def write(atom: int) -> bytes:
        return talk.request(18, 0, OTHERS, atom, 31, 8, 4, 0)

    answer = send_event(talk, OTHERS, 31, 0, OTHERS, CLIPBOARD, TARGETS, PROPERTY)
    assert talk.send(answer) == refused(answer)
    talk.receive(talk.event(30, 0, OWN, OTHERS, CLIPBOARD, TARGETS, PROPERTY))
    assert talk.send(write(PROPERTY)) == write(PROPERTY)
    assert talk.send(answer) == answer
    assert talk.send(write(TITLE)) == dropped(write(TITLE))
    talk.receive(talk.event(30, 0, OWN, OTHERS, CLIPBOARD, MULTIPLE, PROPERTY))
    assert talk.send(write(TITLE)) == write(TITLE)
    assert talk.send(write(39)) == dropped(write(39))  # WM_NAME


def test_only_the_last_windows_that_asked_are_remembered() -> None:
    talk = Talk()
    for number in range(1000):
        talk.receive(talk.event(30, 0, OWN, OTHERS + number, CLIPBOARD, TARGETS, PROPERTY))
    assert len(talk.filter._requestors) == 64


# -- events ------------------------------------------------------------------------------


@ORDERS
def test_events_are_sent_about_a_programs_own_windows(order: str) -> None:
    talk = Talk(order)
    ping = talk.intern(b"_NET_WM_PING", 600)
    protocols = talk.intern(b"WM_PROTOCOLS", 602)
    for data in (
        send_event(talk, OWN, 2), send_event(talk, ROOT, 33, OWN, 601),
        send_event(talk, ROOT, 33, ROOT, protocols, ping), send_event(talk, ROOT, 18, ROOT, OWN),
        send_event(talk, ROOT, 23, ROOT, OWN),
    ):  # fmt: skip
        assert talk.send(data) == data
    for data in (
        send_event(talk, OTHERS, 2), send_event(talk, ROOT, 2), send_event(talk, 0, 2),
        send_event(talk, 1, 2), send_event(talk, OWN, 2, propagate=1),
        send_event(talk, ROOT, 33, ROOT, ping), send_event(talk, ROOT, 33, ROOT, 601, ping),
        send_event(talk, ROOT, 33, OTHERS, protocols, ping),
        send_event(talk, ROOT, 33, OTHERS, 601), send_event(talk, OTHERS, 33, OTHERS, 601),
        send_event(talk, OTHERS, 33, OWN, 601), send_event(talk, ROOT, 18, ROOT, OTHERS),
        send_event(talk, ROOT, 0x82), send_event(talk, OWN, 35), send_event(talk, OWN, 0xA3),
    ):  # fmt: skip
        assert talk.send(data) == refused(data)


# -- pictures ----------------------------------------------------------------------------


def test_no_window_and_nothing_of_others_is_a_source_of_pictures() -> None:
    talk = Talk()
    render = talk.extension(b"RENDER")
    talk.send(talk.request(53, 24, OWN, ROOT, 9))
    of_pixmap, of_window = OWN + 1, OWN + 2
    talk.send(talk.request(render, 4, of_pixmap, OWN, 1, 0))
    talk.send(talk.request(render, 4, of_window, OWN + 9, 1, 0))
    good = talk.request(render, 8, 3, of_pixmap, 0, of_window, 0, 0, 0, 0)
    assert talk.send(good) == good
    for source, mask in ((of_window, 0), (of_pixmap, of_window)):
        bad = talk.request(render, 8, 3, source, mask, of_pixmap, 0, 0, 0, 0)
        assert talk.send(bad) == refused(bad)
    talk.send(talk.request(render, 7, of_window))
    talk.send(talk.request(render, 4, of_window, OWN, 1, 0))
    again = talk.request(render, 8, 3, of_window, 0, of_pixmap, 0, 0, 0, 0)
    assert talk.send(again) == again


def test_a_creation_that_fails_makes_no_window_a_pixmap_or_one_for_input_only() -> None:
    """The server refuses a number that is taken, and the filter must not believe it."""
    talk = Talk()
    render = talk.extension(b"RENDER")
    talk.send(create(talk, 2, 0))
    talk.send(talk.request(53, 24, OWN, ROOT, 9))
    talk.send(talk.request(render, 4, OWN + 1, OWN, 1, 0))
    peek = talk.request(render, 8, 3, OWN + 1, 0, OWN + 1, 0, 0, 0, 0)
    assert talk.send(peek) == refused(peek)
    talk.send(create(talk, 0, kind=2))
    assert talk.send(talk.request(2, 0, OWN, 1, 0)) == talk.request(2, 0, OWN, 2, 0)
    talk.send(talk.request(4, 0, OWN) + talk.request(53, 24, OWN, ROOT, 9), 2)
    talk.send(talk.request(render, 7, OWN + 1) + talk.request(render, 4, OWN + 1, OWN, 1, 0), 2)
    assert talk.send(peek) == peek


@ORDERS
@pytest.mark.parametrize("minor", [23, 24, 25])
def test_a_text_has_no_glyphs_of_others(order: str, minor: int) -> None:
    """They tell which letters other programs have shown; a text may change its glyph set."""
    talk = Talk(order)
    render, big = talk.extension(b"RENDER"), talk.extension(b"BIG-REQUESTS")

    def text(*sets: int, size: int = 0) -> bytes:
        glyphs = bytes((5 << minor - 23) + 3 & ~3)
        elements = b"".join(
            struct.pack(order + "BxxxhhBxxxhhI", 5, 1, 1, 255, 0, 0, number).replace(
                b"\xff\0\0\0", glyphs + b"\xff\0\0\0"
            )
            for number in sets
        )
        body = struct.pack(order + "BxxxIIIIhh", 3, OWN, OWN + 1, 0, OWN + 2, 0, 0) + elements
        body = body.ljust(size, b"\0")
        return struct.pack(order + "BBH", render, minor, 1 + len(body) // 4) + body

    good, bad = text(OWN, OWN, OWN), text(OWN, OWN, OTHERS)
    assert talk.send(good + bad + good, 3) == good + refused(bad) + good
    bad = text(OTHERS, *[OWN] * 300)
    assert talk.send(bad[:8000]) == b""
    assert talk.send(bad[8000:]) == refused(bad)
    assert talk.send(text(OWN, size=0xFFFC * 4)) == text(OWN, size=0xFFFC * 4)
    talk.send(talk.request(big, 0))
    long = struct.pack(order + "BBHIB", render, minor, 0, 0x10000, 3)
    long += bytes(3) + struct.pack(order + "IIII", OWN, OWN, 0, OWN)
    assert talk.send(long.ljust(300, b"\0"))[0] == BAD


def test_what_is_not_destroyed_keeps_its_traits() -> None:
    """A request of a wrong length is an error of the server, and the window is still there."""
    talk = Talk()
    render = talk.extension(b"RENDER")
    talk.send(create(talk, 2, 0))
    talk.send(talk.request(render, 4, OWN + 1, OWN, 1, 0))
    talk.send(talk.request(4, 0, OWN, 0) + talk.request(render, 7, OWN + 1, 0), 2)
    talk.send(create(talk, 0, kind=2))
    assert talk.send(talk.request(2, 0, OWN, 1, 0)) == talk.request(2, 0, OWN, 2, 0)
    talk.send(talk.request(53, 24, OWN, ROOT, 9))
    talk.send(talk.request(render, 4, OWN + 2, OWN, 1, 0))
    for source in (OWN + 1, OWN + 2):
        peek = talk.request(render, 8, 3, source, 0, OWN + 3, 0, 0, 0, 0)
        assert talk.send(peek) == refused(peek)


def test_what_is_known_of_resources_and_atoms_takes_little_memory() -> None:
    """Every number and name that a program can think of; it took 130 MB."""
    talk = Talk()
    for number in range(0, MASK, 0x1000):
        talk.send(talk.request(53, 99, BASE + number, ROOT, 0))
    assert len(talk.filter._traits) <= MASK + 1
    for number in range(ATOMS_LIMIT + 9):
        talk.intern(b"_NET_%d" % number, 1000 + number)
    assert len(talk.filter._atoms) == ATOMS_LIMIT


@pytest.mark.parametrize(("bit", "before"), [(10, 2), (11, 0), (19, 3)])
def test_a_gc_holds_no_pixmap_of_others(bit: int, before: int) -> None:
    talk = Talk()
    others = [0, 1, 2, 3][:before]
    mask = 1 << bit | sum(1 << each for each in others)
    for value in (OWN, OTHERS):
        values = [*[7] * before, value]
        for data in (
            talk.request(55, 0, OWN, ROOT, mask, *values),
            talk.request(56, 0, OWN, mask, *values),
        ):
            assert talk.send(data) == (data if value == OWN else refused(data))


@pytest.mark.parametrize("bit", [1, 6])
def test_a_picture_holds_nothing_of_others(bit: int) -> None:
    talk = Talk()
    render = talk.extension(b"RENDER")
    for value in (OWN, OTHERS, 0):
        for data in (
            talk.request(render, 4, OWN, OWN, 1, 1 | 1 << bit, 1, value),
            talk.request(render, 5, OWN, 1 | 1 << bit, 1, value),
        ):
            assert talk.send(data) == (refused(data) if value == OTHERS else data)
