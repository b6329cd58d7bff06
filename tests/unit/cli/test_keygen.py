"""culvert keygen, dropbearkey and dropbearconvert: what they write, say and refuse."""

import errno
import getpass
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli import keygen
from appliance.cli.keygen import main
from appliance.cli.keygen_files import write_whole
from appliance.crypto.key_files import load_private_key, load_public_line
from appliance.crypto.known_hosts import add_line
from appliance.crypto.totp import read_secret
from tests.peers import ROOT, find_program

FAST = ("-a", "1")  # rounds of bcrypt: nobody attacks what tests write


class Terminal:
    """The person at the keyboard: what they type, and what they see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.passphrases: list[str] = []
        self.prompts: list[str] = []
        self.out = self.err = ""
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setattr(getpass, "getpass", self._getpass)
        self.type("")

    def _getpass(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.passphrases:
            raise EOFError
        return self.passphrases.pop(0)

    def type(self, text: str) -> None:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    def run(self, *arguments: str | Path, name: str = "keygen") -> int:
        status = main([str(argument) for argument in arguments], name)
        self.out, self.err = self._capfd.readouterr()
        return status


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capfd)


@pytest.fixture
def key(terminal: Terminal, tmp_path: Path) -> Path:
    """A private key without a passphrase."""
    path = tmp_path / "key"
    assert terminal.run("-q", "-N", "", "-C", "a comment", "-f", path) == 0
    assert (terminal.out, terminal.err) == ("", "")
    return path


def theirs(*arguments: str | Path) -> str:
    """What the real ssh-keygen prints."""
    command = [find_program("ssh-keygen"), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- making keys -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bits", "kind"),
    [
        ([], 256, "ED25519"),
        (["-t", "ed25519", "-b", "4096"], 256, "ED25519"),
        (["-t", "ecdsa"], 256, "ECDSA"),
        (["-t", "ecdsa", "-b", "521"], 521, "ECDSA"),
        (["-t", "ecdsa-sha2-nistp384"], 384, "ECDSA"),
        (["-t", "rsa", "-b", "2048"], 2048, "RSA"),
        (["-t", "rsa", "-b", "2048", "-m", "PEM"], 2048, "RSA"),
    ],
)
def test_ssh_keygen_shows_of_our_keys_what_we_say_of_them(
    options: list[str], bits: int, kind: str, terminal: Terminal, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    assert terminal.run(*options, "-N", "", "-C", "me", "-f", path) == 0
    fingerprint = terminal.out.splitlines()[-1].split()[0]
    assert theirs("-l", "-f", path) == f"{bits} {fingerprint} me ({kind})\n"
    assert theirs("-y", "-f", path).split()[:2] == Path(f"{path}.pub").read_text().split()[:2]
    for arguments in (["-l"], ["-l", "-E", "md5"], ["-y"]):
        assert terminal.run(*arguments, "-f", path) == 0
        assert terminal.out == theirs(*arguments, "-f", path)


def test_the_output_is_that_of_ssh_keygen_but_for_the_picture(
    terminal: Terminal, tmp_path: Path
) -> None:
    assert terminal.run("-N", "", "-C", "me", "-f", tmp_path / "key") == 0
    ours = terminal.out.splitlines()
    real = theirs("-t", "ed25519", "-N", "", "-C", "me", "-f", tmp_path / "real").splitlines()
    assert ours[:-1] == [line.replace("/real", "/key") for line in real[:4]]


def test_a_private_key_is_created_0600_with_o_excl_and_o_nofollow(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paramiko's CVE-2022-24302."""
    calls: list[tuple[int, int]] = []
    real_open = os.open

    def watch(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            calls.append((flags, mode))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", watch)
    umask = os.umask(0)
    try:
        assert terminal.run("-q", "-N", "", "-f", tmp_path / "key") == 0
    finally:
        os.umask(umask)
    assert (mode(tmp_path / "key"), mode(tmp_path / "key.pub")) == (0o600, 0o644)
    assert [creation_mode for _, creation_mode in calls] == [0o600, 0o644]
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for flags, _ in calls)


@pytest.mark.parametrize("answer", ["", "n\n", "no\n", "\n", "x\n"])
def test_an_existing_key_stays_unless_the_person_says_yes(
    answer: str, key: Path, terminal: Terminal
) -> None:
    before = key.read_bytes()
    terminal.type(answer)
    assert terminal.run("-N", "", "-f", key) == 1
    assert "already exists.\nOverwrite (y/n)? " in terminal.out
    assert key.read_bytes() == before
    terminal.type("y\n")
    assert terminal.run("-N", "", "-f", key) == 0
    assert key.read_bytes() != before


def test_a_link_in_the_keys_place_is_replaced_and_never_followed(
    terminal: Terminal, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for target in (victim, tmp_path / "nowhere"):
        link = tmp_path / f"link-{target.name}"
        link.symlink_to(target)
        terminal.type("y\n")
        assert terminal.run("-N", "", "-f", link) == 0
        assert not link.is_symlink()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_key_is_written_whole_or_not_at_all(
    key: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in key.parent.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert terminal.run("-p", "-N", "", "-f", key) == 1
    assert terminal.err == f"culvert keygen: {key}: No space left on device\n"
    assert terminal.run("-q", "-N", "", "-f", key.parent / "new") == 1
    assert {path.name: path.read_bytes() for path in key.parent.iterdir()} == before


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_the_meantime_is_not_overwritten(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object, **names: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # FAT

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "key"
    write_whole(str(path), b"first")
    with pytest.raises(FileExistsError):
        write_whole(str(path), b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_the_default_place_is_in_the_home_of_the_account(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keygen, "home_file", lambda name: str(tmp_path / ".ssh" / name))
    terminal.type("\n")
    assert terminal.run("-N", "") == 0
    path = tmp_path / ".ssh/id_ed25519"
    assert f"Enter file in which to save the key ({path}): " in terminal.out
    assert f"Created directory '{path.parent}'." in terminal.out
    assert mode(path.parent) == 0o700
    assert terminal.run("-y") == 0  # and found there again
    assert terminal.out.endswith(path.with_suffix(".pub").read_text())


# -- passphrases -------------------------------------------------------------------------


def test_a_new_passphrase_is_asked_for_twice(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "key"
    terminal.passphrases = ["one", "two", "word", "word"]
    assert terminal.run("-q", *FAST, "-f", path) == 0
    assert "do not match" in terminal.err
    assert load_private_key(path.read_bytes(), lambda: b"word")
    assert theirs("-y", "-P", "word", "-f", path) == Path(f"{path}.pub").read_text()


def test_a_passphrase_is_asked_for_three_times(key: Path, terminal: Terminal) -> None:
    assert terminal.run("-p", *FAST, "-N", "word", "-f", key) == 0
    terminal.passphrases = ["x", "y", "word"]
    assert terminal.run("-y", "-f", key) == 0
    assert terminal.out == Path(f"{key}.pub").read_text()
    terminal.passphrases = ["x", "y", "z", "word"]
    assert terminal.run("-y", "-f", key) == 1
    assert terminal.err.endswith(
        f"culvert keygen: {key}: the passphrase does not open the private key\n"
    )


def test_a_passphrase_is_changed_and_taken_away(key: Path, terminal: Terminal) -> None:
    public = load_private_key(key.read_bytes()).public
    assert terminal.run("-p", *FAST, "-N", "word", "-f", key) == 0
    assert terminal.out == (
        "Key has comment 'a comment'\nYour identification has been saved with the new passphrase.\n"
    )
    assert mode(key) == 0o600
    assert b"bcrypt" not in key.read_bytes()  # base64
    terminal.passphrases = ["word", "new", "new"]
    assert terminal.run("-p", *FAST, "-f", key) == 0
    assert [prompt.partition("(")[0].strip(": ") for prompt in terminal.prompts] == [
        f"Enter passphrase for {key}",
        "Enter passphrase",
        "Enter same passphrase again",
    ]
    assert terminal.run("-p", "-P", "new", "-N", "", "-f", key) == 0
    again = load_private_key(key.read_bytes())
    assert (again.public, again.comment) == (public, "a comment")


def test_an_encrypted_key_shows_its_fingerprint_without_the_passphrase(
    key: Path, terminal: Terminal
) -> None:
    assert terminal.run("-p", *FAST, "-N", "word", "-f", key) == 0
    assert terminal.run("-l", "-f", key) == 0
    assert terminal.out == theirs("-l", "-f", key)
    assert not terminal.prompts


def test_a_passphrase_of_any_bytes_works(key: Path, terminal: Terminal) -> None:
    word = "caf\udce9"  # as the shell passes Latin-1
    assert terminal.run("-p", *FAST, "-N", word, "-f", key) == 0
    assert load_private_key(key.read_bytes(), lambda: b"caf\xe9")
    assert terminal.run("-y", "-P", word, "-f", key) == 0


def test_a_comment_is_changed_in_both_files(key: Path, terminal: Terminal) -> None:
    assert terminal.run("-p", *FAST, "-N", "word", "-f", key) == 0
    terminal.passphrases = ["word"]
    assert terminal.run("-c", *FAST, "-C", "new one", "-f", key) == 0
    assert terminal.out == "Old comment: a comment\nComment 'new one' applied\n"
    assert load_private_key(key.read_bytes(), lambda: b"word").comment == "new one"
    assert load_public_line(Path(f"{key}.pub").read_text())[1] == "new one"


# -- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-x"], "unknown option -x; try 'culvert keygen --help'"),
        (["-t"], "option -t needs an argument, TYPE; try 'culvert keygen --help'"),
        (["-t", "dsa"], "keys of type 'dsa' cannot be made; there are ed25519, ecdsa and rsa"),
        (["-t", "ecdsa", "-b", "1"], "an ECDSA key has 256, 384 or 521 bits"),
        (["-t", "rsa", "-b", "1024", "-f", "{0}/k", "-N", ""], "an RSA key has 2048 to 16384 bits"),
        (["-b", "many"], "option -b: expected a number, not 'many'"),
        (["-b", "9" * 5000], "option -b: expected a number, not '" + "9" * 5000 + "'"),
        (
            ["-y", "-l"],
            "only one of --totp, -y, -l, -L, -p, -c, -F, -R and -H at a time;"
            " try 'culvert keygen --help'",
        ),
        (["--totp", "a:b"], "option --totp: expected the name of a user, not 'a:b'"),
        (["key"], "too many arguments: 'key'; try 'culvert keygen --help'"),
        (["-f", "{0}/no/key", "-N", ""], "{0}/no/key: No such file or directory"),
        (["-y", "-f", "{0}/none"], "{0}/none: No such file or directory"),
        (["-l", "-f", "{0}/none"], "{0}/none: No such file or directory"),
        (["-y", "-f", "{0}"], "{0}: Is a directory"),
        (["-y", "-f", "{0}/empty"], "{0}/empty: the file is empty, so it holds no private key"),
        (["-l", "-f", "{0}/empty"], "{0}/empty: no key is in it"),
        (["-l", "-f", "/dev/zero"], "/dev/zero: not a file"),
        (
            ["-l", "-f", "{0}/huge"],
            "{0}/huge: larger than 1048576 bytes, so neither a key nor a list",
        ),
        (
            ["-y", "-f", "{0}/open"],
            "{0}/open: others may read or write this private key; try chmod 600 {0}/open",
        ),
        (["-E", "sha1", "-l", "-f", "{0}/empty"], "option -E: expected sha256 or md5, not 'sha1'"),
        (
            ["-m", "xml", "-f", "{0}/k", "-N", ""],
            "option -m: expected RFC4716, PEM or dropbear, not 'xml'",
        ),
        (
            ["-C", "two\nlines", "-f", "{0}/k", "-N", ""],
            "a comment is one line of printable characters",
        ),
        (["-F", "[host]:x", "-f", "{0}/empty"], "'[host]:x' names no port: expected [HOST]:PORT"),
        (["-R", "host", "-f", "{0}/empty"], "host host not found in {0}/empty"),
        (["-F", "host", "-f", "{0}/none"], "{0}/none: No such file or directory"),
        (["-f", "{0}/k"], "a passphrase is needed; give it with -P or -N"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(
    arguments: list[str],
    text: str,
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_terminal(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", no_terminal)
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "open").touch(0o644)
    (tmp_path / "huge").write_bytes(bytes(2 << 20))
    assert terminal.run(*(word.format(tmp_path) for word in arguments)) == 1
    assert terminal.err == f"culvert keygen: {text.format(tmp_path)}\n"
    assert not (tmp_path / "k").exists()


def test_find_says_nothing_of_a_host_that_is_not_there(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").touch()
    assert terminal.run("-F", "host", "-f", tmp_path / "known_hosts") == 1
    assert (terminal.out, terminal.err) == ("", "")


def test_an_interrupt_ends_it_without_a_traceback(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(getpass, "getpass", interrupt)
    assert terminal.run("-f", tmp_path / "key") == 1
    assert terminal.err == "\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["keygen", "dropbearkey", "dropbearconvert"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_text_comes_on_standard_output(name: str, option: str, terminal: Terminal) -> None:
    assert terminal.run(option, name=name) == 0
    assert terminal.out.startswith("usage: ")
    assert terminal.err == ""


# -- known_hosts -------------------------------------------------------------------------


@pytest.fixture
def hosts(key: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two files of the same content, for us and for the real ssh-keygen."""
    public = load_private_key(key.read_bytes()).public
    lines = [
        "# a comment",
        f"host.example,192.0.2.1 {public.line('a comment')}",
        f"*.example {public.line()}",
        add_line("host.example", 2222, public),
        add_line("host.example", 22, public, True, bytes(20)),
        f"@revoked host.example {public.line()}",
        f"@cert-authority other {public.line()}",
    ]
    both = tmp_path / "ours", tmp_path / "theirs"
    for path in both:
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o640)
    return both


@pytest.mark.parametrize("host", ["host.example", "[host.example]:2222", "192.0.2.1", "other"])
@pytest.mark.parametrize("options", [[], ["-l"], ["-l", "-E", "md5"], ["-q"]])
def test_find_prints_what_ssh_keygen_prints(
    host: str, options: list[str], terminal: Terminal, hosts: tuple[Path, Path]
) -> None:
    assert terminal.run("-F", host, *options, "-f", hosts[0]) == 0
    assert terminal.out == theirs("-F", host, *options, "-f", hosts[1])


@pytest.mark.parametrize("host", ["host.example", "[host.example]:2222", "192.0.2.1"])
def test_remove_leaves_what_ssh_keygen_leaves(
    host: str, terminal: Terminal, hosts: tuple[Path, Path]
) -> None:
    ours, real = hosts
    before = ours.read_bytes()
    assert terminal.run("-R", host, "-f", ours) == 0
    assert terminal.out == theirs("-R", host, "-f", real).replace(str(real), str(ours))
    assert ours.read_bytes() == real.read_bytes()
    assert Path(f"{ours}.old").read_bytes() == before
    assert mode(ours) == 0o640


def test_hashing_hides_every_plain_name_and_keeps_the_rest(
    terminal: Terminal, hosts: tuple[Path, Path]
) -> None:
    ours = hosts[0]
    assert terminal.run("-H", "-f", ours) == 0
    text = ours.read_text()
    assert [line.partition(" ")[0][:3] for line in text.splitlines()] == [
        *("#", "|1|", "|1|", "*.e", "|1|", "|1|", "@re", "@ce"),
    ]
    assert "192.0.2.1" not in text
    for host in ("host.example", "[host.example]:2222", "192.0.2.1"):
        assert f"# Host {host} found" in theirs("-F", host, "-f", ours)


def test_known_hosts_that_is_a_link_stays_one(
    terminal: Terminal, hosts: tuple[Path, Path], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(hosts[0])
    assert terminal.run("-R", "192.0.2.1", "-f", link) == 0
    assert link.is_symlink()
    assert "192.0.2.1" not in hosts[0].read_text()


def test_fingerprints_of_a_list_name_the_comment_or_what_stands_in_front(
    key: Path, terminal: Terminal, tmp_path: Path
) -> None:
    line = Path(f"{key}.pub").read_text()
    bare = " ".join(line.split()[:2])
    path = tmp_path / "list"
    path.write_text(f'restrict,command="a b" {line}host.example {bare}\nnonsense\n{line}')
    assert terminal.run("-l", "-f", path) == 0
    assert terminal.out == theirs("-l", "-f", path)
    path.write_text(f"{bare}\n")
    assert terminal.run("-l", "-f", path) == 0
    assert terminal.out.endswith(" no comment (ED25519)\n")


# -- Dropbear's programs -----------------------------------------------------------------


def dropbearkey(*arguments: str | Path) -> str:
    command = [find_program("dropbearkey"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


@pytest.mark.parametrize(
    "options", [["-t", "ed25519"], ["-t", "ecdsa", "-s", "384"], ["-t", "rsa"]]
)
def test_dropbearkey_makes_and_shows_keys_as_the_real_one_does(
    options: list[str], terminal: Terminal, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    assert terminal.run(*options, "-f", path, name="dropbearkey") == 0
    made = terminal.out
    assert made == dropbearkey("-y", "-f", path)
    assert mode(path) == 0o600
    assert terminal.run("-y", "-f", path, name="dropbearkey") == 0
    assert terminal.out == made
    before = path.read_bytes()
    assert terminal.run(*options, "-f", path, name="dropbearkey") == 1
    assert terminal.err == f"dropbearkey: {path} already exists\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the key's file is missing: -f FILE; try 'dropbearkey --help'"),
        (["-f", "x"], "the key's type is missing: -t TYPE; try 'dropbearkey --help'"),
        (
            ["-t", "dss", "-f", "x"],
            "keys of type 'dss' cannot be made; there are ed25519, ecdsa and rsa",
        ),
        (["-y", "-f", "/nonexistent"], "/nonexistent: No such file or directory"),
    ],
)
def test_dropbearkey_names_a_mistake_in_one_line(
    arguments: list[str], text: str, terminal: Terminal
) -> None:
    assert terminal.run(*arguments, name="dropbearkey") == 1
    assert terminal.err == f"dropbearkey: {text}\n"


def test_dropbearconvert_converts_both_ways(key: Path, terminal: Terminal, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert terminal.run("openssh", "dropbear", key, there, name="dropbearconvert") == 0
    assert terminal.err == f"Key is a ssh-ed25519 key\nWrote key to '{there}'\n"
    assert terminal.run("dropbear", "openssh", there, back, name="dropbearconvert") == 0
    public = Path(f"{key}.pub").read_text().split()[1]
    assert public in dropbearkey("-y", "-f", there)
    assert theirs("-y", "-f", back).split()[1] == public
    assert (mode(there), mode(back)) == (0o600, 0o600)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["openssh"], "expected IN_TYPE OUT_TYPE IN_FILE OUT_FILE; try 'dropbearconvert --help'"),
        (["ppk", "openssh", "a", "b"], "the type 'ppk' is neither openssh nor dropbear"),
        (["dropbear", "openssh", "{0}/key", "{0}/b"], "{0}/key: not in the format dropbear"),
        (["openssh", "dropbear", "{0}/none", "{0}/b"], "{0}/none: No such file or directory"),
    ],
)
def test_dropbearconvert_names_a_mistake_in_one_line(
    arguments: list[str], text: str, key: Path, terminal: Terminal
) -> None:
    folder = key.parent
    words = (word.format(folder) for word in arguments)
    assert terminal.run(*words, name="dropbearconvert") == 1
    assert terminal.err == f"dropbearconvert: {text.format(folder)}\n"
    assert not (folder / "b").exists()


# -- cost --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (
            "appliance.crypto.keys",
            ["dataclasses", "bcrypt", "cryptography", "socket", "asyncio", "hashlib"],
        ),
        ("appliance.crypto.key_files", ["dataclasses", "bcrypt", "cryptography", "base64"]),
        ("appliance.crypto.authorized_keys", ["dataclasses", "ipaddress", "datetime"]),
        ("appliance.crypto.known_hosts", ["dataclasses", "cryptography", "hmac"]),
        ("appliance.cli.options", ["getopt", "argparse", "gettext"]),
        ("appliance.client.ssh_config", ["dataclasses", "glob", "pwd", "hashlib"]),
        ("appliance.cli.keygen", ["getpass", "bcrypt", "cryptography", "asyncio", "argparse"]),
    ],
)
def test_importing_a_module_does_not_import_what_few_commands_need(
    module: str, forbidden: list[str]
) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert not set(forbidden) & set(result.stdout.split())


def test_callers_may_pass_no_name(capfd: pytest.CaptureFixture[str]) -> None:
    run: Callable[[list[str]], int] = main
    assert run(["--help"]) == 0
    assert capfd.readouterr().out.startswith("usage: culvert keygen")


# -- one-time codes ----------------------------------------------------------------------


def test_a_secret_for_codes_is_printed_as_the_server_and_a_telephone_take_it(
    terminal: Terminal,
) -> None:
    assert terminal.run("--totp", "anna") == 0
    address, line = terminal.out.splitlines()
    user, _, secret = line.partition(":")
    assert user == "anna" and len(read_secret(secret)) == 20
    assert address.startswith("# otpauth://totp/anna@") and f"secret={secret}&" in address
    first = terminal.out
    assert terminal.run("--totp", "anna") == 0
    assert terminal.out != first
