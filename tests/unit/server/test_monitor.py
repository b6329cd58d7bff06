"""The monitor against a worker that was taken over: the table, the time, the end."""

import os
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.aio import connecting, name_connector
from appliance.errors import UsageError
from appliance.server import audit, monitor, programs, requests, tunnel_grants, tunnels
from appliance.server.monitor import Monitor
from appliance.server.penalties import Ending
from appliance.server.requests import (
    QUESTION,
    TABLE,
    AskPrompt,
    Begin,
    ClientAnswers,
    ClosePty,
    CloseTunnel,
    CloseX11,
    Connect,
    ConnectLocal,
    EndSessions,
    LearnSettings,
    Listen,
    ListenAgent,
    ListenLocal,
    ListenX11,
    LogLine,
    OpenPty,
    OpenTunnel,
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
    ask,
)
from appliance.ssh.auth_server import Offer, signed_data
from appliance.wire.codec import Message
from appliance.wire.host_keys import Proof
from tests.unit.server.office import (
    BOTH,
    HOST_KEY,
    KEY,
    SESSION,
    SPARE_KEY,
    USER,
    WORKER,
    Make,
    Office,
    password,
    show_key,
    use_key,
)
from tests.unit.wire.test_messages import VALUES


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


def test_a_monitor_that_fails_takes_its_worker_and_its_forwards_along(
    office: "Make", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    it = office().log_in()
    path = tmp_path / "s"
    answer = it.raw(ListenLocal(bytes(path)).encode())
    assert answer is not None and path.exists()
    os.close(answer[1][0])
    told: list[str] = []
    monkeypatch.setattr(audit, "write", lambda event: told.append(event.name))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_: None)
    wake = os.pipe()
    monkeypatch.setattr(os, "pipe", lambda: wake)
    monkeypatch.setattr(Monitor, "_loop", lambda *_: pytest.fail("a mistake of ours"))
    with pytest.raises(pytest.fail.Exception, match="a mistake of ours"):
        it.monitor.run()
    assert it.killed == [(WORKER, signal.SIGKILL)]
    assert not path.exists()
    assert told == ["disconnected"]
    for fd in wake:
        os.close(fd)


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
    LogLine: LogLine(20, b"a line"),
    ClientAnswers: ClientAnswers(),
    EndSessions: EndSessions(1),
    ListenX11: ListenX11(b"MIT-MAGIC-COOKIE-1", b"00" * 16, 0),
    CloseX11: CloseX11(1),
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
        *(ClosePty, ClientAnswers, EndSessions, ListenX11, CloseX11),
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
    monkeypatch.setattr(monitor._log, "exception", lambda *what: pytest.fail(str(what)))
    monkeypatch.setattr(tunnel_grants, "open_device", lambda *_: pytest.fail("it was done"))
    monkeypatch.setattr(programs, "start", refuse_to_start)
    monkeypatch.setattr(name_connector.NameConnector, "connect", refuse_to_start)
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


WORDS = ("", "\0", "/", "..", "a" * 100_000, "::1%" + "9" * 5000, "%", "²", "\U0001f600" * 1000)
HOSTILE: dict[type, tuple[object, ...]] = {
    str: WORDS,
    bytes: (*(word.encode() for word in WORDS), b"\xff" * 300),
    int: (0, 1, 65535, 65536, 1 << 31, (1 << 32) - 1),
    bool: (False, True),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_no_word_of_a_worker_makes_its_monitor_fail(
    office: Make, kind: type[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor._log, "exception", lambda *what: pytest.fail(str(what)))
    monkeypatch.setattr(programs, "start", refuse_to_start)
    monkeypatch.setattr(tunnel_grants, "open_device", refuse_a_device)
    monkeypatch.setattr(name_connector.NameConnector, "connect", refuse_to_start)
    good = SAMPLES[kind]
    for name in kind._fields:
        value = getattr(good, name)
        for hostile in HOSTILE.get(type(value), ((b"A", b"\0"), (b"\0",), (b"",) * 999)):
            it = office(gateway_ports="clientspecified", permit_tunnel="yes")
            if kind in AFTER:
                it.log_in()
            values = {each: getattr(good, each) for each in kind._fields} | {name: hostile}
            try:
                payload = kind(**values).encode()
            except UnicodeEncodeError:  # no worker can say this
                continue
            if len(payload) > requests.DATAGRAM:
                continue
            answer = it.raw(payload)
            for fd in answer[1] if answer is not None else ():
                os.close(fd)
            if it.is_in:
                for terminal in it.sessions._terminals.values():
                    terminal.close()
                it.sessions._terminals.clear()


def test_a_request_that_fails_is_refused_and_the_monitor_goes_on(
    office: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it = office().log_in()

    def fails(*_: object) -> None:
        raise ValueError("a mistake of ours")

    with monkeypatch.context() as failing:
        failing.setattr(connecting, "connect_address", fails)
        assert it.denied(SAMPLES[Connect]) == "the server could not do this"
    assert "Connect failed" in caplog.text and "a mistake of ours" in caplog.text
    assert it.ask(LearnSettings())


def refuse_a_device(*_: object) -> None:
    raise UsageError("no device")


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


@pytest.mark.parametrize("authenticated", [False, True])
def test_a_worker_that_takes_no_answers_does_not_hold_the_monitor(
    office: Make, authenticated: bool
) -> None:
    """It has a clock to look at before a login, and a log to write after one."""
    it = office()
    if authenticated:
        it.log_in()
    rescue = threading.Timer(5, it.worker.shutdown, [socket.SHUT_RDWR])
    rescue.start()
    for _ in range(10_000):
        it.worker.send(Sign("no-such-key", SESSION).encode())
        if not it.monitor._serve():
            break
    rescue.cancel()
    assert it.killed == [(WORKER, signal.SIGKILL)]


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
    it.ask(Sign("ssh-ed25519", b"x" * 32))
    assert "too many" in it.denied(Sign("ssh-ed25519", b"x" * 32))
    assert it.monitor._authentication._session_id == SESSION
    after = office().log_in()
    for _ in range(30):
        after.ask(Sign("ssh-ed25519", b"x" * 32))


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


# The worker's end


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


@pytest.mark.parametrize("answers", [True, False])
def test_a_client_that_somebody_asks_for_is_ended_if_it_does_not_answer(
    office: Make, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Who comes with the same key wants its tunnel's device."""
    it = office().log_in()
    monkeypatch.setattr(tunnels, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(Monitor, "_reap", lambda self: None)
    it.monitor._on_question()
    it.monitor._ask_client()
    it.monitor._on_question()
    it.monitor._ask_client()  # while the client is asked already
    assert it.worker.recv(10) == QUESTION
    if answers:
        it.ask(ClientAnswers())
        assert it.monitor._answer_by is None
    it.worker.setblocking(False)
    with pytest.raises(BlockingIOError):
        it.worker.recv(10)
    it.worker.shutdown(socket.SHUT_WR) if answers else None
    poll = select.poll()
    poll.register(it.ours, select.POLLIN)
    ending = threading.Timer(1, it.worker.shutdown, [socket.SHUT_WR])
    ending.start()
    assert not it.monitor._loop(poll, -1)
    ending.cancel()
    assert it.killed == ([] if answers else [(WORKER, signal.SIGKILL)])
    assert it.monitor._told_to_end is not answers


def test_a_question_that_comes_before_an_answer_is_no_answer(office: Make) -> None:
    it = office().log_in()
    it.ours.send(QUESTION)
    asked: list[bool] = []

    def serve() -> None:
        select.select([it.ours], [], [])
        it.monitor._serve()

    thread = threading.Thread(target=serve)
    thread.start()
    answer, _ = ask(it.worker, LearnSettings(), questioned=lambda: asked.append(True))
    thread.join()
    assert SettingsReply.decode(answer).max_sessions == 10
    assert asked == [True]


def test_whoever_is_logged_in_has_all_the_time(office: Make) -> None:
    it = office(login_grace_time=1).log_in()
    assert it.monitor._deadline is None
    assert office(login_grace_time=0).monitor._deadline is None


def test_the_first_of_two_factors_does_not_stop_the_clock(office: Make) -> None:
    it = office(authentication_methods=BOTH).start()
    assert it.outcome(use_key()).partial
    assert it.monitor._deadline is not None
    assert it.told == 0
