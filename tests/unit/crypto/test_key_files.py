"""Key files, exchanged with ssh-keygen, dropbearkey, dropbearconvert and puttygen."""

from binascii import a2b_base64, b2a_base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.crypto.key_files import (
    KeyFileError,
    PassphraseNeeded,
    WrongPassphrase,
    dump_dropbear,
    dump_openssh,
    dump_pem,
    load_private_key,
    load_public_line,
    load_public_part,
)
from appliance.crypto.keys import PrivateKey, generate
from appliance.wire.codec import write_name, write_string, write_uint32
from tests.peers import Missing
from tests.unit.crypto.conftest import DROPBEARCONVERT, KINDS, RunProgram

ROUNDS = 2  # of bcrypt: what tests write need not withstand anybody


@pytest.fixture(scope="session")
def keys(openssh_keys: dict[str, Path]) -> dict[str, PrivateKey]:
    return {
        key_type: load_private_key(path.read_bytes()) for key_type, path in openssh_keys.items()
    }


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


# -- what others wrote -------------------------------------------------------------------


@pytest.mark.parametrize("key_type", KINDS)
def test_a_key_of_ssh_keygen_is_read_with_its_comment(
    key_type: str, openssh_keys: dict[str, Path]
) -> None:
    data = openssh_keys[key_type].read_bytes()
    public, comment = load_public_line(Path(f"{openssh_keys[key_type]}.pub").read_text())
    key = load_private_key(data)
    assert (key.public, key.comment) == (public, comment) == (public, f"a {key_type}")
    assert load_public_part(data) == public


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("passphrase", ["", "open sesame"])
@pytest.mark.parametrize("key_type", ["ecdsa-sha2-nistp256", "ssh-rsa"])
def test_every_format_of_ssh_keygen_is_read(
    key_type: str, passphrase: str, form: str, run: RunProgram, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    options = ["-q", "-m", form, "-N", passphrase, "-a", "2", "-f", path]
    run("ssh-keygen", *KINDS[key_type][0], *options)
    public, _ = load_public_line(Path(f"{path}.pub").read_text())
    assert load_private_key(path.read_bytes(), passphrase.encode).public == public


@pytest.mark.parametrize(
    "cipher", ["aes256-ctr", "aes192-ctr", "aes128-ctr", "aes256-cbc", "aes256-gcm@openssh.com"]
)
def test_an_encrypted_key_of_ssh_keygen_opens_with_its_passphrase_only(
    cipher: str, run: RunProgram, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    options = ["-Z", cipher, "-a", "2", "-N", "open sesame", "-f", path]
    run("ssh-keygen", "-q", "-t", "ed25519", *options)
    data = path.read_bytes()
    public, _ = load_public_line(Path(f"{path}.pub").read_text())
    assert load_private_key(data, lambda: b"open sesame").public == public
    assert load_public_part(data) == public
    for wrong in (b"", b"open", b"open sesame "):
        with pytest.raises(WrongPassphrase):
            load_private_key(data, lambda wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(PassphraseNeeded):
        load_private_key(data)


@pytest.mark.parametrize("key_type", KINDS)
def test_a_key_of_dropbearkey_is_read(
    key_type: str, dropbear_keys: dict[str, Path], run: RunProgram
) -> None:
    data = dropbear_keys[key_type].read_bytes()
    key = load_private_key(data)
    assert key.public.line() in run("dropbearkey", "-y", "-f", dropbear_keys[key_type])
    assert dump_dropbear(key) == data
    assert load_public_part(data) is None


@pytest.mark.parametrize("key_type", KINDS)
def test_a_key_that_dropbearconvert_wrote_is_read_though_it_pads_by_a_whole_block(
    key_type: str, dropbear_keys: dict[str, Path], run: RunProgram, tmp_path: Path
) -> None:
    if not DROPBEARCONVERT.exists():
        raise Missing("dropbearconvert is not installed")
    source, target = dropbear_keys[key_type], tmp_path / "key"
    run("dropbearconvert", "dropbear", "openssh", source, target)
    key = load_private_key(target.read_bytes())
    assert key.public == load_private_key(source.read_bytes()).public


@pytest.mark.parametrize(
    ("key_type", "kind"),
    [
        ("ssh-ed25519", "private-openssh-new"),
        ("ecdsa-sha2-nistp256", "private-openssh-new"),
        ("ssh-rsa", "private-openssh"),
    ],
)
def test_a_key_that_puttygen_exported_is_read(
    key_type: str, kind: str, openssh_keys: dict[str, Path], run: RunProgram, tmp_path: Path
) -> None:
    source, ppk, target = openssh_keys[key_type], tmp_path / "ppk", tmp_path / "key"
    run("puttygen", source, "-O", "private", "-o", ppk)
    run("puttygen", ppk, "-O", kind, "-o", target)
    assert (
        load_private_key(target.read_bytes()).public == load_private_key(source.read_bytes()).public
    )
    with pytest.raises(KeyFileError, match="puttygen -O private-openssh"):
        load_private_key(ppk.read_bytes())


# -- what we write -----------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ["", "open sesame"])
@pytest.mark.parametrize("key_type", KINDS)
def test_ssh_keygen_reads_what_we_write_in_its_format(
    key_type: str, passphrase: str, keys: dict[str, PrivateKey], run: RunProgram, tmp_path: Path
) -> None:
    key = keys[key_type]
    data = dump_openssh(key, passphrase.encode(), "new comment", ROUNDS)
    path = write(tmp_path / "key", data)
    line = run("ssh-keygen", "-y", "-P", passphrase, "-f", path)
    assert line == key.public.line("new comment") + "\n"
    again = load_private_key(data, passphrase.encode)
    assert (again.public, again.comment) == (key.public, "new comment")


@pytest.mark.parametrize("passphrase", ["", "open sesame"])
@pytest.mark.parametrize("key_type", [name for name in KINDS if name != "ssh-ed25519"])
def test_ssh_keygen_reads_what_we_write_as_pem(
    key_type: str, passphrase: str, keys: dict[str, PrivateKey], run: RunProgram, tmp_path: Path
) -> None:
    key = keys[key_type]
    path = write(tmp_path / "key", dump_pem(key, passphrase.encode()))
    line = run("ssh-keygen", "-y", "-P", passphrase, "-f", path)
    assert load_public_line(line)[0] == key.public


def test_an_ed25519_key_goes_through_pem_and_back(keys: dict[str, PrivateKey]) -> None:
    key = keys["ssh-ed25519"]  # ssh-keygen 9.2 cannot read this one
    assert load_private_key(dump_pem(key)).public == key.public
    encrypted = dump_pem(key, b"word")
    assert load_private_key(encrypted, lambda: b"word").public == key.public
    for wrong in (b"", b"sword"):
        with pytest.raises(WrongPassphrase):
            load_private_key(encrypted, lambda wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(PassphraseNeeded):
        load_private_key(encrypted)


@pytest.mark.parametrize("key_type", KINDS)
def test_dropbearkey_reads_what_we_write(
    key_type: str, keys: dict[str, PrivateKey], run: RunProgram, tmp_path: Path
) -> None:
    path = write(tmp_path / "key", dump_dropbear(keys[key_type]))
    assert keys[key_type].public.line() in run("dropbearkey", "-y", "-f", path)


@pytest.mark.parametrize("length", range(20))
def test_the_padding_fits_comments_of_every_length(length: int) -> None:
    key = generate("ssh-ed25519")
    assert load_private_key(dump_openssh(key, comment="c" * length)).comment == "c" * length


def test_two_files_of_one_key_share_no_salt() -> None:
    key = generate("ssh-ed25519")
    assert dump_openssh(key, b"word", rounds=1) != dump_openssh(key, b"word", rounds=1)


# -- what cannot be read -----------------------------------------------------------------


def armour(binary: bytes) -> bytes:
    middle = b2a_base64(binary)
    return (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + middle + b"-----END OPENSSH PRIVATE KEY-----\n"
    )


def unarmour(data: bytes) -> bytes:
    return a2b_base64(b"".join(data.splitlines()[1:-1]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"ssh-ed25519 AAAA x", "public key"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\n", "puttygen"),
        (b"SSH PRIVATE KEY FILE FORMAT 1.1\n\0", "not a private key"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "breaks off"),
        (armour(b"openssh-key-v2\0"), "openssh-key-v1"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "PEM"),
        (write_name("ssh-dss") + bytes(100), "'ssh-dss' are not supported"),
    ],
)
def test_a_file_that_holds_no_usable_key_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(KeyFileError, match=text):
        load_private_key(data)


def test_a_key_that_lives_in_a_security_key_is_refused_with_what_to_do() -> None:
    from tests.security_keys import Token

    public = Token("sk-ssh-ed25519@openssh.com").public
    parts = [write_name("none"), write_name("none"), write_string(b""), write_uint32(1)]
    body = b"".join([*parts, write_string(public.blob), write_string(bytes(16))])
    data = armour(b"openssh-key-v1\0" + body)
    assert load_public_part(data) == public
    with pytest.raises(KeyFileError, match="agent"):
        load_private_key(data)


def test_an_rsa_key_too_short_to_be_safe_is_refused(run: RunProgram, tmp_path: Path) -> None:
    path = tmp_path / "key"
    for form in ("RFC4716", "PEM"):
        path.unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-m", form, "-N", "", "-f", path)
        with pytest.raises(KeyFileError, match="1024 bits is too short"):
            load_private_key(path.read_bytes())
        with pytest.raises(KeyFileError, match="1024 bits is too short"):
            load_public_line(Path(f"{path}.pub").read_text())


@pytest.mark.parametrize("key_type", KINDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_file_raises_a_key_file_error_or_gives_the_same_key(
    key_type: str, keys: dict[str, PrivateKey], openssh_keys: dict[str, Path], data: st.DataObject
) -> None:
    binary = unarmour(openssh_keys[key_type].read_bytes())
    at = data.draw(st.integers(0, len(binary) - 1))
    if data.draw(st.booleans()):
        damaged = binary[:at]
    else:
        change = data.draw(st.integers(1, 255))
        damaged = binary[:at] + bytes([binary[at] ^ change]) + binary[at + 1 :]
    try:
        key = load_private_key(armour(damaged))
    except KeyFileError:
        return
    assert key.public == keys[key_type].public  # the comment may have changed, or iqmp


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_in_place_of_a_key_raise_anything_but_a_key_file_error(data: bytes) -> None:
    for start in (
        b"",
        b"\0\0\0\x0bssh-ed25519",
        b"\0\0\0\x07ssh-rsa",
        b"-----BEGIN PRIVATE KEY-----",
    ):
        with pytest.raises(KeyFileError):
            load_private_key(start + data, lambda: b"word")
    with pytest.raises(KeyFileError):
        load_private_key(armour(b"openssh-key-v1\0" + data), lambda: b"word")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 é",
        "ssh-dss AAAAB3NzaC1kc3MAAAAA",
    ],
)
def test_a_line_that_is_not_a_public_key_is_refused(line: str) -> None:
    with pytest.raises(KeyFileError):
        load_public_line(line)


def test_a_line_that_names_another_type_than_its_key_is_refused() -> None:
    words = generate("ssh-ed25519").public.line().split()
    with pytest.raises(KeyFileError, match="of type ssh-ed25519"):
        load_public_line(f"ssh-rsa {words[1]}")
