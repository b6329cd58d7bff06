"""Keys are renewed by bytes, by time and on demand, under traffic, and nothing is lost."""

import zlib

import pytest

from appliance.errors import CompressionError, ProtocolError
from appliance.ssh import transport
from appliance.ssh.connection import Connection
from appliance.ssh.handshake import our_kexinit
from appliance.ssh.order import Phase, Role
from appliance.ssh.packets import PACKET_LIMIT
from appliance.ssh.settings import REKEY_SECONDS
from appliance.ssh.transport import EXCHANGE_SECONDS, HELD_LIMIT
from appliance.wire.messages import (
    ChannelClose,
    ChannelData,
    GlobalRequest,
    Ignore,
    KexInitiate,
    KexReply,
    Ping,
)
from tests.protocol.harness import (
    FAST,
    HOST_KEY,
    OTHER_KEY,
    Pair,
    Recorder,
    Script,
    make_client,
    make_server,
)

MIB = 1 << 20
ZLIB = FAST._replace(compression=("zlib@openssh.com",))


class Exchanges:
    """Counts the key exchanges that a connection goes through, by its keys."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        rekey = connection.transport._reader.rekey

        def counting(*args: object) -> None:
            self.count += 1
            rekey(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(connection.transport._reader, "rekey", counting)


def test_keys_are_renewed_after_the_bytes_that_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair(rekey_bytes=MIB).log_in()
    exchanges = Exchanges(pair.client, monkeypatch)
    channel, accepted = pair.open()
    for _ in range(40):
        channel.send(bytes(100_000))
        pair.pump()
    assert exchanges.count in (3, 4)
    accepted.send(b"end")
    pair.pump()
    received = sum(len(e[1]) for e in pair.at_server.events if e[0] == "data")
    assert received == 40 * 100_000
    assert pair.at_client.events[-1] == ("data", b"end")


@pytest.mark.parametrize("extended", [False, True])
def test_the_sender_renews_keys_by_itself(monkeypatch: pytest.MonkeyPatch, extended: bool) -> None:
    """Even when the receiver would never, and whatever kind of data it is."""
    pair = Pair().log_in()
    pair.server.transport._settings = pair.server.transport._settings._replace(rekey_bytes=MIB)
    pair.client.transport._settings = pair.client.transport._settings._replace(
        rekey_bytes=100 * MIB
    )
    exchanges = Exchanges(pair.client, monkeypatch)
    _, accepted = pair.open()
    for _ in range(100):
        if extended:
            accepted.send_extended(1, bytes(30_000))
        else:
            accepted.send(bytes(30_000))
        pair.pump()
    assert exchanges.count == 2


def test_the_receiver_renews_keys_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the sender would never."""
    pair = Pair().log_in()
    pair.server.transport._settings = pair.server.transport._settings._replace(rekey_bytes=MIB)
    exchanges = Exchanges(pair.server, monkeypatch)
    channel, _ = pair.open()
    for _ in range(25):
        channel.send(bytes(100_000))
        pair.pump()
    assert exchanges.count == 2


@pytest.mark.parametrize("sender", ["client", "server"])
def test_keys_are_renewed_after_so_many_packets(
    monkeypatch: pytest.MonkeyPatch, sender: str
) -> None:
    """However short they are: both who sends them and who receives them counts."""
    limit = 50
    monkeypatch.setattr(transport, "REKEY_PACKETS", limit)
    pair = Pair().log_in()
    receiver = pair.client if sender == "server" else pair.server
    monkeypatch.setattr(receiver.transport, "rekey", lambda: None)
    exchanges = Exchanges(pair.client, monkeypatch)
    for _ in range(2 * limit + 10):
        pair.client.transport.send(Ignore(b""))
        pair.pump()
    assert exchanges.count == 2


@pytest.mark.parametrize("ours", ["client", "server"])
def test_keys_are_renewed_after_an_hour(monkeypatch: pytest.MonkeyPatch, ours: str) -> None:
    pair = Pair().log_in()
    exchanges = Exchanges(pair.client, monkeypatch)
    connection: Connection = getattr(pair, ours)
    assert connection.transport.deadline == REKEY_SECONDS
    connection.transport.tick(REKEY_SECONDS - 1)
    assert not connection.transport.unsent
    pair.now = REKEY_SECONDS
    connection.transport.tick(REKEY_SECONDS)
    assert connection.transport.deadline == REKEY_SECONDS + EXCHANGE_SECONDS
    pair.pump()
    assert exchanges.count == 1
    assert connection.transport.deadline == 2 * REKEY_SECONDS
    assert pair.open()[0].sendable()


def test_a_peer_that_does_not_finish_a_key_exchange_is_given_up() -> None:
    for connection in (make_server(Recorder()), make_client(Recorder())):
        connection.transport.tick(EXCHANGE_SECONDS - 1)
        assert connection.transport.error is None
        connection.transport.tick(EXCHANGE_SECONDS)
        assert connection.transport.phase is Phase.CLOSED
        assert "too long" in str(connection.transport.error)


@pytest.mark.parametrize("both", [False, True])
def test_a_key_exchange_in_the_middle_of_data_both_ways_loses_and_reorders_nothing(
    both: bool,
) -> None:
    pair = Pair().log_in()
    channel, accepted = pair.open()
    for number in range(20):
        if number % 3 == 1:
            pair.client.transport.rekey()
            if both:
                pair.server.transport.rekey()
        # nobody asks whether data may be sent, so these are held
        channel.send(b"c%d," % number)
        accepted.send(b"s%d," % number)
        channel.request(f"r{number}")
        accepted.send_extended(1, b"e%d," % number)
        if number % 4 == 0:
            pair.move(pair.client, pair.server)
        if number % 5 == 0:
            pair.move(pair.server, pair.client)
        if number % 6 == 5:
            pair.pump()
    pair.pump()
    expected: list[tuple[object, ...]] = []
    for number in range(20):
        expected += [("data", b"c%d," % number), ("request", f"r{number}", b"")]
    assert [e for e in pair.at_server.events if e[0] in ("data", "request")] == expected
    expected = []
    for number in range(20):
        expected += [("data", b"s%d," % number), ("extended_data", 1, b"e%d," % number)]
    assert [e for e in pair.at_client.events if "data" in str(e[0])] == expected


def test_no_source_is_asked_for_data_during_a_key_exchange_and_all_are_afterwards() -> None:
    pair = Pair().log_in()
    channel, accepted = pair.open()
    pair.client.transport.rekey()
    assert channel.sendable() == 0
    pair.pump()
    assert channel.sendable() > 0
    assert pair.at_client.events[-1] == ("resume",)
    assert accepted.sendable() > 0


def test_what_is_held_during_a_key_exchange_is_limited() -> None:
    script = Script(make_server(Recorder())).log_in()
    script.peer.transport.rekey()
    for _ in range(HELD_LIMIT // 30_000):
        script.send(Ping(bytes(30_000)))
    assert script.peer.transport.error is None
    script.send(Ping(bytes(30_000)), Ping(bytes(30_000)))
    assert "during a key exchange" in str(script.peer.transport.error)
    assert script.numbers() == [20, 1]


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("role", ["client", "server"])
def test_sequence_numbers_restart_with_new_keys_in_strict_mode_only(
    markers: bool, role: str
) -> None:
    make = make_client if role == "client" else make_server
    script = Script(make(Recorder()), markers=markers).log_in()
    before = script.writer.sequence
    script.exchange()
    assert script.peer.transport.phase is Phase.OPEN
    assert script.writer.sequence == (0 if markers else before + 3)
    script.send(Ignore(b""), Ping(b"x"))
    assert script.numbers() == [193]


def test_the_host_key_must_stay_the_same() -> None:
    script = Script(make_client(Recorder())).log_in()
    script.kexinit()
    handshake = script.handshake
    assert handshake is not None
    client_public = KexInitiate.decode(script.expect(30)).client_public
    public = handshake.answer(client_public, OTHER_KEY.public.blob)
    signature = OTHER_KEY.sign("ssh-ed25519", handshake.exchange_hash)
    script.send(KexReply(OTHER_KEY.public.blob, public, signature))
    assert "changed its host key" in str(script.peer.transport.error)


def test_a_rekey_before_authentication_continues_where_it_was() -> None:
    script = Script(make_server(Recorder())).serve()
    script.exchange()
    assert script.peer.transport.phase is Phase.AUTH
    client = Script(make_client(Recorder())).serve()
    client.exchange()
    assert client.peer.transport.phase is Phase.AUTH


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_key_exchanges_before_the_login_are_two(role: Role) -> None:
    """Each costs a server more than its client: D(HE)at, CVE-2002-20001."""
    script = Script((make_server if role is Role.SERVER else make_client)(Recorder())).serve()
    script.exchange()
    assert script.peer.transport.error is None
    script.send(our_kexinit(script.role, FAST, bytes(16), False))
    assert isinstance(script.peer.transport.error, ProtocolError)


def test_key_exchanges_after_the_login_are_not_counted() -> None:
    script = Script(make_server(Recorder())).log_in()
    for _ in range(10):
        script.exchange()
    assert script.peer.transport.error is None


def test_a_guess_that_was_right_is_used_and_one_that_was_wrong_is_skipped() -> None:
    right = Script(make_server(Recorder())).begin()
    right.kexinit(first_kex_packet_follows=True).initiate()
    right.expect(31)
    right.newkeys()
    assert right.peer.transport.phase is Phase.FRESH

    wrong = Script(make_server(Recorder())).begin()
    names = ("ecdh-sha2-nistp256", "curve25519-sha256", "kex-strict-c-v00@openssh.com")
    wrong.kexinit(first_kex_packet_follows=True, kex_algorithms=names)
    wrong.send(KexInitiate(b"a guess"))
    assert wrong.peer.transport.error is None
    wrong.initiate()
    wrong.expect(31)
    wrong.newkeys()
    assert wrong.peer.transport.phase is Phase.FRESH
    wrong.exchange()  # and only the first message is skipped, once


def test_only_one_wrong_guess_is_skipped() -> None:
    script = Script(make_server(Recorder())).begin()
    names = ("ecdh-sha2-nistp256", "curve25519-sha256", "kex-strict-c-v00@openssh.com")
    script.kexinit(first_kex_packet_follows=True, kex_algorithms=names)
    script.send(KexInitiate(b"a guess"), KexInitiate(b"another"))
    assert script.ended


# Compression


def test_nothing_is_compressed_before_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(ZLIB)
    for connection in (pair.client, pair.server):
        connection_events = pair.at_client if connection is pair.client else pair.at_server
        for owner, name in (
            (connection.transport._writer, "start_compression"),
            (connection.transport._reader, "start_decompression"),
        ):
            start = getattr(owner, name)

            def checked(
                start: object = start,
                events: list[tuple[object, ...]] = connection_events.events,
                connection: Connection = connection,
            ) -> None:
                assert connection.transport.phase is Phase.OPEN or ("authenticated",) in events
                start()  # type: ignore[operator]

            monkeypatch.setattr(owner, name, checked)
    pair.log_in()
    assert pair.client.transport._writer._compress is not None
    assert pair.server.transport._reader._inflate is not None


def test_a_packet_deflated_before_authentication_is_not_inflated() -> None:
    script = Script(make_server(Recorder(), ZLIB), algorithms=ZLIB).serve()
    script.writer.start_compression()
    script.send(Ignore(b"x"))
    assert script.peer.transport.error is not None


def test_what_a_packet_may_inflate_to_is_limited() -> None:
    script = Script(make_server(Recorder(), ZLIB), algorithms=ZLIB).log_in()
    script.reader.start_decompression()
    script.writer.start_compression()
    script.send(Ignore(bytes(PACKET_LIMIT - 10)))
    assert script.peer.transport.error is None
    script.send(Ignore(bytes(PACKET_LIMIT * 4)))
    assert isinstance(script.peer.transport.error, CompressionError)
    assert script.numbers() == [1]


@pytest.mark.parametrize(
    "payload",
    [b"no zlib at all", b"", zlib.compress(Ignore(b"x").encode())[2:], zlib.compress(b"")],
)
def test_a_packet_that_does_not_inflate_ends_the_connection(payload: bytes) -> None:
    script = Script(make_server(Recorder(), ZLIB), algorithms=ZLIB).log_in()
    script.send(payload or b"\0")
    assert isinstance(script.peer.transport.error, CompressionError)


@pytest.mark.parametrize("sides", ["both", "switched off later"])
def test_compression_begins_anew_with_new_keys(sides: str) -> None:
    pair = Pair(ZLIB).log_in()
    channel, _ = pair.open()
    channel.send(b"x" * 1000)
    pair.pump()
    if sides != "both":
        pair.client.transport._settings = pair.client.transport._settings._replace(algorithms=FAST)
        pair.server.transport._settings = pair.server.transport._settings._replace(algorithms=FAST)
    pair.client.transport.rekey()
    pair.pump()
    channel.send(b"y" * 1000)
    pair.pump()
    assert pair.server.transport.error is None
    assert ("data", b"y" * 1000) in pair.at_server.events
    assert (pair.client.transport._writer._compress is None) == (sides != "both")


def test_a_global_request_and_a_close_wait_for_the_end_of_a_key_exchange() -> None:
    script = Script(make_server(Recorder())).log_in()
    number = script.open()
    script.peer.transport.rekey()
    script.send(GlobalRequest("yes", True), ChannelData(number, b"x"), ChannelClose(number))
    assert script.numbers() == [20]
    script.kexinit()
    script.initiate()
    script.expect(31)
    script.newkeys()
    assert script.numbers() == [81, 97]
    assert HOST_KEY.public.bits == 256


# -- the server's own order of ciphers --------------------------------------------------------

GCM, CHACHA = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"


@pytest.mark.parametrize(
    ("client", "server", "before", "after"),
    [
        ((CHACHA, GCM), (GCM, CHACHA), CHACHA, GCM),
        ((CHACHA, GCM), (CHACHA, GCM), CHACHA, CHACHA),
        ((CHACHA,), (GCM, CHACHA), CHACHA, CHACHA),
        ((GCM, CHACHA), (CHACHA, GCM), GCM, CHACHA),
        ((GCM, CHACHA), (GCM, CHACHA), GCM, GCM),
    ],
)
def test_a_server_may_have_its_own_order_of_ciphers_once_a_tunnel_is_worth_it(
    client: tuple[str, ...], server: tuple[str, ...], before: str, after: str
) -> None:
    pair = Pair(FAST._replace(cipher=server), FAST._replace(cipher=client)).log_in()

    def cipher() -> set[str]:
        agreed = [end.transport._negotiated for end in (pair.client, pair.server)]
        return {choice.cipher for each in agreed for choice in (each.to_server, each.to_client)}

    assert cipher() == {before}
    exchanges = pair.client.transport._reader.sequence
    pair.server.transport.use_own_cipher_order()
    pair.pump()
    assert cipher() == {after}
    assert (pair.client.transport._reader.sequence < exchanges) == (before != after)
    ours, _theirs = pair.open("session")
    ours.send(b"still there")
    pair.pump()
    assert pair.server.transport.error is pair.client.transport.error is None
    pair.server.transport.rekey()
    pair.pump()
    assert cipher() == {after}
