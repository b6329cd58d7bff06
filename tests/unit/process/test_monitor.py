"""The monitor against a worker that was taken over: the table, authentication, restrictions."""

import contextlib
import errno
import itertools
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.aio import connecting
from appliance.config.server import Match, ServerConfig, Tunnel
from appliance.crypto.authorized_keys import TUNNEL_ANY, Permissions, parse
from appliance.crypto.keys import PrivateKey, generate
from appliance.errors import UsageError
from appliance.process import (
    accounts,
    authentication,
    programs,
    requests,
    session_grants,
    tunnel_grants,
    tunnels,
)
from appliance.process.host_keys import HostKey, HostKeys
from appliance.process.monitor import Monitor
from appliance.process.peer import Peer
from appliance.process.penalties import Ending
from appliance.process.requests import (
    DATAGRAM,
    GRANTED,
    REFUSED,
    TABLE,
    TUNNELS_LIMIT,
    AskPrompt,
    Begin,
    ClosePty,
    CloseTunnel,
    Connect,
    ConnectLocal,
    LearnSettings,
    Listen,
    ListenAgent,
    ListenLocal,
    OpenPty,
    OpenTunnel,
    OutcomeReply,
    ProveHostKey,
    RefuseAttempt,
    ReportTotals,
    SendSignal,
    SettingsReply,
    ShowKey,
    Sign,
    Spawn,
    StopListening,
    UseKey,
    UsePassword,
    When,
)
from appliance.ssh.auth_server import Offer, signed_data
from appliance.wire.codec import Message, Reader
from appliance.wire.host_keys import Proof
from appliance.wire.tun import ANY_UNIT, ETHERNET, POINT_TO_POINT
from tests.peers import Account
from tests.unit.wire.test_messages import VALUES

HOST_KEY = generate("ssh-ed25519")
SPARE_KEY = generate("ssh-rsa", 2048)  # of the server, and not shown yet
KEY = generate("ssh-ed25519")
OTHER = generate("ssh-ed25519")
RSA = generate("ssh-rsa", 2048)
ME = pwd.getpwuid(os.geteuid())
USER = ME.pw_name
SESSION = b"s" * 32
CONFIG = ServerConfig(print_motd=False)
BOTH = ("publickey,password", "publickey,keyboard-interactive")
WORKER = 4711  # a process id that nothing is sent to: os.kill only takes notes here


class Office:
    """A monitor, and the worker's end of the socket between them."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        lines: str = "",
        address: str = "192.0.2.7",
        **changes: object,
    ) -> None:
        monkeypatch.setattr(authentication, "FAILURE_SECONDS", 0.0001)
        lines = lines or KEY.public.line()
        entries = list(parse(lines.encode(), lambda text: None))
        monkeypatch.setattr(accounts, "authorized_keys", lambda user, config: entries)
        monkeypatch.setattr(accounts, "has_no_password", lambda user: user is not None)
        monkeypatch.setattr(
            accounts,
            "password_is_right",
            lambda user, password, _: user and password == b"right",
        )
        ours, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket.socket() as nothing:
            peer = Peer(nothing)
        peer.address, peer.port = address, 4711
        self.told = 0
        self.ours = ours
        self.killed: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "kill", lambda *what: self.killed.append(what))
        self.monitor = Monitor(
            replace(CONFIG, **changes),  # type: ignore[arg-type]
            HostKeys(
                {"ssh-ed25519": HostKey(HOST_KEY, HOST_KEY.public)},
                {key.public.blob: key for key in (HOST_KEY, SPARE_KEY)},
            ),
            peer,
            ours,
            WORKER,
            self._tell,
        )

    def _tell(self) -> None:
        self.told += 1

    def raw(self, data: bytes, descriptors: int = 4) -> tuple[bytes, list[int]] | None:
        """What a datagram is answered with; None when the monitor ends the connection."""
        self.worker.send(data)
        if not self.monitor._serve():
            assert self.killed == [(WORKER, signal.SIGKILL)]
            self.worker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert self.worker.recv(DATAGRAM) == b""
            return None
        answer, fds, _, _ = socket.recv_fds(self.worker, DATAGRAM, descriptors)
        return answer, fds

    def ask(self, request: Message) -> bytes:
        """The answer to a request that is granted, and has no descriptors."""
        answer = self.raw(request.encode())
        assert answer is not None and answer[0][:1] == GRANTED, answer
        assert not answer[1]
        return answer[0][1:]

    def outcome(self, request: Message) -> OutcomeReply:
        return OutcomeReply.decode(self.ask(request))

    def denied(self, request: Message) -> str:
        """The text of a refusal."""
        answer = self.raw(request.encode())
        assert answer is not None and answer[0][:1] == REFUSED, answer
        return answer[0][1:].decode()

    def ends(self, request: Message) -> bool:
        """Whether the monitor ends the connection over a request."""
        return self.raw(request.encode()) is None

    def start(self) -> "Office":
        """A session id, by the first exchange."""
        self.ask(Sign("ssh-ed25519", SESSION))
        return self

    def log_in(self) -> "Office":
        self.start()
        assert self.outcome(use_key()).success
        assert self.told == 1
        return self

    @property
    def is_in(self) -> bool:
        return self.monitor._authentication.is_done

    @property
    def sessions(self) -> session_grants.SessionGrants:
        assert self.monitor._sessions is not None
        return self.monitor._sessions

    @property
    def tunnels(self) -> tunnel_grants.TunnelGrants:
        grants = getattr(self.monitor._handlers[OpenTunnel], "__self__", None)
        assert isinstance(grants, tunnel_grants.TunnelGrants)
        return grants

    def become(self, name: str) -> pwd.struct_passwd:
        """Go on as if somebody else had logged in."""
        user = pwd.getpwnam(name)
        for grants in (self.sessions, self.tunnels):
            grants._login = grants._login._replace(user=user)
        return user

    def close(self) -> None:
        if self.monitor._forwards is not None:
            self.monitor._forwards.close()
        if self.is_in:
            for claim in filter(None, self.tunnels._tunnels.values()):
                claim.close()
        self.ours.close()
        self.worker.close()


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def make(lines: str = "", **changes: object) -> Office:
        made.append(Office(monkeypatch, lines, **changes))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Office]


@pytest.mark.parametrize(
    ("status", "attempts", "user", "ending"),
    [
        (0, 0, USER, Ending.NO_AUTHENTICATION),
        (0, 1, USER, Ending.FAILED),
        (0, 1, "nobody-of-this-name", Ending.UNKNOWN_USER),
        (signal.SIGSEGV, 0, USER, Ending.CRASH),
        (1 << 8, 1, USER, Ending.CRASH),
    ],
)
def test_the_listener_learns_how_a_connection_ended(
    office: "Make",
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    attempts: int,
    user: str,
    ending: Ending,
) -> None:
    it = office()
    for _ in range(attempts):
        it.ask(RefuseAttempt(user, "password"))
    monkeypatch.setattr(os, "waitpid", lambda *_: (WORKER, status))
    monkeypatch.setattr(Monitor, "_reap", lambda self: None)
    assert it.monitor._ending(late=False) is ending


def test_a_login_is_a_normal_end(office: "Make", monkeypatch: pytest.MonkeyPatch) -> None:
    it = office()
    it.ask(RefuseAttempt(USER, "password"))
    it.log_in()
    monkeypatch.setattr(os, "waitpid", lambda *_: (WORKER, 0))
    monkeypatch.setattr(Monitor, "_reap", lambda self: None)
    assert it.monitor._ending(late=False) is Ending.NORMAL


def use_key(
    key: PrivateKey = KEY,
    user: str = USER,
    algorithm: str = "",
    session: bytes = SESSION,
    host_key: bytes = b"",
) -> UseKey:
    """A key with its signature."""
    algorithm = algorithm or key.public.signature_algorithms[0]
    offer = Offer(user, algorithm, key.public.blob, host_key)
    signature = key.sign(algorithm, signed_data(session, offer))
    return UseKey(user, algorithm, key.public.blob, host_key, signature)


def show_key(key: PrivateKey = KEY, algorithm: str = "") -> ShowKey:
    algorithm = algorithm or key.public.signature_algorithms[0]
    return ShowKey(USER, algorithm, key.public.blob, b"")


def password(user: str = USER, method: str = "password", secret: bytes = b"right") -> UsePassword:
    return UsePassword(user, method, secret)


SAMPLES: dict[type[Message], Message] = {
    Sign: Sign("ssh-ed25519", SESSION),
    Begin: Begin(USER),
    RefuseAttempt: RefuseAttempt(USER, "gssapi"),
    ShowKey: show_key(),
    UseKey: use_key(),
    UsePassword: password(secret=b"wrong"),
    AskPrompt: AskPrompt(USER),
    LearnSettings: LearnSettings(),
    ReportTotals: ReportTotals(1, 2),
    OpenPty: OpenPty(),
    Spawn: Spawn("exec", b"true", (), 0),
    SendSignal: SendSignal(1, "TERM"),
    OpenTunnel: OpenTunnel(1, 0),
    CloseTunnel: CloseTunnel("tun0"),
    Connect: Connect("192.0.2.1", 80),
    ConnectLocal: ConnectLocal(b"/run/s"),
    Listen: Listen("localhost", 8080),
    ListenLocal: ListenLocal(b"/run/s"),
    StopListening: StopListening(1),
    ListenAgent: ListenAgent(),
    ProveHostKey: ProveHostKey(b"key", "ssh-ed25519"),
    ClosePty: ClosePty(1),
}
AFTER = [kind for kind in SAMPLES if TABLE[kind.number].when is When.AFTER]
BEFORE = [kind for kind in SAMPLES if TABLE[kind.number].when is When.BEFORE]


# The table


def test_every_request_stands_in_the_table_with_a_handler(office: Make) -> None:
    it = office().log_in()
    kinds = {row.message for row in TABLE.values()}
    assert kinds == set(SAMPLES) == set(it.monitor._handlers)
    declared = {
        value
        for value in vars(requests).values()
        if isinstance(value, type) and issubclass(value, Message) and value is not Message
    }
    assert declared == kinds
    assert [
        *(LearnSettings, OpenPty, Spawn, SendSignal, OpenTunnel, CloseTunnel),
        *(Connect, ConnectLocal, Listen, ListenLocal, StopListening, ListenAgent, ProveHostKey),
        ClosePty,
    ] == AFTER


@pytest.mark.parametrize("kind", AFTER)
def test_nothing_that_needs_a_user_is_done_before_authentication(
    office: Make, kind: type[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open_terminal", "start"):
        monkeypatch.setattr(programs, name, lambda *_: pytest.fail("it was done"))
    monkeypatch.setattr(tunnel_grants, "open_device", lambda *_: pytest.fail("it was done"))
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("it was done"))
    assert office(permit_tunnel="yes").start().ends(SAMPLES[kind])


@pytest.mark.parametrize("kind", BEFORE)
def test_nobody_authenticates_twice(office: Make, kind: type[Message]) -> None:
    assert office().log_in().ends(SAMPLES[kind])


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_malformed_request_ends_the_connection(office: Make, kind: type[Message]) -> None:
    good = SAMPLES[kind].encode()
    for data in (good + b"\0", *([good[:-1]] if len(good) > 1 else [])):
        it = office()
        if kind in AFTER:
            it.log_in()
        assert it.raw(data) is None


@pytest.mark.parametrize("number", [0, 200, 255])
def test_a_request_that_is_in_no_row_ends_the_connection(office: Make, number: int) -> None:
    assert office().raw(bytes([number]) + bytes(20)) is None
    assert office().log_in().raw(bytes([number])) is None


@pytest.mark.parametrize("kind", [Begin, ShowKey])
def test_a_request_made_too_often_ends_the_connection(office: Make, kind: type[Message]) -> None:
    it = office(max_auth_tries=100).start()
    limit = TABLE[kind.number].limit
    assert limit == 100
    for _ in range(limit):
        it.ask(SAMPLES[kind])
    assert it.ends(SAMPLES[kind])


def test_every_request_of_authentication_is_limited() -> None:
    for kind in BEFORE:
        assert TABLE[kind.number].limit <= 100


@pytest.mark.parametrize("authenticated", [False, True])
@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
def test_arbitrary_requests_raise_nothing_and_let_nobody_in(
    monkeypatch: pytest.MonkeyPatch, authenticated: bool, data: st.DataObject
) -> None:
    it = Office(monkeypatch)
    monkeypatch.setattr(tunnel_grants, "open_device", lambda *_: pytest.fail("it was done"))
    monkeypatch.setattr(programs, "start", refuse_to_start)
    monkeypatch.setattr(connecting.NameConnector, "connect", refuse_to_start)
    try:
        if authenticated:
            it.log_in()
        for _ in range(data.draw(st.integers(1, 5))):
            row = data.draw(st.sampled_from(list(TABLE.values())))
            values = {name: data.draw(VALUES[field]) for name, field in row.message._fields.items()}
            payload = row.message(**values).encode()
            if data.draw(st.booleans()):
                payload = payload[:1] + data.draw(st.binary(max_size=50))
            answer = it.raw(payload)
            if answer is None:
                break
            for fd in answer[1]:
                os.close(fd)
        assert it.is_in == authenticated
    finally:
        if it.is_in:
            for terminal in it.sessions._terminals.values():
                terminal.close()
        it.close()


def refuse_to_start(*_: object) -> None:
    raise OSError(11, "no")


def test_a_worker_that_dies_before_it_reads_its_answer_ends_the_monitor_quietly(
    office: Make,
) -> None:
    it = office()
    it.worker.send(Sign("ssh-ed25519", SESSION).encode())
    it.worker.send(Sign("no-such-key", SESSION).encode())
    assert it.monitor._serve()
    it.worker.close()
    assert not it.monitor._serve()  # a refusal that nobody reads
    assert not it.monitor._serve()


# Host keys


def test_only_an_exchange_hash_is_signed_and_only_with_a_key_that_we_have(office: Make) -> None:
    it = office()
    for request in (
        Sign("ssh-rsa", SESSION),
        Sign("rsa-sha2-256", SESSION),
        Sign("", SESSION),
        Sign("ssh-ed25519", b""),
        Sign("ssh-ed25519", b"x" * 19),
        Sign("ssh-ed25519", b"x" * 65),
        Sign("ssh-ed25519", signed_data(SESSION, Offer("root", "ssh-ed25519", b"", b""))),
    ):
        assert "host key" in it.denied(request)
    signature = it.ask(Sign("ssh-ed25519", SESSION))
    assert HOST_KEY.public.verify("ssh-ed25519", signature, SESSION)


def test_key_exchanges_before_authentication_are_limited(office: Make) -> None:
    it = office().start()
    for _ in range(9):
        it.ask(Sign("ssh-ed25519", b"x" * 32))
    assert "too many" in it.denied(Sign("ssh-ed25519", b"x" * 32))
    assert it.monitor._authentication._session_id == SESSION
    after = office().log_in()
    for _ in range(30):
        after.ask(Sign("ssh-ed25519", b"x" * 32))


# Keys


def test_a_signature_lets_its_user_in(office: Make) -> None:
    assert office().log_in().is_in


def test_a_key_that_was_only_shown_lets_nobody_in(office: Make) -> None:
    it = office().start()
    assert it.ask(show_key()) == b""
    assert not it.is_in
    assert it.ends(SAMPLES[Spawn])


@pytest.mark.parametrize("order", ["first", "last"])
def test_permissions_come_from_the_key_that_signed(office: Make, order: str) -> None:
    """CVE-2024-45337: another key, without restrictions, was shown before or is in the file."""
    lines = [f'restrict,command="forced" {KEY.public.line()}', OTHER.public.line()]
    it = office("\n".join(lines if order == "first" else lines[::-1])).start()
    assert it.ask(show_key(KEY)) == b""
    assert it.ask(show_key(OTHER)) == b""
    assert it.outcome(use_key(KEY)).success
    assert it.monitor._authentication._permissions.command == "forced"
    assert not it.monitor._authentication._permissions.pty


def test_a_key_that_was_only_shown_restricts_and_permits_nothing(office: Make) -> None:
    it = office(f'restrict,command="forced" {KEY.public.line()}').start()
    assert it.ask(show_key()) == b""
    assert it.outcome(password()).success
    assert it.monitor._authentication._permissions == Permissions()


WRONG: dict[str, Callable[[], Message]] = {
    "another session": lambda: use_key(session=b"t" * 32),
    "no session": lambda: use_key(session=b""),
    "another user": lambda: _signed_as("somebody else"),
    "another algorithm": lambda: _retitled("ssh-rsa"),
    "another key": lambda: _with_blob(OTHER),
    "a key that is not listed": lambda: use_key(OTHER),
    "the form that is bound to a host": lambda: _bound_differently(),
    "another host": lambda: use_key(host_key=OTHER.public.blob),
    "nothing": lambda: _with_signature(b""),
    "half a signature": lambda: _with_signature(use_key().signature[:40]),
    "a longer signature": lambda: _with_signature(use_key().signature + b"\0"),
}


def _signed_as(user: str) -> UseKey:
    offer = Offer(user, "ssh-ed25519", KEY.public.blob, b"")
    return _with_signature(KEY.sign("ssh-ed25519", signed_data(SESSION, offer)))


def _with_signature(signature: bytes) -> UseKey:
    return UseKey(USER, "ssh-ed25519", KEY.public.blob, b"", signature)


def _retitled(algorithm: str) -> UseKey:
    request = use_key()
    request.algorithm = algorithm
    return request


def _with_blob(key: PrivateKey) -> UseKey:
    request = use_key()
    request.public_key = key.public.blob
    return request


def _bound_differently() -> UseKey:
    request = use_key(host_key=HOST_KEY.public.blob)
    request.host_key = b""
    return request


@pytest.mark.parametrize("what", WRONG)
def test_a_signature_for_something_else_lets_nobody_in(office: Make, what: str) -> None:
    it = office("\n".join((KEY.public.line(),))).start()
    outcome = it.outcome(WRONG[what]())
    assert not outcome.success and not outcome.partial
    assert not it.is_in


def test_a_signature_before_there_is_a_session_lets_nobody_in(office: Make) -> None:
    it = office()
    assert not it.outcome(use_key(session=b"")).success
    assert not it.is_in


def test_a_signature_bound_to_this_host_lets_its_user_in(office: Make) -> None:
    it = office().start()
    assert it.outcome(use_key(host_key=HOST_KEY.public.blob)).success


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
def test_an_rsa_key_signs_with_sha2_and_never_with_sha1(office: Make, algorithm: str) -> None:
    it = office(RSA.public.line()).start()
    assert not it.outcome(show_key(RSA, "ssh-rsa")).success
    assert not it.outcome(show_key(RSA, "ssh-ed25519")).success
    assert it.outcome(use_key(RSA, algorithm=algorithm)).success


def test_the_hardened_profile_refuses_short_rsa_keys(office: Make) -> None:
    it = office(RSA.public.line(), profile="hardened").start()
    assert not it.outcome(use_key(RSA)).success


@pytest.mark.parametrize(("profile", "success"), [("default", True), ("hardened", False)])
def test_the_hardened_profile_refuses_keys_of_nist_curves(
    office: Make, profile: str, success: bool
) -> None:
    key = generate("ecdsa-sha2-nistp256")
    it = office(key.public.line(), profile=profile).start()
    assert it.outcome(use_key(key)).success == success


@pytest.mark.parametrize(
    ("patterns", "address", "allowed"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24,!192.0.2.7", "192.0.2.7", False),
        ("198.51.100.*", "192.0.2.7", False),
        ("192.0.2.7", "UNKNOWN", False),
        ("192.0.2.7", "::1", False),
    ],
)
def test_a_key_counts_only_from_where_its_line_says(
    office: Make, patterns: str, address: str, allowed: bool
) -> None:
    it = office(f'from="{patterns}" {KEY.public.line()}', address=address).start()
    assert it.outcome(use_key()).success == allowed
    assert it.is_in == allowed


@pytest.mark.parametrize(("expiry", "allowed"), [("20200101Z", False), ("21000101Z", True)])
def test_a_key_counts_only_until_its_line_says(office: Make, expiry: str, allowed: bool) -> None:
    it = office(f'expiry-time="{expiry}" {KEY.public.line()}').start()
    assert it.outcome(use_key()).success == allowed


def test_of_two_lines_with_one_key_the_first_that_applies_counts(office: Make) -> None:
    lines = f'from="198.51.100.1" {KEY.public.line()}\ncommand="forced" {KEY.public.line()}'
    it = office(lines).start()
    assert it.outcome(use_key()).success
    assert it.monitor._authentication._permissions.command == "forced"


# Users


def test_the_user_cannot_be_exchanged(office: Make) -> None:
    it = office().start()
    it.ask(Begin(USER))
    assert "user changed" in it.denied(Begin("nobody"))
    assert "user changed" in it.denied(password("nobody"))
    assert "user changed" in it.denied(use_key(user="nobody"))
    assert not it.is_in


def test_an_unknown_user_is_answered_like_a_known_one(office: Make) -> None:
    answers = []
    for user in ("no-such-user", USER):
        it = office().start()
        answers.append(
            (
                it.ask(Begin(user)),
                it.ask(ShowKey(user, "ssh-ed25519", OTHER.public.blob, b"")),
                it.ask(use_key(OTHER, user)),
                it.ask(password(user, secret=b"wrong")),
            )
        )
    assert answers[0] == answers[1]


def test_failures_are_counted_and_the_last_one_is_final(office: Make) -> None:
    it = office(max_auth_tries=4).start()
    assert not it.outcome(show_key(OTHER)).final
    assert not it.outcome(use_key(OTHER)).final
    assert not it.outcome(RefuseAttempt(USER, "gssapi")).final
    assert it.outcome(password(secret=b"wrong")).final


def test_a_failure_takes_a_multiple_of_one_time(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = office(max_auth_tries=100).start()
    monkeypatch.setattr(authentication, "FAILURE_SECONDS", 0.02)
    for request in (
        show_key(OTHER),
        use_key(OTHER),
        password(secret=b"x"),
        RefuseAttempt("x", "y"),
    ):
        started = time.perf_counter()
        it.outcome(request)
        assert time.perf_counter() - started >= 0.0199
        it.monitor._authentication._user = None


# Passwords


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a_password_lets_its_user_in(office: Make, method: str) -> None:
    it = office().start()
    assert not it.outcome(password(method=method, secret=b"wrong")).success
    assert it.outcome(password(method=method)).success
    assert it.is_in


@pytest.mark.parametrize("method", ["publickey", "none", "", "hostbased"])
@pytest.mark.parametrize("both", [False, True])
def test_a_password_does_not_pass_for_another_method(office: Make, method: str, both: bool) -> None:
    it = office(authentication_methods=BOTH if both else ()).start()
    outcome = it.outcome(password(method=method))
    assert not outcome.success and not outcome.partial
    assert not it.is_in


def test_passwords_can_be_switched_off(office: Make) -> None:
    it = office(password_authentication=False).start()
    assert it.outcome(Begin(USER)).methods == ("publickey",)
    assert not it.outcome(password()).success
    assert not it.is_in


@pytest.mark.root
@pytest.mark.parametrize("how", ["no", "prohibit-password"])
def test_root_gets_in_as_the_configuration_says(office: Make, how: str) -> None:
    it = office(permit_root_login=how).start()
    assert not it.outcome(password()).success
    assert it.outcome(use_key()).success == (how == "prohibit-password")


@pytest.mark.root
def test_an_empty_password_of_roots_is_not_permitted_where_passwords_are_not(office: Make) -> None:
    it = office(permit_root_login="prohibit-password", permit_empty_passwords=True).start()
    assert not it.outcome(Begin(USER)).success
    assert not office(permit_empty_passwords=False).start().outcome(Begin(USER)).success
    assert office(permit_empty_passwords=True).start().outcome(Begin(USER)).success


@pytest.mark.root
def test_root_may_be_limited_to_the_forced_commands_of_keys(office: Make) -> None:
    changes = {"permit_root_login": "forced-commands-only"}
    assert not office(**changes).start().outcome(use_key()).success
    it = office(f'command="backup" {KEY.public.line()}', **changes).start()
    assert not it.outcome(password()).success
    assert it.outcome(use_key()).success
    # the server's own command is for everybody, and no reason to let root in
    assert not office(**changes, force_command="x").start().outcome(use_key()).success


# Match


def for_me(**keys: object) -> tuple[Match, ...]:
    """A table for the user who runs this test, coming from the usual address."""
    keys |= {"user": USER, "address": "192.0.2.0/24"}
    return (Match(**keys, given=frozenset(keys)),)  # type: ignore[arg-type]


def test_authentication_follows_the_settings_for_the_user(office: Make) -> None:
    it = office(match=for_me(password_authentication=False, max_auth_tries=2)).start()
    assert it.outcome(Begin(USER)).methods == ("publickey",)
    assert not it.outcome(password()).final
    assert it.outcome(password()).final
    elsewhere = office(match=for_me(password_authentication=False), address="198.51.100.1").start()
    assert elsewhere.outcome(password()).success


def test_a_table_may_ask_a_user_for_more_than_one_factor(office: Make) -> None:
    it = office(match=for_me(authentication_methods=("publickey,password",))).start()
    assert it.outcome(Begin(USER)).methods == ("publickey",)
    assert not it.outcome(password()).success
    assert it.outcome(use_key()).partial
    assert it.outcome(password()).success


def test_a_table_may_accept_fewer_kinds_of_keys_and_more(office: Make) -> None:
    fewer = for_me(pubkey_accepted_algorithms=("rsa-sha2-512",))
    assert not office(match=fewer).start().outcome(use_key()).success
    more = for_me(pubkey_accepted_algorithms=("ssh-ed25519",))
    it = office(match=more, pubkey_accepted_algorithms=("rsa-sha2-512",)).start()
    assert it.outcome(use_key()).success


def test_tables_that_do_not_go_together_let_nobody_in(office: Make) -> None:
    tables = for_me(authentication_methods=("password",)) + for_me(password_authentication=False)
    it = office(match=tables).start()
    for request in (Begin(USER), show_key(), use_key(), password(), use_key()):
        assert "no way to log in" in it.denied(request)
    assert not it.is_in


def test_the_grants_follow_the_settings_for_the_user(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    changes = {"permit_tty": False, "force_command": "ours", "accept_env": ("FOO",)}
    it = office(match=for_me(**changes, disable_forwarding=True), permit_tunnel="yes").log_in()
    assert "terminal" in it.denied(OpenPty())
    assert "DisableForwarding" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    assert "variable" in it.denied(Spawn("exec", b"asked", (b"LANG", b"C"), 0))
    it.denied(Spawn("exec", b"asked", (b"FOO", b"x"), 0))
    assert started[-1][1] == b"ours"


def test_a_worker_learns_once_what_holds_for_its_user(office: Make) -> None:
    changes = {"accept_env": ("A", "B*"), "max_sessions": 2, "client_alive_interval": 7}
    changes |= {"client_alive_count_max": 4, "idle_timeout": 9}
    it = office(match=for_me(**changes)).log_in()
    reply = SettingsReply.decode(it.ask(LearnSettings()))
    assert reply == SettingsReply((b"A", b"B*"), 2, 7, 4, 9)
    assert it.ends(LearnSettings())


# Two factors


def test_both_factors_are_needed_in_their_order(office: Make) -> None:
    it = office(authentication_methods=BOTH).start()
    assert it.outcome(Begin(USER)).methods == ("publickey",)
    assert not it.outcome(password()).success
    outcome = it.outcome(use_key())
    assert (outcome.success, outcome.partial) == (False, True)
    assert outcome.methods == ("password", "keyboard-interactive")
    assert not it.is_in
    for again in (use_key(), Begin(USER), show_key()):
        outcome = it.outcome(again)
        assert not outcome.success and not outcome.partial
    assert it.outcome(password()).success
    assert it.is_in


def test_two_times_nothing_is_not_two_factors(office: Make) -> None:
    it = office(authentication_methods=BOTH, permit_empty_passwords=True).start()
    for _ in range(3):
        outcome = it.outcome(Begin(USER))
        assert not outcome.success and not outcome.partial
    assert not it.is_in
    assert it.outcome(use_key()).partial
    assert it.outcome(Begin(USER)).success  # the empty password as the second


def test_what_the_first_factor_restricts_holds_after_the_second(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go CVE-2026-39828, and Dropbear's forced command with -t."""
    line = f'restrict,command="forced",environment="A=b" {KEY.public.line()}'
    changes = {"permit_tunnel": "yes", "permit_user_environment": ("A",)}
    it = office(line, authentication_methods=BOTH, **changes).start()
    assert it.outcome(use_key()).partial
    assert it.outcome(password()).success
    started: list[tuple[object, ...]] = []

    def start(*arguments: object) -> None:
        started.append(arguments)
        raise OSError(11, "enough")

    monkeypatch.setattr(programs, "start", start)
    for kind, command in (("exec", b"sh"), ("shell", b""), ("subsystem", b"sftp")):
        it.denied(Spawn(kind, command, (), 0))
        assert started[-1][1] == b"forced"
        assert started[-1][2][b"A"] == b"b"  # type: ignore[index]
    assert "terminal" in it.denied(OpenPty())
    assert "tunnel" in it.denied(OpenTunnel(POINT_TO_POINT, 0))


def test_the_second_factor_does_not_count_twice(office: Make) -> None:
    """Two passwords are not a key and a password."""
    it = office(authentication_methods=BOTH).start()
    for _ in range(3):
        assert not it.outcome(password()).success
    assert not it.is_in


# Programs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What programs would have been started with."""
    calls: list[tuple[object, ...]] = []

    def start(*arguments: object) -> None:
        calls.append(arguments)
        raise OSError(11, "enough")

    monkeypatch.setattr(programs, "start", start)
    return calls


@pytest.mark.parametrize("forced", ["forced command", ""])
@pytest.mark.parametrize("kind", ["exec", "shell", "subsystem"])
def test_a_forced_command_runs_whatever_was_asked_for(
    office: Make, started: list[tuple[object, ...]], forced: str, kind: str
) -> None:
    """An empty one, too: it allows nothing."""
    it = office(f'command="{forced}" {KEY.public.line()}').log_in()
    it.denied(Spawn(kind, b"asked", (), 0))
    assert started[-1][1] == forced.encode()
    original = started[-1][2].get(b"SSH_ORIGINAL_COMMAND")  # type: ignore[attr-defined]
    assert original == (None if kind == "shell" else b"asked")


def test_the_servers_forced_command_outweighs_the_keys(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    it = office(f'command="the key\'s" {KEY.public.line()}', force_command="ours").log_in()
    it.denied(Spawn("exec", b"asked", (), 0))
    assert started[-1][1] == b"ours"


@pytest.mark.parametrize(
    ("options", "changes", "kind", "runs"),
    [
        ("", {}, "exec", True),
        ("", {}, "shell", True),
        ("", {}, "subsystem", False),
        ("no-user-rc ", {}, "exec", False),
        ("restrict ", {}, "exec", False),
        ("restrict,user-rc ", {}, "exec", True),
        ('command="x" ', {}, "exec", True),
        ("", {"permit_user_rc": False}, "exec", False),
        ("", {"force_command": "x"}, "exec", False),
    ],
)
def test_the_users_rc_runs_where_nothing_forbids_it(
    office: Make,
    started: list[tuple[object, ...]],
    options: str,
    changes: dict[str, object],
    kind: str,
    runs: bool,
) -> None:
    it = office(options + KEY.public.line(), subsystems={"echo": "cat"}, **changes).log_in()
    it.denied(Spawn(kind, b"echo", (), 0))
    assert started[-1][5] is runs


def test_a_subsystem_is_one_that_the_configuration_names(
    office: Make, started: list[tuple[object, ...]]
) -> None:
    it = office(subsystems={"echo": "/bin/cat"}).log_in()
    it.denied(Spawn("subsystem", b"echo", (), 0))
    assert started[-1][1] == b"/bin/cat"
    for name in (b"sftp", b"", b"/bin/sh", b"echo\0", b"\xff"):
        assert "subsystem" in it.denied(Spawn("subsystem", name, (), 0))
    assert len(started) == 1


@pytest.mark.parametrize(
    "name",
    [b"LD_PRELOAD", b"BASH_ENV", b"PATH", b"", b"LC_A=B", b"LC_\xe9", b"LC_\0", b"LANG "],
)
def test_a_variable_that_is_not_accepted_reaches_no_program(
    office: Make, started: list[tuple[object, ...]], name: bytes
) -> None:
    it = office().log_in()
    assert "variable" in it.denied(Spawn("exec", b"env", (name, b"x"), 0))
    assert not started
    it.denied(Spawn("exec", b"env", (b"LANG", b"C", b"LC_ALL", b"C", b"TERM", b"vt100"), 0))
    environment = started[0][2]
    assert environment[b"LC_ALL"] == b"C"  # type: ignore[index]


@pytest.mark.parametrize(
    ("patterns", "reach"),
    [
        ((), set()),
        (("LC_*",), {b"LC_ALL"}),
        (("LANG", "LC_*"), {b"LANG", b"LC_ALL"}),
        (("*", "!LD_*"), {b"LANG", b"LC_ALL"}),
        (("*",), {b"LANG", b"LC_ALL", b"LD_PRELOAD"}),
    ],
)
def test_a_variable_of_a_keys_line_needs_the_servers_permission(
    office: Make,
    started: list[tuple[object, ...]],
    caplog: pytest.LogCaptureFixture,
    patterns: tuple[str, ...],
    reach: set[bytes],
) -> None:
    """Else LD_PRELOAD makes anything of a forced command."""
    names = ("LANG", "LC_ALL", "LD_PRELOAD")
    line = ",".join(f'environment="{name}=x"' for name in names) + f" {KEY.public.line()}"
    caplog.set_level("INFO")
    tables = for_me(permit_user_environment=patterns, force_command="ours")
    it = office(line, match=tables).log_in()
    for _ in range(2):
        it.denied(Spawn("exec", b"asked", (), 0))
    environment = started[-1][2]
    assert isinstance(environment, dict)
    assert reach == {name.encode() for name in names} & environment.keys()
    dropped = [name for name in names if name.encode() not in reach]
    said = [text for text in caplog.messages if "permit_user_environment" in text]
    assert said == [f"permit_user_environment drops the key's {', '.join(dropped)}"] * bool(dropped)


def test_a_key_without_a_terminal_gets_none(office: Make) -> None:
    it = office(f"no-pty {KEY.public.line()}").log_in()
    assert "terminal" in it.denied(OpenPty())
    assert "no terminal" in it.denied(Spawn("shell", b"", (), 1))


def test_the_terminals_without_a_program_are_as_many_as_the_sessions(office: Make) -> None:
    it = office(max_sessions=2).log_in()

    def open_terminal() -> int:
        answer = it.raw(OpenPty().encode())
        assert answer is not None and answer[0][:1] == GRANTED, answer
        os.close(answer[1][0])
        return Reader(answer[0][1:]).uint32()

    first, second = open_terminal(), open_terminal()
    assert "too many" in it.denied(OpenPty())
    terminal = it.sessions._terminals[first]
    it.ask(ClosePty(first))
    for fd in (terminal.master, terminal.slave):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for number in (first, 0, 77):
        assert "no terminal" in it.denied(ClosePty(number))
    assert "no terminal" in it.denied(Spawn("shell", b"", (), first))
    for number in (second, open_terminal()):
        it.ask(ClosePty(number))


def run(it: Office, command: bytes, kind: str = "exec") -> tuple[int, list[int]]:
    answer = it.raw(Spawn(kind, command, (), 0).encode())
    assert answer is not None and answer[0][:1] == GRANTED, answer
    return Reader(answer[0][1:]).uint32(), answer[1]


def test_a_program_runs_and_its_end_is_told(office: Make) -> None:
    it = office().log_in()
    pid, (stdin, stdout, stderr, status) = run(it, b"cat; echo err >&2; exit 7")
    os.write(stdin, b"hello")
    os.close(stdin)
    assert os.read(stdout, 100) == b"hello"
    assert os.read(stderr, 100) == b"err\n"
    assert os.read(stdout, 100) == b""
    wait_for(lambda: (it.monitor._reap(), not it.sessions._programs)[1])
    assert os.waitstatus_to_exitcode(int.from_bytes(os.read(status, 4), "big")) == 7
    assert os.read(status, 1) == b""
    assert pid > 0
    for fd in (stdout, stderr, status):
        os.close(fd)


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def test_a_program_has_no_descriptor_but_its_three(office: Make) -> None:
    it = office().log_in()
    secret, _write = os.pipe()
    os.set_inheritable(secret, True)
    _, fds = run(it, b"ls /proc/self/fd")
    try:
        assert os.read(fds[1], 1000).split() == [b"0", b"1", b"2", b"3"]  # ls reads with the last
        wait_for(lambda: (it.monitor._reap(), not it.sessions._programs)[1])
    finally:
        for fd in (*fds, secret, _write):
            os.close(fd)


def test_a_signal_goes_to_a_program_of_this_connection_only(office: Make) -> None:
    it = office().log_in()
    for process, name in ((os.getpid(), "TERM"), (1, "TERM"), (0, "TERM"), (0xFFFFFFFF, "TERM")):
        assert "no such" in it.denied(SendSignal(process, name))
    pid, fds = run(it, b"echo runs; exec sleep 100")
    assert os.read(fds[1], 100) == b"runs\n"
    for name in ("", "9", "SIGTERM", "RTMIN", "CLD", "TERM "):
        assert "no such" in it.denied(SendSignal(pid, name))
    it.ask(SendSignal(pid, "KILL"))
    wait_for(lambda: (it.monitor._reap(), not it.sessions._programs)[1])
    assert int.from_bytes(os.read(fds[3], 4), "big") == signal.SIGKILL
    assert "no such" in it.denied(SendSignal(pid, "KILL"))
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "changes", "kind"),
    [
        ('command="exec sleep 100" ', {}, "exec"),
        ('command="exec sleep 100" ', {}, "shell"),
        ("", {"force_command": "exec sleep 100"}, "exec"),
        ("", {"subsystems": {"wait": "exec sleep 100"}}, "subsystem"),
    ],
)
def test_what_the_client_did_not_choose_gets_no_signal(
    office: Make, options: str, changes: dict[str, object], kind: str
) -> None:
    """As with OpenSSH: who may only start a backup may not break it off halfway."""
    it = office(options + KEY.public.line(), **changes).log_in()
    pid, fds = run(it, b"wait", kind)
    for name in ("KILL", "TERM", "STOP"):
        assert "get no signals" in it.denied(SendSignal(pid, name))
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    it.sessions._kill(ME, pid, signal.SIGKILL)
    wait_for(lambda: (it.monitor._reap(), not it.sessions._programs)[1])
    for fd in fds:
        os.close(fd)


@pytest.mark.root
def test_a_signal_is_sent_as_the_user_not_as_root(
    office: Make, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have become another user's, as sudo does."""
    it = office().log_in()
    user = it.become(account.name)
    it.sessions._programs[4711] = session_grants._Running(-1, True)
    seen: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda *_: seen.append(os.geteuid()))
    it.ask(SendSignal(4711, "TERM"))
    assert seen == [user.pw_uid]
    it.sessions._programs.clear()


@pytest.mark.root
def test_a_program_is_nobody_but_the_user(office: Make, account: Account) -> None:
    it = office().log_in()
    user = it.become(account.name)
    _, fds = run(it, b"grep -E '^(Uid|Gid|Groups)' /proc/self/status; pwd; umask")
    wait_for(lambda: (it.monitor._reap(), not it.sessions._programs)[1])
    lines = os.read(fds[1], 1000).decode().split("\n")
    assert lines[0].split()[1:] == [str(user.pw_uid)] * 4
    assert lines[1].split()[1:] == [str(user.pw_gid)] * 4
    assert set(lines[2].split()[1:]) == {str(user.pw_gid)}
    assert lines[3] == user.pw_dir
    for fd in fds:
        os.close(fd)


# Tunnels

UNITS = [0, 5, ANY_UNIT, 0xFFFFFFFF]


@pytest.mark.parametrize("permit", ["no", "point-to-point", "ethernet", "yes"])
@pytest.mark.parametrize(
    "options",
    [
        "", "restrict", "no-port-forwarding", 'tunnel="5"', 'restrict,tunnel="5"', 'tunnel="any"',
        'no-port-forwarding,tunnel="5"', "restrict,port-forwarding",
    ],
)  # fmt: skip
def test_a_tunnel_needs_the_servers_and_the_keys_permission(
    office: Make, monkeypatch: pytest.MonkeyPatch, permit: str, options: str
) -> None:
    opened: list[tuple[int, int]] = []

    def open_device(mode: int, unit: int) -> tuple[int, str]:
        opened.append((mode, unit))
        raise UsageError("enough")

    monkeypatch.setattr(tunnel_grants, "open_device", open_device)
    it = office(f"{options} {KEY.public.line()}".strip(), permit_tunnel=permit).log_in()
    modes = {
        "no": set(), "point-to-point": {POINT_TO_POINT}, "ethernet": {ETHERNET},
        "yes": {POINT_TO_POINT, ETHERNET},
    }[permit]  # fmt: skip
    closed = options in ("restrict", "no-port-forwarding", "restrict,port-forwarding")
    for mode, unit in itertools.product((0, 1, 2, 3, 0xFFFFFFFF), UNITS):
        opened.clear()
        it.denied(OpenTunnel(mode, unit))
        expected = [(mode, unit)] if mode in modes and not closed else []
        if '"5"' in options and expected:
            expected = [(mode, 5)] if unit in (5, ANY_UNIT) else []
        if '"any"' in options and expected:
            expected = [(mode, TUNNEL_ANY)] if unit == ANY_UNIT else []
        assert opened == expected, (mode, unit)


class Devices:
    """The machine's tunnel devices, and who opened them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *existing: str) -> None:
        self.existing = set(existing)
        self.busy: set[str] = set()
        self.opened: list[tuple[str, int]] = []
        monkeypatch.setattr(tunnel_grants, "open_device", self._open)
        monkeypatch.setattr(tunnel_grants, "exists", lambda name: name in self.existing)

    def _open(self, mode: int, unit: int) -> tuple[int, str]:
        name = f"tun{0 if unit == ANY_UNIT else unit}"
        if name in self.busy:
            cause = OSError(errno.EBUSY, "busy")
            raise UsageError(f"{name} is busy") from cause
        self.busy.add(name)
        self.opened.append((name, os.geteuid()))
        return os.open("/dev/null", os.O_RDONLY), name


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the claims lie."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(tunnels, "END_SECONDS", 0.1)
    return tmp_path / "tunnels"


def open_tunnel(it: Office, unit: int) -> str:
    """The name of the device that is opened; the descriptor is closed again."""
    answer = it.raw(OpenTunnel(POINT_TO_POINT, unit).encode())
    assert answer is not None and answer[0][:1] == GRANTED, answer
    os.close(answer[1][0])
    return Reader(answer[0][1:]).text()


DECLARED = tuple(Tunnel(device=f"tun{number}") for number in range(2))


def test_a_declared_device_that_does_not_exist_is_not_made(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(monkeypatch)
    it = office(tunnel=DECLARED).log_in()
    for unit in (0, 1, ANY_UNIT):
        assert "now: a server makes it when it starts" in it.denied(OpenTunnel(1, unit))
    assert devices.opened == []


def test_any_device_is_never_a_declared_one_that_was_removed(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    Devices(monkeypatch)
    foreign = Tunnel(device="tun0", user="somebody-else")
    it = office(tunnel=(foreign,), permit_tunnel="yes").log_in()
    assert "tun0 is declared, but was removed" in it.denied(OpenTunnel(1, ANY_UNIT))


def test_nobody_is_thrown_out_while_another_declared_device_is_free(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    devices = Devices(monkeypatch, "tun0", "tun1")
    devices.busy.add("tun0")
    ended: list[str] = []

    def end_predecessor(claim: tunnels.Claim, key: object) -> bool:
        ended.append(claim._device)
        devices.busy.discard(claim._device)
        return True

    monkeypatch.setattr(tunnels.Claim, "end_predecessor", end_predecessor)
    first = office(tunnel=DECLARED).log_in()
    assert open_tunnel(first, ANY_UNIT) == "tun1"
    assert ended == []
    second = office(tunnel=DECLARED).log_in()
    assert open_tunnel(second, ANY_UNIT) == "tun0"
    assert ended == ["tun0"]


def test_whoever_has_a_device_can_be_found_until_it_is_closed(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).log_in()
    open_tunnel(it, 0)
    assert is_locked(claims / "tun0")
    assert claimed_by(claims / "tun0") == f"{os.getpid()} {KEY.public.fingerprint()}"
    it.ask(CloseTunnel("tun0"))
    assert not is_locked(claims / "tun0")
    assert "no such tunnel" in it.denied(CloseTunnel("tun0"))


def test_whoever_has_a_device_without_a_key_can_be_found_too(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).start()
    assert it.outcome(password()).success
    open_tunnel(it, 0)
    assert is_locked(claims / "tun0")
    assert claimed_by(claims / "tun0") == f"{os.getpid()} -"


def is_locked(path: Path) -> bool:
    return "EAGAIN" in seen_from_outside(
        path, "fcntl.lockf(open(path, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )


def claimed_by(path: Path) -> str:
    return seen_from_outside(path, "print(open(path).read(), end='')")


def seen_from_outside(path: Path, code: str) -> str:
    """What another process says of a file that we have locked: closing it here would unlock it."""
    lines = ("import errno, fcntl", f"path = {str(path)!r}", f"try: {code}",
             "except OSError as error: print(errno.errorcode[error.errno])")  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    ).stdout


def test_the_tunnels_of_a_connection_are_limited(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    Devices(monkeypatch)
    it = office(permit_tunnel="yes").log_in()
    for unit in range(TUNNELS_LIMIT):
        open_tunnel(it, unit)
    assert "too many" in it.denied(OpenTunnel(POINT_TO_POINT, 99))
    it.ask(CloseTunnel("tun3"))
    assert open_tunnel(it, 99) == "tun99"


def test_a_device_is_opened_once_by_a_connection(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path
) -> None:
    devices = Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED).log_in()
    open_tunnel(it, 0)
    assert "busy" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    assert is_locked(claims / "tun0")
    devices.busy.clear()  # it was removed, and made anew
    assert "has yet to close it" in it.denied(OpenTunnel(POINT_TO_POINT, 0))
    it.ask(CloseTunnel("tun0"))
    devices.busy.clear()
    assert open_tunnel(it, 0) == "tun0"


@pytest.mark.root
def test_what_is_not_declared_is_opened_as_the_user(
    office: Make, monkeypatch: pytest.MonkeyPatch, claims: Path, account: Account
) -> None:
    devices = Devices(monkeypatch, "tun0")
    it = office(tunnel=DECLARED[:1], permit_tunnel="yes").log_in()
    user = it.become(account.name)
    open_tunnel(it, 5)
    open_tunnel(it, 0)
    assert devices.opened == [("tun5", user.pw_uid), ("tun0", 0)]


def test_a_worker_that_has_ended_is_not_killed_again(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = office()

    def vanished(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", vanished)
    it.monitor._on_term()
    monkeypatch.setattr(os, "kill", lambda *what: it.killed.append(what))
    it.monitor._worker_status = 0
    it.monitor._on_term()  # its number may be somebody else's
    assert it.killed == []


# The time


def test_the_login_grace_time_kills_the_worker_from_outside(
    office: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = office(login_grace_time=1)
    it.monitor._deadline = time.monotonic() + 0.05
    monkeypatch.setattr(os, "waitpid", lambda *_: (WORKER, signal.SIGKILL))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    pipes = count_pipes(monkeypatch)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_: -1)
    monkeypatch.setattr(Monitor, "_reap", lambda self: None)
    assert it.monitor.run() is Ending.GRACE_TIME
    assert it.killed == [(WORKER, signal.SIGKILL)]
    for fd in pipes:
        os.close(fd)


def count_pipes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    pipe = os.pipe

    def counting() -> tuple[int, int]:
        both = pipe()
        made.extend(both)
        return both

    monkeypatch.setattr(os, "pipe", counting)
    return made


def test_whoever_is_logged_in_has_all_the_time(office: Make) -> None:
    it = office(login_grace_time=1).log_in()
    assert it.monitor._deadline is None
    assert office(login_grace_time=0).monitor._deadline is None


def test_the_first_of_two_factors_does_not_stop_the_clock(office: Make) -> None:
    it = office(authentication_methods=BOTH).start()
    assert it.outcome(use_key()).partial
    assert it.monitor._deadline is not None
    assert it.told == 0


def test_a_host_key_is_proven_for_this_connection_only(office: Make) -> None:
    it = office().log_in()
    for key, algorithm in ((HOST_KEY, "ssh-ed25519"), (SPARE_KEY, "rsa-sha2-512")):
        answer = it.ask(ProveHostKey(key.public.blob, algorithm))
        proof = Proof("hostkeys-prove-00@openssh.com", SESSION, key.public.blob).encode()
        assert key.public.verify(algorithm, answer, proof)
    for blob, algorithm in (
        (KEY.public.blob, "ssh-ed25519"),
        (HOST_KEY.public.blob, "rsa-sha2-512"),
        (SPARE_KEY.public.blob, "ssh-rsa"),
    ):
        assert it.denied(ProveHostKey(blob, algorithm)) == "no such host key"
