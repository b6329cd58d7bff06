"""Certificates, revoked keys and several factors, as the monitor decides about them."""

import os
import pwd
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config.server import Profile, ServerConfig
from appliance.crypto import totp as codes
from appliance.crypto.authorized_keys import parse
from appliance.crypto.certificates import (
    NONCE_BYTES,
    Certificate,
    CertType,
    Terms,
    issue,
    text_option,
)
from appliance.crypto.key_exchange import METHODS
from appliance.crypto.keys import (
    SK_ECDSA,
    SK_ED25519,
    PrivateKey,
    PublicKey,
    certificate_name,
    generate,
)
from appliance.crypto.permissions import Permissions
from appliance.crypto.revoked import RevocationList
from appliance.errors import UsageError
from appliance.server import authentication, passwords, totp, user_files, user_keys
from appliance.server.authentication import Authentication, LoggedIn
from appliance.server.factors import CODE, Factors, sequences
from appliance.server.host_keys import HostKey, HostKeys
from appliance.server.peer import Peer
from appliance.server.requests import (
    AskPrompt,
    Begin,
    OutcomeReply,
    ShowKey,
    Sign,
    UseKey,
    UsePassword,
)
from appliance.ssh.auth_server import Offer, signed_data
from appliance.wire.codec import Reader
from tests.security_keys import TOUCHED, VERIFIED, Token

AUTHORITY = generate("ssh-ed25519")
OTHER_AUTHORITY = generate("ssh-ed25519")
KEY = generate("ssh-ed25519")
SECOND = generate("ssh-ed25519")
HOST_KEY = generate("ssh-ed25519")
USER = pwd.getpwuid(os.geteuid()).pw_name
SESSION = b"s" * 32
SECRET = bytes(range(20))
EVERYTHING = tuple(
    (name, b"")
    for name in (
        "permit-X11-forwarding",
        "permit-agent-forwarding",
        "permit-port-forwarding",
        "permit-pty",
        "permit-user-rc",
    )
)

Log = pytest.LogCaptureFixture


def certificate(
    key: PublicKey = KEY.public, authority: PrivateKey = AUTHORITY, **changes: Any
) -> Certificate:
    terms: dict[str, Any] = {"kind": CertType.USER, "key_id": "who", "principals": (USER,)}
    terms |= {"extensions": EVERYTHING} | changes
    algorithm = authority.public.signature_algorithms[0]
    return issue(authority, algorithm, key, Terms(**terms), bytes(NONCE_BYTES))


def use(
    key: PublicKey,
    sign: Callable[[str, bytes], bytes] = KEY.sign,
    algorithm: str = "",
    plain: str = "ssh-ed25519",
) -> UseKey:
    """A signature of ``key``, or of a certificate."""
    algorithm = algorithm or key.signature_algorithms[0]
    offer = Offer(USER, algorithm, key.blob, b"")
    return UseKey(USER, algorithm, key.blob, b"", sign(plain, signed_data(SESSION, offer)))


class Desk:
    """The authentication of one connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: str, **changes: object) -> None:
        monkeypatch.setattr(authentication, "FAILURE_SECONDS", 0.0001)
        entries = list(parse(lines.encode(), lambda text: None))
        monkeypatch.setattr(user_files, "authorized_keys", lambda user, config: entries)
        monkeypatch.setattr(
            passwords, "is_right", lambda user, given, _: user and given == b"right"
        )
        with socket.socket() as nothing:
            peer = Peer(nothing)
        peer.address, peer.port = "192.0.2.7", 4711
        self.logins: list[LoggedIn] = []
        config = replace(ServerConfig(), max_auth_tries=100, **changes)  # type: ignore[arg-type]
        host_keys = HostKeys({"ssh-ed25519": HostKey(HOST_KEY, HOST_KEY.public)}, {})
        self.authentication = Authentication(config, host_keys, peer, self.logins.append)
        self.authentication.sign(Sign("ssh-ed25519", SESSION))

    def key(self, request: UseKey) -> OutcomeReply:
        return OutcomeReply.decode(self.authentication.use_key(request)[0])

    def password(self, secret: bytes = b"right", method: str = "password") -> OutcomeReply:
        reply = self.authentication.use_password(UsePassword(USER, method, secret))
        return OutcomeReply.decode(reply[0])

    def code(self, text: str) -> OutcomeReply:
        return self.password(text.encode(), "keyboard-interactive")

    @property
    def prompt(self) -> str:
        return Reader(self.authentication.ask_prompt(AskPrompt(USER))[0]).text()

    @property
    def permissions(self) -> Permissions:
        """What the one login permits."""
        (login,) = self.logins
        return login.permissions


Make = Callable[..., Desk]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """A function that makes the authentication of a connection."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))

    def make(lines: str = "", **changes: object) -> Desk:
        return Desk(monkeypatch, lines, **changes)

    return make


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    """A file of trusted_user_ca_keys with one authority."""
    path = tmp_path / "authorities"
    path.write_text(f"# ours\n\n{AUTHORITY.public.line('the authority')}\n")
    return str(path)


@pytest.fixture
def line() -> str:
    """A line of authorized_keys that trusts the same authority."""
    return f"cert-authority {AUTHORITY.public.line()}"


# -- certificates ------------------------------------------------------------------------


def test_a_certificate_of_a_trusted_authority_lets_its_user_in(
    desk: Make, trusted: str, line: str, caplog: Log
) -> None:
    caplog.set_level("INFO")
    for it in (desk(trusted_user_ca_keys=trusted), desk(line)):
        made = certificate(serial=7)
        shown = ShowKey(USER, made.key_type, made.blob, b"")
        assert it.authentication.show_key(shown) == (b"", [])
        assert not it.logins
        assert it.key(use(made)).success
        assert it.permissions == Permissions()
        assert it.logins[0].key == KEY.public
        assert f"ID who (serial 7) CA ssh-ed25519 {AUTHORITY.public.fingerprint()}" in caplog.text


def test_a_certificate_needs_an_authority_that_is_trusted(
    desk: Make, trusted: str, line: str
) -> None:
    made = certificate(authority=OTHER_AUTHORITY)
    for it in (desk(trusted_user_ca_keys=trusted), desk(line), desk()):
        assert not it.key(use(made)).success
    assert not desk(AUTHORITY.public.line()).key(use(certificate())).success


def test_the_authority_itself_does_not_log_in_with_its_key(
    desk: Make, trusted: str, line: str
) -> None:
    for it in (desk(trusted_user_ca_keys=trusted), desk(line)):
        assert not it.key(use(AUTHORITY.public, AUTHORITY.sign)).success


def test_a_key_with_a_certificate_does_not_log_in_without_it(desk: Make, line: str) -> None:
    assert not desk(line).key(use(KEY.public)).success
    assert not desk(KEY.public.line()).key(use(certificate())).success


def test_the_signature_must_be_made_by_the_key_within(desk: Make, line: str) -> None:
    made = certificate()
    it = desk(line)
    assert not it.key(use(made, SECOND.sign)).success
    assert not it.key(use(made, AUTHORITY.sign)).success
    assert not it.key(use(made, algorithm="ssh-ed25519")).success
    wrong = use(made)
    wrong.signature = wrong.signature[:-1] + bytes([wrong.signature[-1] ^ 1])
    assert not it.key(wrong).success
    assert not it.logins


@pytest.mark.parametrize(
    "changes",
    [
        {"principals": ()},
        {"principals": ("somebody",)},
        {"principals": (f"somebody,{USER}",)},
        {"principals": ("*",)},
        {"kind": CertType.HOST},
        {"valid_after": 4_000_000_000},
        {"valid_before": 1_700_000_000},
        {"critical_options": (("unknown@example.com", b""),)},
        {"critical_options": (("force-command", b""),)},
        {"critical_options": (text_option("source-address", "198.51.100.0/24"),)},
        {"critical_options": (text_option("source-address", "*"),)},
        {"critical_options": (("verify-required", b""),)},
    ],
    ids=str,
)
def test_a_certificate_that_is_not_good_here_and_now_lets_nobody_in(
    desk: Make, trusted: str, line: str, changes: dict[str, Any]
) -> None:
    for it in (desk(trusted_user_ca_keys=trusted), desk(line)):
        assert not it.key(use(certificate(**changes))).success
        assert not it.logins


def test_what_the_certificate_does_not_permit_is_not_permitted(
    desk: Make, trusted: str, line: str
) -> None:
    for it in (desk(trusted_user_ca_keys=trusted), desk(line)):
        assert it.key(use(certificate(extensions=()))).success
        permissions = it.permissions
        assert not permissions.pty and not permissions.port_forwarding
        assert not permissions.tunnel_allowed and not permissions.agent_forwarding


def test_what_the_line_restricts_is_restricted_too(desk: Make, line: str) -> None:
    it = desk(f'restrict,pty,permitopen="a:1",{line}')
    assert it.key(use(certificate())).success
    assert it.permissions.pty and not it.permissions.port_forwarding
    assert it.permissions.permit_open == (("a", 1),)


def test_commands_of_line_and_certificate_must_agree(desk: Make, line: str) -> None:
    made = certificate(critical_options=(text_option("force-command", "a"),))
    assert not desk(f'command="b",{line}').key(use(made)).success
    for options in ('command="a",', ""):
        it = desk(options + line)
        assert it.key(use(made)).success
        assert it.permissions.command == "a"
    it = desk(f'command="b",{line}')
    assert it.key(use(certificate())).success and it.permissions.command == "b"


def test_the_lines_principals_take_the_place_of_the_user_name(desk: Make, line: str) -> None:
    it = desk(f'principals="ops,admin",{line}')
    assert not it.key(use(certificate())).success
    assert not it.key(use(certificate(principals=("ops,admin",)))).success
    assert it.key(use(certificate(principals=("x", "admin")))).success
    for nobody in ('principals="",', 'principals=",",'):
        it = desk(nobody + line)
        assert not it.key(use(certificate())).success


def test_the_principals_file_takes_the_place_of_the_user_name(
    desk: Make, trusted: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [("ops", Permissions(pty=False)), ("admin", Permissions(command="admin"))]
    monkeypatch.setattr(user_files, "authorized_principals", lambda user, config: found)
    config = {"trusted_user_ca_keys": trusted, "authorized_principals_file": "p"}
    assert not desk(**config).key(use(certificate())).success
    it = desk(**config)
    assert it.key(use(certificate(principals=("ops",)))).success
    assert not it.permissions.pty
    it = desk(**config)
    assert it.key(use(certificate(principals=("x", "admin")))).success
    assert it.permissions.command == "admin"
    found.clear()
    assert not desk(**config).key(use(certificate(principals=("ops",)))).success
    assert desk(line, **config).key(use(certificate())).success  # which is no business of a line


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "\xff", "ssh-ed25519 AAAA\n"])
def test_a_file_of_authorities_that_cannot_be_read_trusts_nobody(
    desk: Make, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "authorities"
    if content is not None:
        path.write_text(content)
    assert not desk(trusted_user_ca_keys=str(path)).key(use(certificate())).success


def test_one_bad_line_of_the_authorities_does_not_distrust_the_others(
    desk: Make, trusted: str, caplog: Log
) -> None:
    with open(trusted, "a") as file:
        file.write("nonsense\n")
    assert desk(trusted_user_ca_keys=trusted).key(use(certificate())).success
    assert "line 4" in caplog.text


def test_a_short_rsa_key_is_refused_by_the_hardened_profile_wherever_it_is(
    desk: Make, line: str
) -> None:
    short = generate("ssh-rsa", 2048)
    request = use(certificate(short.public), short.sign, plain="rsa-sha2-512")
    assert desk(line).key(request).success
    assert not desk(line, profile="hardened").key(request).success
    short_line = f"cert-authority {short.public.line()}"
    made = use(certificate(authority=short))
    assert desk(short_line).key(made).success
    assert not desk(short_line, profile="hardened").key(made).success


def test_allowing_one_curve_does_not_allow_the_others(desk: Make, line: str) -> None:
    """CVE-2026-35387, of plain keys, of certificates, and of authorities."""
    curves = {name: generate(name) for name in (f"ecdsa-sha2-nistp{n}" for n in (256, 384, 521))}
    for allowed in curves:
        for name, key in curves.items():
            plain = desk(key.public.line(), pubkey_accepted_algorithms=(allowed,))
            assert plain.key(use(key.public, key.sign, plain=name)).success is (name == allowed)
            accepted = certificate_name(allowed)
            certified = desk(line, pubkey_accepted_algorithms=(accepted,))
            request = use(certificate(key.public), key.sign, plain=name)
            assert certified.key(request).success is (name == allowed)
            request = use(key.public, key.sign, plain=name)
            both = desk(key.public.line(), pubkey_accepted_algorithms=(accepted,))
            assert not both.key(request).success
            authority = f"cert-authority {key.public.line()}"
            signed = desk(authority, ca_signature_algorithms=(allowed,))
            made = certificate(authority=key)
            assert signed.key(use(made)).success is (name == allowed)


def test_an_algorithm_that_does_not_exist_is_a_mistake_of_the_configuration() -> None:
    for setting in ("pubkey_accepted_algorithms", "ca_signature_algorithms", "kex_algorithms"):
        config = replace(ServerConfig(), **{setting: ("ssh-rsa",)})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=setting):
            user_keys.algorithms(config, True)


def test_a_server_computes_in_finite_fields_only_when_it_is_told_to() -> None:
    """D(HE)at, CVE-2002-20001."""

    def offered(*names: str, profile: Profile = "default") -> tuple[str, ...]:
        config = ServerConfig(kex_algorithms=names, profile=profile)
        return user_keys.algorithms(config, True).key_exchange

    assert {*METHODS} - {*offered()} == {
        "diffie-hellman-group14-sha256",
        "diffie-hellman-group16-sha512",
    }
    names = "curve25519-sha256", "diffie-hellman-group14-sha256"
    assert offered(*names) == names
    with pytest.raises(UsageError, match="kex_algorithms: 'curve25519-sha256' is none of mlkem"):
        offered(*names, profile="hardened")


@pytest.mark.parametrize("key_type", [SK_ED25519, SK_ECDSA])
def test_a_security_key_under_a_certificate_shows_presence_and_verification(
    desk: Make, line: str, trusted: str, key_type: str
) -> None:
    """Go CVE-2026-39831."""
    token = Token(key_type)
    no_touch = certificate(token.public, extensions=(("no-touch-required", b""),))
    verify = certificate(token.public, critical_options=(("verify-required", b""),))

    def accepted(options: str, made: Certificate, flags: int) -> bool:
        request = use(made, lambda _, data: token.sign(data, flags))
        return desk(options + line).key(request).success

    def accepted_of_trusted(made: Certificate, flags: int) -> bool:
        request = use(made, lambda _, data: token.sign(data, flags))
        return desk(trusted_user_ca_keys=trusted).key(request).success

    plain = certificate(token.public)
    assert accepted("", plain, TOUCHED)
    assert not accepted("", plain, 0)
    assert not accepted("no-touch-required,", plain, 0)
    assert not accepted("", no_touch, 0)
    assert accepted("no-touch-required,", no_touch, 0)  # both have to say so
    assert not accepted("", verify, TOUCHED)
    assert not accepted("verify-required,", plain, TOUCHED)
    assert accepted("verify-required,", verify, TOUCHED | VERIFIED)
    assert not accepted_of_trusted(plain, 0)
    assert accepted_of_trusted(no_touch, 0)  # where no line has a say
    assert not accepted_of_trusted(verify, TOUCHED)
    assert accepted_of_trusted(verify, TOUCHED | VERIFIED)


@pytest.mark.parametrize("key_type", [SK_ED25519, SK_ECDSA])
def test_a_security_key_shows_presence_and_verification(desk: Make, key_type: str) -> None:
    token = Token(key_type)

    def accepted(options: str, flags: int) -> bool:
        request = use(token.public, lambda _, data: token.sign(data, flags))
        return desk(f"{options}{token.public.line()}").key(request).success

    assert accepted("", TOUCHED)
    assert not accepted("", 0)
    assert accepted("no-touch-required ", 0)
    assert not accepted("verify-required ", TOUCHED)
    assert accepted("verify-required ", TOUCHED | VERIFIED)


GOOD = certificate()


@given(at=st.integers(0, len(GOOD.blob)), new=st.binary(max_size=20), cut=st.integers(0, 30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_client_sends_for_a_certificate_is_refused_and_raises_nothing(
    desk: Make, trusted: str, at: int, new: bytes, cut: int
) -> None:
    blob = GOOD.blob[:at] + new + GOOD.blob[at + cut :]
    it = desk(trusted_user_ca_keys=trusted)
    request = ShowKey(USER, GOOD.key_type, blob, b"")
    reply = it.authentication.show_key(request)[0]
    assert (reply == b"") is (blob == GOOD.blob)


# -- revoked keys ------------------------------------------------------------------------


@pytest.fixture
def revoked(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a revocation list and returns its path."""

    def write(content: bytes) -> str:
        (tmp_path / "revoked").write_bytes(content)
        return str(tmp_path / "revoked")

    return write


def test_a_revoked_key_logs_nobody_in_with_a_certificate_or_without(
    desk: Make, line: str, revoked: Callable[..., str], caplog: Log
) -> None:
    caplog.set_level("INFO")
    plain = KEY.public.line()
    for path in (revoked(plain.encode()), revoked(certificate().line().encode())):
        assert not desk(plain, revoked_keys=path).key(use(KEY.public)).success
        assert not desk(line, revoked_keys=path).key(use(certificate())).success
    assert "revoked" in caplog.text
    path = revoked(SECOND.public.line().encode())
    assert desk(plain, revoked_keys=path).key(use(KEY.public)).success
    assert desk(line, revoked_keys=path).key(use(certificate())).success


def test_a_revoked_authority_lets_nobody_in(
    desk: Make, line: str, revoked: Callable[..., str]
) -> None:
    path = revoked(AUTHORITY.public.line().encode())
    assert not desk(line, revoked_keys=path).key(use(certificate())).success


def test_a_revoked_serial_lets_nobody_in(
    desk: Make, trusted: str, revoked: Callable[..., str]
) -> None:
    krl = RevocationList()
    krl.certificates_of(AUTHORITY.public).add_range(5, 9)
    path = revoked(krl.dump(0))
    for serial, allowed in ((4, True), (5, False), (9, False), (10, True), (0, True)):
        it = desk(trusted_user_ca_keys=trusted, revoked_keys=path)
        assert it.key(use(certificate(serial=serial))).success is allowed


@pytest.mark.parametrize("content", [b"nonsense", b"SSHKRL\n\0", b"\0" * 100])
def test_a_revocation_list_that_cannot_be_read_refuses_every_key(
    desk: Make, line: str, revoked: Callable[..., str], content: bytes, caplog: Log
) -> None:
    for path in (revoked(content), "/nonexistent/revoked"):
        lines = f"{line}\n{KEY.public.line()}"
        assert not desk(lines, revoked_keys=path).key(use(KEY.public)).success
        assert not desk(lines, revoked_keys=path).key(use(certificate())).success
        assert desk(lines, revoked_keys=path).password().success
        assert "every key is refused" in caplog.text


# -- several factors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "error"),
    [
        (("publickey,nonsense",), "'nonsense'"),
        (("",), "''"),
        (("publickey,",), "''"),
        (("hostbased",), "'hostbased'"),
        (("keyboard-interactive:pam",), "'keyboard-interactive:pam'"),
        (("keyboard-interactive:totp",), "another method"),
        (("keyboard-interactive:totp,password",), "another method"),
        (("publickey", "keyboard-interactive:totp,publickey"), "another method"),
    ],
)
def test_a_mistake_in_the_methods_is_one_of_the_configuration(
    methods: tuple[str, ...], error: str
) -> None:
    config = replace(ServerConfig(), authentication_methods=methods, totp_file="f")
    with pytest.raises(UsageError, match=error):
        sequences(config)


def test_codes_need_a_file_and_passwords_must_be_allowed() -> None:
    config = replace(ServerConfig(), authentication_methods=(f"publickey,{CODE}",))
    with pytest.raises(UsageError, match="totp_file"):
        sequences(config)
    config = replace(
        ServerConfig(),
        authentication_methods=("publickey,password",),
        password_authentication=False,
    )
    with pytest.raises(UsageError, match="passwords are not allowed"):
        sequences(config)


@given(
    st.lists(st.lists(st.sampled_from(["publickey", "password"]), min_size=1), min_size=1),
    st.data(),
)
def test_a_login_is_complete_exactly_at_the_end_of_a_sequence(
    wanted: list[list[str]], data: st.DataObject
) -> None:
    config = replace(ServerConfig(), authentication_methods=tuple(map(",".join, wanted)))
    factors = Factors(config)
    done: list[str] = []
    complete = False
    while not complete:
        assert factors.next
        chosen = data.draw(st.sampled_from(factors.next))
        complete = factors.satisfy(chosen)
        done.append(chosen)
        assert any(each[: len(done)] == done for each in wanted)
        assert complete is (done in wanted)


def test_two_public_keys_must_be_two_different_keys(desk: Make, line: str) -> None:
    lines = f"{KEY.public.line()}\n{SECOND.public.line()}\n{line}"
    it = desk(lines, authentication_methods=("publickey,publickey",))
    first = it.key(use(KEY.public))
    assert first.partial and first.methods == ("publickey",)
    for again in (use(KEY.public), use(certificate())):  # the same key under a certificate
        second = it.key(again)
        assert not second.success and not second.partial
    assert it.key(use(SECOND.public, SECOND.sign)).success


@pytest.mark.parametrize(
    "methods", ["publickey,password", "password,publickey", "publickey,keyboard-interactive"]
)
def test_what_a_key_restricts_holds_whichever_factor_it_is(desk: Make, methods: str) -> None:
    """Go CVE-2026-39828, and Dropbear's forced command with -t."""
    it = desk(f'restrict,command="forced" {KEY.public.line()}', authentication_methods=(methods,))
    for name in methods.split(","):
        assert not it.logins
        if name == "publickey":
            it.key(use(KEY.public))
        else:
            it.password(method=name)
    assert it.permissions.command == "forced"
    assert not it.permissions.pty and not it.permissions.tunnel_allowed


def test_what_either_of_two_keys_restricts_is_restricted(desk: Make) -> None:
    lines = (
        f'no-pty,permitopen="a:1" {KEY.public.line()}\nno-port-forwarding {SECOND.public.line()}'
    )
    for order in ((KEY, SECOND), (SECOND, KEY)):
        it = desk(lines, authentication_methods=("publickey,publickey",))
        for key in order:
            it.key(use(key.public, key.sign))
        assert not it.permissions.pty and not it.permissions.port_forwarding
        assert it.permissions.permit_open == (("a", 1),)


def test_two_keys_that_force_different_commands_let_nobody_in(desk: Make) -> None:
    lines = f'command="a" {KEY.public.line()}\ncommand="b" {SECOND.public.line()}'
    it = desk(lines, authentication_methods=("publickey,publickey",))
    assert it.key(use(KEY.public)).partial
    assert not it.key(use(SECOND.public, SECOND.sign)).success
    assert not it.logins


def test_only_what_comes_next_can_be_tried(desk: Make) -> None:
    methods = ("publickey,password", "password,publickey,publickey")
    it = desk(KEY.public.line(), authentication_methods=methods)
    begun = OutcomeReply.decode(it.authentication.begin(Begin(USER))[0])
    assert begun.methods == ("publickey", "password")
    assert not it.password(method="keyboard-interactive").partial
    assert it.key(use(KEY.public)).methods == ("password",)
    assert it.password().success


# -- codes -------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    """A totp_file with one user."""
    path = tmp_path / "totp"
    path.write_text(f"# codes\nsomebody:AAAA\n{USER}:{codes.write_secret(SECRET)}\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only moves when a test moves it."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def code(now: float, steps: int = 0) -> str:
    return codes.code(SECRET, int(now) // codes.STEP + steps)


@pytest.fixture
def coded(desk: Make, secrets: str) -> Callable[[], Desk]:
    """A function that makes a connection which has shown its key and is asked for a code."""

    def make() -> Desk:
        methods = (f"publickey,{CODE}",)
        it = desk(KEY.public.line(), authentication_methods=methods, totp_file=secrets)
        outcome = it.key(use(KEY.public))
        assert outcome.partial and outcome.methods == ("keyboard-interactive",)
        assert it.prompt == "Verification code: "
        return it

    return make


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_a_key_and_a_code_of_about_now_let_their_user_in(
    coded: Callable[[], Desk], clock: list[float], steps: int
) -> None:
    assert coded().code(code(clock[0], steps)).success


@pytest.mark.parametrize("steps", [-2, 2, 1000])
def test_a_code_of_another_time_is_refused(
    coded: Callable[[], Desk], clock: list[float], steps: int
) -> None:
    it = coded()
    assert not it.code(code(clock[0], steps)).success
    assert not it.logins


def test_a_code_is_accepted_once_in_whatever_connection(
    coded: Callable[[], Desk], clock: list[float]
) -> None:
    given = code(clock[0])
    assert coded().code(given).success
    assert not coded().code(given).success
    assert not coded().code(code(clock[0], -1)).success  # of a step before it
    clock[0] += codes.STEP
    assert not coded().code(given).success
    assert coded().code(code(clock[0])).success


def wrong_code(now: float) -> str:
    around = {code(now, steps) for steps in (-1, 0, 1)}
    return next(text for text in ("000000", "111111", "222222", "333333") if text not in around)


def test_after_many_wrong_codes_the_right_one_does_not_count_for_a_while(
    coded: Callable[[], Desk], clock: list[float], caplog: Log
) -> None:
    """Over whatever connections: each may guess a few times, and there may be many."""
    for _ in range(totp.WRONG_LIMIT - 1):
        clock[0] += 20
        assert not coded().code(wrong_code(clock[0])).success
    assert coded().code(code(clock[0])).success  # which forgives nothing
    clock[0] += codes.STEP
    assert not coded().code(wrong_code(clock[0])).success
    (line,) = (text for text in caplog.messages if "every code is refused" in text)
    assert line.startswith(f"user {USER}: every code is refused for")
    began = clock[0] - codes.STEP - 20 * (totp.WRONG_LIMIT - 2)
    for at in (clock[0], began + totp.WRONG_SECONDS - 1):
        clock[0] = at
        refused = coded().code(code(at))
        assert (refused.success, refused.partial, refused.final) == (False, False, False)
    clock[0] = began + totp.WRONG_SECONDS
    assert coded().code(code(clock[0])).success


def test_wrong_codes_of_another_time_are_forgotten(
    coded: Callable[[], Desk], clock: list[float]
) -> None:
    for _ in range(3 * totp.WRONG_LIMIT):
        clock[0] += totp.WRONG_SECONDS / (totp.WRONG_LIMIT - 1)
        assert not coded().code(wrong_code(clock[0])).success
    assert coded().code(code(clock[0])).success


def test_a_clock_that_went_back_keeps_nobody_out_for_long(
    coded: Callable[[], Desk], clock: list[float]
) -> None:
    for _ in range(totp.WRONG_LIMIT):
        assert not coded().code(wrong_code(clock[0])).success
    assert not coded().code(code(clock[0])).success
    clock[0] -= 86400
    assert coded().code(code(clock[0])).success


@pytest.mark.parametrize(
    "given", ["", "000000 ", "12345", "1234567", "ABCDEF", "²²²²²²", "0" * 999]
)
def test_what_is_no_code_is_a_failure_that_counts(
    coded: Callable[[], Desk], clock: list[float], given: str
) -> None:
    it = coded()
    before = it.authentication.failures
    assert not it.code(given).success
    assert it.authentication.failures == before + 1


def test_the_password_is_no_code_and_a_code_no_password(
    coded: Callable[[], Desk], clock: list[float], desk: Make, secrets: str
) -> None:
    it = coded()
    assert not it.code("right").success
    assert not it.password(code(clock[0]).encode()).success
    methods = (f"password,{CODE}",)
    it = desk(authentication_methods=methods, totp_file=secrets)
    assert it.prompt == "Password: "
    assert not it.code(code(clock[0])).partial
    assert it.password().partial
    assert it.code(code(clock[0])).success


def test_a_code_before_the_key_is_not_even_used(
    desk: Make, secrets: str, clock: list[float]
) -> None:
    config = {"authentication_methods": (f"publickey,{CODE}",), "totp_file": secrets}
    it = desk(KEY.public.line(), **config)
    assert not it.code(code(clock[0])).partial
    assert it.key(use(KEY.public)).partial
    assert it.code(code(clock[0])).success


def test_what_the_key_restricts_holds_after_the_code(
    desk: Make, secrets: str, clock: list[float]
) -> None:
    lines = f'restrict,command="forced" {KEY.public.line()}'
    it = desk(lines, authentication_methods=(f"publickey,{CODE}",), totp_file=secrets)
    assert it.key(use(KEY.public)).partial
    assert it.code(code(clock[0])).success
    assert it.permissions.command == "forced" and not it.permissions.pty


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_of_secrets_that_others_may_read_lets_nobody_in(
    coded: Callable[[], Desk], clock: list[float], secrets: str, mode: int, caplog: Log
) -> None:
    os.chmod(secrets, mode)
    assert not coded().code(code(clock[0])).success
    assert "chmod 600" in caplog.text


@pytest.mark.root
def test_a_file_of_secrets_that_is_somebody_elses_lets_nobody_in(
    coded: Callable[[], Desk], clock: list[float], secrets: str, caplog: Log
) -> None:
    os.chown(secrets, pwd.getpwnam("nobody").pw_uid, -1)
    assert not coded().code(code(clock[0])).success
    assert "must be a file of root's" in caplog.text


@pytest.mark.parametrize("text", ["", "{0}:", "{0}:A", "{0}:!!!!", "{0}", "#{0}:AAAA", "x{0}:"])
def test_a_user_without_a_usable_secret_is_refused(
    coded: Callable[[], Desk], clock: list[float], secrets: str, text: str
) -> None:
    Path(secrets).write_text(text.format(USER) + "\n")
    assert not coded().code(code(clock[0])).success
    assert not coded().code(codes.code(b"", int(clock[0]) // codes.STEP)).success


@pytest.mark.parametrize("content", ["x", "1 2", "-", "99999999999999999999 0 0", "1 2 3 4"])
def test_without_a_record_of_what_was_used_no_code_is_accepted(
    coded: Callable[[], Desk], clock: list[float], tmp_path: Path, content: str, caplog: Log
) -> None:
    folder = tmp_path / "state/totp"
    folder.mkdir(parents=True)
    (folder / str(os.geteuid())).write_text(content)
    assert not coded().code(code(clock[0])).success
    (folder / str(os.geteuid())).unlink()
    (folder / str(os.geteuid())).mkdir()
    assert not coded().code(code(clock[0])).success
    assert "no code of user" in caplog.text


def test_no_user_is_told_apart_by_the_question(desk: Make, secrets: str) -> None:
    config = {"authentication_methods": (f"password,{CODE}",), "totp_file": secrets}
    prompts = set()
    for name in (USER, "no-such-user"):
        request = AskPrompt(name)
        prompts.add(desk(**config).authentication.ask_prompt(request)[0])
    assert len(prompts) == 1
