"""Whom the monitor lets in: keys, passwords, root, several factors, and tables for some users."""

import time
from collections.abc import Callable

import pytest

from appliance.crypto.keys import PrivateKey, generate
from appliance.crypto.permissions import Permissions
from appliance.server import (
    authentication,
    programs,
)
from appliance.server.requests import (
    AskPrompt,
    Begin,
    OpenPty,
    OpenTunnel,
    RefuseAttempt,
    ShowKey,
    Spawn,
    UseKey,
)
from appliance.ssh.auth_server import Offer, signed_data
from appliance.wire.codec import Message
from appliance.wire.tun import POINT_TO_POINT
from tests.unit.server.office import (
    BOTH,
    HOST_KEY,
    KEY,
    OTHER,
    RSA,
    SESSION,
    USER,
    Make,
    for_me,
    password,
    show_key,
    use_key,
)

# Keys


def test_a_signature_lets_its_user_in(office: Make) -> None:
    assert office().log_in().is_in


def test_a_key_that_was_only_shown_lets_nobody_in(office: Make) -> None:
    it = office().start()
    assert it.ask(show_key()) == b""
    assert not it.is_in
    assert it.ends(Spawn("exec", b"true", (), 0))


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


@pytest.mark.parametrize(
    "request_",
    [
        Begin(USER),
        RefuseAttempt(USER, "x"),
        show_key(),
        use_key(),
        password(),
        AskPrompt(USER),
    ],
)
def test_who_goes_on_after_the_last_attempt_is_ended(office: Make, request_: Message) -> None:
    """By the monitor: a worker that was taken over does not count."""
    it = office(max_auth_tries=2).start()
    for _ in range(2):
        it.outcome(password(secret=b"wrong"))
    assert it.ends(request_)
    assert not it.is_in


def test_another_users_limit_is_no_way_to_go_on(office: Make) -> None:
    it = office(max_auth_tries=1, match=for_me(max_auth_tries=9)).start()
    assert it.outcome(password("nobody-of-this-name")).final
    assert it.ends(password())


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
