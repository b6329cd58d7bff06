"""Certificates of hosts, and what is revoked, as the client judges them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.client import login as login_module
from appliance.client import prompts
from appliance.client.credentials import UserCredentials
from appliance.client.host_options import HostOptions
from appliance.client.host_trust import HostTrust
from appliance.client.ssh_config import load
from appliance.crypto.certificates import NONCE_BYTES, Certificate, CertType, Terms, issue
from appliance.crypto.keys import PrivateKey, PublicKey, generate, is_certificate_name
from appliance.crypto.revoked import RevocationList
from appliance.errors import HostKeyRejected, UsageError

AUTHORITY = generate("ssh-ed25519")
OTHER_AUTHORITY = generate("ssh-ed25519")
KEY = generate("ssh-ed25519").public
HOST = "a.example.com"

Make = Callable[..., HostTrust]


def certificate(
    key: PublicKey = KEY, authority: PrivateKey = AUTHORITY, **changes: Any
) -> Certificate:
    terms: dict[str, Any] = {
        "kind": CertType.HOST,
        "key_id": "host",
        "principals": (HOST,),
    } | changes
    algorithm = authority.public.signature_algorithms[0]
    return issue(authority, algorithm, key, Terms(**terms), bytes(NONCE_BYTES))


def options(folder: Path, known_hosts: str, *given: str, strict: str = "yes") -> HostOptions:
    (folder / "known_hosts").write_text(known_hosts)
    files = f"UserKnownHostsFile {folder / 'known_hosts'}", "GlobalKnownHostsFile none"
    return load(HOST, (*given, *files, f"StrictHostKeyChecking {strict}"), "none")


@pytest.fixture
def trust(tmp_path: Path) -> Make:
    """A function that reads a known_hosts file's text for one host."""

    def make(known_hosts: str, *given: str, strict: str = "yes") -> HostTrust:
        return HostTrust(options(tmp_path, known_hosts, *given, strict=strict))

    return make


def authority_line(hosts: str = "*.example.com", key: PrivateKey = AUTHORITY) -> str:
    return f"@cert-authority {hosts} {key.public.line()}\n"


@pytest.mark.parametrize("hosts", ["*.example.com", HOST, "*", "x,a.*", "A.Example.COM"])
def test_a_certificate_by_a_known_authority_is_trusted(trust: Make, hosts: str) -> None:
    trust(authority_line(hosts)).check(certificate())


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        (["Port 2222"], f"[{HOST}]:2222"),
        (["Port 2222"], HOST),
        (["HostName 192.0.2.1", f"HostKeyAlias {HOST}", "Port 7"], "*.example.com"),
    ],
)
def test_the_principal_is_the_name_without_the_port(
    trust: Make, given: list[str], hosts: str
) -> None:
    trust(authority_line(hosts), *given).check(certificate())


def test_an_authority_of_other_hosts_is_none_of_this_one(trust: Make) -> None:
    for known_hosts in (
        "",
        authority_line("*.example.org"),
        authority_line("*.example.com,!a.example.com"),
        authority_line(key=OTHER_AUTHORITY),
        f"*.example.com {AUTHORITY.public.line()}\n",
        f"@revoked other {AUTHORITY.public.line()}\n",
    ):
        with pytest.raises(HostKeyRejected):
            trust(known_hosts).check(certificate())


@pytest.mark.parametrize(
    "changes",
    [
        {"principals": ("b.example.com",)},
        {"principals": ("*.example.com",)},
        {"principals": ("*",)},
        {"principals": ()},
        {"principals": (f"b,{HOST}",)},
        {"kind": CertType.USER},
        {"valid_after": 4_000_000_000},
        {"valid_before": 1_700_000_000},
        {"critical_options": (("x@example.com", b""),)},
    ],
    ids=str,
)
def test_a_certificate_that_is_not_good_is_no_more_than_its_key(
    trust: Make, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = certificate(**changes)
    with pytest.raises(HostKeyRejected):
        trust(authority_line()).check(made)
    trust(f"{authority_line()}{HOST} {KEY.line()}\n").check(made)


def test_where_no_authority_is_known_the_key_within_is_looked_up(
    trust: Make, tmp_path: Path
) -> None:
    made = certificate()
    trust(f"{HOST} {KEY.line()}\n").check(made)
    with pytest.raises(HostKeyRejected, match="has changed"):
        trust(f"{HOST} {generate('ssh-ed25519').public.line()}\n").check(made)
    trust("", strict="accept-new").check(made)
    assert (tmp_path / "known_hosts").read_text() == f"{HOST} {KEY.line()}\n"


def test_an_authority_that_is_revoked_vouches_for_nobody(trust: Make) -> None:
    for revoked in (AUTHORITY.public, KEY):
        lines = f"{authority_line()}@revoked * {revoked.line()}\n{HOST} {KEY.line()}\n"
        with pytest.raises(HostKeyRejected, match="revoked"):
            trust(lines).check(certificate())


def test_what_revoked_host_keys_lists_is_refused_whoever_vouches(
    trust: Make, tmp_path: Path
) -> None:
    path = tmp_path / "revoked"
    krl = RevocationList()
    krl.certificates_of(AUTHORITY.public).add_range(3, 3)
    known = f"{authority_line()}{HOST} {KEY.line()}\n"
    for content in (KEY.line().encode(), AUTHORITY.public.line().encode(), krl.dump(0)):
        path.write_bytes(content)
        with pytest.raises(HostKeyRejected, match="revoked"):
            trust(known, f"RevokedHostKeys {path}").check(certificate(serial=3))
    trust(known, f"RevokedHostKeys {path}").check(certificate(serial=4))
    path.write_text(KEY.line())
    with pytest.raises(HostKeyRejected, match="revoked"):
        trust(known, f"RevokedHostKeys {path}").check(KEY)


def test_a_list_of_revoked_keys_that_cannot_be_read_ends_it(trust: Make, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("nonsense")
    for name in ("bad", "missing"):
        with pytest.raises(UsageError, match=f"RevokedHostKeys .*{name}"):
            trust(authority_line(), f"RevokedHostKeys {tmp_path / name}")


def test_the_authority_must_sign_as_ca_signature_algorithms_says(trust: Make) -> None:
    authority = generate("ecdsa-sha2-nistp256")
    lines = authority_line(key=authority)
    made = certificate(authority=authority)
    trust(lines).check(made)
    for given in (
        "CASignatureAlgorithms ssh-ed25519",
        "CASignatureAlgorithms ecdsa-sha2-nistp384",
        "profile hardened",
    ):
        with pytest.raises(HostKeyRejected):
            trust(lines, given).check(made)


def test_a_short_rsa_key_is_refused_in_a_certificate_and_in_its_authority(trust: Make) -> None:
    short = generate("ssh-rsa", 2048)
    trust(authority_line()).check(certificate(short.public))
    for lines, made in (
        (authority_line(), certificate(short.public)),
        (authority_line(key=short), certificate(authority=short)),
    ):
        with pytest.raises(HostKeyRejected):
            trust(lines, "RequiredRSASize 3072").check(made)
    known = f"{HOST} {short.public.line()}\n"
    trust(known).check(short.public)
    with pytest.raises(HostKeyRejected, match="too short: 2048 bits"):
        trust(known, "RequiredRSASize 3072").check(short.public)


# -- whoever is not known --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "good"),
    [
        (["yes"], True),
        (["", "y", "yes"], True),
        (["no"], False),
        (["Yes", "no"], False),
        ([None], False),
        (["perhaps", None], False),
    ],
)
def test_a_host_that_is_not_known_needs_a_yes(
    trust: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[str | None],
    good: bool,
) -> None:
    left = iter(answers)
    monkeypatch.setattr(prompts, "line", lambda prompt: next(left))
    trusting = trust("", strict="ask")
    if good:
        trusting.check(KEY)
    else:
        with pytest.raises(HostKeyRejected, match="nobody confirmed"):
            trusting.check(KEY)
    assert list(left) == []
    known = (tmp_path / "known_hosts").read_text()
    assert known == (f"{HOST} {KEY.line()}\n" if good else "")


def test_nobody_is_asked_in_batch_mode(trust: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "line", pytest.fail)
    with pytest.raises(HostKeyRejected, match="nobody confirmed"):
        trust("", "BatchMode yes", strict="ask").check(KEY)


def test_a_host_whose_key_has_changed_gets_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a changed key is no reason to stop."""
    monkeypatch.setattr(prompts, "secret", lambda prompt: "secret")
    monkeypatch.setattr(prompts, "line", lambda prompt: "secret")
    for known, answer in ((KEY, "secret"), (generate("ssh-ed25519").public, None)):
        given = options(tmp_path, f"{HOST} {known.line()}\n", strict="no")
        trusting = HostTrust(given)
        trusting.check(KEY)
        credentials = UserCredentials(given, trusting)
        assert credentials.password() == answer
        for echo in (True, False):
            found = credentials.answers("", "", (("Password: ", echo),))
            assert found == (answer and (answer,))


CHANGED = f"{HOST} {generate('ssh-ed25519').public.line()}\n"
AVOID = "to avoid man-in-the-middle attacks."


def test_a_host_whose_key_has_changed_gets_nothing_to_abuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenSSH's words: sshconnect.c, check_host_key."""
    words = (
        "ForwardAgent /run/agent",
        "ForwardX11 yes",
        "LocalForward 1 h:2",
        "Tunnel ethernet",
        "UpdateHostKeys yes",
    )
    given = options(tmp_path, CHANGED, *words, strict="no")
    HostTrust(given).check(KEY)
    assert (given.forward_agent, given.forwards, given.tunnel) == ("", (), "no")
    assert not given.forward_x11
    assert not given.password_authentication and not given.kbd_interactive_authentication
    assert given.update_host_keys == "no"
    assert given.is_impostor
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"Password authentication is disabled {AVOID}",
        f"Keyboard-interactive authentication is disabled {AVOID}",
        f"Agent forwarding is disabled {AVOID}",
        f"X11 forwarding is disabled {AVOID}",
        f"Port forwarding is disabled {AVOID}",
        f"Tunnel forwarding is disabled {AVOID}",
        "UpdateHostkeys is disabled because the host key is not trusted.",
    ]


@pytest.mark.parametrize(
    "forward", ["ForwardAgent /run/agent", "RemoteForward 1", "Tunnel ethernet"]
)
def test_a_forward_that_has_to_be_there_ends_the_login_at_a_changed_key(
    tmp_path: Path, forward: str
) -> None:
    given = options(tmp_path, CHANGED, forward, "ExitOnForwardFailure yes", strict="no")
    with pytest.raises(HostKeyRejected, match="forwarding disabled due to host key check failure"):
        HostTrust(given).check(KEY)


def test_a_host_is_not_new_as_long_as_a_file_cannot_be_read(
    trust: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CVE-2025-26465: what fails must not pass for a host that nobody has seen yet."""
    unreadable = tmp_path / "folder"
    unreadable.mkdir()
    given = f"GlobalKnownHostsFile {unreadable}"
    with pytest.raises(HostKeyRejected, match=f"{unreadable} could not be read"):
        trust("", given, strict="accept-new").check(KEY)
    assert (tmp_path / "known_hosts").read_text() == ""
    trust(f"{HOST} {KEY.line()}\n", given, strict="accept-new").check(KEY)
    assert str(unreadable) in capsys.readouterr().err
    missing = f"GlobalKnownHostsFile {tmp_path / 'missing'}"
    trust("", missing, strict="accept-new").check(KEY)


# -- the one authority of a link -----------------------------------------------------------


@pytest.mark.parametrize("strict", ["yes", "accept-new", "no"])
def test_a_host_key_may_be_given_as_an_authority(tmp_path: Path, strict: str) -> None:
    line = f"HostKeyLine @cert-authority {AUTHORITY.public.line()}"
    trusting = HostTrust(options(tmp_path, "", line, strict=strict))
    assert trusting.knows_authority
    trusting.check(certificate())
    for key in (
        certificate(authority=OTHER_AUTHORITY),
        certificate(principals=("other",)),
        certificate(valid_before=int(time.time())),
        KEY,
        AUTHORITY.public,
    ):
        with pytest.raises(HostKeyRejected):
            trusting.check(key)


@pytest.mark.parametrize("line", ["@cert-authority", "@cert-authority x", "@cert-authority * x y"])
def test_an_authority_that_is_none_is_told(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match="the host key of"):
        HostTrust(options(tmp_path, "", f"HostKeyLine {line}"))


# -- what is asked for ---------------------------------------------------------------------


def offered(folder: Path, known_hosts: str, *given: str) -> tuple[str, ...]:
    chosen = options(folder, known_hosts, *given)
    return login_module._algorithms(chosen, HostTrust(chosen)).host_key


def test_certificates_are_asked_for_first_where_an_authority_is_known(tmp_path: Path) -> None:
    names = offered(
        tmp_path, authority_line() + f"{HOST} {generate('ssh-rsa', 2048).public.line()}\n"
    )
    kinds = [is_certificate_name(name) for name in names]
    assert kinds == sorted(kinds, reverse=True) and any(kinds) and not all(kinds)
    assert next(name for name in names if not is_certificate_name(name)) == "rsa-sha2-512"


def test_without_an_authority_certificates_are_asked_for_only_by_name(tmp_path: Path) -> None:
    known = f"{HOST} {KEY.line()}\n"
    names = offered(tmp_path, known)
    assert names[0] == "ssh-ed25519" and not any(map(is_certificate_name, names))
    given = "HostKeyAlgorithms ^ssh-ed25519-cert-v01@openssh.com"
    assert offered(tmp_path, known, given)[0] == "ssh-ed25519-cert-v01@openssh.com"
