"""Lists of what is revoked, as ssh-keygen makes and reads them."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto.certificates import NONCE_BYTES, Certificate, CertType, Terms, issue
from appliance.crypto.keys import PrivateKey, generate
from appliance.crypto.revoked import MAGIC, RevocationList, load
from appliance.errors import MalformedMessage
from appliance.wire.codec import (
    write_mpint,
    write_name,
    write_string,
    write_uint32,
    write_uint64,
)
from tests.peers import find_program
from tests.unit.crypto.conftest import RunProgram

AUTHORITY = generate("ssh-ed25519")
OTHER = generate("ssh-ed25519")
KEY = generate("ssh-ed25519").public


def certificate(
    serial: int = 0, key_id: str = "who", authority: PrivateKey = AUTHORITY
) -> Certificate:
    terms = Terms(CertType.USER, key_id, ("alice",), serial)
    return issue(authority, "ssh-ed25519", KEY, terms, bytes(NONCE_BYTES))


def krl(*sections: bytes, version: int = 1) -> bytes:
    header = write_uint32(version) + write_uint64(1) * 2 + write_uint64(0)
    return MAGIC + header + write_string(b"") * 2 + b"".join(sections)


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + write_string(body)


def certificates(*parts: bytes, authority: bytes = AUTHORITY.public.blob) -> bytes:
    return section(1, write_string(authority) + write_string(b"") + b"".join(parts))


# -- a list of public keys ---------------------------------------------------------------


def test_a_text_with_a_key_a_line_revokes_them_and_their_certificates() -> None:
    text = f"# gone\n\n{OTHER.public.line()}\n  {KEY.line('stolen')}\r\n"
    revoked = load(text.encode())
    assert revoked.revokes(KEY) and revoked.revokes(OTHER.public)
    assert revoked.revokes(certificate(5))
    assert not revoked.revokes(AUTHORITY.public)
    assert not load(b"").revokes(KEY)


def test_the_key_of_an_authority_revokes_its_certificates() -> None:
    revoked = load(AUTHORITY.public.line().encode())
    assert revoked.revokes(certificate(5))
    assert not revoked.revokes(certificate(5, authority=OTHER))


def test_a_certificate_in_a_text_revokes_its_key() -> None:
    revoked = load(certificate(5).line().encode())
    assert revoked.revokes(KEY) and revoked.revokes(certificate(6, authority=OTHER))


def test_a_key_of_a_type_that_is_not_supported_may_be_revoked_all_the_same() -> None:
    blob = write_name("ssh-dss") + write_string(b"1")
    encoded = subprocess.run(["base64", "-w0"], input=blob, capture_output=True, check=True).stdout
    revoked = load(b"ssh-dss " + encoded + b"\n" + KEY.line().encode())
    assert revoked.revokes(KEY)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !",
        "ssh-rsa KEY",
        "restrict ssh-ed25519 KEY",
        "SHA256:abc",
    ],
)
def test_a_line_that_is_no_key_makes_the_whole_list_unreadable(line: str) -> None:
    line = line.replace("KEY", KEY.line().split()[1])
    with pytest.raises(MalformedMessage, match="line 2"):
        load(f"{KEY.line()}\n{line}\n".encode())


# -- what ssh-keygen makes ---------------------------------------------------------------


def made_by_ssh_keygen(run: RunProgram, folder: Path, spec: str) -> RevocationList:
    (folder / "ca.pub").write_text(AUTHORITY.public.line())
    (folder / "spec").write_text(spec)
    run("ssh-keygen", "-q", "-k", "-f", folder / "krl", "-s", folder / "ca.pub", folder / "spec")
    return load((folder / "krl").read_bytes())


@pytest.mark.parametrize(
    ("spec", "revoked", "spared"),
    [
        ("serial: 5\n", {5}, {4, 6}),
        ("serial: 5-9\n", {5, 7, 9}, {4, 10}),
        ("serial: 5\nserial: 7\nserial: 11\nserial: 13\n", {5, 7, 11, 13}, {6, 8, 12, 14}),
        ("serial: 1\nserial: 9000000000000000000\n", {1, 9 * 10**18}, {2}),
        ("serial: 18446744073709551614-18446744073709551615\n", {(1 << 64) - 1}, {1}),
        ("".join(f"serial: {n}\n" for n in range(1, 300, 3)), {1, 4, 298}, {2, 3, 299, 300}),
    ],
)
def test_serials_in_lists_ranges_and_bitmaps_are_revoked(
    run: RunProgram, tmp_path: Path, spec: str, revoked: set[int], spared: set[int]
) -> None:
    found = made_by_ssh_keygen(run, tmp_path, spec)
    again = load(found.dump(0))
    for each in (found, again):
        assert all(each.revokes(certificate(serial)) for serial in revoked)
        assert not any(each.revokes(certificate(serial)) for serial in {*spared, 0})
        assert not any(each.revokes(certificate(n, authority=OTHER)) for n in revoked)


def test_key_ids_keys_and_fingerprints_are_revoked(run: RunProgram, tmp_path: Path) -> None:
    spec = "id: bad person\n"
    found = made_by_ssh_keygen(run, tmp_path, spec)
    assert found.revokes(certificate(0, "bad person"))
    assert not found.revokes(certificate(0, "bad"))
    for kind in ("key", "sha1", "sha256"):
        found = made_by_ssh_keygen(run, tmp_path, f"{kind}: {KEY.line()}\n")
        assert found.revokes(KEY) and found.revokes(certificate(7))
        assert not found.revokes(OTHER.public)
        found = made_by_ssh_keygen(run, tmp_path, f"{kind}: {AUTHORITY.public.line()}\n")
        assert found.revokes(certificate(7)) and not found.revokes(KEY)
    found = made_by_ssh_keygen(run, tmp_path, f"hash: {KEY.fingerprint()}\n")
    assert found.revokes(KEY)


def test_ssh_keygen_reads_a_list_of_ours(tmp_path: Path) -> None:
    revoked = RevocationList()
    revoked.comment, revoked.version = "ours", 3
    mine = revoked.certificates_of(AUTHORITY.public)
    mine.add_range(5, 5)
    mine.add_range(10, 20)
    mine.bitmaps.append((100, 0b101))
    mine.key_ids.add("bad")
    for each in (generate("ssh-ed25519").public for _ in range(5)):
        revoked.sha1.add(hashlib.sha1(each.blob).digest())
        revoked.sha256.add(hashlib.sha256(each.blob).digest())
    revoked.keys.add(OTHER.public.blob)
    revoked.sha256.add(hashlib.sha256(generate("ssh-ed25519").public.blob).digest())
    (tmp_path / "krl").write_bytes(revoked.dump(1_800_000_000))

    def ssh_keygen_says(line: str) -> bool:
        (tmp_path / "key").write_text(line)
        argv = [find_program("ssh-keygen"), "-Q", "-f", str(tmp_path / "krl")]
        done = subprocess.run([*argv, str(tmp_path / "key")], capture_output=True, text=True)
        assert ("REVOKED" in done.stdout) is (done.returncode != 0), done
        return "REVOKED" in done.stdout

    assert ssh_keygen_says(OTHER.public.line()) and not ssh_keygen_says(KEY.line())
    for serial in (4, 5, 9, 10, 15, 20, 21, 100, 101, 102, 103):
        made = certificate(serial)
        assert ssh_keygen_says(made.line()) is revoked.revokes(made), serial
    assert ssh_keygen_says(certificate(0, "bad").line())


# -- made by hand ------------------------------------------------------------------------


def test_a_section_for_any_authority_counts_for_every_one() -> None:
    found = load(krl(certificates(section(0x23, write_string(b"bad")), authority=b"")))
    assert found.revokes(certificate(1, "bad"))
    assert found.revokes(certificate(1, "bad", OTHER))
    assert not found.revokes(certificate(1, "good"))


def test_serial_0_is_no_serial() -> None:
    found = load(krl(certificates(section(0x22, write_uint64(0) + write_mpint(0b11)))))
    assert not found.revokes(certificate(0))
    assert found.revokes(certificate(1))


def test_sections_of_one_authority_add_up() -> None:
    one, two = (certificates(section(0x20, write_uint64(n))) for n in (1, 2))
    found = load(krl(one, two))
    assert found.revokes(certificate(1)) and found.revokes(certificate(2))


def test_an_extension_that_is_not_critical_is_passed_over() -> None:
    body = write_string(b"x@example.com") + b"\0" + write_string(b"anything")
    keys = section(2, write_string(KEY.blob))
    assert load(krl(section(255, body), keys)).revokes(KEY)
    assert load(krl(certificates(section(0x39, body)), keys)).revokes(KEY)


def signed(data: bytes, *signers: PrivateKey) -> bytes:
    for signer in signers:
        data += b"\4" + write_string(signer.public.blob)
        data += write_string(signer.sign("ssh-ed25519", data))
    return data


def test_a_signature_must_be_right_and_the_last() -> None:
    data = krl(section(2, write_string(KEY.blob)))
    assert load(signed(data, OTHER)).revokes(KEY)
    assert load(signed(data, OTHER, AUTHORITY)).revokes(KEY)
    for bad in (
        signed(data, OTHER)[:-1] + bytes([signed(data, OTHER)[-1] ^ 1]),
        signed(data, OTHER)[:-1],
        signed(data, OTHER) + section(2, write_string(KEY.blob)),
        signed(krl(section(2, write_string(OTHER.public.blob))), OTHER),
    ):
        with pytest.raises(MalformedMessage):
            load(bad)


MISTAKES = [
    MAGIC,
    krl(version=2),
    krl()[:-1],
    krl(b"\2"),
    krl(section(6, b"")),
    krl(section(0, b"")),
    krl(section(2, b"\0\0\0\1")),
    krl(section(3, write_string(bytes(19)))),
    krl(section(5, write_string(bytes(20)))),
    krl(section(255, write_string(b"x") + b"\1" + write_string(b""))),
    krl(section(255, write_string(b"x") + b"\0" + write_string(b"") + b"x")),
    krl(section(1, b"")),
    krl(certificates(section(0x20, write_uint64(1)[:-1]))),
    krl(certificates(section(0x20, write_uint64(0)))),
    krl(certificates(section(0x21, write_uint64(0) + write_uint64(9)))),
    krl(certificates(section(0x21, write_uint64(2) + write_uint64(1)))),
    krl(certificates(section(0x21, write_uint64(1) * 3))),
    krl(certificates(section(0x22, write_uint64(1) + write_mpint(-1)))),
    krl(certificates(section(0x22, write_uint64((1 << 64) - 1) + write_mpint(2)))),
    krl(certificates(section(0x23, write_string(b"\xff")))),
    krl(certificates(section(0x24, b""))),
    krl(certificates(section(0x39, write_string(b"x") + b"\1" + write_string(b"")))),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_list_with_a_mistake_is_not_readable_at_all(number: int) -> None:
    with pytest.raises(MalformedMessage):
        load(MISTAKES[number])


def test_a_huge_range_and_a_huge_bitmap_cost_no_memory() -> None:
    most = write_uint64(1) + write_uint64((1 << 64) - 1)
    bitmap = write_uint64(1) + write_mpint((1 << 16000) - 1)
    found = load(krl(certificates(section(0x21, most), section(0x22, bitmap))))
    assert found.revokes(certificate(1 << 63))


WHOLE = signed(
    krl(
        certificates(
            section(0x20, write_uint64(7)),
            section(0x21, write_uint64(7) + write_uint64(9)),
            section(0x22, write_uint64(7) + write_mpint(5)),
            section(0x23, write_string(b"id")),
        ),
        section(2, write_string(KEY.blob)),
    ),
    OTHER,
)


@given(st.integers(0, len(WHOLE)), st.binary(max_size=40), st.integers(0, 40))
def test_arbitrary_bytes_raise_nothing_but_malformed(at: int, new: bytes, skip: int) -> None:
    for data in (new, MAGIC + new, WHOLE[:at] + new + WHOLE[at + skip :]):
        try:
            load(data).revokes(KEY)
        except MalformedMessage:
            assert data != WHOLE
