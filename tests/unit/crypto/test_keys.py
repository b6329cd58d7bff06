"""Keys and signatures, checked against ssh-keygen's in both directions."""

import hashlib
from binascii import a2b_base64, b2a_base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.crypto.key_files import load_private_key
from appliance.crypto.keys import (
    SIGNATURE_ALGORITHMS,
    SK_ECDSA,
    SK_ED25519,
    PrivateKey,
    PublicKey,
    generate,
    load_public_key,
)
from appliance.errors import MalformedMessage
from appliance.wire.codec import (
    Reader,
    write_mpint,
    write_name,
    write_string,
    write_uint32,
)
from tests.security_keys import Token
from tests.unit.crypto.conftest import KINDS, RunProgram

DATA = b"the exchange hash"


@pytest.fixture(scope="session")
def keys(openssh_keys: dict[str, Path]) -> dict[str, PrivateKey]:
    return {
        key_type: load_private_key(path.read_bytes()) for key_type, path in openssh_keys.items()
    }


@pytest.fixture(scope="session")
def signatures(keys: dict[str, PrivateKey]) -> dict[str, bytes]:
    """One of each key; the same in every run of a property, though ECDSA's are random."""
    return {
        key_type: key.sign(key.public.signature_algorithms[0], DATA)
        for key_type, key in keys.items()
    }


# -- against ssh-keygen ------------------------------------------------------------------


@pytest.mark.parametrize("key_type", KINDS)
def test_line_fingerprints_and_bits_are_those_of_ssh_keygen(
    key_type: str, openssh_keys: dict[str, Path], keys: dict[str, PrivateKey], run: RunProgram
) -> None:
    path, public = openssh_keys[key_type], keys[key_type].public
    assert public.line(f"a {key_type}") + "\n" == Path(f"{path}.pub").read_text()
    for hash in ("sha256", "md5"):
        bits, fingerprint = run("ssh-keygen", "-l", "-E", hash, "-f", path).split()[:2]
        assert (public.bits, public.fingerprint(hash)) == (int(bits), fingerprint)


def sshsig(namespace: str, message: bytes) -> bytes:
    """What ssh-keygen -Y signs: PROTOCOL.sshsig, section 3."""
    digest = hashlib.sha512(message).digest()
    return b"SSHSIG" + b"".join(
        map(write_string, (namespace.encode(), b"", b"sha512", digest)),
    )


@pytest.mark.parametrize("key_type", KINDS)
def test_a_signature_of_ssh_keygen_is_accepted(
    key_type: str, openssh_keys: dict[str, Path], keys: dict[str, PrivateKey], run: RunProgram
) -> None:
    text = run("ssh-keygen", "-Y", "sign", "-n", "file", "-f", openssh_keys[key_type], data="hello")
    reader = Reader(a2b_base64("".join(text.splitlines()[1:-1])))
    reader.take(len(b"SSHSIG") + 4)  # magic and version
    public = load_public_key(reader.string())
    for _ in ("namespace", "reserved", "hash algorithm"):
        reader.string()
    signature = reader.string()
    assert public == keys[key_type].public
    algorithm = public.signature_algorithms[0]
    assert public.verify(algorithm, signature, sshsig("file", b"hello"))
    assert not public.verify(algorithm, signature, sshsig("file", b"hallo"))


@pytest.mark.parametrize("algorithm", [name for name in SIGNATURE_ALGORITHMS if name[:2] != "sk"])
def test_ssh_keygen_accepts_our_signature(
    algorithm: str, keys: dict[str, PrivateKey], run: RunProgram, tmp_path: Path
) -> None:
    key = keys[SIGNATURE_ALGORITHMS[algorithm]]
    signature = key.sign(algorithm, sshsig("file", b"hello"))
    parts = (key.public.blob, b"file", b"", b"sha512", signature)
    blob = b"SSHSIG" + write_uint32(1) + b"".join(map(write_string, parts))
    armoured = (
        f"-----BEGIN SSH SIGNATURE-----\n{b2a_base64(blob).decode()}-----END SSH SIGNATURE-----\n"
    )
    (tmp_path / "signature").write_text(armoured)
    arguments = ("-n", "file", "-s", tmp_path / "signature")
    assert "Good" in run("ssh-keygen", "-Y", "check-novalidate", *arguments, data="hello")


# -- signatures --------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [name for name in SIGNATURE_ALGORITHMS if name[:2] != "sk"])
def test_a_signature_holds_for_its_key_data_and_algorithm_only(
    algorithm: str, keys: dict[str, PrivateKey]
) -> None:
    key = keys[SIGNATURE_ALGORITHMS[algorithm]]
    signature = key.sign(algorithm, DATA)
    assert key.public.verify(algorithm, signature, DATA)
    assert not key.public.verify(algorithm, signature, DATA + b"!")
    assert not generate(
        key.public.key_type, 2048 if key.public.key_type == "ssh-rsa" else None
    ).public.verify(algorithm, signature, DATA)
    for other in (*SIGNATURE_ALGORITHMS, "ssh-rsa", "ssh-dss", ""):
        if other != algorithm:
            assert not key.public.verify(other, signature, DATA)


def test_an_rsa_signature_that_names_another_hash_than_was_negotiated_is_refused(
    keys: dict[str, PrivateKey],
) -> None:
    key = keys["ssh-rsa"]
    assert not key.public.verify("rsa-sha2-512", key.sign("rsa-sha2-256", DATA), DATA)


def test_signatures_with_sha1_are_never_accepted(keys: dict[str, PrivateKey]) -> None:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA1

    key = keys["ssh-rsa"]
    assert isinstance(key.secret, rsa.RSAPrivateKey)
    raw = key.secret.sign(DATA, PKCS1v15(), SHA1())
    for named in ("ssh-rsa", "rsa-sha2-256", "rsa-sha2-512"):
        for negotiated in ("ssh-rsa", "rsa-sha2-256", "rsa-sha2-512"):
            signature = write_name(named) + write_string(raw)
            assert not key.public.verify(negotiated, signature, DATA)
    assert "ssh-rsa" not in SIGNATURE_ALGORITHMS
    with pytest.raises(ValueError):
        key.sign("ssh-rsa", DATA)


def test_allowing_one_curve_does_not_allow_the_others(keys: dict[str, PrivateKey]) -> None:
    curves = [name for name in KINDS if name.startswith("ecdsa")]
    for curve in curves:
        for other in curves:
            signature = keys[curve].sign(curve, DATA)
            assert keys[curve].public.verify(other, signature, DATA) == (curve == other)
            renamed = write_name(other) + signature[4 + len(curve) :]
            assert keys[curve].public.verify(other, renamed, DATA) == (curve == other)


def test_an_rsa_signature_without_its_leading_zeros_is_accepted_as_openssh_does() -> None:
    key = generate("ssh-rsa", 2048)
    for number in range(3000):
        data = b"%d" % number
        signature = key.sign("rsa-sha2-256", data)
        raw = signature[4 + len("rsa-sha2-256") + 4 :]
        if raw[0] == 0:
            stripped = write_name("rsa-sha2-256") + write_string(raw.lstrip(b"\0"))
            assert key.public.verify("rsa-sha2-256", stripped, data)
            return
    raise AssertionError("no signature began with a zero byte")


@pytest.mark.parametrize("key_type", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bytes_in_place_of_a_signature_raise_or_pass(
    key_type: str,
    keys: dict[str, PrivateKey],
    signatures: dict[str, bytes],
    data: st.DataObject,
) -> None:
    """Go's CVE-2020-9283 and CVE-2021-43565: short, empty and malformed signatures."""
    key, good = keys[key_type], signatures[key_type]
    algorithm = key.public.signature_algorithms[0]
    inner = st.binary(max_size=300)
    bad = data.draw(
        inner
        | inner.map(lambda raw: write_name(algorithm) + write_string(raw))
        | st.integers(0, len(good) - 1).map(lambda cut: good[:cut])
        | st.integers(1, 8).map(lambda extra: good + bytes(extra))
        | st.tuples(st.integers(0, len(good) - 1), st.integers(1, 255)).map(
            lambda change: bytes(
                byte ^ change[1] if at == change[0] else byte for at, byte in enumerate(good)
            )
        )
    )
    assert key.public.verify(algorithm, bad, DATA) is False


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (-1, 1), (1, -1), (1 << 600, 1), (1, 1)])
def test_an_ecdsa_signature_of_impossible_numbers_is_refused(
    r: int, s: int, keys: dict[str, PrivateKey]
) -> None:
    name = "ecdsa-sha2-nistp256"
    signature = write_name(name) + write_string(write_mpint(r) + write_mpint(s))
    assert not keys[name].public.verify(name, signature, DATA)


# -- blobs -------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_in_place_of_a_key_raise_anything_but_malformed_message(blob: bytes) -> None:
    with pytest.raises(MalformedMessage):
        load_public_key(blob)


@pytest.mark.parametrize("key_type", [*KINDS, SK_ED25519, SK_ECDSA])
@settings(max_examples=100, deadline=None)
@given(rest=st.binary(max_size=200))
def test_no_bytes_behind_a_type_raise_anything_but_malformed_message(
    key_type: str, rest: bytes
) -> None:
    with pytest.raises(MalformedMessage):
        load_public_key(write_name(key_type) + rest)


@pytest.mark.parametrize("key_type", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_blob_cut_lengthened_or_changed_is_malformed_or_another_key(
    key_type: str, keys: dict[str, PrivateKey], data: st.DataObject
) -> None:
    blob = keys[key_type].public.blob
    change = data.draw(st.sampled_from(["cut", "lengthen", "change"]))
    at = data.draw(st.integers(0, len(blob) - 1))
    if change == "cut":
        bad = blob[:at]
    elif change == "lengthen":
        bad = blob + bytes(at + 1)
    else:
        bad = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    try:
        loaded = load_public_key(bad)
    except MalformedMessage:
        return
    assert change == "change"
    assert loaded.blob == bad != blob
    assert loaded.verify(loaded.signature_algorithms[0], b"", DATA) is False


def rsa_blob(exponent: int, modulus: int) -> bytes:
    return write_name("ssh-rsa") + write_mpint(exponent) + write_mpint(modulus)


IMPOSSIBLE_RSA = {
    "short": (65537, (1 << 1023) + 1),
    "short by one bit": (65537, (1 << 2046) + 1),
    "even": (65537, 1 << 2048),
    "negative": (65537, -(1 << 2048) - 1),
    "even exponent": (65536, (1 << 2048) + 1),
    "exponent 1": (1, (1 << 2048) + 1),
    "negative exponent": (-3, (1 << 2048) + 1),
    "long": (65537, (1 << 16384) + 1),
}


@pytest.mark.parametrize(("exponent", "modulus"), IMPOSSIBLE_RSA.values(), ids=IMPOSSIBLE_RSA)
def test_an_rsa_key_with_impossible_or_unsafe_numbers_is_refused(
    exponent: int, modulus: int
) -> None:
    with pytest.raises(MalformedMessage):
        load_public_key(rsa_blob(exponent, modulus))


def test_an_rsa_key_of_2048_bits_is_the_shortest() -> None:
    assert load_public_key(rsa_blob(65537, (1 << 2047) + 1)).bits == 2048


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "sk-ssh-ed25519@openssh.com"])
def test_an_ed25519_key_is_of_32_bytes(key_type: str) -> None:
    tail = write_string(b"ssh:") if key_type.startswith("sk-") else b""
    assert load_public_key(write_name(key_type) + write_string(bytes(32)) + tail)
    for length in (0, 1, 31, 33, 64):
        with pytest.raises(MalformedMessage, match="32 bytes"):
            load_public_key(write_name(key_type) + write_string(bytes(length)) + tail)


def ecdsa_blob(key_type: str, curve: str, point: bytes) -> bytes:
    return write_name(key_type) + write_name(curve) + write_string(point)


def test_an_ecdsa_key_must_be_an_uncompressed_point_of_the_curve_that_its_type_names(
    keys: dict[str, PrivateKey],
) -> None:
    name = "ecdsa-sha2-nistp256"
    point = keys[name].public.blob[-65:]
    assert load_public_key(ecdsa_blob(name, "nistp256", point)) == keys[name].public
    compressed = bytes([2 + (point[-1] & 1)]) + point[1:33]
    for curve, bad in [
        ("nistp384", point),
        ("nistp256", compressed),
        ("nistp256", b"\0"),
        ("nistp256", b""),
        ("nistp256", point[:-1] + bytes([point[-1] ^ 1])),
        ("nistp256", b"\4" + bytes(64)),
    ]:
        with pytest.raises(MalformedMessage):
            load_public_key(ecdsa_blob(name, curve, bad))


@pytest.mark.parametrize("key_type", ["ssh-dss", "ssh-rsa1", "ssh-xmss@openssh.com", "", "x" * 99])
def test_a_key_of_a_type_that_we_do_not_know_is_refused(key_type: str) -> None:
    with pytest.raises(MalformedMessage):
        load_public_key(write_name(key_type) + bytes(100))


# -- security keys -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SK_ED25519, SK_ECDSA])
def token(request: pytest.FixtureRequest) -> Token:
    return Token(request.param, b"ssh:culvert")


def test_a_touched_security_key_is_accepted(token: Token) -> None:
    assert token.public.key_type == token.key_type
    assert token.public.verify(token.key_type, token.sign(DATA, 1), DATA)
    assert not token.public.verify(token.key_type, token.sign(DATA, 1), DATA + b"!")


def test_a_security_key_signature_without_user_presence_is_refused_unless_no_touch_is_required(
    token: Token,
) -> None:
    signature = token.sign(DATA, 0)
    assert not token.public.verify(token.key_type, signature, DATA)
    assert token.public.verify(token.key_type, signature, DATA, touch_required=False)


def test_a_security_key_that_must_verify_its_user_says_that_it_did(token: Token) -> None:
    def accepted(flags: int) -> bool:
        return token.public.verify(
            token.key_type, token.sign(DATA, flags), DATA, verify_required=True
        )

    assert accepted(0x05)
    assert not accepted(0x01)
    assert not accepted(0x04)


def test_the_flags_and_the_counter_of_a_security_key_are_signed(token: Token) -> None:
    signature = token.sign(DATA, 0)
    forged = signature[:-5] + b"\1" + signature[-4:]
    assert not token.public.verify(token.key_type, forged, DATA)
    recounted = signature[:-1] + b"\xff"
    assert not token.public.verify(token.key_type, recounted, DATA, touch_required=False)


def test_a_signature_made_for_another_application_is_refused(token: Token) -> None:
    signature = token.sign(DATA, 1, application=b"https://example.com")
    assert not token.public.verify(token.key_type, signature, DATA)


def test_a_security_key_signature_cut_or_lengthened_is_refused(token: Token) -> None:
    signature = token.sign(DATA, 1)
    for bad in (
        signature[:-1],
        signature[:-5],
        signature + b"\0",
        signature[: len(signature) // 2],
    ):
        assert not token.public.verify(token.key_type, bad, DATA)


def test_verify_required_refuses_a_key_that_cannot_say_so(keys: dict[str, PrivateKey]) -> None:
    key = keys["ssh-ed25519"]
    signature = key.sign("ssh-ed25519", DATA)
    assert key.public.verify("ssh-ed25519", signature, DATA, touch_required=False)
    assert not key.public.verify("ssh-ed25519", signature, DATA, verify_required=True)


# -- making keys -------------------------------------------------------------------------


def test_generate_refuses_what_it_cannot_make() -> None:
    for key_type, bits in [
        ("ssh-dss", None),
        (SK_ED25519, None),
        ("ssh-rsa", 1024),
        ("ssh-rsa", 99999),
        ("ssh-ed25519", 512),
        ("ecdsa-sha2-nistp256", 384),
    ]:
        with pytest.raises(ValueError):
            generate(key_type, bits)


def test_an_rsa_key_has_3072_bits_by_default() -> None:
    assert generate("ssh-rsa").public.bits == 3072


def test_nothing_of_a_private_key_is_shown() -> None:
    key = generate("ssh-ed25519")
    assert repr(key) == f"<private <ssh-ed25519 {key.public.fingerprint()}>>"


def test_keys_compare_by_their_blob() -> None:
    key = generate("ssh-ed25519").public
    assert key == load_public_key(key.blob) != generate("ssh-ed25519").public
    assert len({key, load_public_key(key.blob)}) == 1
    assert isinstance(key, PublicKey)
