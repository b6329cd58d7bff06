"""culvert keygen: make keys, show them, change their passphrases; ssh-keygen's options.

Its other jobs have files of their own, which are imported when used: certificates, revocation
lists, known_hosts files, dropbearkey and dropbearconvert.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Final

from ..crypto import key_files
from ..crypto.key_files import KeyFileError
from ..crypto.keys import PrivateKey, PublicKey
from ..errors import CulvertError, UsageError
from .keygen_files import PROMPTS, ask, home_file, load_private, read_file, write_whole
from .keygen_words import (
    Silent,
    checked_comment,
    default_comment,
    hash_name,
    kind,
    new_key,
    number,
    wanted_type,
)
from .options import Option, Options, help_text, parse


def _passphrase(options: Options, letter: str) -> bytes | None:
    """Returns the argument of -N or -P as the bytes that the shell passed; None if not given."""
    value = options.value(letter)
    return None if value is None else os.fsencode(value)


def _ask_new(options: Options) -> bytes:
    """Returns a new passphrase: that of -N, or one that the user types twice."""
    given = _passphrase(options, "N")
    if given is not None:
        return given
    for _ in range(PROMPTS):
        passphrase = ask("passphrase (empty for no passphrase)")
        if ask("same passphrase again") == passphrase:
            return passphrase
        print("Passphrases do not match.  Try again.", file=sys.stderr)
    raise UsageError("the passphrases do not match")


def _answer(question: str) -> str:
    print(question, end="", flush=True)
    return sys.stdin.readline().strip()


def _confirm_overwrite(path: str) -> bool:
    if not os.path.lexists(path):
        return False
    print(f"{path} already exists.")
    if not _answer("Overwrite (y/n)? ").lower().startswith("y"):
        raise UsageError(f"{path} is left as it was")
    return True


_OPTIONS: Final = (
    Option("t", "TYPE", "type of the new key: ed25519 (the default), ecdsa or rsa"),
    Option("b", "BITS", "its size: rsa 2048 to 16384 (default 3072), ecdsa 256, 384 or 521"),
    Option("f", "FILE", "the key's file, or the known_hosts file; '-' reads standard input"),
    Option("N", "PASSPHRASE", "the new passphrase; '' for none"),
    Option("P", "PASSPHRASE", "the passphrase that the key has now"),
    Option("C", "COMMENT", "the comment of the new key, by default user@host"),
    Option("q", None, "say nothing but errors"),
    Option("y", None, "print the public key of a private one"),
    Option("l", None, "print fingerprints: of a key, of a list of keys, of what -F finds"),
    Option("E", "HASH", "hash of fingerprints: sha256 (the default) or md5"),
    Option("p", None, "change the passphrase of a private key"),
    Option("c", None, "change the comment of a private key"),
    Option("F", "HOST", "find a host in known_hosts; [HOST]:PORT for another port than 22"),
    Option("R", "HOST", "remove a host from known_hosts"),
    Option("H", None, "hash all names in known_hosts, so that it does not reveal them"),
    Option("s", "AUTHORITY", "sign the keys in FILES with this private key: certificates"),
    Option("I", "ID", "the certificates' name in the logs of servers"),
    Option("n", "NAMES", "the users, or hosts, that they are good for, with commas between"),
    Option("h", None, "they are for hosts, not for users"),
    Option("V", "FROM:TO", "their time: +52w, or 20300101:20310101, always:+1d, -1h:forever"),
    Option("O", "OPTION", "clear, no-pty, force-command=COMMAND, source-address=LIST ...", True),
    Option("z", "NUMBER", "their serial, +1 counts up; or the version of a revocation list"),
    Option("L", None, "show what a certificate says"),
    Option("k", None, "make the revocation list -f of the keys in FILES"),
    Option("u", None, "add to it"),
    Option("Q", None, "ask the revocation list -f for the keys in FILES"),
    Option("totp", "USER", "make a secret for one-time codes: lines for sshd.toml's totp_file"),
    Option("m", "FORMAT", "format to write: RFC4716 (OpenSSH's, the default), PEM or dropbear"),
    Option("a", "ROUNDS", "how long the passphrase is hashed, by default 24 rounds"),
    Option("v", None, ""),  # accepted, without effect
    Option("o", None, ""),
    Option("Z", "CIPHER", ""),
)
_USAGE: Final = """\
culvert keygen [-t TYPE] [-b BITS] [-f FILE] [-N PASSPHRASE] [-C COMMENT] [-q]
culvert keygen -y | -l | -p | -c  [-f FILE]
culvert keygen -F HOST | -R HOST | -H  [-f KNOWN_HOSTS]
culvert keygen -s AUTHORITY -I ID [-h] [-n NAMES] [-V FROM:TO] [-O OPTION] [-z NUMBER] FILES
culvert keygen -L [-f CERTIFICATE]
culvert keygen -k -f LIST [-u] [-s AUTHORITY.pub] [-z NUMBER] FILES
culvert keygen -Q -f LIST FILES
culvert keygen --totp USER"""
_ABOUT: Final = """\
Make a pair of keys to log in with, and look after keys and known_hosts files.

The private key stays on this machine and is nobody else's business. The public key, FILE.pub,
is one line of text: append it to ~/.ssh/authorized_keys of the account to log in to."""
_FOOTER: Final = """\
examples:
  culvert keygen                           a key in ~/.ssh/id_ed25519, asking for what it needs
  culvert keygen -f key -N '' -C backup    a key without a passphrase, for a script
  culvert keygen -l -f key.pub             its fingerprint
  culvert keygen -R host.example           forget a host whose key has changed"""


def _keygen(arguments: list[str], name: str) -> None:
    options = parse(arguments, _OPTIONS, name)
    if "help" in options or ("h" in options and "s" not in options):
        print(help_text(_USAGE, _ABOUT, _OPTIONS, _FOOTER), end="")
        return
    if "k" in options or "Q" in options:
        from . import keygen_revocation

        return keygen_revocation.run(options)
    if "s" in options:
        from . import keygen_certificates

        return keygen_certificates.sign(options)
    if options.operands:
        raise UsageError(f"too many arguments: {options.operands[0]!r}; try '{name} --help'")
    jobs: list[tuple[str, Callable[[Options], None]]] = [
        ("totp", _make_secret),
        ("y", _show_public),
        ("p", _change_passphrase),
        ("c", _change_comment),
        ("F", _tend_known_hosts),
        ("R", _tend_known_hosts),
        ("H", _tend_known_hosts),
        ("l", _show_fingerprints),
        ("L", _show_certificates),
    ]
    chosen = [job for letter, job in jobs if letter in options]
    if "F" in options:  # -l and -H tell how to print what is found
        chosen = [job for letter, job in jobs if letter in options and letter not in "lH"]
    if len(chosen) > 1:
        raise UsageError(
            f"only one of --totp, -y, -l, -L, -p, -c, -F, -R and -H at a time; try '{name} --help'"
        )
    (chosen[0] if chosen else _make_key)(options)


def _make_key(options: Options) -> None:
    key_type, bits = wanted_type(options.value("t") or "ed25519", number(options.value("b"), "-b"))
    quiet = "q" in options
    short = "ecdsa" if key_type.startswith("ecdsa") else key_type.removeprefix("ssh-")
    if not quiet:
        print(f"Generating public/private {short} key pair.")
    path = options.value("f")
    if path is None:
        path = home_file(f"id_{short}")
        path = _answer(f"Enter file in which to save the key ({path}): ") or path
        if not os.path.exists(os.path.dirname(path)) and path.startswith(home_file("")):
            os.mkdir(os.path.dirname(path), 0o700)
            print(f"Created directory '{os.path.dirname(path)}'.")
    replace = _confirm_overwrite(path)
    passphrase = _ask_new(options)
    comment = options.value("C")
    key = new_key(key_type, bits)
    key.comment = checked_comment(default_comment() if comment is None else comment)
    write_whole(path, _dump(key, passphrase, options), replace=replace)
    line = key.public.line(key.comment) + "\n"
    write_whole(f"{path}.pub", line.encode(), 0o644, replace=True)
    if not quiet:
        print(f"Your identification has been saved in {path}")
        print(f"Your public key has been saved in {path}.pub")
        print(
            f"The key fingerprint is:\n{key.public.fingerprint(hash_name(options))} {key.comment}"
        )


def _dump(key: PrivateKey, passphrase: bytes, options: Options) -> bytes:
    form = (options.value("m") or "RFC4716").lower()
    rounds = number(options.value("a"), "-a") or key_files.BCRYPT_ROUNDS
    if form == "rfc4716":
        return key_files.dump_openssh(key, passphrase or None, rounds=rounds)
    if form in ("pem", "pkcs8"):
        return key_files.dump_pem(key, passphrase or None)
    if form == "dropbear" and not passphrase:
        return key_files.dump_dropbear(key)
    if form == "dropbear":
        raise UsageError("Dropbear's format has no passphrase: give -N ''")
    raise UsageError(f"option -m: expected RFC4716, PEM or dropbear, not {form!r}")


def _key_path(options: Options) -> str:
    """Returns the file of -f, or asks for it and proposes the first usual one that exists."""
    path = options.value("f")
    if path is None:
        usual = [home_file(f"id_{kind}") for kind in ("ed25519", "ecdsa", "rsa")]
        path = next(filter(os.path.exists, usual), usual[0])
        path = _answer(f"Enter file in which the key is ({path}): ") or path
    return path


def _show_public(options: Options) -> None:
    key = load_private(_key_path(options), _passphrase(options, "P"))
    print(key.public.line(key.comment))


def _show_fingerprints(options: Options) -> None:
    path = _key_path(options)
    hash = hash_name(options)
    data = read_file(path)
    public: PublicKey | None = None
    comment = ""
    try:
        public = key_files.load_public_part(data)
        if public is None and (b"-----BEGIN " in data or data.startswith(b"\0\0\0")):
            key = load_private(path, _passphrase(options, "P"))
            public, comment = key.public, key.comment
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error
    if public is not None:
        comment = comment or _comment_beside(path, public)
        _print_fingerprint(public, hash, comment)
        return
    found = 0
    for line in data.decode(errors="replace").splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        try:
            public, comment = _key_in_line(words)
        except KeyFileError:
            continue
        _print_fingerprint(public, hash, comment)
        found += 1
    if not found:
        raise UsageError(f"{path}: no key is in it")


def _make_secret(options: Options) -> None:
    """Prints a comment with the otpauth URI for the phone, and the line for totp_file."""
    from ..crypto.totp import SECRET_BYTES, address, write_secret

    user = options.value("totp") or ""
    if not user or ":" in user or not user.isprintable():
        raise UsageError(f"option --totp: expected the name of a user, not {user!r}")
    secret = os.urandom(SECRET_BYTES)
    print(f"# {address(secret, user, os.uname().nodename)}\n{user}:{write_secret(secret)}")


def _tend_known_hosts(options: Options) -> None:
    from . import keygen_known_hosts

    keygen_known_hosts.run(options)


def _show_certificates(options: Options) -> None:
    from . import keygen_certificates

    keygen_certificates.show(_key_path(options), hash_name(options))


def _comment_beside(path: str, public: PublicKey) -> str:
    """Returns the comment in the .pub file; '' if the file is missing or has another key."""
    try:
        key, comment = key_files.load_public_line(read_file(f"{path}.pub").decode())
    except (OSError, UnicodeDecodeError, CulvertError):
        return ""
    return comment if key == public else ""


def _key_in_line(line: str) -> tuple[PublicKey, str]:
    """The key of a line of a .pub, authorized_keys or known_hosts file."""
    try:
        return key_files.load_offered_line(line)
    except KeyFileError:
        at, quoted = 0, False
        while at < len(line) and (quoted or line[at] not in " \t"):
            quoted ^= line[at] == '"' and line[at - 1 : at] != "\\"
            at += 1
        key, comment = key_files.load_offered_line(line[at:])
        return key, comment or line[:at]


def _print_fingerprint(key: PublicKey, hash: str, comment: str) -> None:
    shown = "".join(c if c.isprintable() else "?" for c in comment) or "no comment"
    print(f"{key.bits} {key.fingerprint(hash)} {shown} ({kind(key)})")


def _change_passphrase(options: Options) -> None:
    path = _key_path(options)
    key = load_private(path, _passphrase(options, "P"))
    if key.comment:
        print(f"Key has comment '{key.comment}'")
    write_whole(path, _dump(key, _ask_new(options), options), replace=True)
    print("Your identification has been saved with the new passphrase.")


def _change_comment(options: Options) -> None:
    path = _key_path(options)
    given = _passphrase(options, "P")
    if given is None and _is_encrypted(read_file(path, private=True)):
        given = ask(f"passphrase for {path}")
    key = load_private(path, given or b"")
    print(f"Old comment: {key.comment}" if key.comment else "No existing comment")
    comment = options.value("C")
    if comment is None:
        comment = _answer("New comment: ")
    key.comment = checked_comment(comment)
    write_whole(path, _dump(key, given or b"", options), replace=True)
    write_whole(f"{path}.pub", f"{key.public.line(comment)}\n".encode(), 0o644, replace=True)
    print(f"Comment '{comment}' applied")


def _is_encrypted(data: bytes) -> bool:
    try:
        key_files.load_private_key(data, None)
    except key_files.PassphraseNeeded:
        return True
    except KeyFileError:
        return False  # the caller's own loading explains the error
    return False


_DROPBEAR: Final = ("dropbearkey", "dropbearconvert")


def main(arguments: list[str], name: str = "keygen") -> int:
    """Runs keygen, dropbearkey or dropbearconvert; returns the exit status, 0 or 1."""
    command = name if name in _DROPBEAR else "culvert keygen"
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    try:
        if name in _DROPBEAR:
            from . import keygen_dropbear

            keygen_dropbear.run(arguments, name)
        else:
            _keygen(arguments, command)
        sys.stdout.flush()
    except Silent:
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{command}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except CulvertError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    return 0
