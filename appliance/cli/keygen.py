"""culvert keygen: make keys, show them, change their passphrases, tend known_hosts.

Certificates and revocation lists stand in files of their own, which are read when wanted.

It speaks ssh-keygen's options for these jobs; called dropbearkey or dropbearconvert it speaks
theirs. A file that is written appears whole or not at all: it is made under another name in
the same directory, 0600, never through a link that somebody left there, and takes its place
when it is on the disk.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Final

from ..crypto import key_files, known_hosts
from ..crypto.key_files import KeyFileError, WrongPassphrase
from ..crypto.keys import ED25519, RSA, PrivateKey, PublicKey, generate, is_certificate_name
from ..errors import CulvertError, UsageError
from .options import Option, Options, help_text, parse

# Our own choices
FILE_LIMIT: Final = 1 << 20  # bytes: a key is far smaller, a known_hosts file hardly larger
PROMPTS: Final = 3  # how often a passphrase is asked for before we give up

_ECDSA_TYPES: Final = {bits: f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)}


# -- files -------------------------------------------------------------------------------


def write_whole(path: str, data: bytes, mode: int = 0o600, replace: bool = False) -> None:
    """Write a file whole or not at all; raises FileExistsError unless it may be replaced.

    Whoever looks at ``path``, at whatever moment and after whatever crash, finds what was there
    before or all of ``data``. A link in its place is replaced and never followed.
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, mode), "wb") as stream:
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                if replace:
                    os.replace(temporary, path)
                else:
                    _rename_to_nothing(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:  # a person knows nothing of the temporary name
        raise OSError(error.errno, error.strerror, path) from error


def _rename_to_nothing(source: str, target: str) -> None:
    """Rename unless there is a target, even one that appears this moment."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # FAT, which boot partitions are, has no links.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)
    else:
        os.unlink(source)


def read_file(path: str, private: bool = False) -> bytes:
    """A file's bytes, '-' for standard input; a private key must be its owner's alone."""
    if path == "-":
        return sys.stdin.buffer.read(FILE_LIMIT)
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
            raise UsageError(f"{path}: not a file")
        if private and status.st_uid == os.getuid() and status.st_mode & 0o077:
            raise UsageError(
                f"{path}: others may read or write this private key; try chmod 600 {path}"
            )
        data = stream.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{path}: larger than {FILE_LIMIT} bytes, so neither a key nor a list")
    return data


def load_private(path: str, passphrase: bytes | None) -> PrivateKey:
    """The key of a file, asking for its passphrase unless one is given."""
    data = read_file(path, private=True)
    try:
        if passphrase is not None:
            return key_files.load_private_key(data, lambda: passphrase)
        for attempt in range(PROMPTS):
            try:
                return key_files.load_private_key(data, lambda: _ask(f"passphrase for {path}"))
            except WrongPassphrase:
                if attempt == PROMPTS - 1:
                    raise
                print("Bad passphrase, try again.", file=sys.stderr)
        raise AssertionError("the last attempt returns or raises")
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error


def _ask(what: str) -> bytes:
    import getpass
    import warnings

    with warnings.catch_warnings():  # of an echo: there is no terminal, so nobody to see it
        warnings.simplefilter("ignore", getpass.GetPassWarning)
        try:
            return os.fsencode(getpass.getpass(f"Enter {what}: "))
        except EOFError as error:
            raise UsageError("a passphrase is needed; give it with -P or -N") from error


def _passphrase(options: Options, letter: str) -> bytes | None:
    """The argument of -N or -P in the bytes that the shell passed."""
    value = options.value(letter)
    return None if value is None else os.fsencode(value)


def _ask_new(options: Options) -> bytes:
    """A new passphrase, asked for twice unless it was given with -N."""
    given = _passphrase(options, "N")
    if given is not None:
        return given
    for _ in range(PROMPTS):
        passphrase = _ask("passphrase (empty for no passphrase)")
        if _ask("same passphrase again") == passphrase:
            return passphrase
        print("Passphrases do not match.  Try again.", file=sys.stderr)
    raise UsageError("the passphrases do not match")


def _answer(question: str) -> str:
    print(question, end="", flush=True)
    return sys.stdin.readline().strip()


def _home(name: str) -> str:
    """A file in ~/.ssh, of the account and not of $HOME, as ssh-keygen has it."""
    import pwd

    return os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".ssh", name)


def _confirm_overwrite(path: str) -> bool:
    if not os.path.lexists(path):
        return False
    print(f"{path} already exists.")
    if not _answer("Overwrite (y/n)? ").lower().startswith("y"):
        raise UsageError(f"{path} is left as it was")
    return True


def _default_comment() -> str:
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


def kind(key: PublicKey) -> str:
    """ED25519, ECDSA, RSA, or one of these with -SK or -CERT."""
    name = key.key_type.removeprefix("sk-").removeprefix("ssh-").partition("-")[0]
    name = name.partition("@")[0].upper()
    if key.key_type.startswith("sk-"):
        name += "-SK"
    return name + "-CERT" if is_certificate_name(key.key_type) else name


def _key_type(name: str, bits: int | None) -> tuple[str, int | None]:
    """What to pass to generate() for -t and -b."""
    name = name.lower()
    if name in ("ed25519", ED25519):
        return ED25519, None  # ssh-keygen passes over the bits, too
    if name in ("rsa", RSA, "rsa-sha2-256", "rsa-sha2-512"):
        return RSA, bits
    if name == "ecdsa":
        if bits not in (None, *_ECDSA_TYPES):
            raise UsageError("an ECDSA key has 256, 384 or 521 bits")
        return _ECDSA_TYPES[bits or 256], None
    if name in _ECDSA_TYPES.values():
        return name, None
    raise UsageError(f"keys of type {name!r} cannot be made; there are ed25519, ecdsa and rsa")


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) == int(text[:12]):
        raise UsageError(f"option {option}: expected a number, not {text!r}")
    return int(text)


def _generate(key_type: str, bits: int | None) -> PrivateKey:
    try:
        return generate(key_type, bits)
    except ValueError as error:
        raise UsageError(str(error)) from error


# -- ssh-keygen --------------------------------------------------------------------------

_KEYGEN_OPTIONS: Final = (
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
    Option("H", None, "hash all names in known_hosts, so that it betrays nobody"),
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
_KEYGEN_USAGE: Final = """\
culvert keygen [-t TYPE] [-b BITS] [-f FILE] [-N PASSPHRASE] [-C COMMENT] [-q]
culvert keygen -y | -l | -p | -c  [-f FILE]
culvert keygen -F HOST | -R HOST | -H  [-f KNOWN_HOSTS]
culvert keygen -s AUTHORITY -I ID [-h] [-n NAMES] [-V FROM:TO] [-O OPTION] [-z NUMBER] FILES
culvert keygen -L [-f CERTIFICATE]
culvert keygen -k -f LIST [-u] [-s AUTHORITY.pub] [-z NUMBER] FILES
culvert keygen -Q -f LIST FILES
culvert keygen --totp USER"""
_KEYGEN_ABOUT: Final = """\
Make a pair of keys to log in with, and look after keys and known_hosts files.

The private key stays on this machine and is nobody else's business. The public key, FILE.pub,
is one line of text: append it to ~/.ssh/authorized_keys of the account to log in to."""
_KEYGEN_FOOTER: Final = """\
examples:
  culvert keygen                           a key in ~/.ssh/id_ed25519, asking for what it needs
  culvert keygen -f key -N '' -C backup    a key without a passphrase, for a script
  culvert keygen -l -f key.pub             its fingerprint
  culvert keygen -R host.example           forget a host whose key has changed"""


def _keygen(arguments: list[str], name: str) -> None:
    options = parse(arguments, _KEYGEN_OPTIONS, name)
    if "help" in options or ("h" in options and "s" not in options):
        print(help_text(_KEYGEN_USAGE, _KEYGEN_ABOUT, _KEYGEN_OPTIONS, _KEYGEN_FOOTER), end="")
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
        ("F", _find_host),
        ("R", _remove_host),
        ("H", _hash_hosts),
        ("l", _show_fingerprints),
        ("L", _show_certificates),
    ]
    chosen = [job for letter, job in jobs if letter in options]
    if "F" in options:  # -l and -H tell how to print what is found
        chosen = [job for job in chosen if job not in (_show_fingerprints, _hash_hosts)]
    if len(chosen) > 1:
        raise UsageError(
            f"only one of --totp, -y, -l, -L, -p, -c, -F, -R and -H at a time; try '{name} --help'"
        )
    (chosen[0] if chosen else _make_key)(options)


def _make_key(options: Options) -> None:
    key_type, bits = _key_type(options.value("t") or "ed25519", _number(options.value("b"), "-b"))
    quiet = "q" in options
    short = "ecdsa" if key_type.startswith("ecdsa") else key_type.removeprefix("ssh-")
    if not quiet:
        print(f"Generating public/private {short} key pair.")
    path = options.value("f")
    if path is None:
        path = _home(f"id_{short}")
        path = _answer(f"Enter file in which to save the key ({path}): ") or path
        if not os.path.exists(os.path.dirname(path)) and path.startswith(_home("")):
            os.mkdir(os.path.dirname(path), 0o700)
            print(f"Created directory '{os.path.dirname(path)}'.")
    replace = _confirm_overwrite(path)
    passphrase = _ask_new(options)
    comment = options.value("C")
    key = _generate(key_type, bits)
    key.comment = _checked_comment(_default_comment() if comment is None else comment)
    write_whole(path, _dump(key, passphrase, options), replace=replace)
    line = key.public.line(key.comment) + "\n"
    write_whole(f"{path}.pub", line.encode(), 0o644, replace=True)
    if not quiet:
        print(f"Your identification has been saved in {path}")
        print(f"Your public key has been saved in {path}.pub")
        print(f"The key fingerprint is:\n{key.public.fingerprint(_hash(options))} {key.comment}")


def _checked_comment(comment: str) -> str:
    if not comment.isprintable():
        raise UsageError("a comment is one line of printable characters")
    return comment


def _hash(options: Options) -> str:
    name = (options.value("E") or "sha256").lower()
    if name not in ("sha256", "md5"):
        raise UsageError(f"option -E: expected sha256 or md5, not {name!r}")
    return name


def _dump(key: PrivateKey, passphrase: bytes, options: Options) -> bytes:
    form = (options.value("m") or "RFC4716").lower()
    rounds = _number(options.value("a"), "-a") or key_files.BCRYPT_ROUNDS
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
    """The file of -f, or the first of the usual ones."""
    path = options.value("f")
    if path is None:
        usual = [_home(f"id_{kind}") for kind in ("ed25519", "ecdsa", "rsa")]
        path = next(filter(os.path.exists, usual), usual[0])
        path = _answer(f"Enter file in which the key is ({path}): ") or path
    return path


def _show_public(options: Options) -> None:
    key = load_private(_key_path(options), _passphrase(options, "P"))
    print(key.public.line(key.comment))


def _show_fingerprints(options: Options) -> None:
    path = _key_path(options)
    hash = _hash(options)
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
    """A comment with the address for the telephone, and the line for the server's file."""
    from ..crypto.totp import SECRET_BYTES, address, write_secret

    user = options.value("totp") or ""
    if not user or ":" in user or not user.isprintable():
        raise UsageError(f"option --totp: expected the name of a user, not {user!r}")
    secret = os.urandom(SECRET_BYTES)
    print(f"# {address(secret, user, os.uname().nodename)}\n{user}:{write_secret(secret)}")


def _show_certificates(options: Options) -> None:
    from . import keygen_certificates

    keygen_certificates.show(_key_path(options), _hash(options))


def _comment_beside(path: str, public: PublicKey) -> str:
    """The comment in the .pub file, if it is there and of this key."""
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
        given = _ask(f"passphrase for {path}")
    key = load_private(path, given or b"")
    print(f"Old comment: {key.comment}" if key.comment else "No existing comment")
    comment = options.value("C")
    if comment is None:
        comment = _answer("New comment: ")
    key.comment = _checked_comment(comment)
    write_whole(path, _dump(key, given or b"", options), replace=True)
    write_whole(f"{path}.pub", f"{key.public.line(comment)}\n".encode(), 0o644, replace=True)
    print(f"Comment '{comment}' applied")


def _is_encrypted(data: bytes) -> bool:
    try:
        key_files.load_private_key(data, None)
    except key_files.PassphraseNeeded:
        return True
    except KeyFileError:
        return False  # which loading in earnest will explain
    return False


# -- known_hosts -------------------------------------------------------------------------


def _known_hosts(options: Options) -> tuple[str, str]:
    """Path and text of the file."""
    path = options.value("f") or _home("known_hosts")
    return path, read_file(path).decode(errors="surrogateescape")


def _host(text: str) -> tuple[str, int]:
    """Host and port of 'host' or '[host]:port'."""
    host, bracket, port = text.removeprefix("[").partition("]:")
    if not text.startswith("[") or not bracket:
        return text, known_hosts.SSH_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise UsageError(f"{text!r} names no port: expected [HOST]:PORT")
    return host, int(port)


def _find_host(options: Options) -> None:
    text = options.value("F") or ""
    name = known_hosts.host_name(*_host(text))
    path, content = _known_hosts(options)
    found = 0
    for line in known_hosts.parse(content):
        if not line.hosts or not known_hosts.matches_host(line.hosts, name):
            continue
        found += 1
        marker = {"@cert-authority": "CA", "@revoked": "REVOKED"}.get(line.marker, "")
        if "q" not in options:
            print(f"# Host {text} found: line {line.number} {marker}")
        if "l" in options:
            try:
                key = line.load()
            except CulvertError as error:
                raise UsageError(f"{path} line {line.number}: {error}") from error
            comment = f" {line.comment}" if line.comment else ""
            print(f"{text} {kind(key)} {key.fingerprint(_hash(options))}{comment}")
        elif "H" in options and not line.marker:
            salt = os.urandom(known_hosts.SALT_BYTES)
            print(f"{known_hosts.hash_host(name, salt)} {line.key_type} {line.encoded}")
        else:
            _write_text(line.text + "\n")
    if not found:
        raise Silent


class Silent(Exception):
    """Exit status 1 without another word, as of ssh-keygen -F for a host that is not there."""


def _write_text(text: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


def _remove_host(options: Options) -> None:
    text = options.value("R") or ""
    path, content = _known_hosts(options)
    kept, removed = known_hosts.remove(content, *_host(text))
    if not removed:
        raise UsageError(f"host {text} not found in {path}")
    if "q" not in options:
        for line in removed:
            print(f"# Host {text} found: line {line.number}")
    _replace_known_hosts(path, content, kept)


def _hash_hosts(options: Options) -> None:
    path, content = _known_hosts(options)
    lines: list[str] = []
    for line in known_hosts.parse(content):
        names = line.hosts.split(",")
        if not line.hosts or line.marker or line.hosts.startswith("|"):
            lines.append(line.text)
        elif any(c in line.hosts for c in "*?!"):
            print(f"{path} line {line.number}: a wildcard cannot be hashed", file=sys.stderr)
            lines.append(line.text)
        else:
            rest = f"{line.key_type} {line.encoded} {line.comment}".rstrip()
            for each in names:
                salt = os.urandom(known_hosts.SALT_BYTES)
                lines.append(f"{known_hosts.hash_host(each.lower(), salt)} {rest}")
    _replace_known_hosts(path, content, "".join(f"{line}\n" for line in lines))
    print(f"{path}.old still has the names: delete it to keep them private", file=sys.stderr)


def _replace_known_hosts(path: str, old: str, new: str) -> None:
    target = os.path.realpath(path)  # the file may well be a link into a repository
    mode = stat.S_IMODE(os.stat(target).st_mode)
    write_whole(f"{target}.old", old.encode(errors="surrogateescape"), mode, replace=True)
    write_whole(target, new.encode(errors="surrogateescape"), mode, replace=True)
    print(f"{path} updated.\nOriginal contents retained as {path}.old")


# -- Dropbear's programs -----------------------------------------------------------------

_DROPBEARKEY_OPTIONS: Final = (
    Option("t", "TYPE", "type of the new key: ed25519, ecdsa or rsa"),
    Option("f", "FILE", "the key's file; ~/.ssh/id_dropbear is what dbclient looks for"),
    Option("s", "BITS", "its size: rsa 2048 to 16384 (default 2048), ecdsa 256, 384 or 521"),
    Option("y", None, "print public key and fingerprint of the private key in FILE"),
    Option("C", "COMMENT", "the comment of the public key that is printed"),
    Option("q", None, "do not print the new public key"),
    Option("h", None, ""),
)
_DROPBEARKEY_USAGE: Final = "dropbearkey -t TYPE -f FILE [-s BITS] [-C COMMENT] [-q]\n"
_DROPBEARKEY_ABOUT: Final = (
    "Make a private key in Dropbear's format, or show the public key of one."
)
_DROPBEAR_RSA_BITS: Final = 2048


def _dropbearkey(arguments: list[str], name: str) -> None:
    options = parse(arguments, _DROPBEARKEY_OPTIONS, name)
    if "help" in options or "h" in options:
        usage = _DROPBEARKEY_USAGE + "dropbearkey -y -f FILE"
        print(help_text(usage, _DROPBEARKEY_ABOUT, _DROPBEARKEY_OPTIONS), end="")
        return
    path, kind = options.value("f"), options.value("t")
    if options.operands:
        raise UsageError(f"too many arguments: {options.operands[0]!r}; try '{name} --help'")
    if path is None:
        raise UsageError(f"the key's file is missing: -f FILE; try '{name} --help'")
    if "y" in options:
        key = load_private(path, None)
    elif kind is None:
        raise UsageError(f"the key's type is missing: -t TYPE; try '{name} --help'")
    else:
        key_type, bits = _key_type(kind, _number(options.value("s"), "-s"))
        if key_type == RSA:
            bits = bits or _DROPBEAR_RSA_BITS
        if os.path.lexists(path):
            raise UsageError(f"{path} already exists")
        key = _generate(key_type, bits)
        write_whole(path, key_files.dump_dropbear(key))
        if "q" in options:
            return
    comment = options.value("C")
    if comment is None:
        comment = key.comment or _default_comment()
    print(f"Public key portion is:\n{key.public.line(_checked_comment(comment))}")
    print(f"Fingerprint: {key.public.fingerprint()}")


_CONVERT_USAGE: Final = "dropbearconvert IN_TYPE OUT_TYPE IN_FILE OUT_FILE"
_CONVERT_ABOUT: Final = """\
Copy a private key into another format. The types are openssh and dropbear; openssh includes
PEM when it is read. A key in Dropbear's format has neither passphrase nor comment."""
_CONVERT_FOOTER: Final = """\
example:
  dropbearconvert openssh dropbear ~/.ssh/id_ed25519 ~/.ssh/id_dropbear"""


def _dropbearconvert(arguments: list[str], name: str) -> None:
    options = parse(arguments, (Option("h", None, ""),), name)
    if "help" in options or "h" in options:
        print(help_text(_CONVERT_USAGE, _CONVERT_ABOUT, (), _CONVERT_FOOTER), end="")
        return
    if len(options.operands) != 4:
        raise UsageError(f"expected {_CONVERT_USAGE.partition(' ')[2]}; try '{name} --help'")
    source, target, source_path, target_path = options.operands
    for kind in (source, target):
        if kind not in ("openssh", "dropbear"):
            raise UsageError(f"the type {kind!r} is neither openssh nor dropbear")
    is_dropbear = read_file(source_path, private=True).startswith(b"\0\0\0")
    key = load_private(source_path, None)
    if is_dropbear != (source == "dropbear"):
        raise UsageError(f"{source_path}: not in the format {source}")
    data = key_files.dump_openssh(key) if target == "openssh" else key_files.dump_dropbear(key)
    write_whole(target_path, data, replace=True)
    print(f"Key is a {key.public.key_type} key\nWrote key to '{target_path}'", file=sys.stderr)


_PROGRAMS: Final = {
    "dropbearkey": _dropbearkey,
    "dropbearconvert": _dropbearconvert,
}


def main(arguments: list[str], name: str = "keygen") -> int:
    """Run keygen, dropbearkey or dropbearconvert; returns the exit status, 0 or 1."""
    program = _PROGRAMS.get(name, _keygen)
    command = name if name in _PROGRAMS else "culvert keygen"
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    try:
        program(arguments, command)
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
