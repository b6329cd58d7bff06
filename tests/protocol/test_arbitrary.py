"""Whatever comes, in whatever order: nothing is raised, and nobody is let in by it."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import PeerError
from appliance.ssh.connection import Connection
from appliance.ssh.order import Phase, Role, Verdict, verdict
from appliance.wire import messages
from appliance.wire.codec import Message, Name, UInt32
from tests.protocol.harness import Pair, Recorder, Script, make_client, make_server
from tests.protocol.test_before_authentication import PHASES, against, at
from tests.unit.wire.test_messages import MESSAGES, VALUES, field_of

CALM = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
REACHABLE = [
    *((Role.SERVER, phase) for phase in (*PHASES, Phase.AUTH_INFO)),
    *((Role.CLIENT, phase) for phase in (*PHASES, Phase.PRE_SUCCESS)),
]
OPEN = [(role, Phase.OPEN) for role in Role]


def reach(role: Role, phase: Phase) -> Script:
    """A connection in a phase; with a channel on each side when it is open."""
    if phase is not Phase.OPEN:
        return at(phase, role)
    script = against(role).log_in()
    if role is Role.SERVER:
        script.open()
    else:
        handler = script.peer._handler
        script.peer.open_channel("session", b"", handler.handler(handler.events))  # type: ignore[attr-defined]
        script.expect(90)
        channel = script.peer._channels[0]
        channel.handler.channel = channel  # type: ignore[attr-defined]
        script.send(messages.ChannelOpenConfirmation(0, 7, 1 << 20, 1 << 15))
    assert script.peer.transport.phase is Phase.OPEN
    return script


def assert_sound(connection: Connection, authenticated: bool = False) -> None:
    """It waits, or it is over because of the peer; and nobody got in who was not in before."""
    events = connection._handler.events  # type: ignore[attr-defined]
    if not authenticated:
        assert ("authenticated",) not in events
    if connection.transport.phase is Phase.CLOSED:
        assert isinstance(connection.transport.error, PeerError)
        assert events.count(("connection closed",)) == 1
        assert not connection._channels
    else:
        assert connection.transport.error is None
    for channel in connection._channels.values():
        assert channel.send_window >= 0
        assert channel.receive_window >= 0


@pytest.mark.parametrize("role", list(Role))
@CALM
@given(data=st.binary(max_size=600), pieces=st.integers(1, 50))
def test_arbitrary_bytes_in_place_of_a_version_raise_nothing(
    role: Role, data: bytes, pieces: int
) -> None:
    connection = against(role).peer
    for start in range(0, len(data), pieces):
        connection.transport.receive_data(data[start : start + pieces], 0.0)
    assert_sound(connection)


@pytest.mark.parametrize(("role", "phase"), [*REACHABLE, *OPEN])
@settings(CALM, max_examples=15)
@given(data=st.binary(min_size=1, max_size=300))
def test_arbitrary_bytes_in_place_of_a_packet_raise_nothing(
    role: Role, phase: Phase, data: bytes
) -> None:
    script = reach(role, phase)
    script.raw(data)
    assert_sound(script.peer, phase is Phase.OPEN)


@pytest.mark.parametrize(("role", "phase"), [*REACHABLE, *OPEN])
@settings(CALM, max_examples=40)
@given(data=st.data())
def test_arbitrary_payloads_raise_nothing(role: Role, phase: Phase, data: st.DataObject) -> None:
    """Packets that are sealed as they should be, with anything in them."""
    script = reach(role, phase)
    number = st.sampled_from([kind.number for kind in MESSAGES]) | st.integers(0, 255)
    for _ in range(data.draw(st.integers(1, 4))):
        payload = bytes([data.draw(number)]) + data.draw(st.binary(max_size=60))
        if payload[0] == 52 and role is Role.CLIENT:  # which would be right
            continue
        script.send(payload)
    assert_sound(script.peer, phase is Phase.OPEN)


SMALL = dict(VALUES)
SMALL[field_of(UInt32)] = st.sampled_from([0, 1, 7, 32768, 0xFFFFFFFF])
SMALL[field_of(Name)] = st.sampled_from(
    ["ssh-userauth", "ssh-connection", "publickey", "password", "none", "session", "exec", "", "x"]
)


@pytest.mark.parametrize(("role", "phase"), [*REACHABLE, *OPEN])
@settings(CALM, max_examples=40)
@given(data=st.data())
def test_arbitrary_sequences_of_valid_messages_raise_nothing(
    role: Role, phase: Phase, data: st.DataObject
) -> None:
    script = reach(role, phase)
    for _ in range(data.draw(st.integers(1, 6))):
        kind: type[Message] = data.draw(st.sampled_from(MESSAGES))
        values = {name: data.draw(SMALL[field]) for name, field in kind._fields.items()}
        if kind is messages.UserauthSuccess and role is Role.CLIENT:
            continue
        if kind is messages.NewKeys and phase is Phase.NEWKEYS:
            continue  # from there on they would need the keys
        script.send(kind(**values))
    assert_sound(script.peer, phase is Phase.OPEN)


@pytest.mark.parametrize("role", list(Role))
@settings(CALM, max_examples=150)
@given(
    numbers=st.lists(
        st.sampled_from([93, 94, 94, 94, 95, 96, 97, 98, 99, 100, 90, 91, 92, 80, 82]), max_size=12
    ),
    size=st.sampled_from([0, 1, 50_000]),
)
def test_arbitrary_life_of_a_channel_raises_nothing(
    role: Role, numbers: list[int], size: int
) -> None:
    script = reach(role, Phase.OPEN)
    made: dict[int, Message] = {
        80: messages.GlobalRequest("yes", True),
        82: messages.RequestFailure(),
        90: messages.ChannelOpen("session", 8, size, size),
        91: messages.ChannelOpenConfirmation(0, 7, size, size),
        92: messages.ChannelOpenFailure(0, 1),
        93: messages.ChannelWindowAdjust(0, size),
        94: messages.ChannelData(0, bytes(size)),
        95: messages.ChannelExtendedData(0, size, bytes(size)),
        96: messages.ChannelEof(0),
        97: messages.ChannelClose(0),
        98: messages.ChannelRequest(0, "exec", bool(size)),
        99: messages.ChannelSuccess(0),
        100: messages.ChannelFailure(0),
    }
    for number in numbers:
        script.send(made[number])
    assert_sound(script.peer, True)


def test_every_role_phase_and_number_has_a_verdict() -> None:
    for role in Role:
        for phase in Phase:
            for number in range(256):
                for strict in (True, False):
                    for first in (True, False):
                        found = verdict(role, phase, number, strict, first)
                        assert isinstance(found, Verdict)
                        if phase is not Phase.OPEN and number >= 80:
                            assert found is Verdict.REFUSE
                        if found is Verdict.UNKNOWN:
                            assert phase is Phase.OPEN


class Spoiler:
    """Exchanges one message that a side sends for another."""

    def __init__(self, connection: Connection, which: int, spoil: Callable[[bytes], bytes]) -> None:
        self.number = -1
        self.before = connection.transport._writer.packet
        self.which = which
        self.spoil = spoil
        connection.transport._writer.packet = self  # type: ignore[method-assign]

    def __call__(self, payload: bytes) -> None:
        self.number += 1
        payload = bytes(payload)
        self.before(self.spoil(payload) if self.number == self.which else payload)


@pytest.mark.parametrize("side", ["client", "server"])
@settings(CALM, max_examples=120)
@given(
    which=st.integers(0, 11),
    bit=st.integers(0, 1 << 14),
    kind=st.sampled_from(["flip", "cut", "add"]),
)
def test_a_session_with_one_message_mutated_raises_nothing(
    side: str, which: int, bit: int, kind: str
) -> None:
    """Mutated before it is encrypted, so that it reaches the reader of its fields."""

    def spoil(payload: bytes) -> bytes:
        place = bit // 8 % len(payload)
        if kind == "flip":
            changed = bytearray(payload)
            changed[place] ^= 1 << bit % 8
            return bytes(changed)
        return payload[: place or 1] if kind == "cut" else payload + bytes(place + 1)

    pair = Pair()
    # the first KEXINIT of each side is sent already, and mutated on its way below
    spoiler = Spoiler(getattr(pair, side), which, spoil)
    pair.pump()
    if ("authenticated",) in pair.at_client.events and ("authenticated",) in pair.at_server.events:
        handler = pair.at_client.handler(pair.at_client.events)
        handler.channel = pair.client.open_channel("session", b"", handler)
        pair.pump()
        if handler.channel.sendable():
            handler.channel.request("exec", b"x", lambda _: None)
            handler.channel.send(b"data")
            pair.client.transport.rekey()
            pair.pump()
            handler.channel.close()
            pair.pump()
    assert spoiler.number >= 0
    for connection in (pair.client, pair.server):
        if connection.transport.phase is Phase.CLOSED:
            assert isinstance(connection.transport.error, PeerError)


@pytest.mark.parametrize("side", ["client", "server"])
@settings(CALM, max_examples=60)
@given(place=st.integers(0, 4000), bit=st.integers(0, 7))
def test_a_handshake_with_one_bit_flipped_on_its_way_lets_nobody_in(
    side: str, place: int, bit: int
) -> None:
    """Flipped by somebody in between: two sides that agree have seen the same."""
    pair = Pair()
    sender: Connection = getattr(pair, side)
    receiver = pair.server if side == "client" else pair.client
    sent = 0
    flipped = False
    for _ in range(20):
        data = bytearray(sender.transport.data_to_send())
        sender.transport.sent(len(data))
        if not flipped and sent <= place < sent + len(data):
            data[place - sent] ^= 1 << bit
            flipped = True
        sent += len(data)
        if data:
            receiver.transport.receive_data(bytes(data), 0.0)
        pair.move(receiver, sender)
    errors = [connection.transport.error for connection in (pair.client, pair.server)]
    assert all(error is None or isinstance(error, PeerError) for error in errors)
    # One flipped in a packet's length may have the receiver wait for more, without a session.
    sessions = {end.transport.session_id for end in (pair.client, pair.server)}
    if errors == [None, None] and b"" not in sessions:
        # Nothing covers the padding of a packet before the first keys, and only that.
        assert len(sessions) == 1


def test_both_makers_are_used() -> None:
    """The scripts above meet both roles."""
    assert {make(Recorder()).transport.role for make in (make_client, make_server)} == set(Role)
