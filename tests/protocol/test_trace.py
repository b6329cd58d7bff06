"""The trace of a connection: every message by its RFC name, and never what it holds."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.log import TRACE
from appliance.process.rehearsal import rehearse
from appliance.ssh.trace import WORD_LIMIT, Trace
from appliance.wire import messages
from appliance.wire.codec import Message
from tests.protocol.harness import ALL, FAST, METHODS, PASSWORD, USER, Pair

# Behind the end's own KEXINIT, which a connection has sent as soon as it exists.
LOGINS = {
    "client": """
        < KEXINIT > KEX_ECDH_INIT < KEX_ECDH_REPLY > NEWKEYS > SERVICE_REQUEST < NEWKEYS < EXT_INFO
        < SERVICE_ACCEPT > USERAUTH_REQUEST < USERAUTH_PK_OK > USERAUTH_REQUEST < USERAUTH_SUCCESS
    """,
    "server": """
        < KEXINIT < KEX_ECDH_INIT > KEX_ECDH_REPLY > NEWKEYS > EXT_INFO < NEWKEYS < SERVICE_REQUEST
        > SERVICE_ACCEPT < USERAUTH_REQUEST > USERAUTH_PK_OK < USERAUTH_REQUEST > USERAUTH_SUCCESS
    """,
}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == TRACE]


def names(told: list[str]) -> list[str]:
    """Each message as in LOGINS."""
    found = []
    for line in told:
        whole = r"(send|receive) packet: type \d+ \((?:SSH_MSG_)?(\w+)\)(?:, [^,]+)*, \d+ bytes"
        match = re.fullmatch(whole, line)
        assert match, line
        found += [">" if match[1] == "send" else "<", match[2]]
    return found


def traced(of: str = "client", **arguments: object) -> Pair:
    """A pair of which one end is traced."""
    pair = Pair(**arguments)  # type: ignore[arg-type]
    trace = Trace()
    transport = getattr(pair, of).transport
    transport._trace = trace
    transport._reader.trace, transport._writer.trace = trace.received, trace.sent
    return pair


@pytest.mark.parametrize("of", ["client", "server"])
def test_a_login_is_told_message_by_message(caplog: pytest.LogCaptureFixture, of: str) -> None:
    traced(of).log_in()
    assert names(lines(caplog)) == LOGINS[of].split()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("curve25519-sha256", "KEX_ECDH_INIT"),
        ("ecdh-sha2-nistp256", "KEX_ECDH_INIT"),
        ("mlkem768x25519-sha256", "KEX_HYBRID_INIT"),
        ("diffie-hellman-group14-sha256", "KEXDH_INIT"),
    ],
)
def test_a_key_exchange_has_the_names_of_its_method(
    caplog: pytest.LogCaptureFixture, method: str, expected: str
) -> None:
    traced(algorithms=ALL._replace(key_exchange=(method,), host_key=("ssh-ed25519",))).log_in()
    assert expected in names(lines(caplog))


@pytest.mark.parametrize("compression", ["none", "zlib@openssh.com"])
def test_channels_and_sizes_are_told_as_the_messages_have_them(
    caplog: pytest.LogCaptureFixture, compression: str
) -> None:
    pair = traced(algorithms=FAST._replace(compression=(compression,))).log_in()
    pair.open()
    caplog.clear()
    channel, there = pair.open()
    channel.request("shell", b"", lambda _: None)
    channel.send(b"secret")
    pair.pump()
    there.send_batch([b"secret", b"s"])
    there.close()
    pair.pump()
    assert lines(caplog) == [
        "send packet: type 90 (SSH_MSG_CHANNEL_OPEN), session, sender channel 1, 24 bytes",
        "receive packet: type 91 (SSH_MSG_CHANNEL_OPEN_CONFIRMATION), recipient channel 1, "
        "sender channel 1, 17 bytes",
        "send packet: type 98 (SSH_MSG_CHANNEL_REQUEST), recipient channel 1, shell, 15 bytes",
        "send packet: type 94 (SSH_MSG_CHANNEL_DATA), recipient channel 1, 15 bytes",
        "receive packet: type 99 (SSH_MSG_CHANNEL_SUCCESS), recipient channel 1, 5 bytes",
        "receive packet: type 94 (SSH_MSG_CHANNEL_DATA), recipient channel 1, 15 bytes",
        "receive packet: type 94 (SSH_MSG_CHANNEL_DATA), recipient channel 1, 10 bytes",
        "receive packet: type 97 (SSH_MSG_CHANNEL_CLOSE), recipient channel 1, 5 bytes",
        "send packet: type 97 (SSH_MSG_CHANNEL_CLOSE), recipient channel 1, 5 bytes",
    ]


@pytest.mark.parametrize("of", ["client", "server"])
@pytest.mark.parametrize("method", METHODS)
def test_neither_password_nor_user_nor_data_is_ever_told(
    caplog: pytest.LogCaptureFixture, of: str, method: str
) -> None:
    caplog.set_level(1)
    pair = traced(of, methods=(method,), banner="a banner").log_in()
    channel, there = pair.open("direct-tcpip")
    for end in (channel, there):
        end.send(b"the data")
        end.send_extended(1, b"the data")
        end.request("exec", b"\0\0\0\x08the data")
    pair.client.global_request("tcpip-forward", b"\0\0\0\x08the data")
    pair.pump()
    told = "\n".join(lines(caplog))
    assert "SSH_MSG_USERAUTH_REQUEST), ssh-connection, " + method[:8] in told
    for secret in (PASSWORD.decode(), USER, "the data", "a banner", "Password"):
        assert secret not in told
        assert secret.encode().hex() not in told


def test_an_unanswered_dialogue_and_a_password_to_be_changed_have_their_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traced(methods=("keyboard-interactive",)).log_in()
    assert "USERAUTH_INFO_REQUEST" in names(lines(caplog))
    assert "USERAUTH_INFO_RESPONSE" in names(lines(caplog))
    caplog.clear()
    trace = Trace()
    trace.sent(messages.UserauthRequest(USER, "ssh-connection", "password", b"").encode())
    trace.received(b"\x3c")
    assert names(lines(caplog))[2:] == ["<", "USERAUTH_PASSWD_CHANGEREQ"]


def test_every_record_has_a_name_of_an_rfc(caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace()
    numbers = {
        kind.number
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    } - {60}
    for number in numbers:
        trace.received(bytes((number,)))
    assert len(numbers) > 30
    assert all("(SSH_MSG_" in line for line in lines(caplog))
    trace.received(b"\xc8")
    assert lines(caplog)[-1] == "receive packet: type 200 (unknown), 1 bytes"


def test_a_word_that_the_peer_made_up_is_short_and_harmless(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trace = Trace()
    trace.received(messages.ChannelOpen("a\n\x1bb" + "c" * 1000, 0, 0, 0).encode())
    (line,) = lines(caplog)
    assert r"a\n\x1bb" in line and "c" * WORD_LIMIT not in line and line.isprintable()


@given(st.binary(min_size=1, max_size=80), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_peer_sends_is_one_line(
    caplog: pytest.LogCaptureFixture, data: bytes, number: int
) -> None:
    caplog.clear()
    Trace().received(bytes((number,)) + data)
    (line,) = lines(caplog)
    assert line.isprintable()


def test_nothing_is_told_unless_a_trace_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    Pair().log_in().open()
    rehearse(FAST)
    assert not lines(caplog)
    assert caplog.records  # of level DEBUG
    Pair(trace=True).log_in()
    assert lines(caplog)
