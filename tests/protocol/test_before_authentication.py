"""What comparable servers got wrong before anybody was authenticated, one case a test."""

import itertools
import re
from collections.abc import Callable

import pytest

from appliance import __version__
from appliance.crypto.keys import PublicKey
from appliance.crypto.suites import (
    HOST_KEY_ALGORITHMS,
    STRICT_CLIENT,
    STRICT_SERVER,
    USER_KEY_ALGORITHMS,
    default_algorithms,
)
from appliance.errors import (
    HostKeyRejected,
    KeyExchangeFailed,
    PeerDisconnected,
    PeerError,
    ProtocolError,
)
from appliance.ssh.auth_client import FACTORS_LIMIT
from appliance.ssh.auth_server import HOSTBOUND
from appliance.ssh.connection import Connection
from appliance.ssh.order import Phase, Role, Verdict, verdict
from appliance.ssh.packets import HANDSHAKE_PACKET_LIMIT, MAXIMUM_BUFFER, PACKET_LIMIT
from appliance.ssh.settings import ServerSide
from appliance.ssh.transport import (
    EARLY_ANSWERS_LIMIT,
    EARLY_BYTES,
    EARLY_PACKETS,
    LINES_LIMIT,
)
from appliance.wire.codec import Message, write_boolean, write_name, write_string
from appliance.wire.messages import (
    ChannelOpen,
    Debug,
    Disconnect,
    ExtInfo,
    GlobalRequest,
    Ignore,
    KexInit,
    KexInitiate,
    KexReply,
    NewKeys,
    Ping,
    ServiceAccept,
    ServiceRequest,
    Unimplemented,
    UserauthBanner,
    UserauthFailure,
    UserauthInfoRequest,
    UserauthInfoResponse,
    UserauthPkOk,
    UserauthRequest,
    UserauthSuccess,
)
from tests.protocol.harness import (
    FAST,
    HOST_KEY,
    OTHER_KEY,
    USER,
    USER_KEY,
    Event,
    Pair,
    Recorder,
    Script,
    TestAuthority,
    TestCredentials,
    make_client,
    make_server,
    password_request,
)

HARMLESS = [Ignore(b"x"), Debug(False, "x"), Unimplemented(0)]
ROLES = [Role.SERVER, Role.CLIENT]  # of the connection under test


def against(role: Role, markers: bool = True) -> Script:
    """A script against a fresh connection."""
    make = make_server if role is Role.SERVER else make_client
    return Script(make(Recorder()), markers=markers)


def asked(script: Script) -> list[Event]:
    """What a server's authority was asked."""
    side = script.peer.transport._side
    assert isinstance(side, ServerSide) and isinstance(side.authority, TestAuthority)
    return side.authority.asked


def to_exchange(script: Script) -> Script:
    """Both KEXINIT messages are exchanged, and nothing more."""
    return script.begin().kexinit()


def to_newkeys(script: Script) -> Script:
    """The peer waits for our NEWKEYS."""
    to_exchange(script)
    if script.role is Role.CLIENT:
        script.initiate()
        script.expect(31)
    else:
        script.reply()
    script.expect(21)
    return script


STEPS: dict[Phase, Callable[[Script], Script]] = {
    Phase.KEXINIT: Script.begin,
    Phase.EXCHANGE: to_exchange,
    Phase.NEWKEYS: to_newkeys,
    Phase.FRESH: Script.connect,
    Phase.AUTH: Script.serve,
}


def to_service(script: Script) -> Script:
    """Past the place of EXT_INFO, and before the service."""
    return script.connect().send(Ignore(b""))


STEPS[Phase.SERVICE] = to_service


def to_dialogue(script: Script) -> Script:
    """The client is asked for its password in keyboard-interactive."""
    script.serve()
    fields = write_string(b"") + write_string(b"")
    script.send(UserauthRequest(USER, "ssh-connection", "keyboard-interactive", fields))
    script.expect(60)
    return script


def at(phase: Phase, role: Role, markers: bool = True) -> Script:
    """A connection of `role` that is in `phase`."""
    step = to_dialogue if phase is Phase.AUTH_INFO else STEPS[phase]
    script = step(against(role, markers))
    if phase is Phase.PRE_SUCCESS:
        script.send(ExtInfo(()))
    assert script.peer.transport.phase is phase
    assert script.peer.transport.error is None
    script.receive()
    return script


STEPS[Phase.PRE_SUCCESS] = Script.serve


# Terrapin, CVE-2023-48795


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("phase", [Phase.EXCHANGE, Phase.NEWKEYS])
@pytest.mark.parametrize("message", HARMLESS, ids=lambda message: type(message).__name__)
def test_no_harmless_message_is_accepted_before_newkeys_in_strict_mode(
    role: Role, phase: Phase, message: Message
) -> None:
    script = at(phase, role)
    script.send(message)
    assert script.ended


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("message", HARMLESS, ids=lambda message: type(message).__name__)
def test_a_packet_before_kexinit_is_refused_in_strict_mode(role: Role, message: Message) -> None:
    script = at(Phase.KEXINIT, role)
    script.send(message)
    if isinstance(message, Unimplemented):  # of what? refused from anybody
        assert script.ended
        return
    script.kexinit()
    assert "before its KEXINIT" in str(script.peer.transport.error)
    lax = at(Phase.KEXINIT, role, markers=False)
    lax.send(message)
    lax.exchange()
    assert lax.peer.transport.error is None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("number", [*range(1, 256)])
def test_nothing_but_newkeys_follows_the_reply_of_the_key_exchange(role: Role, number: int) -> None:
    for strict in (True, False):
        found = verdict(role, Phase.NEWKEYS, number, strict, True)
        assert found is (Verdict.HANDLE if number in (1, 21) else Verdict.REFUSE)


@pytest.mark.parametrize("role", ROLES)
def test_a_prefix_cut_off_after_newkeys_does_not_go_unnoticed(role: Role) -> None:
    """The attack itself: an IGNORE put in before, and the first packet afterwards dropped."""
    script = at(Phase.NEWKEYS, role)
    script.send(NewKeys())
    script.switch()
    message = ServiceRequest("ssh-userauth") if role is Role.SERVER else ExtInfo(())
    script.queue(message)
    script.writer.sent(script.writer.unsent)  # dropped by the attacker
    script.send(ServiceRequest("ssh-userauth") if role is Role.SERVER else ServiceAccept("x"))
    assert script.peer.transport.error is not None
    assert script.peer.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("markers", [True, False])
def test_sequence_numbers_restart_at_newkeys_in_strict_mode(role: Role, markers: bool) -> None:
    script = at(Phase.FRESH, role, markers)
    sent = script.peer.transport._writer.sequence
    if markers:
        assert script.peer.transport._reader.sequence == 0
        assert sent <= 1
    else:
        assert script.peer.transport._reader.sequence == 3
        assert sent >= 3


@pytest.mark.parametrize("role", ROLES)
def test_the_strict_marker_counts_in_the_first_kexinit_only(role: Role) -> None:
    script = against(role, markers=False).log_in()
    assert not script.peer.transport.order.strict
    marker = STRICT_CLIENT if role is Role.SERVER else STRICT_SERVER
    names = (*FAST.key_exchange, marker)
    script.kexinit(kex_algorithms=names)
    if script.role is Role.CLIENT:
        script.initiate()
        script.expect(31)
    else:
        script.reply()
    script.newkeys()
    assert not script.peer.transport.order.strict
    script.send(Ping(b"x"))
    assert script.numbers() == [193]
    # and a strict connection stays strict without the marker
    strict = against(role).log_in()
    strict.exchange()
    assert strict.peer.transport.order.strict
    assert strict.peer.transport._reader.sequence == 0


@pytest.mark.parametrize("role", ROLES)
def test_the_wrong_sides_marker_does_not_make_a_connection_strict(role: Role) -> None:
    script = against(role, markers=False).begin()
    wrong = STRICT_SERVER if role is Role.SERVER else STRICT_CLIENT
    script.kexinit(kex_algorithms=(*FAST.key_exchange, wrong))
    assert not script.peer.transport.order.strict


@pytest.mark.parametrize("role", ROLES)
def test_our_kexinit_shows_the_markers_first_and_never_again(role: Role) -> None:
    script = against(role).begin()
    ours = (STRICT_SERVER, "ext-info-s") if role is Role.SERVER else (STRICT_CLIENT, "ext-info-c")
    first = KexInit.decode(script.expect(20))
    assert set(ours) <= set(first.kex_algorithms)
    script = against(role).log_in()
    script.peer.transport.rekey()
    again = KexInit.decode(script.expect(20))
    assert not {*ours, STRICT_CLIENT, STRICT_SERVER} & set(again.kex_algorithms)


# libssh CVE-2018-10933, Paramiko CVE-2018-7750, Erlang CVE-2025-32433

TOO_EARLY = {
    Role.SERVER: [6, 31, 51, 52, 53, 60, 61, *range(80, 128), 192, 193, 255],
    Role.CLIENT: [5, 30, 50, 61, *range(80, 128), 192, 193, 255],
}
PHASES = [
    Phase.KEXINIT,
    Phase.EXCHANGE,
    Phase.NEWKEYS,
    Phase.FRESH,
    Phase.SERVICE,
    Phase.AUTH,
]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("phase", PHASES)
def test_no_message_of_a_later_phase_runs_anything_before_authentication(
    role: Role, phase: Phase
) -> None:
    for number in TOO_EARLY[role]:
        if phase is Phase.SERVICE and number == 6 and role is Role.CLIENT:
            continue
        assert verdict(role, phase, number, True, False) is Verdict.REFUSE, number
    for number in (52, 61, 80, 90, 94, 98, 192) if role is Role.SERVER else (61, 80, 90, 94, 98):
        if phase is Phase.AUTH and role is Role.CLIENT and number == 52:
            continue
        script = at(phase, role)
        script.send(well_formed(number))
        assert script.ended, number
        assert script.peer._handler.events == [("connection closed",)]  # type: ignore[attr-defined]


def well_formed(number: int) -> bytes:
    """A message that would be carried out if it came at its time."""
    messages: list[Message] = [
        UserauthSuccess(),
        UserauthInfoResponse((b"right",)),
        GlobalRequest("yes", True),
        ChannelOpen("session", 0, 1000, 1000),
        Ping(b"x"),
    ]
    known = {message.number: message.encode() for message in messages}
    return known.get(number, bytes([number]) + bytes(12))


@pytest.mark.parametrize("number", [52, 51, 60, 61, 80, 90, 98])
def test_no_message_in_the_middle_of_a_dialogue_lets_anybody_in(number: int) -> None:
    script = at(Phase.AUTH_INFO, Role.SERVER)
    if number == 61:
        script.send(UserauthInfoResponse((b"wrong",)))
        assert script.numbers() == [51]
        script.send(UserauthInfoResponse((b"right",)))  # a second answer to one question
    else:
        script.send(well_formed(number))
    assert script.ended


def test_an_answer_to_a_question_that_was_taken_back_is_refused() -> None:
    """RFC 4256 section 3.1: a new request ends the dialogue."""
    script = at(Phase.AUTH_INFO, Role.SERVER)
    script.send(password_request(password=b"wrong"))
    assert script.numbers() == [51]
    script.send(UserauthInfoResponse((b"right",)))
    assert script.ended


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_answers_ends_the_connection(count: int) -> None:
    script = at(Phase.AUTH_INFO, Role.SERVER)
    script.send(UserauthInfoResponse((b"right",) * count))
    assert script.ended


def test_a_client_is_not_let_in_by_a_success_that_comes_before_it_asked() -> None:
    for phase in (Phase.EXCHANGE, Phase.FRESH, Phase.SERVICE):
        script = at(phase, Role.CLIENT)
        script.send(UserauthSuccess())
        assert script.ended
        assert ("authenticated",) not in script.peer._handler.events  # type: ignore[attr-defined]


# AsyncSSH CVE-2023-46445 and -46446


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("phase", [Phase.KEXINIT, Phase.EXCHANGE, Phase.NEWKEYS, Phase.SERVICE])
def test_ext_info_outside_its_two_places_is_refused(role: Role, phase: Phase) -> None:
    script = at(phase, role)
    script.send(ExtInfo((("server-sig-algs", b"none"),)))
    assert script.ended


def test_ext_info_counts_right_after_newkeys_and_right_before_success() -> None:
    script = at(Phase.FRESH, Role.SERVER)
    script.send(ExtInfo(()))
    assert script.peer.transport.phase is Phase.SERVICE
    script = against(Role.SERVER).serve()
    script.send(ExtInfo(()))
    assert script.ended

    client = against(Role.CLIENT).connect()
    client.send(ExtInfo(()), ServiceAccept("ssh-userauth"), ExtInfo(()), UserauthSuccess())
    assert client.peer.transport.phase is Phase.OPEN
    for message in (
        password_request(),
        ExtInfo(()),
        UserauthFailure(("password",), False),
        UserauthBanner("welcome"),
        b"\x3c" + bytes(10),
    ):
        client = against(Role.CLIENT).serve()
        client.send(ExtInfo(()), message)
        assert str(client.peer.transport.error).endswith("PRE_SUCCESS")


@pytest.mark.parametrize("role", ROLES)
def test_ext_info_after_a_later_key_exchange_is_refused(role: Role) -> None:
    script = against(role).log_in()
    script.exchange()
    script.send(ExtInfo(()))
    assert script.ended


def test_ext_info_takes_its_names_as_data() -> None:
    """Names that are no algorithms leave the client without a key to show, and nothing else."""
    script = against(Role.CLIENT).connect()
    script.send(
        ExtInfo((("server-sig-algs", b"\xff\xfe,ssh-rsa,,"), ("__class__", b"x"), ("", b""))),
        ServiceAccept("ssh-userauth"),
    )
    script.expect(5)
    request = UserauthRequest.decode(script.expect(50))
    assert request.method_name == "none"


def test_the_user_cannot_be_exchanged_within_a_connection() -> None:
    script = against(Role.SERVER).serve()
    script.send(password_request("somebody", b"wrong"))
    assert script.numbers() == [51]
    script.send(password_request("root"))
    assert script.ended
    assert asked(script) == [("password", "somebody")]


def test_a_user_who_is_authenticated_stays_who_it_is() -> None:
    script = against(Role.SERVER).log_in()
    before = list(asked(script))
    script.send(password_request("root"), password_request())
    assert script.receive() == []
    assert asked(script) == before
    assert script.peer.transport.error is None
    assert script.peer._handler.events == [("authenticated",)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("service", ["ssh-userauth", "ssh-connection2", "", "ssh-connection\0"])
def test_authentication_is_for_one_service_only(service: str) -> None:
    script = against(Role.SERVER).serve()
    request = password_request()
    request.service_name = service
    script.send(request)
    assert script.ended


def test_a_service_that_does_not_exist_ends_the_connection() -> None:
    for name in ("ssh-connection", "", "x" * 1000):
        script = at(Phase.FRESH, Role.SERVER)
        script.send(ServiceRequest(name))
        assert script.ended
        client = at(Phase.FRESH, Role.CLIENT)
        client.send(ServiceAccept(name))
        assert client.ended


def test_a_client_may_ask_for_the_service_once_more_with_each_attempt() -> None:
    """As Paramiko does, which names the service again before every method."""
    script = against(Role.SERVER).serve()
    script.send(password_request(password=b"wrong"))
    assert script.numbers() == [51]
    script.send(ServiceRequest("ssh-userauth"), password_request())
    assert script.numbers() == [6, 52]
    other = against(Role.SERVER).serve()
    other.send(password_request(password=b"wrong"), ServiceRequest("ssh-userauth"))
    other.receive()
    other.send(password_request("root"))
    assert other.ended


# OpenSSH CVE-2025-26466, and the flood during a key exchange


@pytest.mark.parametrize("name", ["ping", "global request", "channel request"])
def test_a_flood_during_a_key_exchange_costs_bounded_memory_and_then_the_connection(
    name: str,
) -> None:
    script = against(Role.SERVER).log_in()
    number = script.open()
    message = {
        "ping": Ping(bytes(1000)).encode(),
        "global request": GlobalRequest("yes", True).encode(),
        "channel request": b"\x62" + number.to_bytes(4, "big") + write_name("no") + b"\1",
    }[name]
    script.peer.transport.rekey()
    held = 0
    for _ in range(2000):
        for _ in range(100):
            script.queue(message)
        script.flush()
        held = max(held, script.peer.transport._held_bytes)
        if script.peer.transport.error is not None:
            break
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert held < 300_000
    assert script.peer.transport._held is None


def test_a_flood_of_data_during_a_key_exchange_is_bounded_by_the_windows() -> None:
    script = Script(make_server(Recorder(), window=100_000)).log_in()
    number = script.open()
    script.peer.transport.rekey()
    for _ in range(100):
        script.send(b"\x5e" + number.to_bytes(4, "big") + write_string(bytes(25_000)))
    # the answers, new windows, are held back, but the peer knows of none of them
    assert script.peer.transport._held_bytes < 300_000
    script.peer.transport.tick(script.peer.transport.deadline)
    assert isinstance(script.peer.transport.error, KeyExchangeFailed)


def test_a_peer_that_reads_no_answers_before_the_login_costs_bounded_memory() -> None:
    """91 MiB in 15 s, of nobody: a request for the service is answered each time."""
    script = against(Role.SERVER).serve()
    highest = 0
    for _ in range(10_000):
        script.send(*[ServiceRequest("ssh-userauth")] * 100)
        highest = max(highest, script.peer.transport.unsent)
        if script.peer.transport.phase is Phase.CLOSED:
            break
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert highest < EARLY_ANSWERS_LIMIT + 100 * 64


@pytest.mark.parametrize(
    ("message", "sent"),
    [(Ignore(b""), EARLY_PACKETS), (Ignore(bytes(32_000)), EARLY_BYTES // 32_000)],
)
@pytest.mark.parametrize("when", ["at first", "before the service"])
def test_a_client_that_never_logs_in_costs_bounded_work(
    message: Ignore, sent: int, when: str
) -> None:
    """36 MB of IGNORE took seven seconds of the server's time, and nothing of the client's."""
    script = against(Role.SERVER)
    script = script.connect() if when == "at first" else script.serve()
    for _ in range(sent + 2):
        if script.peer.transport.phase is Phase.CLOSED:
            break
        script.send(message)
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert "before the login" in str(script.peer.transport.error)


def test_a_server_that_reads_no_answers_before_the_login_costs_bounded_memory() -> None:
    script = against(Role.CLIENT).serve()
    question = UserauthInfoRequest("", "", "", (("Password: ", False),)).encode()
    script.send(UserauthFailure(("keyboard-interactive",), False))
    for _ in range(10_000):
        script.send(*[question] * 100)
        if script.peer.transport.phase is Phase.CLOSED:
            break
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert script.peer.transport.unsent < EARLY_ANSWERS_LIMIT + 1000


@pytest.mark.parametrize("role", ROLES)
def test_nothing_but_the_key_exchange_is_accepted_once_the_peer_began_one(role: Role) -> None:
    for message in (Ping(b"x"), GlobalRequest("yes", True), b"\x5e" + bytes(8)):
        script = against(role).log_in()
        script.kexinit()
        script.receive()
        script.send(message)
        assert script.ended


# Go CVE-2020-9283 and CVE-2021-43565: short, empty and malformed

BLOBS = [
    b"",
    b"\0",
    bytes(4),
    write_name("ssh-ed25519"),
    write_name("ssh-ed25519") + bytes(3),
    write_name("ssh-ed25519") + write_string(b""),
    write_name("ssh-ed25519") + write_string(bytes(31)),
    write_name("ssh-ed25519") + write_string(bytes(33)),
    write_name("ssh-rsa") + write_string(b"") * 2,
    write_name("ssh-rsa") + write_string(b"\1") + write_string(b"\0" + b"\xff" * 256),
    write_name("ecdsa-sha2-nistp256") + write_name("nistp256") + write_string(b"\4"),
    write_name("ecdsa-sha2-nistp256") + write_name("nistp521") + write_string(b"\4" + bytes(64)),
    write_name("sk-ssh-ed25519@openssh.com") + write_string(bytes(32)),
    b"\xff" * 40,
]


@pytest.mark.parametrize("blob", BLOBS, ids=range(len(BLOBS)))
@pytest.mark.parametrize("signature", [None, b"", write_name("ssh-ed25519"), b"\xff" * 9])
def test_a_malformed_user_key_or_signature_is_a_failure_and_nothing_else(
    blob: bytes, signature: bytes | None
) -> None:
    script = against(Role.SERVER).serve()
    fields = write_boolean(signature is not None) + write_name("ssh-ed25519") + write_string(blob)
    if signature is not None:
        fields += write_string(signature)
    script.send(UserauthRequest(USER, "ssh-connection", "publickey", fields))
    assert script.numbers() == [51]


def test_a_right_key_with_a_malformed_signature_is_a_failure() -> None:
    good = write_name("ssh-ed25519") + write_string(bytes(64))
    for signature in (b"", good, good[:-1], good + b"\0", write_name("") + write_string(b"")):
        script = against(Role.SERVER).serve()
        fields = write_boolean(True) + write_name("ssh-ed25519")
        fields += write_string(USER_KEY.public.blob) + write_string(signature)
        script.send(UserauthRequest(USER, "ssh-connection", "publickey", fields))
        assert script.numbers() == [51]


@pytest.mark.parametrize("fields", [b"", b"\0", b"\1", b"\1\xff\xff\xff\xff", bytes(300)])
@pytest.mark.parametrize(
    "method", ["publickey", "publickey-hostbound-v00@openssh.com", "keyboard-interactive"]
)
def test_malformed_fields_of_a_method_end_the_connection(method: str, fields: bytes) -> None:
    script = against(Role.SERVER).serve()
    script.send(UserauthRequest(USER, "ssh-connection", method, fields))
    assert script.ended
    assert not asked(script)


@pytest.mark.parametrize("blob", BLOBS, ids=range(len(BLOBS)))
def test_a_malformed_host_key_ends_the_connection(blob: bytes) -> None:
    script = to_exchange(against(Role.CLIENT))
    script.expect(30)
    script.send(KexReply(blob, script.public, b""))
    assert isinstance(script.peer.transport.error, PeerError)
    assert script.peer.transport.phase is Phase.CLOSED


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        write_name("ssh-ed25519") + write_string(bytes(64)),
        write_name("ssh-rsa") + write_string(bytes(256)),
        write_name("ssh-ed25519"),
    ],
)
def test_a_wrong_signature_of_the_exchange_ends_the_connection_before_any_key(
    signature: bytes,
) -> None:
    script = to_exchange(against(Role.CLIENT))
    script.reply(signature=signature)
    assert isinstance(script.peer.transport.error, PeerError)
    assert script.numbers() == [1]


def test_a_signature_by_another_host_key_ends_the_connection() -> None:
    script = to_exchange(against(Role.CLIENT))
    script.reply(key=OTHER_KEY)
    assert isinstance(script.peer.transport.error, PeerError)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("public", [b"", b"\0", bytes(32), bytes(31), bytes(33), b"\1" + bytes(31)])
def test_an_invalid_public_value_ends_the_connection(role: Role, public: bytes) -> None:
    """A point of small order, which makes the secret zero, among them."""
    script = to_exchange(against(role))
    if role is Role.SERVER:
        script.send(KexInitiate(public))
    else:
        script.expect(30)
        script.send(KexReply(HOST_KEY.public.blob, public, b""))
    assert isinstance(script.peer.transport.error, PeerError)
    assert script.numbers() == [1]


@pytest.mark.parametrize("method", default_algorithms(True).key_exchange)
@pytest.mark.parametrize("public", [b"", b"\0", b"\1", b"\x84", bytes(1216), b"\x7f" * 513])
def test_every_method_refuses_an_invalid_public_value(method: str, public: bytes) -> None:
    algorithms = FAST._replace(key_exchange=(method,))
    script = Script(make_server(Recorder(), algorithms), algorithms=algorithms)
    to_exchange(script).send(KexInitiate(public))
    assert isinstance(script.peer.transport.error, PeerError)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "data",
    [
        bytes(4),
        b"\xff\xff\xff\xff" + bytes(20),
        b"\0\0\0\5" + bytes(20),  # unaligned
        b"\0\0\0\x0c\x0b" + bytes(20),  # no room for a message
        b"\0\0\0\x0c\x03" + bytes(20),  # too little padding
        b"\0\0\0\x0c\xff" + bytes(20),  # more padding than packet
        (PACKET_LIMIT + 4).to_bytes(4, "big") + bytes(20),
    ],
    ids=["empty", "4 GiB", "unaligned", "no message", "padding 3", "padding 255", "over the limit"],
)
def test_a_malformed_packet_ends_the_connection(role: Role, data: bytes) -> None:
    script = at(Phase.KEXINIT, role)
    script.raw(data)
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert script.numbers() == [1]


@pytest.mark.parametrize("role", ROLES)
def test_a_long_packet_before_authentication_costs_its_length_and_not_more(role: Role) -> None:
    script = at(Phase.AUTH, role)
    script.send(Ignore(bytes(35_000)))  # what RFC 4253 section 6.1 demands
    assert script.peer.transport.error is None
    limit = HANDSHAKE_PACKET_LIMIT if role is Role.SERVER else PACKET_LIMIT
    script.send(Ignore(bytes(limit)))
    assert isinstance(script.peer.transport.error, ProtocolError)
    assert len(script.peer.transport._reader._buffer) <= MAXIMUM_BUFFER


@pytest.mark.parametrize("role", ROLES)
def test_an_empty_kexinit_and_one_without_anything_in_common_end_the_connection(
    role: Role,
) -> None:
    script = at(Phase.KEXINIT, role)
    script.send(b"\x14")
    assert script.ended
    script = at(Phase.KEXINIT, role)
    script.send(KexInit(bytes(16), *(() for _ in range(8))))  # type: ignore[arg-type]
    assert isinstance(script.peer.transport.error, KeyExchangeFailed)
    script = at(Phase.KEXINIT, role)
    names = tuple(f"name-{number}" for number in range(400))
    script.send(KexInit(bytes(16), *(names for _ in range(8))))  # type: ignore[arg-type]
    assert isinstance(script.peer.transport.error, KeyExchangeFailed)
    assert script.numbers() == [1]


# Versions


@pytest.mark.parametrize(
    "line",
    [
        b"SSH-1.5-old\r\n",
        b"SSH-2.1-new\r\n",
        b"SSH-2.0\r\n",
        b"SSH-2.0-" + b"x" * 300 + b"\r\n",
        b"SSH-2.0-\x1b[31m\r\n",
        b"SSH-2.0-\xff\r\n",
        b"SSH-2.0-nul\0\r\n",
        b"x" * 9000,
        b"SSH-" + b"x" * 9000,
        b"\n" * (LINES_LIMIT + 2),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("role", ROLES)
def test_a_peer_that_does_not_speak_ssh_2_is_refused(role: Role, line: bytes) -> None:
    for size in (len(line), 1):
        script = against(role)
        for start in range(0, len(line), size):
            script.raw(line[start : start + size])
        assert isinstance(script.peer.transport.error, ProtocolError)
        assert script.peer.transport.phase is Phase.CLOSED


def test_a_server_may_greet_before_its_version_and_a_client_may_not() -> None:
    script = against(Role.CLIENT).raw(b"hello\r\nthere\n")
    script.connect()
    assert script.peer.transport.error is None
    server = against(Role.SERVER).raw(b"GET / HTTP/1.1\r\n")
    assert isinstance(server.peer.transport.error, ProtocolError)


@pytest.mark.parametrize("version", [b"SSH-2.0-x\n", b"SSH-1.99-x\r\n", b"SSH-2.0-a b c-d\r\n"])
@pytest.mark.parametrize("role", ROLES)
def test_unusual_versions_are_accepted(role: Role, version: bytes) -> None:
    script = against(role)
    script.version = version.rstrip()
    script.raw(version)
    script.exchange()
    assert script.peer.transport.phase is Phase.FRESH


def test_a_server_calls_itself_something_like_openssh_and_a_client_does_not() -> None:
    """OpenSSH's client tells no other server that its reader is gone."""
    pair = Pair().log_in()
    software = re.escape(f"Culvert_{__version__}")
    # No version: no digit, and no '_', behind OpenSSH; and no '-' (RFC 4253 section 4.2).
    assert re.fullmatch(
        f"SSH-2.0-OpenSSH[.a-z]+_{software}", pair.client.transport.peer_version.decode()
    )
    assert pair.client.transport.peer_takes_end_of_write
    assert pair.server.transport.peer_version.decode() == f"SSH-2.0-Culvert_{__version__}"
    for connection in (pair.client, pair.server):
        assert connection.transport.peer_software == f"Culvert_{__version__}"


# What stock peers say, and OpenSSH takes


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", ["at the end", "at the start", "within"])
def test_a_list_of_algorithms_with_an_empty_name_is_accepted(role: Role, place: str) -> None:
    """libssh 0.10 ends its lists of ciphers with a comma."""
    script = against(role).begin()
    words = {"at the end": ("{}", ""), "at the start": ("", "{}"), "within": ("{}", "", "none")}
    script.kexinit(
        encryption_algorithms_client_to_server=tuple(
            word.format(FAST.cipher[0]) for word in words[place]
        ),
        encryption_algorithms_server_to_client=tuple(
            word.format(FAST.cipher[0]) for word in words[place]
        ),
    )
    if role is Role.SERVER:
        script.initiate()
        script.expect(31)
    else:
        script.reply()
    script.newkeys()
    assert script.peer.transport.phase is Phase.FRESH


def test_a_server_may_end_its_list_of_methods_with_a_comma() -> None:
    script = against(Role.CLIENT).serve()
    script.send(UserauthFailure(("password", ""), False))
    assert UserauthRequest.decode(script.expect(50)).method_name == "password"


@pytest.mark.parametrize("size", [100_000, PACKET_LIMIT - 100])
def test_a_banner_may_be_as_long_as_a_packet(size: int) -> None:
    script = against(Role.CLIENT).serve()
    script.send(UserauthBanner("x" * size))
    assert script.peer.transport.error is None
    recorder = script.peer._handler
    assert isinstance(recorder, Recorder)
    assert recorder.events == [("banner", "x" * size)]


LATIN_1 = write_string("Grüße".encode("latin-1"))


@pytest.mark.parametrize(
    "payload",
    [b"\x35" + LATIN_1 + bytes(4), b"\4\1" + LATIN_1 + bytes(4)],
    ids=["banner", "debug"],
)
def test_a_text_in_another_encoding_ends_nothing(payload: bytes) -> None:
    script = against(Role.CLIENT).serve()
    script.send(payload)
    assert script.peer.transport.error is None


@pytest.mark.parametrize("rest", [b"", bytes(4)], ids=["without a language", "with one"])
@pytest.mark.parametrize("role", ROLES)
def test_the_reason_of_a_disconnect_is_told_however_it_is_written(role: Role, rest: bytes) -> None:
    script = against(role).serve()
    script.send(b"\1\0\0\0\x0b" + LATIN_1 + rest)
    assert isinstance(script.peer.transport.error, PeerDisconnected)
    assert str(script.peer.transport.error) == "Gr\\xfc\\xdfe"


@pytest.mark.parametrize("role", ROLES)
def test_nothing_within_an_ignored_message_is_read(role: Role) -> None:
    script = against(role).serve()
    script.send(b"\2", b"\2\xff\xff\xff\xff")
    assert script.peer.transport.error is None


def test_a_server_may_accept_an_rsa_key_under_its_oldest_name() -> None:
    """As old servers do; the client signs by the algorithm that it has shown."""
    script = against(Role.CLIENT).serve()
    script.send(UserauthPkOk("ssh-rsa", USER_KEY.public.blob))
    assert UserauthRequest.decode(script.expect(50)).method_name == "publickey"


def test_a_server_that_wants_one_factor_after_another_without_end_is_given_up() -> None:
    script = against(Role.CLIENT).serve()
    for _ in range(FACTORS_LIMIT):
        script.send(UserauthFailure(("password",), True))
        script.expect(50)
    script.send(UserauthFailure(("password",), True))
    assert str(script.peer.transport.error) == "the server never ends asking"


# OpenSSH CVE-2025-26465


class Unexpected(Exception):
    """Whatever else can go wrong in a host key check."""


@pytest.mark.parametrize("error", [HostKeyRejected("no"), MemoryError(), Unexpected(), OSError()])
def test_every_outcome_of_the_host_key_check_but_success_refuses(error: Exception) -> None:
    seen: list[PublicKey] = []

    def check(key: PublicKey) -> None:
        seen.append(key)
        raise error

    script = Script(make_client(Recorder(), check=check)).begin()
    script.kexinit()
    if isinstance(error, HostKeyRejected):
        script.reply()
        assert script.peer.transport.error is error
    else:
        with pytest.raises(type(error)):
            script.reply()
    assert [key.blob for key in seen] == [HOST_KEY.public.blob]
    # Even if somebody caught it and went on, no key is ours and nothing secret is sent.
    script.send(NewKeys())
    assert script.peer.transport.phase is Phase.CLOSED
    assert script.numbers() == [1]
    assert not script.peer.transport.session_id


def test_a_host_key_is_checked_before_anything_secret_is_sent() -> None:
    """And not before the server has shown that it has the key."""
    order: list[str] = []
    pair = Pair()
    pair.client = make_client(pair.at_client, check=lambda key: order.append("checked"))
    pair.log_in()
    assert order == ["checked"]
    script = Script(make_client(Recorder(), check=lambda key: order.append("unproved"))).begin()
    script.kexinit()
    script.reply(signature=write_name("ssh-ed25519") + write_string(bytes(64)))
    assert order == ["checked"]


def test_a_host_key_of_another_type_than_agreed_is_refused() -> None:
    script = to_exchange(against(Role.CLIENT))
    script.expect(30)
    blob = write_name("ssh-rsa") + write_string(b"\1\0\1") + write_string(b"\0" + b"\xff" * 256)
    script.send(KexReply(blob, script.public, write_name("rsa-sha2-256") + bytes(4)))
    assert isinstance(script.peer.transport.error, PeerError)
    assert script.numbers() == [1]


# Signatures with SHA-1, and what is never offered


@pytest.mark.parametrize("profile", ["default", "hardened"])
def test_nothing_that_is_broken_is_ever_offered(profile: str) -> None:
    offered = list(itertools.chain.from_iterable(default_algorithms(True, profile)))
    for word in ("ssh-rsa", "ssh-dss", "sha1", "group1-", "-cbc", "arcfour", "3des", "md5"):
        assert not [name for name in offered if word in name]
    assert "ssh-rsa" not in HOST_KEY_ALGORITHMS + USER_KEY_ALGORITHMS


def test_the_hardened_profile_exchanges_keys_after_quantum_computers() -> None:
    algorithms = default_algorithms(False, "hardened")
    assert algorithms.key_exchange == ("mlkem768x25519-sha256",)
    assert not [name for name in algorithms.user_key + algorithms.host_key if "nistp" in name]


def test_a_user_key_under_the_name_of_sha1_is_refused_and_counted() -> None:
    script = against(Role.SERVER).serve()
    fields = write_boolean(False) + write_name("ssh-rsa") + write_string(USER_KEY.public.blob)
    script.send(UserauthRequest(USER, "ssh-connection", "publickey", fields))
    assert script.numbers() == [51]
    assert asked(script) == [("refuse", USER, "publickey")]


@pytest.mark.parametrize("host_key", [OTHER_KEY.public.blob, b"x"], ids=["key", "nothing"])
def test_a_user_key_that_is_bound_to_another_host_ends_the_connection(host_key: bytes) -> None:
    script = against(Role.SERVER).serve()
    fields = write_boolean(False) + write_name("ssh-ed25519") + write_string(USER_KEY.public.blob)
    script.send(UserauthRequest(USER, "ssh-connection", HOSTBOUND, fields + write_string(host_key)))
    assert script.ended
    assert "bound to another host key" in str(script.peer.transport.error)


# Ends


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("phase", PHASES)
def test_a_disconnect_is_understood_at_any_time(role: Role, phase: Phase) -> None:
    script = at(phase, role)
    script.receive()
    script.send(Disconnect(11, "bye"))
    assert isinstance(script.peer.transport.error, PeerDisconnected)
    assert script.receive() == []


@pytest.mark.parametrize("role", ROLES)
def test_a_handshake_that_ends_at_any_byte_ends_the_connection_and_nothing_else(
    role: Role,
) -> None:
    pair = Pair()
    sent = b""
    while pair.client.transport.unsent or pair.server.transport.unsent:
        ends = (pair.client, pair.server)
        for sender, receiver in (ends, ends[::-1]):
            data = pair.move(sender, receiver)
            sent += data if (sender.transport.role is not role) else b""
    assert len(sent) > 500
    for cut in range(0, min(len(sent), 1100)):
        connection: Connection = against(role).peer
        connection.transport.receive_data(sent[:cut], 0.0)
        connection.transport.receive_eof()
        assert connection.transport.phase is Phase.CLOSED
        assert isinstance(connection.transport.error, PeerError)


def test_a_long_user_name_is_refused_before_anybody_is_asked() -> None:
    authority = TestAuthority()
    script = Script(make_server(Recorder(), authority=authority)).serve()
    script.send(password_request("x" * 129))
    assert script.ended
    assert authority.asked == []


@pytest.mark.parametrize("user", ["", "../../root", "-oProxy=x", "a b", "a\0b", "\x1b[2J", "ü"])
def test_a_strange_user_name_reaches_the_authority_as_data_only(user: str) -> None:
    authority = TestAuthority()
    script = Script(make_server(Recorder(), authority=authority)).serve()
    script.send(password_request(user, b"wrong"))
    assert script.numbers() == [51]
    assert authority.asked == [("password", user)]


def test_a_password_that_is_too_long_is_a_failure_and_never_hashed() -> None:
    authority = TestAuthority()
    script = Script(make_server(Recorder(), authority=authority)).serve()
    script.send(password_request(password=b"x" * 1025))
    assert script.numbers() == [51]
    assert authority.asked == [("refuse", USER, "password")]


def test_a_change_of_the_password_is_never_carried_out() -> None:
    authority = TestAuthority()
    script = Script(make_server(Recorder(), authority=authority)).serve()
    fields = write_boolean(True) + write_string(b"right") + write_string(b"new")
    script.send(UserauthRequest(USER, "ssh-connection", "password", fields))
    assert script.numbers() == [51]
    assert authority.asked == [("refuse", USER, "password")]


def test_a_password_is_sent_as_it_was_typed_whatever_its_encoding() -> None:
    """A terminal in Latin-1: what is not UTF-8 is no reason to fail."""
    typed = "Grüße".encode("latin-1").decode(errors="surrogateescape")
    credentials = TestCredentials(None, typed)
    for method in ("password", "keyboard-interactive"):
        client = make_client(Recorder(), credentials=credentials, methods=(method,))
        script = Script(client).serve()
        script.send(UserauthFailure((method,), False))
        if method == "keyboard-interactive":
            script.expect(50)
            script.send(UserauthInfoRequest("", "", "", (("?", False),)))
        number = 50 if method == "password" else 61
        assert script.expect(number).endswith("Grüße".encode("latin-1"))
