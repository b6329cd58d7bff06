"""culvert keygen -s, -L, -k and -Q, with ssh-keygen at the other end."""

import subprocess
import time
from pathlib import Path

import pytest

from appliance.cli import keygen_certificates
from appliance.cli.keygen import main
from appliance.crypto.certificates import FOREVER, Certificate, CertType
from appliance.crypto.key_files import dump_openssh, load_offered_line, load_public_line
from appliance.crypto.keys import generate
from appliance.errors import UsageError
from tests.peers import find_program
from tests.security_keys import Token

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an authority 'ca' and a key 'key'."""
    for name in ("ca", "key"):
        made = generate("ssh-ed25519")
        (tmp_path / name).write_bytes(dump_openssh(made, None, "host"))
        (tmp_path / name).chmod(0o600)
        (tmp_path / f"{name}.pub").write_text(made.public.line(f"the {name}") + "\n")
    return tmp_path


def run(*arguments: str | Path) -> int:
    return main([str(each) for each in arguments], "keygen")


def signed(folder: Path, *options: str) -> Certificate:
    assert run("-q", "-s", folder / "ca", "-I", "who", *options, folder / "key.pub") == 0
    made, comment = load_offered_line((folder / "key-cert.pub").read_text())
    assert isinstance(made, Certificate) and comment == "the key"
    return made


def theirs(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    argv = [find_program("ssh-keygen"), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


# -- certificates ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["-n", "alice,bob", "-z", "7", "-V", "20260101Z:20300101120000Z"],
        ["-h", "-n", "host.example", "-V", "always:20300101Z"],
        ["-n", "a", "-V", "20260101Z:forever", "-O", "clear", "-O", "permit-pty"],
        ["-n", "a", "-O", "force-command=ls -l", "-O", "no-x11-forwarding"],
        ["-n", "a", "-O", "source-address=192.0.2.0/24,::1", "-O", "verify-required"],
        ["-n", "a", "-O", "no-touch-required", "-O", "extension:x@example.com=value"],
        ["-n", "a", "-O", "critical:y@example.com", "-O", "NO-PTY"],
        ["-n", "a", "-z", "18446744073709551615"],
    ],
)
def test_a_certificate_says_what_one_of_ssh_keygens_with_the_same_options_says(
    options: list[str], folder: Path
) -> None:
    ours = signed(folder, *options)
    done = theirs("-s", folder / "ca", "-I", "who", *options, folder / "key.pub")
    assert done.returncode == 0, done.stderr
    made, _ = load_offered_line((folder / "key-cert.pub").read_text())
    assert isinstance(made, Certificate)
    assert (ours.terms, ours.key, ours.authority) == (made.terms, made.key, made.authority)
    assert ours.authority_algorithm == made.authority_algorithm


def test_show_prints_what_ssh_keygen_prints(folder: Path, capfd: Capture) -> None:
    options = ["-n", "alice,bob", "-z", "7", "-V", "20260101Z:20300101120000Z"]
    signed(folder, *options, "-O", "force-command=ls -l", "-O", "no-pty")
    path = folder / "key-cert.pub"
    capfd.readouterr()
    assert run("-L", "-f", path) == 0
    assert capfd.readouterr().out == theirs("-L", "-f", path).stdout
    signed(folder, "-h", "-n", "host")
    assert run("-L", "-f", path) == 0
    assert capfd.readouterr().out == theirs("-L", "-f", path).stdout
    assert run("-l", "-f", path) == 0
    assert capfd.readouterr().out == theirs("-l", "-f", path).stdout


def test_signing_says_what_was_signed_and_serials_count_up(folder: Path, capfd: Capture) -> None:
    (folder / "two.pub").write_text(generate("ssh-rsa", 2048).public.line())
    arguments: list[str | Path] = [
        "-s",
        folder / "ca",
        "-I",
        "id",
        "-n",
        "a",
        "-z",
        "+8",
        "-V",
        "always:forever",
    ]
    assert run(*arguments, folder / "key", folder / "two.pub") == 0
    err = capfd.readouterr().err
    assert f'Signed user key {folder}/key-cert.pub: id "id" serial 8 for a valid forever' in err
    assert f'Signed user key {folder}/two-cert.pub: id "id" serial 9 for a valid forever' in err


def test_a_certificate_for_nobody_is_made_with_a_warning(folder: Path, capfd: Capture) -> None:
    assert signed(folder).terms.principals == ()
    assert "nobody" in capfd.readouterr().err


def test_a_security_key_is_signed_like_any_other(folder: Path) -> None:
    (folder / "key.pub").write_text(
        Token("sk-ssh-ed25519@openssh.com").public.line("the key") + "\n"
    )
    assert signed(folder, "-n", "a").key_type == "sk-ssh-ed25519-cert-v01@openssh.com"
    assert "ED25519-SK-CERT" in theirs("-L", "-f", folder / "key-cert.pub").stdout


@pytest.mark.parametrize(
    ("text", "after", "before"),
    [
        (None, 0, FOREVER),
        ("+1d", 1000000 - 59, 1000000 + 86400),
        ("+1h30m", 1000000 - 59, 1000000 + 5400),
        ("-1m:+90", 1000000 - 60, 1000000 + 90),
        ("always:forever", 0, FOREVER),
        ("20300101Z:20310101Z", 1893456000, 1924992000),
        ("-52w:forever", 0, FOREVER),
    ],
)
def test_a_validity_is_read_as_ssh_keygen_reads_it(
    text: str | None, after: int, before: int
) -> None:
    assert keygen_certificates._validity(text, 1000000) == (after, before)


@pytest.mark.parametrize(
    "text", ["", "1d", "20300101", "forever", ":", "+", "+x", "+1y", "+1d:", "2030:2031", "+2d:+1d"]
)
def test_a_validity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="option -V"):
        keygen_certificates._validity(text, int(time.time()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-s", "{0}/ca", "{0}/key.pub"], "a certificate needs a name for the logs: -I ID"),
        (["-s", "{0}/ca", "-I", "x"], "which public keys are to be signed? Give their files"),
        (["-s", "{0}/none", "-I", "x", "-n", "a", "{0}/key.pub"], "{0}/none: No such file"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a,", "{0}/key.pub"], "option -n: an empty name"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-z", "x", "{0}/key.pub"], "option -z"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-z", "9" * 20, "{0}/key.pub"], "option -z"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-O", "nonsense", "{0}/key.pub"], "option -O"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-O", "no-pty=1", "{0}/key.pub"], "option -O"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-h", "-O", "clear", "{0}/key.pub"], "option -O"),
        (
            ["-s", "{0}/ca", "-I", "x", "-n", "a", "-O", "source-address=host", "{0}/key.pub"],
            "{0}/key.pub: such a certificate would be of no use",
        ),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "-t", "ssh-rsa", "{0}/key.pub"], "option -t"),
        (["-s", "{0}/ca", "-I", "x", "-n", "a", "{0}/ca.bad"], "{0}/ca.bad: No such file"),
        (["-L", "-f", "{0}/key.pub"], "{0}/key.pub: no certificate is in it"),
        (["-k", "{0}/key.pub"], "the revocation list is missing: -f LIST"),
        (["-k", "-f", "{0}/krl", "{0}/spec"], "{0}/spec line 2: 'serial:' needs the authority"),
        (["-Q", "-f", "{0}/key"], "which keys are to be looked up? Give their files"),
        (["-Q", "-f", "{0}/key", "{0}/key.pub"], "{0}/key: line 1 is no public key"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(
    arguments: list[str], text: str, folder: Path, capfd: Capture
) -> None:
    (folder / "spec").write_text("# comment\nserial: 1\n")
    assert run(*(each.format(folder) for each in arguments)) == 1
    err = [line for line in capfd.readouterr().err.splitlines() if "for nobody" not in line]
    assert len(err) == 1 and err[0].startswith(f"culvert keygen: {text.format(folder)}"), err
    assert not (folder / "krl").exists()


# -- revocation lists --------------------------------------------------------------------


def test_a_revocation_list_of_ours_means_the_same_to_ssh_keygen(
    folder: Path, capfd: Capture
) -> None:
    key, ca = folder / "key.pub", folder / "ca.pub"
    signed(folder, "-n", "a", "-z", "5")
    certificate = folder / "key-cert.pub"
    digest = load_public_line(key.read_text())[0].fingerprint()
    line = key.read_text().strip()
    for spec, revoked in [
        ("serial: 5", {certificate}),
        ("serial: 0x3-0x8", {certificate}),
        ("serial: 010", set()),
        ("id: who", {certificate}),
        ("id: whoever", set()),
        (f"key: {line}", {key, certificate}),
        (f"sha1: {line}", {key, certificate}),
        (f"sha256: {line}", {key, certificate}),
        (f"hash: {digest}", {key, certificate}),
        (line, {key, certificate}),
        (certificate.read_text().strip(), {certificate}),
        (ca.read_text().strip(), {ca, certificate}),
        ("# nothing", set()),
    ]:
        (folder / "spec").write_text(f"# a list\n\n{spec}\n")
        assert run("-q", "-k", "-f", folder / "krl", "-s", ca, folder / "spec") == 0, spec
        for each in (key, certificate, ca):
            capfd.readouterr()
            status = run("-Q", "-f", folder / "krl", each)
            ours = capfd.readouterr().out
            done = theirs("-Q", "-f", folder / "krl", each)
            assert (status, ours) == (done.returncode, done.stdout), spec
            assert status == (each in revoked), (spec, each)


def test_a_revocation_list_is_added_to(folder: Path) -> None:
    krl = folder / "krl"
    assert run("-q", "-k", "-f", krl, folder / "ca.pub") == 0
    assert run("-q", "-k", "-u", "-f", krl, folder / "key.pub") == 0
    assert run("-Q", "-f", krl, folder / "ca.pub") == run("-Q", "-f", krl, folder / "key.pub") == 1
    assert run("-q", "-k", "-f", krl, folder / "key.pub") == 0
    assert run("-Q", "-f", krl, folder / "ca.pub") == 0
    made = theirs("-k", "-u", "-f", krl, folder / "ca.pub")
    assert made.returncode == 0 and run("-Q", "-f", krl, folder / "ca.pub") == 1


def test_a_serial_of_every_authority_is_revoked_with_none_for_the_authority(folder: Path) -> None:
    (folder / "spec").write_text("id: who\n")
    assert run("-q", "-k", "-f", folder / "krl", "-s", "none", folder / "spec") == 0
    made = signed(folder, "-n", "a")
    assert made.terms.kind is CertType.USER
    assert theirs("-Q", "-f", folder / "krl", folder / "key-cert.pub").returncode == 1
    assert run("-Q", "-f", folder / "krl", folder / "key-cert.pub") == 1
