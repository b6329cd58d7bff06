"""Certificates: they vouch for what their authority signed, and for nothing else."""

import subprocess
import time
from binascii import a2b_base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto import certificates
from appliance.crypto.certificates import (
    FOREVER,
    NONCE_BYTES,
    PRINCIPALS_LIMIT,
    Certificate,
    CertType,
    Terms,
    issue,
    load_certificate,
    text_option,
)
from appliance.crypto.key_files import load_private_key, load_public_line
from appliance.crypto.keys import (
    SIGNATURE_ALGORITHMS,
    SK_ECDSA,
    SK_ED25519,
    PrivateKey,
    PublicKey,
    certificate_name,
    generate,
    is_certificate_name,
    load_public_key,
    plain_name,
)
from appliance.crypto.offered_keys import load_offered_key
from appliance.crypto.permissions import Permissions
from appliance.crypto.suites import SIGNATURES
from appliance.errors import CertificateRefused, MalformedMessage
from appliance.wire.codec import Reader, write_name, write_string, write_uint64
from tests.peers import find_program
from tests.security_keys import TOUCHED, VERIFIED, Token
from tests.unit.crypto.conftest import KINDS, RunProgram

AUTHORITY = generate("ssh-ed25519")
KEY = generate("ssh-ed25519")
NOW = 1_800_000_000
DATA = b"what is signed"


def certificate(
    key: PublicKey = KEY.public,
    authority: PrivateKey = AUTHORITY,
    algorithm: str = "",
    **terms: Any,
) -> Certificate:
    settings: dict[str, Any] = {
        "kind": CertType.USER,
        "key_id": "who",
        "principals": ("alice",),
    } | terms
    algorithm = algorithm or authority.public.signature_algorithms[0]
    return issue(authority, algorithm, key, Terms(**settings), bytes(NONCE_BYTES))


def refusal(
    made: Certificate,
    kind: CertType = CertType.USER,
    now: float = NOW,
    algorithms: tuple[str, ...] = SIGNATURES,
    rsa_bits: int = 2048,
) -> str:
    """Why the certificate is refused, '' if it is not."""
    try:
        made.check(kind, now, algorithms, rsa_bits)
    except CertificateRefused as error:
        return str(error)
    return ""


def signed_by_ssh_keygen(
    run: RunProgram, authority: Path, key: Path, *options: str
) -> tuple[Certificate, str]:
    run("ssh-keygen", "-q", "-s", authority, "-I", "an id", *options, f"{key}.pub")
    line = Path(f"{key}-cert.pub").read_text()
    made = load_offered_key(a2b_base64(line.split()[1]))
    assert isinstance(made, Certificate)
    return made, line


# -- names -------------------------------------------------------------------------------


def test_every_key_type_and_algorithm_has_one_name_with_a_certificate() -> None:
    for name in SIGNATURE_ALGORITHMS:
        assert plain_name(certificate_name(name)) == name == plain_name(name)
        assert is_certificate_name(certificate_name(name)) and not is_certificate_name(name)
    assert certificate_name(SK_ED25519) == "sk-ssh-ed25519-cert-v01@openssh.com"
    assert certificate_name("rsa-sha2-512") == "rsa-sha2-512-cert-v01@openssh.com"


# -- what OpenSSH makes ------------------------------------------------------------------


@pytest.mark.parametrize("key_type", KINDS)
def test_a_certificate_of_ssh_keygens_is_read_as_it_was_meant(
    key_type: str, openssh_keys: dict[str, Path], run: RunProgram, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.with_suffix(".pub").write_bytes(Path(f"{openssh_keys[key_type]}.pub").read_bytes())
    options = ["-n", "alice,bob", "-z", "77", "-V", "20260101000000Z:20270101000000Z"]
    options += ["-O", "force-command=echo hi", "-O", "source-address=192.0.2.0/24", "-O", "no-pty"]
    made, line = signed_by_ssh_keygen(run, openssh_keys["ssh-ed25519"], key, *options)
    assert made.key_type == certificate_name(key_type) == line.split()[0]
    assert made.key == load_public_line(key.with_suffix(".pub").read_text())[0]
    authority = Path(f"{openssh_keys['ssh-ed25519']}.pub").read_text()
    assert made.authority == load_public_line(authority)[0]
    assert made.terms[:6] == (
        CertType.USER,
        "an id",
        ("alice", "bob"),
        77,
        1767225600,
        1798761600,
    )
    permissions = made.permissions()
    assert permissions.command == "echo hi"
    assert permissions.from_patterns == ("192.0.2.0/24",)
    assert not permissions.pty and permissions.port_forwarding and permissions.user_rc
    assert made.line().split()[:2] == line.split()[:2]


@pytest.mark.parametrize("key_type", KINDS)
def test_every_type_of_key_may_be_an_authority(
    key_type: str, openssh_keys: dict[str, Path], run: RunProgram, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.with_suffix(".pub").write_text(KEY.public.line())
    made, _ = signed_by_ssh_keygen(run, openssh_keys[key_type], key, "-h", "-n", "host")
    assert made.terms.kind is CertType.HOST
    assert not refusal(made, CertType.HOST)


@pytest.mark.parametrize("key_type", KINDS)
def test_ssh_keygen_reads_a_certificate_of_ours(
    key_type: str, openssh_keys: dict[str, Path], tmp_path: Path
) -> None:
    authority = load_private_key(openssh_keys[key_type].read_bytes())
    for each, path in openssh_keys.items():
        key = load_public_line(Path(f"{path}.pub").read_text())[0]
        made = certificate(
            key,
            authority,
            principals=("alice", "bob"),
            serial=9,
            critical_options=(text_option("force-command", "ls"),),
            extensions=(("permit-user-rc", b""), ("permit-pty", b"")),
        )
        assert made.key_type == certificate_name(each)
        path = tmp_path / "cert"
        path.write_text(made.line("comment") + "\n")
        argv = [find_program("ssh-keygen"), "-L", "-f", str(path)]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        words = ("who", "Serial: 9", "alice", "bob", "force-command ls", "permit-pty", "user cert")
        assert all(word in shown for word in words), shown


def test_a_certificate_whose_authority_signed_with_sha1_does_not_exist(
    openssh_keys: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "key.pub").write_text(KEY.public.line())
    argv = [find_program("ssh-keygen"), "-q", "-s", str(openssh_keys["ssh-rsa"]), "-I", "id"]
    argv += ["-t", "ssh-rsa", "-n", "alice", str(tmp_path / "key.pub")]
    subprocess.run(argv, check=True, capture_output=True)
    words = (tmp_path / "key-cert.pub").read_text().split()
    with pytest.raises(MalformedMessage, match="signature"):
        load_certificate(a2b_base64(words[1]))


# -- whom it is good for -----------------------------------------------------------------


def test_a_certificate_without_principals_matches_nobody() -> None:
    made = certificate(principals=())
    assert not made.is_for(("alice", "", "root"))
    assert "no principals" in refusal(made)
    assert "no principals" in refusal(certificate(principals=(), kind=CertType.HOST), CertType.HOST)


def test_a_comma_in_a_principal_does_not_split_it() -> None:
    made = certificate(principals=("alice,root",))
    assert not made.is_for(("root",)) and not made.is_for(("alice",))
    assert made.is_for(("alice,root",))


@pytest.mark.parametrize("principal", ["*", "alic?", "ALICE", "alice ", " alice", "!bob", "ali"])
def test_a_principal_is_neither_a_pattern_nor_a_part(principal: str) -> None:
    assert not certificate(principals=(principal,)).is_for(("alice",))


def test_a_certificate_is_good_from_its_first_second_to_the_one_before_its_last() -> None:
    made = certificate(valid_after=NOW, valid_before=NOW + 10)
    assert "not yet" in refusal(made, now=NOW - 0.001)
    assert not refusal(made, now=NOW)
    assert not refusal(made, now=NOW + 9.999)
    assert "expired" in refusal(made, now=NOW + 10)
    assert made.permissions().expires == NOW + 10
    assert certificate().permissions().expires is None
    assert "expired" in refusal(certificate(valid_after=0, valid_before=0), now=0)


def test_a_host_certificate_logs_nobody_in_and_a_users_is_no_hosts() -> None:
    assert "host certificate" in refusal(certificate(kind=CertType.HOST))
    assert "user certificate" in refusal(certificate(), CertType.HOST)


def test_the_authority_must_sign_with_an_accepted_algorithm() -> None:
    authority = generate("ecdsa-sha2-nistp256")
    made = certificate(authority=authority)
    assert "ecdsa-sha2-nistp256" in refusal(made, algorithms=("ssh-ed25519",))


def test_one_curve_accepted_does_not_accept_the_others() -> None:
    """CVE-2026-35387."""
    curves = [f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)]
    for accepted in curves:
        for curve in curves:
            made = certificate(authority=generate(curve))
            assert bool(refusal(made, algorithms=(accepted,))) is (curve != accepted)
        key = generate(accepted)
        made = certificate(key.public)
        for curve in curves:
            signature = key.sign(accepted, DATA)
            verified = made.verify(certificate_name(curve), signature, DATA)
            assert verified is (curve == accepted)


def test_a_short_rsa_key_is_refused_in_the_certificate_and_in_its_authority() -> None:
    short = generate("ssh-rsa", 2048)
    assert "2048 bits" in refusal(certificate(short.public), rsa_bits=3072)
    assert "2048 bits" in refusal(certificate(authority=short), rsa_bits=3072)
    assert not refusal(certificate(short.public, short), rsa_bits=2048)


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
def test_an_rsa_authority_signs_with_sha2(algorithm: str) -> None:
    made = certificate(authority=generate("ssh-rsa", 2048), algorithm=algorithm)
    assert made.authority_algorithm == algorithm
    assert refusal(made, algorithms=("ssh-rsa", "ssh-ed25519"))


# -- options -----------------------------------------------------------------------------


def test_a_certificate_without_extensions_permits_nothing() -> None:
    permissions = certificate().permissions()
    flags = [value for value in permissions[:8] if isinstance(value, bool)]
    assert flags == [False] * 6
    assert permissions.touch_required and not permissions.verify_required


@pytest.mark.parametrize(
    ("extension", "fields"),
    [
        ("permit-pty", {"pty"}),
        ("permit-port-forwarding", {"port_forwarding", "tunnel_allowed"}),
        ("permit-agent-forwarding", {"agent_forwarding"}),
        ("permit-X11-forwarding", {"x11_forwarding"}),
        ("permit-user-rc", {"user_rc"}),
        ("no-touch-required", {"touch_required"}),
        ("something@example.com", set()),
        ("permit-x11-forwarding", set()),
    ],
)
def test_each_extension_grants_one_thing(extension: str, fields: set[str]) -> None:
    before = certificate().permissions()._asdict()
    after = certificate(extensions=((extension, b""),)).permissions()._asdict()
    assert {name for name in before if before[name] != after[name]} == fields


@pytest.mark.parametrize("name", ["unknown", "Force-Command", "permit-pty", "x@example.com"])
def test_an_unknown_critical_option_refuses_the_certificate(name: str) -> None:
    assert repr(name) in refusal(certificate(critical_options=((name, b""),)))


def test_a_host_certificate_with_any_critical_option_is_refused() -> None:
    made = certificate(kind=CertType.HOST, critical_options=(text_option("force-command", "x"),))
    assert "force-command" in refusal(made, CertType.HOST)


@pytest.mark.parametrize(
    "options",
    [
        {"critical_options": (("force-command", b""),)},
        {"critical_options": (("force-command", write_string(b"a") + b"b"),)},
        {"critical_options": (("force-command", write_string(b"a\0b")),)},
        {"critical_options": (("verify-required", b"x"),)},
        {"extensions": (("permit-pty", b"no"),)},
        {"extensions": (("no-touch-required", write_string(b"")),)},
    ],
)
def test_an_option_whose_value_cannot_be_read_refuses_the_certificate(
    options: dict[str, Any],
) -> None:
    with pytest.raises(CertificateRefused):
        certificate(**options).permissions()


@pytest.mark.parametrize("text", ["", "*", "!192.0.2.1", "192.0.2.1/24", "a.example", "1.2.3.4,"])
def test_a_source_address_is_a_list_of_networks_and_nothing_else(text: str) -> None:
    made = certificate(critical_options=(text_option("source-address", text),))
    with pytest.raises(CertificateRefused):
        made.permissions()


def test_a_source_address_holds() -> None:
    option = text_option("source-address", "192.0.2.0/24,2001:db8::1")
    permissions = certificate(critical_options=(option,)).permissions()
    assert not permissions.refusal("192.0.2.7", NOW)
    assert not permissions.refusal("2001:db8::1", NOW)
    assert permissions.refusal("192.0.3.7", NOW)
    assert permissions.refusal("UNKNOWN", NOW)


# -- with the options of a line ----------------------------------------------------------


def test_what_either_of_two_restricts_is_restricted() -> None:
    everything = Permissions()
    for field in ("pty", "port_forwarding", "agent_forwarding", "x11_forwarding", "user_rc"):
        without: dict[str, Any] = {field: False}
        less = everything._replace(**without)
        assert everything.restricted_by(less) == less == less.restricted_by(everything)
    strict = Permissions(verify_required=True, expires=5, permit_open=(("a", 1),))
    lax = Permissions(touch_required=False, expires=9, from_patterns=("b",))
    for both in (strict.restricted_by(lax), lax.restricted_by(strict)):
        assert both is not None and both.touch_required and both.verify_required
        assert (both.expires, both.from_patterns, both.permit_open) == (5, ("b",), (("a", 1),))
    for both in (strict.restricted_by(everything), everything.restricted_by(strict)):
        assert both is not None and both.expires == 5
    from_a, from_b = (Permissions(from_patterns=(source,)) for source in ("192.0.2.*", "*.7"))
    twice = from_a.restricted_by(from_b)
    assert twice is not None
    assert twice.refusal("192.0.2.7", 0) == ""
    assert twice.refusal("192.0.2.8", 0) and twice.refusal("198.51.100.7", 0)


def test_two_forced_commands_must_agree() -> None:
    one, other = Permissions(command="a"), Permissions(command="b")
    assert one.restricted_by(other) is None
    assert one.restricted_by(Permissions(command="")) is None
    for both in (one.restricted_by(one), one.restricted_by(Permissions())):
        assert both is not None and both.command == "a"
    last = Permissions().restricted_by(one)
    assert last is not None and last.command == "a"


def test_two_tunnels_must_be_the_same_one() -> None:
    one = Permissions(tunnel=1)
    both = one.restricted_by(Permissions(tunnel=2))
    assert both is not None and not both.tunnel_allowed
    both = Permissions().restricted_by(one)
    assert both is not None and both.tunnel_allowed and both.tunnel == 1


@pytest.mark.parametrize("field", ["permit_open", "permit_listen"])
def test_of_two_lists_of_forwards_what_both_permit_is_left(field: str) -> None:
    def permitting(*places: tuple[str, int]) -> Permissions:
        fields: dict[str, Any] = {field: places}
        return Permissions(**fields)

    one = permitting(("a", 1), ("*", 2), ("c", 0))
    other = permitting(("*", 1), ("b", 0), ("c", 3))
    for both in (one.restricted_by(other), other.restricted_by(one)):
        assert both is not None
        assert set(getattr(both, field)) == {("a", 1), ("b", 2), ("c", 1), ("c", 3)}
    assert one.restricted_by(permitting(("x", 9))) == permitting()
    assert one.restricted_by(Permissions()) == one == Permissions().restricted_by(one)


# -- signatures of the key within --------------------------------------------------------


@pytest.mark.parametrize("algorithm", [name for name in SIGNATURE_ALGORITHMS if name[:2] != "sk"])
def test_the_key_within_signs_under_the_certificates_name(algorithm: str) -> None:
    key = generate(SIGNATURE_ALGORITHMS[algorithm])
    made = certificate(key.public)
    signature = key.sign(algorithm, DATA)
    assert certificate_name(algorithm) in made.signature_algorithms
    assert made.verify(certificate_name(algorithm), signature, DATA)
    assert not made.verify(algorithm, signature, DATA)
    assert not made.verify(certificate_name(algorithm), signature, DATA + b"!")
    assert not made.verify(certificate_name(algorithm), AUTHORITY.sign("ssh-ed25519", DATA), DATA)


@pytest.mark.parametrize("key_type", [SK_ED25519, SK_ECDSA])
def test_a_certificate_of_a_security_key_shows_presence_and_verification(key_type: str) -> None:
    token = Token(key_type)
    made = certificate(token.public)
    name = certificate_name(key_type)
    assert made.verify(name, token.sign(DATA, TOUCHED), DATA)
    assert not made.verify(name, token.sign(DATA, 0), DATA)
    assert made.verify(name, token.sign(DATA, 0), DATA, touch_required=False)
    assert not made.verify(name, token.sign(DATA, TOUCHED), DATA, verify_required=True)
    assert made.verify(name, token.sign(DATA, TOUCHED | VERIFIED), DATA, verify_required=True)


# -- bytes of strangers ------------------------------------------------------------------


def test_no_byte_of_a_certificate_can_be_changed() -> None:
    blob = certificate(extensions=(("permit-pty", b""),)).blob
    for at in range(len(blob)):
        with pytest.raises(MalformedMessage):
            load_certificate(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :])
    for at in range(len(blob)):
        with pytest.raises(MalformedMessage):
            load_certificate(blob[:at])
    with pytest.raises(MalformedMessage):
        load_certificate(blob + b"\0")


def remade(old: bytes, new: bytes) -> bytes:
    """A certificate with some of its bytes exchanged, signed again."""
    blob = certificate(extensions=(("a", b""), ("b", b""))).blob
    signed = blob[: -len(write_string(AUTHORITY.sign("ssh-ed25519", b"")))]
    assert old in signed
    signed = signed.replace(old, new)
    return signed + write_string(AUTHORITY.sign("ssh-ed25519", signed))


def test_what_no_reader_should_accept_is_malformed_even_if_it_is_signed() -> None:
    options = write_string(b"a") + write_string(b"") + write_string(b"b") + write_string(b"")
    flags = write_string(options)
    again = write_string(b"a") + write_string(b"") + write_string(b"a") + write_string(b"")
    late = write_string(b"b") + write_string(b"") + write_string(b"a") + write_string(b"")
    kind = b"\0\0\0\1" + write_string(b"who")
    name = write_string(write_string(b"alice"))
    many = b"".join([write_string(b"x")] * (PRINCIPALS_LIMIT + 1))
    assert load_certificate(remade(kind, kind))
    for old, new in [
        (flags, write_string(again)),
        (flags, write_string(late)),
        (flags, write_string(options[:-1])),
        (kind, b"\0\0\0\0" + write_string(b"who")),
        (kind, b"\0\0\0\3" + write_string(b"who")),
        (kind, b"\0\0\0\1" + write_string(b"w\0o")),
        (kind, b"\0\0\0\1" + write_string(b"\xff")),
        (name, write_string(write_string(b"al\0ce"))),
        (name, write_string(write_string(b""))),
        (name, write_string(write_string(b"\xff"))),
        (name, write_string(many)),
        (name, write_string(b"alice")),
    ]:
        with pytest.raises(MalformedMessage):
            load_certificate(remade(old, new))


def test_of_an_authority_that_is_not_trusted_nothing_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blob = certificate().blob
    assert load_certificate(blob, {AUTHORITY.public.blob, b"x"}).blob == blob
    monkeypatch.setattr(certificates, "load_public_key", lambda _: pytest.fail("it was loaded"))
    for authorities in (set(), {KEY.public.blob}, {AUTHORITY.public.blob[:-1]}):
        with pytest.raises(CertificateRefused, match="not trusted"):
            load_certificate(blob, authorities)


def test_the_authority_of_a_certificate_is_not_a_certificate_itself() -> None:
    middle = certificate(AUTHORITY.public)
    with pytest.raises(MalformedMessage):
        load_certificate(remade(write_string(AUTHORITY.public.blob), write_string(middle.blob)))
    with pytest.raises(MalformedMessage):
        load_public_key(middle.blob)


def test_a_certificate_over_one_curve_does_not_hold_a_key_of_another() -> None:
    blob = certificate(generate("ecdsa-sha2-nistp256").public).blob
    with pytest.raises(MalformedMessage):
        load_certificate(blob.replace(b"ecdsa-sha2-nistp256-", b"ecdsa-sha2-nistp384-"))


BLOB = certificate(principals=("a", "b"), extensions=(("permit-pty", b""),)).blob


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_malformed_and_nothing_else(data: bytes) -> None:
    rsa = write_name("ssh-rsa-cert-v01@openssh.com")
    for front in (b"", BLOB[:36], BLOB[:150], BLOB[:-70], rsa):
        with pytest.raises(MalformedMessage):
            load_offered_key(front + data)


@given(st.integers(0, len(BLOB) - 8), st.binary(min_size=1, max_size=8))
def test_a_certificate_with_bytes_overwritten_is_the_same_or_malformed(at: int, new: bytes) -> None:
    blob = BLOB[:at] + new + BLOB[at + len(new) :]
    try:
        assert load_certificate(blob).blob == BLOB
    except MalformedMessage:
        assert blob != BLOB


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    ),
    st.integers(0, FOREVER),
    st.integers(0, FOREVER),
    st.integers(0, FOREVER),
)
def test_terms_survive_the_round_trip(
    principals: list[str], serial: int, after: int, before: int
) -> None:
    terms = Terms(CertType.HOST, "id", tuple(principals), serial, after, before)
    made = issue(AUTHORITY, "ssh-ed25519", KEY.public, terms, bytes(NONCE_BYTES))
    assert made.terms == terms
    assert Reader(made.blob).name() == made.key_type


def test_a_certificate_is_cheap_to_refuse() -> None:
    """A stranger may send as many as MaxAuthTries: none may take long."""
    started = time.process_time()
    for _ in range(100):
        with pytest.raises(MalformedMessage):
            load_certificate(BLOB[:-1] + bytes([BLOB[-1] ^ 1]))
    assert time.process_time() - started < 2
    assert write_uint64(FOREVER) in BLOB
